//! The ledger of everything ever issued: one JSON object a line, appended, never rewritten.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;

use crate::certificate::{Certificate, Fingerprint, SerialNumber};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::profile::{Profile, Revocation};

/// A line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    Issued(Issued),
    Revoked {
        serial: SerialNumber,
        reason: Revocation,
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
    },
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Issued {
    /// Its serial number.
    pub serial: SerialNumber,
    /// What the store calls it; none for a root, an intermediate, a signed request or what `sign` made.
    pub label: Option<String>,
    /// Its subject.
    pub subject: String,
    /// Its names.
    #[serde(deserialize_with = "found")]
    pub names: Vec<Name>,
    /// Its profile; none for an authority.
    pub profile: Option<Profile>,
    /// SHA-256 of its DER, hexadecimal.
    pub fingerprint: String,
    /// Its issuer's subject.
    pub issuer: String,
    /// Its issuer's key identifier, hexadecimal: which generation signed it.
    pub issuer_key: String,
    /// Start of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// End of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// The one it took the place of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replaces: Option<SerialNumber>,
}

impl Issued {
    pub(crate) fn of(certificate: &Certificate, label: Option<&str>, replaces: Option<SerialNumber>) -> Self {
        Self {
            serial: certificate.serial_number().clone(),
            label: label.map(Into::into),
            subject: certificate.subject().into(),
            names: certificate.names().iter().cloned().collect(),
            profile: certificate.profile(),
            fingerprint: certificate.fingerprint().to_string(),
            issuer: certificate.issuer().into(),
            issuer_key: hex(certificate.authority_key_id().unwrap_or_default()),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
            replaces,
        }
    }
}

fn found<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Name>, D::Error> {
    let names = Vec::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    Ok(names.iter().map(|name| Name::found(name)).collect())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An event as a line, which ends in a check of what stands before: a flipped bit must not take a revocation back.
pub(crate) fn line(event: &Event) -> std::result::Result<String, serde_json::Error> {
    let json = serde_json::to_string(event)?;
    let open = json.strip_suffix('}').unwrap_or(&json);
    Ok(format!("{open},\"check\":\"{}\"}}\n", check(open)))
}

/// The first 64 bits of the SHA-256 of a line up to its check.
fn check(open: &str) -> String {
    Fingerprint::of(open.as_bytes()).short()
}

/// Whether a line is as it was written.
fn is_whole(line: &str) -> bool {
    let end = r#","check":"0123456789abcdef"}"#.len();
    let Some((open, end)) = line.len().checked_sub(end).and_then(|at| line.split_at_checked(at)) else { return false };
    end == format!(r#","check":"{}"}}"#, check(open))
}

/// Everything ever issued, and what was revoked.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    issued: Vec<Issued>,
    fingerprints: HashSet<String>,
    revoked: HashMap<SerialNumber, (Revocation, OffsetDateTime)>,
    replaced_by: HashMap<SerialNumber, SerialNumber>,
}

impl Ledger {
    /// Reads the text of a ledger. A last line without its end is what a killed run left, and does not count.
    pub(crate) fn parse(text: &str, origin: &str) -> Result<Self> {
        let mut ledger = Self::default();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        for (at, line) in whole.split_terminator('\n').enumerate() {
            let damaged =
                |why: String| Error::Parse { origin: format!("{origin}:{}", at + 1), what: "ledger line", why };
            if !is_whole(line) {
                return Err(damaged("it is not as it was written".into()));
            }
            // Almost every line is of this kind; without a tag to look for, serde need not buffer it.
            let event = match line.starts_with(r#"{"event":"issued","#) {
                true => serde_json::from_str(line).map(Event::Issued),
                false => serde_json::from_str(line),
            };
            match event.map_err(|error| damaged(error.to_string()))? {
                Event::Issued(issued) => {
                    if let Some(replaced) = &issued.replaces {
                        ledger.replaced_by.insert(replaced.clone(), issued.serial.clone());
                    }
                    ledger.fingerprints.insert(issued.fingerprint.clone());
                    ledger.issued.push(issued);
                }
                Event::Revoked { serial, reason, at } => {
                    ledger.revoked.entry(serial).or_insert((reason, at));
                }
            }
        }
        Ok(ledger)
    }

    /// Everything ever issued, oldest first.
    pub fn issued(&self) -> &[Issued] {
        &self.issued
    }

    /// Whether this very certificate, to the last bit, was issued here.
    pub(crate) fn knows(&self, certificate: &Certificate) -> bool {
        self.fingerprints.contains(&certificate.fingerprint().to_string())
    }

    /// Why and when a serial number was revoked, if it was.
    pub fn revocation(&self, serial: &SerialNumber) -> Option<(Revocation, OffsetDateTime)> {
        self.revoked.get(serial).copied()
    }

    /// What took the place of a certificate, if anything did.
    pub fn replaced_by(&self, serial: &SerialNumber) -> Option<&SerialNumber> {
        self.replaced_by.get(serial)
    }
}
