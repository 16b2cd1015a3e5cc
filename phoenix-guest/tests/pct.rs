//! What is particular to containers reached through `pct`: their states, their users, and guests that lie.

mod common;
#[path = "common/lxc.rs"]
mod lxc;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use lxc::{ABSENT, BARE, BUSYBOX, Lxc, PRIVILEGED, SHIFT, STOPPED, UNPRIVILEGED, lxc};
use phoenix_guest::inventory::{GuestEntry, GuestId, Inventory};
use phoenix_guest::{
    Command, ContainerState, Error, File, GuestPath, Mode, OUTPUT_LIMIT, Options, Owner, Pct, Reached, Result, State,
    Transport, converge, reach,
};

fn file(path: &str, bytes: impl AsRef<[u8]>) -> File {
    File { path: path.parse().unwrap(), bytes: bytes.as_ref().into(), mode: Mode::KEY, owner: Owner::ROOT }
}

fn cause<T: std::fmt::Debug>(result: Result<T>) -> std::io::Error {
    match result {
        Err(Error::File { source, .. }) => source,
        other => panic!("{other:?} is no failure of a file"),
    }
}

fn sh(guest: &Pct, script: &str) -> String {
    let output = guest.exec(&Command::new(["sh", "-c", script])).unwrap();
    assert_eq!(output.status, 0, "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn on_host(lxc: &Lxc, vmid: u32, path: &str) -> std::path::PathBuf {
    lxc.root(vmid).join(path.trim_start_matches('/'))
}

#[test]
fn a_container_runs_is_stopped_or_is_not_there() {
    let Some(lxc) = lxc() else { return };
    for (vmid, state) in [
        (PRIVILEGED, ContainerState::Running),
        (UNPRIVILEGED, ContainerState::Running),
        (STOPPED, ContainerState::Stopped),
        (ABSENT, ContainerState::Absent),
    ] {
        assert_eq!(lxc.pct(vmid).state().unwrap(), state);
        match (Reached::container(lxc.pct(vmid)).unwrap(), state) {
            (Reached::Ready(guest), ContainerState::Running) => assert_eq!(guest.guest(), vmid.to_string()),
            (Reached::Absent { why }, ContainerState::Stopped) => assert_eq!(why, "stopped"),
            (Reached::Absent { why }, ContainerState::Absent) => assert!(why.contains("no such container")),
            _ => panic!("{vmid}"),
        }
    }
    // What stops between the question and the command.
    for (vmid, kind) in [(STOPPED, ErrorKind::NotConnected), (ABSENT, ErrorKind::NotFound)] {
        assert_eq!(cause(lxc.pct(vmid).exec(&Command::new(["true"]))).kind(), kind);
        assert_eq!(cause(lxc.pct(vmid).put(&file("/file", "bytes"))).kind(), kind);
    }
}

#[test]
fn a_state_of_no_known_form_is_an_error() {
    let Some(lxc) = lxc() else { return };
    for (name, first) in [
        ("silent", "exit 0"),
        ("odd", "echo status: running with joy; exit 0"),
        ("two", "echo status: running; echo status: stopped; exit 0"),
        ("failed", "echo status: running; exit 255"),
        ("perl", "echo 'unable to open /etc/pve: Transport endpoint is not connected' >&2; exit 2"),
        ("other", "echo \"Configuration file 'nodes/pve/lxc/1011.conf' does not exist\" >&2; exit 2"),
    ] {
        let guest = lxc.pct_with(PRIVILEGED, name, first);
        let error = cause(guest.state());
        assert!(error.to_string().starts_with("pct status ended with status"), "{name}: {error}");
    }
}

#[test]
fn without_pct_this_is_no_proxmox_host() {
    let guest = Pct::new(101).with_program("/no/such/pct");
    for error in [guest.state().unwrap_err(), guest.exec(&Command::new(["true"])).unwrap_err()] {
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("/no/such/pct")), "{error}");
    }
}

#[test]
fn nothing_of_the_hosts_environment_is_seen_inside() {
    let Some(lxc) = lxc() else { return };
    for vmid in [PRIVILEGED, UNPRIVILEGED, BUSYBOX] {
        let said = sh(&lxc.pct(vmid), "env");
        let mut names: Vec<_> = said.lines().filter_map(|line| line.split_once('=')).collect();
        names.retain(|(name, _)| !["PWD", "SHLVL", "_"].contains(name));
        names.sort_unstable();
        let path = ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        assert_eq!(names, [("LC_ALL", "C"), path]);
        assert_eq!(sh(&lxc.pct(vmid), "pwd"), "/\n");
    }
}

#[test]
fn a_programs_status_is_not_taken_for_that_of_the_way_there() {
    let Some(lxc) = lxc() else { return };
    let guest = lxc.pct(PRIVILEGED);
    for status in [1, 2, 124, 126, 127, 137, 255] {
        let script = format!("echo lxc-attach: failed to attach >&2; exit {status}");
        let output = guest.exec(&Command::new(["sh", "-c", &script])).unwrap();
        assert_eq!((output.status, output.stderr.as_slice()), (status, &b"lxc-attach: failed to attach\n"[..]));
    }
    assert_eq!(guest.exec(&Command::new(["/no/such/program"])).unwrap().status, 127);
    assert_eq!(guest.exec(&Command::new(["/etc/passwd"])).unwrap().status, 126);
    for (name, status) in [("attach1", 1), ("attach255", 255), ("attach0", 0)] {
        let guest = lxc.pct_with(PRIVILEGED, name, &format!("echo lxc-attach: no >&2; exit {status}"));
        let error = cause(guest.exec(&Command::new(["true"])));
        assert!(error.to_string().ends_with(&format!("status {status}: lxc-attach: no")), "{error}");
    }
}

#[test]
fn a_guest_without_a_shell_is_told_apart() {
    let Some(lxc) = lxc() else { return };
    let guest = lxc.pct(BARE);
    assert_eq!(guest.state().unwrap(), ContainerState::Running);
    for error in [
        guest.exec(&Command::new(["true"])).unwrap_err(),
        guest.observe(&[GuestPath::root()]).unwrap_err(),
        guest.put(&file("/file", "bytes")).unwrap_err(),
    ] {
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("/bin/sh")), "{error}");
    }
}

#[test]
fn the_stand_in_has_the_quirks_of_pct() {
    let Some(lxc) = lxc() else { return };
    lxc.pct(PRIVILEGED);
    let program = lxc.beside("pct");
    let pct = |argv: &[&str]| {
        let output =
            std::process::Command::new(&program).args(argv).stdin(std::process::Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    };
    // It ends with 0 when it has copied nothing, and also for a container that is stopped.
    let witness = program.to_str().unwrap();
    assert_eq!(pct(&["push", "101", witness, "/no/such/directory/file"]).0, 0);
    assert_eq!(pct(&["pull", "101", "/no/such/file", lxc.beside("pulled").to_str().unwrap()]).0, 0);
    assert_eq!(fs::read(lxc.beside("pulled")).unwrap(), b"");
    assert_eq!(pct(&["status", "104"]), (0, "status: stopped\n".into()));
    // The host's environment, a PATH without /usr/local, and options of the command taken for its own.
    let (status, said) = pct(&["exec", "101", "--", "env"]);
    assert!(status == 0 && said.contains("OF_THE_HOST=secret"), "{said}");
    assert!(said.contains("PATH=/sbin:/bin:/usr/sbin:/usr/bin\n"), "{said}");
    assert_eq!(pct(&["exec", "101", "ls", "-l"]).0, 255);
    assert_eq!(pct(&["exec", "101", "--", "/no/such/program"]).0, 127);
    assert!(pct(&["list"]).1.contains("104        stopped"));
    assert!(pct(&["config", "102"]).1.contains("unprivileged: 1"));
}

#[test]
fn what_arrives_cut_is_not_put() {
    let Some(lxc) = lxc() else { return };
    let real = lxc.pct(UNPRIVILEGED);
    let path: GuestPath = "/srv/cut/file".parse().unwrap();
    real.put(&file(path.as_str(), "old")).unwrap();
    let whole = lxc.beside("pct");
    for kept in [0, 1, 4096, 65_535] {
        let first = format!("if [ \"$1\" = exec ]; then head -c {kept} | {} \"$@\"; exit; fi", whole.display());
        let guest = lxc.pct_with(UNPRIVILEGED, &format!("cut-{kept}"), &first);
        let error = cause(guest.put(&file(path.as_str(), vec![7; 65_536])));
        assert!(error.to_string().contains("did not arrive whole"), "{error}");
    }
    // And what is cut on the way back is not read.
    for kept in [0, 1, 60] {
        let first = format!("if [ \"$1\" = exec ]; then {} \"$@\" | head -c {kept}; exit; fi", whole.display());
        let guest = lxc.pct_with(UNPRIVILEGED, &format!("back-{kept}"), &first);
        assert_eq!(cause(guest.get(&path, 100)).kind(), ErrorKind::InvalidData);
        assert_eq!(cause(guest.observe(std::slice::from_ref(&path))).kind(), ErrorKind::InvalidData);
    }
    assert_eq!(real.get(&path, 100).unwrap().unwrap(), b"old");
    assert_eq!(real.list(&"/srv/cut".parse().unwrap()).unwrap(), ["file"]);
}

#[test]
fn owners_are_those_of_the_container() {
    let Some(lxc) = lxc() else { return };
    for (vmid, shift) in [(PRIVILEGED, 0), (UNPRIVILEGED, SHIFT)] {
        let guest = lxc.pct(vmid);
        let owner: Owner = "root:www-data".parse().unwrap();
        let wanted = File { owner: owner.clone(), mode: Mode::new(0o640).unwrap(), ..file("/srv/owned/key", "bytes") };
        guest.put(&wanted).unwrap();
        let observed = guest.observe(std::slice::from_ref(&wanted.path)).unwrap().remove(0).file.unwrap();
        assert!(observed.owned_by(&owner), "{observed:?}");
        let stat = fs::symlink_metadata(on_host(lxc, vmid, "/srv/owned/key")).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (shift, shift + 33, 0o640));
        let above = fs::symlink_metadata(on_host(lxc, vmid, "/srv/owned")).unwrap();
        assert_eq!((above.uid(), above.gid(), above.mode() & 0o7777), (shift, shift, 0o755));
    }
    // 65536 numbers are mapped, and no more.
    let guest = lxc.pct(UNPRIVILEGED);
    let unmapped = File { owner: "70000:0".parse().unwrap(), ..file("/srv/unmapped/key", "bytes") };
    assert_eq!(cause(guest.put(&unmapped)).kind(), ErrorKind::InvalidInput);
    assert_eq!(guest.list(&"/srv/unmapped".parse().unwrap()).unwrap(), [""; 0]);
}

#[test]
fn an_observation_is_one_trip() {
    let Some(lxc) = lxc() else { return };
    let log = lxc.beside("trips");
    let guest = lxc.pct_with(PRIVILEGED, "counted", &format!("echo \"$1\" >>{}", log.display()));
    let trips = |asked: &dyn Fn()| {
        fs::write(&log, "").unwrap();
        asked();
        fs::read_to_string(&log).unwrap().lines().count()
    };
    let paths: Vec<GuestPath> = (0..10).map(|at| format!("/srv/trips/{at}").parse().unwrap()).collect();
    for path in &paths[..5] {
        assert_eq!(trips(&|| guest.put(&file(path.as_str(), "bytes")).unwrap()), 1);
    }
    guest.link(&paths[5], "0").unwrap();
    assert_eq!(trips(&|| assert_eq!(guest.observe(&paths).unwrap().len(), 10)), 1);
    assert_eq!(trips(&|| assert!(guest.observe(&[]).unwrap().is_empty())), 0);
}

#[test]
fn no_byte_of_a_file_is_in_an_argv() {
    let Some(lxc) = lxc() else { return };
    let log = lxc.beside("argv");
    let guest = lxc.pct_with(PRIVILEGED, "logged", &format!("printf '%s\\n' \"$@\" >>{}; env >>{0}", log.display()));
    guest.put(&file("/srv/secret", "one secret that is nobody's business")).unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("/srv") && !said.contains("nobody's business"), "{said}");
}

#[test]
fn an_exit_status_alone_proves_nothing() {
    let Some(lxc) = lxc() else { return };
    let path: GuestPath = "/srv/believed/file".parse().unwrap();
    lxc.pct(PRIVILEGED).put(&file(path.as_str(), "old")).unwrap();
    // Each enters the container, as the marker proves, and runs something else there than it was asked to.
    let stale = "0123456789abcdef";
    for (name, script) in [
        ("nothing", "exit 0".to_string()),
        ("stale", format!("printf '0 0\\nf %s 8180 0 0 3 root:root\\n{stale}\\n' {}", "00".repeat(32))),
        ("escapes", "printf '\\033[2J\\000\\377\\n'".into()),
        // The receipt is right, and what goes before it is not.
        ("early", "printf '%s\\n' \"$5\"".into()),
        ("lie", "printf '0 0\\nf %064d 8180 0 0 3 root:root\\n%s\\n' 0 \"$5\"".into()),
        ("garbage", "printf '0 0\\nf x y z\\n%s\\n' \"$5\"".into()),
        ("status", "exit 3".into()),
        ("said", "echo 'No space left on device' >&2; exit 1".into()),
    ] {
        // Words: exec ID -- env -i PATH LC_ALL sh -c ENTER sh MARKER SECONDS sh -c SCRIPT sh NONCE …
        let first = format!(
            "if [ \"$1\" = exec ]; then printf '%s\\n' \"${{12}}\" >&2; shift 13; set -- \"$@\"; cat >/dev/null & {script}; exit; fi"
        );
        let guest = lxc.pct_with(PRIVILEGED, &format!("hostile-{name}"), &first);
        let start = Instant::now();
        let put = guest.put(&file(path.as_str(), "new"));
        match (name, put) {
            ("lie", Err(Error::ReadBack { .. })) => {}
            ("said", Err(Error::File { source, .. })) => assert_eq!(source.kind(), ErrorKind::StorageFull),
            (_, Err(Error::File { .. })) => {}
            (_, other) => panic!("{name}: {other:?}"),
        }
        // What a guest says of its own files, it may say falsely; but only in answer to this question.
        assert!(name == "early" || guest.get(&path, 100).is_err(), "{name}");
        assert!(guest.observe(std::slice::from_ref(&path)).is_err(), "{name}");
        assert!(guest.link(&path, "target").is_err(), "{name}");
        assert!(start.elapsed() < Duration::from_secs(20), "{name}");
    }
    assert_eq!(lxc.pct(PRIVILEGED).get(&path, 100).unwrap().unwrap(), b"old");
}

#[test]
fn nothing_runs_on_beyond_its_deadline() {
    let Some(lxc) = lxc() else { return };
    // Numbers of seconds that no other test sleeps for.
    for (vmid, seconds, limit) in [(PRIVILEGED, "86421", 1), (UNPRIVILEGED, "86422", 4)] {
        let guest = lxc.pct(vmid);
        let script = format!("trap '' TERM; sleep {seconds} & sleep {seconds}");
        let deadline = Duration::from_secs(limit);
        let start = Instant::now();
        let ended = guest.exec(&Command { deadline, ..Command::new(["sh", "-c", &script]) });
        assert!(matches!(ended, Err(Error::Deadline { limit, .. }) if limit == deadline), "{ended:?}");
        assert!(start.elapsed() < deadline + Duration::from_secs(5), "{:?}", start.elapsed());
        let sleeping = || {
            let script = "for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <\"$each\"; echo; done 2>/dev/null";
            sh(&guest, script).lines().filter(|line| line.contains(&format!("sleep {seconds}"))).count()
        };
        while sleeping() > 0 {
            assert!(start.elapsed() < deadline + Duration::from_secs(20), "they sleep on");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn what_a_killed_run_left_is_swept() {
    let Some(lxc) = lxc() else { return };
    for vmid in [PRIVILEGED, BUSYBOX] {
        let guest = lxc.pct(vmid);
        guest.put(&file("/srv/swept/file", "old")).unwrap();
        let directory = on_host(lxc, vmid, "/srv/swept");
        fs::write(directory.join(".phoenix-tmp-0123456789abcdef"), "a key").unwrap();
        fs::create_dir(directory.join(".phoenix-tmp-fedcba9876543210")).unwrap();
        fs::write(directory.join(".phoenix-tmp-fedcba9876543210/file"), "a key").unwrap();
        fs::write(directory.join(".phoenix-tmp-foreign"), "somebody's").unwrap();
        guest.put(&file("/srv/swept/file", "new")).unwrap();
        assert_eq!(guest.list(&"/srv/swept".parse().unwrap()).unwrap(), [".phoenix-tmp-foreign", "file"]);
    }
}

#[test]
fn a_full_or_read_only_place_is_an_error_and_keeps_what_it_holds() {
    let Some(lxc) = lxc() else { return };
    for vmid in [PRIVILEGED, UNPRIVILEGED, BUSYBOX] {
        // Mounted in the container, for all that enter it.
        let guest = lxc.pct(vmid);
        sh(&guest, "mkdir -p /srv/small && mount -t tmpfs -o size=64k,mode=755 none /srv/small");
        guest.put(&file("/srv/small/file", "old")).unwrap();
        let large = file("/srv/small/file", vec![7; 1 << 20]);
        assert_eq!(cause(guest.put(&large)).kind(), ErrorKind::StorageFull, "{vmid}");
        sh(&guest, "mount -o remount,bind,ro /srv/small");
        for put in [guest.put(&file("/srv/small/file", "new")), guest.link(&"/srv/small/file".parse().unwrap(), "new")]
        {
            assert_eq!(cause(put).kind(), ErrorKind::ReadOnlyFilesystem, "{vmid}");
        }
        assert_eq!(cause(guest.remove(&"/srv/small/file".parse().unwrap())).kind(), ErrorKind::ReadOnlyFilesystem);
        assert_eq!(guest.get(&"/srv/small/file".parse().unwrap(), 100).unwrap().unwrap(), b"old");
        assert_eq!(guest.list(&"/srv/small".parse().unwrap()).unwrap(), ["file"], "{vmid}");
        sh(&guest, "umount /srv/small");
    }
}

#[test]
fn a_link_out_of_the_container_leads_nowhere() {
    let Some(lxc) = lxc() else { return };
    let outside = tempfile::tempdir().unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let witness = outside.path().join("witness");
    fs::write(&witness, "as it was").unwrap();
    let guest = lxc.pct(PRIVILEGED);
    for (at, target) in [outside.path().to_str().unwrap(), "../../../../../../../../tmp"].iter().enumerate() {
        let path: GuestPath = format!("/srv/escape-{at}").parse().unwrap();
        guest.link(&path, target).unwrap();
        let _ = guest.put(&file(path.join("witness").unwrap().as_str(), "changed"));
        let _ = guest.remove(&path.join("witness").unwrap());
    }
    assert_eq!(fs::read(&witness).unwrap(), b"as it was");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_flood_of_the_guest_is_bounded() {
    let Some(lxc) = lxc() else { return };
    let guest = lxc.pct(UNPRIVILEGED);
    let deadline = Duration::from_secs(1);
    let flood = Command { deadline, ..Command::new(["sh", "-c", "yes & yes >&2"]) };
    assert!(matches!(guest.exec(&flood), Err(Error::Deadline { .. })));
    let output =
        guest.exec(&Command::new(["sh", "-c", "head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero"])).unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len(), output.truncated), (OUTPUT_LIMIT, OUTPUT_LIMIT, true));
}

/// A container, one that is stopped, and one that is not there.
fn inventory(store: &Path) -> Inventory {
    let text = format!(
        r#"
        authority = {{ name = "Example", store = {store:?}, root_key = "plain" }}
        trust = {{ select = {{ feature = "trusted_ca" }} }}

        [[guest]]
        id = {UNPRIVILEGED}
        type = "lxc"
        features = ["trusted_ca"]

        [[guest]]
        id = {STOPPED}
        type = "lxc"
        features = ["trusted_ca"]

        [[guest]]
        id = {ABSENT}
        type = "lxc"

        [[certificate]]
        names = ["www.internal.example"]

        [[certificate.deliver]]
        guest = {UNPRIVILEGED}
        cert = {{ path = "/etc/nginx/ssl/www.crt" }}
        key = {{ path = "/etc/nginx/ssl/www.key", mode = "0640", owner = "root:www-data" }}
    "#
    );
    Inventory::parse(&text, "phoenix.toml").unwrap()
}

#[test]
fn a_run_converges_on_a_real_container() {
    let Some(lxc) = lxc() else { return };
    let directory = tempfile::tempdir().unwrap();
    let inventory = inventory(&directory.path().join("store"));
    let log = lxc.beside("converge-trips");
    let counting = format!("echo \"$1\" >>{}", log.display());
    let reach = |entry: &GuestEntry| match entry.id {
        GuestId::Vmid(vmid) => Reached::container(lxc.pct_with(vmid, "converge", &counting)),
        _ => reach(entry),
    };
    let run = || converge(&inventory, &reach, &Options::default(), common::now(), &|_| {}).unwrap();
    let first = run();
    let guest = |report: &phoenix_guest::Report, id: u32| {
        report.guests.iter().find(|guest| guest.guest == id.to_string()).cloned().unwrap()
    };
    let made = guest(&first, UNPRIVILEGED);
    assert_eq!(made.trust.as_ref().unwrap().state, State::Changed, "{made:#?}");
    assert_eq!(made.deliveries[0].state, State::Changed, "{made:#?}");
    assert!(made.deliveries[0].proof.is_some());
    for (id, why) in [(STOPPED, "stopped"), (ABSENT, "no such container on this host")] {
        assert_eq!(guest(&first, id).state, State::Pending { why: why.into() });
    }
    assert!(first.pending() && !first.failed() && !first.holds());

    // By the guest's own programs: it trusts the chain that it holds, and its web server may read the key.
    let inside = lxc.pct(UNPRIVILEGED);
    assert_eq!(
        sh(&inside, "openssl verify -untrusted /etc/nginx/ssl/www.crt /etc/nginx/ssl/www.crt"),
        "/etc/nginx/ssl/www.crt: OK\n"
    );
    assert_eq!(sh(&inside, "stat -L -c '%a %U:%G' /etc/nginx/ssl/www.key"), "640 root:www-data\n");
    let key = fs::metadata(on_host(lxc, UNPRIVILEGED, "/etc/nginx/ssl/.phoenix"));
    assert!(key.map_or(true, |stat| stat.uid() == SHIFT));

    let stamp = "find /etc /usr/local -xdev -newer /srv/stamp | sort";
    sh(&inside, "sleep 0.01; touch /srv/stamp; sleep 0.01");
    fs::remove_file(&log).unwrap();
    let second = run();
    assert!(!second.changed(), "{second:#?}");
    assert_eq!(guest(&second, UNPRIVILEGED).deliveries[0].state, State::Unchanged);
    assert_eq!(sh(&inside, stamp), "", "an unchanged run writes nothing");
    let trips = fs::read_to_string(&log).unwrap();
    println!("an unchanged run takes {} trips to pct for three containers", trips.lines().count());
}
