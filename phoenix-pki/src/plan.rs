//! Deciding what is due: one pure function from what is wanted, what is held and the time to a typed reason.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use crate::certificate::Certificate;
use crate::name::Name;
use crate::profile::{LeafParams, Profile, Renewal};

/// What the store holds under a label.
#[derive(Debug)]
pub(crate) enum Held<'a> {
    /// Nothing.
    Missing,
    /// Something that does not read as a pair.
    Damaged(&'a str),
    /// A certificate that reads, and the public half of the key beside it.
    Pair { certificate: &'a Certificate, public_key: &'a [u8], revoked: bool },
}

/// Why a certificate is, or is not, made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// Nothing is due.
    UpToDate,
    /// There is none.
    Missing,
    /// It is past its renewal point.
    Expiring {
        /// Its end.
        #[serde(with = "time::serde::rfc3339")]
        not_after: OffsetDateTime,
    },
    /// It has other names than are wanted.
    NamesChanged {
        /// Wanted, and not in it.
        added: BTreeSet<Name>,
        /// In it, and not wanted.
        removed: BTreeSet<Name>,
    },
    /// Another authority issued it.
    IssuerChanged,
    /// It is for another purpose.
    ProfileChanged {
        /// What is wanted.
        wanted: Profile,
    },
    /// Its key is of another kind.
    KeyTypeChanged,
    /// The key beside it is not its own.
    KeyMismatch,
    /// What is there cannot be read.
    Damaged {
        /// Why not.
        why: String,
    },
    /// It was revoked.
    Revoked,
    /// It was asked for, whatever is there.
    Requested,
}

impl Reason {
    /// Whether a new certificate is due.
    pub fn is_due(&self) -> bool {
        *self != Self::UpToDate
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &BTreeSet<Name>, sign: &str| -> Vec<String> {
            names.iter().map(|name| format!("{sign}{name}")).collect()
        };
        match self {
            Self::UpToDate => f.write_str("up to date"),
            Self::Missing => f.write_str("missing"),
            Self::Expiring { not_after } => write!(f, "expiring on {}", not_after.date()),
            Self::NamesChanged { added, removed } => {
                write!(f, "names changed: {}", [list(added, "+"), list(removed, "-")].concat().join(" "))
            }
            Self::IssuerChanged => f.write_str("issuer changed"),
            Self::ProfileChanged { wanted } => write!(f, "profile changed to {wanted}"),
            Self::KeyTypeChanged => f.write_str("key type changed"),
            Self::KeyMismatch => f.write_str("key mismatch"),
            Self::Damaged { why } => write!(f, "damaged: {why}"),
            Self::Revoked => f.write_str("revoked"),
            Self::Requested => f.write_str("requested"),
        }
    }
}

/// Judges what is held against what is wanted from this issuer.
pub(crate) fn judge(wanted: &LeafParams, held: &Held<'_>, issuer: &Certificate, now: OffsetDateTime) -> Reason {
    let (certificate, public_key, revoked) = match held {
        Held::Missing => return Reason::Missing,
        Held::Damaged(why) => return Reason::Damaged { why: (*why).into() },
        Held::Pair { certificate, public_key, revoked } => (certificate, public_key, revoked),
    };
    if certificate.public_key() != *public_key {
        return Reason::KeyMismatch;
    }
    if *revoked {
        return Reason::Revoked;
    }
    if !certificate.names_issuer(issuer) {
        return Reason::IssuerChanged;
    }
    let names: BTreeSet<Name> = wanted.names.iter().cloned().collect();
    if names != *certificate.names() {
        return Reason::NamesChanged {
            added: names.difference(certificate.names()).cloned().collect(),
            removed: certificate.names().difference(&names).cloned().collect(),
        };
    }
    if certificate.profile() != Some(wanted.profile) {
        return Reason::ProfileChanged { wanted: wanted.profile };
    }
    if certificate.key_type() != Some(wanted.key_type) {
        return Reason::KeyTypeChanged;
    }
    // One that ends with its issuer cannot be renewed to live longer, so making it anew would never come to rest.
    let can_live_longer = certificate.not_after() < issuer.not_after();
    if now >= renewal_point(wanted.renewal, certificate) && can_live_longer {
        return Reason::Expiring { not_after: certificate.not_after() };
    }
    Reason::UpToDate
}

/// When a certificate is due for renewal.
pub(crate) fn renewal_point(renewal: Renewal, certificate: &Certificate) -> OffsetDateTime {
    match renewal {
        Renewal::Share(percent) => {
            let life = certificate.not_after() - certificate.not_before();
            certificate.not_before() + life * f64::from(percent) / 100.0
        }
        Renewal::Before(span) => certificate.not_after() - span.duration(),
    }
}
