//! A certificate as read back from its bytes: what `openssl x509 -text` shows and plans compare.

use std::collections::BTreeSet;
use std::fmt;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, GeneralSubtree, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::error::{Error, Result};
use crate::key::{KeyType, pem};
use crate::name::{Name, Permitted};
use crate::profile::Profile;

/// The most certificates read from one PEM file.
const MOST_IN_A_FILE: usize = 16;

/// A serial number: positive, at most 20 octets (RFC 5280 §4.1.2.2). Shown as hexadecimal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SerialNumber(Vec<u8>);

impl SerialNumber {
    /// The number from its big-endian bytes; leading zeros do not count. Zero, which old tools gave to roots, is one byte.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len().saturating_sub(1));
        Self(bytes[start..].to_vec())
    }

    /// Its big-endian bytes without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::str::FromStr for SerialNumber {
    type Err = Error;

    /// Hexadecimal, with or without colons, `0x` or OpenSSL's `serial=` before it.
    fn from_str(text: &str) -> Result<Self> {
        let digits = ["0x", "0X", "serial="].into_iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        let digits: String = digits.chars().filter(|c| *c != ':').collect();
        let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
        let bytes: Option<Vec<u8>> = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect();
        // The standard library reads a sign as well.
        match bytes.filter(|_| !digits.contains('+')) {
            Some(bytes) if !bytes.is_empty() && bytes.len() <= 20 => Ok(Self::from_bytes(&bytes)),
            _ => {
                Err(Error::Value { what: "serial number", value: text.into(), accepted: "up to 40 hexadecimal digits" })
            }
        }
    }
}

impl fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SHA-256 of a certificate's DER. Shown as lower-case hexadecimal; `{:#}` puts colons in as OpenSSL does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of these DER bytes.
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref());
        Self(bytes)
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first 16 hexadecimal digits: enough to tell files apart by name.
    pub fn short(&self) -> String {
        self.to_string()[..16].into()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            match f.alternate() {
                true if at > 0 => write!(f, ":{byte:02X}")?,
                true => write!(f, "{byte:02X}")?,
                false => write!(f, "{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = Error;

    /// 64 hexadecimal digits, with or without colons, in either case, perhaps after `sha256:`.
    fn from_str(text: &str) -> Result<Self> {
        let digits: String = text.trim_start_matches("sha256:").chars().filter(|c| *c != ':').collect();
        let mut bytes = [0; 32];
        let sound = digits.len() == 64
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            && bytes.iter_mut().enumerate().all(|(at, byte)| {
                u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map(|value| *byte = value).is_ok()
            });
        match sound {
            true => Ok(Self(bytes)),
            false => Err(Error::Value {
                what: "fingerprint",
                value: text.into(),
                accepted: "the 64 hexadecimal digits of a SHA-256, with or without colons",
            }),
        }
    }
}

/// An X.509 certificate: its DER and the parts of it that decisions need.
#[derive(Clone)]
pub struct Certificate {
    der: CertificateDer<'static>,
    fingerprint: Fingerprint,
    serial: SerialNumber,
    subject: String,
    issuer: String,
    raw_subject: Vec<u8>,
    raw_issuer: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    names: BTreeSet<Name>,
    public_key: Vec<u8>,
    key_type: Option<KeyType>,
    authority: Option<Option<u32>>,
    key_usage: Vec<&'static str>,
    extended_key_usage: Vec<String>,
    subject_key_id: Option<Vec<u8>>,
    authority_key_id: Option<Vec<u8>>,
    permitted: Option<Permitted>,
    excluded: Option<Permitted>,
    other_names: Vec<String>,
    signature_algorithm: String,
}

impl Certificate {
    /// Reads DER. `origin` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Parse`].
    pub fn from_der(der: &[u8], origin: &str) -> Result<Self> {
        let refused = |why: String| Error::Parse { origin: origin.into(), what: "certificate", why };
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| refused(error.to_string()))?;
        if !rest.is_empty() {
            return Err(refused(format!("{} bytes follow the certificate", rest.len())));
        }
        let mut certificate = Self {
            der: CertificateDer::from(der.to_vec()),
            fingerprint: Fingerprint::of(der),
            serial: SerialNumber::from_bytes(parsed.raw_serial()),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            raw_subject: parsed.subject().as_raw().to_vec(),
            raw_issuer: parsed.issuer().as_raw().to_vec(),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            names: BTreeSet::new(),
            public_key: parsed.public_key().raw.to_vec(),
            key_type: key_type(parsed.public_key()),
            authority: None,
            key_usage: Vec::new(),
            extended_key_usage: Vec::new(),
            subject_key_id: None,
            authority_key_id: None,
            permitted: None,
            excluded: None,
            other_names: Vec::new(),
            signature_algorithm: signature_algorithm(&parsed.signature_algorithm.algorithm.to_id_string()),
        };
        for extension in parsed.extensions() {
            certificate.read_extension(extension.parsed_extension()).map_err(refused)?;
        }
        Ok(certificate)
    }

    fn read_extension(&mut self, extension: &ParsedExtension<'_>) -> std::result::Result<(), String> {
        match extension {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                self.authority = Some(constraints.path_len_constraint);
            }
            ParsedExtension::KeyUsage(usage) => {
                let flags = [
                    (usage.digital_signature(), "digitalSignature"),
                    (usage.non_repudiation(), "nonRepudiation"),
                    (usage.key_encipherment(), "keyEncipherment"),
                    (usage.data_encipherment(), "dataEncipherment"),
                    (usage.key_agreement(), "keyAgreement"),
                    (usage.key_cert_sign(), "keyCertSign"),
                    (usage.crl_sign(), "cRLSign"),
                ];
                self.key_usage = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let flags = [
                    (usage.any, "anyExtendedKeyUsage"),
                    (usage.server_auth, "serverAuth"),
                    (usage.client_auth, "clientAuth"),
                    (usage.code_signing, "codeSigning"),
                    (usage.email_protection, "emailProtection"),
                    (usage.time_stamping, "timeStamping"),
                    (usage.ocsp_signing, "OCSPSigning"),
                ];
                self.extended_key_usage =
                    flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.into()).collect();
                self.extended_key_usage.extend(usage.other.iter().map(ToString::to_string));
            }
            ParsedExtension::SubjectAlternativeName(alternative) => {
                for name in &alternative.general_names {
                    match name {
                        GeneralName::DNSName(dns) => drop(self.names.insert(Name::found(dns))),
                        GeneralName::IPAddress(bytes) => {
                            self.names.insert(Name::Ip(address(bytes).ok_or("an IP address of an odd length")?));
                        }
                        other => self.other_names.push(other.to_string()),
                    }
                }
            }
            ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            ParsedExtension::NameConstraints(constraints) => {
                self.permitted = constraints.permitted_subtrees.as_deref().map(subtrees).transpose()?;
                self.excluded = constraints.excluded_subtrees.as_deref().map(subtrees).transpose()?;
            }
            ParsedExtension::ParseError { error } => return Err(format!("an extension does not parse: {error}")),
            _ => {}
        }
        Ok(())
    }

    /// Reads the one certificate of a PEM file.
    ///
    /// # Errors
    /// [`Error::Parse`], also when there are more certificates than one.
    pub fn from_pem(pem: &[u8], origin: &str) -> Result<Self> {
        let mut all = Self::all_from_pem(pem, origin)?;
        match (all.pop(), all.len()) {
            (Some(certificate), 0) => Ok(certificate),
            (_, more) => Err(Error::Parse {
                origin: origin.into(),
                what: "certificate",
                why: format!("one is due and {} are there", more + 1),
            }),
        }
    }

    /// Reads the certificates of a PEM file in their order, at least one and at most 16.
    ///
    /// # Errors
    /// [`Error::Parse`].
    pub fn all_from_pem(pem: &[u8], origin: &str) -> Result<Vec<Self>> {
        Self::chain_from_pem(pem, None, origin)
    }

    /// As [`Certificate::all_from_pem`], for a chain that probably ends in this issuer, which is then not parsed again.
    pub(crate) fn chain_from_pem(pem: &[u8], issuer: Option<&Self>, origin: &str) -> Result<Vec<Self>> {
        let refused = |why: String| Error::Parse { origin: origin.into(), what: "certificate", why };
        let mut all = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem) {
            let der = der.map_err(|error| refused(error.to_string()))?;
            if all.len() == MOST_IN_A_FILE {
                return Err(refused(format!("more than {MOST_IN_A_FILE} certificates")));
            }
            all.push(match issuer {
                Some(issuer) if issuer.der == der => issuer.clone(),
                _ => Self::from_der(&der, origin)?,
            });
        }
        if all.is_empty() {
            return Err(refused("there is no PEM block of a certificate".into()));
        }
        Ok(all)
    }

    /// Its DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its PEM, with a final newline.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der).to_string()
    }

    /// SHA-256 of its DER.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Its serial number.
    pub fn serial_number(&self) -> &SerialNumber {
        &self.serial
    }

    /// Its subject as text, such as `CN=nginx.internal.example`.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Its issuer's subject as text.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The DER of its subject.
    pub(crate) fn raw_subject(&self) -> &[u8] {
        &self.raw_subject
    }

    /// The DER of its issuer's subject.
    pub(crate) fn raw_issuer(&self) -> &[u8] {
        &self.raw_issuer
    }

    /// Start of its validity.
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// End of its validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Its subject alternative names.
    pub fn names(&self) -> &BTreeSet<Name> {
        &self.names
    }

    /// Its public key as SubjectPublicKeyInfo DER.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// The kind of its key; `None` for one that Phoenix does not make.
    pub fn key_type(&self) -> Option<KeyType> {
        self.key_type
    }

    /// Whether it may issue certificates.
    pub fn is_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// How many authorities may follow it in a chain; `None` for no bound, or for no authority.
    pub fn path_length(&self) -> Option<u32> {
        self.authority.flatten()
    }

    /// Its key usages, by their RFC 5280 names.
    pub fn key_usage(&self) -> &[&'static str] {
        &self.key_usage
    }

    /// Its extended key usages, by their RFC 5280 names, others as dotted numbers.
    pub fn extended_key_usage(&self) -> &[String] {
        &self.extended_key_usage
    }

    /// What its extended key usage makes of it; `None` for an authority or a purpose that is not Phoenix's.
    pub fn profile(&self) -> Option<Profile> {
        let usage: Vec<&str> = self.extended_key_usage.iter().map(String::as_str).collect();
        match usage.as_slice() {
            _ if self.is_authority() => None,
            ["serverAuth"] => Some(Profile::Server),
            ["clientAuth"] => Some(Profile::Client),
            ["serverAuth", "clientAuth"] => Some(Profile::Peer),
            _ => None,
        }
    }

    /// Its subject key identifier.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.subject_key_id.as_deref()
    }

    /// The key identifier of its authority key identifier.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.authority_key_id.as_deref()
    }

    /// Its permitted subtrees, when its name constraints have any.
    pub fn permitted(&self) -> Option<&Permitted> {
        self.permitted.as_ref()
    }

    /// Its excluded subtrees, when its name constraints have any.
    pub fn excluded(&self) -> Option<&Permitted> {
        self.excluded.as_ref()
    }

    /// Both halves of its name constraints, for comparing.
    pub(crate) fn constraints(&self) -> (Option<&Permitted>, Option<&Permitted>) {
        (self.permitted(), self.excluded())
    }

    /// Whether its name constraints allow this name below it (RFC 5280 §4.2.1.10): in no excluded subtree, and in a
    /// permitted one when there is any of the name's kind.
    pub fn may_certify(&self, name: &Name) -> bool {
        let constrained = |subtrees: &Permitted| match name {
            Name::Dns(_) => !subtrees.domains.is_empty(),
            Name::Ip(_) => !subtrees.networks.is_empty(),
        };
        !self.excluded.as_ref().is_some_and(|excluded| excluded.permits(name))
            && self.permitted.as_ref().is_none_or(|permitted| !constrained(permitted) || permitted.permits(name))
    }

    /// Whether its key usage, if it has any, lets it sign CRLs.
    pub(crate) fn signs_crls(&self) -> bool {
        self.key_usage.is_empty() || self.key_usage.contains(&"cRLSign")
    }

    /// Its subject alternative names that are neither DNS names nor addresses, as text.
    pub fn other_names(&self) -> &[String] {
        &self.other_names
    }

    /// The algorithm of its signature, such as `ecdsa-with-SHA256`.
    pub fn signature_algorithm(&self) -> &str {
        &self.signature_algorithm
    }

    /// Whether its issuer is `authority`, by the bytes of the names and the key identifiers. The signature is not checked.
    pub fn names_issuer(&self, authority: &Self) -> bool {
        self.raw_issuer == authority.raw_subject
            && match (&self.authority_key_id, &authority.subject_key_id) {
                (Some(wanted), Some(held)) => wanted == held,
                _ => true,
            }
    }

    /// Whether `issuer` issued it: names, key identifiers and the signature itself, by any algorithm that webpki takes.
    pub fn is_signed_by(&self, issuer: &Self) -> bool {
        // webpki reads strict DER, also of what stands outside the signed part; x509-parser does not.
        if !self.names_issuer(issuer) || webpki::EndEntityCert::try_from(&self.der).is_err() {
            return false;
        }
        let (Ok((_, signed)), Ok((_, signer))) =
            (X509Certificate::from_der(&self.der), X509Certificate::from_der(&issuer.der))
        else {
            return false;
        };
        let (key, signature) = (&signer.public_key().subject_public_key.data, &signed.signature_value.data);
        webpki::ALL_VERIFICATION_ALGS
            .iter()
            .any(|algorithm| algorithm.verify_signature(key, signed.tbs_certificate.as_ref(), signature).is_ok())
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Certificate {}

/// What people call it: its subject, or where that is empty its names.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.subject.is_empty() {
            return f.write_str(&self.subject);
        }
        f.write_str(&self.names.iter().map(Name::to_string).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({self}, serial {}, until {})", self.serial, self.not_after)
    }
}

/// The DNS and IP subtrees of a name constraint; an empty domain stands for every name (RFC 5280 §4.2.1.10).
fn subtrees(subtrees: &[GeneralSubtree<'_>]) -> std::result::Result<Permitted, String> {
    let mut read = Permitted::default();
    for subtree in subtrees {
        match &subtree.base {
            GeneralName::DNSName(domain) => {
                read.domains.insert(domain.trim_start_matches('.').to_ascii_lowercase());
            }
            GeneralName::IPAddress(bytes) if matches!(bytes.len(), 8 | 32) => {
                let (base, mask) = bytes.split_at(bytes.len() / 2);
                let (Some(base), Some(mask)) = (address(base), address(mask)) else { continue };
                let network = ipnet::IpNet::with_netmask(base, mask).map_err(|error| error.to_string())?;
                read.networks.insert(network);
            }
            _ => {}
        }
    }
    Ok(read)
}

/// An address from its 4 or 16 bytes.
pub(crate) fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(bytes).ok().map(Into::into),
        _ => None,
    }
}

/// The kind of a public key, if it is one that Phoenix makes.
pub(crate) fn key_type(public_key: &SubjectPublicKeyInfo<'_>) -> Option<KeyType> {
    use x509_parser::public_key::PublicKey;
    let algorithm = &public_key.algorithm;
    if algorithm.algorithm.to_id_string() == "1.3.101.112" {
        return Some(KeyType::Ed25519);
    }
    match public_key.parsed().ok()? {
        PublicKey::RSA(key) => match key.key_size() {
            2048 => Some(KeyType::Rsa2048),
            3072 => Some(KeyType::Rsa3072),
            4096 => Some(KeyType::Rsa4096),
            _ => None,
        },
        PublicKey::EC(_) => match algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string().as_str() {
            "1.2.840.10045.3.1.7" => Some(KeyType::EcdsaP256),
            "1.3.132.0.34" => Some(KeyType::EcdsaP384),
            _ => None,
        },
        _ => None,
    }
}

/// The name OpenSSL prints for a signature algorithm; the dotted number for others.
fn signature_algorithm(oid: &str) -> String {
    match oid {
        "1.2.840.10045.4.3.2" => "ecdsa-with-SHA256",
        "1.2.840.10045.4.3.3" => "ecdsa-with-SHA384",
        "1.2.840.10045.4.3.4" => "ecdsa-with-SHA512",
        "1.3.101.112" => "ED25519",
        "1.2.840.113549.1.1.11" => "sha256WithRSAEncryption",
        "1.2.840.113549.1.1.12" => "sha384WithRSAEncryption",
        "1.2.840.113549.1.1.13" => "sha512WithRSAEncryption",
        other => other,
    }
    .into()
}

impl serde::Serialize for SerialNumber {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SerialNumber {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
