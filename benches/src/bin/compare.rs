//! Phoenix beside its peers, in one run: interleaved rounds, medians, and a table of ratios.
//!
//! Peers come from the environment (see `compare.sh`); one that is missing is listed as not here.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use phoenix_benches::{
    Files, Raw, authority, disk, memory, on_one_core, on_threads, processor_seconds, seconds, to_pem, wanted,
};
use phoenix_guest::{Rootfs, Trust};
use phoenix_pki::{Authority, Certificate, Profile, verify};
use tempfile::TempDir;
use time::OffsetDateTime;

/// Certificates of a large installation.
const MANY: usize = 1_000;

/// How many of them the shell loop is given; its time is proportional.
const LOOPED: usize = 50;

/// Leaves of one round in memory.
const BATCH: usize = 200;

fn main() {
    let rounds = std::env::args().nth(1).map_or(9, |rounds| rounds.parse().unwrap());
    let mut table = Table { rounds, rows: Vec::new(), absent: Vec::new() };
    issuing(&mut table);
    processes(&mut table);
    publishing(&mut table);
    nothing_due(&mut table);
    trust(&mut table);
    table.print();
}

/// The ratios so far, and the peers that are not here.
struct Table {
    rounds: usize,
    rows: Vec<[String; 3]>,
    absent: Vec<&'static str>,
}

impl Table {
    fn row(&mut self, what: &str, ratio: f64, than: &str, target: &str) {
        let digits = if ratio < 20.0 { 2 } else { 0 };
        self.rows.push([what.into(), format!("{ratio:.digits$} × {than}"), target.into()]);
    }

    /// Runs the contestants in turns, and gives the median time of each.
    fn rounds<const N: usize>(&self, mut contestants: [&mut dyn FnMut() -> f64; N]) -> [f64; N] {
        let mut times = [(); N].map(|()| Vec::new());
        for contestant in &mut contestants {
            contestant();
        }
        for _ in 0..self.rounds {
            contestants.iter_mut().zip(&mut times).for_each(|(contestant, times)| times.push(contestant()));
        }
        times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
    }

    fn print(&self) {
        println!("| what | Phoenix is … | target |\n|---|---|---|");
        for [what, ratio, target] in &self.rows {
            println!("| {what} | {ratio} | {target} |");
        }
        println!("\nMedians of {} interleaved rounds; one thread and one core by processor time.", self.rounds);
        if !self.absent.is_empty() {
            println!("Not here: {}.", self.absent.join(", "));
        }
    }
}

fn issuing(table: &mut Table) {
    let (directory, raw, wanted, now) = (memory(), Raw::default(), wanted(BATCH), OffsetDateTime::now_utc());
    let authority = authority(directory.path());
    let leaves = authority.sign(&wanted, now).unwrap();
    let issuer = std::slice::from_ref(authority.intermediate());
    let check = |leaf: &[Certificate]| verify(leaf, issuer, Profile::Server, None, now).unwrap();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (sign, raw_one) = (|| to_pem(&authority.sign(&wanted, now).unwrap()), || drop(raw.issue_verified()));
    let [raw_signed, raw_verified, signed, verified] = table.rounds([
        &mut || on_one_core(|| processor_seconds(|| (0..BATCH).for_each(|_| drop(raw.issue())))),
        &mut || on_one_core(|| processor_seconds(|| (0..BATCH).for_each(|_| raw_one()))),
        &mut || on_one_core(|| processor_seconds(sign)),
        &mut || on_one_core(|| processor_seconds(|| leaves.iter().for_each(|leaf| check(&leaf.chain()[..1])))),
    ]);
    let what = "P-256 leaf with key and PEM, its verification not counted, beside raw key + signature, one thread";
    table.row(what, raw_signed / (signed - verified), "as fast", "≥ 0.75, goal 0.90");
    table.row("the same with its verification", raw_signed / signed, "as fast", "");
    let what = "the same with its verification, beside raw key + signature + verification";
    table.row(what, raw_verified / signed, "as fast", "");
    let [one, all, raw_one_core, raw_all] = table.rounds([
        &mut || on_one_core(|| seconds(sign)),
        &mut || seconds(sign),
        &mut || on_one_core(|| seconds(|| (0..BATCH).for_each(|_| raw_one()))),
        &mut || seconds(|| on_threads(cores, || (0..BATCH / cores).for_each(|_| raw_one()))),
    ]);
    let target = if cores == 2 { "≥ 1.9" } else { "" };
    let than = format!("as fast (raw: {:.2} ×)", raw_one_core / raw_all);
    table.row(&format!("P-256 leaf, {cores} threads beside one"), one / all, &than, target);

    let home = authority.store().path().join("authority/current");
    let Some(mut python) = Python::start(&home) else { return table.absent.push("Python's cryptography") };
    let [signed, theirs] =
        table.rounds([&mut || on_one_core(|| processor_seconds(sign)), &mut || python.leaves(BATCH)]);
    table.row("P-256 leaf, in process, beside Python's cryptography", theirs / signed, "as fast", "");
}

/// A Python process that issues leaves when told to.
struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start(authority: &Path) -> Option<Self> {
        let python = std::env::var_os("PHOENIX_PYTHON")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/leaf.py");
        let mut command = Command::new(python);
        command.arg(script).arg(authority).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let (input, output) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        let mut python = Self { child, input, output };
        python.ask(1).map(|_| python)
    }

    fn ask(&mut self, count: usize) -> Option<f64> {
        writeln!(self.input, "{count}").ok()?;
        let mut line = String::new();
        self.output.read_line(&mut line).ok()?;
        line.trim().parse().ok()
    }

    fn leaves(&mut self, count: usize) -> f64 {
        self.ask(count).unwrap()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long the program runs, in seconds; it must succeed.
fn run(command: &mut Command) -> f64 {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    seconds(|| assert!(command.status().unwrap().success(), "{command:?} failed"))
}

/// A program that was built beside this one.
fn ours(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().with_file_name(name)
}

/// A program of a peer, when it is here.
fn peer(program: PathBuf) -> Option<PathBuf> {
    Command::new(&program).arg("-help").output().is_ok().then_some(program)
}

fn processes(table: &mut Table) {
    let directory = disk();
    let out = directory.path();
    let authority = authority(out);
    let authority_files = authority.store().path().join("authority/current");

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/three_steps.sh");
    let mut three_steps = || run(Command::new("bash").arg(script).arg(&authority_files).arg(out).arg("leaf"));
    match peer("openssl".into()) {
        Some(_) => one_leaf(table, &authority, "`openssl genpkey` + `req` + `x509`", "≥ 20", &mut three_steps),
        None => table.absent.push("openssl"),
    }
    let mkcert = std::env::var_os("PHOENIX_MKCERT").unwrap_or("mkcert".into());
    let Some(mkcert) = peer(mkcert.into()) else { return table.absent.push("mkcert") };
    let (certificate, key) = (out.join("mkcert.pem"), out.join("mkcert.key"));
    one_leaf(table, &authority, "`mkcert -ecdsa`", "> 1", &mut || {
        let mut command = Command::new(&mkcert);
        command.env("CAROOT", out).arg("-ecdsa").arg("-cert-file").arg(&certificate).arg("-key-file").arg(&key);
        run(command.arg("host.internal.example"))
    });
}

/// One leaf per process, with the store on the disk, where Phoenix waits for it as no peer does, and in memory.
fn one_leaf(table: &mut Table, on_disk: &Authority, peer: &str, target: &str, theirs: &mut dyn FnMut() -> f64) {
    let memory = memory();
    let in_memory = authority(memory.path());
    let issue = |authority: &Authority| {
        let name = format!("host{}.internal.example", OffsetDateTime::now_utc().unix_timestamp_nanos());
        run(Command::new(ours("one_leaf")).arg(authority.store().path()).arg(name))
    };
    let [durable, fleeting, theirs] = table.rounds([&mut || issue(on_disk), &mut || issue(&in_memory), theirs]);
    let what = format!("one leaf per process, the store in memory, beside {peer}");
    table.row(&what, theirs / fleeting, "as fast", target);
    let what = format!("the same, the store on disk and synced, beside {peer} without a sync");
    table.row(&what, theirs / durable, "as fast", "");
}

/// An authority of its own, with this many certificates in its store.
fn held(count: usize) -> (TempDir, Authority) {
    let directory = disk();
    let authority = authority(directory.path());
    authority.ensure_all(&wanted(count), OffsetDateTime::now_utc()).unwrap();
    (directory, authority)
}

fn publishing(table: &mut Table) {
    let (directory, _) = held(MANY);
    let files = Files::below(&directory.path().join("store")).unwrap();
    let wanted = wanted(MANY);
    let [durable, plain] = table.rounds([
        &mut || {
            let directory = disk();
            let authority = authority(directory.path());
            seconds(|| authority.ensure_all(&wanted, OffsetDateTime::now_utc()).unwrap())
        },
        &mut || {
            let directory = disk();
            seconds(|| files.write(directory.path()).unwrap())
        },
    ]);
    let what = "1,000 leaves issued and durably published, beside writing the same bytes without fsync";
    table.row(what, durable / plain, "the time", "≤ 2.5");
}

fn nothing_due(table: &mut Table) {
    let (directory, authority) = held(MANY);
    let (store, wanted) = (authority.store().path(), wanted(MANY));
    let files = Files::below(store).unwrap();
    let plan = || authority.plan(&wanted, OffsetDateTime::now_utc()).unwrap();
    let [planned, read, on_one, read_there] = table.rounds([
        &mut || seconds(plan),
        &mut || seconds(|| files.read(store).unwrap()),
        &mut || on_one_core(|| processor_seconds(plan)),
        &mut || on_one_core(|| processor_seconds(|| files.read(store).unwrap())),
    ]);
    let what = "nothing to do among 1,000 certificates, beside opening and reading their files";
    table.row(what, planned / read, "the time", "goal ≤ 3");
    table.row("the same on one core", on_one / read_there, "the time", "");

    if peer("openssl".into()).is_none() {
        return;
    }
    let inventory = directory.path().join("phoenix.toml");
    fs::write(&inventory, inventory_of(store, &wanted)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/check_end.sh");
    let [mine, theirs] = table.rounds([&mut || run(Command::new(ours("nothing_due")).arg(&inventory)), &mut || {
        run(Command::new("bash").arg(script).arg(store).arg(LOOPED.to_string()))
    }]);
    let what = format!(
        "a whole converge with nothing to do, 1,000 certificates, beside a loop of `openssl x509 -checkend` ({LOOPED} measured, × {})",
        MANY / LOOPED
    );
    table.row(&what, theirs * (MANY / LOOPED) as f64 / mine, "as fast", "≥ 1,000");
}

fn inventory_of(store: &Path, wanted: &[phoenix_pki::LeafParams]) -> String {
    let mut text = format!(
        "[authority]\nname = \"Bench\"\nstore = {:?}\npermitted = [\"internal.example\", \"10.0.0.0/8\"]\n",
        store.display().to_string()
    );
    for leaf in wanted {
        let names: Vec<String> = leaf.names.iter().map(|name| format!("{:?}", name.to_string())).collect();
        text.push_str(&format!("\n[[certificate]]\nnames = [{}]\n", names.join(", ")));
    }
    text
}

/// On copies of this machine's trust store; the machine's own is only read.
fn trust(table: &mut Table) {
    let (certificates, list) = ("/usr/share/ca-certificates", "/etc/ca-certificates.conf");
    let found = Command::new("update-ca-certificates").arg("--help").output().is_ok();
    if !found || !Path::new(list).exists() {
        return table.absent.push("update-ca-certificates");
    }
    let directory = disk();
    let guest = directory.path().join("guest");
    let inside = |path: &str| guest.join(path);
    for part in ["etc/ssl/certs", "usr/share", "usr/local/share/ca-certificates"] {
        fs::create_dir_all(inside(part)).unwrap();
    }
    run(Command::new("cp").arg("-a").arg(certificates).arg(inside("usr/share")));
    run(Command::new("cp").arg("-aL").args([list, "/etc/os-release"]).arg(inside("etc")));
    let authority = authority(directory.path());
    let anchor = inside("usr/local/share/ca-certificates/bench.crt");
    fs::write(anchor, authority.root().pem()).unwrap();
    let update = || {
        let mut command = Command::new("update-ca-certificates");
        command.arg("--certsconf").arg(inside("etc/ca-certificates.conf")).args(["--hooksdir", "/nonexistent"]);
        command.arg("--certsdir").arg(inside("usr/share/ca-certificates"));
        command.arg("--localcertsdir").arg(inside("usr/local/share/ca-certificates"));
        run(command.arg("--etccertsdir").arg(inside("etc/ssl/certs")))
    };
    update();
    let transport = Rootfs::new("guest", &guest).unwrap();
    let anchors = std::slice::from_ref(authority.root());
    let status = || {
        let stores = Trust::of(&transport, &[]).unwrap().status(anchors).unwrap();
        assert!(stores.iter().all(|store| store.state.holds()), "{stores:?}");
    };
    let [mine, theirs] = table.rounds([&mut || seconds(status), &mut || update()]);
    let what = "trust status of a guest with nothing to do, beside a no-op `update-ca-certificates`";
    table.row(what, theirs / mine, "as fast", "≥ 100");
}
