//! Judging a chain, by rustls-webpki: signatures, validity, purpose, name constraints, names, revocation.

use std::time::Duration;

use rustls_pki_types::{ServerName, UnixTime};
use time::OffsetDateTime;
use webpki::{
    ALL_VERIFICATION_ALGS, BorrowedCertRevocationList, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage,
    RevocationOptionsBuilder, anchor_from_trusted_cert,
};

use crate::certificate::Certificate;
use crate::crl::Crl;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::profile::Profile;

/// Verifies a chain, leaf first, against trust anchors for a purpose, at a time. Revocation is not asked about:
/// see [`Verification`].
///
/// [`Profile::Peer`] asks for both purposes. A wildcard `name` asks for a host below it; without a
/// `name`, none is asked about.
///
/// ```
/// use phoenix_pki::{Profile, verify};
///
/// # use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, RootKey, Store};
/// # let directory = tempfile::tempdir()?;
/// # let (store, now) = (Store::new(directory.path().join("store")), time::OffsetDateTime::now_utc());
/// # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
/// # let authority = Authority::create(&store, &AuthorityParams { root_key: RootKey::Plain, ..params }, now)?;
/// let leaf = authority.ensure(&LeafParams::server(["*.internal.example"])?, now)?.leaf;
/// let anchors = [authority.root().clone()];
/// verify(leaf.chain(), &anchors, Profile::Server, Some(&"www.internal.example".parse()?), now)?;
/// assert!(verify(leaf.chain(), &anchors, Profile::Client, None, now).is_err());
/// let late = leaf.certificate().not_after() + time::Duration::SECOND;
/// assert!(verify(leaf.chain(), &anchors, Profile::Server, None, late).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
/// # Errors
/// [`Error::Time`] outside the leaf's validity, [`Error::Chain`] with the verifier's verdict otherwise.
pub fn verify(
    chain: &[Certificate],
    anchors: &[Certificate],
    purpose: Profile,
    name: Option<&Name>,
    at: OffsetDateTime,
) -> Result<()> {
    Verification { purpose, names: name.as_slice(), at, crls: &[] }.check(chain, anchors)
}

/// What a chain is asked: what for, by which names, at what time, and whether any of it was revoked.
///
/// ```no_run
/// use phoenix_pki::{Authority, Profile, Store, Verification};
/// use time::OffsetDateTime;
///
/// let authority = Authority::open(&Store::new("/var/lib/phoenix"))?;
/// if let Some(leaf) = authority.leaf("nginx.internal.example")? {
///     let at = OffsetDateTime::now_utc();
///     let crls = authority.crls()?;
///     let asked = Verification { purpose: Profile::Server, names: &[], at, crls: &crls };
///     asked.check(leaf.chain(), &[authority.root().clone()])?;
/// }
/// # Ok::<(), phoenix_pki::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Verification<'a> {
    /// What it is for; [`Profile::Peer`] asks for both purposes.
    pub purpose: Profile,
    /// Names it must be good for, all of them. A wildcard asks for a host below it.
    pub names: &'a [&'a Name],
    /// The time asked about.
    pub at: OffsetDateTime,
    /// With CRLs, every certificate below the anchor must be vouched for by a current one of its issuer
    /// (RFC 5280 §6.3). Without any, revocation is not asked about.
    pub crls: &'a [Crl],
}

impl Verification<'_> {
    /// Asks it of a chain, leaf first, that should end below one of these trust anchors.
    ///
    /// # Errors
    /// [`Error::Time`] outside the leaf's validity, [`Error::Revoked`], and [`Error::Chain`] with the verifier's
    /// verdict otherwise.
    pub fn check(&self, chain: &[Certificate], anchors: &[Certificate]) -> Result<()> {
        let at = self.at;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(Error::Chain { subject: String::new(), why: "the chain is empty".into() });
        };
        let refused = |why: String| Error::Chain { subject: leaf.to_string(), why };
        if at < leaf.not_before() || at > leaf.not_after() {
            let (not_before, not_after) = (leaf.not_before(), leaf.not_after());
            return Err(Error::Time { subject: leaf.to_string(), at, not_before, not_after });
        }
        let entity = EndEntityCert::try_from(leaf.der()).map_err(|error| refused(error.to_string()))?;
        let anchors = anchors
            .iter()
            .map(|anchor| anchor_from_trusted_cert(anchor.der()))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| refused(format!("a trust anchor cannot be read: {error}")))?;
        let intermediates: Vec<_> = intermediates.iter().map(|certificate| certificate.der().clone()).collect();
        let seconds = u64::try_from(at.unix_timestamp()).map_err(|_| refused("the time is before 1970".into()))?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let crls = self
            .crls
            .iter()
            .map(|crl| BorrowedCertRevocationList::from_der(crl.der()).map(Into::into))
            .collect::<std::result::Result<Vec<CertRevocationList<'_>>, _>>()
            .map_err(|error| refused(format!("a CRL cannot be read: {error}")))?;
        let crls: Vec<&CertRevocationList<'_>> = crls.iter().collect();
        // No CRL, no question; with one, an issuer without a current CRL is a refusal.
        let revocation = RevocationOptionsBuilder::new(&crls)
            .ok()
            .map(|options| options.with_expiration_policy(ExpirationPolicy::Enforce).build());
        let usages: &[KeyUsage] = match self.purpose {
            Profile::Server => &[KeyUsage::server_auth()],
            Profile::Client => &[KeyUsage::client_auth()],
            Profile::Peer => &[KeyUsage::server_auth(), KeyUsage::client_auth()],
        };
        for usage in usages {
            entity
                .verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &intermediates, time, *usage, revocation, None)
                .map_err(|error| match error {
                    webpki::Error::CertRevoked => Error::Revoked { subject: leaf.to_string() },
                    error => refused(verdict(&error)),
                })?;
        }
        for name in self.names {
            entity
                .verify_is_valid_for_subject_name(&server_name(&name.example())?)
                .map_err(|_| refused(format!("it is not for {name}")))?;
        }
        Ok(())
    }
}

/// What the verifier found, in the words of RFC 5280; webpki shows only its own names for it.
fn verdict(error: &webpki::Error) -> String {
    use webpki::Error as Found;

    match error {
        Found::UnknownIssuer => "no trusted root issued it, or a certificate between the two is missing",
        Found::RequiredEkuNotFoundContext(_) | Found::EmptyEkuExtension => "its extended key usage is another",
        Found::InvalidSignatureForPublicKey => "a signature is not by the issuer's key",
        Found::NameConstraintViolation => "a name is outside its issuer's name constraints",
        Found::PathLenConstraintViolated => "more CAs follow than a path length allows",
        Found::CaUsedAsEndEntity => "it is a CA, and no leaf",
        Found::EndEntityUsedAsCa => "an issuer of it is no CA",
        Found::CertExpired { .. } => "an issuer of it has expired",
        Found::CertNotValidYet { .. } => "an issuer of it is not valid yet",
        Found::UnknownRevocationStatus => "no CRL says whether it was revoked",
        Found::CrlExpired { .. } => "a CRL is past its next update",
        other => return other.to_string(),
    }
    .into()
}

/// The name as rustls and webpki ask for it.
fn server_name(name: &Name) -> Result<ServerName<'static>> {
    match name {
        Name::Ip(address) => Ok(ServerName::IpAddress((*address).into())),
        Name::Dns(dns) => ServerName::try_from(dns.clone()).map_err(|_| Error::Value {
            what: "name",
            value: dns.clone(),
            accepted: "a DNS name or an IP address",
        }),
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;
    use crate::key::{KeyType, PrivateKey};
    use crate::name::Permitted;
    use crate::profile::{AuthorityParams, LeafParams};
    use crate::sign::{self, Signer};

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

    struct Chain {
        root: Signer,
        intermediate: Signer,
    }

    fn chain() -> Chain {
        let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"]).unwrap());
        let key = || PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let root_key = key();
        let root = Signer::new(sign::root(&params, &root_key, NOW).unwrap(), root_key, "root").unwrap();
        let key = key();
        let intermediate = sign::intermediate(&params, &key, &root, NOW).unwrap();
        Chain { root, intermediate: Signer::new(intermediate, key, "intermediate").unwrap() }
    }

    fn leaf(issuer: &Signer, wanted: &LeafParams) -> Certificate {
        let key = PrivateKey::generate(wanted.key_type).unwrap();
        issuer.leaf(wanted, &key, NOW).unwrap()
    }

    #[test]
    fn a_chain_is_good_for_what_it_says_and_nothing_else() {
        let (own, other) = (chain(), chain());
        let (root, stranger) = (own.root.certificate.clone(), other.root.certificate.clone());
        let leaf = leaf(&own.intermediate, &LeafParams::server(["*.internal.example"]).unwrap());
        let chain = [leaf.clone(), own.intermediate.certificate.clone()];
        let name = |text: &str| -> Name { text.parse().unwrap() };
        let end = leaf.not_after();
        for (chain, anchor, purpose, asked, at, sound) in [
            (&chain[..], &root, Profile::Server, "www.internal.example", NOW, true),
            (&chain[..], &root, Profile::Server, "*.internal.example", NOW, true),
            (&chain[..], &root, Profile::Server, "www.internal.example", end, true),
            (&chain[..], &root, Profile::Server, "internal.example", NOW, false),
            (&chain[..], &root, Profile::Client, "www.internal.example", NOW, false),
            (&chain[..], &root, Profile::Peer, "www.internal.example", NOW, false),
            (&chain[..], &stranger, Profile::Server, "www.internal.example", NOW, false),
            (&chain[..1], &root, Profile::Server, "www.internal.example", NOW, false),
            (&chain[1..], &root, Profile::Server, "www.internal.example", NOW, false),
            (&chain[..0], &root, Profile::Server, "www.internal.example", NOW, false),
            (&chain[..], &root, Profile::Server, "www.internal.example", end + Duration::SECOND, false),
            (&chain[..], &root, Profile::Server, "www.internal.example", NOW - Duration::hours(2), false),
        ] {
            let verdict = verify(chain, std::slice::from_ref(anchor), purpose, Some(&name(asked)), at);
            assert_eq!(verdict.is_ok(), sound, "{purpose} {asked} {at}: {verdict:?}");
        }
    }

    #[test]
    fn a_leaf_without_a_subject_is_called_by_its_names() {
        let own = chain();
        let leaf = leaf(&own.intermediate, &LeafParams::server(["10.0.0.1", "10.0.0.2"]).unwrap());
        assert_eq!((leaf.subject(), leaf.to_string().as_str()), ("", "10.0.0.1, 10.0.0.2"));
        let refused = verify(&[leaf], &[own.root.certificate], Profile::Server, None, NOW).unwrap_err();
        assert!(refused.to_string().starts_with("certificate \"10.0.0.1, 10.0.0.2\" does not"), "{refused}");
    }

    #[test]
    fn constraints_hold_below_the_root_and_below_the_intermediate_as_anchor() {
        let own = chain();
        for outside in ["www.example.com", "10.0.0.1"] {
            let leaf = leaf(&own.intermediate, &LeafParams::server([outside]).unwrap());
            let chain = [leaf, own.intermediate.certificate.clone()];
            for (chain, anchor) in [(&chain[..], &own.root), (&chain[..1], &own.intermediate)] {
                let anchors = std::slice::from_ref(&anchor.certificate);
                assert!(verify(chain, anchors, Profile::Server, None, NOW).is_err(), "{outside}");
            }
        }
    }

    #[test]
    fn asked_about_revocation_every_issuer_must_vouch() {
        use crate::profile::Lifetime;
        let own = chain();
        let leaf = leaf(&own.intermediate, &LeafParams::server(["a.internal.example"]).unwrap());
        let chain = [leaf, own.intermediate.certificate.clone()];
        let crl = |signer: &Signer| signer.crl(1, &[], Lifetime::days(7), NOW).unwrap();
        let check = |crls: &[Crl]| {
            let asked = Verification { purpose: Profile::Server, names: &[], at: NOW, crls };
            asked.check(&chain, std::slice::from_ref(&own.root.certificate))
        };
        check(&[crl(&own.root), crl(&own.intermediate)]).unwrap();
        assert!(check(&[crl(&own.intermediate)]).is_err(), "nobody vouches for the intermediate");
        assert!(check(&[crl(&own.root)]).is_err(), "nobody vouches for the leaf");
    }
}
