//! The authority of a store: made once, asked daily. It holds no private key; a signing call opens one, uses it, wipes it.

use std::collections::HashSet;
use std::path::Path;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::certificate::{Certificate, SerialNumber};
use crate::error::{Error, Result};
use crate::key::{Passphrase, PrivateKey};
use crate::ledger::{Event, Issued, Ledger};
use crate::name::Permitted;
use crate::plan::{Held, Reason, judge};
use crate::profile::{AuthorityParams, LeafParams, Revocation, RootKey};
use crate::sign::{self, Signer};
use crate::store::{Lock, NewPair, Role, Store};
use crate::verify::{is_signed_by, verify};

/// A leaf with its chain and its private key.
#[derive(Debug)]
pub struct Leaf {
    label: String,
    chain: Vec<Certificate>,
    key: PrivateKey,
}

impl Leaf {
    /// What the store calls it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The leaf certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.chain[0]
    }

    /// Leaf first, then the intermediate; the root is left out.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// The chain as PEM: what a server's certificate file holds.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(Certificate::pem).collect()
    }

    /// Its private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }
}

/// What `ensure` came to.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ensured {
    /// The leaf that is current now.
    pub leaf: Leaf,
    /// Why it was made, or that nothing was due.
    pub reason: Reason,
}

impl Ensured {
    /// Whether a new certificate was made.
    pub fn changed(&self) -> bool {
        self.reason.is_due()
    }
}

/// The root and the intermediate of a store, and the verbs that use them.
#[derive(Clone, Debug)]
pub struct Authority {
    store: Store,
    generation: String,
    root: Certificate,
    intermediate: Certificate,
}

impl Authority {
    /// Opens the authority of a store.
    ///
    /// # Errors
    /// [`Error::AuthorityMissing`] when there is none, [`Error::AuthorityUnfit`] when its certificates may not serve.
    pub fn open(store: &Store) -> Result<Self> {
        let stored = store.authority()?.ok_or_else(|| Error::AuthorityMissing { store: store.path().to_path_buf() })?;
        let origin = |role| store.authority_file(&stored.generation, role, "crt").display().to_string();
        let root = Certificate::from_pem(&stored.root, &origin(Role::Root))?;
        let intermediate = Certificate::from_pem(&stored.intermediate, &origin(Role::Intermediate))?;
        for (role, certificate) in [(Role::Root, &root), (Role::Intermediate, &intermediate)] {
            if !is_signed_by(certificate, &root) {
                let why = "its signature is not the root's".into();
                return Err(Error::Parse { origin: origin(role), what: "certificate", why });
            }
        }
        fit(&root, &intermediate)?;
        Ok(Self { store: store.clone(), generation: stored.generation, root, intermediate })
    }

    /// Makes the authority of a store: root and intermediate in a generation of their own, by one rename.
    ///
    /// # Errors
    /// [`Error::AuthorityExists`]; nothing is ever overwritten.
    pub fn create(store: &Store, params: &AuthorityParams, now: OffsetDateTime) -> Result<Self> {
        let lock = store.lock()?;
        if store.authority()?.is_some() {
            return Err(Error::AuthorityExists { store: store.path().to_path_buf() });
        }
        let root_key = PrivateKey::generate(params.key_type)?;
        let intermediate_key = PrivateKey::generate(params.key_type)?;
        let root = sign::root(params, &root_key, now)?;
        let root_key_pem = match &params.root_key {
            RootKey::Plain => root_key.to_pem(),
            RootKey::Generated => root_key.to_encrypted_pem(&lock.generated_passphrase()?)?,
            RootKey::Encrypted(source) => root_key.to_encrypted_pem(&store.passphrase(source)?)?,
        };
        let signer = Signer::new(root.clone(), root_key, "new root")?;
        let intermediate = sign::intermediate(params, &intermediate_key, &signer, now)?;
        fit(&root, &intermediate)?;
        lock.record(&[
            Event::Issued(Issued::of(&root, None, None)),
            Event::Issued(Issued::of(&intermediate, None, None)),
        ])?;
        lock.create_authority(&[
            (Role::Root, "crt", root.pem().as_bytes()),
            (Role::Root, "key", root_key_pem.as_bytes()),
            (Role::Intermediate, "crt", intermediate.pem().as_bytes()),
            (Role::Intermediate, "key", intermediate_key.to_pem().as_bytes()),
        ])?;
        drop(lock);
        Self::open(store)
    }

    /// Opens the authority of a store, or makes it when there is none.
    ///
    /// # Errors
    /// As [`Authority::open`] and [`Authority::create`].
    pub fn open_or_create(store: &Store, params: &AuthorityParams, now: OffsetDateTime) -> Result<Self> {
        match Self::open(store) {
            Err(Error::AuthorityMissing { .. }) => match Self::create(store, params, now) {
                // Another process was faster.
                Err(Error::AuthorityExists { .. }) => Self::open(store),
                other => other,
            },
            other => other,
        }
    }

    /// The root: what guests trust.
    pub fn root(&self) -> &Certificate {
        &self.root
    }

    /// The intermediate: what signs leaves.
    pub fn intermediate(&self) -> &Certificate {
        &self.intermediate
    }

    /// The store it lives in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What it may certify.
    pub fn permitted(&self) -> Option<&Permitted> {
        self.intermediate.permitted().or(self.root.permitted())
    }

    /// What is due, and why, without making anything.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], [`Error::LabelTwice`], or the store's.
    pub fn plan(&self, wanted: &[LeafParams], now: OffsetDateTime) -> Result<Vec<Reason>> {
        self.check(wanted)?;
        let ledger = self.store.ledger()?;
        wanted.iter().map(|wanted| Ok(self.judge(wanted, &ledger, now)?.0)).collect()
    }

    /// The certificate with these names: the one that is there, or a new one when that is due. Writes nothing otherwise.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for a name outside the authority's constraints, or the store's.
    pub fn ensure(&self, wanted: &LeafParams, now: OffsetDateTime) -> Result<Ensured> {
        Ok(self.ensure_all(std::slice::from_ref(wanted), now)?.remove(0))
    }

    /// As [`Authority::ensure`] for many, with the key opened once and one sync for all. All or none are published.
    ///
    /// # Errors
    /// As [`Authority::ensure`]; nothing is made when one of them is refused.
    pub fn ensure_all(&self, wanted: &[LeafParams], now: OffsetDateTime) -> Result<Vec<Ensured>> {
        self.check(wanted)?;
        let judged = self.judge_all(wanted, now)?;
        if judged.iter().all(|(reason, _)| !reason.is_due()) {
            return Ok(collect(judged));
        }
        let lock = self.store.lock()?;
        // Another process may have been faster.
        let mut judged = self.judge_all(wanted, now)?;
        let due: Vec<&LeafParams> =
            wanted.iter().zip(&judged).filter(|(_, (reason, _))| reason.is_due()).map(|(wanted, _)| wanted).collect();
        let mut made = self.make(&lock, &due, now)?.into_iter();
        for (reason, leaf) in &mut judged {
            if reason.is_due() {
                *leaf = made.next();
            }
        }
        Ok(collect(judged))
    }

    /// A new certificate with these names, whatever is there.
    ///
    /// # Errors
    /// As [`Authority::ensure`].
    pub fn issue(&self, wanted: &LeafParams, now: OffsetDateTime) -> Result<Leaf> {
        self.check(std::slice::from_ref(wanted))?;
        let lock = self.store.lock()?;
        Ok(self.make(&lock, &[wanted], now)?.remove(0))
    }

    /// The current certificate under a label, when there is one.
    ///
    /// # Errors
    /// The store's, and [`Error::Parse`] for a pair that is damaged.
    pub fn leaf(&self, label: &str) -> Result<Option<Leaf>> {
        let Some(pair) = self.store.pair(label)? else { return Ok(None) };
        let chain = Certificate::all_from_pem(&pair.chain, &pair.origin)?;
        let key = PrivateKey::from_pem(&pair.key, None, &pair.origin.replace("cert.pem", "key.pem"))?;
        Ok(Some(Leaf { label: label.into(), chain, key }))
    }

    /// Revokes every certificate of this label or serial number that is still valid; says which.
    ///
    /// # Errors
    /// [`Error::NotIssued`] when there is none.
    pub fn revoke(&self, wanted: &str, reason: Revocation, now: OffsetDateTime) -> Result<Vec<SerialNumber>> {
        let lock = self.store.lock()?;
        let ledger = self.store.ledger()?;
        let serial: Option<SerialNumber> = wanted.parse().ok();
        let matching: Vec<&Issued> = ledger
            .issued()
            .iter()
            .filter(|issued| issued.label.as_deref() == Some(wanted) || Some(&issued.serial) == serial.as_ref())
            .filter(|issued| issued.not_after > now)
            .collect();
        if matching.is_empty() {
            return Err(Error::NotIssued { wanted: wanted.into() });
        }
        let fresh: Vec<SerialNumber> = matching
            .into_iter()
            .map(|issued| issued.serial.clone())
            .filter(|serial| ledger.revocation(serial).is_none())
            .collect();
        let events: Vec<Event> =
            fresh.iter().map(|serial| Event::Revoked { serial: serial.clone(), reason, at: now }).collect();
        if !events.is_empty() {
            lock.record(&events)?;
        }
        Ok(fresh)
    }

    /// Moves the root key out of the store to a new file; the intermediate works on.
    ///
    /// # Errors
    /// [`Error::Sealed`] when it is gone already, [`Error::WriteFile`] when the file is there or cannot be written.
    pub fn seal(&self, to: &Path) -> Result<()> {
        self.store.lock()?.seal(&self.generation, to)
    }

    fn judge_all(&self, wanted: &[LeafParams], now: OffsetDateTime) -> Result<Vec<(Reason, Option<Leaf>)>> {
        let ledger = self.store.ledger()?;
        wanted.iter().map(|wanted| self.judge(wanted, &ledger, now)).collect()
    }

    fn judge(&self, wanted: &LeafParams, ledger: &Ledger, now: OffsetDateTime) -> Result<(Reason, Option<Leaf>)> {
        let leaf = match self.leaf(&wanted.label()) {
            Ok(leaf) => leaf,
            // What cannot be parsed is made anew; what cannot be read, or should not be, is for the operator.
            Err(error @ (Error::Parse { .. } | Error::KeyMismatch { .. })) => {
                return Ok((judge(wanted, &Held::Damaged(&error.to_string()), &self.intermediate, now), None));
            }
            Err(error) => return Err(error),
        };
        let Some(leaf) = leaf else {
            return Ok((judge(wanted, &Held::Missing, &self.intermediate, now), None));
        };
        if let Some(why) = self.damage(&leaf, ledger) {
            return Ok((judge(wanted, &Held::Damaged(why), &self.intermediate, now), None));
        }
        let public_key = leaf.key.public_key();
        let revoked = ledger.revocation(leaf.certificate().serial_number()).is_some();
        let held = Held::Pair { certificate: leaf.certificate(), public_key: &public_key, revoked };
        Ok((judge(wanted, &held, &self.intermediate, now), Some(leaf)))
    }

    /// What is wrong with a leaf that reads as one: a flipped bit shows in the signature alone.
    fn damage(&self, leaf: &Leaf, ledger: &Ledger) -> Option<&'static str> {
        if !leaf.certificate().names_issuer(&self.intermediate) {
            return None;
        }
        if leaf.chain[1..] != [self.intermediate.clone()] {
            return Some("the chain behind it is not the intermediate");
        }
        // The ledger's word is a hundred times cheaper than a signature check.
        let genuine = ledger.knows(leaf.certificate()) || is_signed_by(leaf.certificate(), &self.intermediate);
        (!genuine).then_some("its signature is not the intermediate's")
    }

    /// Refuses what may not be made, before anything is.
    fn check(&self, wanted: &[LeafParams]) -> Result<()> {
        let mut labels = HashSet::new();
        for wanted in wanted {
            wanted.check()?;
            if !labels.insert(wanted.label()) {
                return Err(Error::LabelTwice { label: wanted.label() });
            }
            if let Some(permitted) = self.permitted()
                && let Some(name) = wanted.names.iter().find(|name| !permitted.permits(name))
            {
                return Err(Error::NotPermitted { name: name.to_string(), permitted: permitted.to_string() });
            }
        }
        Ok(())
    }

    /// Signs, verifies, records and publishes; the intermediate's key is open no longer than this call.
    fn make(&self, lock: &Lock<'_>, wanted: &[&LeafParams], now: OffsetDateTime) -> Result<Vec<Leaf>> {
        let signer = self.signer(Role::Intermediate, None)?;
        let mut leaves = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let key = PrivateKey::generate(wanted.key_type)?;
            let certificate = signer.leaf(wanted, &key, wanted.key_type, now)?;
            let chain = vec![certificate, self.intermediate.clone()];
            let anchors = std::slice::from_ref(&self.root);
            verify(&chain, anchors, wanted.profile, wanted.names.first(), now)?;
            if chain[0].public_key() != key.public_key() {
                return Err(Error::KeyMismatch { origin: wanted.label() });
            }
            leaves.push(Leaf { label: wanted.label(), chain, key });
        }
        drop(signer);
        let mut events = Vec::with_capacity(leaves.len());
        for leaf in &leaves {
            let replaces = self.leaf(&leaf.label).ok().flatten().map(|old| old.certificate().serial_number().clone());
            events.push(Event::Issued(Issued::of(leaf.certificate(), Some(&leaf.label), replaces)));
        }
        lock.record(&events)?;
        let pairs: Vec<NewPair> = leaves
            .iter()
            .map(|leaf| NewPair {
                label: leaf.label.clone(),
                serial: leaf.certificate().serial_number().clone(),
                chain: leaf.chain_pem(),
                key: leaf.key.to_pem(),
            })
            .collect();
        lock.publish(&pairs)?;
        Ok(leaves)
    }

    /// Opens the key of the root or the intermediate.
    fn signer(&self, role: Role, passphrase: Option<&Passphrase>) -> Result<Signer> {
        let path = self.store.authority_file(&self.generation, role, "key");
        let pem: Zeroizing<Vec<u8>> = self
            .store
            .authority_key(&self.generation, role)?
            .ok_or_else(|| Error::Sealed { store: self.store.path().to_path_buf() })?;
        let origin = path.display().to_string();
        let key = PrivateKey::from_pem(&pem, passphrase, &origin)?;
        let certificate = match role {
            Role::Root => &self.root,
            Role::Intermediate => &self.intermediate,
        };
        Signer::new(certificate.clone(), key, &origin)
    }
}

/// Whether these two may be root and intermediate: what step-ca and OpenSSL would find out too late.
fn fit(root: &Certificate, intermediate: &Certificate) -> Result<()> {
    let unfit = |role, certificate: &Certificate, why: &str| Error::AuthorityUnfit {
        role,
        subject: certificate.subject().into(),
        why: why.into(),
    };
    for (role, certificate) in [("root", root), ("intermediate", intermediate)] {
        if !certificate.is_authority() {
            return Err(unfit(role, certificate, "it is no CA (basicConstraints)"));
        }
        if !certificate.key_usage().is_empty() && !certificate.key_usage().contains(&"keyCertSign") {
            return Err(unfit(role, certificate, "its key usage does not allow keyCertSign"));
        }
    }
    if !root.names_issuer(root) {
        return Err(unfit("root", root, "it is not self-signed"));
    }
    if root.path_length() == Some(0) {
        return Err(unfit("root", root, "its path length allows no intermediate"));
    }
    if !intermediate.names_issuer(root) {
        return Err(unfit("intermediate", intermediate, "the root did not issue it"));
    }
    Ok(())
}

fn collect(judged: Vec<(Reason, Option<Leaf>)>) -> Vec<Ensured> {
    judged.into_iter().filter_map(|(reason, leaf)| leaf.map(|leaf| Ensured { leaf, reason })).collect()
}
