//! Authorities from elsewhere: certificates and keys that are there already, and an intermediate by request.

use time::OffsetDateTime;

use crate::authority::{Authority, establish, vacant};
use crate::certificate::Certificate;
use crate::error::{Error, Result};
use crate::key::PrivateKey;
use crate::profile::{AuthorityParams, RootKey};
use crate::sign::{self, Signer};
use crate::store::{Lock, Store};

/// A root and an intermediate that exist already.
#[derive(Debug)]
pub struct Import {
    /// The root certificate.
    pub root: Certificate,
    /// Its key; without it the store is sealed from the start.
    pub root_key: Option<PrivateKey>,
    /// The intermediate certificate.
    pub intermediate: Certificate,
    /// Its key.
    pub intermediate_key: PrivateKey,
}

impl Authority {
    /// Makes the authority of a store from certificates and keys that exist already. `root_key` says how the root key
    /// rests, when there is one.
    ///
    /// ```no_run
    /// use phoenix_pki::{Authority, Certificate, Import, PrivateKey, RootKey, Store};
    /// use time::OffsetDateTime;
    ///
    /// # fn files() -> (Vec<u8>, Vec<u8>, Vec<u8>) { Default::default() }
    /// let (root, intermediate, key) = files();
    /// let parts = Import {
    ///     root: Certificate::from_pem(&root, "root_ca.crt")?,
    ///     root_key: None,
    ///     intermediate: Certificate::from_pem(&intermediate, "intermediate_ca.crt")?,
    ///     intermediate_key: PrivateKey::from_pem(&key, None, "intermediate_ca_key")?,
    /// };
    /// let store = Store::new("/var/lib/phoenix");
    /// Authority::import(&store, parts, &RootKey::Generated, OffsetDateTime::now_utc())?;
    /// # Ok::<(), phoenix_pki::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::AuthorityExists`]; [`Error::AuthorityUnfit`] when linkage, signature, CA bit, path length or key usage
    /// do not hold, or a subject is encoded as no leaf could name it; [`Error::KeyMismatch`]; [`Error::Time`] when one
    /// is not valid at `now`. Nothing is written then.
    pub fn import(store: &Store, parts: Import, root_key: &RootKey, now: OffsetDateTime) -> Result<Self> {
        let lock = store.lock()?;
        vacant(store)?;
        import(store, &lock, parts, root_key, now)?;
        drop(lock);
        Self::open(store)
    }

    /// A request for an intermediate (RFC 2986), as PEM, for a root that is elsewhere. The key is made and kept in the
    /// store until [`Authority::complete`]; asked again, the request is for the same key.
    ///
    /// # Errors
    /// [`Error::AuthorityExists`], [`Error::Value`] when a key of another kind is waiting.
    pub fn request(store: &Store, params: &AuthorityParams) -> Result<String> {
        params.check_name()?;
        let lock = store.lock()?;
        vacant(store)?;
        let key = match pending(store)? {
            Some(key) if key.key_type() == params.key_type => key,
            Some(key) => {
                let accepted = "the key that waits for its certificate is of another kind";
                return Err(Error::Value { what: "key type", value: key.key_type().to_string(), accepted });
            }
            None => {
                let key = PrivateKey::generate(params.key_type)?;
                lock.keep_pending_key(&key.to_pem())?;
                key
            }
        };
        sign::intermediate_request(params, &key)
    }

    /// Makes the authority of a store from the root and the intermediate that it issued for [`Authority::request`].
    /// The root key stays elsewhere.
    ///
    /// # Errors
    /// As [`Authority::import`]; [`Error::AuthorityMissing`] when nothing was requested.
    pub fn complete(store: &Store, root: Certificate, intermediate: Certificate, now: OffsetDateTime) -> Result<Self> {
        let lock = store.lock()?;
        match Self::open(store) {
            Err(Error::AuthorityMissing { .. }) => {
                let missing = || Error::AuthorityMissing { store: store.path().to_path_buf() };
                let intermediate_key = pending(store)?.ok_or_else(missing)?;
                let parts = Import { root, root_key: None, intermediate, intermediate_key };
                import(store, &lock, parts, &RootKey::Plain, now)?;
            }
            // A killed run got this far.
            Ok(authority) if authority.root == root && authority.intermediate == intermediate => {}
            Ok(_) => return Err(Error::AuthorityExists { store: store.path().to_path_buf() }),
            Err(error) => return Err(error),
        }
        lock.drop_pending_key()?;
        drop(lock);
        Self::open(store)
    }
}

fn import(store: &Store, lock: &Lock<'_>, parts: Import, root_key: &RootKey, now: OffsetDateTime) -> Result<()> {
    for (role, certificate) in [("root", &parts.root), ("intermediate", &parts.intermediate)] {
        if !sign::reproduces_subject(certificate)? {
            let why = "its subject is encoded in a way that certificates below it could not repeat".into();
            return Err(Error::AuthorityUnfit { role, subject: certificate.subject().into(), why });
        }
    }
    let root = parts.root_key.map(|key| Signer::new(parts.root.clone(), key, "the root given")).transpose()?;
    let intermediate = Signer::new(parts.intermediate, parts.intermediate_key, "the intermediate given")?;
    establish(store, lock, &parts.root, root.as_ref(), &intermediate, root_key, now)
}

/// The key that waits for its certificate.
fn pending(store: &Store) -> Result<Option<PrivateKey>> {
    let Some(pem) = store.pending_key()? else { return Ok(None) };
    PrivateKey::from_pem(&pem, None, &store.pending_key_path().display().to_string()).map(Some)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::key::KeyType;
    use crate::name::Permitted;
    use crate::profile::LeafParams;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

    fn params() -> AuthorityParams {
        AuthorityParams::new("Example", Permitted::parse(["internal.example"]).unwrap())
    }

    fn parts() -> Import {
        let (root_key, intermediate_key) = (key(), key());
        let root = sign::root(&params(), &root_key, NOW).unwrap();
        let copy = PrivateKey::from_der(root_key.to_der(), "copy").unwrap();
        let signer = Signer::new(root.clone(), copy, "root").unwrap();
        let intermediate = sign::intermediate(&params(), &intermediate_key, &signer, NOW).unwrap();
        Import { root, root_key: Some(root_key), intermediate, intermediate_key }
    }

    fn key() -> PrivateKey {
        PrivateKey::generate(KeyType::EcdsaP256).unwrap()
    }

    fn store(directory: &tempfile::TempDir) -> Store {
        Store::new(directory.path().join("store"))
    }

    #[test]
    fn an_imported_authority_issues_and_seals() {
        for with_key in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let parts = match with_key {
                true => parts(),
                false => Import { root_key: None, ..parts() },
            };
            let authority = Authority::import(&store(&directory), parts, &RootKey::Generated, NOW).unwrap();
            authority.ensure(&LeafParams::server(["a.internal.example"]).unwrap(), NOW).unwrap();
            assert_eq!(authority.crls().unwrap().len(), if with_key { 2 } else { 1 });
            let sealed = authority.seal(&directory.path().join("root.key"));
            assert_eq!(sealed.is_ok(), with_key);
            let again = Authority::import(&store(&directory), self::parts(), &RootKey::Generated, NOW);
            assert!(matches!(again, Err(Error::AuthorityExists { .. })));
        }
    }

    #[test]
    fn what_does_not_hold_together_is_refused_and_nothing_written() {
        let other = parts();
        let swapped = Import { root: other.root.clone(), root_key: None, ..parts() };
        let wrong_key = Import { intermediate_key: key(), ..parts() };
        let wrong_root_key = Import { root_key: Some(key()), ..parts() };
        let reversed = parts();
        let reversed = Import {
            root: reversed.intermediate,
            root_key: None,
            intermediate: reversed.root,
            intermediate_key: reversed.root_key.unwrap(),
        };
        let doubled = parts();
        let doubled = Import {
            root: doubled.root.clone(),
            root_key: None,
            intermediate: doubled.root,
            intermediate_key: doubled.root_key.unwrap(),
        };
        // The last byte is the signature's.
        let genuine = parts();
        let mut der = genuine.intermediate.der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        let forged = Import { intermediate: Certificate::from_der(&der, "forged").unwrap(), ..genuine };
        assert!(forged.intermediate.names_issuer(&forged.root));
        for (parts, at, what) in [
            (swapped, NOW, "another root"),
            (wrong_key, NOW, "another key"),
            (wrong_root_key, NOW, "another root key"),
            (reversed, NOW, "reversed"),
            (doubled, NOW, "the root twice"),
            (forged, NOW, "a forged signature"),
            (other, NOW + Duration::days(2_000), "after its time"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let store = store(&directory);
            let refused = Authority::import(&store, parts, &RootKey::Plain, at).unwrap_err();
            let expected =
                matches!(refused, Error::AuthorityUnfit { .. } | Error::KeyMismatch { .. } | Error::Time { .. });
            assert!(expected, "{what}: {refused}");
            assert!(matches!(Authority::open(&store), Err(Error::AuthorityMissing { .. })), "{what}");
            assert!(store.ledger().unwrap().issued().is_empty(), "{what}");
        }
    }

    #[test]
    fn what_others_write_into_a_ca_does_not_spoil_the_ledger() {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType, SerialNumber};

        let (root_key, intermediate_key) = (key(), key());
        let params = |name: &str, serial: u8| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.serial_number = Some(SerialNumber::from_slice(&[serial]));
            params.subject_alt_names = vec![SanType::DnsName("Step_CA.internal".try_into().unwrap())];
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            (params.not_before, params.not_after) = (NOW, NOW + Duration::days(900));
            params
        };
        let root = params("Root", 0).self_signed(&crate::key::Signing(&root_key)).unwrap();
        let root = Certificate::from_der(root.der(), "root").unwrap();
        let copy = PrivateKey::from_der(root_key.to_der(), "copy").unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_der(root.der(), crate::key::Signing(copy)).unwrap();
        let intermediate =
            params("Intermediate", 1).signed_by(&crate::key::Signing(&intermediate_key), &issuer).unwrap();
        let intermediate = Certificate::from_der(intermediate.der(), "intermediate").unwrap();
        let parts = Import { root, root_key: Some(root_key), intermediate, intermediate_key };

        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::import(&store(&directory), parts, &RootKey::Plain, NOW).unwrap();
        let ledger = authority.store().ledger().unwrap();
        let serials: Vec<String> = ledger.issued().iter().map(|issued| issued.serial.to_string()).collect();
        assert_eq!(serials, ["00", "01"]);
        assert_eq!(ledger.issued()[0].names, [crate::name::Name::Dns("step_ca.internal".into())]);
        assert_eq!(ledger.issued()[0].serial, *authority.root().serial_number());
        authority.ensure(&LeafParams::server(["a.internal.example"]).unwrap(), NOW).unwrap();
    }

    #[test]
    fn an_intermediate_is_had_by_request() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        let elsewhere = parts();
        let root_key = elsewhere.root_key.unwrap();
        let root = Signer::new(elsewhere.root.clone(), root_key, "root").unwrap();
        let requested = Authority::request(&store, &params()).unwrap();
        assert!(requested.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
        Authority::request(&store, &params()).unwrap();
        let key = pending(&store).unwrap().unwrap();
        let intermediate = sign::intermediate(&params(), &key, &root, NOW).unwrap();

        let wrong = Authority::complete(&store, elsewhere.root.clone(), elsewhere.intermediate, NOW);
        assert!(matches!(wrong, Err(Error::KeyMismatch { .. })));
        for _ in 0..2 {
            let authority = Authority::complete(&store, elsewhere.root.clone(), intermediate.clone(), NOW).unwrap();
            authority.ensure(&LeafParams::server(["a.internal.example"]).unwrap(), NOW).unwrap();
        }
        assert!(pending(&store).unwrap().is_none());
        assert!(matches!(Authority::request(&store, &params()), Err(Error::AuthorityExists { .. })));
    }
}
