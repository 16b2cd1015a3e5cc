//! Killed, out of space, broken or cut off from power at any system call: old or new, never half, and the next run converges.
//!
//! Every action runs in a process of its own (this binary with an action in its environment) under strace, first to
//! count its system calls on the store, then once for each of them with a fault there.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{NOW, act, action, argument, assert_sound, assert_tidy, can_trace, params, said, scratch, server};
use phoenix_pki::{
    Authority, AuthorityParams, Error, LeafParams, Passphrase, PrivateKey, Reason, Revocation, RootKey, Store,
};
use time::OffsetDateTime;

const LABEL: &str = "www.internal.example";

/// When the leaf of the preparation is due for renewal.
fn later() -> OffsetDateTime {
    NOW + Duration::from_secs(80 * 86_400)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Create,
    CreatePlain,
    Issue,
    PublishTwenty,
    Renew,
    Revoke,
}

use Action::{Create, CreatePlain, Issue, PublishTwenty, Renew, Revoke};

const ACTIONS: [(Action, &str); 6] = [
    (Create, "create"),
    (CreatePlain, "create-plain"),
    (Issue, "issue"),
    (PublishTwenty, "publish-twenty"),
    (Renew, "renew"),
    (Revoke, "revoke"),
];

impl Action {
    fn name(self) -> &'static str {
        ACTIONS.iter().find(|(action, _)| *action == self).unwrap().1
    }

    /// The leaves it is about, and the time it runs at.
    fn wanted(self) -> (Vec<LeafParams>, OffsetDateTime) {
        match self {
            Create | CreatePlain => (Vec::new(), NOW),
            Issue | Revoke => (vec![server(LABEL)], NOW),
            Renew => (vec![server(LABEL)], later()),
            PublishTwenty => ((0..20).map(|n| server(&format!("host-{n}.internal.example"))).collect(), NOW),
        }
    }

    /// What has to be there before it.
    fn prepare(self, store: &Store) {
        if matches!(self, Create | CreatePlain) {
            return;
        }
        let authority = Authority::create(store, &params(), NOW).unwrap();
        if matches!(self, Renew | Revoke) {
            // With a previous generation, which the renewal removes.
            authority.issue(&server(LABEL), NOW).unwrap();
            authority.issue(&server(LABEL), NOW).unwrap();
        }
    }

    fn run(self, store: &Store) -> Result<(), Error> {
        if matches!(self, Create | CreatePlain) {
            let root_key = if self == Create { RootKey::Generated } else { RootKey::Plain };
            let params = AuthorityParams { root_key, ..params() };
            return Authority::open_or_create(store, &params, NOW).map(drop);
        }
        let authority = Authority::open(store)?;
        let (wanted, now) = self.wanted();
        if self == Revoke {
            return authority.revoke(LABEL, Revocation::KeyCompromise, now).map(drop);
        }
        authority.ensure_all(&wanted, now).map(drop)
    }

    /// Whether it has come to its end and nothing is due.
    fn is_done(self, store: &Store) -> bool {
        let Ok(authority) = Authority::open(store) else { return false };
        let (wanted, now) = self.wanted();
        let reasons = authority.plan(&wanted, now).unwrap();
        let due = if self == Revoke { Reason::Revoked } else { Reason::UpToDate };
        // Both generations of the leaf are revoked, and the CRL says so.
        let entries = if self == Revoke { 2 } else { 0 };
        let crls = authority.crls().unwrap();
        reasons.iter().all(|reason| *reason == due) && crls.len() == 2 && crls[0].entries().len() == entries
    }
}

/// Counting system calls wants one thread, so this binary does without the usual harness and answers to its options.
fn main() {
    if let Some(name) = action() {
        let (action, _) = ACTIONS.into_iter().find(|(_, known)| *known == name).unwrap();
        if let Err(error) = action.run(&Store::new(argument(0)).patience(Duration::from_secs(5))) {
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
    let failed = tests
        .iter()
        .filter(|(name, test)| {
            let result = std::panic::catch_unwind(|| test(name));
            println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
            result.is_err()
        })
        .count();
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed", tests.len() - failed);
    if failed > 0 {
        std::process::exit(101);
    }
}

/// A test is given its name, for the record of what was skipped.
type Test = fn(&str);

const TESTS: [(&str, Test); 16] = [
    ("a_creation_killed_anywhere_leaves_no_authority_or_a_whole_one", |test| killed_at_every_call(test, Create)),
    ("an_issue_killed_anywhere_leaves_no_pair_or_a_whole_one", |test| killed_at_every_call(test, Issue)),
    ("a_batch_killed_anywhere_leaves_whole_pairs", |test| killed_at_every_call(test, PublishTwenty)),
    ("a_renewal_killed_anywhere_leaves_the_old_pair_or_the_new", |test| killed_at_every_call(test, Renew)),
    ("a_revocation_killed_anywhere_is_made_by_the_next_run", |test| killed_at_every_call(test, Revoke)),
    ("a_creation_on_a_failing_disk_says_so", |test| failing_at_every_write(test, Create)),
    ("an_issue_on_a_failing_disk_says_so", |test| failing_at_every_write(test, Issue)),
    ("a_batch_on_a_failing_disk_says_so", |test| failing_at_every_write(test, PublishTwenty)),
    ("a_renewal_on_a_failing_disk_says_so_and_keeps_the_old_pair", |test| failing_at_every_write(test, Renew)),
    ("a_revocation_on_a_failing_disk_says_so", |test| failing_at_every_write(test, Revoke)),
    ("a_disk_that_fills_up_at_any_page_leaves_nothing_half", full_at_every_page),
    ("a_creation_survives_a_power_cut", |test| power_cut_at_every_call(test, Create)),
    ("a_creation_without_a_passphrase_survives_a_power_cut", |test| power_cut_at_every_call(test, CreatePlain)),
    ("an_issue_survives_a_power_cut", |test| power_cut_at_every_call(test, Issue)),
    ("a_batch_survives_a_power_cut", |test| power_cut_at_every_call(test, PublishTwenty)),
    ("a_renewal_survives_a_power_cut", |test| power_cut_at_every_call(test, Renew)),
];

/// What must hold at any moment, beyond a store that is sound: nothing is published that the ledger does not know.
fn assert_whole(store: &Store, when: &str) {
    assert_sound(store, when);
    let ledger = store.ledger().unwrap_or_else(|error| panic!("{when}: {error}"));
    let Ok(authority) = Authority::open(store) else { return };
    let known = |certificate: &phoenix_pki::Certificate| {
        ledger.issued().iter().any(|issued| issued.serial == *certificate.serial_number())
    };
    assert!(known(authority.root()) && known(authority.intermediate()), "{when}: an authority that was not recorded");
    for label in common::names(&store.path().join("certificates")) {
        if let Some(leaf) = authority.leaf(&label).unwrap() {
            assert!(known(leaf.certificate()), "{when}: {label} was published and not recorded");
        }
    }
}

/// The next run comes to the end, and the one after it changes nothing.
fn assert_converges(action: Action, store: &Store, when: &str) {
    // Somewhat patient, for the lock is for a moment in the hands of each process that another thread starts.
    let store = &store.clone().patience(Duration::from_secs(5));
    action.run(store).unwrap_or_else(|error| panic!("{when}: the next run: {error}"));
    assert!(action.is_done(store), "{when}: the next run left something to do");
    assert_whole(store, when);
    if action == Create {
        // The key that was published opens with the passphrase that was left.
        let passphrase = fs::read_to_string(store.passphrase_path()).unwrap();
        let key = fs::read(store.path().join("authority/current/root.key")).unwrap();
        let key = PrivateKey::from_pem(&key, Some(&Passphrase::new(passphrase.trim())), "root.key").unwrap();
        assert_eq!(key.public_key(), Authority::open(store).unwrap().root().public_key(), "{when}");
        let beside = store.path().parent().unwrap();
        assert_eq!(common::names(beside), ["store", "store.passphrase"], "{when}");
    }
    let before = common::tree(store.path());
    let authority = Authority::open(store).unwrap();
    let (wanted, now) = action.wanted();
    if action != Revoke {
        assert!(authority.ensure_all(&wanted, now).unwrap().iter().all(|ensured| !ensured.changed()), "{when}");
        assert_eq!(common::tree(store.path()), before, "{when}: a run with nothing to do wrote");
    }
    // And the next change, whatever it is about.
    authority.issue(&server("other.internal.example"), now).unwrap();
    assert_whole(store, when);
}

/// The system calls that change files, or wait for somebody who does.
const CALLS: &str = "openat,open,creat,write,writev,pwrite64,fsync,fdatasync,syncfs,rename,renameat,renameat2,link,\
                     linkat,symlink,symlinkat,mkdir,mkdirat,unlink,unlinkat,rmdir,ftruncate,chmod,fchmod,fchmodat,flock";

/// A system call that the action makes on the store.
#[derive(Clone, Debug)]
struct Point {
    call: String,
    /// Which of the calls of this name it is, from 1.
    count: usize,
    line: String,
}

impl Point {
    /// Whether a full or broken disk can make it fail.
    fn writes(&self) -> bool {
        match self.call.as_str() {
            "open" | "openat" => self.line.contains("O_CREAT"),
            "flock" => false,
            _ => true,
        }
    }

    fn publishes(&self) -> bool {
        self.call.starts_with("rename") && self.line.split(" = ").next().unwrap().ends_with("/current\")")
    }
}

/// A directory of its own with a copy of what the action needs.
struct Ground {
    directory: tempfile::TempDir,
}

impl Ground {
    fn copy_of(prepared: &Path) -> Self {
        let directory = scratch();
        copy(prepared, directory.path());
        Self { directory }
    }

    fn store(&self) -> Store {
        Store::new(self.directory.path().join("store"))
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        let metadata = from.symlink_metadata().unwrap();
        if metadata.is_dir() {
            fs::DirBuilder::new().mode(0o700).create(&to).unwrap();
            copy(&from, &to);
        } else if metadata.is_symlink() {
            symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

fn prepared(action: Action) -> tempfile::TempDir {
    let directory = scratch();
    action.prepare(&Store::new(directory.path().join("store")));
    directory
}

/// Runs the action under strace.
fn traced(action: Action, store: &Store, options: &[&str]) -> Output {
    let itself = act(action.name(), &[store.path()]);
    let mut command = Command::new("strace");
    // Fewer stops make it faster, but strace 6.1 then sends no signals.
    let signals = options.iter().any(|option| option.contains(":signal="));
    command
        .args(["-f", "-qq"])
        .args((!signals).then_some("--seccomp-bpf"))
        .args(options)
        .arg("--")
        .arg(itself.get_program());
    command.args(itself.get_args()).envs(itself.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.output().unwrap()
}

/// The system calls of an action on its store, in their order.
fn points(action: Action, prepared: &Path) -> Vec<Point> {
    let ground = Ground::copy_of(prepared);
    let path = ground.directory.path().to_str().unwrap();
    let trace = scratch();
    let file = trace.path().join("trace");
    let output =
        traced(action, &ground.store(), &["-y", "-o", file.to_str().unwrap(), "-e", &format!("trace={CALLS}")]);
    assert!(output.status.success(), "{action:?}: {}", said(&output));
    let mut counts: HashMap<(String, String), usize> = HashMap::new();
    let mut points = Vec::new();
    let mut main = None;
    for line in fs::read_to_string(&file).unwrap().lines() {
        let Some((process, line)) = line.split_once(' ') else { continue };
        let Some((call, _)) = line.trim_start().split_once('(') else { continue };
        let main = main.get_or_insert_with(|| process.to_string());
        let count = counts.entry((process.into(), call.into())).or_default();
        *count += 1;
        if line.contains(path) {
            let point = Point { call: call.into(), count: *count, line: line.trim_start().into() };
            if process == main {
                points.push(point);
            } else {
                assert!(
                    !point.writes(),
                    "a thread beside the main one writes, which makes the counting unsound: {line}"
                );
            }
        }
    }
    assert!(points.len() > 3, "{action:?}: {points:?}");
    points
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

/// Where the links of all pairs lead.
fn links(store: &Store) -> BTreeMap<String, Option<PathBuf>> {
    let certificates = store.path().join("certificates");
    common::names(&certificates)
        .into_iter()
        .map(|label| {
            let link = fs::read_link(certificates.join(&label).join("current")).ok();
            (label, link)
        })
        .filter(|(_, link)| link.is_some())
        .collect()
}

fn killed_at_every_call(test: &str, action: Action) {
    if !can_trace(test) {
        return;
    }
    let prepared = prepared(action);
    let points = points(action, prepared.path());
    let before = links(&Store::new(prepared.path().join("store")));
    let published = points.iter().position(Point::publishes);
    let indexed: Vec<(usize, &Point)> = points.iter().enumerate().collect();
    each(&indexed, |(at, point)| {
        let when = format!("{action:?} killed at {} of {}: {}", at + 1, points.len(), point.line);
        let ground = Ground::copy_of(prepared.path());
        let (trace, inject) =
            (format!("trace={}", point.call), format!("inject={}:signal=KILL:when={}", point.call, point.count));
        let output = traced(action, &ground.store(), &["-o", "/dev/null", "-e", &trace, "-e", &inject]);
        assert!(!output.status.success(), "{when}: it lived");
        let store = ground.store();
        if store.path().exists() {
            assert_whole(&store, &when);
        }
        if published.is_none_or(|published| *at <= published) {
            assert_eq!(links(&store), before, "{when}: published before the rename");
        }
        assert_converges(action, &store, &when);
        assert_tidy(&store, &when);
    });
    println!("{action:?}: killed at {} system calls", points.len());
}

fn failing_at_every_write(test: &str, action: Action) {
    if !can_trace(test) {
        return;
    }
    let prepared = prepared(action);
    let points = points(action, prepared.path());
    let before = links(&Store::new(prepared.path().join("store")));
    let published = points.iter().position(Point::publishes);
    let faults: Vec<(usize, &Point, &str)> = points
        .iter()
        .enumerate()
        .filter(|(_, point)| point.writes())
        .flat_map(|(at, point)| ["ENOSPC", "EIO"].map(|fault| (at, point, fault)))
        .collect();
    each(&faults, |(at, point, fault)| {
        let when = format!("{action:?} with {fault} at {} of {}: {}", at + 1, points.len(), point.line);
        let ground = Ground::copy_of(prepared.path());
        let (trace, inject) =
            (format!("trace={}", point.call), format!("inject={}:error={fault}:when={}", point.call, point.count));
        let output = traced(action, &ground.store(), &["-o", "/dev/null", "-e", &trace, "-e", &inject]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{when}: {text}");
        assert!(text.contains("ERROR cannot "), "{when}: {text}");
        assert!(text.contains(ground.directory.path().to_str().unwrap()), "{when}: no path in {text}");
        let store = ground.store();
        if store.path().exists() {
            assert_whole(&store, &when);
        }
        if published.is_none_or(|published| *at <= published) {
            assert_eq!(links(&store), before, "{when}: the old state changed");
        }
        assert_converges(action, &store, &when);
        assert_tidy(&store, &when);
    });
    println!("{action:?}: {} failing calls", faults.len());
}

/// A file system in memory, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let small = Self(tempfile::tempdir().unwrap());
        small.mounted("size=1m,mode=0755").then_some(small)
    }

    fn mounted(&self, options: &str) -> bool {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(self.0.path());
        command.output().is_ok_and(|output| output.status.success())
    }

    /// Leaves this many pages free.
    fn leave(&self, pages: u64) {
        let state = rustix::fs::statvfs(self.0.path()).unwrap();
        let used = (state.f_blocks - state.f_bfree) * state.f_frsize;
        // A size of nothing would be no limit.
        let size = (used + pages * state.f_frsize).max(state.f_frsize);
        assert!(self.mounted(&format!("remount,size={size}")), "{pages} pages");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

/// A disk that is really full: not one call fails, but all that need room from there on.
fn full_at_every_page(test: &str) {
    if Small::mount().is_none() {
        return common::skip(test, "root's right to mount a file system");
    }
    for action in [Create, Issue, PublishTwenty, Renew] {
        let prepared = prepared(action);
        let mut failed = 0;
        loop {
            let small = Small::mount().unwrap();
            copy(prepared.path(), small.0.path());
            small.leave(failed);
            let store = Store::new(small.0.path().join("store"));
            let when = format!("{action:?} with {failed} pages");
            let before = links(&store);
            let output = act(action.name(), &[store.path()]).output().unwrap();
            if output.status.success() {
                break;
            }
            failed += 1;
            assert!(failed < 200, "{when}: {}", said(&output));
            let text = said(&output);
            assert!(
                text.contains("ERROR cannot ") && text.contains(small.0.path().to_str().unwrap()),
                "{when}: {text}"
            );
            if store.path().exists() {
                assert_whole(&store, &when);
            }
            assert_eq!(links(&store), before, "{when}");
            assert!(small.mounted("remount,size=1m"), "{when}");
            assert_converges(action, &store, &when);
            assert_tidy(&store, &when);
        }
        assert!(failed > 1, "{action:?}: {failed} failures");
        println!("{action:?}: {failed} full disks");
    }
}

/// A file system that forgets: what the process sees beside what the disk is known to hold.
#[derive(Clone, Default)]
struct Model {
    nodes: Vec<Node>,
}

#[derive(Clone)]
enum Node {
    File { seen: Vec<u8>, kept: Vec<u8> },
    Directory { seen: BTreeMap<String, usize>, kept: BTreeMap<String, usize> },
    Link(PathBuf),
}

/// What of the unsynced survives a power cut.
#[derive(Clone, Copy, Debug)]
enum Survives {
    /// Nothing.
    Nothing,
    /// All names, and no contents: a journal of metadata.
    Names,
    /// All contents, and no names.
    Contents,
    /// Of each directory everything or nothing, by its number and this one.
    Some(usize),
}

impl Model {
    fn of(directory: &Path) -> Self {
        let mut model = Self::default();
        model.load(directory);
        model
    }

    fn load(&mut self, path: &Path) -> usize {
        let at = self.nodes.len();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_symlink() {
            self.nodes.push(Node::Link(fs::read_link(path).unwrap()));
        } else if metadata.is_file() {
            let bytes = fs::read(path).unwrap();
            self.nodes.push(Node::File { seen: bytes.clone(), kept: bytes });
        } else {
            self.nodes.push(Node::Directory { seen: BTreeMap::new(), kept: BTreeMap::new() });
            let entries: BTreeMap<String, usize> =
                common::names(path).into_iter().map(|name| (name.clone(), self.load(&path.join(name)))).collect();
            self.nodes[at] = Node::Directory { seen: entries.clone(), kept: entries };
        }
        at
    }

    fn find(&self, path: &Path) -> Option<usize> {
        path.iter().try_fold(0, |at, name| match &self.nodes[at] {
            Node::Directory { seen, .. } => seen.get(name.to_str().unwrap()).copied(),
            _ => None,
        })
    }

    fn entries(&mut self, path: &Path) -> &mut BTreeMap<String, usize> {
        let at = self.find(path).unwrap_or_else(|| panic!("{} is not in the model", path.display()));
        match &mut self.nodes[at] {
            Node::Directory { seen, .. } => seen,
            _ => panic!("{} is no directory", path.display()),
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        let at = self.nodes.len() - 1;
        self.entries(path.parent().unwrap()).insert(path.file_name().unwrap().to_str().unwrap().into(), at);
    }

    fn remove(&mut self, path: &Path) -> usize {
        let name = path.file_name().unwrap().to_str().unwrap();
        self.entries(path.parent().unwrap()).remove(name).unwrap_or_else(|| panic!("{} is not there", path.display()))
    }

    fn keep(node: &mut Node) {
        match node {
            Node::File { seen, kept } => kept.clone_from(seen),
            Node::Directory { seen, kept } => kept.clone_from(seen),
            Node::Link(_) => {}
        }
    }

    /// Does what a line of a trace says; paths are below `top`.
    fn replay(&mut self, line: &str, top: &Path) {
        let Some((call, rest)) = line.split_once('(') else { return };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
        if result.trim_start().starts_with('-') {
            return;
        }
        let strings = strings(arguments);
        let below = |bytes: &[u8]| {
            let path = Path::new(std::str::from_utf8(bytes).unwrap());
            path.strip_prefix(top).ok().map(Path::to_path_buf)
        };
        let text = |at: usize| strings.get(at).map(|(_, bytes)| bytes.as_slice());
        let path = |at: usize| text(at).and_then(below);
        match call {
            "openat" if arguments.contains("O_CREAT") => {
                // The descriptor of the working directory comes first.
                let Some(path) = path(1) else { return };
                if self.find(&path).is_none() {
                    self.add(&path, Node::File { seen: Vec::new(), kept: Vec::new() });
                }
            }
            "write" => {
                let (Some(path), Some(bytes)) = (path(0), text(1)) else { return };
                let at = self.find(&path).unwrap();
                let Node::File { seen, .. } = &mut self.nodes[at] else { panic!("{line}") };
                seen.extend_from_slice(bytes);
            }
            "ftruncate" => {
                let Some(path) = path(0) else { return };
                let length = arguments.rsplit_once(", ").unwrap().1.trim_end_matches(')').parse().unwrap();
                let at = self.find(&path).unwrap();
                let Node::File { seen, .. } = &mut self.nodes[at] else { panic!("{line}") };
                seen.resize(length, 0);
            }
            "fsync" => {
                let Some(path) = path(0) else { return };
                let at = self.find(&path).unwrap();
                Self::keep(&mut self.nodes[at]);
            }
            "syncfs" if path(0).is_some() => self.nodes.iter_mut().for_each(Self::keep),
            "mkdir" => {
                let Some(path) = path(0) else { return };
                self.add(&path, Node::Directory { seen: BTreeMap::new(), kept: BTreeMap::new() });
            }
            "symlink" => {
                let Some(path) = path(1) else { return };
                let target = PathBuf::from(std::str::from_utf8(text(0).unwrap()).unwrap());
                self.add(&path, Node::Link(target));
            }
            "rename" => {
                let (Some(from), Some(to)) = (path(0), path(1)) else { return };
                let at = self.remove(&from);
                self.entries(to.parent().unwrap()).insert(to.file_name().unwrap().to_str().unwrap().into(), at);
            }
            "unlink" | "rmdir" => {
                let Some(path) = path(0) else { return };
                self.remove(&path);
            }
            "unlinkat" => {
                // A name in a directory that is open, or a whole path behind the working directory.
                let name = Path::new(std::str::from_utf8(text(1).unwrap()).unwrap());
                let whole = if name.is_absolute() { path(1) } else { path(0).map(|directory| directory.join(name)) };
                let Some(path) = whole else { return };
                self.remove(&path);
            }
            "openat" | "open" | "flock" => {}
            other => assert!(path(0).is_none() && path(1).is_none(), "the model does not know {other}: {line}"),
        }
    }

    /// Puts what survives into a directory.
    fn write(&self, at: usize, path: &Path, survives: Survives) {
        match &self.nodes[at] {
            Node::Link(target) => symlink(target, path).unwrap(),
            Node::File { seen, kept } => {
                let bytes = if matches!(survives, Survives::Contents) { seen } else { kept };
                let mut options = fs::OpenOptions::new();
                let mut file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
                file.write_all(bytes).unwrap();
            }
            Node::Directory { seen, kept } => {
                if at > 0 {
                    fs::DirBuilder::new().mode(0o700).create(path).unwrap();
                }
                let names = match survives {
                    Survives::Nothing | Survives::Contents => kept,
                    Survives::Names => seen,
                    Survives::Some(seed) if (at * 7 + seed * 13) % 5 < 2 => seen,
                    Survives::Some(_) => kept,
                };
                for (name, node) in names {
                    self.write(*node, &path.join(name), survives);
                }
            }
        }
    }
}

/// The strings and descriptor paths among a call's arguments, as `strace -xx -y` writes them: each byte as `\x2f`.
fn strings(arguments: &str) -> Vec<(usize, Vec<u8>)> {
    let mut strings = Vec::new();
    let mut rest = arguments;
    while let Some(start) = rest.find(['"', '<']) {
        let end = if rest.as_bytes()[start] == b'"' { '"' } else { '>' };
        let inner = &rest[start + 1..];
        let length = inner.find(end).unwrap();
        let bytes =
            inner[..length].split("\\x").skip(1).map(|byte| u8::from_str_radix(&byte[..2], 16).unwrap()).collect();
        strings.push((strings.len(), bytes));
        rest = &inner[length + 1..];
    }
    strings
}

/// The power is cut behind every system call; what was not synced is lost, wholly or in part.
fn power_cut_at_every_call(test: &str, action: Action) {
    if !can_trace(test) {
        return;
    }
    let prepared = prepared(action);
    let ground = Ground::copy_of(prepared.path());
    let top = ground.directory.path();
    let mut model = Model::of(top);
    let trace = scratch();
    let file = trace.path().join("trace");
    let options = ["-y", "-xx", "-s", "1000000", "-o", file.to_str().unwrap(), "-e", &format!("trace={CALLS}")]
        .map(str::to_string);
    let output = traced(action, &ground.store(), &options.each_ref().map(String::as_str));
    assert!(output.status.success(), "{}", said(&output));
    let mut states = Vec::new();
    for line in fs::read_to_string(&file).unwrap().lines() {
        let line = line.split_once(' ').unwrap().1.trim_start();
        let before = model.nodes.len();
        model.replay(line, top);
        let call = line.split('(').next().unwrap_or_default();
        let changes = call != "openat" || model.nodes.len() > before;
        if changes && strings(line).iter().any(|(_, bytes)| bytes.starts_with(top.as_os_str().as_encoded_bytes())) {
            states.push((call.to_string(), model.clone()));
        }
    }
    // What the model came to is what the process left.
    let complete = scratch();
    model.nodes.iter_mut().for_each(Model::keep);
    model.write(0, complete.path(), Survives::Nothing);
    let contents = |top: &Path| -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let paths = common::tree(top).into_keys();
        paths.map(|path| (path.strip_prefix(top).unwrap().into(), fs::read(&path).ok())).collect()
    };
    assert!(contents(complete.path()) == contents(top), "{action:?}: the model does not know all that happened");

    let last = states.len() - 1;
    let cuts: Vec<(usize, &String, &Model, Survives)> = states
        .iter()
        .enumerate()
        .flat_map(|(at, (call, model))| {
            use Survives::{Contents, Names, Nothing, Some};
            [Nothing, Names, Contents, Some(0), Some(1)].map(|survives| (at, call, model, survives))
        })
        .collect();
    each(&cuts, |(at, call, model, survives)| {
        let when = format!("{action:?} with a power cut behind {} of {last}, {call}, where {survives:?} survives", at);
        let directory = scratch();
        model.write(0, directory.path(), *survives);
        let store = Store::new(directory.path().join("store"));
        if store.path().exists() {
            assert_whole(&store, &when);
        }
        if *at == last {
            // It had said that it was done.
            assert!(action.is_done(&store), "{when}: lost what was promised");
        }
        // What it left goes with the next change of its label: the mark in the lock file is not synced.
        assert_converges(action, &store, &when);
    });
    println!("{action:?}: {} power cuts", cuts.len());
}
