//! Certificates and keys in the forms that other programs take. Bytes are returned; writing them is the caller's.
//!
//! ```
//! use phoenix_pki::{Authority, AuthorityParams, LeafParams, Passphrase, Permitted, RootKey, Store, export};
//!
//! # let directory = tempfile::tempdir().unwrap();
//! # let (store, now) = (Store::new(directory.path().join("store")), time::OffsetDateTime::now_utc());
//! # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
//! # let params = AuthorityParams { root_key: RootKey::Plain, ..params };
//! let authority = Authority::create(&store, &params, now)?;
//! let leaf = authority.ensure(&LeafParams::server(["a.internal.example"])?, now)?.leaf;
//! assert!(export::full_chain(&leaf).starts_with(&export::certificate(&leaf)));
//! let p12 = export::pkcs12(&leaf, &Passphrase::new("correct horse"))?;
//! # assert_eq!(p12[0], 0x30);
//! # Ok::<(), phoenix_pki::Error>(())
//! ```

use p12_keystore::{EncryptionAlgorithm, KeyStore, KeyStoreEntry, MacAlgorithm, PrivateKeyChain};
use zeroize::Zeroizing;

use crate::certificate::Certificate;
use crate::error::{Error, Result};
use crate::key::{ITERATIONS, Passphrase};
use crate::leaf::Leaf;

/// The leaf alone, PEM.
pub fn certificate(leaf: &Leaf) -> String {
    leaf.certificate().pem()
}

/// What is between the leaf and the root, PEM: neither of them is in it.
pub fn chain(leaf: &Leaf) -> String {
    leaf.chain()[1..].iter().map(Certificate::pem).collect()
}

/// Leaf first, then what is between it and the root, PEM: what a server presents.
pub fn full_chain(leaf: &Leaf) -> String {
    leaf.chain_pem()
}

/// The leaf alone, DER.
pub fn der(leaf: &Leaf) -> Vec<u8> {
    leaf.certificate().der().to_vec()
}

/// The private key, PKCS#8 PEM (RFC 5958), unencrypted.
pub fn key(leaf: &Leaf) -> Zeroizing<String> {
    leaf.key().to_pem()
}

/// The private key, PKCS#8 DER, unencrypted.
pub fn key_der(leaf: &Leaf) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(leaf.key().to_der().to_vec())
}

/// Chain and key in one file (PKCS#12, RFC 7292): PBES2 with AES-256-CBC, HMAC-SHA256, under the leaf's label.
///
/// # Errors
/// [`Error::Passphrase`] when it is empty, [`Error::Sign`] when the file cannot be made.
pub fn pkcs12(leaf: &Leaf, passphrase: &Passphrase) -> Result<Zeroizing<Vec<u8>>> {
    if passphrase.expose().is_empty() {
        let why = "a PKCS#12 file holds the private key, and is not written without a passphrase";
        return Err(Error::Passphrase { origin: leaf.label().into(), why });
    }
    let failed =
        |error: p12_keystore::error::Error| Error::Sign { attempted: "make a PKCS#12 file", why: error.to_string() };
    let chain = leaf
        .chain()
        .iter()
        .map(|certificate| p12_keystore::Certificate::from_der(certificate.der()).map_err(failed))
        .collect::<Result<Vec<_>>>()?;
    let key = p12_keystore::PrivateKey::from_der(leaf.key().to_der()).map_err(failed)?;
    // The identifier links key and certificate within the file.
    let id = leaf.certificate().fingerprint().as_bytes().to_vec();
    let mut store = KeyStore::new();
    store.add_entry(leaf.label(), KeyStoreEntry::PrivateKeyChain(PrivateKeyChain::new(id, key, chain)));
    store
        .writer(passphrase.expose())
        .encryption_algorithm(EncryptionAlgorithm::PbeWithHmacSha256AndAes256)
        .encryption_iterations(ITERATIONS)
        .mac_algorithm(MacAlgorithm::HmacSha256)
        .mac_iterations(ITERATIONS)
        .write()
        .map(Zeroizing::new)
        .map_err(failed)
}

/// Trust anchors for directories that hold one certificate a file, and for programs that read one file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RootBundle {
    /// A file name for each anchor, and its PEM.
    pub files: Vec<(String, String)>,
    /// All of them in one PEM file.
    pub combined: String,
}

/// The bundle of these roots, each once, in their order.
pub fn root_bundle<'a>(roots: impl IntoIterator<Item = &'a Certificate>) -> RootBundle {
    let mut bundle = RootBundle { files: Vec::new(), combined: String::new() };
    for root in roots {
        // Named by content, so that two generations of one name are two files.
        let file = (format!("phoenix-{}.crt", root.fingerprint().short()), root.pem());
        if !bundle.files.contains(&file) {
            bundle.combined.push_str(&file.1);
            bundle.files.push(file);
        }
    }
    bundle
}

#[cfg(test)]
mod tests {
    use p12_keystore::Pkcs12ImportPolicy;
    use time::macros::datetime;

    use super::*;
    use crate::authority::Authority;
    use crate::name::Permitted;
    use crate::profile::{AuthorityParams, LeafParams, RootKey};
    use crate::store::Store;

    #[test]
    fn every_form_holds_what_its_name_says() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("store"));
        let permitted = Permitted::parse(["internal.example"]).unwrap();
        let params = AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new("Example", permitted) };
        let now = datetime!(2026-11-21 12:00 UTC);
        let authority = Authority::create(&store, &params, now).unwrap();
        let leaf = authority.ensure(&LeafParams::server(["a.internal.example"]).unwrap(), now).unwrap().leaf;

        let read = |pem: String| Certificate::all_from_pem(pem.as_bytes(), "test").unwrap();
        assert_eq!(read(certificate(&leaf)), [leaf.certificate().clone()]);
        assert_eq!(read(chain(&leaf)), [authority.intermediate().clone()]);
        assert_eq!(read(full_chain(&leaf)), leaf.chain());
        assert_eq!(Certificate::from_der(&der(&leaf), "test").unwrap(), *leaf.certificate());

        let p12 = pkcs12(&leaf, &Passphrase::new("pässword")).unwrap();
        let opened = KeyStore::from_pkcs12(&p12, "pässword", Pkcs12ImportPolicy::Strict).unwrap();
        let (alias, entry) = opened.private_key_chain().unwrap();
        assert_eq!((alias, entry.key().as_der()), ("a.internal.example", leaf.key().to_der()));
        assert_eq!(entry.certs().len(), 2);
        assert!(KeyStore::from_pkcs12(&p12, "password", Pkcs12ImportPolicy::Strict).is_err());
        assert!(matches!(pkcs12(&leaf, &Passphrase::new("")), Err(Error::Passphrase { .. })));

        let bundle = root_bundle([authority.root(), authority.intermediate(), authority.root()]);
        assert_eq!(bundle.files.len(), 2);
        assert_eq!(read(bundle.combined), [authority.root().clone(), authority.intermediate().clone()]);
    }
}
