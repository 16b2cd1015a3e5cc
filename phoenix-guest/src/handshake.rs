//! The proof: a TLS handshake that trusts nothing but the anchors it is given.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use phoenix_pki::{Fingerprint, Name, PrivateKey, Profile};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, sign};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, ProtocolVersion, RootCertStore,
    ServerConfig, ServerConnection, SignatureScheme,
};
use serde::Serialize;
use time::OffsetDateTime;

use crate::command::printable;
use crate::error::{Error, Result};

/// How long one attempt at a handshake may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How long a server that took the whole handshake may say nothing before it is asked to end the connection.
const SILENCE: Duration = Duration::from_millis(500);

/// How long a server is given, after a reload, to answer with its new certificate.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Where a service answers, and the name a client asks it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serves {
    /// `host:port`, the host an IP address (IPv6 in brackets) or a DNS name.
    pub address: String,
    /// The TLS server name; it may differ from the address, so that a name can be proven before DNS knows it.
    pub name: Name,
}

impl FromStr for Serves {
    type Err = Error;

    /// `host:port`, with the host as the name.
    fn from_str(address: &str) -> Result<Self> {
        let refused = || Error::Value {
            what: "address",
            value: address.into(),
            accepted: "host:port, such as 10.0.0.101:443 or [fd00::1]:443",
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(refused)?;
        let digits = port.bytes().all(|digit| digit.is_ascii_digit());
        let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0).ok_or_else(refused)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let name: Name = bracketed.unwrap_or(host).parse().map_err(|_| refused())?;
        let six = matches!(name, Name::Ip(IpAddr::V6(_)));
        if six != bracketed.is_some() || name.is_wildcard() {
            return Err(refused());
        }
        let address = if six { format!("[{name}]:{port}") } else { format!("{name}:{port}") };
        Ok(Self { address, name })
    }
}

/// What a handshake showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "proof")]
#[non_exhaustive]
pub enum Proof {
    /// A server that runs answered with this certificate.
    Serving {
        /// Where.
        address: String,
        /// The name it was asked for.
        name: Name,
        /// Its certificate.
        fingerprint: Fingerprint,
    },
    /// The delivered files, read back, make a handshake in this process. Nothing is said about a running server.
    Files {
        /// The name it was asked for.
        name: Name,
        /// The certificate.
        fingerprint: Fingerprint,
    },
}

impl Proof {
    /// The certificate that was shown.
    pub fn fingerprint(&self) -> &Fingerprint {
        match self {
            Self::Serving { fingerprint, .. } | Self::Files { fingerprint, .. } => fingerprint,
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving { address, name, .. } => write!(f, "serving {name} at {address}"),
            Self::Files { name, .. } => write!(f, "files for {name}"),
        }
    }
}

/// A chain and its key as PEM, as they were read back from a guest.
pub(crate) struct PairPem<'a> {
    pub(crate) chain: &'a [u8],
    pub(crate) key: &'a [u8],
}

/// What a handshake is judged by.
pub(crate) struct Judge<'a> {
    /// The anchors that the guest's own programs trust.
    pub(crate) anchors: &'a [CertificateDer<'static>],
    /// The certificate that must be shown.
    pub(crate) expected: Fingerprint,
    /// The time of the judgement.
    pub(crate) at: OffsetDateTime,
}

impl Judge<'_> {
    /// Asks the server for the expected certificate, again and again until it shows it or `patience` ends.
    ///
    /// With a client pair it is that certificate which is judged: the server must ask for it and accept it. A server
    /// that only judges it above TLS, as nginx does with an HTTP status, cannot be told from one that accepts it.
    pub(crate) fn serving(&self, serves: &Serves, client: Option<&PairPem<'_>>, patience: Duration) -> Result<Proof> {
        let refused = |why: String| refusal(serves, &why);
        let seen = Arc::new(Mutex::new(Seen::default()));
        if let Some(pair) = client {
            self.check_leaf(pair).map_err(refused)?;
        }
        let config = Arc::new(self.client_config(&seen, client).map_err(refused)?);
        until(patience, || {
            let ended = attempt(serves, &config, &seen, client.is_some());
            let Seen { fingerprint, alone, verified, .. } = *lock(&seen);
            let shown = match fingerprint {
                Some(shown) if client.is_none() && shown != self.expected => {
                    Some(format!("it shows {shown} instead of {}", self.expected))
                }
                Some(shown) if !verified && alone => Some(format!("it shows {shown} without an intermediate")),
                Some(shown) if !verified => Some(format!("it shows {shown}")),
                _ => None,
            };
            match (ended, shown) {
                (Ok(()), None) => Ok(()),
                (Ok(()), Some(shown)) => Err(refused(shown)),
                (Err(why), shown) => {
                    Err(refused([Some(why), shown].into_iter().flatten().collect::<Vec<_>>().join("; ")))
                }
            }
        })?;
        Ok(Proof::Serving { address: serves.address.clone(), name: serves.name.clone(), fingerprint: self.expected })
    }

    /// Whether the server shows this certificate, valid or not: what was put back may have expired or been revoked.
    pub(crate) fn showing(&self, serves: &Serves, shown: Fingerprint, patience: Duration) -> Result<()> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let config = self.config_that(Arc::new(Recording { inner: None, seen: seen.clone() }), None, &seen);
        let config = Arc::new(config.map_err(|why| refusal(serves, &why))?);
        until(patience, || match (attempt(serves, &config, &seen, false), lock(&seen).fingerprint) {
            (_, Some(found)) if found == shown => Ok(()),
            (_, Some(found)) => {
                Err(refusal(serves, &format!("it shows {found} instead of {shown}, which was put back")))
            }
            (ended, None) => Err(refusal(serves, &ended.err().unwrap_or_else(|| "it shows no certificate".into()))),
        })
    }

    /// A handshake in this process, with the delivered files on the side that their profile says.
    pub(crate) fn files(&self, pair: &PairPem<'_>, name: &Name, profile: Profile) -> Result<Proof> {
        let shown = name.clone();
        let refused = |why: String| Error::Handshake { address: "files".into(), name: shown.to_string(), why };
        self.check_leaf(pair).map_err(refused)?;
        let name = server_name(name).map_err(refused)?;
        if matches!(profile, Profile::Server | Profile::Peer) {
            let server = self.server_config(pair, false).map_err(refused)?;
            let client = self.client_config(&Arc::default(), None).map_err(refused)?;
            pump(client, server, name.clone()).map_err(refused)?;
        }
        if matches!(profile, Profile::Client | Profile::Peer) {
            let server = self.server_config(pair, true).map_err(refused)?;
            // The server's own certificate is beside the point here: the client's is what is judged.
            let seen = Arc::default();
            let any = Arc::new(Recording { inner: None, seen: Arc::clone(&seen) });
            let client = self.config_that(any, Some(pair), &seen).map_err(refused)?;
            pump(client, server, name).map_err(refused)?;
        }
        Ok(Proof::Files { name: shown, fingerprint: self.expected })
    }

    fn check_leaf(&self, pair: &PairPem<'_>) -> Said<()> {
        let certificates = pair.certificates()?;
        let held = certificates.first().map(|der| Fingerprint::of(der)).ok_or("the file holds no certificate")?;
        if held == self.expected { Ok(()) } else { Err(format!("the file holds {held} instead of {}", self.expected)) }
    }

    fn roots(&self) -> Said<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        // A bundle may hold certificates that webpki does not read; programs pass over them as well.
        roots.add_parsable_certificates(self.anchors.iter().cloned());
        if roots.is_empty() {
            return Err("the guest's trust bundle holds no anchor".into());
        }
        Ok(Arc::new(roots))
    }

    fn client_config(&self, seen: &Arc<Mutex<Seen>>, client: Option<&PairPem<'_>>) -> Said<ClientConfig> {
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots()?, provider()).build().map_err(said)?;
        self.config_that(Arc::new(Recording { inner: Some(verifier), seen: seen.clone() }), client, seen)
    }

    fn config_that(
        &self,
        verifier: Arc<Recording>,
        client: Option<&PairPem<'_>>,
        seen: &Arc<Mutex<Seen>>,
    ) -> Said<ClientConfig> {
        let certified = client.map(PairPem::certified).transpose()?.map(Arc::new);
        Ok(ClientConfig::builder_with_details(provider(), Arc::new(Clock(self.at)))
            .with_safe_default_protocol_versions()
            .map_err(said)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(Offer { certified, seen: seen.clone() })))
    }

    fn server_config(&self, pair: &PairPem<'_>, ask_client: bool) -> Said<ServerConfig> {
        let builder = ServerConfig::builder_with_details(provider(), Arc::new(Clock(self.at)))
            .with_safe_default_protocol_versions()
            .map_err(said)?;
        let builder = if ask_client {
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(said)?)
        } else {
            builder.with_no_client_auth()
        };
        Ok(builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair.certified()?))))
    }
}

impl PairPem<'_> {
    fn certificates(&self) -> Said<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(self.chain).collect::<std::result::Result<_, _>>().map_err(said)
    }

    /// The pair as rustls holds it, when the two belong together. Of the key itself nothing is copied but what signs.
    fn certified(&self) -> Said<CertifiedKey> {
        let key = PrivateKey::from_pem(self.key, None, "the key file").map_err(said)?;
        let key = sign::any_supported_type(&PrivateKeyDer::Pkcs8(key.to_der().into())).map_err(said)?;
        let certified = CertifiedKey::new(self.certificates()?, key);
        certified.keys_match().map_err(|_| "the key does not belong to the certificate")?;
        Ok(certified)
    }
}

/// Why a handshake proves nothing, in words.
type Said<T> = std::result::Result<T, String>;

fn said(error: impl fmt::Display) -> String {
    error.to_string()
}

/// What the server had a part in may be of any length and hold any character.
fn refusal(serves: &Serves, why: &str) -> Error {
    Error::Handshake { address: serves.address.clone(), name: serves.name.to_string(), why: printable(why.as_bytes()) }
}

/// Tries again until it works or `patience` ends: a reload hands over in its own time, and a service that starts refuses at first.
fn until<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        match attempt() {
            Err(_) if start.elapsed() + pause < patience => std::thread::sleep(pause),
            other => return other,
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// One handshake with a server, from its address to its last word, within [`ATTEMPT`].
fn attempt(serves: &Serves, config: &Arc<ClientConfig>, seen: &Mutex<Seen>, offers: bool) -> Said<()> {
    *lock(seen) = Seen::default();
    let mut wire = Wire::connect(&serves.address).map_err(told)?;
    let mut connection = ClientConnection::new(config.clone(), server_name(&serves.name)?).map_err(said)?;
    while connection.is_handshaking() {
        let Err(error) = turn(&mut connection, &mut wire) else { continue };
        let Seen { verified, signed, asked, .. } = *lock(seen);
        // A TLS 1.2 server that wants a client certificate ends here without one, after it has proven its own.
        return match error {
            Ended::Tls(rustls::Error::AlertReceived(_)) if verified && signed && asked && !offers => Ok(()),
            Ended::Tls(rustls::Error::AlertReceived(_)) | Ended::Io(_) if asked && offers => {
                Err(format!("the server refuses the client certificate: {}", error.told()))
            }
            error => Err(error.told()),
        };
    }
    let flushed = flush(&mut connection, &mut wire);
    if offers {
        if !lock(seen).asked {
            return Err("the server asks for no client certificate".into());
        }
        flushed.map_err(told)?;
        accepted(&mut connection, &mut wire)?;
    }
    connection.send_close_notify();
    // The proof is made; how the server takes the farewell is its own affair.
    let _ = flush(&mut connection, &mut wire);
    Ok(())
}

/// Waits for the server's word on the client certificate.
///
/// In TLS 1.2 the end of the handshake is that word. In TLS 1.3 the server judges after the client is done, and the next
/// thing it says tells: a ticket or data, or an alert. One that says nothing is asked to end the connection.
fn accepted(connection: &mut ClientConnection, wire: &mut Wire) -> Said<()> {
    if connection.protocol_version() == Some(ProtocolVersion::TLSv1_2) {
        return Ok(());
    }
    let refused = |why: String| format!("the server refuses the client certificate: {why}");
    let end = wire.until;
    wire.until = end.min(Instant::now() + SILENCE);
    let first = turn(connection, wire);
    wire.until = end;
    match first {
        Err(Ended::Io(error)) if is_timeout(&error) => {}
        Err(error) => return Err(refused(error.told())),
        Ok(Turn::Closed) => return Err(refused("the server closes the connection".into())),
        Ok(Turn::Open) => return Ok(()),
    }
    connection.send_close_notify();
    match turn(connection, wire) {
        Ok(_) => Ok(()),
        Err(Ended::Io(error)) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        Err(Ended::Io(error)) if is_timeout(&error) => {
            Err("the server does not say whether it takes the client certificate".into())
        }
        Err(error) => Err(refused(error.told())),
    }
}

/// Why a connection came to its end.
enum Ended {
    Io(std::io::Error),
    Tls(rustls::Error),
}

impl Ended {
    fn told(self) -> String {
        match self {
            Self::Io(error) => told(error),
            Self::Tls(rustls::Error::InvalidMessage(_)) => "what answers there does not speak TLS".into(),
            Self::Tls(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                "no chain from its certificate to an anchor of the guest's trust bundle".into()
            }
            Self::Tls(error) => said(error),
        }
    }
}

fn told(error: std::io::Error) -> String {
    match error.kind() {
        _ if is_timeout(&error) => format!("no answer within {} s", ATTEMPT.as_secs()),
        ErrorKind::UnexpectedEof => "the server closes the connection".into(),
        _ => said(error),
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// Whether the other side has more to say.
enum Turn {
    Open,
    Closed,
}

/// Says what is to be said and takes in one answer.
fn turn(connection: &mut ClientConnection, wire: &mut Wire) -> std::result::Result<Turn, Ended> {
    flush(connection, wire).map_err(Ended::Io)?;
    if connection.read_tls(wire).map_err(Ended::Io)? == 0 {
        return Err(Ended::Io(ErrorKind::UnexpectedEof.into()));
    }
    match connection.process_new_packets() {
        Ok(state) if state.peer_has_closed() => Ok(Turn::Closed),
        Ok(_) => Ok(Turn::Open),
        Err(error) => {
            // The alert that says why.
            let _ = flush(connection, wire);
            Err(Ended::Tls(error))
        }
    }
}

fn flush(connection: &mut ClientConnection, wire: &mut Wire) -> std::io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(wire)?;
    }
    Ok(())
}

/// A connection that ends at a time, however slowly the other side speaks.
struct Wire {
    socket: TcpStream,
    until: Instant,
}

impl Wire {
    fn connect(address: &str) -> std::io::Result<Self> {
        let until = Instant::now() + ATTEMPT;
        let mut last = std::io::Error::new(ErrorKind::NotFound, "the address names no host");
        for address in resolve(address, until)? {
            match left(until).and_then(|left| TcpStream::connect_timeout(&address, left)) {
                Ok(socket) => {
                    socket.set_nodelay(true)?;
                    return Ok(Self { socket, until });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.socket.set_read_timeout(Some(left(self.until)?))?;
        self.socket.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.until)?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}

/// The time that is left; none is an error, as a socket's timeout of zero would mean to wait for ever.
fn left(until: Instant) -> std::io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A host name is looked up by a thread, because the resolver knows no deadline.
fn resolve(address: &str, until: Instant) -> std::io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let address = address.to_string();
    std::thread::Builder::new().name("resolve".into()).spawn(move || {
        // Nobody listens any more when it came too late.
        let _ = sender.send(address.to_socket_addrs().map(Vec::from_iter));
    })?;
    receiver.recv_timeout(left(until)?).map_err(|_| std::io::Error::from(ErrorKind::TimedOut))?
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn server_name(name: &Name) -> std::result::Result<ServerName<'static>, String> {
    match name {
        Name::Ip(address) => Ok(ServerName::IpAddress((*address).into())),
        name => ServerName::try_from(name.example().to_string()).map_err(|error| error.to_string()),
    }
}
/// Both ends in this process, bytes handed over in memory.
fn pump(client: ClientConfig, server: ServerConfig, name: ServerName<'static>) -> std::result::Result<(), String> {
    let mut client = ClientConnection::new(Arc::new(client), name).map_err(|error| error.to_string())?;
    let mut server = ServerConnection::new(Arc::new(server)).map_err(|error| error.to_string())?;
    let mut wire = Vec::new();
    // A handshake is done in three flights; ten rounds of both directions are beyond any.
    for _ in 0..10 {
        wire.clear();
        client.write_tls(&mut wire).map_err(|error| error.to_string())?;
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).map_err(|error| error.to_string())?;
            server.process_new_packets().map_err(|error| format!("the server says: {error}"))?;
        }
        wire.clear();
        server.write_tls(&mut wire).map_err(|error| error.to_string())?;
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).map_err(|error| error.to_string())?;
            client.process_new_packets().map_err(|error| format!("the client says: {error}"))?;
        }
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() && !server.wants_write() {
            return Ok(());
        }
    }
    Err("the handshake does not end".into())
}

/// Time as rustls asks for it: the one that was given.
#[derive(Debug)]
struct Clock(OffsetDateTime);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        u64::try_from(self.0.unix_timestamp())
            .ok()
            .map(|seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// What became of a handshake, also of one that failed.
#[derive(Debug, Default)]
struct Seen {
    /// The certificate that the server showed.
    fingerprint: Option<Fingerprint>,
    /// Whether it came without an intermediate.
    alone: bool,
    /// Whether its chain was accepted.
    verified: bool,
    /// Whether the server holds its key.
    signed: bool,
    /// Whether the server asked for a client certificate.
    asked: bool,
}

/// Nothing is left half-done in it by a thread that panicked.
fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes what is shown, and judges it by webpki or, without an inner verifier, not at all.
#[derive(Debug)]
struct Recording {
    inner: Option<Arc<WebPkiServerVerifier>>,
    seen: Arc<Mutex<Seen>>,
}

impl ServerCertVerifier for Recording {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        {
            let mut seen = lock(&self.seen);
            seen.fingerprint = Some(Fingerprint::of(end_entity));
            seen.alone = intermediates.is_empty();
        }
        if let Some(inner) = &self.inner {
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        }
        lock(&self.seen).verified = true;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        let valid = rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)?;
        lock(&self.seen).signed = true;
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        let valid = rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)?;
        lock(&self.seen).signed = true;
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Offers a client certificate, and notes whether one was asked for.
#[derive(Debug)]
struct Offer {
    certified: Option<Arc<CertifiedKey>>,
    seen: Arc<Mutex<Seen>>,
}

impl ResolvesClientCert for Offer {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        lock(&self.seen).asked = true;
        self.certified.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
