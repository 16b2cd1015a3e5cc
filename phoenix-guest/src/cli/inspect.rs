//! `inspect`: what a file holds, without changing or trusting it.

use std::path::PathBuf;

use phoenix_pki::{Certificate, Details, PrivateKey, Request};
use serde::Serialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{HOLDS, Result, Terminal, input};

/// Show certificates, requests and keys; of a private key only its kind, and which certificate it belongs to
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A file of PEM blocks or DER; - is standard input
    file: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Contents {
    certificates: Vec<Shown>,
    request: Option<Asked>,
    private_key: Option<Key>,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    details: Details,
    days_left: i64,
    /// Whose signature it bears: `itself`, or a certificate of the file, from 1.
    signed_by: Option<String>,
}

#[derive(Serialize)]
struct Asked {
    names: Vec<String>,
    key_type: String,
}

#[derive(Serialize)]
struct Key {
    /// None when it is encrypted.
    key_type: Option<String>,
    encrypted: bool,
    /// The certificates of the file that it belongs to, from 1.
    belongs_to: Vec<usize>,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal, now: OffsetDateTime) -> Result<u8> {
    let (bytes, origin) = input(&arguments.file)?;
    let contents = Contents::read(&bytes, &origin, now)?;
    match arguments.json {
        true => terminal.say(&format!("{}\n", serde_json::to_string_pretty(&contents)?))?,
        false => terminal.say(&contents.text())?,
    }
    Ok(HOLDS)
}

impl Contents {
    fn read(bytes: &Zeroizing<Vec<u8>>, origin: &str, now: OffsetDateTime) -> Result<Self> {
        let holds = |label: &str| {
            let wanted = format!("-----BEGIN {label}-----");
            bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes())
        };
        let mut certificates = Vec::new();
        let mut key = None;
        let mut request = None;
        let encrypted = holds("ENCRYPTED PRIVATE KEY");
        if holds("CERTIFICATE") {
            certificates = Certificate::all_from_pem(bytes, origin)?;
        }
        if holds("CERTIFICATE REQUEST") {
            request = Some(Request::from_pem(bytes, origin)?);
        }
        if ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"].into_iter().any(holds) {
            key = Some(PrivateKey::from_pem(bytes, None, origin)?);
        }
        if certificates.is_empty() && request.is_none() && key.is_none() && !encrypted {
            match (Certificate::from_der(bytes, origin), PrivateKey::from_der(bytes, origin)) {
                (Ok(certificate), _) => certificates.push(certificate),
                (_, Ok(read)) => key = Some(read),
                _ => return Err(format!("{origin}: holds no certificate, certificate request or private key").into()),
            }
        }
        let belongs = |key: &PrivateKey| {
            let public_key = key.public_key();
            let own = certificates.iter().enumerate().filter(|(_, held)| held.public_key() == public_key);
            own.map(|(at, _)| at + 1).collect()
        };
        Ok(Self {
            private_key: match &key {
                Some(key) => {
                    let key_type = Some(key.key_type().to_string());
                    Some(Key { key_type, encrypted: false, belongs_to: belongs(key) })
                }
                None => encrypted.then(|| Key { key_type: None, encrypted, belongs_to: Vec::new() }),
            },
            request: request.map(|request| Asked {
                names: request.names().iter().map(ToString::to_string).collect(),
                key_type: request.key_type().to_string(),
            }),
            certificates: certificates
                .iter()
                .map(|certificate| Shown {
                    details: certificate.details(),
                    days_left: (certificate.not_after() - now).whole_days(),
                    signed_by: signer(certificate, &certificates),
                })
                .collect(),
        })
    }

    fn text(&self) -> String {
        let mut parts = Vec::new();
        for (at, shown) in self.certificates.iter().enumerate() {
            parts.push(format!(
                "Certificate {}\n{}{:<20}{}\n{:<20}{}\n",
                at + 1,
                shown.details,
                "Days left",
                shown.days_left,
                "Signed by",
                shown.signed_by.as_deref().unwrap_or("none in this file"),
            ));
        }
        if let Some(Asked { names, key_type }) = &self.request {
            parts.push(format!("Certificate request\n{:<20}{}\n{:<20}{key_type}\n", "Names", names.join(", "), "Key"));
        }
        if let Some(key) = &self.private_key {
            let belongs: Vec<String> = key.belongs_to.iter().map(|at| format!("certificate {at}")).collect();
            let belongs = match (key.encrypted, belongs.is_empty()) {
                (true, _) => "not known: it is encrypted".into(),
                (_, true) => "no certificate in this file".into(),
                _ => belongs.join(", "),
            };
            let key_type = key.key_type.as_deref().unwrap_or("not known: it is encrypted");
            parts.push(format!("Private key\n{:<20}{key_type}\n{:<20}{belongs}\n", "Key", "Belongs to"));
        }
        parts.join("\n")
    }
}

fn signer(certificate: &Certificate, all: &[Certificate]) -> Option<String> {
    if certificate.is_signed_by(certificate) {
        return Some("itself".into());
    }
    all.iter().position(|other| certificate.is_signed_by(other)).map(|at| format!("certificate {}", at + 1))
}
