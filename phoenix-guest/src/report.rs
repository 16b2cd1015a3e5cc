//! What a run came to, per certificate and per guest. Plain data; the command and Python print it.

use phoenix_pki::{CrlRefresh, Fingerprint, Name, Profile, Reason};
use serde::Serialize;
use time::OffsetDateTime;

use crate::delivery::Difference;
use crate::error::causes;
use crate::handshake::Proof;
use crate::trust::StoreStatus;

/// How something stands after a run, or would stand after one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
#[non_exhaustive]
pub enum State {
    /// It was as it should be.
    Unchanged,
    /// It was made so.
    Changed,
    /// It would be made so: this was a dry run.
    Due,
    /// It must wait, and the next run tries again.
    Pending {
        /// For what.
        why: String,
    },
    /// It could not be made so.
    Failed {
        /// The error and its causes, outermost first.
        causes: Vec<String>,
    },
}

impl State {
    /// A failure with all its causes.
    pub(crate) fn failed(error: &dyn std::error::Error) -> Self {
        Self::Failed { causes: causes(error) }
    }
}

/// A certificate of the inventory.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CertificateReport {
    /// What the store calls it.
    pub label: String,
    /// Its names, as wanted.
    pub names: Vec<Name>,
    /// What it is for.
    pub profile: Profile,
    /// How it stands.
    #[serde(flatten)]
    pub state: State,
    /// Why it was made, or that nothing was due.
    #[serde(flatten)]
    pub reason: Reason,
    /// Its fingerprint, once there is one.
    pub fingerprint: Option<Fingerprint>,
    /// The end of its validity, once there is one; RFC 3339 when serialised.
    #[serde(with = "time::serde::rfc3339::option")]
    pub not_after: Option<OffsetDateTime>,
}

/// A pair in a guest.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeliveryReport {
    /// The certificate's label.
    pub certificate: String,
    /// The path of the certificate in the guest.
    pub path: String,
    /// How it stands.
    #[serde(flatten)]
    pub state: State,
    /// What differed.
    pub differences: Vec<Difference>,
    /// What the handshake showed.
    pub proof: Option<Proof>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// The root in the stores of a guest.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TrustReport {
    /// How it stands.
    #[serde(flatten)]
    pub state: State,
    /// Each store by itself.
    pub stores: Vec<StoreStatus>,
}

/// A guest of the inventory.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GuestReport {
    /// Its id.
    pub guest: String,
    /// Its name.
    pub name: Option<String>,
    /// How it was reached: `Unchanged` when it was, else why not.
    #[serde(flatten)]
    pub state: State,
    /// The root in its trust stores, where it should be there.
    pub trust: Option<TrustReport>,
    /// The pairs it holds.
    pub deliveries: Vec<DeliveryReport>,
}

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Whether nothing was to be changed, only looked at.
    pub dry_run: bool,
    /// Whether this run made the authority.
    pub authority_created: bool,
    /// The root's fingerprint, once there is one.
    pub root: Option<Fingerprint>,
    /// What became of the CRLs, once there is an authority.
    pub crls: Option<CrlRefresh>,
    /// Every certificate, in the inventory's order.
    pub certificates: Vec<CertificateReport>,
    /// Every guest, in the inventory's order.
    pub guests: Vec<GuestReport>,
}

impl Report {
    /// How everything stands: certificates, guests, their trust and their pairs.
    pub(crate) fn states(&self) -> impl Iterator<Item = &State> {
        let guests = self.guests.iter().flat_map(|guest| {
            std::iter::once(&guest.state)
                .chain(guest.trust.iter().map(|trust| &trust.state))
                .chain(guest.deliveries.iter().map(|delivery| &delivery.state))
        });
        self.certificates.iter().map(|certificate| &certificate.state).chain(guests)
    }

    /// Whether anything was changed, or in a dry run would be.
    pub fn changed(&self) -> bool {
        self.authority_created
            || self.crls.as_ref().is_some_and(CrlRefresh::changed)
            || self.states().any(|state| matches!(state, State::Changed | State::Due))
    }

    /// Whether anything failed.
    pub fn failed(&self) -> bool {
        self.states().any(|state| matches!(state, State::Failed { .. }))
    }

    /// Whether anything has to wait.
    pub fn pending(&self) -> bool {
        self.crls.as_ref().is_some_and(CrlRefresh::waits)
            || self.states().any(|state| matches!(state, State::Pending { .. }))
    }

    /// Whether everything is as the inventory says, proven.
    pub fn holds(&self) -> bool {
        !(self.failed() || self.pending() || self.dry_run && self.changed())
    }
}
