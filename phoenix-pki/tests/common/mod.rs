//! What the integration tests share: a small authority, skipping with a record, looking at files as they lie.
#![allow(dead_code, reason = "no test uses all of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use phoenix_pki::{Authority, AuthorityParams, Certificate, LeafParams, Permitted, PrivateKey, RootKey, Store};
use time::OffsetDateTime;
use time::macros::datetime;

pub(crate) const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

/// A root and an intermediate for `internal.example` and the private networks, the root key in the clear.
pub(crate) fn params() -> AuthorityParams {
    let permitted = Permitted::parse(["internal.example", "10.0.0.0/8", "fd00::/8"]).unwrap();
    AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new("Example Internal", permitted) }
}

/// A temporary directory in memory where the system has such: what is tested is not the disk's speed.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A directory with a store and its authority in it.
pub(crate) fn authority() -> (tempfile::TempDir, Authority) {
    let directory = scratch();
    let authority = Authority::create(&Store::new(directory.path().join("store")), &params(), NOW).unwrap();
    (directory, authority)
}

pub(crate) fn server(name: &str) -> LeafParams {
    LeafParams::server([name]).unwrap()
}

/// Leaves a record that a test could not run, and why.
pub(crate) fn skip(test: &str, missing: &str) {
    println!("SKIPPED {test}: {missing}");
    if let Some(path) = std::env::var_os("PHOENIX_SKIPPED") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{test}: {missing}\n").as_bytes()).unwrap();
    }
}

/// Whether this program is on the search path; leaves a record for the test when it is not.
pub(crate) fn has(test: &str, program: &str) -> bool {
    let found = program.contains('/') && Path::new(program).exists()
        || std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|place| place.join(program).exists()));
    if !found {
        skip(test, program);
    }
    found
}

/// Whether system calls can be watched; leaves a record for the test when they cannot.
pub(crate) fn can_trace(test: &str) -> bool {
    if !has(test, "strace") {
        return false;
    }
    let works =
        Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).status().is_ok_and(|done| done.success());
    if !works {
        skip(test, "the permission to trace processes");
    }
    works
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The Python that has `cryptography` and `pkilint`.
pub(crate) fn python() -> String {
    std::env::var("PHOENIX_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Whether that Python can import this module; leaves a record for the test when it cannot.
pub(crate) fn has_module(test: &str, module: &str) -> bool {
    let found = Command::new(python())
        .args(["-c", &format!("import {module}")])
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        skip(test, &format!("the Python module {module}"));
    }
    found
}

/// What a program printed, standard output before standard error.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What tells that a file was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Touched {
    inode: u64,
    pub(crate) mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
    length: u64,
}

/// Every file, directory and link below a path, itself included.
pub(crate) fn tree(path: &Path) -> BTreeMap<PathBuf, Touched> {
    fn walk(path: &Path, found: &mut BTreeMap<PathBuf, Touched>) {
        let Ok(metadata) = path.symlink_metadata() else { return };
        let touched = Touched {
            inode: metadata.ino(),
            mode: metadata.mode() & 0o7777,
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
        };
        found.insert(path.into(), touched);
        if metadata.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                walk(&entry.unwrap().path(), found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(path, &mut found);
    found
}

/// The names in a directory, sorted; none when it is not there.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What must hold of a store at any moment: keys closed, the authority whole or absent, every published pair a pair.
pub(crate) fn assert_sound(store: &Store, when: &str) {
    for (path, touched) in tree(store.path()) {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            assert_eq!(touched.mode, 0o700, "{when}: {}", path.display());
        } else if metadata.is_file() {
            assert_eq!(touched.mode, 0o600, "{when}: {}", path.display());
        }
    }
    if store.path().join("authority").exists() {
        let authority = Authority::open(store).unwrap_or_else(|error| panic!("{when}: {error}"));
        let generation = store.path().join("authority/current");
        let key = fs::read(generation.join("intermediate.key")).unwrap();
        let key = PrivateKey::from_pem(&key, None, "intermediate.key").unwrap();
        assert_eq!(key.public_key(), authority.intermediate().public_key(), "{when}");
        assert!(generation.join("root.key").exists(), "{when}");
    }
    for label in names(&store.path().join("certificates")) {
        for link in ["current", "previous"] {
            let generation = store.path().join("certificates").join(&label).join(link);
            if generation.symlink_metadata().is_ok() {
                assert_pair(&generation, when);
            }
        }
    }
}

/// The certificate and key of a generation belong together.
pub(crate) fn assert_pair(generation: &Path, when: &str) {
    let read = |name: &str| {
        fs::read(generation.join(name))
            .unwrap_or_else(|error| panic!("{when}: {}/{name}: {error}", generation.display()))
    };
    let chain = Certificate::all_from_pem(&read("cert.pem"), "cert.pem")
        .unwrap_or_else(|error| panic!("{when}: {}: {error}", generation.display()));
    let key = PrivateKey::from_pem(&read("key.pem"), None, "key.pem")
        .unwrap_or_else(|error| panic!("{when}: {}: {error}", generation.display()));
    assert_eq!(chain[0].public_key(), key.public_key(), "{when}: {}", generation.display());
}

/// Nothing lies in the store that no link leads to, and no temporary name.
pub(crate) fn assert_tidy(store: &Store, when: &str) {
    let allowed = ["authority", "certificates", "ledger.jsonl", "lock"];
    for name in names(store.path()) {
        assert!(allowed.contains(&name.as_str()), "{when}: {name} was left in the store");
    }
    let allowed = ["intermediate.crl", "intermediate.crt", "intermediate.key", "root.crl", "root.crt", "root.key"];
    for name in names(&store.path().join("authority/current")) {
        assert!(allowed.contains(&name.as_str()), "{when}: {name} was left in the authority");
    }
    for label in names(&store.path().join("certificates")) {
        let directory = store.path().join("certificates").join(label);
        let kept: Vec<PathBuf> =
            ["current", "previous"].iter().filter_map(|link| fs::read_link(directory.join(link)).ok()).collect();
        for name in names(&directory) {
            let known = ["current", "previous"].contains(&name.as_str()) || kept.iter().any(|kept| *kept == *name);
            assert!(known, "{when}: {} was left", directory.join(name).display());
        }
        for generation in kept {
            assert_eq!(names(&directory.join(generation)), ["cert.pem", "key.pem"], "{when}");
        }
    }
}

/// The name of the environment variable that makes a test binary do one thing in a process of its own.
pub(crate) const ACTION: &str = "PHOENIX_TEST_ACTION";

/// This test binary, to run its test `act_when_asked` in a process of its own with this action and these arguments.
pub(crate) fn act(action: &str, arguments: &[&Path]) -> Command {
    act_by(&std::env::current_exe().unwrap(), action, arguments)
}

/// As [`act`], by a copy of the test binary.
pub(crate) fn act_by(binary: &Path, action: &str, arguments: &[&Path]) -> Command {
    let mut command = Command::new(binary);
    command.args(["--exact", "act_when_asked", "--nocapture"]).env(ACTION, action);
    for (at, argument) in arguments.iter().enumerate() {
        command.env(format!("{ACTION}_{at}"), argument);
    }
    command
}

/// The same command under a shell that sets the umask first.
pub(crate) fn with_umask(command: &Command, umask: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask \"$0\"; exec \"$@\"", umask]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// The action that this process was started for, if it was.
pub(crate) fn action() -> Option<String> {
    std::env::var(ACTION).ok()
}

/// An argument of that action.
pub(crate) fn argument(at: usize) -> PathBuf {
    std::env::var_os(format!("{ACTION}_{at}")).unwrap().into()
}
