//! Revoking certificates, and the CRLs that say so (RFC 5280 §5).

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;
use time::OffsetDateTime;

use crate::authority::Authority;
use crate::certificate::{Certificate, SerialNumber};
use crate::crl::{Crl, Revoked};
use crate::error::{Error, Result};
use crate::ledger::{Event, Issued, Ledger, hex};
use crate::profile::{INTERMEDIATE_CRL, ROOT_CRL, Revocation, RootKey};
use crate::sign::Signer;
use crate::store::{Lock, Role};

/// What [`Authority::refresh_crls`] came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CrlRefresh {
    /// The root's CRL: what it says of intermediates.
    pub root: CrlState,
    /// The intermediate's CRL: what it says of leaves.
    pub intermediate: CrlState,
}

impl CrlRefresh {
    /// Whether a CRL was written, or is due to be.
    pub fn changed(&self) -> bool {
        [&self.root, &self.intermediate].iter().any(|state| matches!(state, CrlState::Written | CrlState::Due))
    }

    /// Whether a CRL that is due cannot be signed.
    pub fn waits(&self) -> bool {
        [&self.root, &self.intermediate].iter().any(|state| matches!(state, CrlState::Waiting { .. }))
    }
}

/// What became of one CRL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CrlState {
    /// It has time left and says what the ledger says.
    Unchanged,
    /// A new one was signed.
    Written,
    /// A new one is due, and nothing stands in its way.
    Due,
    /// A new one is due, and the root key is not at hand.
    Waiting {
        /// Why not.
        why: String,
    },
}

impl Authority {
    /// Revokes every certificate of this label or serial number that is still valid; says which.
    ///
    /// The intermediate's CRL is written with it. When an intermediate is revoked, [`Authority::refresh_crls`] writes
    /// the root's, for which the root key is needed.
    ///
    /// ```
    /// # use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, Revocation, RootKey, Store};
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let (store, now) = (Store::new(directory.path().join("store")), time::OffsetDateTime::now_utc());
    /// # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
    /// # let authority = Authority::create(&store, &AuthorityParams { root_key: RootKey::Plain, ..params }, now)?;
    /// let wanted = LeafParams::server(["nginx.internal.example"])?;
    /// authority.ensure(&wanted, now)?;
    /// authority.revoke("nginx.internal.example", Revocation::KeyCompromise, now)?;
    /// assert_eq!(authority.crls()?[0].entries().len(), 1);
    /// assert_eq!(authority.ensure(&wanted, now)?.reason.to_string(), "revoked");
    /// # Ok::<(), phoenix_pki::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotIssued`] when there is none, [`Error::Time`] when all are over, [`Error::Value`] for a root, which only
    /// trust stores can drop.
    pub fn revoke(&self, wanted: &str, reason: Revocation, now: OffsetDateTime) -> Result<Vec<SerialNumber>> {
        let lock = self.store.lock()?;
        let ledger = self.store.ledger()?;
        let serial: Option<SerialNumber> = wanted.parse().ok();
        let matching: Vec<&Issued> = ledger
            .issued()
            .iter()
            .filter(|issued| issued.label.as_deref() == Some(wanted) || Some(&issued.serial) == serial.as_ref())
            .collect();
        let last = matching.last().ok_or_else(|| Error::NotIssued { wanted: wanted.into() })?;
        if matching.iter().all(|issued| issued.not_after <= now) {
            let (not_before, not_after) = (last.not_before, last.not_after);
            return Err(Error::Time { subject: wanted.into(), at: now, not_before, not_after });
        }
        if matching.iter().any(|issued| issued.fingerprint == self.root.fingerprint().to_string()) {
            let accepted = "a root cannot revoke itself: remove it from the trust stores";
            return Err(Error::Value { what: "certificate", value: wanted.into(), accepted });
        }
        let mut seen = HashSet::new();
        let fresh: Vec<SerialNumber> = matching
            .into_iter()
            .filter(|issued| issued.not_after > now && seen.insert(&issued.serial))
            .map(|issued| issued.serial.clone())
            .filter(|serial| ledger.revocation(serial).is_none())
            .collect();
        if !fresh.is_empty() {
            let event = |serial: &SerialNumber| Event::Revoked { serial: serial.clone(), reason, at: now };
            lock.record(&fresh.iter().map(event).collect::<Vec<_>>())?;
        }
        self.refresh_crl(&lock, Role::Intermediate, &self.store.ledger()?, &RootKey::Plain, now)?;
        Ok(fresh)
    }

    /// The CRLs, intermediate's first: what a verifier that asks about revocation is given.
    ///
    /// # Errors
    /// The store's, and [`Error::Parse`] for one that is damaged.
    pub fn crls(&self) -> Result<Vec<Crl>> {
        let mut crls = Vec::new();
        for role in [Role::Intermediate, Role::Root] {
            let origin = self.store.authority_file(&self.generation, role, "crl").display().to_string();
            if let Some(pem) = self.store.crl(&self.generation, role)? {
                crls.push(Crl::from_pem(&pem, &origin)?);
            }
        }
        Ok(crls)
    }

    /// Signs the CRLs that are due: with less than half of their time left, or saying something else than the ledger.
    /// Writes nothing otherwise.
    ///
    /// When the root's is due and its key is sealed, or its passphrase not at hand, the result says so.
    ///
    /// # Errors
    /// The store's.
    pub fn refresh_crls(&self, root_key: &RootKey, now: OffsetDateTime) -> Result<CrlRefresh> {
        let ledger = self.store.ledger()?;
        if !self.crl_is_due(Role::Root, &ledger, now)? && !self.crl_is_due(Role::Intermediate, &ledger, now)? {
            return Ok(CrlRefresh { root: CrlState::Unchanged, intermediate: CrlState::Unchanged });
        }
        let lock = self.store.lock()?;
        let ledger = self.store.ledger()?;
        let refresh = |role| self.refresh_crl(&lock, role, &ledger, root_key, now);
        Ok(CrlRefresh { intermediate: refresh(Role::Intermediate)?, root: refresh(Role::Root)? })
    }

    /// What [`Authority::refresh_crls`] would do. Writes nothing.
    ///
    /// # Errors
    /// The store's.
    pub fn plan_crls(&self, root_key: &RootKey, now: OffsetDateTime) -> Result<CrlRefresh> {
        let ledger = self.store.ledger()?;
        let plan = |role| match self.crl_is_due(role, &ledger, now)? {
            false => Ok(CrlState::Unchanged),
            true => {
                Ok(self.crl_signer(role, root_key)?.map_or_else(|why| CrlState::Waiting { why }, |_| CrlState::Due))
            }
        };
        Ok(CrlRefresh { intermediate: plan(Role::Intermediate)?, root: plan(Role::Root)? })
    }

    /// The key that signs a CRL, or why it is not at hand.
    fn crl_signer(&self, role: Role, root_key: &RootKey) -> Result<std::result::Result<Signer, String>> {
        match role {
            Role::Intermediate => self.intermediate_signer().map(Ok),
            Role::Root => match self.root_signer(root_key) {
                Err(error @ (Error::Sealed { .. } | Error::Passphrase { .. })) => Ok(Err(error.to_string())),
                other => other.map(Ok),
            },
        }
    }

    fn refresh_crl(
        &self,
        lock: &Lock<'_>,
        role: Role,
        ledger: &Ledger,
        root_key: &RootKey,
        now: OffsetDateTime,
    ) -> Result<CrlState> {
        if !self.crl_is_due(role, ledger, now)? {
            return Ok(CrlState::Unchanged);
        }
        let signer = match self.crl_signer(role, root_key)? {
            Ok(signer) => signer,
            Err(why) => return Ok(CrlState::Waiting { why }),
        };
        let lifetime = match role {
            Role::Intermediate => INTERMEDIATE_CRL,
            Role::Root => ROOT_CRL,
        };
        let number = match self.current_crl(role)? {
            Some(old) => old.number() + 1,
            // The last number is lost; the time is above any that was counted up from 1.
            None => u64::try_from(now.unix_timestamp()).unwrap_or(1),
        };
        let crl = signer.crl(number, &revoked_by(&signer.certificate, ledger, now), lifetime, now)?;
        lock.replace_authority_file(&self.generation, role, "crl", crl.pem().as_bytes())?;
        Ok(CrlState::Written)
    }

    fn crl_is_due(&self, role: Role, ledger: &Ledger, now: OffsetDateTime) -> Result<bool> {
        let issuer = self.certificate(role);
        // A root from elsewhere may not be one that signs CRLs.
        Ok(issuer.signs_crls()
            && self
                .current_crl(role)?
                .is_none_or(|crl| crl.is_due(now) || !self.crl_is_complete(role, &crl, ledger, now)))
    }

    /// Whether a CRL says what the ledger says.
    pub(crate) fn crl_is_complete(&self, role: Role, crl: &Crl, ledger: &Ledger, now: OffsetDateTime) -> bool {
        serials(crl.entries()) == serials(&revoked_by(self.certificate(role), ledger, now))
    }

    /// The CRL of the root or intermediate; `None` when there is none, or one that nobody would accept.
    pub(crate) fn current_crl(&self, role: Role) -> Result<Option<Crl>> {
        let Some(pem) = self.store.crl(&self.generation, role)? else { return Ok(None) };
        Ok(Crl::from_pem(&pem, "").ok().filter(|crl| crl.is_signed_by(self.certificate(role))))
    }
}

fn serials(entries: &[Revoked]) -> BTreeSet<&SerialNumber> {
    entries.iter().map(|entry| &entry.serial).collect()
}

/// What this issuer's CRL must say: its certificates that are revoked and not yet over.
fn revoked_by(issuer: &Certificate, ledger: &Ledger, now: OffsetDateTime) -> Vec<Revoked> {
    let key = hex(issuer.subject_key_id().unwrap_or_default());
    // What somebody else issued may name its issuer by subject alone.
    let issued_by = |issued: &&Issued| {
        issued.issuer == issuer.subject()
            && (issued.issuer_key == key || issued.issuer_key.is_empty() || key.is_empty())
    };
    let mut entries: Vec<Revoked> = ledger
        .issued()
        .iter()
        .filter(issued_by)
        .filter(|issued| issued.not_after > now)
        .filter_map(|issued| {
            let (reason, at) = ledger.revocation(&issued.serial)?;
            Some(Revoked { serial: issued.serial.clone(), at, reason })
        })
        .collect();
    entries.sort_by(|one, other| one.serial.cmp(&other.serial));
    entries.dedup_by(|one, other| one.serial == other.serial);
    entries
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::name::Permitted;
    use crate::profile::{AuthorityParams, LeafParams, Profile};
    use crate::store::Store;
    use crate::verify::Verification;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

    fn authority(directory: &tempfile::TempDir, root_key: RootKey) -> Authority {
        let store = Store::new(directory.path().join("store"));
        let permitted = Permitted::parse(["internal.example"]).unwrap();
        let params = AuthorityParams { root_key, ..AuthorityParams::new("Example", permitted) };
        Authority::create(&store, &params, NOW).unwrap()
    }

    #[test]
    fn a_revoked_leaf_is_refused_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Plain);
        let wanted = LeafParams::server(["a.internal.example"]).unwrap();
        let leaf = authority.ensure(&wanted, NOW).unwrap().leaf;
        let other = authority.ensure(&LeafParams::server(["b.internal.example"]).unwrap(), NOW).unwrap().leaf;
        let check = |leaf: &crate::leaf::Leaf, at| {
            let crls = authority.crls().unwrap();
            let asked = Verification { purpose: Profile::Server, names: &[], at, crls: &crls };
            asked.check(leaf.chain(), std::slice::from_ref(authority.root()))
        };
        check(&leaf, NOW).unwrap();
        assert_eq!(authority.crls().unwrap()[0].number(), 1);

        let revoked = authority.revoke("a.internal.example", Revocation::KeyCompromise, NOW).unwrap();
        assert_eq!(revoked, [leaf.certificate().serial_number().clone()]);
        assert!(matches!(check(&leaf, NOW), Err(Error::Revoked { .. })));
        check(&other, NOW).unwrap();
        let crl = authority.crls().unwrap().remove(0);
        assert_eq!((crl.number(), crl.entries().len()), (2, 1));
        assert_eq!(crl.entries()[0].reason, Revocation::KeyCompromise);
        assert!(crl.is_signed_by(authority.intermediate()) && !crl.is_signed_by(authority.root()));

        assert!(authority.revoke("a.internal.example", Revocation::Unspecified, NOW).unwrap().is_empty());
        assert_eq!(authority.crls().unwrap()[0].number(), 2, "nothing new was said");
        assert_eq!(authority.ensure(&wanted, NOW).unwrap().reason, crate::plan::Reason::Revoked);
        // A CRL that is over vouches for nobody.
        assert!(matches!(check(&other, NOW + Duration::days(7)), Err(Error::Chain { .. })));
    }

    #[test]
    fn crls_are_refreshed_when_half_their_time_is_over_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Plain);
        let at = |days: i64| authority.refresh_crls(&RootKey::Plain, NOW + Duration::days(days)).unwrap();
        assert!(!at(0).changed());
        assert!(!at(3).changed());
        assert_eq!(at(4), CrlRefresh { intermediate: CrlState::Written, root: CrlState::Unchanged });
        assert!(!at(4).changed());
        assert_eq!(at(183), CrlRefresh { intermediate: CrlState::Written, root: CrlState::Written });
        let numbers: Vec<u64> = authority.crls().unwrap().iter().map(Crl::number).collect();
        assert_eq!(numbers, [3, 2]);
        // An entry leaves the CRL with its certificate.
        let wanted = LeafParams::server(["a.internal.example"]).unwrap();
        authority.ensure(&wanted, NOW + Duration::days(183)).unwrap();
        authority.revoke("a.internal.example", Revocation::Unspecified, NOW + Duration::days(183)).unwrap();
        assert_eq!(authority.crls().unwrap()[0].entries().len(), 1);
        assert!(at(183 + 91).changed());
        assert_eq!(authority.crls().unwrap()[0].entries().len(), 0);
    }

    #[test]
    fn an_intermediate_is_revoked_by_the_root_when_its_key_is_at_hand() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Generated);
        let serial = authority.intermediate().serial_number().to_string();
        authority.revoke(&serial, Revocation::CessationOfOperation, NOW).unwrap();
        assert!(authority.crls().unwrap()[1].entries().is_empty());
        let elsewhere = RootKey::Encrypted(crate::profile::PassphraseSource::File("/nonexistent".into()));
        let waiting = authority.refresh_crls(&elsewhere, NOW).unwrap();
        assert!(matches!(waiting.root, CrlState::Waiting { .. }), "{waiting:?}");
        assert_eq!(authority.refresh_crls(&RootKey::Generated, NOW).unwrap().root, CrlState::Written);
        assert_eq!(authority.crls().unwrap()[1].entries()[0].serial.to_string(), serial);
        authority.seal(&directory.path().join("root.key")).unwrap();
        let sealed = authority.refresh_crls(&RootKey::Generated, NOW + Duration::days(300)).unwrap();
        assert!(matches!(sealed.root, CrlState::Waiting { .. }));
        assert_eq!(sealed.intermediate, CrlState::Written);
    }

    #[test]
    fn a_certificate_is_found_by_every_notation_of_its_serial_number() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Plain);
        let wanted = LeafParams::server(["a.internal.example"]).unwrap();
        let serial = authority.ensure(&wanted, NOW).unwrap().leaf.certificate().serial_number().clone();
        let (lower, upper) = (serial.to_string(), serial.to_string().to_uppercase());
        let colons = lower.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect::<Vec<_>>().join(":");
        for text in [&lower, &upper, &format!("0x{lower}"), &format!("0X{upper}"), &format!("serial={upper}"), &colons]
        {
            assert_eq!(text.parse::<SerialNumber>().unwrap(), serial, "{text}");
        }
        for text in ["", "0x", "+1", "1:+2", "0x0x1", "serial=", "g", "é", &"1".repeat(41)] {
            assert!(text.parse::<SerialNumber>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn what_is_over_is_not_called_unknown_and_nothing_is_revoked_twice() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Plain);
        authority.ensure(&LeafParams::server(["a.internal.example"]).unwrap(), NOW).unwrap();
        let revoke = |at| authority.revoke("a.internal.example", Revocation::Unspecified, at);
        assert!(matches!(revoke(NOW + Duration::days(91)), Err(Error::Time { .. })));
        let path = directory.path().join("store/ledger.jsonl");
        let ledger = std::fs::read_to_string(&path).unwrap();
        let last = ledger.lines().last().unwrap();
        std::fs::write(&path, format!("{ledger}{last}\n")).unwrap();
        assert_eq!(revoke(NOW).unwrap().len(), 1);
    }

    #[test]
    fn a_root_and_the_unknown_are_not_revoked() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Plain);
        let root = authority.root().serial_number().to_string();
        assert!(matches!(authority.revoke(&root, Revocation::Unspecified, NOW), Err(Error::Value { .. })));
        assert!(matches!(authority.revoke("nobody", Revocation::Unspecified, NOW), Err(Error::NotIssued { .. })));
    }
}
