//! Handshakes with servers that are right, wrong, silent or no TLS servers at all.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::io::BufRead as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use phoenix_pki::{Authority, Leaf, LeafParams};

use super::*;

/// An authority, another that nobody trusts, two server leaves, a client leaf and one for both.
struct Pki {
    authority: Authority,
    stranger: Authority,
    server: Leaf,
    other: Leaf,
    client: Leaf,
    peer: Leaf,
}

static PKI: LazyLock<Pki> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let authority = common::authority(&directory.path().join("ours"));
    let stranger = common::authority(&directory.path().join("stranger"));
    let issue = |params: LeafParams| authority.issue(&params, common::now()).unwrap();
    Pki {
        server: common::server(&authority),
        other: common::server(&authority),
        client: issue(LeafParams::client(["agent.internal.example"]).unwrap()),
        peer: issue(LeafParams::peer(["peer.internal.example"]).unwrap()),
        authority,
        stranger,
    }
});

const NAME: &str = "www.internal.example";

fn anchors() -> Vec<CertificateDer<'static>> {
    vec![PKI.authority.root().der().clone()]
}

fn pem(leaf: &Leaf) -> (String, String) {
    (leaf.chain_pem(), leaf.key().to_pem().to_string())
}

/// What a handshake for this leaf comes to, and how long it took.
fn prove(address: &str, name: &str, expected: &Leaf, client: bool, patience: Duration) -> (Result<Proof>, Duration) {
    let anchors = anchors();
    let judge = Judge { anchors: &anchors, expected: expected.certificate().fingerprint(), at: common::now() };
    let (chain, key) = pem(expected);
    let pair = PairPem { chain: chain.as_bytes(), key: key.as_bytes() };
    let serves = Serves { address: address.into(), name: name.parse().unwrap() };
    let start = Instant::now();
    (judge.serving(&serves, client.then_some(&pair), patience), start.elapsed())
}

fn why(result: Result<Proof>) -> String {
    match result {
        Err(Error::Handshake { why, .. }) => why,
        other => panic!("{other:?} is no refusal"),
    }
}

/// An `openssl s_server` on a port of its own.
struct Server {
    child: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(host: &str, leaf: &Leaf, whole_chain: bool, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let cert = put("cert", &leaf.certificate().pem());
        let key = put("key", &leaf.key().to_pem());
        let chain = put("chain", &leaf.chain()[1].pem());
        put("root", &PKI.authority.root().pem());
        put("stranger", &PKI.stranger.root().pem());
        let port = TcpListener::bind((host.trim_matches(['[', ']']), 0)).unwrap().local_addr().unwrap().port();
        let address = format!("{host}:{port}");
        let mut command = Command::new("openssl");
        command
            .current_dir(&directory)
            .args(["s_server", "-accept", &address, "-cert", &cert, "-key", &key])
            .args(more);
        if whole_chain {
            command.args(["-cert_chain", &chain]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ACCEPT") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "s_server ends");
        }
        // Read on, so that it never waits for us.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address, _directory: directory }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

#[test]
fn a_server_is_proven_or_told_what_is_wrong() {
    if !common::has("a_server_is_proven_or_told_what_is_wrong", &["openssl"]) {
        return;
    }
    for version in VERSIONS {
        let right = Server::start("127.0.0.1", &PKI.server, true, &[version]);
        for name in [NAME, "127.0.0.1", "::1"] {
            let (proof, took) = prove(&right.address, name, &PKI.server, false, Duration::ZERO);
            assert_eq!(*proof.unwrap().fingerprint(), PKI.server.certificate().fingerprint(), "{version} {name}");
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
        let refusal = why(prove(&right.address, NAME, &PKI.other, false, Duration::ZERO).0);
        let (shown, due) = (PKI.server.certificate().fingerprint(), PKI.other.certificate().fingerprint());
        assert_eq!(refusal, format!("it shows {shown} instead of {due}"));
        let refusal = why(prove(&right.address, "db.internal.example", &PKI.server, false, Duration::ZERO).0);
        assert!(refusal.contains("not valid for name") && refusal.contains(&shown.to_string()), "{refusal}");

        let alone = Server::start("127.0.0.1", &PKI.server, false, &[version]);
        let refusal = why(prove(&alone.address, NAME, &PKI.server, false, Duration::ZERO).0);
        assert!(refusal.contains("no chain") && refusal.contains("without an intermediate"), "{refusal}");

        let serves = Serves { address: right.address.clone(), name: NAME.parse().unwrap() };
        let judged = |anchors: &[CertificateDer<'static>], at| {
            why(Judge { anchors, expected: shown, at }.serving(&serves, None, Duration::ZERO))
        };
        let now = common::now();
        let refusal = judged(&anchors(), now + time::Duration::days(100));
        assert!(refusal.contains("expired"), "{refusal}");
        let refusal = judged(&anchors(), now - time::Duration::days(2));
        assert!(refusal.contains("not valid yet"), "{refusal}");
        let refusal = judged(&[PKI.stranger.root().der().clone()], now);
        assert!(refusal.contains("no chain"), "{refusal}");
        assert_eq!(judged(&[], now), "the guest's trust bundle holds no anchor");
    }
}

#[test]
fn a_client_certificate_is_proven_by_the_server_that_takes_it() {
    if !common::has("a_client_certificate_is_proven_by_the_server_that_takes_it", &["openssl"]) {
        return;
    }
    for version in VERSIONS {
        let demands = |root| ["-Verify", "1", "-verify_return_error", "-CAfile", root, version];
        let taking = Server::start("127.0.0.1", &PKI.server, true, &demands("root"));
        for leaf in [&PKI.client, &PKI.peer] {
            let (proof, took) = prove(&taking.address, NAME, leaf, true, Duration::ZERO);
            assert_eq!(*proof.unwrap().fingerprint(), leaf.certificate().fingerprint(), "{version}");
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
        // The server's own certificate is proven without one: it comes before the client's is missed.
        prove(&taking.address, NAME, &PKI.server, false, Duration::ZERO).0.unwrap();

        let refusing = Server::start("127.0.0.1", &PKI.server, true, &demands("stranger"));
        let refusal = why(prove(&refusing.address, NAME, &PKI.client, true, Duration::ZERO).0);
        assert!(refusal.contains("refuses the client certificate"), "{version} {refusal}");
        // A server certificate is no client certificate.
        let refusal = why(prove(&taking.address, NAME, &PKI.other, true, Duration::ZERO).0);
        assert!(refusal.contains("refuses the client certificate"), "{version} {refusal}");

        let open = Server::start("127.0.0.1", &PKI.server, true, &[version]);
        let refusal = why(prove(&open.address, NAME, &PKI.client, true, Duration::ZERO).0);
        assert_eq!(refusal, "the server asks for no client certificate", "{version}");
        // What the server itself shows is judged as well, and is not taken for a refusal of ours.
        let alone = Server::start("127.0.0.1", &PKI.server, false, &demands("root"));
        let refusal = why(prove(&alone.address, NAME, &PKI.client, true, Duration::ZERO).0);
        assert!(refusal.contains("no chain") && !refusal.contains("refuses"), "{version} {refusal}");
    }
}

#[test]
fn a_server_without_tickets_is_asked_to_end() {
    let accept = |answers: bool| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let thread = std::thread::spawn(move || {
            let (chain, key) = pem(&PKI.server);
            let pair = PairPem { chain: chain.as_bytes(), key: key.as_bytes() };
            let anchors = anchors();
            let judge =
                Judge { anchors: &anchors, expected: PKI.server.certificate().fingerprint(), at: common::now() };
            let mut config = judge.server_config(&pair, true).unwrap();
            config.send_tls13_tickets = 0;
            let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut socket = listener.accept().unwrap().0;
            while connection.is_handshaking() {
                connection.complete_io(&mut socket).unwrap();
            }
            if answers {
                // The client's farewell, and ours.
                connection.complete_io(&mut socket).unwrap();
                connection.send_close_notify();
                let _ = connection.complete_io(&mut socket);
            } else {
                std::thread::sleep(ATTEMPT + Duration::from_secs(1));
            }
        });
        (address, thread)
    };
    let (address, thread) = accept(true);
    prove(&address, NAME, &PKI.client, true, Duration::ZERO).0.unwrap();
    thread.join().unwrap();
    let (address, thread) = accept(false);
    let (result, took) = prove(&address, NAME, &PKI.client, true, Duration::ZERO);
    assert_eq!(why(result), "the server does not say whether it takes the client certificate");
    assert!(took < ATTEMPT + Duration::from_secs(1), "{took:?}");
    thread.join().unwrap();
}

#[test]
fn what_is_no_tls_server_is_told_in_time() {
    type Habit = fn(&mut TcpStream) -> std::io::Result<()>;
    fn every(pause: u64, bytes: &'static [u8], socket: &mut TcpStream) -> std::io::Result<()> {
        for _ in 0..200 {
            socket.write_all(bytes)?;
            std::thread::sleep(Duration::from_millis(pause));
        }
        Ok(())
    }
    let habits: [(Habit, &str); 7] = [
        (|_| Ok(()), "the server closes the connection"),
        (|socket| every(ATTEMPT.as_millis() as u64, b"", socket), "no answer within 5 s"),
        (|socket| socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "what answers there does not speak TLS"),
        (|socket| every(0, &[b'x'; 1 << 16], socket), "what answers there does not speak TLS"),
        // A record of 16 KiB that comes byte by byte, and one empty record after another.
        (|socket| socket.write_all(&[22, 3, 3, 64, 0]).and_then(|()| every(100, &[2], socket)), "no answer within 5 s"),
        (|socket| every(100, &[22, 3, 3, 0, 1, 2], socket), ""),
        // An alert that refuses to go on.
        (|socket| socket.write_all(&[21, 3, 3, 0, 2, 2, 40]), "received fatal alert: HandshakeFailure"),
    ];
    std::thread::scope(|scope| {
        for (habit, expected) in habits {
            scope.spawn(move || {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = listener.local_addr().unwrap().to_string();
                std::thread::spawn(move || {
                    let mut socket = listener.accept().unwrap().0;
                    // Read first: a socket that is closed with bytes unread resets the connection.
                    let _ = socket.read(&mut [0; 4096]);
                    let _ = habit(&mut socket);
                });
                let (result, took) = prove(&address, NAME, &PKI.server, false, Duration::ZERO);
                let refusal = why(result);
                assert!(refusal.contains(expected), "{expected:?}: {refusal}");
                assert!(took < ATTEMPT + Duration::from_secs(1), "{expected:?}: {took:?}");
            });
        }
        scope.spawn(|| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let refusal = why(prove(&format!("127.0.0.1:{port}"), NAME, &PKI.server, false, Duration::ZERO).0);
            assert!(refusal.contains("Connection refused"), "{refusal}");
        });
        scope.spawn(|| {
            let (result, took) = prove("no-host.invalid:443", NAME, &PKI.server, false, Duration::ZERO);
            assert!(!why(result).is_empty() && took < ATTEMPT + Duration::from_secs(1), "{took:?}");
        });
    });
}

#[test]
fn patience_waits_for_a_server_and_ends() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let (result, took) = prove(&address, NAME, &PKI.server, false, Duration::from_secs(1));
    assert!(why(result).contains("refused") && took < Duration::from_secs(2), "{took:?}");
    // What no waiting mends is told at once.
    let serves = Serves { address, name: NAME.parse().unwrap() };
    let judge = Judge { anchors: &[], expected: PKI.server.certificate().fingerprint(), at: common::now() };
    let start = Instant::now();
    judge.serving(&serves, None, PATIENCE).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn what_was_put_back_is_seen_even_when_it_is_worth_nothing() {
    if !common::has("what_was_put_back_is_seen_even_when_it_is_worth_nothing", &["openssl"]) {
        return;
    }
    let server = Server::start("127.0.0.1", &PKI.server, false, &["-Verify", "1", "-verify_return_error", "-tls1_2"]);
    let serves = Serves { address: server.address.clone(), name: "other.internal.example".parse().unwrap() };
    let long_after = common::now() + time::Duration::days(9000);
    let judge = Judge { anchors: &[], expected: PKI.other.certificate().fingerprint(), at: long_after };
    judge.showing(&serves, PKI.server.certificate().fingerprint(), Duration::ZERO).unwrap();
    let error = judge.showing(&serves, PKI.other.certificate().fingerprint(), Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("which was put back"), "{error}");
}

#[test]
fn six_is_spoken_as_well() {
    if !common::has("six_is_spoken_as_well", &["openssl"]) {
        return;
    }
    if TcpListener::bind("[::1]:0").is_err() {
        return common::skip("six_is_spoken_as_well", "this machine has no IPv6 loopback");
    }
    let server = Server::start("[::1]", &PKI.server, true, &[]);
    let serves: Serves = server.address.parse().unwrap();
    assert_eq!(serves.name.to_string(), "::1");
    prove(&serves.address, "::1", &PKI.server, false, Duration::ZERO).0.unwrap();
}

#[test]
fn an_address_is_a_host_and_a_port() {
    for (text, address, name) in [
        ("10.0.0.101:443", "10.0.0.101:443", "10.0.0.101"),
        ("[fd00::1]:8443", "[fd00::1]:8443", "fd00::1"),
        ("[FD00:0::1]:8443", "[fd00::1]:8443", "fd00::1"),
        ("WWW.internal.example:443", "www.internal.example:443", NAME),
    ] {
        let serves: Serves = text.parse().unwrap();
        assert_eq!((serves.address.as_str(), serves.name.to_string().as_str()), (address, name));
    }
    for refused in [
        "",
        ":443",
        "host",
        "host:",
        "host:0",
        "host:65536",
        "host:+443",
        "host:https",
        "fd00::1",
        "fd00::1:443",
        "[10.0.0.1]:443",
        "[host]:443",
        "[fd00::1:443",
        "*.internal.example:443",
        "a b:443",
        "https://host:443",
        "host:443/",
    ] {
        assert!(matches!(refused.parse::<Serves>(), Err(Error::Value { what: "address", .. })), "{refused:?}");
    }
}

#[test]
fn files_are_judged_by_a_handshake_of_their_own() {
    let judge = |leaf: &Leaf, chain: &str, key: &str, profile, after: i64| {
        let anchors = anchors();
        let at = common::now() + time::Duration::days(after);
        let judge = Judge { anchors: &anchors, expected: leaf.certificate().fingerprint(), at };
        let name = leaf.certificate().names().iter().find(|name| name.to_string().contains("internal")).unwrap();
        judge.files(&PairPem { chain: chain.as_bytes(), key: key.as_bytes() }, name, profile)
    };
    for (leaf, profile) in [(&PKI.server, Profile::Server), (&PKI.client, Profile::Client), (&PKI.peer, Profile::Peer)]
    {
        let (chain, key) = pem(leaf);
        judge(leaf, &chain, &key, profile, 0).unwrap();
        let (alone, other) = (leaf.certificate().pem(), pem(&PKI.other));
        for (chain, key, after, expected) in [
            (alone.as_str(), key.as_str(), 0, "UnknownIssuer"),
            (&chain, &other.1, 0, "the key does not belong"),
            (&other.0, &other.1, 0, "instead of"),
            (&chain, &key, 100, "expired"),
            ("", &key, 0, "the file holds no certificate"),
            (&chain, "", 0, "the key file"),
            (&chain, &chain, 0, "the key file"),
            (&key, &chain, 0, "the file holds no certificate"),
        ] {
            let refusal = why(judge(leaf, chain, key, profile, after));
            assert!(refusal.contains(expected), "{profile} {expected:?}: {refusal}");
            let secret = key.lines().nth(1).filter(|_| key.contains("PRIVATE")).unwrap_or("nothing secret");
            assert!(!refusal.contains(secret), "{refusal}");
        }
    }
    // A certificate for the one purpose is none for the other.
    for (leaf, profile) in [(&PKI.server, Profile::Client), (&PKI.client, Profile::Server)] {
        let (chain, key) = pem(leaf);
        let refusal = why(judge(leaf, &chain, &key, profile, 0));
        assert!(refusal.contains("purpose") || refusal.contains("usage"), "{refusal}");
    }
}
