//! The pair swap: whole at each moment, over a root file system and over a guest in memory.

mod common;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use common::{authority, has, now, server, skip};
use phoenix_guest::{
    Command, Delivered, Difference, Error, File, GuestPath, Memory, Mode, Observed, Output, Owner, Placed, Placement,
    Rootfs, Serves, Transport, ensure_pair,
};
use phoenix_pki::{Authority, Leaf, Store};
use tempfile::TempDir;

/// One authority and four leaves for all tests: keys are what takes time.
static PKI: LazyLock<(Authority, Vec<Leaf>)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let leaves = (0..4).map(|_| server(&authority)).collect();
    (authority, leaves)
});

fn leaf(at: usize) -> &'static Leaf {
    &PKI.1[at]
}

const CERT: &str = "/etc/nginx/ssl/nginx.crt";
const KEY: &str = "/etc/nginx/private/nginx.key";
const STATE: &str = "/etc/nginx/ssl/.phoenix/nginx.crt";

fn path(text: &str) -> GuestPath {
    text.parse().unwrap()
}

fn argv(program: &str) -> Option<Vec<String>> {
    Some(vec![program.into()])
}

fn placement() -> Placement {
    Placement {
        root: Some(Placed::certificate(path("/etc/nginx/ssl/root.crt"))),
        check: argv("check"),
        reload: argv("reload"),
        ..Placement::new(path(CERT), path(KEY))
    }
}

fn ensure(guest: &dyn Transport, leaf: &Leaf, placement: &Placement) -> Result<Delivered, Error> {
    ensure_pair(guest, leaf, placement, &[PKI.0.root().der().clone()], now())
}

/// A root file system with the directory that holds it, or a guest in memory.
struct Subject {
    guest: Box<dyn Transport>,
    root: Option<TempDir>,
}

fn rootfs() -> Subject {
    let root = tempfile::tempdir().unwrap();
    Subject { guest: Box::new(Rootfs::new("101", root.path()).unwrap()), root: Some(root) }
}

fn memory() -> Subject {
    Subject { guest: Box::new(Memory::new("101")), root: None }
}

impl Subject {
    fn host(&self, path: &str) -> PathBuf {
        self.root.as_ref().unwrap().path().join(path.trim_start_matches('/'))
    }
}

/// What is read through the two paths.
fn pair(guest: &dyn Transport) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    (guest.get(&path(CERT), 1 << 20).unwrap(), guest.get(&path(KEY), 1 << 20).unwrap())
}

/// Which leaf the paths hold: `None` where nothing is, and no mixture of any kind.
fn held(guest: &dyn Transport) -> Option<usize> {
    let (cert, key) = pair(guest);
    if cert.is_none() && key.is_none() {
        return None;
    }
    let is = |leaf: &Leaf| {
        cert.as_deref() == Some(leaf.chain_pem().as_bytes()) && key.as_deref() == Some(leaf.key().to_pem().as_bytes())
    };
    Some(PKI.1.iter().position(is).expect("certificate and key belong together"))
}

/// Nothing but the state of a delivery that came to its end.
fn assert_tidy(guest: &dyn Transport) {
    for directory in ["/etc/nginx/ssl", "/etc/nginx/private"] {
        let names = guest.list(&path(directory)).unwrap();
        assert!(names.iter().all(|name| !name.contains("tmp")), "{names:?}");
    }
    let state = guest.list(&path(STATE)).unwrap();
    let leads = |name| guest.observe(&[path(STATE).join(name).unwrap()]).unwrap()[0].link.clone();
    let mut expected: Vec<String> = [leads("current"), leads("previous")].into_iter().flatten().collect();
    expected.extend(["current", "previous"].into_iter().filter(|name| leads(name).is_some()).map(Into::into));
    expected.sort();
    expected.dedup();
    assert_eq!(state, expected);
}

/// What happens to the operation at which a fault strikes, and to those after it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It is not done, and says so.
    Fails,
    /// It is done, and says that it failed: the answer is lost.
    Lies,
    /// It is not done and neither is anything after it, for the guest as good as `kill -9`.
    Kills,
}

type Watch<'a> = Box<dyn Fn(&dyn Transport) + Send + Sync + 'a>;

/// A transport that counts, watches, and breaks at one operation that changes something.
struct Faulty<'a> {
    inner: &'a dyn Transport,
    fault: Fault,
    left: AtomicUsize,
    dead: AtomicBool,
    /// What symlinks fail with.
    links: Option<ErrorKind>,
    /// Whether keys get a mode that nobody asked for, and nothing is said about it.
    sloppy: bool,
    observes: AtomicUsize,
    gets: AtomicUsize,
    writes: AtomicUsize,
    watch: Watch<'a>,
}

impl<'a> Faulty<'a> {
    fn new(inner: &'a dyn Transport, fault: Fault, at: usize) -> Self {
        Self {
            inner,
            fault,
            left: at.into(),
            dead: false.into(),
            links: None,
            sloppy: false,
            observes: 0.into(),
            gets: 0.into(),
            writes: 0.into(),
            watch: Box::new(|_| {}),
        }
    }

    fn struck(&self) -> bool {
        self.left.load(Ordering::SeqCst) == usize::MAX
    }

    fn broken(&self) -> Error {
        let source = std::io::Error::other("broken by the test");
        Error::File { guest: "101".into(), attempted: "reach", path: "/broken".into(), source }
    }

    fn alive(&self) -> Result<(), Error> {
        if self.dead.load(Ordering::SeqCst) { Err(self.broken()) } else { Ok(()) }
    }

    fn change<T>(&self, change: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.alive()?;
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.wrapping_sub(1), Ordering::SeqCst);
        self.writes.fetch_add(1, Ordering::SeqCst);
        if left == 0 {
            match self.fault {
                Fault::Fails => return Err(self.broken()),
                Fault::Lies => drop(change()?),
                Fault::Kills => self.dead.store(true, Ordering::SeqCst),
            }
            // Counted no further: it strikes once.
            self.left.store(usize::MAX, Ordering::SeqCst);
            return Err(self.broken());
        }
        if left == usize::MAX {
            self.left.store(left, Ordering::SeqCst);
        }
        let done = change();
        (self.watch)(self.inner);
        done
    }
}

impl Transport for Faulty<'_> {
    fn guest(&self) -> &str {
        self.inner.guest()
    }

    fn exec(&self, command: &Command) -> Result<Output, Error> {
        self.change(|| self.inner.exec(command))
    }

    fn put(&self, file: &File) -> Result<(), Error> {
        if file.bytes.windows(11).any(|part| part == b"PRIVATE KEY") {
            assert_eq!(file.mode.bits() & 0o007, 0, "{} is for the world to read", file.path);
        }
        let mut file = file.clone();
        if self.sloppy && file.mode == Mode::KEY {
            file.mode = Mode::new(0o660).unwrap();
        }
        self.change(|| self.inner.put(&file))
    }

    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        self.alive()?;
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.inner.get(path, limit)
    }

    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>, Error> {
        self.alive()?;
        self.observes.fetch_add(1, Ordering::SeqCst);
        self.inner.observe(paths)
    }

    fn link(&self, path: &GuestPath, target: &str) -> Result<(), Error> {
        if let Some(kind) = self.links {
            let source = std::io::Error::from(kind);
            return Err(Error::File { guest: "101".into(), attempted: "link", path: path.to_string(), source });
        }
        self.change(|| self.inner.link(path, target))
    }

    fn remove(&self, path: &GuestPath) -> Result<(), Error> {
        self.change(|| self.inner.remove(path))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<String>, Error> {
        self.alive()?;
        self.inner.list(path)
    }

    fn runs_programs(&self) -> bool {
        self.inner.runs_programs()
    }

    fn sets_owners(&self) -> bool {
        self.inner.sets_owners()
    }
}

/// Inode and times of all that is in a tree.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, i64, i64)> {
    let (mut seen, mut rest) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(at) = rest.pop() {
        let meta = at.symlink_metadata().unwrap();
        if meta.is_dir() {
            rest.extend(std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
        }
        seen.insert(at, (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()));
    }
    seen
}

/// Leaf 0 as an installation before Phoenix has it.
fn put_by_hand(guest: &dyn Transport) {
    let put = |at: &str, bytes: Vec<u8>, mode| {
        guest.put(&File { path: path(at), bytes, mode, owner: Owner::ROOT }).unwrap();
    };
    put(CERT, leaf(0).chain_pem().into_bytes(), Mode::CERTIFICATE);
    put(KEY, leaf(0).key().to_pem().as_bytes().to_vec(), Mode::new(0o640).unwrap());
}

#[test]
fn a_pair_is_placed_once_and_replaced_as_one() {
    let subject = rootfs();
    let serves = Serves { name: "www.internal.example".parse().unwrap(), ..("10.0.0.101:443".parse().unwrap()) };
    let placement = Placement { serves: Some(serves), ..placement() };
    for round in 0..3 {
        let first = ensure(&*subject.guest, leaf(round), &placement).unwrap();
        assert!(first.changed(), "round {round}");
        assert_eq!(*first.proof.unwrap().fingerprint(), leaf(round).certificate().fingerprint());
        assert_eq!(held(&*subject.guest), Some(round));
        assert_tidy(&*subject.guest);
    }
    let state = subject.guest.list(&path(STATE)).unwrap();
    assert_eq!(state.len(), 4, "two generations, current and previous: {state:?}");
    let texts = subject.guest.observe(&[path(CERT), path(KEY)]).unwrap();
    assert_eq!(texts[0].link.as_deref(), Some(".phoenix/nginx.crt/current/cert.pem"));
    assert_eq!(texts[1].link.as_deref(), Some("../ssl/.phoenix/nginx.crt/current/key.pem"));
}

#[test]
fn an_unchanged_run_looks_once_and_writes_nothing() {
    let subject = rootfs();
    ensure(&*subject.guest, leaf(1), &placement()).unwrap();
    let before = snapshot(subject.root.as_ref().unwrap().path());
    let counting = Faulty::new(&*subject.guest, Fault::Fails, usize::MAX);
    let done = ensure(&counting, leaf(1), &placement()).unwrap();
    assert!(!done.changed() && done.proof.is_some());
    assert_eq!(before, snapshot(subject.root.as_ref().unwrap().path()));
    assert_eq!(counting.observes.into_inner(), 1);
    assert_eq!(counting.gets.into_inner(), 2, "certificate and key, for the proof");
    assert_eq!(counting.writes.into_inner(), 0);

    let guest = Memory::new("101");
    ensure(&guest, leaf(1), &placement()).unwrap();
    let before = (guest.writes(), guest.commands().len());
    assert_eq!(before.1, 2, "one check and one reload");
    assert!(!ensure(&guest, leaf(1), &placement()).unwrap().changed());
    assert_eq!((guest.writes(), guest.commands().len()), before);
}

/// What a guest holds before the run that is broken.
type Before = fn(&dyn Transport);

const BEFORE: [(&str, Before); 7] = [
    ("nothing", |_| {}),
    ("a pair of ours", |guest| drop(ensure(guest, leaf(0), &placement()).unwrap())),
    ("two pairs of ours", |guest| {
        ensure(guest, leaf(3), &placement()).unwrap();
        ensure(guest, leaf(0), &placement()).unwrap();
    }),
    ("files by hand", put_by_hand),
    ("a key that was replaced by hand", |guest| {
        ensure(guest, leaf(0), &placement()).unwrap();
        let bytes = leaf(0).key().to_pem().as_bytes().to_vec();
        guest.put(&File { path: path(KEY), bytes, mode: Mode::KEY, owner: Owner::ROOT }).unwrap();
    }),
    ("links of somebody else", |guest| {
        put_by_hand(guest);
        for (at, name) in [(CERT, "/srv/pair.crt"), (KEY, "/srv/pair.key")] {
            let bytes = guest.get(&path(at), 1 << 20).unwrap().unwrap();
            guest.put(&File { path: path(name), bytes, mode: Mode::KEY, owner: Owner::ROOT }).unwrap();
            guest.link(&path(at), name).unwrap();
        }
    }),
    ("a run that was killed before the reload", |guest| {
        ensure(guest, leaf(0), &placement()).unwrap();
        let mut at = 0;
        while held(guest) == Some(0) {
            let _ = ensure(&Faulty::new(guest, Fault::Kills, at), leaf(2), &placement());
            at += 1;
        }
    }),
];

/// Breaks a run at each operation in turn. At each moment the paths hold a pair or nothing, and the next run converges.
fn break_everywhere(make: fn() -> Subject, fault: Fault) {
    for (name, before) in BEFORE {
        for at in 0.. {
            assert!(at < 100, "{name}: no run has so many operations");
            let subject = make();
            before(&*subject.guest);
            let old = held(&*subject.guest);
            let mut faulty = Faulty::new(&*subject.guest, fault, at);
            let mut allowed = vec![old, Some(1)];
            // What was never proven may be undone before another is tried.
            allowed.extend((old == Some(2)).then_some(Some(0)));
            let watched = allowed.clone();
            faulty.watch = Box::new(move |guest| {
                let held = held(guest);
                assert!(watched.contains(&held), "{name}, {at}: {held:?}");
            });
            let ended = ensure(&faulty, leaf(1), &placement());
            let struck = faulty.struck();
            let now_held = held(&*subject.guest);
            assert!(allowed.contains(&now_held), "{name}, {fault:?} at {at}: {now_held:?}");
            if let Err(Error::RolledBack { rollback: None, .. }) = &ended {
                assert_ne!(now_held, Some(1), "{name}, {fault:?} at {at} was rolled back");
            }
            let retried = ensure(&*subject.guest, leaf(1), &placement());
            assert!(retried.is_ok(), "{name}, {fault:?} at {at}: {retried:?}");
            assert_eq!(held(&*subject.guest), Some(1), "{name}, {fault:?} at {at}");
            assert!(!ensure(&*subject.guest, leaf(1), &placement()).unwrap().changed());
            assert_tidy(&*subject.guest);
            if !struck {
                assert!(ended.is_ok(), "{name}: {ended:?}");
                break;
            }
        }
    }
}

#[test]
fn a_kill_at_each_step_leaves_a_pair_in_memory() {
    break_everywhere(memory, Fault::Kills);
}

#[test]
fn a_kill_at_each_step_leaves_a_pair_on_a_root_file_system() {
    break_everywhere(rootfs, Fault::Kills);
}

#[test]
fn a_failure_at_each_step_leaves_a_pair() {
    break_everywhere(memory, Fault::Fails);
    break_everywhere(rootfs, Fault::Fails);
}

#[test]
fn an_answer_that_is_lost_at_each_step_leaves_a_pair() {
    break_everywhere(memory, Fault::Lies);
}

/// A guest whose check or reload refuses leaf 1 and 2, and which remembers what its consumer read last.
fn picky(refusing: &'static str) -> (Memory, Arc<Mutex<Option<usize>>>) {
    let taken = Arc::new(Mutex::new(None));
    let remembered = taken.clone();
    let guest = Memory::new("101").on_exec(move |command, guest| {
        let now = held(guest);
        let refused = command.argv == [refusing] && matches!(now, Some(1 | 2));
        if command.argv == ["reload"] && !refused {
            *remembered.lock().unwrap() = now;
        }
        Output { status: i32::from(refused), stdout: Vec::new(), stderr: b"it will not do".into(), truncated: false }
    });
    (guest, taken)
}

#[test]
fn what_the_consumer_refuses_is_put_back_and_tried_again() {
    for refusing in ["check", "reload"] {
        let (guest, taken) = picky(refusing);
        ensure(&guest, leaf(0), &placement()).unwrap();
        for _ in 0..2 {
            let error = ensure(&guest, leaf(1), &placement()).unwrap_err();
            let Error::RolledBack { source, rollback: None, .. } = &error else { panic!("{error:?}") };
            assert!(source.to_string().contains("it will not do"), "{source}");
            assert_eq!((held(&guest), *taken.lock().unwrap()), (Some(0), Some(0)));
            assert_tidy(&guest);
        }
        assert!(!ensure(&guest, leaf(0), &placement()).unwrap().changed());
        ensure(&guest, leaf(3), &placement()).unwrap();
        assert_eq!((held(&guest), *taken.lock().unwrap()), (Some(3), Some(3)));
    }
}

#[test]
fn where_nothing_was_nothing_is_left() {
    let (guest, taken) = picky("reload");
    let error = ensure(&guest, leaf(1), &placement()).unwrap_err();
    assert!(matches!(error, Error::RolledBack { rollback: None, .. }), "{error:?}");
    assert_eq!((held(&guest), *taken.lock().unwrap()), (None, None));
    for at in [CERT, KEY, STATE, "/etc/nginx/ssl/root.crt"] {
        assert_eq!(guest.observe(&[path(at)]).unwrap(), [Observed::MISSING], "{at}");
    }
}

#[test]
fn a_kill_on_the_way_back_to_nothing_leaves_nothing_half() {
    for at in 0..100 {
        let (guest, _) = picky("reload");
        let faulty = Faulty::new(&guest, Fault::Kills, at);
        let _ = ensure(&faulty, leaf(1), &placement());
        assert!(matches!(held(&guest), None | Some(1)), "{at}");
        ensure(&guest, leaf(3), &placement()).unwrap();
        assert_eq!(held(&guest), Some(3), "{at}");
        assert_tidy(&guest);
        if !faulty.struck() {
            break;
        }
    }
}

#[test]
fn what_reads_back_different_is_put_back() {
    for subject in [rootfs(), memory()] {
        ensure(&*subject.guest, leaf(0), &placement()).unwrap();
        let sloppy = Faulty { sloppy: true, ..Faulty::new(&*subject.guest, Fault::Fails, usize::MAX) };
        let error = ensure(&sloppy, leaf(1), &placement()).unwrap_err();
        let Error::RolledBack { source, rollback: None, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(&**source, Error::ReadBack { .. }) && source.to_string().contains("0660"), "{source}");
        assert_eq!(held(&*subject.guest), Some(0));
        assert_tidy(&*subject.guest);
    }
}

#[test]
fn files_by_hand_come_back_as_they_were() {
    let (guest, _) = picky("check");
    put_by_hand(&guest);
    let before = guest.observe(&[path(CERT), path(KEY)]).unwrap();
    ensure(&guest, leaf(1), &placement()).unwrap_err();
    let after = guest.observe(&[path(CERT), path(KEY)]).unwrap();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.file, after.file);
    }
    assert!(guest.observe(&[path("/etc/nginx/ssl/root.crt")]).unwrap()[0].file.is_none());
}

#[test]
fn the_way_back_leads_past_what_was_never_proven() {
    let (guest, _) = picky("reload");
    ensure(&guest, leaf(0), &placement()).unwrap();
    // Killed at each operation after the switch: leaf 2 is in place and nobody took it.
    for at in 0.. {
        let ended = ensure(&Faulty::new(&guest, Fault::Kills, at), leaf(2), &placement());
        if matches!(ended, Err(Error::RolledBack { rollback: None, .. })) {
            break;
        }
        let retried = ensure(&guest, leaf(1), &placement()).unwrap_err();
        assert!(matches!(retried, Error::RolledBack { rollback: None, .. }), "{at}: {retried:?}");
        assert_eq!(held(&guest), Some(0), "{at}");
    }
    // The same leaf again is refused again, and goes back to what was there before it.
    let mut at = 0;
    while held(&guest) != Some(2) {
        let _ = ensure(&Faulty::new(&guest, Fault::Kills, at), leaf(2), &placement());
        at += 1;
    }
    let error = ensure(&guest, leaf(2), &placement()).unwrap_err();
    assert!(matches!(error, Error::RolledBack { rollback: None, .. }), "{error:?}");
    assert_eq!(held(&guest), Some(0));
    assert_tidy(&guest);
}

#[test]
fn a_way_back_that_fails_is_told_and_finished_by_the_next_run() {
    let refuses = Arc::new(AtomicBool::new(false));
    let asked = refuses.clone();
    let guest = Memory::new("101").on_exec(move |command, _| Output {
        status: i32::from(command.argv == ["reload"] && asked.load(Ordering::SeqCst)),
        stdout: Vec::new(),
        stderr: b"no consumer".into(),
        truncated: false,
    });
    ensure(&guest, leaf(0), &placement()).unwrap();
    refuses.store(true, Ordering::SeqCst);
    let error = ensure(&guest, leaf(1), &placement()).unwrap_err();
    let Error::RolledBack { rollback: Some(_), .. } = &error else { panic!("{error:?}") };
    assert!(error.to_string().contains("which failed too") && error.to_string().contains("no consumer"), "{error}");
    assert_eq!(held(&guest), Some(0), "the files are back");
    refuses.store(false, Ordering::SeqCst);
    // The old leaf is in place, but nobody knows what the consumer holds.
    let done = ensure(&guest, leaf(0), &placement()).unwrap();
    assert_eq!(done.differences, [Difference::NotActivated]);
    assert!(!ensure(&guest, leaf(0), &placement()).unwrap().changed());
    assert_tidy(&guest);
}

#[test]
fn another_mode_or_owner_alone_is_a_difference() {
    let guest = Memory::new("101");
    ensure(&guest, leaf(0), &placement()).unwrap();
    let mut wanted = placement();
    wanted.key.mode = Mode::new(0o640).unwrap();
    let done = ensure(&guest, leaf(0), &wanted).unwrap();
    assert!(matches!(done.differences.as_slice(), [Difference::Mode { .. }]), "{:?}", done.differences);
    wanted.key.owner = "root:www-data".parse().unwrap();
    let done = ensure(&guest, leaf(0), &wanted).unwrap();
    assert!(matches!(done.differences.as_slice(), [Difference::Owner { .. }]), "{:?}", done.differences);
    let file = guest.observe(&[path(KEY)]).unwrap().remove(0).file.unwrap();
    assert_eq!((file.mode.bits(), file.user.0, file.group.0), (0o640, 0, 33));
    assert!(!ensure(&guest, leaf(0), &wanted).unwrap().changed());
    assert_eq!(guest.commands().len(), 6, "each change was taken");
}

#[test]
fn a_path_that_is_added_later_joins_the_others() {
    for subject in [rootfs(), memory()] {
        ensure(&*subject.guest, leaf(0), &placement()).unwrap();
        let wanted = Placement { chain: Some(Placed::certificate(path("/srv/ca/chain.pem"))), ..placement() };
        let done = ensure(&*subject.guest, leaf(0), &wanted).unwrap();
        assert!(matches!(done.differences.as_slice(), [Difference::Missing { .. }]), "{:?}", done.differences);
        assert!(!ensure(&*subject.guest, leaf(0), &wanted).unwrap().changed());
        let chain = subject.guest.get(&path("/srv/ca/chain.pem"), 1 << 20).unwrap().unwrap();
        assert_eq!(chain, leaf(0).chain()[1].pem().as_bytes());
    }
}

#[test]
fn a_path_that_is_placed_no_more_still_leads_to_a_file() {
    for subject in [rootfs(), memory()] {
        ensure(&*subject.guest, leaf(0), &placement()).unwrap();
        let less = Placement { root: None, ..placement() };
        for (next, changed) in [(1, true), (1, false), (0, true)] {
            assert_eq!(ensure(&*subject.guest, leaf(next), &less).unwrap().changed(), changed);
            let root = subject.guest.get(&path("/etc/nginx/ssl/root.crt"), 1 << 20).unwrap();
            assert_eq!(root.as_deref(), Some(leaf(next).root().pem().as_bytes()));
        }
        assert_tidy(&*subject.guest);
    }
}

#[test]
fn one_path_of_two_is_adopted() {
    for missing in [CERT, KEY] {
        for subject in [rootfs(), memory()] {
            put_by_hand(&*subject.guest);
            subject.guest.remove(&path(missing)).unwrap();
            ensure(&*subject.guest, leaf(1), &placement()).unwrap();
            assert_eq!(held(&*subject.guest), Some(1));
            assert_tidy(&*subject.guest);
        }
    }
}

#[test]
fn what_is_no_file_is_refused_before_anything_changes() {
    let in_the_way =
        [CERT, KEY, "/etc/nginx/ssl/.phoenix/nginx.crt/current", "/etc/nginx/ssl/.phoenix/nginx.crt/pending"];
    for at in in_the_way {
        let subject = rootfs();
        std::fs::create_dir_all(subject.host(at)).unwrap();
        let before = snapshot(subject.root.as_ref().unwrap().path());
        let error = ensure(&*subject.guest, leaf(0), &placement()).unwrap_err();
        let Error::File { path, source, .. } = &error else { panic!("{error:?}") };
        assert_eq!((path.as_str(), source.kind()), (at, ErrorKind::IsADirectory));
        assert_eq!(before, snapshot(subject.root.as_ref().unwrap().path()));
    }
    for target in ["/nowhere", "/etc", "\x1b[2J"] {
        let subject = rootfs();
        std::fs::create_dir_all(subject.host("/etc/nginx/ssl")).unwrap();
        std::os::unix::fs::symlink(target, subject.host(CERT)).unwrap();
        let before = snapshot(subject.root.as_ref().unwrap().path());
        let error = ensure(&*subject.guest, leaf(0), &placement()).unwrap_err();
        let Error::File { source, .. } = &error else { panic!("{error:?}") };
        assert!(source.to_string().contains("leads to no file") && !source.to_string().contains('\x1b'), "{source}");
        assert_eq!(before, snapshot(subject.root.as_ref().unwrap().path()));
    }
}

#[test]
fn a_fifo_in_the_place_of_a_file_stays() {
    for at in [CERT, KEY] {
        let subject = rootfs();
        std::fs::create_dir_all(subject.host(at).parent().unwrap()).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, subject.host(at), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        let before = snapshot(subject.root.as_ref().unwrap().path());
        let error = ensure(&*subject.guest, leaf(0), &placement()).unwrap_err();
        let Error::File { path, source, .. } = &error else { panic!("{error:?}") };
        assert_eq!((path.as_str(), source.kind()), (at, ErrorKind::InvalidInput));
        assert_eq!(before, snapshot(subject.root.as_ref().unwrap().path()));
    }
}

#[test]
fn each_file_has_a_path_of_its_own() {
    for key in [CERT, "/etc/nginx/ssl/.phoenix/nginx.crt/key.pem"] {
        let guest = Memory::new("101");
        let error = ensure(&guest, leaf(0), &Placement::new(path(CERT), path(key))).unwrap_err();
        assert!(matches!(error, Error::Value { what: "path", .. }), "{error:?}");
        assert_eq!(guest.writes(), 0);
    }
}

#[test]
fn links_hold_where_a_directory_is_itself_a_symlink() {
    for (links, key) in [
        // The key's directory, one above it, one through another, the certificate's.
        (vec![("/etc/nginx/private", "/srv/very/deep/private")], "/srv/very/deep/private/nginx.key"),
        (vec![("/etc/nginx/private", "../../srv/private")], "/srv/private/nginx.key"),
        (vec![("/etc/nginx", "/srv/nginx")], "/srv/nginx/private/nginx.key"),
        (vec![("/etc/nginx/private", "/a/b"), ("/a", "/srv/c")], "/srv/c/b/nginx.key"),
        (vec![("/etc/nginx/ssl", "/srv/a/b/c/ssl")], "/etc/nginx/private/nginx.key"),
    ] {
        let subject = rootfs();
        for (link, target) in &links {
            let above = path(link).parent();
            std::fs::create_dir_all(subject.host(above.as_str())).unwrap();
            std::os::unix::fs::symlink(target, subject.host(link)).unwrap();
        }
        std::fs::create_dir_all(subject.host(path(key).parent().as_str())).unwrap();
        for directory in ["/srv/a/b/c/ssl", "/srv/nginx/ssl"] {
            std::fs::create_dir_all(subject.host(directory)).unwrap();
        }
        for round in 0..2 {
            ensure(&*subject.guest, leaf(round), &placement()).unwrap();
            assert_eq!(held(&*subject.guest), Some(round), "{links:?}");
            assert!(!ensure(&*subject.guest, leaf(round), &placement()).unwrap().changed());
        }
        assert!(subject.guest.observe(&[path(key)]).unwrap()[0].link.is_some(), "{links:?}");
    }
    let subject = rootfs();
    std::fs::create_dir_all(subject.host("/etc/nginx")).unwrap();
    std::os::unix::fs::symlink("private", subject.host("/etc/nginx/private")).unwrap();
    ensure(&*subject.guest, leaf(0), &placement()).unwrap_err();
}

#[test]
fn a_state_that_was_tampered_with_leads_nowhere() {
    for name in ["current", "previous", "pending"] {
        for target in ["../../../../etc", "/etc", "..", "0123456789abcdef", "\x1b[2J", "no/such"] {
            for subject in [rootfs(), memory()] {
                let keep = File {
                    path: path("/etc/hostname"),
                    bytes: b"guest".into(),
                    mode: Mode::CERTIFICATE,
                    owner: Owner::ROOT,
                };
                subject.guest.put(&keep).unwrap();
                ensure(&*subject.guest, leaf(3), &placement()).unwrap();
                ensure(&*subject.guest, leaf(0), &placement()).unwrap();
                subject.guest.link(&path(STATE).join(name).unwrap(), target).unwrap();
                let ended = ensure(&*subject.guest, leaf(0), &placement());
                assert!(ended.is_ok(), "{name} -> {target}: {ended:?}");
                assert_eq!(held(&*subject.guest), Some(0), "{name} -> {target}");
                ensure(&*subject.guest, leaf(1), &placement()).unwrap();
                assert_eq!(held(&*subject.guest), Some(1), "{name} -> {target}");
                assert_eq!(subject.guest.get(&path("/etc/hostname"), 64).unwrap().unwrap(), b"guest");
                assert_tidy(&*subject.guest);
            }
        }
    }
}

#[test]
fn where_no_symlink_can_be_files_are_replaced() {
    for kind in [ErrorKind::Unsupported, ErrorKind::PermissionDenied] {
        for by_hand in [false, true] {
            for fault in [Fault::Kills, Fault::Fails, Fault::Lies] {
                for at in 0..100 {
                    let (guest, _) = picky("nothing");
                    if by_hand {
                        put_by_hand(&guest);
                    }
                    let plain = || Faulty { links: Some(kind), ..Faulty::new(&guest, Fault::Fails, usize::MAX) };
                    let faulty = Faulty { links: Some(kind), ..Faulty::new(&guest, fault, at) };
                    let ended = ensure(&faulty, leaf(1), &placement());
                    if fault != Fault::Kills {
                        // Only a kill may leave a mixture.
                        held(&guest);
                    }
                    ensure(&plain(), leaf(1), &placement()).unwrap();
                    assert_eq!(held(&guest), Some(1));
                    assert!(!ensure(&plain(), leaf(1), &placement()).unwrap().changed());
                    assert_eq!(guest.list(&path(STATE)).unwrap(), [""; 0]);
                    if !faulty.struck() {
                        assert!(ended.is_ok(), "{ended:?}");
                        assert!(at > 6);
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_mixture_of_files_is_repaired_from_the_backup() {
    for by_hand in [false, true] {
        for at in 0..100 {
            let (guest, _) = picky("check");
            if by_hand {
                put_by_hand(&guest);
            }
            let old = held(&guest);
            let no_links = Some(ErrorKind::Unsupported);
            let faulty = Faulty { links: no_links, ..Faulty::new(&guest, Fault::Kills, at) };
            let _ = ensure(&faulty, leaf(1), &placement());
            // The consumer refuses leaf 2 as well: what comes back is what was there before both.
            let again = Faulty { links: no_links, ..Faulty::new(&guest, Fault::Fails, usize::MAX) };
            let error = ensure(&again, leaf(2), &placement()).unwrap_err();
            assert!(matches!(error, Error::RolledBack { rollback: None, .. }), "{at}: {error:?}");
            assert_eq!(held(&guest), old, "{at}");
            if !faulty.struck() {
                break;
            }
        }
    }
}

#[test]
fn symlinks_that_fail_in_one_directory_alone() {
    /// A file system without symlinks is mounted where the key goes.
    struct NoLinksBelow<'a>(Faulty<'a>, &'static str);

    impl Transport for NoLinksBelow<'_> {
        fn guest(&self) -> &str {
            self.0.guest()
        }
        fn exec(&self, command: &Command) -> Result<Output, Error> {
            self.0.exec(command)
        }
        fn put(&self, file: &File) -> Result<(), Error> {
            self.0.put(file)
        }
        fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>, Error> {
            self.0.get(path, limit)
        }
        fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>, Error> {
            self.0.observe(paths)
        }
        fn link(&self, path: &GuestPath, target: &str) -> Result<(), Error> {
            if path.as_str().starts_with(self.1) {
                let source = ErrorKind::PermissionDenied.into();
                return Err(Error::File { guest: "101".into(), attempted: "link", path: path.to_string(), source });
            }
            self.0.link(path, target)
        }
        fn remove(&self, path: &GuestPath) -> Result<(), Error> {
            self.0.remove(path)
        }
        fn list(&self, path: &GuestPath) -> Result<Vec<String>, Error> {
            self.0.list(path)
        }
        fn runs_programs(&self) -> bool {
            self.0.runs_programs()
        }
        fn sets_owners(&self) -> bool {
            self.0.sets_owners()
        }
    }

    for by_hand in [false, true] {
        for at in 0..100 {
            let guest = Memory::new("101");
            if by_hand {
                put_by_hand(&guest);
            }
            let broken = NoLinksBelow(Faulty::new(&guest, Fault::Kills, at), "/etc/nginx/private");
            let _ = ensure(&broken, leaf(1), &placement());
            let whole = NoLinksBelow(Faulty::new(&guest, Fault::Fails, usize::MAX), "/etc/nginx/private");
            for round in [1, 2] {
                ensure(&whole, leaf(round), &placement()).unwrap();
                assert_eq!(held(&guest), Some(round));
                assert!(!ensure(&whole, leaf(round), &placement()).unwrap().changed());
                assert_eq!(guest.list(&path(STATE)).unwrap(), [""; 0]);
            }
            if !broken.0.struck() {
                break;
            }
        }
    }
}

/// What is promised to a reader: one that opens `current` once and both files from there always reads a pair. One that
/// opens the two public paths may meet the one rename in between, and only then a mixture.
#[test]
fn a_reader_meets_whole_pairs_during_fifty_swaps() {
    let subject = rootfs();
    put_by_hand(&*subject.guest);
    ensure(&*subject.guest, leaf(0), &placement()).unwrap();
    let done = AtomicBool::new(false);
    let state = subject.host(STATE);
    let (cert, key) = (subject.host(CERT), subject.host(KEY));
    let belongs = |cert: &[u8], key: &[u8]| {
        PKI.1.iter().any(|leaf| cert == leaf.chain_pem().as_bytes() && key == leaf.key().to_pem().as_bytes())
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::SeqCst) {
                let current = std::fs::read_link(state.join("current")).unwrap();
                let generation = state.join(&current);
                // Gone only when two swaps came in between: the previous generation stays.
                if let (Ok(cert), Ok(key)) =
                    (std::fs::read(generation.join("cert.pem")), std::fs::read(generation.join("key.pem")))
                {
                    assert!(belongs(&cert, &key), "one generation holds one pair");
                }
                let before = std::fs::read_link(state.join("current")).unwrap();
                let both = (std::fs::read(&cert).unwrap(), std::fs::read(&key).unwrap());
                let after = std::fs::read_link(state.join("current")).unwrap();
                assert!(before != after || belongs(&both.0, &both.1), "a mixture without a swap");
                reads += 1;
            }
            reads
        });
        for round in 0..50 {
            ensure(&*subject.guest, leaf((round + 1) % 4), &placement()).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        assert!(reader.join().unwrap() > 50);
    });
}

/// Not a test by itself: the process that the next one starts under strace.
#[test]
fn mortal() {
    let Ok(directory) = std::env::var("PHOENIX_MORTAL") else { return };
    let (store, root) = directory.split_once(' ').unwrap();
    let authority = Authority::open(&Store::new(store)).unwrap();
    let leaf = authority.leaf("www.internal.example").unwrap().unwrap();
    let guest = Rootfs::new("101", root).unwrap();
    ensure_pair(&guest, &leaf, &placement(), &[authority.root().der().clone()], now()).unwrap();
}

#[test]
fn a_kill_at_each_system_call_leaves_a_pair() {
    const NAME: &str = "a_kill_at_each_system_call_leaves_a_pair";
    if !has(NAME, &["strace"]) {
        return;
    }
    if !Process::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success()) {
        return skip(NAME, "strace may not trace here");
    }
    let store = tempfile::tempdir().unwrap();
    let authority = authority(store.path());
    let new = server(&authority);
    let is = |guest: &dyn Transport, leaf: &Leaf| {
        let (cert, key) = (leaf.chain_pem().into_bytes(), leaf.key().to_pem().as_bytes().to_vec());
        pair(guest) == (Some(cert), Some(key))
    };
    let again = |guest: &dyn Transport| {
        ensure_pair(guest, &new, &placement(), &[authority.root().der().clone()], now()).unwrap()
    };
    let mut kills = 0;
    for call in ["mkdirat", "fchmod", "write", "fsync", "symlinkat", "renameat", "renameat2", "unlinkat"] {
        for at in 1.. {
            assert!(at < 100, "no run has so many calls of {call}");
            let subject = rootfs();
            put_by_hand(&*subject.guest);
            let root = subject.host("/");
            let child = Process::new("strace")
                .args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}")])
                .args(["-e", &format!("inject={call}:signal=KILL:when={at}")])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "mortal"])
                .env("PHOENIX_MORTAL", format!("{} {}", store.path().display(), root.display()))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            let guest = &*subject.guest;
            assert!(is(guest, leaf(0)) || is(guest, &new), "{call} {at}");
            again(guest);
            assert!(is(guest, &new), "{call} {at}");
            assert!(!again(guest).changed(), "{call} {at}");
            assert_tidy(guest);
            if child.success() {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 50, "killed {kills} times");
}
