//! What every transport must do: one suite, run over each of them.
//!
//! A transport is added by one line at the end.

mod common;
#[path = "common/lxc.rs"]
mod lxc;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lxc::lxc;
use phoenix_guest::{
    Command, Error, File, GuestPath, Id, Local, Memory, Mode, OUTPUT_LIMIT, Observed, Output, Owner, Rootfs, Transport,
};
use tempfile::TempDir;

/// A transport with a directory in its guest that the test has for itself.
struct Subject {
    guest: Box<dyn Transport>,
    /// The directory, which exists and is empty.
    base: GuestPath,
    /// Where the guest's root stands on this machine, if it does.
    host: Option<PathBuf>,
    /// Whether `exec` runs what it is told to, rather than a script of the test.
    programs: bool,
    /// Kept until the test ends.
    _directory: Option<TempDir>,
}

impl Subject {
    fn path(&self, name: &str) -> GuestPath {
        self.base.join(name).unwrap()
    }

    /// An owner that this subject can give: root's own files are the caller's otherwise.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> File {
        File { path: self.path(name), bytes: bytes.as_ref().into(), mode: Mode::CERTIFICATE, owner: Owner::ROOT }
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        self.guest.put(&self.file(name, bytes)).unwrap();
    }

    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.guest.get(&self.path(name), 16 << 20).unwrap()
    }

    fn observe(&self, name: &str) -> Observed {
        self.guest.observe(&[self.path(name)]).unwrap().remove(0)
    }

    fn list(&self) -> Vec<String> {
        self.guest.list(&self.base).unwrap()
    }

    /// Runs a program that must be there; `None` where the guest runs none.
    fn exec(&self, argv: &[&str]) -> Option<Output> {
        self.programs.then(|| self.guest.exec(&Command::new(argv.iter().copied())).unwrap())
    }

    /// Makes a FIFO in the guest; `false` where there are none.
    fn make_fifo(&self, name: &str) -> bool {
        let path = self.path(name);
        if let Some(host) = &self.host {
            let made = host.join(path.as_str().trim_start_matches('/'));
            rustix::fs::mkfifoat(rustix::fs::CWD, made, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
            return true;
        }
        self.exec(&["mkfifo", path.as_str()]).map(|output| assert_eq!(output.status, 0)).is_some()
    }
}

/// The cause of a failed file operation.
fn cause<T: std::fmt::Debug>(result: Result<T, Error>) -> std::io::Error {
    match result {
        Err(Error::File { source, .. }) => source,
        other => panic!("{other:?} is no failure of a file"),
    }
}

/// Bytes of every value, in an order that no text has.
fn binary(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap()
}

fn what_is_put_is_got_and_observed(subject: &Subject) {
    for (name, bytes) in [("empty", Vec::new()), ("text", b"a certificate\n".to_vec()), ("binary", binary(70_000))] {
        subject.put(name, &bytes);
        assert_eq!(subject.get(name).as_deref(), Some(bytes.as_slice()), "{name}");
        let observed = subject.observe(name);
        assert_eq!((observed.link, observed.directory), (None, false), "{name}");
        let file = observed.file.unwrap();
        assert_eq!((file.digest, file.length), (sha256(&bytes), bytes.len() as u64), "{name}");
    }
    assert_eq!(subject.list(), ["binary", "empty", "text"]);
}

fn a_mebibyte_is_no_trouble(subject: &Subject) {
    let bytes = binary(1 << 20);
    subject.put("large", &bytes);
    assert_eq!(subject.get("large"), Some(bytes));
}

fn modes_are_as_asked(subject: &Subject) {
    for bits in [0o600, 0o640, 0o644, 0o400, 0o444, 0o755, 0o666] {
        let file = File { mode: Mode::new(bits).unwrap(), ..subject.file("file", b"bytes") };
        subject.guest.put(&file).unwrap();
        assert_eq!(subject.observe("file").file.unwrap().mode.bits(), bits);
    }
}

fn owners_are_as_asked(subject: &Subject) {
    if !subject.guest.sets_owners() {
        return;
    }
    // By name, by number, by a number without a name: `nobody` has the same name everywhere.
    for owner in ["root:root", "nobody:root", "0:0", "33:1", "54321:54322"] {
        let owner: Owner = owner.parse().unwrap();
        subject.guest.put(&File { owner: owner.clone(), ..subject.file("file", b"bytes") }).unwrap();
        let file = subject.observe("file").file.unwrap();
        assert!(file.owned_by(&owner), "{owner}: {file:?}");
    }
    let file = subject.observe("file").file.unwrap();
    assert_eq!((file.user, file.group), ((54321, None), (54322, None)));
}

fn an_unknown_owner_is_an_error_and_leaves_nothing(subject: &Subject) {
    if !subject.guest.sets_owners() {
        return;
    }
    subject.put("old", b"old");
    for owner in ["no-such-user:root", "root:no-such-group"] {
        let owner: Owner = owner.parse().unwrap();
        for name in ["old", "new", "missing/directory/new"] {
            let error = cause(subject.guest.put(&File { owner: owner.clone(), ..subject.file(name, b"new") }));
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("no-such-"), "{error}");
        }
    }
    assert_eq!(subject.list(), ["old"]);
    assert_eq!(subject.get("old").unwrap(), b"old");
}

fn directories_above_are_made(subject: &Subject) {
    subject.put("a/b c/d/file", b"bytes");
    assert_eq!(subject.get("a/b c/d/file").unwrap(), b"bytes");
    assert!(subject.observe("a/b c").directory);
    subject.guest.link(&subject.path("e/f/link"), "../file").unwrap();
    assert_eq!(subject.observe("e/f/link").link.as_deref(), Some("../file"));
    if let Some(output) = subject.exec(&["stat", "-c", "%a", subject.path("a/b c").as_str()]) {
        assert_eq!(output.stdout, b"755\n");
    }
}

fn a_file_below_a_file_is_an_error(subject: &Subject) {
    subject.put("file", b"bytes");
    cause(subject.guest.put(&subject.file("file/below", b"bytes")));
    cause(subject.guest.link(&subject.path("file/below"), "target"));
    assert_eq!(subject.get("file").unwrap(), b"bytes");
    assert_eq!(subject.get("file/below"), None);
    assert_eq!(subject.observe("file/below"), Observed::MISSING);
    subject.guest.remove(&subject.path("file/below")).unwrap();
    cause(subject.guest.list(&subject.path("file")));
}

fn a_reader_sees_old_or_new(subject: &Subject) {
    let (old, new) = (vec![b'o'; 50_000], vec![b'n'; 60_000]);
    subject.put("file", &old);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for turn in 0..20 {
                subject.put("file", if turn % 2 == 0 { &new } else { &old });
            }
        });
        while !writer.is_finished() {
            let read = subject.get("file").expect("never missing");
            assert!(read == old || read == new, "{} bytes, half and half", read.len());
        }
    });
}

fn a_symlink_at_the_destination_is_replaced(subject: &Subject) {
    subject.put("target", b"old");
    for target in ["target", subject.path("target").as_str(), "nowhere", ".", "/"] {
        subject.guest.link(&subject.path("file"), target).unwrap();
        subject.put("file", b"new");
        let observed = subject.observe("file");
        assert_eq!(observed.link, None, "{target}");
        assert_eq!(observed.file.unwrap().digest, sha256(b"new"), "{target}");
    }
    assert_eq!(subject.get("target").unwrap(), b"old");
    assert_eq!(subject.list(), ["file", "target"]);
}

fn a_directory_at_the_destination_is_an_error(subject: &Subject) {
    subject.put("directory/file", b"bytes");
    cause(subject.guest.put(&subject.file("directory", b"bytes")));
    cause(subject.guest.link(&subject.path("directory"), "target"));
    assert_eq!(subject.get("directory/file").unwrap(), b"bytes");
    assert_eq!(subject.list(), ["directory"]);
}

fn the_root_is_not_written(subject: &Subject) {
    let root = File { path: GuestPath::root(), ..subject.file("file", b"bytes") };
    cause(subject.guest.put(&root));
    cause(subject.guest.link(&root.path, "target"));
    assert!(subject.guest.observe(&[root.path]).unwrap()[0].directory);
}

fn what_is_missing_is_none(subject: &Subject) {
    for name in ["missing", "missing/below"] {
        assert_eq!(subject.get(name), None);
        assert_eq!(subject.observe(name), Observed::MISSING);
        assert_eq!(subject.guest.list(&subject.path(name)).unwrap(), [""; 0]);
        subject.guest.remove(&subject.path(name)).unwrap();
    }
}

fn only_regular_files_are_read(subject: &Subject) {
    subject.put("directory/file", b"bytes");
    cause(subject.guest.get(&subject.path("directory"), 100));
    cause(subject.guest.get(&GuestPath::root(), 100));
    if !subject.make_fifo("fifo") {
        return;
    }
    subject.guest.link(&subject.path("link"), "fifo").unwrap();
    let start = Instant::now();
    for name in ["fifo", "link"] {
        cause(subject.guest.get(&subject.path(name), 100));
        assert_eq!(subject.observe(name).file, None);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "a FIFO keeps nobody waiting");
    subject.put("fifo", b"bytes");
    assert_eq!(subject.get("link").unwrap(), b"bytes");
}

fn a_limit_holds(subject: &Subject) {
    subject.put("file", binary(1000));
    let path = subject.path("file");
    for limit in [0, 1, 999] {
        cause(subject.guest.get(&path, limit));
    }
    for limit in [1000, 1001] {
        assert_eq!(subject.guest.get(&path, limit).unwrap().unwrap(), binary(1000));
    }
    subject.put("empty", b"");
    assert_eq!(subject.guest.get(&subject.path("empty"), 0).unwrap().unwrap(), b"");
}

fn a_link_is_followed_inside(subject: &Subject) {
    subject.put("generation/1/cert", b"one");
    let absolute = subject.path("generation/1/cert");
    subject.guest.link(&subject.path("current"), "generation/1").unwrap();
    for target in ["generation/1/cert", "./generation/../generation/1/cert", "current/cert", absolute.as_str()] {
        subject.guest.link(&subject.path("link"), target).unwrap();
        let observed = subject.observe("link");
        assert_eq!(observed.link.as_deref(), Some(target));
        assert_eq!(observed.file.unwrap().digest, sha256(b"one"), "{target}");
        assert_eq!(subject.get("link").unwrap(), b"one", "{target}");
    }
    assert_eq!(subject.get("current/cert").unwrap(), b"one");
    assert_eq!(subject.guest.list(&subject.path("current")).unwrap(), ["cert"]);
    subject.put("current/key", b"key");
    assert_eq!(subject.get("generation/1/key").unwrap(), b"key");
}

fn a_link_is_replaced_at_once(subject: &Subject) {
    subject.put("1/cert", b"one");
    subject.put("2/cert", b"two");
    subject.guest.link(&subject.path("current"), "1").unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for turn in 0..20 {
                subject.guest.link(&subject.path("current"), if turn % 2 == 0 { "2" } else { "1" }).unwrap();
            }
        });
        while !writer.is_finished() {
            let read = subject.get("current/cert").expect("never missing");
            assert!(read == b"one" || read == b"two");
        }
    });
    subject.put("file", b"bytes");
    subject.guest.link(&subject.path("file"), "1/cert").unwrap();
    assert_eq!(subject.get("file").unwrap(), b"one");
}

fn a_link_may_lead_nowhere(subject: &Subject) {
    subject.put("directory/file", b"bytes");
    let long = "x".repeat(200);
    for target in ["nowhere", "/nowhere/at/all", "directory", "link", "two words '\"$HOME", long.as_str()] {
        subject.guest.link(&subject.path("link"), target).unwrap();
        let expected = Observed { link: Some(target.into()), ..Observed::MISSING };
        assert_eq!(subject.observe("link"), expected);
    }
    subject.guest.link(&subject.path("link"), "nowhere").unwrap();
    assert_eq!(subject.get("link"), None);
    subject.guest.link(&subject.path("link"), "link").unwrap();
    cause(subject.guest.get(&subject.path("link"), 100));
}

fn everything_can_be_removed(subject: &Subject) {
    subject.put("file", b"bytes");
    subject.put("tree/a/file", b"bytes");
    subject.put("tree/b/c/d/.hidden", b"bytes");
    subject.guest.link(&subject.path("link"), "file").unwrap();
    for (name, left) in [("link", vec!["file", "tree"]), ("file", vec!["tree"]), ("tree", vec![]), ("tree", vec![])] {
        subject.guest.remove(&subject.path(name)).unwrap();
        assert_eq!(subject.list(), left);
    }
}

fn removal_follows_no_link(subject: &Subject) {
    subject.put("kept/file", b"bytes");
    subject.put("tree/file", b"bytes");
    subject.guest.link(&subject.path("tree/relative"), "../kept").unwrap();
    subject.guest.link(&subject.path("tree/absolute"), subject.path("kept").as_str()).unwrap();
    subject.guest.link(&subject.path("link"), "kept").unwrap();
    subject.guest.remove(&subject.path("tree")).unwrap();
    subject.guest.remove(&subject.path("link")).unwrap();
    assert_eq!(subject.list(), ["kept"]);
    assert_eq!(subject.get("kept/file").unwrap(), b"bytes");
}

fn a_list_is_sorted(subject: &Subject) {
    for name in ["b", "a", "ä", ".hidden", "B", "10", "9", "-rf"] {
        subject.put(name, b"");
    }
    subject.put("directory/below", b"");
    assert_eq!(subject.list(), ["-rf", ".hidden", "10", "9", "B", "a", "b", "directory", "ä"]);
    assert!(subject.guest.list(&GuestPath::root()).is_ok());
}

fn observations_come_in_the_order_asked(subject: &Subject) {
    for (name, bytes) in [("1", "one"), ("2", "two"), ("3", "three")] {
        subject.put(name, bytes);
    }
    let asked = ["3", "missing", "1", "3", "2", "."].map(|name| match name {
        "." => subject.base.clone(),
        name => subject.path(name),
    });
    let observed = subject.guest.observe(&asked).unwrap();
    let lengths: Vec<_> = observed.iter().map(|one| one.file.as_ref().map(|file| file.length)).collect();
    assert_eq!(lengths, [Some(5), None, Some(3), Some(5), Some(3), None]);
    assert!(observed[5].directory);
    assert_eq!(subject.guest.observe(&[]).unwrap(), []);
}

fn any_name_is_just_a_name(subject: &Subject) {
    let long = "n".repeat(255);
    let names = [
        "two words",
        "it's",
        "\"quoted\"",
        "$HOME",
        "`id`",
        "$(id)",
        "a;b|c&d",
        "*",
        "?[a-z]",
        "back\\slash",
        "~",
        "-n",
        "--help",
        "#",
        "%s%n",
        "ключ.pem",
        "証明書",
        "e\u{301}",
        long.as_str(),
    ];
    for name in names {
        subject.put(name, name);
        assert_eq!(subject.list(), [name]);
        assert_eq!(subject.get(name).unwrap(), name.as_bytes());
        assert_eq!(subject.observe(name).file.unwrap().digest, sha256(name.as_bytes()), "{name}");
        let link = subject.path("-link");
        subject.guest.link(&link, name).unwrap();
        assert_eq!(subject.observe("-link").link.as_deref(), Some(name));
        assert_eq!(subject.get("-link").unwrap(), name.as_bytes());
        subject.guest.remove(&link).unwrap();
        subject.guest.remove(&subject.path(name)).unwrap();
        assert_eq!(subject.list(), [""; 0]);
    }
}

fn argv_is_taken_literally(subject: &Subject) {
    let said = ["two words", "*", "$HOME", "`id`", "'", "\"", "\\", "a;b", "", "-x", "új", "\n", "~", "%s"];
    let argv = ["printf", "[%s]\n"].into_iter().chain(said).collect::<Vec<_>>();
    let Some(output) = subject.exec(&argv) else { return };
    let expected: String = said.iter().map(|word| format!("[{word}]\n")).collect();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!((output.status, output.stderr.as_slice(), output.truncated), (0, [].as_slice(), false));
}

fn input_is_given_byte_for_byte(subject: &Subject) {
    if !subject.programs {
        return;
    }
    for length in [0, 1, 65_536, 500_000] {
        let command = Command { stdin: binary(length), ..Command::new(["cat"]) };
        let output = subject.guest.exec(&command).unwrap();
        assert_eq!((output.status, output.stdout == binary(length)), (0, true), "{length} bytes");
        let unread = Command { stdin: binary(length), ..Command::new(["true"]) };
        assert_eq!(subject.guest.exec(&unread).unwrap().status, 0, "{length} bytes that nobody reads");
    }
}

fn a_status_is_told(subject: &Subject) {
    for (script, status) in [("exit 0", 0), ("exit 1", 1), ("exit 100", 100), ("exit 255", 255)] {
        let Some(output) = subject.exec(&["sh", "-c", script]) else { return };
        assert_eq!(output.status, status);
    }
    let output = subject.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).unwrap();
    assert_eq!((output.status, output.stdout.as_slice(), output.stderr.as_slice()), (7, &b"out\n"[..], &b"err\n"[..]));
}

fn a_signal_is_told(subject: &Subject) {
    for (script, status) in [("kill -KILL $$", 137), ("kill -TERM $$", 143)] {
        let Some(output) = subject.exec(&["sh", "-c", script]) else { return };
        assert_eq!(output.status, status);
    }
}

fn a_missing_program_is_no_success(subject: &Subject) {
    if !subject.programs {
        return;
    }
    for program in ["/no/such/program", "no-such-program"] {
        let ended = subject.guest.exec(&Command::new([program]));
        assert!(!matches!(ended, Ok(Output { status: 0, .. })), "{ended:?}");
    }
}

fn a_flood_is_bounded(subject: &Subject) {
    let Some(output) = subject.exec(&["head", "-c", "20000000", "/dev/zero"]) else { return };
    assert_eq!((output.status, output.stdout.len(), output.truncated), (0, OUTPUT_LIMIT, true));
    let output = subject.exec(&["sh", "-c", "head -c 3000000 /dev/zero >&2; echo done"]).unwrap();
    assert_eq!((output.stderr.len(), output.stdout.as_slice(), output.truncated), (OUTPUT_LIMIT, &b"done\n"[..], true));
    let exact = OUTPUT_LIMIT.to_string();
    let output = subject.exec(&["head", "-c", &exact, "/dev/zero"]).unwrap();
    assert_eq!((output.stdout.len(), output.truncated), (OUTPUT_LIMIT, false));
}

fn a_deadline_holds(subject: &Subject) {
    if !subject.programs {
        return;
    }
    let deadline = Duration::from_millis(700);
    for script in
        ["sleep 300", "sleep 300 & sleep 300", "sleep 300 & wait", "yes", "trap '' TERM; while :; do sleep 1; done"]
    {
        let start = Instant::now();
        let command = Command { deadline, ..Command::new(["sh", "-c", script]) };
        match subject.guest.exec(&command) {
            Err(Error::Deadline { limit, .. }) => assert_eq!(limit, deadline),
            other => panic!("{script}: {other:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{script}: {:?}", start.elapsed());
    }
    // What a program leaves in the background may hold its pipes, but nobody's time.
    let start = Instant::now();
    let command = Command { deadline, ..Command::new(["sh", "-c", "echo started; sleep 15 &"]) };
    match subject.guest.exec(&command) {
        Ok(output) => assert_eq!((output.status, output.stdout.as_slice()), (0, &b"started\n"[..])),
        ended => assert!(matches!(ended, Err(Error::Deadline { .. })), "{ended:?}"),
    }
    assert!(start.elapsed() < Duration::from_secs(10));
}

fn the_environment_is_clean(subject: &Subject) {
    let Some(output) = subject.exec(&["env"]) else { return };
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.lines().any(|line| line.starts_with("PATH=/")), "{said}");
    // What cargo and a login give this test; none of it is a guest's affair.
    for name in ["CARGO", "RUST", "SSH_", "LD_", "TMPDIR="] {
        assert!(!said.lines().any(|line| line.starts_with(name)), "{said}");
    }
}

fn a_name_is_known(subject: &Subject) {
    assert!(!subject.guest.guest().is_empty());
    if !subject.guest.runs_programs() {
        let refused = subject.guest.exec(&Command::new(["true"]));
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    }
}

fn memory() -> Subject {
    let base: GuestPath = "/srv/under test".parse().unwrap();
    let guest = Memory::new("memory").with_directory(base.clone());
    Subject { guest: Box::new(guest), base, host: None, programs: false, _directory: None }
}

fn rootfs() -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_path_buf();
    for made in ["etc", "srv/under test"] {
        std::fs::create_dir_all(root.join(made)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").unwrap();
    let guest = Rootfs::new("rootfs", &root).unwrap();
    let base = "/srv/under test".parse().unwrap();
    Subject { guest: Box::new(guest), base, host: Some(root), programs: false, _directory: Some(directory) }
}

fn local() -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().canonicalize().unwrap().to_str().unwrap().parse().unwrap();
    let host = Some("/".into());
    Subject { guest: Box::new(Local::new()), base, host, programs: true, _directory: Some(directory) }
}

/// A running container, with a directory of its own for each test.
fn container(vmid: u32) -> Option<Subject> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let guest = lxc()?.pct(vmid);
    let base = format!("/srv/under test/{}", NEXT.fetch_add(1, Ordering::Relaxed));
    assert_eq!(guest.exec(&Command::new(["mkdir", "-p", &base])).unwrap().status, 0);
    let base = base.parse().unwrap();
    Some(Subject { guest: Box::new(guest), base, host: None, programs: true, _directory: None })
}

fn pct() -> Option<Subject> {
    container(lxc::PRIVILEGED)
}

fn pct_unprivileged() -> Option<Subject> {
    container(lxc::UNPRIVILEGED)
}

fn pct_busybox() -> Option<Subject> {
    container(lxc::BUSYBOX)
}

/// One module for each transport, with a test for each clause of the contract.
macro_rules! contract {
    ($($transport:ident)+) => {$(
        mod $transport {
            contract! { @clauses $transport:
                what_is_put_is_got_and_observed
                a_mebibyte_is_no_trouble
                modes_are_as_asked
                owners_are_as_asked
                an_unknown_owner_is_an_error_and_leaves_nothing
                directories_above_are_made
                a_file_below_a_file_is_an_error
                a_reader_sees_old_or_new
                a_symlink_at_the_destination_is_replaced
                a_directory_at_the_destination_is_an_error
                the_root_is_not_written
                what_is_missing_is_none
                only_regular_files_are_read
                a_limit_holds
                a_link_is_followed_inside
                a_link_is_replaced_at_once
                a_link_may_lead_nowhere
                everything_can_be_removed
                removal_follows_no_link
                a_list_is_sorted
                observations_come_in_the_order_asked
                any_name_is_just_a_name
                argv_is_taken_literally
                input_is_given_byte_for_byte
                a_status_is_told
                a_signal_is_told
                a_missing_program_is_no_success
                a_flood_is_bounded
                a_deadline_holds
                the_environment_is_clean
                a_name_is_known
            }
        }
    )+};
    (@clauses $transport:ident: $($clause:ident)+) => {$(
        #[test]
        fn $clause() {
            // A transport may need what this machine has not.
            if let Some(subject) = Option::from(super::$transport()) {
                super::$clause(&subject);
            }
        }
    )+};
}

contract! {
    memory
    rootfs
    local
    pct
    pct_unprivileged
    pct_busybox
}

#[test]
fn an_owner_is_looked_up_in_the_guest() {
    // Root has another number here than on this machine, and two names have one number.
    let subject = rootfs();
    if !subject.guest.sets_owners() {
        return;
    }
    let root = subject.host.clone().unwrap();
    std::fs::write(root.join("etc/passwd"), "# comment\n\nweb:x:4711:1\nwww:x:4711:1\nbad:x:-1:\n\x1b[2J:x:8:\n")
        .unwrap();
    std::fs::write(root.join("etc/group"), "web:x:4712:\n").unwrap();
    let owner = Owner { user: Id::Name("www".into()), group: Id::Name("web".into()) };
    subject.guest.put(&File { owner, ..subject.file("file", b"bytes") }).unwrap();
    let file = subject.observe("file").file.unwrap();
    assert_eq!((file.user, file.group), ((4711, Some("web".into())), (4712, Some("web".into()))));
    subject.guest.put(&File { owner: "8:8".parse().unwrap(), ..subject.file("file", b"bytes") }).unwrap();
    assert_eq!(subject.observe("file").file.unwrap().user, (8, None));
    for unknown in ["bad:web", "root:web"] {
        cause(subject.guest.put(&File { owner: unknown.parse().unwrap(), ..subject.file("file", b"bytes") }));
    }
}

#[test]
fn what_a_killed_run_left_is_removed() {
    let subject = rootfs();
    let host = subject.host.as_ref().unwrap().join("srv/under test");
    for name in [".phoenix-tmp-0123456789abcdef", ".phoenix-tmp-short", ".phoenix-tmp-0123456789abcdeg", "foreign"] {
        std::fs::write(host.join(name), "left").unwrap();
    }
    std::fs::create_dir(host.join(".phoenix-tmp-ffffffffffffffff")).unwrap();
    subject.put("file", b"bytes");
    let kept =
        [".phoenix-tmp-0123456789abcdeg", ".phoenix-tmp-ffffffffffffffff", ".phoenix-tmp-short", "file", "foreign"];
    assert_eq!(subject.list(), kept);
}

#[test]
fn names_that_no_path_can_hold_are_not_listed_but_removed() {
    use std::os::unix::ffi::OsStrExt;
    let subject = rootfs();
    let tree = subject.host.as_ref().unwrap().join("srv/under test/tree");
    std::fs::create_dir(&tree).unwrap();
    for name in [&b"sound"[..], b"\xff\xfe", b"\x1b[2J", b"new\nline"] {
        std::fs::write(tree.join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
    }
    assert_eq!(subject.guest.list(&subject.path("tree")).unwrap(), ["sound"]);
    subject.guest.remove(&subject.path("tree")).unwrap();
    assert_eq!(subject.list(), [""; 0]);
}

#[test]
fn a_file_too_long_to_digest_is_an_error() {
    let subject = rootfs();
    let host = subject.host.as_ref().unwrap().join("srv/under test/sparse");
    std::fs::File::create(host).unwrap().set_len((64 << 20) + 1).unwrap();
    let error = cause(subject.guest.observe(&[subject.path("sparse")]));
    assert_eq!(error.kind(), ErrorKind::FileTooLarge);
}

#[test]
fn a_root_that_is_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = cause(Rootfs::new("101", &missing));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
    std::fs::write(&missing, "").unwrap();
    assert_eq!(cause(Rootfs::new("101", &missing)).kind(), ErrorKind::NotADirectory);
}

#[test]
fn the_root_is_never_removed() {
    for subject in [memory(), rootfs()] {
        subject.put("file", b"bytes");
        cause(subject.guest.remove(&GuestPath::root()));
        assert_eq!(subject.list(), ["file"]);
    }
}

#[test]
fn a_program_of_this_machine_starts_at_the_root_in_its_own_group() {
    let local = Local::named("pve1");
    assert_eq!(local.guest(), "pve1");
    let output = local.exec(&Command::new(["sh", "-c", "pwd; env | grep -v ^PWD= | sort; ps -o pgid= -p $$; echo $$"]));
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    let lines: Vec<_> = said.lines().map(str::trim).collect();
    assert_eq!(&lines[..1], ["/"]);
    assert!(lines.contains(&"LC_ALL=C"), "{said}");
    assert!(lines.contains(&"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), "{said}");
    assert_eq!(lines[lines.len() - 1], lines[lines.len() - 2], "{said}");
    let error = local.exec(&Command::new([""; 0])).unwrap_err();
    assert_eq!(error.to_string(), "guest pve1: cannot run a program in /");
}

#[test]
fn the_whole_group_is_killed_at_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    let script = "(sleep 2; : > \"$0\") & (sleep 2; : > \"$0\")";
    let mut command = Command::new(["sh", "-c", script, mark.to_str().unwrap()]);
    command.deadline = Duration::from_millis(300);
    assert!(matches!(Local::new().exec(&command), Err(Error::Deadline { .. })));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!mark.exists(), "a descendant outlived the deadline");
}

#[test]
fn memory_tells_what_was_done_to_it() {
    let path: GuestPath = "/etc/ssl/cert.pem".parse().unwrap();
    let guest = Memory::new("web")
        .with_file(path.clone(), "old")
        .with_link("/etc/alias".parse().unwrap(), "ssl")
        .with_user("git", 998)
        .on_exec(|command, guest| {
            let path = command.argv[1].parse().unwrap();
            guest.remove(&path).unwrap();
            Output { status: 3, stdout: command.stdin.clone(), stderr: Vec::new(), truncated: false }
        });
    assert_eq!((guest.writes(), guest.commands().len()), (0, 0));
    assert_eq!(guest.get(&"/etc/alias/cert.pem".parse().unwrap(), 10).unwrap().unwrap(), b"old");
    let owner: Owner = "git:git".parse().unwrap();
    let file = File { path: path.clone(), bytes: b"new".into(), mode: Mode::KEY, owner: owner.clone() };
    guest.put(&file).unwrap();
    assert!(guest.observe(std::slice::from_ref(&path)).unwrap()[0].file.as_ref().unwrap().owned_by(&owner));
    let output = guest.exec(&Command { stdin: b"in".into(), ..Command::new(["rm", path.as_str()]) }).unwrap();
    assert_eq!((output.status, output.stdout.as_slice()), (3, &b"in"[..]));
    assert_eq!(guest.get(&path, 10).unwrap(), None);
    assert_eq!((guest.writes(), guest.commands().len()), (2, 1));
    guest.remove(&path).unwrap();
    assert_eq!(guest.writes(), 2, "nothing was there to remove");
}
