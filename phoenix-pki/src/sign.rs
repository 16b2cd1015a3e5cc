//! Signing: roots, intermediates, leaves and CRLs from parameters, keys and the time. Reads and writes nothing.

use std::collections::HashSet;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, NameConstraints,
    RevocationReason, RevokedCertParams, SanType, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;

use crate::certificate::{Certificate, Fingerprint};
use crate::crl::{Crl, Revoked};
use crate::error::{Error, Result};
use crate::key::{KeyType, PrivateKey, Signing, pem, random};
use crate::name::{Name, Permitted};
use crate::profile::{AuthorityParams, LeafParams, Lifetime, Profile, Revocation};

/// A new root for these parameters and its key.
pub(crate) fn root(params: &AuthorityParams, key: &PrivateKey, now: OffsetDateTime) -> Result<Certificate> {
    let mut root = authority(params, "Root", key, &params.permitted, 1);
    validity(&mut root, now, params.root_lifetime, None)?;
    let issued = root.self_signed(&Signing(key)).map_err(failed("sign a root"))?;
    Certificate::from_der(issued.der(), "new root")
}

/// A new intermediate below this signer's root.
pub(crate) fn intermediate(
    params: &AuthorityParams,
    key: &PrivateKey,
    root: &Signer,
    now: OffsetDateTime,
) -> Result<Certificate> {
    let mut intermediate = authority(params, "Intermediate", key, &params.permitted, 0);
    intermediate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    validity(&mut intermediate, now, params.intermediate_lifetime, Some(&root.certificate))?;
    let issued = intermediate.signed_by(&Signing(key), &root.issuer).map_err(failed("sign an intermediate"))?;
    Certificate::from_der(issued.der(), "new intermediate")
}

/// A request for an intermediate, for a root that is elsewhere (RFC 2986), as PEM.
pub(crate) fn intermediate_request(params: &AuthorityParams, key: &PrivateKey) -> Result<String> {
    let mut request = CertificateParams::default();
    request.distinguished_name = subject(params, "Intermediate", key);
    request.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    request.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let request = request.serialize_request(&Signing(key)).map_err(failed("sign a request"))?;
    Ok(pem("CERTIFICATE REQUEST", request.der()).to_string())
}

/// A certificate with the key that signs in its name, open for as long as this value lives.
pub(crate) struct Signer {
    pub(crate) certificate: Certificate,
    issuer: Issuer<'static, Signing<PrivateKey>>,
}

impl Signer {
    /// Puts certificate and key together.
    ///
    /// # Errors
    /// [`Error::KeyMismatch`], or [`Error::AuthorityUnfit`] for a subject that cannot be written as it is.
    pub(crate) fn new(certificate: Certificate, key: PrivateKey, origin: &str) -> Result<Self> {
        if certificate.public_key() != key.public_key() {
            return Err(Error::KeyMismatch { origin: origin.into() });
        }
        let issuer = Issuer::from_ca_cert_der(certificate.der(), Signing(key)).map_err(|error| {
            Error::AuthorityUnfit { role: "issuing", subject: certificate.subject().into(), why: error.to_string() }
        })?;
        Ok(Self { certificate, issuer })
    }

    /// A leaf for this key.
    pub(crate) fn leaf(&self, params: &LeafParams, key: &PrivateKey, now: OffsetDateTime) -> Result<Certificate> {
        self.issue(params, &Signing(key), key.key_type(), now)
    }

    fn issue(
        &self,
        params: &LeafParams,
        key: &impl rcgen::PublicKeyData,
        kind: KeyType,
        now: OffsetDateTime,
    ) -> Result<Certificate> {
        params.check()?;
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = DistinguishedName::new();
        if let Some(name) = common_name(&params.names) {
            leaf.distinguished_name.push(DnType::CommonName, name);
        }
        // In the order given, each once.
        let mut names = HashSet::new();
        leaf.subject_alt_names =
            params.names.iter().filter(|name| names.insert(*name)).map(san).collect::<Result<_>>()?;
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_identifier_method = key_id(key);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if kind.is_rsa() {
            leaf.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        leaf.extended_key_usages = match params.profile {
            Profile::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Profile::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Profile::Peer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        validity(&mut leaf, now, params.lifetime, Some(&self.certificate))?;
        let issued = leaf.signed_by(key, &self.issuer).map_err(failed("sign a leaf"))?;
        Certificate::from_der(issued.der(), "new leaf")
    }

    /// A leaf for a public key that somebody else holds the private half of, SubjectPublicKeyInfo DER.
    pub(crate) fn leaf_for(&self, params: &LeafParams, public_key: &[u8], now: OffsetDateTime) -> Result<Certificate> {
        let key = SubjectPublicKeyInfo::from_der(public_key).map_err(failed("read a public key"))?;
        self.issue(params, &key, params.key_type, now)
    }

    /// The key, for encrypting it.
    pub(crate) fn key(&self) -> &PrivateKey {
        &self.issuer.key().0
    }

    /// A CRL with these entries (RFC 5280 §5).
    pub(crate) fn crl(&self, number: u64, revoked: &[Revoked], lifetime: Lifetime, now: OffsetDateTime) -> Result<Crl> {
        let this_update = whole_seconds(now);
        let params = CertificateRevocationListParams {
            this_update,
            next_update: this_update + lifetime.duration(),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|entry| RevokedCertParams {
                    serial_number: rcgen::SerialNumber::from_slice(entry.serial.as_bytes()),
                    revocation_time: whole_seconds(entry.at),
                    // Unspecified should be absent (RFC 5280 §5.3.1).
                    reason_code: match entry.reason {
                        Revocation::Unspecified => None,
                        Revocation::KeyCompromise => Some(RevocationReason::KeyCompromise),
                        Revocation::AffiliationChanged => Some(RevocationReason::AffiliationChanged),
                        Revocation::Superseded => Some(RevocationReason::Superseded),
                        Revocation::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
                    },
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: match self.certificate.subject_key_id() {
                Some(id) => KeyIdMethod::PreSpecified(id.to_vec()),
                None => KeyIdMethod::Sha256,
            },
        };
        let crl = params.signed_by(&self.issuer).map_err(failed("sign a CRL"))?;
        Crl::from_der(crl.der(), "new CRL")
    }
}

/// Whether certificates and CRLs below this authority would repeat its subject byte for byte, as path building wants
/// (RFC 5280 §6.1.3): the subject is parsed and encoded again on the way.
pub(crate) fn reproduces_subject(authority: &Certificate) -> Result<bool> {
    let Ok(issuer) = Issuer::from_ca_cert_der(authority.der(), Signing(PrivateKey::generate(KeyType::EcdsaP256)?))
    else {
        return Ok(false);
    };
    let mut trial = CertificateParams::default();
    trial.serial_number = Some(serial()?);
    let trial = trial.signed_by(issuer.key(), &issuer).map_err(failed("sign a trial"))?;
    Ok(Certificate::from_der(trial.der(), "trial")?.raw_issuer() == authority.raw_subject())
}

fn authority(
    params: &AuthorityParams,
    role: &str,
    key: &PrivateKey,
    permitted: &Permitted,
    path_length: u8,
) -> CertificateParams {
    let mut authority = CertificateParams::default();
    authority.distinguished_name = subject(params, role, key);
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.use_authority_key_identifier_extension = true;
    authority.key_identifier_method = key_id(&Signing(key));
    authority.name_constraints = Some(constraints(permitted));
    authority
}

/// A subject that no other key has: with one name for two keys, path building and OpenSSL's hash links break.
fn subject(params: &AuthorityParams, role: &str, key: &PrivateKey) -> DistinguishedName {
    let suffix = Fingerprint::of(&key.public_key()).to_string();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, params.name.as_str());
    subject.push(DnType::CommonName, format!("{} {role} {}", params.name, &suffix[..8]));
    subject
}

/// The first 160 bits of the SHA-256 of the public key's bits (RFC 7093 §2, method 1).
fn key_id(key: &impl rcgen::PublicKeyData) -> KeyIdMethod {
    KeyIdMethod::PreSpecified(Fingerprint::of(key.der_bytes()).as_bytes()[..20].to_vec())
}

fn constraints(permitted: &Permitted) -> NameConstraints {
    let mut constraints = NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees: Vec::new() };
    let every = |text: &str| text.parse::<ipnet::IpNet>().ok().map(subtree);
    constraints.permitted_subtrees.extend(permitted.domains.iter().cloned().map(GeneralSubtree::DnsName));
    constraints.permitted_subtrees.extend(permitted.networks.iter().copied().map(subtree));
    // A kind of name without a permitted subtree is unconstrained (RFC 5280 §4.2.1.10), so it is excluded whole.
    if permitted.domains.is_empty() {
        constraints.excluded_subtrees.push(GeneralSubtree::DnsName(String::new()));
    }
    if !permitted.networks.iter().any(|network| network.addr().is_ipv4()) {
        constraints.excluded_subtrees.extend(every("0.0.0.0/0"));
    }
    if !permitted.networks.iter().any(|network| network.addr().is_ipv6()) {
        constraints.excluded_subtrees.extend(every("::/0"));
    }
    constraints
}

fn subtree(network: ipnet::IpNet) -> GeneralSubtree {
    GeneralSubtree::IpAddress(rcgen::CidrSubnet::from_addr_prefix(network.network(), network.prefix_len()))
}

/// Sets validity, bounded by the issuer's, and a new serial number.
fn validity(
    params: &mut CertificateParams,
    now: OffsetDateTime,
    lifetime: Lifetime,
    issuer: Option<&Certificate>,
) -> Result<()> {
    let now = whole_seconds(now);
    params.not_before = now - lifetime.backdate();
    params.not_after = now + lifetime.duration() - Duration::from_secs(1);
    if let Some(issuer) = issuer {
        params.not_before = params.not_before.max(issuer.not_before());
        params.not_after = params.not_after.min(issuer.not_after());
        if now < issuer.not_before() || now >= issuer.not_after() {
            return Err(Error::Time {
                subject: issuer.subject().into(),
                at: now,
                not_before: issuer.not_before(),
                not_after: issuer.not_after(),
            });
        }
    }
    // rcgen's own would be a hash of the key: the same twice for one key.
    params.serial_number = Some(serial()?);
    Ok(())
}

/// Certificates know no fractions of a second (RFC 5280 §4.1.2.5).
fn whole_seconds(time: OffsetDateTime) -> OffsetDateTime {
    time.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(time)
}

/// A positive serial number of 16 bytes with 126 random bits.
fn serial() -> Result<rcgen::SerialNumber> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(rcgen::SerialNumber::from_slice(&bytes))
}

/// The first DNS name that fits the 64 characters of a common name, or none. Never an address: in a leaf without DNS names
/// OpenSSL takes the common name for one, and 10.0.0.1 is outside every domain that the name constraints permit.
fn common_name(names: &[Name]) -> Option<&str> {
    names.iter().find_map(|name| match name {
        Name::Dns(dns) if dns.len() <= 64 => Some(dns.as_str()),
        _ => None,
    })
}

fn san(name: &Name) -> Result<SanType> {
    Ok(match name {
        Name::Dns(dns) => SanType::DnsName(dns.as_str().try_into().map_err(failed("write a DNS name"))?),
        Name::Ip(address) => SanType::IpAddress(*address),
    })
}

fn failed(attempted: &'static str) -> impl Fn(rcgen::Error) -> Error {
    move |error| Error::Sign { attempted, why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00:00.5 +2);

    fn signer(permitted: &[&str]) -> Signer {
        let params = AuthorityParams {
            root_lifetime: Lifetime::days(365 * 40),
            ..AuthorityParams::new("Example", Permitted::parse(permitted).unwrap())
        };
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        Signer::new(root(&params, &key, NOW).unwrap(), key, "root").unwrap()
    }

    #[test]
    fn a_leaf_carries_what_verifiers_demand() {
        let signer = signer(&["internal.example", "10.0.0.0/8"]);
        for (kind, usage) in [
            (KeyType::EcdsaP256, &["digitalSignature"][..]),
            (KeyType::Rsa2048, &["digitalSignature", "keyEncipherment"][..]),
        ] {
            let key = PrivateKey::generate(kind).unwrap();
            let names = ["10.0.0.1", "a.internal.example", "A.internal.example"];
            let wanted = LeafParams { key_type: kind, ..LeafParams::server(names).unwrap() };
            let leaf = signer.leaf(&wanted, &key, NOW).unwrap();
            assert_eq!(leaf.subject(), "CN=a.internal.example");
            assert_eq!(leaf.key_usage(), usage);
            assert_eq!(leaf.names().len(), 2);
            assert_eq!(leaf.not_before(), datetime!(2026-11-21 9:00 UTC));
            assert_eq!(leaf.not_after(), datetime!(2027-02-19 9:59:59 UTC));
            assert_eq!(leaf.authority_key_id(), signer.certificate.subject_key_id());
            assert!(leaf.subject_key_id().is_some() && !leaf.is_authority());
            assert_eq!(leaf.serial_number().as_bytes().len(), 16);
            let again = signer.leaf(&wanted, &key, NOW).unwrap();
            assert_ne!(leaf.serial_number(), again.serial_number(), "one key, two serial numbers");
        }
    }

    #[test]
    fn the_common_name_is_a_dns_name_or_absent() {
        let signer = signer(&["internal.example", "10.0.0.0/8"]);
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let long = format!("{}.internal.example", "a".repeat(60));
        for (names, subject) in [
            (&["10.0.0.1", "a.internal.example"][..], "CN=a.internal.example"),
            (&[&long, "b.internal.example"][..], "CN=b.internal.example"),
            (&[&long, "10.0.0.1"][..], ""),
            (&["10.0.0.1"][..], ""),
        ] {
            let leaf = signer.leaf(&LeafParams::server(names).unwrap(), &key, NOW).unwrap();
            assert_eq!(leaf.subject(), subject, "{names:?}");
        }
    }

    #[test]
    fn validity_crosses_2050_and_ends_with_the_issuer() {
        let signer = signer(&["internal.example"]);
        let wanted = LeafParams::server(["a.internal.example"]).unwrap();
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let leaf = signer.leaf(&wanted, &key, datetime!(2049-12-01 0:00 UTC)).unwrap();
        assert_eq!(leaf.not_after(), datetime!(2050-02-28 23:59:59 UTC));
        // UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5), both with seconds and Z.
        let holds = |text: &[u8]| leaf.der().windows(text.len()).any(|part| part == text);
        assert!(holds(b"\x17\x0d491130230000Z") && holds(b"\x18\x0f20500228235959Z"));
        let end = signer.certificate.not_after();
        let last = signer.leaf(&wanted, &key, end - Duration::from_secs(60)).unwrap();
        assert_eq!(last.not_after(), end);
        assert!(matches!(signer.leaf(&wanted, &key, end + Duration::from_secs(1)), Err(Error::Time { .. })));
    }

    #[test]
    fn a_kind_without_a_subtree_is_excluded_whole() {
        let name = |text: &str| -> Name { text.parse().unwrap() };
        for (permitted, inside, outside) in [
            (&["internal.example"][..], "a.internal.example", &["10.0.0.1", "fd00::1", "example"][..]),
            (&["10.0.0.0/8"][..], "10.9.9.9", &["a.internal.example", "11.0.0.1", "fd00::1"][..]),
            (&["fd00::/8"][..], "fd00::1", &["10.0.0.1", "fe00::1", "a"][..]),
        ] {
            let root = signer(permitted).certificate;
            assert!(root.may_certify(&name(inside)), "{inside}");
            for outside in outside {
                assert!(!root.may_certify(&name(outside)), "{outside}");
            }
        }
    }

    #[test]
    fn what_is_signed_repeats_the_subject_of_its_issuer() {
        let signer = signer(&["internal.example"]);
        assert!(reproduces_subject(&signer.certificate).unwrap());
        let crl = signer.crl(7, &[], Lifetime::days(7), NOW).unwrap();
        assert!(crl.is_signed_by(&signer.certificate) && crl.number() == 7);
        assert_eq!(crl.this_update(), datetime!(2026-11-21 10:00 UTC));
    }
}
