//! The authority of a store: made once, asked daily. It holds no private key; a signing call opens one, uses it, wipes it.

use std::collections::HashSet;
use std::path::Path;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::certificate::{Certificate, SerialNumber};
use crate::error::{Error, Result};
use crate::key::{PrivateKey, is_encrypted};
use crate::leaf::{Ensured, Leaf};
use crate::ledger::{Event, Issued, Ledger};
use crate::name::{Name, Permitted};
use crate::plan::{Held, Reason, judge};
use crate::profile::{AuthorityParams, INTERMEDIATE_CRL, LeafParams, ROOT_CRL, RootKey};
use crate::sign::{self, Signer};
use crate::store::{Lock, NewPair, Role, Store};
use crate::verify::Verification;

/// The most threads that a batch is spread over.
const MOST_THREADS: usize = 16;

/// The root and the intermediate of a store, and the verbs that use them.
///
/// ```
/// use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, Store};
/// use time::OffsetDateTime;
///
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("phoenix");
/// let (store, now) = (Store::new(path), OffsetDateTime::now_utc());
/// let permitted = Permitted::parse(["internal.example", "10.0.0.0/8"])?;
/// let authority = Authority::open_or_create(&store, &AuthorityParams::new("Example", permitted), now)?;
/// let wanted = LeafParams::server(["nginx.internal.example", "10.0.0.101"])?;
/// assert!(authority.ensure(&wanted, now)?.changed());
/// assert!(!authority.ensure(&wanted, now)?.changed());
/// # Ok::<(), phoenix_pki::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Authority {
    pub(crate) store: Store,
    pub(crate) generation: String,
    pub(crate) root: Certificate,
    pub(crate) intermediate: Certificate,
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
        fit(&root, &intermediate).map_err(|error| match error {
            Error::AuthorityUnfit { role, subject, why } => {
                let file = origin(if role == Role::Root.name() { Role::Root } else { Role::Intermediate });
                Error::AuthorityUnfit { role, subject, why: format!("{why} ({file})") }
            }
            other => other,
        })?;
        Ok(Self { store: store.clone(), generation: stored.generation, root, intermediate })
    }

    /// Makes the authority of a store: root and intermediate in a generation of their own, by one rename.
    ///
    /// # Errors
    /// [`Error::AuthorityExists`]; nothing is ever overwritten. [`Error::Value`] as [`AuthorityParams::check`].
    pub fn create(store: &Store, params: &AuthorityParams, now: OffsetDateTime) -> Result<Self> {
        params.check()?;
        let lock = store.lock()?;
        vacant(store)?;
        let key = PrivateKey::generate(params.key_type)?;
        let root = sign::root(params, &key, now)?;
        let root = Signer::new(root, key, "new root")?;
        let key = PrivateKey::generate(params.key_type)?;
        let intermediate = sign::intermediate(params, &key, &root, now)?;
        let intermediate = Signer::new(intermediate, key, "new intermediate")?;
        establish(store, &lock, &root.certificate, Some(&root), &intermediate, &params.root_key, now)?;
        drop(lock);
        Self::open(store)
    }

    /// Opens the authority of a store, or makes it when there is none. One that is there is opened as it is, whatever
    /// `params` say.
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
        Ok(self.observe(wanted, now)?.into_iter().map(|(reason, _)| reason).collect())
    }

    /// As [`Authority::plan`], with the leaf that each reason is about, when there is one that reads.
    ///
    /// # Errors
    /// As [`Authority::plan`].
    pub fn observe(&self, wanted: &[LeafParams], now: OffsetDateTime) -> Result<Vec<(Reason, Option<Leaf>)>> {
        self.check(wanted)?;
        self.judge_all(wanted, now)
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
        let due: Vec<Due<'_>> = wanted
            .iter()
            .zip(&judged)
            .filter(|(_, (reason, _))| reason.is_due())
            .map(|(wanted, (_, held))| Due::new(wanted, held.as_ref()))
            .collect();
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
        // What is there may be damaged; that is no reason not to replace it.
        let held = self.leaf(&wanted.label()).ok().flatten();
        Ok(self.make(&lock, &[Due::new(wanted, held.as_ref())], now)?.remove(0))
    }

    /// New certificates with keys of their own, of which the store keeps no copy: for what is handed on at once.
    ///
    /// Each is verified, and recorded in the ledger without a label, so it is revoked by its serial number. Many in one
    /// call open the authority's key once, and use every core.
    ///
    /// ```
    /// # use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, RootKey, Store};
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let (store, now) = (Store::new(directory.path().join("store")), time::OffsetDateTime::now_utc());
    /// # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
    /// # let params = AuthorityParams { root_key: RootKey::Plain, ..params };
    /// # let authority = Authority::create(&store, &params, now)?;
    /// let wanted = LeafParams { lifetime: "24h".parse()?, ..LeafParams::client(["job-17.internal.example"])? };
    /// let leaf = authority.sign(&[wanted], now)?.remove(0);
    /// assert!(authority.leaf(leaf.label())?.is_none());
    /// # Ok::<(), phoenix_pki::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Authority::ensure`]; nothing is made when one of them is refused.
    pub fn sign(&self, wanted: &[LeafParams], now: OffsetDateTime) -> Result<Vec<Leaf>> {
        for wanted in wanted {
            wanted.check()?;
            self.check_names(&wanted.names)?;
        }
        let lock = self.store.lock()?;
        let leaves = self.sign_all(wanted, |wanted| wanted, now)?;
        let event = |leaf: &Leaf| Event::Issued(Issued::of(leaf.certificate(), None, None));
        lock.record(&leaves.iter().map(event).collect::<Vec<_>>())?;
        Ok(leaves)
    }

    /// The current certificate under a label, when there is one.
    ///
    /// # Errors
    /// The store's, and [`Error::Parse`] for a pair that is damaged.
    pub fn leaf(&self, label: &str) -> Result<Option<Leaf>> {
        // A label is one name; more would lead elsewhere in the store, or out of it.
        let pair = if label.contains('/') { None } else { self.store.pair(label)? };
        let Some(pair) = pair else { return Ok(None) };
        let chain = Certificate::chain_from_pem(&pair.chain, Some(&self.intermediate), &pair.origin)?;
        let key = PrivateKey::from_pem(&pair.key, None, &pair.origin.replace("cert.pem", "key.pem"))?;
        Ok(Some(Leaf { label: label.into(), chain, root: self.root.clone(), key }))
    }

    /// Moves the root key out of the store to a new file; the intermediate works on.
    ///
    /// ```
    /// # use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, RootKey, Store};
    /// # let directory = tempfile::tempdir()?;
    /// # let (store, now) = (Store::new(directory.path().join("store")), time::OffsetDateTime::now_utc());
    /// # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
    /// # let authority = Authority::create(&store, &AuthorityParams { root_key: RootKey::Plain, ..params }, now)?;
    /// let away = directory.path().join("root.key");
    /// authority.seal(&away)?;
    /// assert!(away.is_file() && authority.seal(&away).is_err());
    /// assert!(authority.ensure(&LeafParams::server(["a.internal.example"])?, now)?.changed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    /// # Errors
    /// [`Error::Sealed`] when it is gone already, [`Error::WriteFile`] when the file is there or cannot be written.
    pub fn seal(&self, to: &Path) -> Result<()> {
        self.store.lock()?.seal(&self.generation, to)
    }

    fn judge_all(&self, wanted: &[LeafParams], now: OffsetDateTime) -> Result<Vec<(Reason, Option<Leaf>)>> {
        let ledger = self.store.ledger()?;
        in_parallel(wanted, |wanted| self.judge(wanted, &ledger, now))
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
        let genuine = ledger.knows(leaf.certificate()) || leaf.certificate().is_signed_by(&self.intermediate);
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
            self.check_names(&wanted.names)?;
        }
        Ok(())
    }

    /// Refuses names outside the constraints of root and intermediate; not every verifier looks at both.
    pub(crate) fn check_names(&self, names: &[Name]) -> Result<()> {
        let outside = |name: &&Name| !self.root.may_certify(name) || !self.intermediate.may_certify(name);
        match names.iter().find(outside) {
            None => Ok(()),
            Some(name) => {
                let permitted = self.permitted().map(Permitted::to_string).unwrap_or_default();
                Err(Error::NotPermitted { name: name.to_string(), permitted })
            }
        }
    }

    /// Signs, proves, records and publishes.
    fn make(&self, lock: &Lock<'_>, due: &[Due<'_>], now: OffsetDateTime) -> Result<Vec<Leaf>> {
        let leaves = self.sign_all(due, |due| due.wanted, now)?;
        let events: Vec<Event> = leaves
            .iter()
            .zip(due)
            .map(|(leaf, due)| Event::Issued(Issued::of(leaf.certificate(), Some(&leaf.label), due.replaces.clone())))
            .collect();
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

    /// Makes keys and certificates and proves them; the intermediate's key is open no longer than this call.
    fn sign_all<T: Sync>(
        &self,
        items: &[T],
        wanted: impl Fn(&T) -> &LeafParams + Sync,
        now: OffsetDateTime,
    ) -> Result<Vec<Leaf>> {
        let signer = self.intermediate_signer()?;
        in_parallel(items, |item| {
            let wanted = wanted(item);
            let key = PrivateKey::generate(wanted.key_type)?;
            let certificate = signer.leaf(wanted, &key, now)?;
            let chain = vec![certificate, self.intermediate.clone()];
            let leaf = Leaf { label: wanted.label(), chain, root: self.root.clone(), key };
            // The path above them is the same for all: verifying it with the first is enough.
            let whole = std::ptr::eq(item, &items[0]);
            self.prove(&leaf.chain, &leaf.key.public_key(), wanted, whole, now)?;
            Ok(leaf)
        })
    }

    /// Proves a new chain before it leaves memory: the verifier accepts it for every name, up to the root when `whole`,
    /// and the next plan would find nothing due.
    ///
    /// It is asked once, about now: the answer holds to the leaf's last second, because the leaf ends with its issuer at
    /// the latest.
    pub(crate) fn prove(
        &self,
        chain: &[Certificate],
        public_key: &[u8],
        wanted: &LeafParams,
        whole: bool,
        now: OffsetDateTime,
    ) -> Result<()> {
        let (leaf, issuer) = (&chain[0], &self.intermediate);
        let verdict = judge(wanted, &Held::Pair { certificate: leaf, public_key, revoked: false }, issuer, now);
        if verdict.is_due() || leaf.not_after() > issuer.not_after() {
            let why = format!("it is not what was asked for: {verdict}");
            return Err(Error::Chain { subject: leaf.to_string(), why });
        }
        // Where the intermediate binds its leaves as narrowly as the whole path does, verifying up to it is enough.
        let usage = issuer.extended_key_usage();
        let narrow = (self.root.constraints() == (None, None) || self.root.constraints() == issuer.constraints())
            && (usage.is_empty() || ["serverAuth", "clientAuth"].iter().all(|own| usage.iter().any(|it| it == own)));
        let (chain, anchor) = if narrow && !whole { (&chain[..1], issuer) } else { (chain, &self.root) };
        let names: Vec<&Name> = wanted.names.iter().collect();
        let asked = Verification { purpose: wanted.profile, names: &names, at: now, crls: &[] };
        asked.check(chain, std::slice::from_ref(anchor))
    }

    /// The certificate of a role.
    pub(crate) fn certificate(&self, role: Role) -> &Certificate {
        match role {
            Role::Root => &self.root,
            Role::Intermediate => &self.intermediate,
        }
    }

    /// Opens the intermediate's key.
    pub(crate) fn intermediate_signer(&self) -> Result<Signer> {
        let (pem, origin) = self.key_file(Role::Intermediate)?;
        Signer::new(self.intermediate.clone(), PrivateKey::from_pem(&pem, None, &origin)?, &origin)
    }

    /// Opens the root's key, with the passphrase from where `root_key` says, which is wiped with the return.
    pub(crate) fn root_signer(&self, root_key: &RootKey) -> Result<Signer> {
        let (pem, origin) = self.key_file(Role::Root)?;
        let passphrase = match root_key.passphrase_source(&self.store) {
            Some(source) if is_encrypted(&pem) => Some(self.store.passphrase(&source)?),
            _ => None,
        };
        Signer::new(self.root.clone(), PrivateKey::from_pem(&pem, passphrase.as_ref(), &origin)?, &origin)
    }

    fn key_file(&self, role: Role) -> Result<(Zeroizing<Vec<u8>>, String)> {
        let pem = self.store.authority_key(&self.generation, role)?;
        let pem = pem.ok_or_else(|| Error::Sealed { store: self.store.path().to_path_buf() })?;
        Ok((pem, self.store.authority_file(&self.generation, role, "key").display().to_string()))
    }
}

/// A leaf that is to be made, and what it takes the place of.
struct Due<'a> {
    wanted: &'a LeafParams,
    replaces: Option<SerialNumber>,
}

impl<'a> Due<'a> {
    fn new(wanted: &'a LeafParams, held: Option<&Leaf>) -> Self {
        Self { wanted, replaces: held.map(|leaf| leaf.certificate().serial_number().clone()) }
    }
}

/// Refuses a store that holds an authority.
pub(crate) fn vacant(store: &Store) -> Result<()> {
    match store.authority()? {
        None => Ok(()),
        Some(_) => Err(Error::AuthorityExists { store: store.path().to_path_buf() }),
    }
}

/// Checks root and intermediate and puts them in place with their first CRLs. The root key may be elsewhere.
pub(crate) fn establish(
    store: &Store,
    lock: &Lock<'_>,
    root: &Certificate,
    root_signer: Option<&Signer>,
    intermediate: &Signer,
    root_key: &RootKey,
    now: OffsetDateTime,
) -> Result<()> {
    let below = &intermediate.certificate;
    fit(root, below)?;
    for certificate in [root, below] {
        let (not_before, not_after) = (certificate.not_before(), certificate.not_after());
        if now < not_before || now > not_after {
            return Err(Error::Time { subject: certificate.subject().into(), at: now, not_before, not_after });
        }
    }
    let mut files: Vec<(Role, &str, Zeroizing<String>)> = vec![
        (Role::Root, "crt", root.pem().into()),
        (Role::Intermediate, "crt", below.pem().into()),
        (Role::Intermediate, "key", intermediate.key().to_pem()),
        (Role::Intermediate, "crl", intermediate.crl(1, &[], INTERMEDIATE_CRL, now)?.pem().into()),
    ];
    if let Some(signer) = root_signer {
        files.push((
            Role::Root,
            "key",
            match root_key {
                RootKey::Plain => signer.key().to_pem(),
                RootKey::Generated => signer.key().to_encrypted_pem(&lock.generated_passphrase()?)?,
                RootKey::Encrypted(source) => signer.key().to_encrypted_pem(&store.passphrase(source)?)?,
            },
        ));
        if root.signs_crls() {
            files.push((Role::Root, "crl", signer.crl(1, &[], ROOT_CRL, now)?.pem().into()));
        }
    }
    lock.record(&[root, below].map(|certificate| Event::Issued(Issued::of(certificate, None, None))))?;
    let files: Vec<_> = files.iter().map(|(role, extension, text)| (*role, *extension, text.as_bytes())).collect();
    lock.create_authority(&files)
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
    if !intermediate.signs_crls() {
        return Err(unfit("intermediate", intermediate, "its key usage does not allow cRLSign"));
    }
    if root == intermediate {
        return Err(unfit("intermediate", intermediate, "it is the root itself"));
    }
    if !root.is_signed_by(root) {
        return Err(unfit("root", root, "it is not self-signed"));
    }
    if root.path_length() == Some(0) {
        return Err(unfit("root", root, "its path length allows no intermediate"));
    }
    if !intermediate.is_signed_by(root) {
        return Err(unfit("intermediate", intermediate, "the root did not sign it"));
    }
    Ok(())
}

fn collect(judged: Vec<(Reason, Option<Leaf>)>) -> Vec<Ensured> {
    judged.into_iter().filter_map(|(reason, leaf)| leaf.map(|leaf| Ensured { leaf, reason })).collect()
}

/// Does the work for every item, on as many threads as the machine runs at once.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    if items.len() < 2 {
        return items.iter().map(work).collect();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let work = &work;
    std::thread::scope(|scope| {
        let parts: Vec<_> = items
            .chunks(items.len().div_ceil(threads))
            .map(|part| scope.spawn(move || part.iter().map(work).collect::<Result<Vec<_>>>()))
            .collect();
        let mut all = Vec::with_capacity(items.len());
        for part in parts {
            all.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::import::Import;
    use crate::key::KeyType;
    use crate::profile::{Lifetime, Profile, Renewal};

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

    fn params(permitted: &[&str]) -> AuthorityParams {
        let params = AuthorityParams::new("Example", Permitted::parse(permitted).unwrap());
        AuthorityParams { root_key: RootKey::Plain, ..params }
    }

    fn store(directory: &tempfile::TempDir) -> Store {
        Store::new(directory.path().join("store"))
    }

    #[test]
    fn a_batch_comes_back_in_order_and_rests() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&store(&directory), &params(&["internal.example"]), NOW).unwrap();
        let wanted: Vec<LeafParams> = (0..50)
            .map(|at| {
                let profile = [Profile::Server, Profile::Client, Profile::Peer][at % 3];
                let key_type = [KeyType::EcdsaP256, KeyType::Ed25519][at % 2];
                let names = [format!("h{at}.internal.example"), format!("*.h{at}.internal.example")];
                LeafParams { key_type, ..LeafParams::new(profile, names).unwrap() }
            })
            .collect();
        let first = authority.ensure_all(&wanted, NOW).unwrap();
        for (ensured, wanted) in first.iter().zip(&wanted) {
            assert_eq!((ensured.leaf.label(), &ensured.reason), (wanted.label().as_str(), &Reason::Missing));
        }
        let second = authority.ensure_all(&wanted, NOW).unwrap();
        assert!(second.iter().all(|ensured| !ensured.changed()));
        let again = authority.issue(&wanted[7], NOW).unwrap();
        let ledger = authority.store().ledger().unwrap();
        assert_eq!(ledger.issued().len(), 2 + 50 + 1);
        assert_eq!(
            ledger.replaced_by(first[7].leaf.certificate().serial_number()),
            Some(again.certificate().serial_number())
        );
    }

    #[test]
    fn one_that_is_refused_stops_the_batch_before_anything_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&store(&directory), &params(&["internal.example"]), NOW).unwrap();
        let sound = LeafParams::server(["a.internal.example"]).unwrap();
        let outside = LeafParams::server(["a.example.com"]).unwrap();
        let restless = LeafParams {
            renewal: Renewal::Before(Lifetime::days(90)),
            ..LeafParams::server(["b.internal.example"]).unwrap()
        };
        let refused = |wanted: &[LeafParams]| authority.ensure_all(wanted, NOW).unwrap_err();
        assert!(matches!(refused(&[sound.clone(), outside]), Error::NotPermitted { .. }));
        assert!(matches!(refused(&[sound.clone(), restless]), Error::Value { .. }));
        assert!(matches!(refused(&[sound.clone(), sound.clone()]), Error::LabelTwice { .. }));
        assert_eq!(authority.plan(&[sound], NOW).unwrap(), [Reason::Missing]);
        assert_eq!(authority.store().ledger().unwrap().issued().len(), 2);
    }

    #[test]
    fn the_narrower_constraints_of_a_root_hold_below_a_wider_intermediate() {
        let directory = tempfile::tempdir().unwrap();
        let key = || PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let (root_key, intermediate_key) = (key(), key());
        let root = sign::root(&params(&["a.example"]), &root_key, NOW).unwrap();
        let signer = Signer::new(root.clone(), root_key, "root").unwrap();
        let wide = params(&["a.example", "b.example"]);
        let intermediate = sign::intermediate(&wide, &intermediate_key, &signer, NOW).unwrap();
        let parts = Import { root, root_key: None, intermediate, intermediate_key };
        let authority = Authority::import(&store(&directory), parts, &RootKey::Plain, NOW).unwrap();
        authority.ensure(&LeafParams::server(["www.a.example"]).unwrap(), NOW).unwrap();
        let outside = authority.ensure(&LeafParams::server(["www.b.example"]).unwrap(), NOW);
        assert!(matches!(outside, Err(Error::NotPermitted { .. })));
    }
}
