//! Judging a chain, by rustls-webpki: signatures, validity, purpose, name constraints, name.

use std::time::Duration;

use rustls_pki_types::{ServerName, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificate::Certificate;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::profile::Profile;

/// Verifies a chain, leaf first, against trust anchors for a purpose, at a time.
///
/// [`Profile::Peer`] asks for both purposes. A wildcard `name` asks for a host below it.
///
/// # Errors
/// [`Error::Time`] outside the leaf's validity, [`Error::Chain`] with the verifier's verdict otherwise.
pub fn verify(
    chain: &[Certificate],
    anchors: &[Certificate],
    purpose: Profile,
    name: Option<&Name>,
    at: OffsetDateTime,
) -> Result<()> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(Error::Chain { subject: String::new(), why: "the chain is empty".into() });
    };
    let refused = |why: String| Error::Chain { subject: leaf.subject().into(), why };
    if at < leaf.not_before() || at > leaf.not_after() {
        let (not_before, not_after) = (leaf.not_before(), leaf.not_after());
        return Err(Error::Time { subject: leaf.subject().into(), at, not_before, not_after });
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
    let usages = match purpose {
        Profile::Server => vec![KeyUsage::server_auth()],
        Profile::Client => vec![KeyUsage::client_auth()],
        Profile::Peer => vec![KeyUsage::server_auth(), KeyUsage::client_auth()],
    };
    for usage in usages {
        entity
            .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &intermediates, time, usage, None, None)
            .map_err(|error| refused(error.to_string()))?;
    }
    if let Some(name) = name {
        entity
            .verify_is_valid_for_subject_name(&server_name(&name.example())?)
            .map_err(|_| refused(format!("it is not for {name}")))?;
    }
    Ok(())
}

/// Whether the signature of a certificate is of this authority's key, by any algorithm that webpki takes.
pub(crate) fn is_signed_by(certificate: &Certificate, authority: &Certificate) -> bool {
    // webpki reads strict DER, also of what stands outside the signed part; x509-parser does not.
    if EndEntityCert::try_from(certificate.der()).is_err() {
        return false;
    }
    let (Ok((_, signed)), Ok((_, signer))) =
        (X509Certificate::from_der(certificate.der()), X509Certificate::from_der(authority.der()))
    else {
        return false;
    };
    let (key, signature) = (&signer.public_key().subject_public_key.data, &signed.signature_value.data);
    webpki::ALL_VERIFICATION_ALGS
        .iter()
        .any(|algorithm| algorithm.verify_signature(key, signed.tbs_certificate.as_ref(), signature).is_ok())
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
