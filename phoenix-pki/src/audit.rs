//! What an operator should know of an authority: every certificate, anchor and CRL, where it lies, how long it holds,
//! and what is wrong with it. Gathering reads the store; every judgement is a pure function.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use time::OffsetDateTime;

use crate::authority::Authority;
use crate::certificate::{Certificate, SerialNumber};
use crate::crl::Crl;
use crate::error::{Error, Result};
use crate::key::is_encrypted;
use crate::ledger::{Issued, Ledger};
use crate::plan::{Held, Reason, judge, renewal_point};
use crate::profile::{AuthorityParams, LeafParams, Lifetime, PassphraseSource, Renewal, RootKey};
use crate::store::Role;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// All is well.
    Ok,
    /// Worth knowing; nothing to do now.
    Notice,
    /// It will become a failure unless something is done.
    Warning,
    /// It fails, or a secret is exposed, now.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

/// Something that the audit found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What it is.
    pub what: String,
}

impl Finding {
    /// A finding of somebody who audits more than the store.
    pub fn new(severity: Severity, what: impl Into<String>) -> Self {
        Self { severity, what: what.into() }
    }
}

/// What an entry of the audit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AuditKind {
    /// The root: the trust anchor.
    Root,
    /// The intermediate.
    Intermediate,
    /// A CRL of one of them.
    Crl,
    /// A certificate in the store.
    Leaf,
    /// A certificate that was signed for somebody's request; the ledger alone knows it.
    Request,
    /// The ledger itself.
    Ledger,
}

/// One certificate, CRL or file, and what was found about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// What it is.
    pub kind: AuditKind,
    /// Where it lies.
    pub location: PathBuf,
    /// Its label or subject.
    pub name: String,
    /// Its issuer's subject; empty when that cannot be read.
    pub issuer: String,
    /// Its serial number; none for a CRL, or when that cannot be read.
    pub serial: Option<SerialNumber>,
    /// Its end; for a CRL, its next update.
    #[serde(with = "time::serde::rfc3339::option")]
    pub not_after: Option<OffsetDateTime>,
    /// Whole days until then; negative when it is over.
    pub days_left: Option<i64>,
    /// What was found; empty when all is well.
    pub findings: Vec<Finding>,
}

impl AuditEntry {
    /// The worst of its findings.
    pub fn severity(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    fn of(kind: AuditKind, location: PathBuf, name: &str) -> Self {
        let (name, issuer) = (name.into(), String::new());
        Self { kind, location, name, issuer, serial: None, not_after: None, days_left: None, findings: Vec::new() }
    }

    fn certificate(mut self, certificate: &Certificate, now: OffsetDateTime) -> Self {
        self.issuer = certificate.issuer().into();
        self.serial = Some(certificate.serial_number().clone());
        self.ends(certificate.not_after(), now)
    }

    fn ends(mut self, not_after: OffsetDateTime, now: OffsetDateTime) -> Self {
        self.not_after = Some(not_after);
        self.days_left = Some((not_after - now).whole_days());
        self
    }

    fn found(mut self, findings: impl IntoIterator<Item = Finding>) -> Self {
        self.findings.extend(findings);
        self
    }
}

impl Authority {
    /// Every certificate, anchor and CRL of the store with what is found about it, soonest to end first; what cannot be
    /// read comes before all. Changes nothing.
    ///
    /// `wanted` is what should exist, `params` what the authority should be and how its root key should rest.
    ///
    /// ```
    /// # use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, RootKey, Severity, Store};
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let (store, now) = (Store::new(directory.path().join("store")), time::OffsetDateTime::now_utc());
    /// # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
    /// # let params = AuthorityParams { root_key: RootKey::Plain, ..params };
    /// # let authority = Authority::create(&store, &params, now)?;
    /// let wanted = LeafParams::server(["nginx.internal.example"])?;
    /// authority.ensure(&wanted, now)?;
    /// for entry in authority.audit(&[wanted], &params, now)? {
    ///     println!("{} {} {:?} days: {:?}", entry.severity(), entry.name, entry.days_left, entry.findings);
    ///     assert!(entry.severity() < Severity::Critical);
    /// }
    /// # Ok::<(), phoenix_pki::Error>(())
    /// ```
    ///
    /// # Errors
    /// Only when the store itself cannot be listed: whatever is wrong inside it is a finding.
    pub fn audit(
        &self,
        wanted: &[LeafParams],
        params: &AuthorityParams,
        now: OffsetDateTime,
    ) -> Result<Vec<AuditEntry>> {
        let (ledger, damage) = match self.store.ledger() {
            Ok(ledger) => (ledger, None),
            Err(error) => (Ledger::default(), Some(error)),
        };
        let longest = wanted.iter().map(|wanted| wanted.lifetime).max().unwrap_or(Lifetime::days(90));
        let mut entries = vec![self.audit_root(params, longest, now), self.audit_intermediate(&ledger, longest, now)];
        for role in [Role::Root, Role::Intermediate] {
            entries.extend(self.audit_crl(role, &ledger, now));
        }
        let mut wanted: BTreeMap<String, Option<&LeafParams>> =
            wanted.iter().map(|wanted| (wanted.label(), Some(wanted))).collect();
        for label in self.store.labels()? {
            wanted.entry(label).or_insert(None);
        }
        let known: HashSet<&SerialNumber> = ledger.issued().iter().map(|issued| &issued.serial).collect();
        let inventory = wanted.values().any(Option::is_some);
        for (label, wanted) in &wanted {
            let unwanted = inventory && wanted.is_none();
            let unwanted = unwanted.then(|| notice("nothing in the inventory wants it"));
            entries.push(self.audit_leaf(label, *wanted, &ledger, &known, now).found(unwanted));
        }
        let path = self.store.ledger_path();
        let own = [self.root.fingerprint().to_string(), self.intermediate.fingerprint().to_string()];
        for issued in ledger.issued() {
            if issued.label.is_none()
                && issued.profile.is_some()
                && issued.not_after > now
                && !own.contains(&issued.fingerprint)
            {
                let names = || issued.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let name = if issued.subject.is_empty() { names() } else { issued.subject.clone() };
                let mut entry = AuditEntry::of(AuditKind::Request, path.clone(), &name);
                entry.issuer = issued.issuer.clone();
                entry.serial = Some(issued.serial.clone());
                entries.push(entry.ends(issued.not_after, now).found(request_findings(issued, &ledger)));
            }
        }
        if let Some(error) = damage {
            let entry = AuditEntry::of(AuditKind::Ledger, path, "ledger");
            entries.push(entry.found([critical(format!("what was issued and revoked is not known: {}", all(&error)))]));
        }
        entries.sort_by(|one, other| {
            (one.not_after, &one.location, &one.name).cmp(&(other.not_after, &other.location, &other.name))
        });
        Ok(entries)
    }

    fn audit_root(&self, params: &AuthorityParams, longest: Lifetime, now: OffsetDateTime) -> AuditEntry {
        let root_key = &params.root_key;
        let key = match self.store.authority_key(&self.generation, Role::Root) {
            Ok(None) => RootKeyAtRest::Sealed,
            Ok(Some(pem)) if is_encrypted(&pem) => {
                RootKeyAtRest::Encrypted { passphrase_beside: self.store.has_generated_passphrase() }
            }
            Ok(Some(_)) => RootKeyAtRest::Plain { wanted: *root_key == RootKey::Plain },
            Err(error) => RootKeyAtRest::Unreadable(all(&error)),
        };
        let location = self.store.authority_file(&self.generation, Role::Root, "crt");
        let mut findings = root_findings(&self.root, &self.intermediate, &key, longest, now);
        if let RootKey::Encrypted(source @ PassphraseSource::File(_)) = root_key
            && let Err(error @ Error::OpenKey { .. }) = self.store.passphrase(source)
        {
            findings.push(critical(error.to_string()));
        }
        // What an authority is was settled when it was made; the inventory may have gone on since.
        if let Some(permitted) = self.permitted().filter(|permitted| !permitted.covers(&params.permitted)) {
            let wanted = &params.permitted;
            findings.push(warning(format!("it may certify {permitted}, and {wanted} is wanted: `rotate` to widen it")));
        }
        if let Some(kind) = self.root.key_type().filter(|kind| *kind != params.key_type) {
            findings
                .push(notice(format!("its key is {kind}, and {} is wanted: `rotate` to change it", params.key_type)));
        }
        AuditEntry::of(AuditKind::Root, location, self.root.subject()).certificate(&self.root, now).found(findings)
    }

    fn audit_intermediate(&self, ledger: &Ledger, longest: Lifetime, now: OffsetDateTime) -> AuditEntry {
        let own = &self.intermediate;
        let revoked = ledger.revocation(own.serial_number()).is_some();
        let key = self.intermediate_signer().err();
        let location = self.store.authority_file(&self.generation, Role::Intermediate, "crt");
        AuditEntry::of(AuditKind::Intermediate, location, own.subject())
            .certificate(own, now)
            .found(intermediate_findings(own, revoked, longest, now))
            .found(key.map(|error| critical(format!("its key cannot be used: {}", all(&error)))))
    }

    fn audit_crl(&self, role: Role, ledger: &Ledger, now: OffsetDateTime) -> Option<AuditEntry> {
        let issuer = self.certificate(role);
        let location = self.store.authority_file(&self.generation, role, "crl");
        let entry = AuditEntry::of(AuditKind::Crl, location, &format!("CRL of the {}", role.name()));
        let crl = match self.current_crl(role) {
            Ok(Some(crl)) => crl,
            Ok(None) if !issuer.signs_crls() => return None,
            Ok(None) if role == Role::Root && self.root_key_is_elsewhere() => {
                return Some(entry.found([notice("the root key is elsewhere, and its CRL with it")]));
            }
            Ok(None) => return Some(entry.found([warning("there is none that holds; refresh the CRLs")])),
            Err(error) => return Some(entry.found([critical(all(&error))])),
        };
        let complete = self.crl_is_complete(role, &crl, ledger, now);
        let mut entry = entry.ends(crl.next_update(), now).found(crl_findings(&crl, complete, now));
        entry.issuer = crl.issuer().into();
        Some(entry)
    }

    fn root_key_is_elsewhere(&self) -> bool {
        matches!(self.store.authority_key(&self.generation, Role::Root), Ok(None))
    }

    fn audit_leaf(
        &self,
        label: &str,
        wanted: Option<&LeafParams>,
        ledger: &Ledger,
        known: &HashSet<&SerialNumber>,
        now: OffsetDateTime,
    ) -> AuditEntry {
        let entry = AuditEntry::of(AuditKind::Leaf, self.store.certificate_path(label), label);
        let leaf = match self.leaf(label) {
            Ok(Some(leaf)) => leaf,
            Ok(None) => return entry.found([warning("missing")]),
            Err(error) => return entry.found([critical(all(&error))]),
        };
        let certificate = leaf.certificate();
        let serial = certificate.serial_number();
        let known = known.contains(serial);
        let revoked = ledger.revocation(serial).is_some();
        let public_key = leaf.key().public_key();
        let reason = wanted.map(|wanted| {
            judge(wanted, &Held::Pair { certificate, public_key: &public_key, revoked }, &self.intermediate, now)
        });
        let facts = LeafFacts { certificate, matches: certificate.public_key() == public_key, known, revoked, reason };
        entry.certificate(certificate, now).found(leaf_findings(&facts, now))
    }
}

/// How the root key was found.
enum RootKeyAtRest {
    Sealed,
    Encrypted { passphrase_beside: bool },
    Plain { wanted: bool },
    Unreadable(String),
}

fn root_findings(
    root: &Certificate,
    intermediate: &Certificate,
    key: &RootKeyAtRest,
    longest: Lifetime,
    now: OffsetDateTime,
) -> Vec<Finding> {
    let mut findings = expiry(root, longest, now);
    if root.not_after() < intermediate.not_after() {
        findings.push(notice("it ends before the intermediate"));
    }
    findings.extend(match key {
        RootKeyAtRest::Sealed | RootKeyAtRest::Encrypted { passphrase_beside: false } => None,
        RootKeyAtRest::Encrypted { passphrase_beside: true } => Some(notice(
            "the generated passphrase of its key still lies beside the store; move it to where you keep such",
        )),
        RootKeyAtRest::Plain { wanted: true } => Some(warning("its key rests unencrypted, as the inventory says")),
        RootKeyAtRest::Plain { wanted: false } => Some(critical("its key rests unencrypted, and should not")),
        RootKeyAtRest::Unreadable(why) => Some(critical(why.as_str())),
    });
    findings
}

fn intermediate_findings(
    intermediate: &Certificate,
    revoked: bool,
    longest: Lifetime,
    now: OffsetDateTime,
) -> Vec<Finding> {
    let mut findings = expiry(intermediate, longest, now);
    if revoked {
        findings.push(critical("it is revoked, and still issues"));
    }
    if intermediate.constraints() == (None, None) {
        findings.push(notice("it has no name constraints: its key could certify any name"));
    }
    findings
}

/// What an authority's end means for the leaves below it.
fn expiry(authority: &Certificate, longest: Lifetime, now: OffsetDateTime) -> Vec<Finding> {
    let left = authority.not_after() - now;
    if now > authority.not_after() {
        return vec![critical("expired")];
    }
    if now < authority.not_before() {
        return vec![critical("not valid yet")];
    }
    if left < longest.duration() {
        return vec![warning("it ends before the longest leaf would: new ones are cut short; rotate")];
    }
    Vec::new()
}

fn crl_findings(crl: &Crl, complete: bool, now: OffsetDateTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    if now >= crl.next_update() {
        findings.push(critical("its next update is past: who asks about revocation refuses everything below"));
    } else if crl.is_due(now) {
        findings.push(warning("less than half of its time is left; refresh the CRLs"));
    }
    if !complete {
        findings.push(warning("it does not say what the ledger says; refresh the CRLs"));
    }
    findings
}

struct LeafFacts<'a> {
    certificate: &'a Certificate,
    matches: bool,
    known: bool,
    revoked: bool,
    /// What the plan says, when somebody wants it.
    reason: Option<Reason>,
}

fn leaf_findings(facts: &LeafFacts<'_>, now: OffsetDateTime) -> Vec<Finding> {
    let certificate = facts.certificate;
    let mut findings = Vec::new();
    if now > certificate.not_after() {
        findings.push(critical("expired"));
    }
    if now < certificate.not_before() {
        findings.push(critical("not valid yet"));
    }
    if facts.revoked {
        findings.push(critical("revoked, and still current"));
    }
    if !facts.matches {
        findings.push(critical("the key beside it is not its own"));
    }
    if !facts.known {
        findings.push(warning("the ledger does not know it"));
    }
    match &facts.reason {
        // Said above.
        Some(Reason::UpToDate | Reason::Revoked | Reason::KeyMismatch | Reason::NotYetValid { .. }) => {}
        Some(Reason::Expiring { not_after }) if now > *not_after => {}
        Some(Reason::Expiring { .. }) => findings.push(warning("past its renewal point")),
        Some(reason) => findings.push(warning(reason.to_string())),
        None if now > certificate.not_after() => {}
        None if now >= renewal_point(Renewal::default(), certificate) => {
            findings.push(notice("two thirds of its life are over"));
        }
        None => {}
    }
    findings
}

fn request_findings(issued: &Issued, ledger: &Ledger) -> Option<Finding> {
    ledger.revocation(&issued.serial).map(|(_, at)| notice(format!("revoked on {}", at.date())))
}

fn finding(severity: Severity, what: impl Into<String>) -> Finding {
    Finding { severity, what: what.into() }
}

fn notice(what: impl Into<String>) -> Finding {
    finding(Severity::Notice, what)
}

fn warning(what: impl Into<String>) -> Finding {
    finding(Severity::Warning, what)
}

fn critical(what: impl Into<String>) -> Finding {
    finding(Severity::Critical, what)
}

/// An error with its causes, as one line.
fn all(error: &Error) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;
    use crate::key::KeyType;
    use crate::name::Permitted;
    use crate::profile::{AuthorityParams, Revocation};
    use crate::store::Store;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

    fn authority(directory: &tempfile::TempDir, root_key: RootKey) -> Authority {
        let store = Store::new(directory.path().join("store"));
        let permitted = Permitted::parse(["internal.example"]).unwrap();
        let params = AuthorityParams { root_key, ..AuthorityParams::new("Example", permitted) };
        Authority::create(&store, &params, NOW).unwrap()
    }

    fn wanted(name: &str) -> LeafParams {
        LeafParams::server([format!("{name}.internal.example")]).unwrap()
    }

    /// The worst severity of each entry by kind and name, and what was found.
    fn findings(authority: &Authority, wanted: &[LeafParams], days: i64) -> Vec<(AuditKind, String, Severity, String)> {
        let permitted = Permitted::parse(["internal.example"]).unwrap();
        let entries =
            authority.audit(wanted, &AuthorityParams::new("Example", permitted), NOW + Duration::days(days)).unwrap();
        assert!(entries.is_sorted_by_key(|entry| entry.not_after), "soonest first");
        let found = |entry: &AuditEntry| {
            entry.findings.iter().map(|finding| finding.what.clone()).collect::<Vec<_>>().join("; ")
        };
        entries.iter().map(|entry| (entry.kind, entry.name.clone(), entry.severity(), found(entry))).collect()
    }

    #[test]
    fn an_authority_that_is_not_what_is_wanted_any_more_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Plain);
        let found = |permitted: &[&str], key_type| {
            let params = AuthorityParams::new("Example", Permitted::parse(permitted).unwrap());
            let params = AuthorityParams { key_type, root_key: RootKey::Plain, ..params };
            let entries = authority.audit(&[], &params, NOW).unwrap();
            let said = entries.into_iter().flat_map(|entry| entry.findings).map(|finding| finding.what);
            said.filter(|said| said.contains("rotate")).count()
        };
        assert_eq!(found(&["internal.example"], KeyType::EcdsaP256), 0);
        assert_eq!(found(&["a.internal.example"], KeyType::EcdsaP256), 0, "narrower is covered");
        assert_eq!(found(&["internal.example", "10.0.0.0/8"], KeyType::EcdsaP256), 1);
        assert_eq!(found(&["other.example"], KeyType::Ed25519), 2);
    }

    #[test]
    fn a_sound_authority_has_one_notice() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Generated);
        authority.ensure(&wanted("a"), NOW).unwrap();
        let found = findings(&authority, &[wanted("a")], 0);
        assert_eq!(found.len(), 5, "root, intermediate, two CRLs, one leaf");
        for (kind, _, severity, what) in &found {
            let expected = if *kind == AuditKind::Root { Severity::Notice } else { Severity::Ok };
            assert_eq!(*severity, expected, "{kind:?} {what}");
        }
    }

    #[test]
    fn what_is_wrong_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(&directory, RootKey::Plain);
        authority.ensure_all(&[wanted("a"), wanted("b"), wanted("c")], NOW).unwrap();
        authority.revoke("b.internal.example", Revocation::KeyCompromise, NOW).unwrap();
        let severity = |kind: AuditKind, name: &str, days: i64| {
            let found = findings(&authority, &[wanted("a"), wanted("b"), wanted("d")], days);
            let (.., severity, what) = found.into_iter().find(|it| it.0 == kind && it.1.contains(name)).unwrap();
            (severity, what)
        };
        use AuditKind::{Crl, Intermediate, Leaf, Root};
        use Severity::{Critical, Notice, Ok, Warning};
        for (kind, name, days, expected, what) in [
            (Root, "Root", 0, Critical, "unencrypted"),
            (Leaf, "a.", 0, Ok, ""),
            (Leaf, "b.", 0, Critical, "revoked, and still current"),
            (Leaf, "c.", 0, Notice, "nothing in the inventory wants it"),
            (Leaf, "d.", 0, Warning, "missing"),
            (Leaf, "a.", 61, Warning, "past its renewal point"),
            (Leaf, "a.", 90, Critical, "expired"),
            (Crl, "intermediate", 3, Ok, ""),
            (Crl, "intermediate", 4, Warning, "less than half"),
            (Crl, "intermediate", 7, Critical, "its next update is past"),
            (Crl, "root", 200, Warning, "less than half"),
            (Intermediate, "Intermediate", 1_700, Ok, ""),
            (Intermediate, "Intermediate", 1_750, Warning, "cut short"),
            (Intermediate, "Intermediate", 1_826, Critical, "expired"),
            (Root, "Root", 3_651, Critical, "expired"),
        ] {
            let found = severity(kind, name, days);
            assert!(found.0 == expected && found.1.contains(what), "{kind:?} {name} after {days} days: {found:?}");
        }
    }
}
