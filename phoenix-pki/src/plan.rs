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
    /// A clock that ran ahead made it.
    NotYetValid {
        /// Its beginning.
        #[serde(with = "time::serde::rfc3339")]
        not_before: OffsetDateTime,
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
            Self::NotYetValid { not_before } => write!(f, "not valid before {}", not_before.date()),
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
    if now < certificate.not_before() {
        return Reason::NotYetValid { not_before: certificate.not_before() };
    }
    // One that ends with its issuer cannot be renewed to live longer, so making it anew would never come to rest.
    let can_live_longer = certificate.not_after() < issuer.not_after();
    let due = now >= renewal_point(wanted.renewal, certificate) && can_live_longer;
    if due || now > certificate.not_after() {
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

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;
    use crate::key::{KeyType, PrivateKey};
    use crate::name::Permitted;
    use crate::profile::{AuthorityParams, Lifetime};
    use crate::sign::{self, Signer};

    /// An intermediate that lives long enough for every clock of these tests.
    fn issuer(now: OffsetDateTime) -> Signer {
        let params = AuthorityParams {
            root_lifetime: Lifetime::days(30 * 365),
            intermediate_lifetime: Lifetime::days(29 * 365),
            ..AuthorityParams::new("Example", Permitted::parse(["internal.example", "10.0.0.0/8", "fd00::/8"]).unwrap())
        };
        let key = || PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let root_key = key();
        let root = sign::root(&params, &root_key, now).unwrap();
        let root = Signer::new(root, root_key, "root").unwrap();
        let key = key();
        Signer::new(sign::intermediate(&params, &key, &root, now).unwrap(), key, "intermediate").unwrap()
    }

    fn leaf(issuer: &Signer, wanted: &LeafParams, now: OffsetDateTime) -> (Certificate, Vec<u8>) {
        let key = PrivateKey::generate(wanted.key_type).unwrap();
        (issuer.leaf(wanted, &key, now).unwrap(), key.public_key())
    }

    fn wanted(names: &[&str]) -> LeafParams {
        LeafParams::server(names).unwrap()
    }

    #[test]
    fn every_reason_is_given_for_its_cause() {
        let now = datetime!(2026-11-21 12:00 UTC);
        let (issuer, other) = (issuer(now), issuer(now));
        let held = wanted(&["a.internal.example", "10.0.0.1"]);
        let (certificate, public_key) = leaf(&issuer, &held, now);
        let (_, foreign_key) = leaf(&issuer, &held, now);
        let pair = |public_key, revoked| Held::Pair { certificate: &certificate, public_key, revoked };
        let own = || pair(&public_key, false);
        let name = |text: &str| -> Name { text.parse().unwrap() };
        let at_end = certificate.not_after();
        for (wanted, held, issuer, at, expected) in [
            (held.clone(), own(), &issuer, now, Reason::UpToDate),
            (held.clone(), Held::Missing, &issuer, now, Reason::Missing),
            (held.clone(), Held::Damaged("cut"), &issuer, now, Reason::Damaged { why: "cut".into() }),
            (held.clone(), pair(&foreign_key, false), &issuer, now, Reason::KeyMismatch),
            (held.clone(), pair(&public_key, true), &issuer, now, Reason::Revoked),
            (held.clone(), own(), &other, now, Reason::IssuerChanged),
            (held.clone(), own(), &issuer, at_end, Reason::Expiring { not_after: at_end }),
            (held.clone(), own(), &issuer, at_end + Duration::days(999), Reason::Expiring { not_after: at_end }),
            (
                wanted(&["a.internal.example", "b.internal.example"]),
                own(),
                &issuer,
                now,
                Reason::NamesChanged { added: [name("b.internal.example")].into(), removed: [name("10.0.0.1")].into() },
            ),
            (
                LeafParams { profile: Profile::Peer, ..held.clone() },
                own(),
                &issuer,
                now,
                Reason::ProfileChanged { wanted: Profile::Peer },
            ),
            (LeafParams { key_type: KeyType::Ed25519, ..held.clone() }, own(), &issuer, now, Reason::KeyTypeChanged),
        ] {
            let reason = judge(&wanted, &held, &issuer.certificate, at);
            assert_eq!(reason, expected, "{reason}");
        }
    }

    #[test]
    fn names_compare_as_sets_of_parsed_names() {
        let now = datetime!(2026-11-21 12:00 UTC);
        let issuer = issuer(now);
        let (certificate, public_key) = leaf(&issuer, &wanted(&["a.internal.example", "10.0.0.1", "fd00::1"]), now);
        for (names, same) in [
            (&["fd00:0:0::0001", "10.0.0.1", "A.Internal.EXAMPLE"][..], true),
            (&["a.internal.example", "a.internal.example", "::ffff:10.0.0.1", "FD00::1"][..], true),
            (&["a.internal.example", "10.0.0.1"][..], false),
            (&["*.internal.example", "10.0.0.1", "fd00::1"][..], false),
        ] {
            let held = Held::Pair { certificate: &certificate, public_key: &public_key, revoked: false };
            let reason = judge(&wanted(names), &held, &issuer.certificate, now);
            assert_eq!(!reason.is_due(), same, "{names:?}: {reason}");
        }
    }

    #[test]
    fn the_renewal_window_opens_on_its_second() {
        // Leap day, the change from UTCTime to GeneralizedTime in 2050, and the turn of a year.
        for now in [
            datetime!(2026-11-21 12:00 UTC),
            datetime!(2028-02-29 23:59:59 UTC),
            datetime!(2049-11-30 00:00 UTC),
            datetime!(2050-01-01 00:00 UTC),
            datetime!(2026-12-31 23:59:59.999 UTC),
        ] {
            let issuer = issuer(now);
            for renewal in [
                Renewal::default(),
                Renewal::Share(1),
                Renewal::Share(99),
                Renewal::Before(Lifetime::days(30)),
                Renewal::Before(Lifetime::hours(1)),
            ] {
                let wanted = LeafParams { renewal, ..wanted(&["a.internal.example"]) };
                let (certificate, public_key) = leaf(&issuer, &wanted, now);
                assert_eq!((certificate.not_after() - now).whole_days(), 89, "90 days, less a second");
                let due = |at| {
                    let held = Held::Pair { certificate: &certificate, public_key: &public_key, revoked: false };
                    judge(&wanted, &held, &issuer.certificate, at).is_due()
                };
                let opens = renewal_point(renewal, &certificate);
                assert!(opens > now && opens < certificate.not_after(), "{renewal}");
                assert!(!due(now) && !due(opens - Duration::SECOND) && due(opens) && due(certificate.not_after()));
            }
        }
    }

    #[test]
    fn one_that_is_not_valid_is_never_up_to_date() {
        let now = datetime!(2026-11-21 12:00 UTC);
        let issuer = issuer(now);
        let wanted = wanted(&["a.internal.example"]);
        let judged = |(certificate, public_key): (Certificate, Vec<u8>), at| {
            let held = Held::Pair { certificate: &certificate, public_key: &public_key, revoked: false };
            judge(&wanted, &held, &issuer.certificate, at)
        };
        // Made by a clock that ran ahead.
        let ahead = leaf(&issuer, &wanted, now + Duration::days(300));
        let not_before = ahead.0.not_before();
        assert_eq!(judged(ahead, now), Reason::NotYetValid { not_before });
        // Over, with its issuer.
        let end = issuer.certificate.not_after();
        let last = leaf(&issuer, &wanted, end - Duration::days(10));
        assert_eq!(judged(last, end + Duration::SECOND), Reason::Expiring { not_after: end });
    }

    #[test]
    fn one_that_ends_with_its_issuer_rests() {
        let now = datetime!(2026-11-21 12:00 UTC);
        let issuer = issuer(now);
        let late = issuer.certificate.not_after() - Duration::days(10);
        let wanted = wanted(&["a.internal.example"]);
        let (certificate, public_key) = leaf(&issuer, &wanted, late);
        assert_eq!(certificate.not_after(), issuer.certificate.not_after());
        let held = Held::Pair { certificate: &certificate, public_key: &public_key, revoked: false };
        assert_eq!(judge(&wanted, &held, &issuer.certificate, late + Duration::days(9)), Reason::UpToDate);
    }
}
