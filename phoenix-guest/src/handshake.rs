//! The proof: a TLS handshake that trusts nothing but the anchors it is given.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phoenix_pki::{Fingerprint, Name, Profile};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConfig, ServerConnection,
    SignatureScheme,
};
use serde::Serialize;
use time::OffsetDateTime;

use crate::error::{Error, Result};

/// How long one attempt at a handshake may take.
const ATTEMPT: Duration = Duration::from_secs(5);

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
        port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(refused)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if host.contains(':') != bracketed.is_some() && bracketed.is_none() {
            return Err(refused());
        }
        let name: Name = bracketed.unwrap_or(host).parse().map_err(|_| refused())?;
        Ok(Self { address: address.into(), name })
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
    /// With a client pair it is that certificate which is judged: the server must ask for it and accept it.
    pub(crate) fn serving(&self, serves: &Serves, client: Option<&PairPem<'_>>, patience: Duration) -> Result<Proof> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(20);
        loop {
            match self.server_once(serves, client) {
                // A reload hands over in its own time, and a service that starts refuses at first.
                Err(_) if start.elapsed() + pause < patience => std::thread::sleep(pause),
                other => return other,
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn server_once(&self, serves: &Serves, client: Option<&PairPem<'_>>) -> Result<Proof> {
        let refused =
            |why: String| Error::Handshake { address: serves.address.clone(), name: serves.name.to_string(), why };
        let seen = Arc::new(Seen::default());
        let asked = Arc::new(Mutex::new(false));
        let config = self.client_config(seen.clone(), client, &asked).map_err(refused)?;
        let mut connection = ClientConnection::new(Arc::new(config), server_name(&serves.name).map_err(refused)?)
            .map_err(|error| refused(error.to_string()))?;
        let mut socket = connect(&serves.address).map_err(|error| refused(error.to_string()))?;
        let mut finish = || -> std::io::Result<()> {
            while connection.is_handshaking() {
                connection.complete_io(&mut socket)?;
            }
            connection.complete_io(&mut socket)?;
            Ok(())
        };
        if let Err(error) = finish() {
            let shown = seen.fingerprint().map(|shown| format!("; it shows {shown}")).unwrap_or_default();
            return Err(refused(format!("{error}{shown}")));
        }
        if client.is_some() {
            if !*asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
                return Err(refused("the server asks for no client certificate".into()));
            }
            // A TLS 1.3 server judges the client after the client is done: a refusal is the next thing it says.
            let answer =
                connection.complete_io(&mut socket).map(drop).and_then(|()| match connection.reader().read(&mut [0]) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
                    other => other.map(drop),
                });
            match answer {
                Err(error)
                    if !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
                {
                    return Err(refused(format!("the server refuses the client certificate: {error}")));
                }
                _ => {}
            }
        } else if seen.fingerprint() != Some(self.expected) {
            let shown = seen.fingerprint().map(|shown| shown.to_string()).unwrap_or_default();
            return Err(refused(format!("it shows {shown} instead of {}", self.expected)));
        }
        connection.send_close_notify();
        let _ = connection.complete_io(&mut socket).and_then(|_| socket.flush());
        Ok(Proof::Serving { address: serves.address.clone(), name: serves.name.clone(), fingerprint: self.expected })
    }

    /// A handshake in this process, with the delivered files on the side that their profile says.
    pub(crate) fn files(&self, pair: &PairPem<'_>, name: &Name, profile: Profile) -> Result<Proof> {
        let refused = |why: String| Error::Handshake { address: "files".into(), name: name.to_string(), why };
        if matches!(profile, Profile::Server | Profile::Peer) {
            let server = self.server_config(pair, false).map_err(refused)?;
            let client = self.client_config(Arc::default(), None, &Arc::default()).map_err(refused)?;
            pump(client, server, server_name(name).map_err(refused)?).map_err(refused)?;
        }
        if matches!(profile, Profile::Client | Profile::Peer) {
            // The server's own certificate is beside the point here: the client's is what is judged.
            let server = self.server_config(pair, true).map_err(refused)?;
            let mut client = self.client_config(Arc::default(), Some(pair), &Arc::default()).map_err(refused)?;
            client.dangerous().set_certificate_verifier(Arc::new(AnyServer));
            pump(client, server, server_name(name).map_err(refused)?).map_err(refused)?;
        }
        let shown = CertificateDer::from_pem_slice(pair.chain).map_err(|error| refused(error.to_string()))?;
        if Fingerprint::of(&shown) != self.expected {
            return Err(refused(format!("the file holds {} instead of {}", Fingerprint::of(&shown), self.expected)));
        }
        Ok(Proof::Files { name: name.clone(), fingerprint: self.expected })
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        // A bundle may hold certificates that webpki does not read; programs pass over them as well.
        roots.add_parsable_certificates(self.anchors.iter().cloned());
        roots
    }

    fn client_config(
        &self,
        seen: Arc<Seen>,
        client: Option<&PairPem<'_>>,
        asked: &Arc<Mutex<bool>>,
    ) -> std::result::Result<ClientConfig, String> {
        let roots = Arc::new(self.roots());
        if roots.is_empty() {
            return Err("the guest's trust bundle holds no anchor".into());
        }
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| error.to_string())?;
        let builder = ClientConfig::builder_with_details(provider(), Arc::new(Clock(self.at)))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Recording { inner, seen }));
        let resolver = match client {
            None => None,
            Some(pair) => Some(pair.certified()?),
        };
        Ok(builder.with_client_cert_resolver(Arc::new(Offer { certified: resolver, asked: asked.clone() })))
    }

    fn server_config(&self, pair: &PairPem<'_>, ask_client: bool) -> std::result::Result<ServerConfig, String> {
        let builder = ServerConfig::builder_with_details(provider(), Arc::new(Clock(self.at)))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = if ask_client {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider())
                .build()
                .map_err(|error| error.to_string())?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        builder.with_single_cert(pair.certificates()?, pair.private_key()?).map_err(|error| error.to_string())
    }
}

impl PairPem<'_> {
    fn certificates(&self) -> std::result::Result<Vec<CertificateDer<'static>>, String> {
        CertificateDer::pem_slice_iter(self.chain)
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| error.to_string())
    }

    fn private_key(&self) -> std::result::Result<PrivateKeyDer<'static>, String> {
        PrivateKeyDer::from_pem_slice(self.key).map_err(|error| error.to_string())
    }

    fn certified(&self) -> std::result::Result<Arc<CertifiedKey>, String> {
        CertifiedKey::from_der(self.certificates()?, self.private_key()?, &provider())
            .map(Arc::new)
            .map_err(|error| error.to_string())
    }
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

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the address names no host");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(socket) => {
                socket.set_read_timeout(Some(ATTEMPT))?;
                socket.set_write_timeout(Some(ATTEMPT))?;
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
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

/// The certificate that a server showed, also when it is refused.
#[derive(Debug, Default)]
struct Seen(Mutex<Option<Fingerprint>>);

impl Seen {
    fn fingerprint(&self) -> Option<Fingerprint> {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Judges by webpki and notes what was shown.
#[derive(Debug)]
struct Recording {
    inner: Arc<WebPkiServerVerifier>,
    seen: Arc<Seen>,
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
        *self.seen.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Fingerprint::of(end_entity));
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts any server: only for the in-process half of a client certificate's proof.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Offers a client certificate, and notes whether one was asked for.
#[derive(Debug)]
struct Offer {
    certified: Option<Arc<CertifiedKey>>,
    asked: Arc<Mutex<bool>>,
}

impl ResolvesClientCert for Offer {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        *self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = true;
        self.certified.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
