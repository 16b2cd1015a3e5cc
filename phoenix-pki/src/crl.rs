//! A certificate revocation list as read back from its bytes (RFC 5280 §5).

use std::fmt;

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use time::OffsetDateTime;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::{ReasonCode, SubjectPublicKeyInfo};

use crate::certificate::{Certificate, SerialNumber};
use crate::error::{Error, Result};
use crate::key::pem;
use crate::profile::Revocation;

/// An entry of a CRL: a certificate that is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Revoked {
    /// Its serial number.
    pub serial: SerialNumber,
    /// When it was revoked.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Why; a reason that Phoenix does not give reads as unspecified.
    pub reason: Revocation,
}

/// A certificate revocation list.
///
/// ```no_run
/// use phoenix_pki::{Authority, Crl, Store};
///
/// let authority = Authority::open(&Store::new("/var/lib/phoenix"))?;
/// for crl in authority.crls()? {
///     println!("{} no. {}, next update {}", crl.issuer(), crl.number(), crl.next_update());
/// }
/// # Ok::<(), phoenix_pki::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Crl {
    der: CertificateRevocationListDer<'static>,
    issuer: String,
    raw_issuer: Vec<u8>,
    this_update: OffsetDateTime,
    next_update: OffsetDateTime,
    number: u64,
    entries: Vec<Revoked>,
}

impl Crl {
    /// Reads DER. `origin` names the file in errors. The signature is not checked: see [`Crl::is_signed_by`].
    ///
    /// # Errors
    /// [`Error::Parse`], also for a CRL without nextUpdate or number, which RFC 5280 §5.1.2.5 and §5.2.3 demand.
    pub fn from_der(der: &[u8], origin: &str) -> Result<Self> {
        let refused = |why: &str| Error::Parse { origin: origin.into(), what: "CRL", why: why.into() };
        let (rest, parsed) = CertificateRevocationList::from_der(der).map_err(|error| refused(&error.to_string()))?;
        if !rest.is_empty() {
            return Err(refused("bytes follow the CRL"));
        }
        let next_update = parsed.next_update().ok_or_else(|| refused("it has no nextUpdate"))?;
        let number = parsed.crl_number().ok_or_else(|| refused("it has no CRL number"))?;
        let number = u64::try_from(number).map_err(|_| refused("its CRL number is longer than 64 bits"))?;
        let entries = parsed.iter_revoked_certificates().map(|entry| Revoked {
            serial: SerialNumber::from_bytes(entry.raw_serial()),
            at: entry.revocation_date.to_datetime(),
            reason: match entry.reason_code() {
                Some((_, ReasonCode::KeyCompromise)) => Revocation::KeyCompromise,
                Some((_, ReasonCode::AffiliationChanged)) => Revocation::AffiliationChanged,
                Some((_, ReasonCode::Superseded)) => Revocation::Superseded,
                Some((_, ReasonCode::CessationOfOperation)) => Revocation::CessationOfOperation,
                _ => Revocation::Unspecified,
            },
        });
        Ok(Self {
            der: CertificateRevocationListDer::from(der.to_vec()),
            issuer: parsed.issuer().to_string(),
            raw_issuer: parsed.issuer().as_raw().to_vec(),
            this_update: parsed.last_update().to_datetime(),
            next_update: next_update.to_datetime(),
            number,
            entries: entries.collect(),
        })
    }

    /// Reads the one CRL of a PEM file.
    ///
    /// # Errors
    /// As [`Crl::from_der`], and when there is not exactly one.
    pub fn from_pem(pem: &[u8], origin: &str) -> Result<Self> {
        let refused = |why: String| Error::Parse { origin: origin.into(), what: "CRL", why };
        let mut all = CertificateRevocationListDer::pem_slice_iter(pem);
        let der = all.next().ok_or_else(|| refused("there is no PEM block of a CRL".into()))?;
        let der = der.map_err(|error| refused(error.to_string()))?;
        if all.next().is_some() {
            return Err(refused("there is more than one CRL".into()));
        }
        Self::from_der(&der, origin)
    }

    /// Its DER.
    pub fn der(&self) -> &CertificateRevocationListDer<'static> {
        &self.der
    }

    /// Its PEM, with a final newline.
    pub fn pem(&self) -> String {
        pem("X509 CRL", &self.der).to_string()
    }

    /// Its issuer's subject as text.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// When it was made.
    pub fn this_update(&self) -> OffsetDateTime {
        self.this_update
    }

    /// When it ends: a verifier wants a newer one by then.
    pub fn next_update(&self) -> OffsetDateTime {
        self.next_update
    }

    /// Its number, which grows with every CRL of an issuer.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What it revokes.
    pub fn entries(&self) -> &[Revoked] {
        &self.entries
    }

    /// Whether this authority issued it, by name and by signature.
    pub fn is_signed_by(&self, issuer: &Certificate) -> bool {
        let parsed = CertificateRevocationList::from_der(&self.der);
        let public_key = SubjectPublicKeyInfo::from_der(issuer.public_key());
        match (parsed, public_key) {
            (Ok((_, parsed)), Ok((_, public_key))) => {
                self.raw_issuer == issuer.raw_subject() && parsed.verify_signature(&public_key).is_ok()
            }
            _ => false,
        }
    }

    /// Whether less than half of its time is left, or it was made by a clock that ran ahead of `now`.
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        now < self.this_update || self.next_update - now < (self.next_update - self.this_update) / 2
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Crl({} no. {}, {} entries, until {})",
            self.issuer,
            self.number,
            self.entries.len(),
            self.next_update
        )
    }
}
