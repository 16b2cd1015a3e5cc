//! The store on disk: modes, generations, locks, odd places.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{
    NOW, act, act_by, action, argument, assert_sound, assert_tidy, authority, can_trace, is_root, names, params, said,
    scratch, server, tree, with_umask,
};
use phoenix_pki::{Authority, AuthorityParams, Error, LeafParams, Passphrase, PrivateKey, RootKey, Store};

const LABEL: &str = "www.internal.example";

/// Not a test by itself: what other tests run in a process of its own.
#[test]
fn act_when_asked() {
    let Some(action) = action() else { return };
    let store = Store::new(argument(0));
    let generated = AuthorityParams { root_key: RootKey::Generated, ..params() };
    let done = match action.as_str() {
        "create" => Authority::create(&store, &generated, NOW)
            .and_then(|authority| authority.issue(&server(LABEL), NOW))
            .map(drop),
        // Everybody at once, from nothing.
        "ensure" => Authority::open_or_create(&store, &params(), NOW)
            .and_then(|authority| authority.ensure_all(&ten(), NOW))
            .map(|ensured| assert_eq!(ensured.len(), 10)),
        "issue five" => Authority::open(&store)
            .and_then(|authority| (0..5).try_for_each(|_| authority.issue(&server(LABEL), NOW).map(drop))),
        "read" => Authority::open(&store).and_then(|authority| authority.leaf(LABEL)).map(|leaf| drop(leaf.unwrap())),
        "hold" => {
            let file = fs::File::options().write(true).open(store.path().join("lock")).unwrap();
            file.lock().unwrap();
            println!("held");
            std::io::stdout().flush().unwrap();
            // Until the other end is closed, or this process is killed.
            let _ = std::io::stdin().read_line(&mut String::new());
            Ok(())
        }
        other => panic!("no action {other}"),
    };
    if let Err(error) = done {
        println!("ERROR {error}");
        std::process::exit(1);
    }
}

fn ten() -> Vec<LeafParams> {
    (0..10).map(|n| server(&format!("host-{n}.internal.example"))).collect()
}

fn serials(store: &Store) -> Vec<String> {
    store.ledger().unwrap().issued().iter().map(|issued| issued.serial.to_string()).collect()
}

fn assert_unique(serials: &[String]) {
    assert_eq!(serials.iter().collect::<HashSet<_>>().len(), serials.len(), "{serials:?}");
}

#[test]
fn whatever_the_umask_is_keys_are_closed() {
    for umask in ["000", "022", "077"] {
        let directory = scratch();
        let store = Store::new(directory.path().join("a/b/store"));
        let output = with_umask(&act("create", &[store.path()]), umask).output().unwrap();
        assert!(output.status.success(), "{umask}: {}", said(&output));
        assert_sound(&store, umask);
        assert_tidy(&store, umask);
        let passphrase = store.passphrase_path();
        assert_eq!(fs::metadata(&passphrase).unwrap().permissions().mode() & 0o7777, 0o600, "{umask}");
        assert_eq!(passphrase.parent(), store.path().parent());
        // Who can rename the store can replace it.
        for parent in ["a", "a/b"] {
            let mode = fs::metadata(directory.path().join(parent)).unwrap().permissions().mode();
            assert_eq!(mode & 0o022, 0, "{umask}: {parent} has mode {mode:o}");
        }
    }
}

#[test]
fn keys_are_made_closed_and_exclusively_and_never_changed_later() {
    if !can_trace("keys_are_made_closed_and_exclusively_and_never_changed_later") {
        return;
    }
    let directory = scratch();
    let store = Store::new(directory.path().join("store"));
    let trace = directory.path().join("trace");
    let itself = act("create", &[store.path()]);
    let mut command = std::process::Command::new("strace");
    command.args([
        "-f",
        "-qq",
        "-y",
        "-e",
        "trace=openat,open,creat,chmod,fchmod,fchmodat,chown,fchown,fchownat,link,linkat",
    ]);
    command.arg("-o").arg(&trace).arg(itself.get_program()).args(itself.get_args());
    command.envs(itself.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let trace = fs::read_to_string(trace).unwrap();
    let ours: Vec<&str> = trace.lines().filter(|line| line.contains(store.path().to_str().unwrap())).collect();
    let mut made = Vec::new();
    for line in &ours {
        assert!(line.contains(" openat("), "{line}");
        if line.contains("O_CREAT") {
            assert!(line.contains(", 0600)"), "{line}");
        }
        if line.contains("O_CREAT") && !line.contains("/lock\"") && !line.contains("/ledger.jsonl\"") {
            assert!(line.contains("O_EXCL"), "{line}");
            made.push(*line);
        }
        assert!(line.contains("O_CLOEXEC"), "{line}");
        assert!(!line.contains("O_TRUNC"), "{line}");
    }
    for file in ["store.passphrase.new", "root.key", "intermediate.key", "key.pem"] {
        assert_eq!(
            made.iter()
                .filter(|line| line.contains(&format!("/{file}\"")) || line.contains(&format!("/{file}>")))
                .count(),
            1,
            "{file}"
        );
    }
}

#[test]
fn the_previous_generation_is_kept_and_older_ones_are_not() {
    let (_directory, authority) = authority();
    let store = authority.store();
    let pair = store.path().join("certificates").join(LABEL);
    let mut issued = Vec::new();
    for count in 1..=4 {
        issued.push(authority.issue(&server(LABEL), NOW).unwrap().certificate().serial_number().to_string());
        let kept: HashSet<&str> = issued.iter().rev().take(2).map(String::as_str).collect();
        let found: Vec<String> = names(&pair);
        let found: HashSet<&str> = found.iter().map(String::as_str).filter(|name| name.len() == 32).collect();
        assert_eq!(found, kept, "after {count}");
        assert_eq!(fs::read_link(pair.join("current")).unwrap(), Path::new(issued.last().unwrap()));
        assert_eq!(fs::read_link(pair.join("previous")).is_ok(), count > 1);
        assert_sound(store, "after an issue");
    }
    let ledger = store.ledger().unwrap();
    for (old, new) in issued.iter().zip(&issued[1..]) {
        assert_eq!(ledger.replaced_by(&old.parse().unwrap()).unwrap().to_string(), *new);
    }
}

#[test]
fn what_a_killed_run_left_is_taken_away_by_the_next_change() {
    let (_directory, authority) = authority();
    let store = authority.store();
    authority.ensure(&server(LABEL), NOW).unwrap();
    authority.ensure(&server("other.internal.example"), NOW).unwrap();
    let leave = |label: &str| {
        let pair = store.path().join("certificates").join(label);
        fs::create_dir_all(pair.join("00ff")).unwrap();
        fs::write(pair.join("00ff/key.pem"), "half").unwrap();
        symlink("00ff", pair.join("current.0a0b0c0d")).unwrap();
    };
    leave(LABEL);
    authority.issue(&server(LABEL), NOW).unwrap();
    assert_tidy(store, "left where the change is");
    // A run that was killed while publishing says so in the lock file.
    leave("other.internal.example");
    leave("never-published.internal.example");
    fs::write(store.path().join("lock"), "\0").unwrap();
    authority.issue(&server(LABEL), NOW).unwrap();
    assert_tidy(store, "left elsewhere");
    assert_eq!(fs::metadata(store.path().join("lock")).unwrap().len(), 0);

    let directory = scratch();
    let store = Store::new(directory.path().join("store"));
    fs::create_dir_all(store.path().join("authority.new/0001")).unwrap();
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(store.path().join("authority.new/0001/root.key"), "half").unwrap();
    fs::write(directory.path().join("store.passphrase.new"), "half").unwrap();
    Authority::create(&store, &AuthorityParams { root_key: RootKey::Generated, ..params() }, NOW).unwrap();
    assert_tidy(&store, "left by a creation");
    assert_eq!(names(directory.path()), ["store", "store.passphrase"]);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let (_directory, authority) = authority();
    let store = authority.store();
    authority.ensure(&server(LABEL), NOW).unwrap();
    let certificates = store.path().join("certificates").join(LABEL);
    for path in [store.path().join("authority/current/intermediate.key"), certificates.join("current/key.pem")] {
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = authority
                .ensure(&server(LABEL), NOW)
                .and_then(|_| authority.ensure(&server("other.internal.example"), NOW))
                .unwrap_err();
            assert!(matches!(error, Error::OpenKey { mode: found, .. } if found == mode), "{mode:o}: {error}");
            assert!(error.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert!(!authority.ensure(&server(LABEL), NOW).unwrap().changed());
    // Read by its owner alone is closed too.
    let path = store.path().join("authority/current/intermediate.key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    authority.issue(&server(LABEL), NOW).unwrap();
}

#[test]
fn a_run_with_nothing_to_do_touches_no_file() {
    let (directory, authority) = authority();
    authority.ensure_all(&ten(), NOW).unwrap();
    let before = tree(directory.path());
    assert!(before.len() > 60);
    let again = Authority::open_or_create(authority.store(), &params(), NOW).unwrap();
    assert!(again.ensure_all(&ten(), NOW).unwrap().iter().all(|ensured| !ensured.changed()));
    again.plan(&ten(), NOW).unwrap();
    again.leaf("host-1.internal.example").unwrap().unwrap();
    assert_eq!(tree(directory.path()), before);
}

#[test]
fn an_authority_is_never_overwritten() {
    let (directory, authority) = authority();
    let before = tree(&authority.store().path().join("authority"));
    let error = Authority::create(authority.store(), &params(), NOW).unwrap_err();
    assert!(matches!(error, Error::AuthorityExists { .. }), "{error}");
    assert_eq!(tree(&authority.store().path().join("authority")), before);

    // Not even one that lost its link.
    let directory = directory.path();
    fs::remove_file(authority.store().path().join("authority/current")).unwrap();
    let before = fs::read(authority.store().path().join("authority/0001/root.key")).unwrap();
    let error = Authority::open_or_create(authority.store(), &params(), NOW).unwrap_err();
    assert!(matches!(error, Error::WriteFile { .. } | Error::AuthorityExists { .. }), "{error}");
    assert!(error.to_string().contains(directory.to_str().unwrap()), "{error}");
    assert_eq!(fs::read(authority.store().path().join("authority/0001/root.key")).unwrap(), before);
}

#[test]
fn many_processes_at_once_make_one_authority_and_each_leaf_once() {
    let directory = scratch();
    let store = Store::new(directory.path().join("store"));
    let mut children: Vec<Child> = (0..8)
        .map(|_| act("ensure", &[store.path()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in children.drain(..) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    let serials = serials(&store);
    assert_eq!(serials.len(), 2 + 10, "an authority or a leaf was made twice");
    assert_unique(&serials);
    assert_sound(&store, "after all");
    assert_tidy(&store, "after all");
}

#[test]
fn who_reads_while_others_issue_sees_whole_pairs() {
    let (_directory, authority) = authority();
    let store = authority.store();
    authority.issue(&server(LABEL), NOW).unwrap();
    let (mut seen, mut rounds) = (HashSet::new(), 0);
    // On a busy machine the others may be done before the first read.
    while seen.len() < 2 && rounds < 20 {
        rounds += 1;
        let mut children: Vec<Child> = (0..4)
            .map(|_| act("issue five", &[store.path()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
            let leaf = authority.leaf(LABEL).unwrap().unwrap();
            assert_eq!(leaf.certificate().public_key(), leaf.key().public_key());
            seen.insert(leaf.certificate().serial_number().clone());
        }
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
        }
    }
    let serials = serials(store);
    assert_eq!(serials.len(), 2 + 1 + rounds * 4 * 5);
    assert_unique(&serials);
    assert!(seen.len() > 1, "the reading and the issuing did not overlap");
    assert_sound(store, "after all");
    assert_tidy(store, "after all");
}

#[test]
fn who_reads_slowly_is_not_left_with_a_generation_that_is_gone() {
    if !can_trace("who_reads_slowly_is_not_left_with_a_generation_that_is_gone") {
        return;
    }
    let (_directory, authority) = authority();
    let store = authority.store();
    authority.issue(&server(LABEL), NOW).unwrap();
    // It waits for a second behind every link that it reads: the authority's and the leaf's.
    let itself = act("read", &[store.path()]);
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=readlink,readlinkat"]);
    command.args(["-e", "inject=readlink,readlinkat:delay_exit=1000000"]);
    command.arg(itself.get_program()).args(itself.get_args());
    command.envs(itself.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut reader = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = std::time::Instant::now();
    while reader.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_millis(2_500) {
        authority.issue(&server(LABEL), NOW).unwrap();
    }
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_lock_that_is_held_elsewhere_is_an_error_and_dies_with_its_holder() {
    let (_directory, authority) = authority();
    let path = authority.store().path().to_path_buf();
    let mut holder =
        act("hold", &[&path]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("held")));

    let impatient = Authority::open(&Store::new(&path).patience(Duration::from_millis(50))).unwrap();
    let error = impatient.issue(&server(LABEL), NOW).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert!(error.to_string().contains("lock"), "{error}");
    assert!(!path.join("certificates").exists());
    // Reading and planning wait for nobody.
    impatient.plan(&[server(LABEL)], NOW).unwrap();

    holder.kill().unwrap();
    holder.wait().unwrap();
    impatient.issue(&server(LABEL), NOW).unwrap();
}

#[test]
fn a_store_can_be_named_in_many_ways() {
    let directory = scratch();
    let place = directory.path();
    fs::create_dir(place.join("real")).unwrap();
    fs::set_permissions(place.join("real"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("real", place.join("link")).unwrap();
    for (name, path) in [("slash", "slash/"), ("dot", "dot/."), ("deep", "no/such/parent/deep"), ("link", "link")] {
        let store = Store::new(place.join(path));
        let generated = AuthorityParams { root_key: RootKey::Generated, ..params() };
        Authority::create(&store, &generated, NOW).unwrap();
        assert!(store.path().join("authority/current/root.crt").exists(), "{name}");
        assert!(!store.passphrase_path().starts_with(store.path()), "{name}: the passphrase lies in the store");
        let passphrase = fs::read_to_string(store.path().with_file_name(format!("{name}.passphrase"))).unwrap();
        let key = fs::read(store.path().join("authority/current/root.key")).unwrap();
        PrivateKey::from_pem(&key, Some(&Passphrase::new(passphrase.trim())), name).unwrap();
    }
    let output = act("create", &[Path::new("relative")]).current_dir(place).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_sound(&Store::new(place.join("relative")), "relative");
    assert!(place.join("relative.passphrase").exists());
    // The directory that a program is in, where the name is not even written.
    fs::create_dir(place.join("here")).unwrap();
    let output = act("create", &[Path::new(".")]).current_dir(place.join("here")).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(place.join("here.passphrase").exists() && !place.join("here/..passphrase").exists());
}

#[test]
fn a_store_that_can_not_be_is_refused_by_name() {
    let directory = scratch();
    let place = directory.path();
    fs::write(place.join("file"), "mine").unwrap();
    symlink("nowhere", place.join("dangling")).unwrap();
    for path in ["file", "dangling", "file/below"] {
        let error = Authority::open_or_create(&Store::new(place.join(path)), &params(), NOW).unwrap_err();
        assert!(matches!(error, Error::WriteFile { .. } | Error::ReadFile { .. }), "{path}: {error}");
        assert!(error.to_string().contains(path.split('/').next().unwrap()), "{path}: {error}");
    }
    assert_eq!(fs::read(place.join("file")).unwrap(), b"mine");
    assert!(!place.join("nowhere").exists());
    assert!(matches!(Authority::open(&Store::new(place.join("none"))), Err(Error::AuthorityMissing { .. })));
    assert!(!place.join("none").exists(), "opening makes nothing");
}

#[test]
fn a_directory_that_can_not_be_written_is_an_error_that_names_it() {
    // On a disk, for what lies in memory may not be executable.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    // Where the binary lies, somebody else may not come.
    let binary = directory.path().join("binary");
    // By a process of its own: a child that another test starts meanwhile would hold the copy open, and so busy.
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&binary).status().unwrap();
    assert!(copied.success());
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = act_by(&binary, "create", &[&closed.join("store")]);
    command.current_dir(directory.path());
    if is_root() {
        // Root may write anywhere, so it runs as nobody.
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("ERROR cannot create") && text.contains("closed/store"), "{text}");
    assert_eq!(names(&closed), Vec::<String>::new());
}

#[test]
fn a_sealed_root_key_leaves_once_and_a_killed_seal_is_finished() {
    let (directory, authority) = authority();
    let key = authority.store().path().join("authority/current/root.key");
    let away = directory.path().join("root.key");

    fs::write(&away, "something of somebody else").unwrap();
    fs::set_permissions(&away, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(authority.seal(&away), Err(Error::WriteFile { .. })));
    assert_eq!(fs::read_to_string(&away).unwrap(), "something of somebody else");
    assert!(key.exists(), "the key stays until it is elsewhere");

    // Killed after the copy: both are there.
    let bytes = fs::read(&key).unwrap();
    fs::write(&away, &bytes).unwrap();
    authority.seal(&away).unwrap();
    assert!(!key.exists());
    assert_eq!(fs::read(&away).unwrap(), bytes);
    assert!(matches!(authority.seal(&away), Err(Error::Sealed { .. })));
    assert!(authority.ensure(&server(LABEL), NOW).unwrap().changed(), "the intermediate works on");
}

#[test]
fn sealing_touches_nothing_that_is_not_its_own() {
    let (directory, authority) = authority();
    let (taken, away) = (directory.path().join("taken"), directory.path().join("away.key"));
    fs::write(&taken, "mine").unwrap();
    // However closed or open it is, what is there stays.
    for mode in [0o644, 0o600] {
        fs::set_permissions(&taken, fs::Permissions::from_mode(mode)).unwrap();
        let refused = authority.seal(&taken).unwrap_err();
        assert!(matches!(refused, Error::WriteFile { attempted: "create", .. }), "{refused}");
        assert_eq!(fs::read_to_string(&taken).unwrap(), "mine");
    }
    let neighbour = directory.path().join("away.key.new");
    fs::create_dir(&neighbour).unwrap();
    fs::write(neighbour.join("file"), "mine").unwrap();
    authority.seal(&away).unwrap();
    assert_eq!(fs::read_to_string(neighbour.join("file")).unwrap(), "mine");
}
