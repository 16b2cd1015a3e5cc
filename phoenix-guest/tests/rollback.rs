//! A real nginx takes new pairs, refuses them, and shows the old one again.

mod common;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{authority, has, now, server};
use phoenix_guest::{
    Command, Delivered, Difference, Error, File, GuestPath, Local, Observed, Output, Placement, Proof, Serves,
    Transport, ensure_pair,
};
use phoenix_pki::{Authority, Certificate, Fingerprint, Leaf, PrivateKey, Store};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

/// An nginx of its own: configuration, pair, log and process below one directory, on one port of the loopback.
struct Nginx {
    directory: TempDir,
    authority: Authority,
    port: u16,
}

/// A silent program, found also where an ordinary user's PATH does not look.
fn program(argv: &[String]) -> Process {
    let mut program = Process::new(&argv[0]);
    program.args(&argv[1..]).stdout(Stdio::null()).stderr(Stdio::null());
    program.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    program
}

impl Nginx {
    /// Started with a first pair that was placed as any other.
    fn start() -> (Self, Leaf) {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory.path().join("store"));
        // Free a moment ago; the tests of this file ask the kernel, which does not give the same port twice in a row.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let nginx = Self { directory, authority, port };
        let at = nginx.at("").display().to_string();
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let configuration = format!(
            "{user} pid {at}/nginx.pid; error_log {at}/error.log; worker_processes 2; events {{}}
             http {{ access_log off; client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;
               uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;
               server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.2 TLSv1.3;
                 ssl_certificate {at}/ssl/nginx.crt; ssl_certificate_key {at}/private/nginx.key; return 200; }} }}"
        );
        std::fs::write(nginx.at("nginx.conf"), configuration).unwrap();
        let first = server(&nginx.authority);
        nginx.ensure(&first, &Placement { check: None, reload: None, serves: None, ..nginx.placement() }).unwrap();
        nginx.run(&[]);
        assert_eq!(nginx.served_soon(&first), first.certificate().fingerprint());
        (nginx, first)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn path(&self, name: &str) -> GuestPath {
        self.at(name).to_str().unwrap().parse().unwrap()
    }

    fn argv(&self, more: &[&str]) -> Vec<String> {
        let at = self.directory.path().to_str().unwrap();
        ["nginx", "-p", at, "-c", "nginx.conf"].iter().chain(more).map(ToString::to_string).collect()
    }

    fn run(&self, more: &[&str]) {
        let argv = self.argv(more);
        assert!(program(&argv).status().unwrap().success(), "{argv:?}");
    }

    fn placement(&self) -> Placement {
        Placement {
            check: Some(self.argv(&["-t"])),
            reload: Some(self.argv(&["-s", "reload"])),
            serves: Some(self.serves("www.internal.example")),
            ..Placement::new(self.path("ssl/nginx.crt"), self.path("private/nginx.key"))
        }
    }

    fn serves(&self, name: &str) -> Serves {
        Serves { address: format!("127.0.0.1:{}", self.port), name: name.parse().unwrap() }
    }

    /// This command, unless the file `refuse-once` is there: then it is removed and the command fails.
    fn refusable(&self, argv: &[String]) -> Vec<String> {
        let refusal = self.at("refuse-once").display().to_string();
        let script = r#"if rm "$0" 2>/dev/null; then echo "refused by the test" >&2; exit 1; fi; exec "$@""#;
        ["sh", "-c", script, refusal.as_str()].into_iter().map(Into::into).chain(argv.iter().cloned()).collect()
    }

    fn refuse_once(&self) {
        std::fs::write(self.at("refuse-once"), "").unwrap();
    }

    fn ensure(&self, leaf: &Leaf, placement: &Placement) -> Result<Delivered, Error> {
        ensure_pair(&Local::new(), leaf, placement, &[self.authority.root().der().clone()], now())
    }

    /// The certificate that is shown to a client that is none of ours.
    fn served(&self) -> Fingerprint {
        let client = Process::new("openssl")
            .args(["s_client", "-connect", &format!("127.0.0.1:{}", self.port), "-servername", "www.internal.example"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .unwrap();
        Certificate::from_pem(&client.stdout, "s_client").unwrap().fingerprint()
    }

    /// The same, when the workers of a reload before may still be about to end.
    fn served_soon(&self, leaf: &Leaf) -> Fingerprint {
        let start = Instant::now();
        loop {
            let served = self.served();
            if served == leaf.certificate().fingerprint() || start.elapsed() > Duration::from_secs(5) {
                return served;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The certificate that the files hold, with its key.
    fn held(&self) -> Fingerprint {
        let chain = std::fs::read(self.at("ssl/nginx.crt")).unwrap();
        let leaf = Certificate::all_from_pem(&chain, "nginx.crt").unwrap().remove(0);
        let key = std::fs::read(self.at("private/nginx.key")).unwrap();
        assert_eq!(PrivateKey::from_pem(&key, None, "nginx.key").unwrap().public_key(), leaf.public_key());
        leaf.fingerprint()
    }

    fn workers(&self) -> BTreeSet<String> {
        let pid = std::fs::read_to_string(self.at("nginx.pid")).unwrap();
        let pid = pid.trim();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(Into::into).collect()
    }

    fn stop(&self) {
        if !self.at("nginx.pid").exists() {
            return;
        }
        let _ = program(&self.argv(&["-s", "stop"])).status();
        for _ in 0..500 {
            if !self.at("nginx.pid").exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The old pair serves, its files are back, and a run that nothing hinders converges.
    fn assert_restored(&self, error: &Error, old: &Leaf, new: &Leaf) {
        let Error::RolledBack { rollback: None, .. } = error else { panic!("{error:?}") };
        assert_eq!(self.served_soon(old), old.certificate().fingerprint());
        assert_eq!(self.held(), old.certificate().fingerprint());
        assert!(self.ensure(new, &self.placement()).unwrap().changed());
        assert_eq!(self.served_soon(new), new.certificate().fingerprint());
        let workers = self.workers();
        assert!(!self.ensure(new, &self.placement()).unwrap().changed());
        assert_eq!(workers, self.workers(), "an unchanged run reloads nothing");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
    }
}

fn cause(error: &Error) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

#[test]
fn a_new_pair_is_served_and_an_unchanged_run_reloads_nothing() {
    if !has("a_new_pair_is_served_and_an_unchanged_run_reloads_nothing", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, first) = Nginx::start();
    let workers = nginx.workers();
    let done = nginx.ensure(&first, &nginx.placement()).unwrap();
    assert!(!done.changed() && matches!(done.proof, Some(Proof::Serving { .. })), "{done:?}");
    assert_eq!(workers, nginx.workers());
    let second = server(&nginx.authority);
    let done = nginx.ensure(&second, &nginx.placement()).unwrap();
    assert!(done.changed());
    assert_eq!(*done.proof.unwrap().fingerprint(), nginx.served_soon(&second));
}

#[test]
fn a_check_that_fails_puts_the_old_pair_back() {
    if !has("a_check_that_fails_puts_the_old_pair_back", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, old) = Nginx::start();
    let new = server(&nginx.authority);
    let placement = Placement { check: Some(nginx.refusable(&nginx.argv(&["-t"]))), ..nginx.placement() };
    nginx.refuse_once();
    let error = nginx.ensure(&new, &placement).unwrap_err();
    assert!(cause(&error).contains("refused by the test"), "{error:?}");
    nginx.assert_restored(&error, &old, &new);
}

#[test]
fn a_configuration_that_is_broken_tells_both_causes() {
    if !has("a_configuration_that_is_broken_tells_both_causes", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, old) = Nginx::start();
    let new = server(&nginx.authority);
    let sound = std::fs::read(nginx.at("nginx.conf")).unwrap();
    std::fs::write(nginx.at("nginx.conf"), "nonsense;").unwrap();
    let error = nginx.ensure(&new, &nginx.placement()).unwrap_err();
    assert!(cause(&error).contains("nonsense") && error.to_string().contains("which failed too"), "{error:?}");
    assert_eq!(nginx.served(), old.certificate().fingerprint());
    assert_eq!(nginx.held(), old.certificate().fingerprint());
    std::fs::write(nginx.at("nginx.conf"), sound).unwrap();
    assert!(nginx.ensure(&new, &nginx.placement()).unwrap().changed());
    assert_eq!(nginx.served_soon(&new), new.certificate().fingerprint());
}

#[test]
fn a_reload_that_fails_puts_the_old_pair_back() {
    if !has("a_reload_that_fails_puts_the_old_pair_back", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, old) = Nginx::start();
    let new = server(&nginx.authority);
    let placement = Placement { reload: Some(nginx.refusable(&nginx.argv(&["-s", "reload"]))), ..nginx.placement() };
    nginx.refuse_once();
    let error = nginx.ensure(&new, &placement).unwrap_err();
    assert!(cause(&error).contains("refused by the test"), "{error:?}");
    nginx.assert_restored(&error, &old, &new);
}

#[test]
fn a_name_that_is_not_proven_puts_the_old_pair_back() {
    if !has("a_name_that_is_not_proven_puts_the_old_pair_back", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, old) = Nginx::start();
    let new = server(&nginx.authority);
    let placement = Placement { serves: Some(nginx.serves("other.internal.example")), ..nginx.placement() };
    let error = nginx.ensure(&new, &placement).unwrap_err();
    assert!(cause(&error).contains("other.internal.example"), "{error:?}");
    nginx.assert_restored(&error, &old, &new);
}

#[test]
fn a_server_that_shows_something_else_gets_the_old_pair_back() {
    if !has("a_server_that_shows_something_else_gets_the_old_pair_back", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, old) = Nginx::start();
    let new = server(&nginx.authority);
    let error = nginx.ensure(&new, &Placement { reload: Some(vec!["true".into()]), ..nginx.placement() }).unwrap_err();
    let (old_shown, wanted) = (old.certificate().fingerprint(), new.certificate().fingerprint());
    assert!(cause(&error).contains(&format!("it shows {old_shown} instead of {wanted}")), "{error:?}");
    nginx.assert_restored(&error, &old, &new);
}

#[test]
fn a_server_that_is_down_is_told_and_nothing_is_put_back() {
    if !has("a_server_that_is_down_is_told_and_nothing_is_put_back", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, first) = Nginx::start();
    nginx.stop();
    let before = std::fs::read_link(nginx.at("ssl/.phoenix/nginx.crt/current")).unwrap();
    let error = nginx.ensure(&first, &nginx.placement()).unwrap_err();
    assert!(matches!(error, Error::Command { .. }), "{error:?}");
    assert_eq!(before, std::fs::read_link(nginx.at("ssl/.phoenix/nginx.crt/current")).unwrap());
    assert_eq!(nginx.held(), first.certificate().fingerprint());
    nginx.run(&[]);
    assert!(!nginx.ensure(&first, &nginx.placement()).unwrap().changed());
}

#[test]
fn a_reload_that_was_missed_is_made_up_for_without_a_swap() {
    if !has("a_reload_that_was_missed_is_made_up_for_without_a_swap", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, old) = Nginx::start();
    let new = server(&nginx.authority);
    nginx.ensure(&new, &Placement { check: None, reload: None, serves: None, ..nginx.placement() }).unwrap();
    assert_eq!(nginx.served(), old.certificate().fingerprint());
    let before = std::fs::read_link(nginx.at("ssl/.phoenix/nginx.crt/current")).unwrap();
    let done = nginx.ensure(&new, &nginx.placement()).unwrap();
    assert!(matches!(done.differences.as_slice(), [Difference::NotServing { .. }]), "{:?}", done.differences);
    assert_eq!(before, std::fs::read_link(nginx.at("ssl/.phoenix/nginx.crt/current")).unwrap());
    assert_eq!(nginx.served_soon(&new), new.certificate().fingerprint());
}

/// This machine, until an operation that changes something: there the process kills itself.
struct Mortal {
    inner: Local,
    left: AtomicUsize,
}

impl Mortal {
    fn step(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }
}

impl Transport for Mortal {
    fn guest(&self) -> &str {
        self.inner.guest()
    }
    fn exec(&self, command: &Command) -> Result<Output, Error> {
        self.step();
        self.inner.exec(command)
    }
    fn put(&self, file: &File) -> Result<(), Error> {
        self.step();
        self.inner.put(file)
    }
    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        self.inner.get(path, limit)
    }
    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>, Error> {
        self.inner.observe(paths)
    }
    fn link(&self, path: &GuestPath, target: &str) -> Result<(), Error> {
        self.step();
        self.inner.link(path, target)
    }
    fn remove(&self, path: &GuestPath) -> Result<(), Error> {
        self.step();
        self.inner.remove(path)
    }
    fn list(&self, path: &GuestPath) -> Result<Vec<String>, Error> {
        self.inner.list(path)
    }
    fn runs_programs(&self) -> bool {
        true
    }
    fn sets_owners(&self) -> bool {
        self.inner.sets_owners()
    }
}

/// Not a test by itself: the process that the next one starts and that kills itself.
#[test]
fn mortal() {
    let Ok(told) = std::env::var("PHOENIX_MORTAL") else { return };
    let mut told = told.split(' ');
    let (directory, port, at) = (told.next().unwrap(), told.next().unwrap(), told.next().unwrap());
    let authority = Authority::open(&Store::new(Path::new(directory).join("store"))).unwrap();
    let leaf = authority.leaf("www.internal.example").unwrap().unwrap();
    let argv = |more: &[&str]| {
        let argv = ["nginx", "-p", directory, "-c", "nginx.conf"];
        Some(argv.iter().chain(more).map(ToString::to_string).collect())
    };
    let name = |name: &str| format!("{directory}/{name}").parse().unwrap();
    let placement = Placement {
        check: argv(&["-t"]),
        reload: argv(&["-s", "reload"]),
        serves: Some(Serves { address: format!("127.0.0.1:{port}"), name: "www.internal.example".parse().unwrap() }),
        ..Placement::new(name("ssl/nginx.crt"), name("private/nginx.key"))
    };
    let guest = Mortal { inner: Local::new(), left: at.parse::<usize>().unwrap().into() };
    ensure_pair(&guest, &leaf, &placement, &[authority.root().der().clone()], now()).unwrap();
}

#[test]
fn a_run_that_is_killed_leaves_a_pair_and_can_still_be_undone() {
    if !has("a_run_that_is_killed_leaves_a_pair_and_can_still_be_undone", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, mut old) = Nginx::start();
    let refusing = Placement { check: Some(nginx.refusable(&nginx.argv(&["-t"]))), ..nginx.placement() };
    let mut kills = 0;
    for at in 0.. {
        assert!(at < 50, "no run has so many operations");
        let new = server(&nginx.authority);
        let told = format!("{} {} {at}", nginx.directory.path().display(), nginx.port);
        let child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "mortal"])
            .env("PHOENIX_MORTAL", told)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let both = [old.certificate().fingerprint(), new.certificate().fingerprint()];
        assert!(both.contains(&nginx.served()) && both.contains(&nginx.held()), "{at}");
        // What is on disk is a pair that nginx could start with.
        nginx.run(&["-t"]);
        if child.success() {
            break;
        }
        kills += 1;
        // The consumer refuses it now: the old one comes back, whatever the killed run had done.
        nginx.refuse_once();
        let error = nginx.ensure(&new, &refusing).unwrap_err();
        nginx.assert_restored(&error, &old, &new);
        old = new;
    }
    assert!(kills > 8, "killed {kills} times");
}

#[test]
fn no_handshake_fails_during_twenty_swaps() {
    if !has("no_handshake_fails_during_twenty_swaps", &["nginx", "openssl"]) {
        return;
    }
    let (nginx, first) = Nginx::start();
    let mut roots = RootCertStore::empty();
    roots.add(nginx.authority.root().der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let done = AtomicBool::new(false);
    let mut made = BTreeSet::from([first.certificate().fingerprint().to_string()]);
    let (handshakes, shown) = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut handshakes, mut shown) = (0, BTreeSet::new());
            while !done.load(Ordering::SeqCst) {
                let name = ServerName::try_from("www.internal.example").unwrap();
                let socket = std::net::TcpStream::connect(("127.0.0.1", nginx.port)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut stream = StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), socket);
                // The signature in the handshake is by the key of the certificate that is shown: a pair.
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock).expect("a handshake fails");
                }
                shown.insert(Fingerprint::of(&stream.conn.peer_certificates().unwrap()[0]).to_string());
                handshakes += 1;
            }
            (handshakes, shown)
        });
        for _ in 0..20 {
            let leaf = server(&nginx.authority);
            made.insert(leaf.certificate().fingerprint().to_string());
            nginx.ensure(&leaf, &nginx.placement()).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        client.join().unwrap()
    });
    assert!(handshakes > 100, "{handshakes}");
    assert!(shown.is_subset(&made) && shown.len() > 10, "{} of {}", shown.len(), made.len());
}
