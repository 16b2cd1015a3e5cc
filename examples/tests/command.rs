//! The built command as an operator meets it: exit codes, messages, files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use phoenix_pki::{Authority, AuthorityParams, Permitted, Store};

const COMMAND: &str = env!("CARGO_BIN_EXE_phoenix-pki");
const WILDCARD: &str = "101/etc/nginx/ssl/internal_traefik_proxy";
const KEY_BLOCK: &str = "PRIVATE KEY-----";

/// An inventory, a sandbox and whatever else a test needs, in a directory of its own.
struct Place {
    directory: tempfile::TempDir,
}

/// What a run came to.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ran = Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) };
        // Whatever is asked, in a pipe there is no escape code, and nowhere a panic or a private key.
        for said in [&ran.out, &ran.err] {
            assert!(!said.contains('\x1b') && !said.contains("panicked") && !said.contains(KEY_BLOCK), "{said}");
        }
        ran
    }
}

impl Ran {
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    fn saying(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.out.contains(word), "{word:?} is not in the output: {self:#?}");
        }
        self
    }

    fn complaining(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in the errors: {self:#?}");
        }
        self
    }

    fn silent(self) -> Self {
        assert_eq!(self.err, "");
        self
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

impl Place {
    /// With the example inventory, as `phoenix.toml`.
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        let inventory = Path::new(env!("CARGO_MANIFEST_DIR")).join("phoenix.toml");
        fs::copy(inventory, place.path("phoenix.toml")).unwrap();
        place
    }

    /// With that inventory converged in the sandbox.
    fn converged() -> Self {
        let place = Self::new();
        place.converge(&[]).ended(0).silent();
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(COMMAND);
        command.args(arguments).current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    fn converge(&self, more: &[&str]) -> Ran {
        self.run(&[&["converge", "--sandbox", "box"], more].concat())
    }

    fn audit(&self) -> Ran {
        self.run(&["audit", "--sandbox", "box"])
    }

    /// In the sandbox's store.
    fn kept(&self, arguments: &[&str]) -> Ran {
        self.run(&[arguments, &["--store", "box/store"]].concat())
    }

    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("phoenix.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(self.path("phoenix.toml"), text.replacen(from, to, 1)).unwrap();
    }

    /// Everything that a write would change, of every file.
    fn stamps(&self) -> BTreeMap<PathBuf, (u64, i64, i64, i64, i64, u64)> {
        fn walk(path: &Path, stamps: &mut BTreeMap<PathBuf, (u64, i64, i64, i64, i64, u64)>) {
            let seen = path.symlink_metadata().unwrap();
            let stamp = (seen.ino(), seen.mtime(), seen.mtime_nsec(), seen.ctime(), seen.ctime_nsec(), seen.len());
            stamps.insert(path.into(), stamp);
            if seen.is_dir() {
                fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), stamps));
            }
        }
        let mut stamps = BTreeMap::new();
        walk(self.directory.path(), &mut stamps);
        stamps
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Notes that a test could not run, for the summary of the test command.
fn skip(name: &str, why: &str) {
    println!("SKIPPED {name}: {why}");
    if let Some(file) = std::env::var_os("PHOENIX_SKIPPED") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        writeln!(file, "{name}: {why}").unwrap();
    }
}

#[test]
fn the_first_run_builds_all_and_the_second_writes_nothing() {
    let place = Place::new();
    place.converge(&[]).ended(0).silent().saying(&[
        "authority made, root SHA-256 ",
        "*.internal.thinkheads.ai           server  ",
        "traefik.internal.thinkheads.ai +4",
        "102 Traefik-Internal",
        "trust docker registry.internal.thinkheads.ai:5000",
        "files for nginx.internal.thinkheads.ai",
        "files for agent.agent.phoenix.local",
        "6 certificates, 6 guests: 19 changed, 0 pending, 0 failed",
        "box/store.passphrase: move that file",
    ]);
    let before = place.stamps();
    let second = place.converge(&[]).ended(0).silent();
    let last = "nothing to do: 6 pairs in 6 guests were proven, 6 guests trust the root\n";
    assert!(second.out.ends_with(last) && !second.out.contains("passphrase"), "{}", second.out);
    place.converge(&["--dry-run"]).ended(0).silent().saying(&["nothing to do"]);
    assert_eq!(place.stamps(), before);
}

#[test]
fn the_sandbox_is_debian_with_a_bundle_users_and_pairs() {
    let place = Place::converged();
    let bundle = fs::read_to_string(place.path("box/101/etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 3);
    assert!(fs::read_to_string(place.path("box/host/etc/os-release")).unwrap().contains("ID=debian"));
    assert!(fs::read_to_string(place.path("box/102/etc/group")).unwrap().contains("www-data:x:33:"));
    let key = fs::metadata(place.path(&format!("box/{WILDCARD}.key"))).unwrap();
    assert_eq!(key.mode() & 0o777, 0o640);
    if is_root() {
        assert_eq!((key.uid(), key.gid()), (0, 33));
    }
    // Nothing but the sandbox was made, and the store that the inventory names is not it.
    let mut names: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["box", "phoenix.toml"]);
}

#[test]
fn a_dry_run_says_what_and_why_and_creates_nothing() {
    let place = Place::new();
    let before = place.stamps();
    place.converge(&["--dry-run"]).ended(3).silent().saying(&[
        "authority would be made",
        "would be made: missing",
        "the root is not made yet",
        "follows the new certificate",
        "6 certificates, 6 guests: 18 due, 0 pending, 0 failed",
    ]);
    assert_eq!(place.stamps(), before);

    place.converge(&[]).ended(0);
    fs::remove_dir_all(place.path("box/1002")).unwrap();
    fs::remove_file(place.path(&format!("box/{WILDCARD}.key"))).unwrap();
    let before = place.stamps();
    place.converge(&["--dry-run"]).ended(3).saying(&[
        "root missing",
        "/etc/nginx/ssl/internal_traefik_proxy.key is missing",
        "/persistent-storage/certs/agent.agent.phoenix.local.crt is missing",
    ]);
    assert_eq!(place.stamps(), before);
    place.converge(&[]).ended(0).saying(&["6 guests: 3 changed, 0 pending, 0 failed"]);
}

#[test]
fn the_report_as_json_parses_and_holds_no_secret() {
    let place = Place::new();
    let ran = place.converge(&["--json"]).ended(0).silent();
    let report = ran.json();
    assert_eq!(report["certificates"].as_array().unwrap().len(), 6);
    assert_eq!(report["guests"][3]["deliveries"][0]["state"], "changed");
    assert_eq!(report["guests"][3]["deliveries"][0]["proof"]["name"], "nginx.internal.thinkheads.ai");
    let passphrase = fs::read_to_string(place.path("box/store.passphrase")).unwrap();
    let key = fs::read_to_string(place.path(&format!("box/{WILDCARD}.key"))).unwrap();
    for secret in key.lines().filter(|line| !line.starts_with("---")).chain([passphrase.trim()]) {
        assert!(!ran.out.contains(secret));
    }
    assert_eq!(place.converge(&["--json", "--dry-run"]).ended(0).json()["dry_run"], true);
}

#[test]
fn two_at_once_come_to_the_same_estate() {
    let place = Place::new();
    let start = || {
        let mut command = place.command(&["converge", "--sandbox", "box"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start(), start()];
    let both = both.map(|child| Ran::from(child.wait_with_output().unwrap()).ended(0).silent());
    assert_eq!(both.iter().filter(|ran| ran.out.contains("nothing to do")).count(), 1);
    place.converge(&[]).ended(0).saying(&["nothing to do"]);
}

#[test]
fn one_broken_guest_does_not_stop_the_others() {
    let place = Place::new();
    fs::create_dir_all(place.path("box")).unwrap();
    fs::write(place.path("box/101"), "no directory").unwrap();
    fs::create_dir_all(place.path("box/1001/etc/os-release")).unwrap();
    place.converge(&[]).ended(1).silent().saying(&[
        "101 Nginx Gateway",
        "guest 101: cannot open /",
        "box/101: Not a directory",
        "guest 1001: cannot read /etc/os-release",
        "files for agent.agent.phoenix.local",
        "files for traefik.internal.thinkheads.ai",
    ]);
    assert_eq!(fs::read_to_string(place.path("box/101")).unwrap(), "no directory");
    let report = place.converge(&["--json"]).ended(1).json();
    assert_eq!(report["guests"][3]["state"], "failed");
    assert_eq!(report["guests"][5]["deliveries"][0]["state"], "unchanged");

    fs::remove_file(place.path("box/101")).unwrap();
    fs::remove_dir_all(place.path("box/1001")).unwrap();
    place.converge(&[]).ended(0).saying(&["0 failed"]);
}

#[test]
fn an_ordinary_user_is_told_of_owners_and_of_what_it_may_not_read() {
    let place = Place::new();
    let root = is_root();
    if root && !Path::new("/usr/bin/setpriv").exists() {
        return skip("an_ordinary_user_is_told_of_owners_and_of_what_it_may_not_read", "setpriv");
    }
    let binary = place.path("phoenix-pki");
    fs::copy(COMMAND, &binary).unwrap();
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let run = |arguments: &[&str]| -> Ran {
        let mut command = match root {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&binary);
                command
            }
            false => Command::new(&binary),
        };
        command.args(arguments).args(["--sandbox", "box"]).current_dir(place.path("")).output().unwrap().into()
    };
    run(&["converge"]).ended(0).silent().saying(&["owner not set (not root)", "19 changed, 0 pending, 0 failed"]);
    run(&["converge"]).ended(0).silent().saying(&["owner not set (not root)", "nothing to do"]);
    run(&["audit"]).ended(0).silent().saying(&["notice: 101:", "owner not set (not root)"]);

    fs::set_permissions(place.path("box/101"), fs::Permissions::from_mode(0o000)).unwrap();
    let shut = run(&["converge"]);
    let audited = run(&["audit"]);
    fs::set_permissions(place.path("box/101"), fs::Permissions::from_mode(0o755)).unwrap();
    let summary = "6 certificates, 6 guests: 0 changed, 0 pending, 2 failed";
    shut.ended(1).saying(&["guest 101: cannot read /etc/os-release", "Permission denied", summary]);
    audited.ended(4).saying(&["critical: 101:", "Permission denied"]);
}

#[test]
fn what_is_no_command_is_usage() {
    let place = Place::new();
    place.run(&["frobnicate"]).ended(2).complaining(&["frobnicate"]);
    place.run(&["converge", "--jobs", "0"]).ended(2).complaining(&["--jobs", "0"]);
    place.run(&["converge", "one", "two"]).ended(2);
    place.run(&[]).ended(2).complaining(&["Usage:"]);
    place.run(&["--help"]).ended(0).silent().saying(&["Exit codes:", "4  the audit found something critical"]);
    place.run(&["--version"]).ended(0).silent().saying(&[concat!("phoenix-pki ", env!("CARGO_PKG_VERSION"))]);
    for subcommand in ["converge", "issue", "inspect", "verify", "audit", "revoke", "seal", "export"] {
        place.run(&[subcommand, "--help"]).ended(0).silent().saying(&["Usage: phoenix-pki ", subcommand]);
    }
}

#[test]
fn an_inventory_is_found_and_its_errors_name_file_key_and_value() {
    let place = Place::converged();
    place.converge(&["phoenix.toml"]).ended(0);
    place.converge(&["missing.toml"]).ended(1).complaining(&["error: cannot read missing.toml\n  No such file"]);
    place.converge(&["box"]).ended(1).complaining(&["cannot read box\n  it is not a regular file"]);
    let nowhere = tempfile::tempdir().unwrap();
    let ran: Ran = Command::new(COMMAND).arg("converge").current_dir(nowhere.path()).output().unwrap().into();
    ran.ended(1).complaining(&["neither ./phoenix.toml nor /etc/phoenix/phoenix.toml exists"]);

    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    place.converge(&["fifo"]).ended(1).complaining(&["fifo", "it is not a regular file"]);
    fs::write(place.path("latin.toml"), b"# \xff").unwrap();
    place.converge(&["latin.toml"]).ended(1).complaining(&["latin.toml", "UTF-8"]);
    fs::File::create(place.path("huge.toml")).unwrap().set_len(300 << 20).unwrap();
    place.converge(&["huge.toml"]).ended(1).complaining(&["huge.toml", "longer than"]);

    let before = place.stamps();
    place.edit("lifetime = \"90d\"", "lifetime = \"9 weeks\"");
    place.converge(&[]).ended(1).complaining(&["phoenix.toml:", "lifetime", "9 weeks"]);
    place.edit("lifetime = \"9 weeks\"", "lifetme = \"90d\"");
    place.converge(&[]).ended(1).complaining(&["phoenix.toml:", "lifetme", "did you mean `lifetime`?"]);
    place.edit("lifetme", "lifetime");
    let mut after = place.stamps();
    after.insert(place.path("phoenix.toml"), before[&place.path("phoenix.toml")]);
    assert_eq!(after, before);
}

#[test]
fn a_name_outside_the_authority_names_its_line_and_the_way_out() {
    let place = Place::converged();
    place.edit("permitted = [", "permitted = [\"example.org\", ");
    place.edit("\"qdrant.internal.thinkheads.ai\"", "\"qdrant.example.org\"");
    let before = place.stamps();
    let ran = place.converge(&[]).ended(1).complaining(&["phoenix.toml:", "certificate.names", "qdrant.example.org"]);
    ran.complaining(&["rotate"]);
    assert_eq!(place.stamps(), before);
}

#[test]
fn a_damaged_store_is_an_error_that_names_the_file() {
    let place = Place::converged();
    let key = "box/store/certificates/qdrant.internal.thinkheads.ai/current/key.pem";
    fs::set_permissions(place.path(key), fs::Permissions::from_mode(0o644)).unwrap();
    place.converge(&[]).ended(1).saying(&["key.pem has mode 0644", "its certificate cannot be read", "2 failed"]);
    place.audit().ended(4).saying(&["critical: ", "0644"]);
    fs::set_permissions(place.path(key), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(place.path("box/store/authority/current/root.crt"), "nonsense").unwrap();
    place.converge(&[]).ended(1).complaining(&["root.crt"]);
    place.audit().ended(1).complaining(&["root.crt"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is_one() {
    let place = Place::converged();
    for arguments in [&["converge", "--sandbox", "box"][..], &["converge", "--sandbox", "box", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran: Ran = place.command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap().into();
        ran.ended(0).silent();
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        if arguments != ["--help"] {
            let ran: Ran = place.command(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap().into();
            ran.ended(1).complaining(&["cannot write the result", "No space left"]);
        }
    }
}

#[test]
fn issue_is_ensure_and_always_is_new() {
    let place = Place::converged();
    let wanted = ["issue", "a.internal.thinkheads.ai", "10.0.0.5", "--lifetime", "30d", "--key-type", "ed25519"];
    place.kept(&wanted).ended(0).silent().saying(&["a.internal.thinkheads.ai: made: missing, until ", "(29 days)"]);
    let path = "box/store/certificates/a.internal.thinkheads.ai/current/cert.pem";
    let (first, before) = (fs::read(place.path(path)).unwrap(), place.stamps());
    place.kept(&wanted).ended(0).silent().saying(&["unchanged: up to date", path]);
    assert_eq!(place.stamps(), before);
    place.kept(&[&wanted[..], &["--always"]].concat()).ended(0).saying(&["made: requested"]);
    assert_ne!(fs::read(place.path(path)).unwrap(), first);
    place.kept(&["issue", "a.internal.thinkheads.ai", "--profile", "client"]).ended(0).saying(&["+client: made"]);

    place.kept(&["issue", "a b"]).ended(2).complaining(&["a b"]);
    place.kept(&["issue", "a.internal.thinkheads.ai", "--lifetime", "1w"]).ended(2).complaining(&["1w"]);
    place.kept(&["issue", "a.internal.thinkheads.ai", "--key-type", "dsa"]).ended(2).complaining(&["dsa"]);
    place.kept(&["issue", "a.internal.thinkheads.ai", "--profile", "mail"]).ended(2).complaining(&["mail"]);
    place.kept(&["issue", "a.example.com"]).ended(1).complaining(&["a.example.com", "rotate"]);
    place.kept(&["issue", "a.internal.thinkheads.ai", "--lifetime", "3y"]).ended(1).complaining(&["1095d", "825d"]);
    let ran = place.run(&["issue", "a.internal.thinkheads.ai", "--store", "nowhere"]);
    ran.ended(1).complaining(&["nowhere holds no authority yet"]);
    assert!(!place.path("nowhere").exists());
}

#[test]
fn issue_leaves_the_inventory_its_say() {
    let place = Place::converged();
    let listed = |more: &[&str]| {
        let wanted = ["issue", "--inventory", "phoenix.toml", "--store", "box/store", "traefik.internal.thinkheads.ai"];
        place.run(&[&wanted[..], more].concat())
    };
    listed(&[]).ended(0).saying(&["traefik.internal.thinkheads.ai: unchanged: up to date"]);
    listed(&["other.internal.thinkheads.ai"]).ended(1).complaining(&["phoenix.toml:", "change it there"]);
    listed(&["--lifetime", "1d"]).ended(1).complaining(&["phoenix.toml:", "change it there"]);
    place.converge(&[]).ended(0).saying(&["nothing to do"]);
}

#[test]
fn inspect_shows_certificates_requests_and_of_keys_only_their_kind() {
    let place = Place::converged();
    let (cert, key) = (format!("box/{WILDCARD}.crt"), format!("box/{WILDCARD}.key"));
    place.run(&["inspect", &cert]).ended(0).silent().saying(&[
        "CN=*.internal.thinkheads.ai",
        "Days left           89",
        "Signed by           certificate 2",
        "Permitted           internal.thinkheads.ai, phoenix.local, 10.0.0.0/8, 127.0.0.0/8",
    ]);
    let both = [fs::read(place.path(&key)).unwrap(), fs::read(place.path(&cert)).unwrap()].concat();
    fs::write(place.path("both.pem"), &both).unwrap();
    place.run(&["inspect", "both.pem"]).ended(0).saying(&["Belongs to          certificate 1"]);
    place.run(&["inspect", &key]).ended(0).saying(&["ecdsa-p256", "no certificate in this file"]);
    place.run(&["inspect", "box/store/authority/current/root.key"]).ended(0).saying(&["it is encrypted"]);
    let mut child = place.command(&["inspect", "-", "--json"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&both).unwrap();
    let shown = Ran::from(child.wait_with_output().unwrap()).ended(0).json();
    assert_eq!(shown["certificates"][0]["names"][0], "*.internal.thinkheads.ai");
    assert_eq!(shown["private_key"]["belongs_to"], serde_json::json!([1]));

    let params = AuthorityParams::new("Below", Permitted::parse(["internal.thinkheads.ai"]).unwrap());
    let request = Authority::request(&Store::new(place.path("below")), &params).unwrap();
    fs::write(place.path("request.pem"), request).unwrap();
    place.run(&["inspect", "request.pem"]).ended(0).saying(&["Certificate request", "ecdsa-p256"]);
    place.kept(&["export", "*.internal.thinkheads.ai", "--format", "der", "--out", "leaf.der"]).ended(0);
    place.run(&["inspect", "leaf.der"]).ended(0).saying(&["CN=*.internal.thinkheads.ai"]);

    fs::write(place.path("empty"), "").unwrap();
    fs::write(place.path("cut.pem"), &fs::read(place.path(&cert)).unwrap()[..200]).unwrap();
    fs::File::create(place.path("huge")).unwrap().set_len(300 << 20).unwrap();
    place.run(&["inspect", "missing"]).ended(1).complaining(&["cannot read missing"]);
    place.run(&["inspect", "box"]).ended(1).complaining(&["cannot read box", "not a regular file"]);
    place.run(&["inspect", "empty"]).ended(1).complaining(&["empty: holds no certificate"]);
    place.run(&["inspect", "cut.pem"]).ended(1).complaining(&["cut.pem: not a usable certificate"]);
    place.run(&["inspect", "huge"]).ended(1).complaining(&["huge", "longer than"]);
    place.run(&["inspect", "phoenix.toml"]).ended(1).complaining(&["phoenix.toml: holds no certificate"]);
    place.run(&["inspect"]).ended(2);
}

#[test]
fn verify_judges_root_name_purpose_time_and_revocation() {
    let place = Place::converged();
    let cert = format!("box/{WILDCARD}.crt");
    let verify = |more: &[&str]| place.run(&[&["verify", cert.as_str()], more].concat());
    let store = ["--store", "box/store"];
    verify(&store).ended(0).silent().saying(&["CN=*.internal.thinkheads.ai: good for server, until "]);
    let root = ["--root", "box/101/etc/nginx/ssl/phoenix_ca.crt"];
    verify(&[&root[..], &["--name", "www.internal.thinkheads.ai"]].concat()).ended(0);
    verify(&[&root[..], &["--name", "www.example.com"]].concat()).ended(1).complaining(&["not for www.example.com"]);
    verify(&[&root[..], &["--purpose", "client"]].concat()).ended(1).complaining(&["extended key usage"]);
    verify(&[&root[..], &["--at", "2060-01-01T00:00:00Z"]].concat()).ended(1).complaining(&["not valid at 2060-01-01"]);
    verify(&[&root[..], &["--at", "tomorrow"]].concat()).ended(2).complaining(&["tomorrow", "such as 2027-01-31"]);
    verify(&[&root[..], &store[..]].concat()).ended(2);
    verify(&["--root", "box/101/etc/ssl/certs/ca-certificates.crt"]).ended(0);
    verify(&["--root", "missing"]).ended(1).complaining(&["cannot read missing"]);
    verify(&["--root", &cert]).ended(1).complaining(&["CN=*.internal.thinkheads.ai is no root"]);
    let bundle = fs::read_to_string(place.path("box/101/etc/ssl/certs/ca-certificates.crt")).unwrap();
    fs::write(place.path("others.pem"), &bundle[..bundle.find("-----END CERTIFICATE-----\n").unwrap() + 26]).unwrap();
    verify(&["--root", "others.pem"]).ended(1).complaining(&["no trusted root issued it"]);
    place.kept(&["revoke", "*.internal.thinkheads.ai"]).ended(0);
    verify(&store).ended(1).complaining(&["was revoked"]);
}

#[test]
fn a_revoked_intermediate_is_not_said_to_be_replaced_by_converge() {
    let place = Place::converged();
    let store = Store::new(place.path("box/store"));
    let serial = Authority::open(&store).unwrap().intermediate().serial_number().to_string();
    place.kept(&["revoke", &serial]).ended(0).saying(&["it issues on until it is rotated"]);
    place.converge(&[]).saying(&["CRL of the root written"]);
}

#[test]
fn what_is_revoked_is_replaced_by_the_next_converge() {
    let place = Place::converged();
    let cert = format!("box/{WILDCARD}.crt");
    let before = fs::read(place.path(&cert)).unwrap();
    let revoke = ["revoke", "*.internal.thinkheads.ai", "--reason", "key-compromise"];
    place.kept(&revoke).ended(0).silent().saying(&["revoked, serial ", "converge to replace it"]);
    place.kept(&revoke).ended(0).saying(&["unchanged: revoked before"]);
    place.audit().ended(4).saying(&["revoked, and still current"]);
    place.converge(&["--dry-run"]).ended(3).saying(&["would be made: revoked"]);
    place.converge(&[]).ended(0).saying(&["made: revoked", "2 changed, 0 pending, 0 failed"]);
    assert_ne!(fs::read(place.path(&cert)).unwrap(), before);
    place.audit().ended(0);
    place.kept(&["revoke", "nobody.example"]).ended(1).complaining(&["nobody.example"]);
    place.kept(&["revoke", "*.internal.thinkheads.ai", "--reason", "boredom"]).ended(2).complaining(&["boredom"]);
    place.run(&["revoke", "x", "--store", "nowhere"]).ended(1).complaining(&["nowhere holds no authority yet"]);
}

#[test]
fn the_audit_names_every_certificate_and_anchor_and_what_is_wrong() {
    let place = Place::new();
    place.audit().ended(1).complaining(&["box/store holds no authority yet"]);
    place.converge(&[]).ended(0);
    let before = place.stamps();
    let audited = place.audit().ended(0).silent().saying(&[
        "101:/etc/nginx/ssl/internal_traefik_proxy.crt",
        "102:/etc/traefik/ssl/traefik.internal.thinkheads.ai.crt",
        "1001:/persistent-storage/portainer/certs/cert.pem",
        "1002:/persistent-storage/certs/agent.agent.phoenix.local.crt",
        "1002:trust store docker registry.internal.thinkheads.ai:5000",
        "host:trust store system",
        "CRL of the intermediate",
        "the generated passphrase of its key still lies beside the store",
        // An ordinary user is told of each of the six pairs that its owner is not set.
        if is_root() { "0 critical, 0 warnings, 1 notices" } else { "0 critical, 0 warnings, 7 notices" },
    ]);
    let days: Vec<i64> =
        audited.out.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).take(28).collect();
    assert!(days.len() == 28 && days.is_sorted(), "{days:?}");
    let json = place.run(&["audit", "--sandbox", "box", "--json"]).ended(0).json();
    assert!(json.as_array().unwrap().iter().all(|entry| entry["not_after"].is_string()));
    assert_eq!(place.stamps(), before);

    fs::remove_file(place.path(&format!("box/{WILDCARD}.crt"))).unwrap();
    fs::write(place.path("box/103/etc/ssl/certs/ca-certificates.crt"), "").unwrap();
    place.audit().ended(3).saying(&[
        "warning: 101:/etc/nginx/ssl/internal_traefik_proxy.crt",
        "is missing",
        "warning: 103:trust store system",
    ]);
}

#[test]
fn a_plain_root_key_is_a_warning_and_a_sealed_one_is_gone() {
    let place = Place::new();
    place.edit("[defaults]", "root_key = \"plain\"\n[defaults]");
    place.converge(&[]).ended(0);
    assert!(!place.path("box/store.passphrase").exists());
    place.audit().ended(3).saying(&["warning: ", "rests unencrypted"]);
    fs::write(place.path("taken"), "mine").unwrap();
    place.kept(&["seal", "--to", "taken"]).ended(1).complaining(&["cannot create taken", "exists"]);
    assert_eq!(fs::read_to_string(place.path("taken")).unwrap(), "mine");
    place.kept(&["seal", "--to", "root.key"]).ended(0).silent().saying(&["root.key: take it away"]);
    assert_eq!(fs::metadata(place.path("root.key")).unwrap().mode() & 0o777, 0o600);
    place.kept(&["seal", "--to", "again.key"]).ended(1).complaining(&["sealed"]);
    assert!(!place.path("again.key").exists());
    place.audit().ended(0);
    place.converge(&[]).ended(0).saying(&["nothing to do"]);
    place.kept(&["issue", "a.internal.thinkheads.ai"]).ended(0);
    place.kept(&["seal"]).ended(2).complaining(&["--to"]);
}

#[test]
fn export_writes_each_form_and_guards_the_secret_ones() {
    let place = Place::converged();
    let export = |format: &str, more: &[&str]| {
        let wanted = ["export", "*.internal.thinkheads.ai", "--format", format, "--out", "out"];
        place.kept(&[&wanted[..], more].concat())
    };
    for (format, blocks, mode) in
        [("pem", 1, 0o644), ("chain", 1, 0o644), ("fullchain", 2, 0o644), ("root", 1, 0o644), ("key", 1, 0o600)]
    {
        export(format, &[]).ended(0).silent();
        let text = fs::read_to_string(place.path("out")).unwrap();
        assert_eq!(text.matches("-----BEGIN").count(), blocks, "{format}");
        assert_eq!(fs::metadata(place.path("out")).unwrap().mode() & 0o777, mode & !umask(), "{format}");
    }
    fs::write(place.path("passphrase"), "correct horse\n").unwrap();
    fs::set_permissions(place.path("passphrase"), fs::Permissions::from_mode(0o600)).unwrap();
    export("pkcs12", &["--passphrase-file", "passphrase"]).ended(0).silent();
    assert_eq!(fs::metadata(place.path("out")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read(place.path("out")).unwrap()[0], 0x30);

    export("pkcs12", &[]).ended(2).complaining(&["--passphrase-file"]);
    export("pkcs12", &["--passphrase-file", "missing"]).ended(1).complaining(&["cannot read missing"]);
    fs::set_permissions(place.path("passphrase"), fs::Permissions::from_mode(0o644)).unwrap();
    export("pkcs12", &["--passphrase-file", "passphrase"]).ended(1).complaining(&["passphrase has mode 0644"]);
    fs::write(place.path("passphrase"), "\n").unwrap();
    fs::set_permissions(place.path("passphrase"), fs::Permissions::from_mode(0o600)).unwrap();
    export("pkcs12", &["--passphrase-file", "passphrase"]).ended(1).complaining(&["holds no passphrase"]);
    export("jks", &[]).ended(2).complaining(&["jks"]);
    place.kept(&["export", "nobody", "--out", "out"]).ended(1).complaining(&["nobody"]);
    place.kept(&["export", "../../authority", "--out", "out"]).ended(1).complaining(&["../../authority"]);
    place.kept(&["export", "*.internal.thinkheads.ai", "--out", "box"]).ended(1).complaining(&["cannot write box"]);
    std::os::unix::fs::symlink("out", place.path("link")).unwrap();
    place.kept(&["export", "*.internal.thinkheads.ai", "--out", "link"]).ended(1).complaining(&["cannot write link"]);
    let wanted = ["export", "*.internal.thinkheads.ai", "--out", "no/such/directory"];
    place.kept(&wanted).ended(1).complaining(&["cannot write no/such/directory", "No such file"]);
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(line.trim(), 8).unwrap()
}

#[test]
fn the_small_programs_run_and_rest_the_second_time() {
    for (program, said) in [
        (env!("CARGO_BIN_EXE_issue_a_leaf"), "up to date"),
        (env!("CARGO_BIN_EXE_place_a_pair"), "run 1: 0 differences"),
        (env!("CARGO_BIN_EXE_trust_a_root"), "removed: true"),
        (env!("CARGO_BIN_EXE_converge"), "changed: false, holds: true"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let run = || Ran::from(Command::new(program).arg(directory.path()).output().unwrap()).ended(0).silent();
        run();
        run().saying(&[said]);
    }
}

#[test]
fn the_process_leaves_no_core() {
    let place = Place::new();
    let mut command = place.command(&["inspect", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // Asked while it waits for its input: the limit is set before anything else.
    let limits = (0..100).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_string();
        (core.split_whitespace().nth(4) == Some("0")).then_some(core)
    });
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(limits.is_some());
}
