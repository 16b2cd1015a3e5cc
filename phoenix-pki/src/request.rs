//! Signing the requests of others: programs that make their own key and keep it (RFC 2986).

use std::collections::BTreeSet;
use std::fmt;

use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use crate::authority::Authority;
use crate::certificate::{Certificate, address, key_type};
use crate::error::{Error, Result};
use crate::key::KeyType;
use crate::ledger::{Event, Issued};
use crate::name::Name;
use crate::profile::{LeafParams, Profile};

/// A request for a certificate, whose sender has shown that it holds the key.
///
/// Of what it asks for, only the names are read; profile, lifetime and everything else are the authority's to say.
#[derive(Clone)]
pub struct Request {
    public_key: Vec<u8>,
    key_type: KeyType,
    names: BTreeSet<Name>,
    foreign: Option<String>,
}

impl Request {
    /// Reads the one request of a PEM file and checks its signature: the proof of possession (RFC 2986 §3).
    ///
    /// # Errors
    /// [`Error::Parse`], also for a wrong signature and a key of a kind that Phoenix does not make; [`Error::Value`] for
    /// a name that is none.
    pub fn from_pem(pem: &[u8], origin: &str) -> Result<Self> {
        let refused = |why: String| Error::Parse { origin: origin.into(), what: "certificate request", why };
        let mut all = CertificateSigningRequestDer::pem_slice_iter(pem);
        let der = all.next().ok_or_else(|| refused("there is no PEM block of a request".into()))?;
        let der = der.map_err(|error| refused(error.to_string()))?;
        if all.next().is_some() {
            return Err(refused("there is more than one request".into()));
        }
        let (rest, parsed) = X509CertificationRequest::from_der(&der).map_err(|error| refused(error.to_string()))?;
        if !rest.is_empty() {
            return Err(refused(format!("{} bytes follow the request", rest.len())));
        }
        parsed.verify_signature().map_err(|_| refused("its signature is not by its key".into()))?;
        let public_key = &parsed.certification_request_info.subject_pki;
        let mut request = Self {
            public_key: public_key.raw.to_vec(),
            key_type: key_type(public_key)
                .ok_or_else(|| refused("its key is neither ECDSA P-256 or P-384, nor Ed25519, nor RSA".into()))?,
            names: BTreeSet::new(),
            foreign: None,
        };
        for extension in parsed.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(alternative) = extension else { continue };
            for name in &alternative.general_names {
                match name {
                    GeneralName::DNSName(dns) => drop(request.names.insert(dns.parse()?)),
                    GeneralName::IPAddress(bytes) => {
                        let address = address(bytes).ok_or_else(|| refused("an IP address of an odd length".into()))?;
                        request.names.insert(Name::Ip(address));
                    }
                    other => request.foreign = Some(other.to_string()),
                }
            }
        }
        Ok(request)
    }

    /// The names it asks for.
    pub fn names(&self) -> &BTreeSet<Name> {
        &self.names
    }

    /// The kind of its key.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// A leaf with the names it asks for, for this purpose; lifetime and names can be changed before it is signed.
    ///
    /// # Errors
    /// [`Error::Value`] when it asks for no name, or for one that is neither a DNS name nor an address.
    pub fn wanted(&self, profile: Profile) -> Result<LeafParams> {
        if let Some(foreign) = &self.foreign {
            let accepted = "a request may ask for DNS names and IP addresses";
            return Err(Error::Value { what: "name", value: foreign.clone(), accepted });
        }
        let names = self.names.iter().map(Name::to_string);
        Ok(LeafParams { key_type: self.key_type, ..LeafParams::new(profile, names)? })
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({:?}, {})", self.names, self.key_type)
    }
}

impl Authority {
    /// Signs a request: the chain, leaf first, for the names, purpose and lifetime of `wanted`. The ledger records it
    /// without a label; the store keeps no copy.
    ///
    /// ```
    /// # use phoenix_pki::{Authority, AuthorityParams, Permitted, Profile, Request, RootKey, Store};
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let (store, now) = (Store::new(directory.path().join("store")), time::OffsetDateTime::now_utc());
    /// # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
    /// # let params = AuthorityParams { root_key: RootKey::Plain, ..params };
    /// # let authority = Authority::create(&store, &params, now)?;
    /// # let pem = b"";
    /// # fn sign(authority: &Authority, pem: &[u8], now: time::OffsetDateTime) -> phoenix_pki::Result<()> {
    /// let request = Request::from_pem(pem, "agent.csr")?;
    /// let chain = authority.sign_request(&request, &request.wanted(Profile::Client)?, now)?;
    /// # Ok(()) }
    /// # assert!(sign(&authority, pem, now).is_err());
    /// # Ok::<(), phoenix_pki::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotPermitted`], [`Error::Value`] when `wanted` asks for another kind of key, or the store's.
    pub fn sign_request(
        &self,
        request: &Request,
        wanted: &LeafParams,
        now: OffsetDateTime,
    ) -> Result<Vec<Certificate>> {
        wanted.check()?;
        self.check_names(&wanted.names)?;
        if wanted.key_type != request.key_type {
            let accepted = "the request has a key of another kind";
            return Err(Error::Value { what: "key type", value: wanted.key_type.to_string(), accepted });
        }
        let lock = self.store.lock()?;
        let leaf = self.intermediate_signer()?.leaf_for(wanted, &request.public_key, now)?;
        let chain = vec![leaf, self.intermediate.clone()];
        self.prove(&chain, &request.public_key, wanted, true, now)?;
        lock.record(&[Event::Issued(Issued::of(&chain[0], None, None))])?;
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyUsagePurpose, SanType};
    use time::macros::datetime;

    use super::*;
    use crate::key::{PrivateKey, Signing, pem};
    use crate::name::Permitted;
    use crate::profile::{AuthorityParams, Lifetime, RootKey};
    use crate::store::Store;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

    fn asked(names: &[&str], key: &PrivateKey) -> Vec<u8> {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serialize_request(&Signing(key)).unwrap().der().to_vec()
    }

    fn text(der: &[u8]) -> Vec<u8> {
        pem("CERTIFICATE REQUEST", der).as_bytes().to_vec()
    }

    #[test]
    fn a_request_is_believed_its_names_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("store"));
        let permitted = Permitted::parse(["internal.example", "10.0.0.0/8"]).unwrap();
        let params = AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new("Example", permitted) };
        let authority = Authority::create(&store, &params, NOW).unwrap();
        for kind in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Ed25519, KeyType::Rsa2048] {
            let key = PrivateKey::generate(kind).unwrap();
            let request = Request::from_pem(&text(&asked(&["A.internal.example", "10.0.0.9"], &key)), "test").unwrap();
            assert_eq!(request.key_type(), kind);
            let wanted = LeafParams { lifetime: Lifetime::days(7), ..request.wanted(Profile::Client).unwrap() };
            let chain = authority.sign_request(&request, &wanted, NOW).unwrap();
            assert_eq!(chain.len(), 2);
            assert_eq!(chain[0].public_key(), key.public_key());
            assert!(!chain[0].is_authority() && !chain[0].key_usage().contains(&"keyCertSign"));
            assert_eq!(chain[0].profile(), Some(Profile::Client));
            let ledger = store.ledger().unwrap();
            let last = ledger.issued().last().unwrap();
            assert_eq!((&last.serial, &last.label), (chain[0].serial_number(), &None));
        }
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let outside = Request::from_pem(&text(&asked(&["a.example.com"], &key)), "test").unwrap();
        let refused = authority.sign_request(&outside, &outside.wanted(Profile::Server).unwrap(), NOW);
        assert!(matches!(refused, Err(Error::NotPermitted { .. })));
        let other = LeafParams { key_type: KeyType::Ed25519, ..LeafParams::server(["a.internal.example"]).unwrap() };
        assert!(matches!(authority.sign_request(&outside, &other, NOW), Err(Error::Value { .. })));
    }

    #[test]
    fn without_possession_or_sense_there_is_no_request() {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let sound = asked(&["a.internal.example"], &key);
        let mut forged = sound.clone();
        *forged.last_mut().unwrap() ^= 1;
        let trailing = [sound.clone(), vec![0]].concat();
        let twice = [text(&sound), text(&sound)].concat();
        for bytes in
            [text(&forged), text(&trailing), twice, b"".to_vec(), text(&sound[..sound.len() - 1]), text(b"\x30")]
        {
            assert!(matches!(Request::from_pem(&bytes, "test"), Err(Error::Parse { .. })));
        }
        let nameless = Request::from_pem(&text(&asked(&[], &key)), "test").unwrap();
        assert!(nameless.wanted(Profile::Server).is_err());
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![SanType::Rfc822Name("a@internal.example".try_into().unwrap())];
        let mail = params.serialize_request(&Signing(&key)).unwrap();
        assert!(Request::from_pem(&text(mail.der()), "test").unwrap().wanted(Profile::Client).is_err());
    }
}
