//! Private keys: generated, read in every usual form, written as PKCS#8, encrypted in the one shape all readers take.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256,
};
use pkcs8::der::pem::LineEnding;
use pkcs8::der::{Decode as _, Encode as _};
use pkcs8::pkcs5::{self, pbes2};
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::{Error, Result};

/// The kind of a key; as text `ecdsa-p256`, `ecdsa-p384`, `ed25519`, `rsa-2048`, `rsa-3072` or `rsa-4096`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum KeyType {
    /// ECDSA on P-256 with SHA-256: the default, accepted everywhere.
    #[default]
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    /// ECDSA on P-384 with SHA-384.
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    /// Ed25519: not accepted by browsers.
    #[serde(rename = "ed25519")]
    Ed25519,
    /// RSA of 2048 bits with SHA-256.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// RSA of 3072 bits with SHA-256: read, and generated on request.
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    /// RSA of 4096 bits with SHA-256.
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

impl KeyType {
    /// Every kind with its name.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::EcdsaP256, "ecdsa-p256"),
        (Self::EcdsaP384, "ecdsa-p384"),
        (Self::Ed25519, "ed25519"),
        (Self::Rsa2048, "rsa-2048"),
        (Self::Rsa3072, "rsa-3072"),
        (Self::Rsa4096, "rsa-4096"),
    ];

    /// Whether it is RSA, whose certificates also allow keyEncipherment.
    pub fn is_rsa(self) -> bool {
        matches!(self, Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096)
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for KeyType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(kind, _)| *kind).ok_or_else(|| Error::Value {
            what: "key type",
            value: text.into(),
            accepted: "ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096",
        })
    }
}

/// A passphrase, wiped when dropped and never shown.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// This text as a passphrase.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// 160 random bits, as hexadecimal.
    ///
    /// # Errors
    /// [`Error::Sign`] when the system has no random numbers.
    pub fn generate() -> Result<Self> {
        let bytes = Zeroizing::new(random::<20>()?);
        Ok(Self(Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect())))
    }

    /// The passphrase itself, for writing it where it is kept.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// A private key with its public half; wiped when dropped, never shown.
pub struct PrivateKey {
    pair: Pair,
    kind: KeyType,
    pkcs8: Zeroizing<Vec<u8>>,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// Iterations of PBKDF2, as step and the OWASP advice of 2023 have it.
pub(crate) const ITERATIONS: u32 = 600_000;

/// What to do with a key that is encrypted in another way.
const READABLE: &str = "`openssl pkcs8 -topk8` writes a form that is read";

impl PrivateKey {
    /// A new key from the system's random numbers.
    ///
    /// # Errors
    /// [`Error::Sign`].
    pub fn generate(kind: KeyType) -> Result<Self> {
        let failed = |_| Error::Sign { attempted: "generate a key", why: format!("no {kind} key could be made") };
        let (pair, pkcs8) = match kind {
            KeyType::EcdsaP256 | KeyType::EcdsaP384 => {
                let curve = match kind {
                    KeyType::EcdsaP256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
                    _ => &ECDSA_P384_SHA384_ASN1_SIGNING,
                };
                let pair = EcdsaKeyPair::generate(curve).map_err(failed)?;
                let pkcs8 = pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec();
                (Pair::Ecdsa(pair), pkcs8)
            }
            KeyType::Ed25519 => {
                let pair = Ed25519KeyPair::generate().map_err(failed)?;
                let pkcs8 = pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec();
                (Pair::Ed25519(pair), pkcs8)
            }
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => {
                let size = match kind {
                    KeyType::Rsa2048 => KeySize::Rsa2048,
                    KeyType::Rsa3072 => KeySize::Rsa3072,
                    _ => KeySize::Rsa4096,
                };
                let pair = RsaKeyPair::generate(size).map_err(failed)?;
                let der: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
                (Pair::Rsa(pair), der.as_ref().to_vec())
            }
        };
        Ok(Self { pair, kind, pkcs8: Zeroizing::new(pkcs8) })
    }

    /// Reads a PEM file that holds one key: PKCS#8, SEC1, PKCS#1, or encrypted PKCS#8 with its passphrase.
    ///
    /// `origin` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Parse`] for anything else, [`Error::Passphrase`] when it is missing or wrong.
    pub fn from_pem(pem: &[u8], passphrase: Option<&Passphrase>, origin: &str) -> Result<Self> {
        let refused = |why: &str| Error::Parse { origin: origin.into(), what: "private key", why: why.into() };
        let text = std::str::from_utf8(pem).map_err(|_| refused("it is not text"))?;
        if is_encrypted(pem) {
            let (_, document) =
                pkcs8::SecretDocument::from_pem(text.trim()).map_err(|error| refused(&error.to_string()))?;
            return Self::from_encrypted_der(document.as_bytes(), passphrase, origin);
        }
        if text.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(refused(&format!("it is encrypted in OpenSSL's old form; {READABLE}")));
        }
        let mut keys = PrivateKeyDer::pem_slice_iter(pem);
        let key = keys.next().ok_or_else(|| refused("there is no PEM block of a private key"))?;
        let mut key = key.map_err(|error| refused(&error.to_string()))?;
        if keys.next().is_some() {
            return Err(refused("there is more than one private key"));
        }
        let der = Zeroizing::new(key.secret_der().to_vec());
        key.zeroize();
        Self::from_der(&der, origin)
    }

    /// Reads DER: PKCS#8 (RFC 5958), SEC1 (RFC 5915) or PKCS#1 (RFC 8017).
    ///
    /// # Errors
    /// [`Error::Parse`] for anything else.
    pub fn from_der(der: &[u8], origin: &str) -> Result<Self> {
        let refused = |why: &str| Error::Parse { origin: origin.into(), what: "private key", why: why.into() };
        let failed = |_| refused("its numbers do not make a key");
        for (curve, kind) in [
            (&ECDSA_P256_SHA256_ASN1_SIGNING, KeyType::EcdsaP256),
            (&ECDSA_P384_SHA384_ASN1_SIGNING, KeyType::EcdsaP384),
        ] {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(curve, der) {
                let pkcs8 = Zeroizing::new(pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec());
                return Ok(Self { pair: Pair::Ecdsa(pair), kind, pkcs8 });
            }
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            let pkcs8 = Zeroizing::new(pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec());
            return Ok(Self { pair: Pair::Ed25519(pair), kind: KeyType::Ed25519, pkcs8 });
        }
        if let Ok(pair) = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)) {
            let kind = match pair.public_modulus_len() {
                256 => KeyType::Rsa2048,
                384 => KeyType::Rsa3072,
                512 => KeyType::Rsa4096,
                _ => return Err(refused("an RSA key has 2048, 3072 or 4096 bits here")),
            };
            let encoded: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
            let pkcs8 = Zeroizing::new(encoded.as_ref().to_vec());
            return Ok(Self { pair: Pair::Rsa(pair), kind, pkcs8 });
        }
        Err(refused("it is neither ECDSA P-256 or P-384, nor Ed25519, nor RSA"))
    }

    fn from_encrypted_der(der: &[u8], passphrase: Option<&Passphrase>, origin: &str) -> Result<Self> {
        let unread = |why: &dyn fmt::Display| format!("{why}; {READABLE}");
        let refused = |why: String| Error::Parse { origin: origin.into(), what: "encrypted private key", why };
        let passphrase = passphrase.ok_or(Error::Passphrase {
            origin: origin.into(),
            why: "the key is encrypted and no passphrase was given",
        })?;
        let info = pkcs8::EncryptedPrivateKeyInfoRef::from_der(der).map_err(|error| refused(unread(&error)))?;
        // A file may claim any number of iterations; this many take seconds.
        if let Some(parameters) = info.encryption_algorithm.pbes2().and_then(|pbes2| pbes2.kdf.pbkdf2())
            && parameters.iteration_count > 100 * ITERATIONS
        {
            return Err(refused(format!("{} iterations are more than anybody writes", parameters.iteration_count)));
        }
        let plain = info.decrypt(passphrase.expose()).map_err(|error| match error {
            pkcs8::Error::EncryptedPrivateKey(
                error @ (pkcs5::Error::UnsupportedAlgorithm { .. }
                | pkcs5::Error::AlgorithmParametersInvalid { .. }
                | pkcs5::Error::NoPbes1CryptSupport),
            ) => refused(unread(&error)),
            _ => Error::Passphrase { origin: origin.into(), why: "the passphrase does not open this key" },
        })?;
        Self::from_der(plain.as_bytes(), origin)
    }

    /// The key as PKCS#8 PEM, unencrypted.
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem("PRIVATE KEY", &self.pkcs8)
    }

    /// The key as PKCS#8 DER, unencrypted.
    pub fn to_der(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The key as encrypted PKCS#8 PEM: PBES2, PBKDF2 with HMAC-SHA256 and 600,000 iterations, AES-256-CBC, no keyLength.
    ///
    /// OpenSSL, Python's `cryptography` and step-ca all read this shape, and no other is read by all of them.
    ///
    /// # Errors
    /// [`Error::Sign`] when the system has no random numbers.
    pub fn to_encrypted_pem(&self, passphrase: &Passphrase) -> Result<Zeroizing<String>> {
        let failed = |why: String| Error::Sign { attempted: "encrypt a private key", why };
        let parameters =
            pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(ITERATIONS, &random::<16>()?, random::<16>()?)
                .map_err(|error| failed(error.to_string()))?;
        let encrypted =
            parameters.encrypt(passphrase.expose(), &self.pkcs8).map_err(|error| failed(error.to_string()))?;
        let info = pkcs8::EncryptedPrivateKeyInfo {
            encryption_algorithm: parameters.into(),
            encrypted_data: pkcs8::der::asn1::OctetString::new(encrypted).map_err(|error| failed(error.to_string()))?,
        };
        Ok(pem("ENCRYPTED PRIVATE KEY", &info.to_der().map_err(|error| failed(error.to_string()))?))
    }

    /// The kind of key.
    pub fn key_type(&self) -> KeyType {
        self.kind
    }

    /// Its public half as SubjectPublicKeyInfo DER (RFC 5280 §4.1.2.7).
    pub fn public_key(&self) -> Vec<u8> {
        Signing(self).subject_public_key_info()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.kind)
    }
}

/// A key as rcgen asks for it, owned or borrowed; the public type implements no foreign trait.
pub(crate) struct Signing<K>(pub(crate) K);

impl<K: Borrow<PrivateKey>> PublicKeyData for Signing<K> {
    fn der_bytes(&self) -> &[u8] {
        match &self.0.borrow().pair {
            Pair::Ecdsa(pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
            Pair::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.0.borrow().kind {
            KeyType::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyType::Ed25519 => &rcgen::PKCS_ED25519,
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl<K: Borrow<PrivateKey>> SigningKey for Signing<K> {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        let random = SystemRandom::new();
        match &self.0.borrow().pair {
            Pair::Ecdsa(pair) => {
                Ok(pair.sign(&random, message).map_err(|_| rcgen::Error::RemoteKeyError)?.as_ref().to_vec())
            }
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| rcgen::Error::RemoteKeyError)?;
                Ok(signature)
            }
        }
    }
}

/// Whether a PEM file holds an encrypted key (RFC 7468 §11).
pub(crate) fn is_encrypted(pem: &[u8]) -> bool {
    str::from_utf8(pem).is_ok_and(|text| text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----"))
}

/// PEM of 64 columns with a final newline (RFC 7468).
pub(crate) fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    // Only a label with forbidden characters or a length beyond isize could fail here.
    Zeroizing::new(pkcs8::der::pem::encode_string(label, LineEnding::LF, der).unwrap_or_default())
}

/// Random bytes from the operating system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Error::Sign { attempted: "draw random numbers", why: "the system gave none".into() })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_pem() {
        for (kind, _) in KeyType::ALL {
            if matches!(kind, KeyType::Rsa3072 | KeyType::Rsa4096) {
                continue; // seconds each, and the code is that of RSA-2048
            }
            let key = PrivateKey::generate(kind).unwrap();
            let read = PrivateKey::from_pem(key.to_pem().as_bytes(), None, "test").unwrap();
            assert_eq!(read.key_type(), kind);
            assert_eq!(read.public_key(), key.public_key());
        }
    }

    #[test]
    fn encryption_takes_its_passphrase_and_no_other() {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let pem = key.to_encrypted_pem(&Passphrase::new("right")).unwrap();
        let open = |passphrase: Option<Passphrase>| PrivateKey::from_pem(pem.as_bytes(), passphrase.as_ref(), "test");
        assert_eq!(open(Some(Passphrase::new("right"))).unwrap().public_key(), key.public_key());
        assert!(matches!(open(Some(Passphrase::new("wrong"))), Err(Error::Passphrase { .. })));
        assert!(matches!(open(None), Err(Error::Passphrase { .. })));
    }

    #[test]
    fn a_form_that_is_not_read_is_not_taken_for_a_wrong_passphrase() {
        let passphrase = Passphrase::new("x");
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let (_, own) = pkcs8::SecretDocument::from_pem(key.to_encrypted_pem(&passphrase).unwrap().trim()).unwrap();
        // The object identifiers of HMAC with SHA-256 and of AES-256-CBC become those of SHA-1 and of DES-EDE3-CBC.
        let other = |oid: &[u8], last: u8| {
            let mut der = own.as_bytes().to_vec();
            let at = der.windows(oid.len()).position(|part| part == oid).unwrap() + oid.len() - 1;
            der[at] = last;
            pem("ENCRYPTED PRIVATE KEY", &der).to_string()
        };
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
                   -----END RSA PRIVATE KEY-----\n";
        for text in [
            other(b"\x2a\x86\x48\x86\xf7\x0d\x02\x09", 7),
            other(b"\x60\x86\x48\x01\x65\x03\x04\x01\x2a", 0x2e),
            old.into(),
        ] {
            let refused = PrivateKey::from_pem(text.as_bytes(), Some(&passphrase), "test").unwrap_err();
            let said = matches!(&refused, Error::Parse { why, .. } if why.contains("openssl pkcs8 -topk8"));
            assert!(said, "{refused}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(ecdsa-p256)");
        assert_eq!(format!("{:?}", Passphrase::new("hunter2")), "Passphrase(…)");
    }
}
