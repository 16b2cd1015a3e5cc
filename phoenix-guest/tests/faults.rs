//! Killed, out of space or broken at any system call: a guest holds the old or the new, never half, and the next run
//! converges.
//!
//! Every action runs in a process of its own (this binary with an action in its environment) under strace, first to
//! count its system calls on guests and store, then once for each of them with a fault there.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error as StdError;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::{has, skip};
use phoenix_guest::inventory::{GuestEntry, Inventory};
use phoenix_guest::{
    Event, Mode, Options, Owner, Placed, Placement, Reached, Rootfs, State, Trust, converge, ensure_pair,
};
use phoenix_pki::{
    Authority, AuthorityParams, Certificate, Fingerprint, LeafParams, Permitted, PrivateKey, RootKey, Store,
};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

/// The guest of all actions but `converge`.
const GUEST: &str = "101";

/// The guests of `converge`: the first one holds pairs that are due for renewal, the second one has nothing yet.
const GUESTS: [&str; 2] = ["102", "1002"];

const REGISTRY: &str = "registry.internal.example:5000";

/// What programs trust.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// A trust anchor of ours in the place of an older one.
    Install,
    /// A pair where there was none.
    Place,
    /// A pair in the place of one of ours.
    Swap,
    /// A pair in the place of plain files that somebody else put there.
    Adopt,
    /// A whole run: new certificates, one guest with old ones, one guest with none.
    Converge,
}

use Action::{Adopt, Converge, Install, Place, Swap};

const ACTIONS: [(Action, &str); 5] =
    [(Install, "install"), (Place, "place"), (Swap, "swap"), (Adopt, "adopt"), (Converge, "converge")];

/// A directory with guests, a store, and something beside them that is nobody's business.
struct Ground {
    path: PathBuf,
    /// Removes it in the end; the process of an action has none.
    _directory: Option<tempfile::TempDir>,
}

impl Ground {
    /// In memory where the system has such: what is tested is not the disk's speed.
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { path: directory.path().into(), _directory: Some(directory) }
    }

    fn prepared(action: Action) -> Self {
        let ground = Self::new();
        for directory in ["guests", "beside"] {
            fs::create_dir(ground.path.join(directory)).unwrap();
        }
        fs::write(ground.path.join("beside/witness"), "as it was").unwrap();
        action.prepare(&ground);
        ground
    }

    fn copy(&self) -> Self {
        let ground = Self::new();
        copy(&self.path, &ground.path);
        ground
    }

    fn guest(&self, id: &str) -> PathBuf {
        self.path.join("guests").join(id)
    }

    fn rootfs(&self, id: &str) -> Rootfs {
        Rootfs::new(id, self.guest(id)).unwrap()
    }

    fn store(&self) -> Store {
        Store::new(self.path.join("store"))
    }

    fn authority(&self) -> Authority {
        Authority::open(&self.store()).unwrap()
    }

    /// A small Debian 12, with the anchors of others in its bundle.
    fn lay_out(&self, id: &str, others: &[Certificate]) {
        let root = self.guest(id);
        for directory in ["etc/ssl/certs", "usr/local/share/ca-certificates"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let files = [
            ("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n".to_string()),
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\n".into()),
            ("etc/group", "root:x:0:\nwww-data:x:33:\n".into()),
            (BUNDLE, others.iter().map(Certificate::pem).collect()),
        ];
        for (path, text) in files {
            fs::write(root.join(path), text).unwrap();
        }
    }
}

/// The contents of a directory, with modes and owners.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success(), "{} was not copied to {}", from.display(), to.display());
}

fn params(name: &str) -> AuthorityParams {
    let permitted = Permitted::parse(["internal.example", "10.0.0.0/8"]).unwrap();
    AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new(name, permitted) }
}

/// The root of an authority that is somebody else's, or was ours.
fn another_root(name: &str) -> Certificate {
    let ground = Ground::new();
    Authority::create(&ground.store(), &params(name), NOW).unwrap().root().clone()
}

fn leaf() -> LeafParams {
    LeafParams::server(["nginx.internal.example", "10.0.0.101"]).unwrap()
}

/// As an nginx has it: the key apart, for its group to read.
fn placement() -> Placement {
    let certificate = |path: &str| Placed::certificate(path.parse().unwrap());
    let key = Placed {
        path: "/etc/nginx/private/nginx.key".parse().unwrap(),
        mode: "0640".parse::<Mode>().unwrap(),
        owner: "root:www-data".parse::<Owner>().unwrap(),
    };
    Placement {
        cert: certificate("/etc/nginx/ssl/nginx.crt"),
        chain: Some(certificate("/etc/nginx/ssl/chain.crt")),
        root: Some(certificate("/etc/nginx/ssl/root.crt")),
        serves: Some("10.0.0.101:443".parse().unwrap()),
        key,
        ..Placement::new("/cert".parse().unwrap(), "/key".parse().unwrap())
    }
}

/// The inventory of the documents, as far as it is about the two guests.
fn inventory(ground: &Ground) -> Inventory {
    let mut inventory = Inventory::parse(include_str!("../../examples/phoenix.toml"), "phoenix.toml").unwrap();
    let ours = |id: &dyn ToString| GUESTS.contains(&id.to_string().as_str());
    inventory.authority.store = ground.store().path().into();
    inventory.authority.params.root_key = RootKey::Plain;
    inventory.guests.retain(|guest| ours(&guest.id));
    inventory.guests.iter_mut().for_each(|guest| guest.depends.clear());
    for certificate in &mut inventory.certificates {
        certificate.deliver.retain(|delivery| ours(&delivery.guest));
    }
    inventory.certificates.retain(|certificate| !certificate.deliver.is_empty());
    inventory
}

/// A pair that an action is about.
struct Wanted {
    guest: String,
    leaf: LeafParams,
    placement: Placement,
}

/// An error and its causes.
fn told(error: &dyn StdError) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

impl Action {
    fn name(self) -> &'static str {
        ACTIONS.iter().find(|(action, _)| *action == self).unwrap().1
    }

    /// What has to be there before it.
    fn prepare(self, ground: &Ground) {
        let others = ["Alpha", "Beta"].map(another_root);
        if self == Converge {
            ground.lay_out(GUESTS[0], &others);
            assert_eq!(converged(ground, NOW, &|_| {}), Err("stopped".into()), "the second guest is not there yet");
            return ground.lay_out(GUESTS[1], &others);
        }
        ground.lay_out(GUEST, &others);
        let authority = Authority::create(&ground.store(), &params("House"), NOW).unwrap();
        let issue = || authority.issue(&leaf(), NOW).unwrap();
        let guest = ground.rootfs(GUEST);
        match self {
            Install => {
                let registries = [REGISTRY.to_string()];
                let trust = Trust::of(&guest, &registries).unwrap();
                assert!(trust.install(&[another_root("House before")]).unwrap().changed);
            }
            Place => drop(issue()),
            Swap => {
                // Twice, so that there is a generation before the last one, which the swap removes.
                for _ in 0..2 {
                    ensure_pair(&guest, &issue(), &placement(), &[authority.root().der().clone()], NOW).unwrap();
                }
                issue();
            }
            Adopt => {
                let old = issue();
                for (placed, mode, text) in [
                    (placement().cert, 0o644, old.chain_pem()),
                    (placement().key, 0o600, old.key().to_pem().to_string()),
                ] {
                    let path = inside(ground, GUEST, placed.path.as_str());
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(&path, text).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                }
                issue();
            }
            Converge => {}
        }
    }

    /// Does it, and says whether that changed anything.
    fn run(self, ground: &Ground) -> Result<bool, String> {
        match self {
            Install => {
                let (guest, authority) = (ground.rootfs(GUEST), ground.authority());
                let registries = [REGISTRY.to_string()];
                let trust = Trust::of(&guest, &registries).map_err(|error| told(&error))?;
                let installed = trust.install(std::slice::from_ref(authority.root())).map_err(|error| told(&error))?;
                let holds = installed.stores.iter().all(|store| store.state.holds());
                if holds { Ok(installed.changed) } else { Err(format!("{:?}", installed.stores)) }
            }
            Place | Swap | Adopt => {
                let (guest, authority) = (ground.rootfs(GUEST), ground.authority());
                let leaf = authority.leaf(&leaf().label()).unwrap().unwrap();
                ensure_pair(&guest, &leaf, &placement(), &[authority.root().der().clone()], NOW)
                    .map(|delivered| delivered.changed())
                    .map_err(|error| told(&error))
            }
            // Later, so that the certificates are due.
            Converge => converged(ground, NOW + Duration::days(61), &|event| {
                if let (Event::Working { guest, what }, true) = (event, std::env::var_os(ACTION).is_some()) {
                    println!("working on {guest}: {what}");
                }
            }),
        }
    }

    fn wanted(self, ground: &Ground) -> Vec<Wanted> {
        match self {
            Install => Vec::new(),
            Place | Swap | Adopt => vec![Wanted { guest: GUEST.into(), leaf: leaf(), placement: placement() }],
            Converge => inventory(ground)
                .certificates
                .iter()
                .flat_map(|certificate| {
                    certificate.deliver.iter().map(|delivery| Wanted {
                        guest: delivery.guest.to_string(),
                        leaf: certificate.leaf.clone(),
                        placement: delivery.placement.clone(),
                    })
                })
                .collect(),
        }
    }

    fn guests(self) -> &'static [&'static str] {
        if self == Converge { &GUESTS } else { &[GUEST] }
    }
}

/// A run over the inventory in one thread; says whether it changed anything.
fn converged(ground: &Ground, now: OffsetDateTime, events: &(dyn Fn(Event<'_>) + Sync)) -> Result<bool, String> {
    let reach = |guest: &GuestEntry| {
        let path = ground.guest(&guest.id.to_string());
        match path.exists() {
            true => Ok(Reached::Ready(Box::new(Rootfs::new(guest.id.to_string(), path)?))),
            false => Ok(Reached::Absent { why: "stopped".into() }),
        }
    };
    let options = Options { parallel: 1, ..Options::default() };
    let report = converge(&inventory(ground), &reach, &options, now, events).map_err(|error| told(&error))?;
    if report.holds() {
        return Ok(report.changed());
    }
    let states = report.guests.iter().flat_map(|guest| {
        let trust = guest.trust.iter().map(|trust| &trust.state);
        trust.chain(guest.deliveries.iter().map(|delivery| &delivery.state)).chain([&guest.state])
    });
    let causes = states.filter_map(|state| match state {
        State::Failed { causes } => Some(causes.join(": ")),
        State::Pending { why } => Some(why.clone()),
        _ => None,
    });
    Err(causes.collect::<Vec<_>>().join("; "))
}

/// A path of a guest as seen from here; all symlinks of the guests that are looked through are relative.
fn inside(ground: &Ground, guest: &str, path: &str) -> PathBuf {
    ground.guest(guest).join(path.trim_start_matches('/'))
}

// Looking.

/// What a guest's programs find.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// By guest and path, the certificate of a pair; `None` where there is no pair.
    pairs: BTreeMap<(String, String), Option<Fingerprint>>,
    /// The bundles by guest.
    bundles: BTreeMap<String, Vec<u8>>,
}

/// What is to be found, each part of it whole: a certificate has its key, a bundle parses, and no key lies open.
fn look(action: Action, ground: &Ground, when: &str) -> Found {
    let read = |guest: &str, placed: &Placed| match fs::read(inside(ground, guest, placed.path.as_str())) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{when}: {}: {error}", placed.path),
    };
    let parse = |bytes: &[u8], path: &str| {
        Certificate::all_from_pem(bytes, path).unwrap_or_else(|error| panic!("{when}: {error}"))
    };
    let (mut pairs, mut open) = (BTreeMap::new(), BTreeSet::from([0o600]));
    for Wanted { guest, placement, .. } in action.wanted(ground) {
        let path = placement.cert.path.to_string();
        let pair = match (read(&guest, &placement.cert), read(&guest, &placement.key)) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                let leaf = parse(&cert, &path).remove(0);
                let key = PrivateKey::from_pem(&key, None, &path).unwrap_or_else(|error| panic!("{when}: {error}"));
                assert_eq!(leaf.public_key(), key.public_key(), "{when}: {path} and its key are no pair");
                Some(leaf.fingerprint())
            }
            (cert, _) => panic!("{when}: of {path} and its key, only the {} is there", cert.map_or("key", |_| "first")),
        };
        for placed in [&placement.chain, &placement.root].into_iter().flatten() {
            read(&guest, placed).inspect(|bytes| drop(parse(bytes, placed.path.as_str())));
        }
        open.insert(placement.key.mode.bits());
        pairs.insert((guest, path), pair);
    }
    let mut bundles = BTreeMap::new();
    for guest in action.guests() {
        let bytes = fs::read(inside(ground, guest, BUNDLE)).unwrap_or_else(|error| panic!("{when}: {BUNDLE}: {error}"));
        assert!(parse(&bytes, BUNDLE).len() >= 2, "{when}: the anchors of others are gone");
        bundles.insert(guest.to_string(), bytes);
        for path in tree(&inside(ground, guest, "etc/docker")).into_keys().filter(|path| path.is_file()) {
            if !temporary(&path) {
                parse(&fs::read(&path).unwrap(), &path.display().to_string());
            }
        }
    }
    for (path, stamp) in tree(&ground.path) {
        if stamp.file && fs::read(&path).unwrap().windows(11).any(|bytes| bytes == b"PRIVATE KEY") {
            let shared = path.starts_with(ground.path.join("guests")) && open.contains(&stamp.mode);
            assert!(shared || stamp.mode == 0o600, "{when}: {} has mode {:o}", path.display(), stamp.mode);
        }
    }
    Found { pairs, bundles }
}

fn is_generation(name: &OsStr) -> bool {
    name.len() == 16 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

fn temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".phoenix-tmp-"))
}

/// What tells that a file was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    file: bool,
    mode: u32,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    length: u64,
}

/// Every file, directory and link below a path, itself included.
fn tree(path: &Path) -> BTreeMap<PathBuf, Stamp> {
    fn walk(path: &Path, found: &mut BTreeMap<PathBuf, Stamp>) {
        let Ok(seen) = path.symlink_metadata() else { return };
        let stamp = Stamp {
            file: seen.is_file(),
            mode: seen.mode() & 0o7777,
            inode: seen.ino(),
            modified: (seen.mtime(), seen.mtime_nsec()),
            changed: (seen.ctime(), seen.ctime_nsec()),
            length: seen.len(),
        };
        found.insert(path.into(), stamp);
        if seen.is_dir() {
            fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), found));
        }
    }
    let mut found = BTreeMap::new();
    walk(path, &mut found);
    found
}

/// What a case is judged by: how it was before the action, and what the action comes to.
struct Course {
    action: Action,
    prepared: Ground,
    before: Found,
    /// Of pairs that the action makes, another run has others.
    after: Found,
    /// Where the action was traced, and its system calls there.
    traced: Ground,
    points: Vec<Point>,
}

impl Course {
    fn of(action: Action) -> Self {
        let prepared = Ground::prepared(action);
        let before = look(action, &prepared, "before");
        let ground = prepared.copy();
        let points = points(action, &ground);
        let after = look(action, &ground, "after");
        assert_ne!(before, after, "{action:?} does nothing");
        Self { action, prepared, before, after, traced: ground, points }
    }

    /// The pairs that the store holds for the guests.
    fn held(&self, ground: &Ground) -> BTreeMap<(String, String), Option<Fingerprint>> {
        let authority = ground.authority();
        let held = |Wanted { guest, leaf, placement }: Wanted| {
            let leaf = authority.leaf(&leaf.label()).unwrap();
            ((guest, placement.cert.path.to_string()), leaf.map(|leaf| leaf.certificate().fingerprint()))
        };
        self.action.wanted(ground).into_iter().map(held).collect()
    }

    /// At any moment there is the old or the new, and nothing else was touched.
    fn assert_whole(&self, ground: &Ground, outside: &BTreeMap<PathBuf, Stamp>, when: &str) -> Found {
        let (found, held) = (look(self.action, ground, when), self.held(ground));
        for (path, pair) in &found.pairs {
            assert!([&self.before.pairs[path], &held[path]].contains(&pair), "{when}: another pair at {path:?}");
        }
        for (guest, bundle) in &found.bundles {
            let known = [&self.before.bundles[guest], &self.after.bundles[guest]];
            assert!(known.contains(&bundle), "{when}: the bundle of {guest} is neither old nor new");
        }
        assert_eq!(&self.outside(ground), outside, "{when}: something outside was touched");
        found
    }

    /// All that is none of the action's business.
    fn outside(&self, ground: &Ground) -> BTreeMap<PathBuf, Stamp> {
        let mut outside = tree(&ground.path);
        outside.retain(|path, _| !action_writes(self.action, ground, path));
        outside
    }

    /// The next run comes to the end, and the one after it changes nothing.
    fn assert_converges(&self, ground: &Ground, outside: &BTreeMap<PathBuf, Stamp>, when: &str) {
        self.action.run(ground).unwrap_or_else(|error| panic!("{when}: the next run: {error}"));
        let found = self.assert_whole(ground, outside, when);
        assert_eq!(found.pairs, self.held(ground), "{when}: the next run left an old pair");
        assert_eq!(found.bundles, self.after.bundles, "{when}: the next run left an old bundle");
        assert_tidy(ground, when);
        let before = tree(&ground.path);
        assert_eq!(self.action.run(ground), Ok(false), "{when}: a run with nothing to do");
        assert_eq!(tree(&ground.path), before, "{when}: a run with nothing to do wrote");
    }
}

/// Whether a path is in a guest, or in the store of an action that issues.
fn action_writes(action: Action, ground: &Ground, path: &Path) -> bool {
    let guests = ground.path.join("guests");
    let in_a_guest = action.guests().iter().any(|guest| path.starts_with(guests.join(guest)));
    let in_the_store = action == Converge && path.starts_with(ground.store().path());
    in_a_guest || in_the_store
}

/// Nothing lies in a guest under a temporary name, and no generation that no link leads to.
fn assert_tidy(ground: &Ground, when: &str) {
    for (path, _) in tree(&ground.path.join("guests")) {
        assert!(!temporary(&path), "{when}: {} was left", path.display());
        if path.ends_with("current") {
            let home = path.parent().unwrap();
            let kept = ["current", "previous"].map(|link| fs::read_link(home.join(link)).ok());
            for entry in fs::read_dir(home).unwrap() {
                let name = entry.unwrap().file_name();
                let known = name == "current" || name == "previous" || kept.iter().flatten().any(|kept| *kept == *name);
                assert!(known, "{when}: {} was left", home.join(name).display());
            }
        }
    }
}

// Tracing.

/// The system calls that touch files.
const CALLS: &str = "open,openat,openat2,creat,write,writev,pwrite64,fsync,fdatasync,syncfs,sync_file_range,rename,renameat,\
     renameat2,link,linkat,symlink,symlinkat,mkdir,mkdirat,unlink,unlinkat,rmdir,truncate,ftruncate,fallocate,\
     chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat";

/// A system call that an action makes on guests or store.
#[derive(Clone, Debug)]
struct Point {
    call: String,
    /// Which of the calls of this name it is, from 1.
    count: usize,
    line: String,
}

impl Point {
    /// Whether it changes anything, and so can find no space or a broken disk.
    fn changes(&self) -> bool {
        !self.call.starts_with("open") || self.line.contains("O_CREAT")
    }

    /// Whether it is the rename that gives a path of this name its content.
    fn renames_to(&self, name: &str) -> bool {
        self.call.starts_with("rename") && self.line.split(" = ").next().unwrap().ends_with(&format!("\"{name}\")"))
    }

    /// The guest that it is about, and the directory there, up to a generation: those have other names in each run.
    fn place(&self, ground: &Ground) -> Option<(String, String)> {
        let guests = format!("{}/guests/", ground.path.display());
        let path = self.line.split(&guests).nth(1)?.split(['>', '"']).next()?;
        let (guest, path) = path.split_once('/').unwrap_or((path, ""));
        let path = Path::new("/").join(path);
        let other = |part: &Path| temporary(part) || part.file_name().is_some_and(is_generation);
        let directory =
            path.ancestors().filter(|part| other(part)).last().map_or(&*path, |part| part.parent().unwrap());
        Some((guest.into(), directory.to_str()?.into()))
    }
}

/// Whether system calls can be watched; leaves a record for the test when they cannot.
fn can_trace(test: &str) -> bool {
    if !has(test, &["strace"]) {
        return false;
    }
    let works =
        Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).status().is_ok_and(|done| done.success());
    if !works {
        skip(test, "no permission to trace processes");
    }
    works
}

/// The names of the environment variables that make this binary do one thing in a process of its own.
const ACTION: &str = "PHOENIX_TEST_ACTION";
const AT: &str = "PHOENIX_TEST_GROUND";

/// The action under strace.
fn traced(action: Action, ground: &Ground, options: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]);
    // Fewer stops make it faster, but strace 6.1 then sends no signals.
    if !options.iter().any(|option| option.contains(":signal=")) {
        command.arg("--seccomp-bpf");
    }
    command.args(options).arg("--").arg(std::env::current_exe().unwrap());
    command.env(ACTION, action.name()).env(AT, &ground.path).stdin(Stdio::null());
    command
}

/// The action under strace, with something else happening at some of its system calls.
fn injected(action: Action, ground: &Ground, faults: &[(&Point, &str)]) -> Command {
    let calls: Vec<&str> = faults.iter().map(|(point, _)| point.call.as_str()).collect();
    let mut expressions = vec![format!("trace={}", calls.join(","))];
    expressions
        .extend(faults.iter().map(|(point, fault)| format!("inject={}:{fault}:when={}", point.call, point.count)));
    let mut options = vec!["-o", "/dev/null"];
    options.extend(expressions.iter().flat_map(|expression| ["-e", expression]));
    traced(action, ground, &options)
}

/// What a program printed, standard output before standard error.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The system calls of an action on guests and store, in their order. Does the action.
fn points(action: Action, ground: &Ground) -> Vec<Point> {
    let path = ground.path.to_str().unwrap();
    let trace = Ground::new();
    let file = trace.path.join("trace");
    let options = ["-y", "-o", file.to_str().unwrap(), "-e", &format!("trace={CALLS}")];
    let output = traced(action, ground, &options).output().unwrap();
    assert!(output.status.success(), "{action:?}: {}", said(&output));
    let (mut main, mut points) = (None, Vec::new());
    let mut counts: HashMap<(String, String), usize> = HashMap::new();
    for line in fs::read_to_string(&file).unwrap().lines() {
        let Some((thread, line)) = line.split_once(' ') else { continue };
        let Some((call, _)) = line.trim_start().split_once('(') else { continue };
        let main = main.get_or_insert(thread.to_string());
        let count = counts.entry((thread.into(), call.into())).or_default();
        *count += 1;
        let point = Point { call: call.into(), count: *count, line: line.trim_start().into() };
        if !line.contains(path) {
            let printed = line.contains("write(1<") || line.contains("write(2<");
            assert!(!point.changes() || printed, "{action:?} writes elsewhere: {line}");
        } else if *main == thread {
            points.push(point);
        }
    }
    // strace counts in each thread by itself. The store makes several certificates in as many threads; for guests there
    // is this one alone, and what it does at a count that none of the others reaches is hit for certain.
    let main = main.unwrap_or_default();
    points.retain(|point| {
        let others = counts.iter().filter(|((thread, call), _)| *thread != main && *call == point.call);
        others.max_by_key(|(_, count)| **count).is_none_or(|(_, most)| point.count > *most)
    });
    assert!(points.len() > 3, "{action:?}: {points:?}");
    let of_guests: Vec<&Point> =
        points.iter().filter(|point| point.changes() && point.place(ground).is_some()).collect();
    assert_closed_and_durable(&of_guests);
    points
}

/// What no kill of a process shows. Whatever is made in a guest is made new and closed to others: who opens a file
/// while it is empty reads a key from it later. And it outlives a power cut: whole before its rename, and the rename
/// durable before anything that follows from it.
fn assert_closed_and_durable(points: &[&Point]) {
    for (at, point) in points.iter().enumerate() {
        let line = &point.line;
        if line.contains("O_CREAT") {
            assert!(line.contains("O_EXCL") && line.contains(", 0600)"), "not made new and closed: {line}");
        }
        if point.call.starts_with("rename") {
            let mut quoted = line.split('"');
            let (from, directory) = (quoted.nth(1).unwrap(), line.split(['<', '>']).nth(1).unwrap());
            let (before, after) = (points[at - 1], points.get(at + 1));
            let whole = before.call.starts_with("symlink") || before.call == "fsync";
            assert!(whole && before.line.contains(from), "not whole before {line}: {}", before.line);
            let synced =
                after.is_some_and(|after| after.call == "fsync" && after.line.contains(&format!("<{directory}>")));
            assert!(synced, "not durable: {line}, then {after:?}");
        }
    }
}

// The tests.

/// The most cases of one test of `converge`, evenly spread over its system calls: some are the store's, which has a
/// test of this kind of its own, and the others are those of the other actions again.
const MOST: usize = 300;

fn sample<T>(action: Action, all: Vec<T>) -> Vec<T> {
    let step = if action == Converge { all.len().div_ceil(MOST).max(1) } else { 1 };
    all.into_iter().step_by(step).collect()
}

/// Does the work for every item, on as many threads as there are processors.
fn each<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(4) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

fn killed_at_every_call(test: &str, action: Action) {
    if !can_trace(test) {
        return;
    }
    let course = Course::of(action);
    let points = &course.points;
    let kills = sample(action, points.iter().enumerate().collect());
    // Before these, the old one is there; after them, the new one.
    let switched = points.iter().rposition(|point| point.renames_to("current"));
    let bundled = points.iter().rposition(|point| point.renames_to("ca-certificates.crt"));
    each(&kills, |(at, point)| {
        let when = format!("{action:?} killed at {} of {}: {}", at + 1, points.len(), point.line);
        let ground = course.prepared.copy();
        let outside = course.outside(&ground);
        let output = injected(action, &ground, &[(point, "signal=KILL")]).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{when}: it lived: {}", said(&output));
        let found = course.assert_whole(&ground, &outside, &when);
        if action != Converge {
            let side = |done: bool| if done { &course.after } else { &course.before };
            let expected = side(switched.is_some_and(|switched| *at > switched));
            assert_eq!(found.pairs, expected.pairs, "{when}");
            let expected = side(bundled.is_some_and(|bundled| *at > bundled));
            assert_eq!(found.bundles, expected.bundles, "{when}");
        }
        course.assert_converges(&ground, &outside, &when);
    });
    println!("{action:?}: killed at {} of {} system calls", kills.len(), points.len());
}

fn failing_at_every_write(test: &str, action: Action) {
    if !can_trace(test) {
        return;
    }
    let course = Course::of(action);
    let points = &course.points;
    let faults: Vec<(usize, &Point, &str)> = points
        .iter()
        .enumerate()
        .filter(|(_, point)| point.changes())
        .flat_map(|(at, point)| ["ENOSPC", "EIO"].map(|fault| (at, point, fault)))
        .collect();
    let faults = sample(action, faults);
    let switched = points.iter().rposition(|point| point.renames_to("current"));
    let bundled = points.iter().rposition(|point| point.renames_to("ca-certificates.crt"));
    each(&faults, |(at, point, fault)| {
        let when = format!("{action:?} with {fault} at {} of {}: {}", at + 1, points.len(), point.line);
        let ground = course.prepared.copy();
        let outside = course.outside(&ground);
        let output = injected(action, &ground, &[(point, &format!("error={fault}"))]).output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{when}: {text}");
        let error = text.lines().find(|line| line.starts_with("ERROR ")).unwrap_or_else(|| panic!("{when}: {text}"));
        let found = course.assert_whole(&ground, &outside, &when);
        if action != Converge {
            if switched.is_none_or(|switched| *at <= switched) {
                assert_eq!(found.pairs, course.before.pairs, "{when}: the old pair is gone");
            }
            if bundled.is_none_or(|bundled| *at <= bundled) {
                assert_eq!(found.bundles, course.before.bundles, "{when}: the old bundle is gone");
            }
        }
        match point.place(&course.traced) {
            Some((guest, directory)) => {
                assert!(error.contains(&format!("guest {guest}: ")), "{when}: no guest in {error}");
                assert!(error.contains(&directory), "{when}: no path in {error}");
                let held = course.held(&ground);
                let others = found.pairs.iter().filter(|((other, _), _)| *other != guest);
                others.for_each(|(path, pair)| assert_eq!(*pair, held[path], "{when}: it kept {path:?} from its pair"));
            }
            None => {
                assert!(error.contains(ground.store().path().to_str().unwrap()), "{when}: no path in {error}");
                assert_eq!(found, course.before, "{when}: a guest changed although the store failed");
            }
        }
        course.assert_converges(&ground, &outside, &when);
    });
    println!("{action:?}: {} failing calls of {}", faults.len(), points.len());
}

/// A run that waits for another one goes on when that one is killed, and finishes its work.
fn two_at_once(test: &str) {
    if !can_trace(test) {
        return;
    }
    let course = Course::of(Converge);
    // One call before a switch the first run waits, long enough for the other one to start, and to come to its end if
    // nothing holds it; then it is killed at the switch.
    let switches: Vec<&[Point]> = course
        .points
        .windows(2)
        .filter(|points| points[1].renames_to("current") && points[1].place(&course.traced).is_some())
        .collect();
    assert!(!switches.is_empty());
    each(&switches, |points| {
        let when = format!("killed while another run waited: {}", points[1].line);
        let ground = course.prepared.copy();
        let outside = course.outside(&ground);
        let faults = [(&points[0], "delay_enter=1000000"), (&points[1], "signal=KILL")];
        let mut command = injected(Converge, &ground, &faults);
        let mut first = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(first.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("working"), "{when}: {line}");
        assert_eq!(first.try_wait().unwrap(), None, "{when}: it ended early");
        Converge.run(&ground).unwrap_or_else(|error| panic!("{when}: the other run: {error}"));
        let ended = first.try_wait().unwrap().unwrap_or_else(|| panic!("{when}: the other run did not wait"));
        assert_eq!(ended.signal(), Some(9), "{when}: {ended}");
        course.assert_converges(&ground, &outside, &when);
    });
}

/// A file system in memory, unmounted in the end.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: &Path, size: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs"]).arg(path).stderr(Stdio::null());
        mount.status().is_ok_and(|done| done.success()).then(|| Self(path.into()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// No injection: a file system that is full, with so many pages left.
fn full(test: &str, action: Action) {
    const PAGE: u64 = 4096;
    let prepared = Ground::prepared(action);
    let before = look(action, &prepared, "before");
    let done = prepared.copy();
    action.run(&done).unwrap();
    let course =
        Course { action, after: look(action, &done, "after"), prepared, before, points: Vec::new(), traced: done };
    let mut failed = 0;
    // Each file takes a page, so the space is enough at last.
    for pages in 0..64 {
        let when = format!("{action:?} with {pages} free pages");
        let ground = course.prepared.copy();
        let guest = ground.guest(GUEST);
        let Some(_mounted) = Mounted::at(&guest, "1m") else {
            return skip(test, "no permission to mount a tmpfs");
        };
        copy(&course.prepared.guest(GUEST), &guest);
        let filler = guest.join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        let error = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        file.set_len(file.metadata().unwrap().len() / PAGE * PAGE - pages * PAGE).unwrap();
        drop(file);
        let outside = course.outside(&ground);
        let result = action.run(&ground);
        let found = course.assert_whole(&ground, &outside, &when);
        match &result {
            Ok(changed) => assert!(changed, "{when}"),
            Err(error) => {
                failed += 1;
                assert!(error.contains("guest 101: ") && error.contains("No space left"), "{when}: {error}");
                assert_eq!(found, course.before, "{when}: the old state is gone");
            }
        }
        fs::remove_file(&filler).unwrap();
        course.assert_converges(&ground, &outside, &when);
        if result.is_ok() {
            println!("{action:?}: {failed} times too full");
            return assert!(failed > 0, "it was never full");
        }
    }
    panic!("{action:?}: always too full");
}

/// A test is given its name, for the record of what was skipped.
type Test = fn(&str);

const TESTS: [(&str, Test); 15] = [
    ("an_install_killed_anywhere_leaves_the_old_bundle_or_the_new", |test| killed_at_every_call(test, Install)),
    ("a_placement_killed_anywhere_leaves_no_pair_or_a_whole_one", |test| killed_at_every_call(test, Place)),
    ("a_swap_killed_anywhere_leaves_the_old_pair_or_the_new", |test| killed_at_every_call(test, Swap)),
    ("an_adoption_killed_anywhere_leaves_the_old_pair_or_the_new", |test| killed_at_every_call(test, Adopt)),
    ("a_run_killed_anywhere_is_finished_by_the_next", |test| killed_at_every_call(test, Converge)),
    ("an_install_on_a_failing_disk_says_so_and_keeps_the_old_bundle", |test| failing_at_every_write(test, Install)),
    ("a_placement_on_a_failing_disk_says_so", |test| failing_at_every_write(test, Place)),
    ("a_swap_on_a_failing_disk_says_so_and_keeps_the_old_pair", |test| failing_at_every_write(test, Swap)),
    ("an_adoption_on_a_failing_disk_says_so_and_keeps_the_old_pair", |test| failing_at_every_write(test, Adopt)),
    ("a_run_on_a_failing_disk_says_so_and_serves_the_other_guests", |test| failing_at_every_write(test, Converge)),
    ("a_run_finishes_what_another_was_killed_at", two_at_once),
    ("an_install_into_a_full_guest_says_so_and_keeps_the_old_bundle", |test| full(test, Install)),
    ("a_placement_into_a_full_guest_says_so", |test| full(test, Place)),
    ("a_swap_in_a_full_guest_says_so_and_keeps_the_old_pair", |test| full(test, Swap)),
    ("an_adoption_in_a_full_guest_says_so_and_keeps_the_old_pair", |test| full(test, Adopt)),
];

/// Counting system calls wants one thread, so this binary does without the usual harness and answers to its options.
fn main() {
    if let Ok(name) = std::env::var(ACTION) {
        let (action, _) = ACTIONS.into_iter().find(|(_, known)| *known == name).unwrap();
        let ground = Ground { path: std::env::var_os(AT).unwrap().into(), _directory: None };
        if let Err(error) = action.run(&ground) {
            eprintln!("ERROR {error}");
            std::process::exit(1);
        }
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| if exact { name == *filter } else { name.contains(*filter) })
    };
    let tests: Vec<_> = TESTS.into_iter().filter(|(name, _)| wanted(name)).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    println!("\nrunning {} tests", tests.len());
    let mut failed = 0;
    for (name, test) in &tests {
        let start = Instant::now();
        let result = std::panic::catch_unwind(|| test(name));
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({:.1} s)", start.elapsed().as_secs_f32());
        failed += usize::from(result.is_err());
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed", tests.len() - failed);
    if failed > 0 {
        std::process::exit(101);
    }
}
