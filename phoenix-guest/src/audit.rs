//! What an operator should know of the whole estate: every certificate and anchor, in the store and in the guests.

use phoenix_pki::{AuditEntry, Authority, Certificate, Finding, LeafParams, Severity, Store};
use serde::Serialize;
use time::OffsetDateTime;

use crate::command::printable;
use crate::converge::{Options, Reached, converge};
use crate::error::{Error, Result, causes};
use crate::guest::GuestPath;
use crate::inventory::{GuestEntry, Inventory};
use crate::report::{DeliveryReport, GuestReport, Report, State};
use crate::transport::Transport;
use crate::trust::StoreStatus;

/// The longest certificate file that is read from a guest.
const LONGEST_FILE: usize = 1 << 20;

/// One certificate, CRL, trust store or guest, and what was found about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Audited {
    /// The guest it is in; none for what is in the store.
    pub guest: Option<String>,
    /// What it is: `root`, `intermediate`, `crl`, `leaf`, `request` or `ledger` in the store; `pair`, `anchor`, `trust`
    /// or `guest` in a guest.
    pub kind: String,
    /// Its path, or the name of the trust store.
    pub location: String,
    /// What the store calls it, or its subject.
    pub name: String,
    /// Its issuer's subject; empty where there is none, or it cannot be read.
    pub issuer: String,
    /// Its end; for a CRL, its next update.
    #[serde(with = "time::serde::rfc3339::option")]
    pub not_after: Option<OffsetDateTime>,
    /// Whole days until then; negative when it is over.
    pub days_left: Option<i64>,
    /// What was found; empty when all is well.
    pub findings: Vec<Finding>,
}

impl Audited {
    /// The worst of its findings.
    pub fn severity(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    fn stored(entry: AuditEntry) -> Self {
        let kind = serde_json::to_value(entry.kind).ok();
        Self {
            guest: None,
            kind: kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default().into(),
            location: entry.location.display().to_string(),
            name: entry.name,
            issuer: entry.issuer,
            not_after: entry.not_after,
            days_left: entry.days_left,
            findings: entry.findings,
        }
    }

    fn within(guest: &str, kind: &str, location: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            guest: Some(guest.into()),
            kind: kind.into(),
            location: location.into(),
            name: name.into(),
            issuer: String::new(),
            not_after: None,
            days_left: None,
            findings: Vec::new(),
        }
    }

    fn holding(mut self, certificate: &Certificate, now: OffsetDateTime) -> Self {
        // A guest may have put any certificate there.
        self.issuer = printable(certificate.issuer().as_bytes());
        self.not_after = Some(certificate.not_after());
        self.days_left = Some((certificate.not_after() - now).whole_days());
        if now > certificate.not_after() {
            self.find(Severity::Critical, "expired");
        }
        self
    }

    fn find(&mut self, severity: Severity, what: impl Into<String>) {
        self.findings.push(Finding::new(severity, what));
    }

    /// What a state says by itself.
    fn judged(mut self, state: &State) -> Self {
        match state {
            State::Failed { causes } => self.find(Severity::Critical, causes.join(": ")),
            State::Pending { why } => self.find(Severity::Warning, format!("not looked at: {why}")),
            State::Unchanged | State::Changed | State::Due => {}
        }
        self
    }
}

/// Audits the store of an inventory and the guests, soonest to end first; what cannot be read comes before all.
/// Changes nothing.
///
/// # Errors
/// When there is no authority yet, or the store cannot be listed: whatever else is wrong is a finding.
pub fn audit(
    inventory: &Inventory,
    reach: &(dyn Fn(&GuestEntry) -> Result<Reached> + Sync),
    parallel: usize,
    now: OffsetDateTime,
) -> Result<Vec<Audited>> {
    let pki = |source| Error::Authority { source: Box::new(source) };
    let authority = Authority::open(&Store::new(&inventory.authority.store)).map_err(pki)?;
    let wanted: Vec<LeafParams> = inventory.certificates.iter().map(|entry| entry.leaf.clone()).collect();
    let stored = authority.audit(&wanted, &inventory.authority.params, now).map_err(pki)?;
    let mut all: Vec<Audited> = stored.into_iter().map(Audited::stored).collect();
    match converge(inventory, reach, &Options { dry_run: true, parallel }, now, &|_| {}) {
        Ok(report) => all.extend(guests(inventory, reach, &authority, &report, now)),
        Err(error) => {
            let location = inventory.authority.store.display().to_string();
            let mut entry = Audited { guest: None, ..Audited::within("", "converge", location, "converge") };
            entry.find(Severity::Critical, causes(&error).join(": "));
            all.push(entry);
        }
    }
    all.sort_by(|one, other| {
        (one.not_after, &one.guest, &one.location).cmp(&(other.not_after, &other.guest, &other.location))
    });
    Ok(all)
}

/// What a dry run says of the guests, with what their files hold.
fn guests(
    inventory: &Inventory,
    reach: &(dyn Fn(&GuestEntry) -> Result<Reached> + Sync),
    authority: &Authority,
    report: &Report,
    now: OffsetDateTime,
) -> Vec<Audited> {
    let mut all = Vec::new();
    for (entry, report) in inventory.guests.iter().zip(&report.guests) {
        let transport = match (&report.state, reach(entry)) {
            (State::Unchanged, Ok(Reached::Ready(transport))) => transport,
            (state, _) => {
                let name = report.name.clone().unwrap_or_default();
                all.push(Audited::within(&report.guest, "guest", "/", name).judged(state));
                continue;
            }
        };
        let guest = Guest { transport: transport.as_ref(), authority, now };
        all.extend(guest.trust(report));
        let placed = inventory.certificates.iter().flat_map(|certificate| &certificate.deliver);
        let placed: Vec<_> = placed.filter(|delivery| delivery.guest == entry.id).collect();
        for (delivery, report) in placed.iter().zip(&report.deliveries) {
            all.push(guest.pair(&delivery.placement.cert.path, report));
            all.extend(delivery.placement.root.as_ref().map(|root| guest.anchor(&root.path)));
        }
    }
    all
}

struct Guest<'a> {
    transport: &'a dyn Transport,
    authority: &'a Authority,
    now: OffsetDateTime,
}

impl Guest<'_> {
    fn trust(&self, report: &GuestReport) -> Vec<Audited> {
        let Some(trust) = &report.trust else { return Vec::new() };
        let root = self.authority.root();
        let entry = |status: &StoreStatus| {
            let location = format!("trust store {}", status.store);
            let mut entry = Audited::within(&report.guest, "trust", location, root.subject());
            if status.state.holds() {
                return entry.holding(root, self.now);
            }
            entry.find(Severity::Warning, format!("the root is {}", status.state));
            entry
        };
        if trust.stores.is_empty() {
            return vec![Audited::within(&report.guest, "trust", "trust store", root.subject()).judged(&trust.state)];
        }
        trust.stores.iter().map(entry).collect()
    }

    fn pair(&self, path: &GuestPath, report: &DeliveryReport) -> Audited {
        let mut entry = self.file("pair", path, &report.certificate).judged(&report.state);
        for difference in &report.differences {
            let severity = match difference {
                crate::delivery::Difference::NotServing { .. } => Severity::Critical,
                _ => Severity::Warning,
            };
            entry.find(severity, difference.to_string());
        }
        if report.state == State::Due && report.differences.is_empty() {
            entry.find(Severity::Warning, "the certificate is due, and then goes here");
        }
        entry.findings.extend(report.notes.iter().map(|note| Finding::new(Severity::Notice, note.as_str())));
        entry
    }

    /// A copy of the root for a program that reads it from a file; what differs is the pair's to say.
    fn anchor(&self, path: &GuestPath) -> Audited {
        self.file("anchor", path, self.authority.root().subject())
    }

    /// What a certificate file of the guest holds; a missing one is the pair's to say.
    fn file(&self, kind: &str, path: &GuestPath, name: &str) -> Audited {
        let mut entry = Audited::within(self.transport.guest(), kind, path.as_str(), name);
        let read = self.transport.get(path, LONGEST_FILE);
        let Ok(Some(bytes)) = read else { return entry };
        match Certificate::all_from_pem(&bytes, path.as_str()) {
            Ok(chain) => entry.holding(&chain[0], self.now),
            Err(error) => {
                entry.find(Severity::Critical, error.to_string());
                entry
            }
        }
    }
}
