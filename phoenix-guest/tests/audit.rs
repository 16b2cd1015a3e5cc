//! The audit of store and guests, with a clock that goes on; and the CRLs that a converge keeps fresh.

use std::fs;
use std::path::PathBuf;

use phoenix_guest::inventory::{GuestEntry, Inventory};
use phoenix_guest::{Audited, Options, Reached, Report, Result, Rootfs, audit, converge};
use phoenix_pki::{CrlState, Severity};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

const INVENTORY: &str = r#"
authority = { name = "Example Internal", store = "store" }
trust = { select = "all" }

[[guest]]
id = 101
type = "lxc"

[[guest]]
id = 102
type = "lxc"

[[certificate]]
names = ["a.internal.example"]

[[certificate.deliver]]
guest = 101
cert = { path = "/etc/ssl/a.crt" }
key = { path = "/etc/ssl/a.key" }
root = { path = "/etc/ssl/root.crt" }
"#;

struct Estate {
    directory: tempfile::TempDir,
    inventory: Inventory,
}

impl Estate {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut inventory = Inventory::parse(INVENTORY, "phoenix.toml").unwrap();
        inventory.authority.store = directory.path().join("store");
        for guest in ["101", "102"] {
            fs::create_dir_all(directory.path().join(guest).join("etc")).unwrap();
            fs::write(directory.path().join(guest).join("etc/os-release"), "ID=debian\n").unwrap();
        }
        Self { directory, inventory }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn reach(&self, guest: &GuestEntry) -> Result<Reached> {
        let path = self.path(&guest.id.to_string());
        match path.exists() {
            true => Ok(Reached::Ready(Box::new(Rootfs::new(guest.id.to_string(), path)?))),
            false => Ok(Reached::Absent { why: "stopped".into() }),
        }
    }

    fn converge(&self, now: OffsetDateTime) -> Report {
        converge(&self.inventory, &|guest| self.reach(guest), &Options::default(), now, &|_| {}).unwrap()
    }

    fn audit(&self, now: OffsetDateTime) -> Vec<Audited> {
        audit(&self.inventory, &|guest| self.reach(guest), 2, now).unwrap()
    }
}

/// The one entry of a kind in a guest.
fn entry<'a>(all: &'a [Audited], guest: &str, kind: &str) -> &'a Audited {
    let mut found = all.iter().filter(|entry| entry.guest.as_deref() == Some(guest) && entry.kind == kind);
    let entry = found.next().unwrap();
    assert!(found.next().is_none());
    entry
}

/// What a pair has about which nothing is wrong: an ordinary user is told that its owner could not be set.
fn sound() -> Severity {
    use std::os::unix::fs::MetadataExt as _;

    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if root { Severity::Ok } else { Severity::Notice }
}

#[test]
fn what_guests_hold_is_read_from_them() {
    let estate = Estate::new();
    assert!(estate.converge(NOW).holds());
    let all = estate.audit(NOW);
    let pair = entry(&all, "101", "pair");
    assert_eq!((pair.location.as_str(), pair.days_left, pair.severity()), ("/etc/ssl/a.crt", Some(89), sound()));
    assert_eq!(entry(&all, "101", "anchor").days_left, entry(&all, "102", "trust").days_left);
    assert!(all.is_sorted_by_key(|entry| entry.not_after));

    fs::write(estate.path("101/etc/ssl/a.crt"), "nonsense").unwrap();
    fs::remove_file(estate.path("101/etc/ssl/root.crt")).unwrap();
    fs::write(estate.path("102/etc/ssl/certs/ca-certificates.crt"), "").unwrap();
    let all = estate.audit(NOW);
    let pair = entry(&all, "101", "pair");
    assert_eq!((pair.severity(), pair.not_after), (Severity::Critical, None));
    let found: Vec<&str> = pair.findings.iter().map(|finding| finding.what.as_str()).collect();
    assert!(found.contains(&"/etc/ssl/root.crt is missing") && found.contains(&"/etc/ssl/a.crt differs"), "{found:?}");
    assert_eq!(entry(&all, "102", "trust").severity(), Severity::Warning);
    assert_eq!(entry(&all, "101", "trust").severity(), Severity::Ok);
}

#[test]
fn what_is_expired_in_a_guest_is_critical_and_a_stopped_guest_a_warning() {
    let estate = Estate::new();
    estate.converge(NOW);
    let later = NOW + Duration::days(91);
    let all = estate.audit(later);
    let pair = entry(&all, "101", "pair");
    assert_eq!((pair.severity(), pair.days_left), (Severity::Critical, Some(-1)));
    assert_eq!(pair.findings[0].what, "expired");

    fs::rename(estate.path("102"), estate.path("away")).unwrap();
    let all = estate.audit(NOW);
    let guest = entry(&all, "102", "guest");
    assert_eq!((guest.severity(), guest.findings[0].what.as_str()), (Severity::Warning, "not looked at: stopped"));
    assert_eq!(entry(&all, "101", "pair").severity(), sound());
}

/// Signed by its own key; its subject, and so its issuer, clears a terminal: `CN=a\x1b[2Jb`.
const CLEARS_TERMINALS: &str = "\
-----BEGIN CERTIFICATE-----
MIHeMIGRAhRpoWyOW+qpI1HhoCBEDGY/X1khxjAFBgMrZXAwETEPMA0GA1UEAwwG
YRtbMkpiMCAXDTI2MTEyMTAzMDM1OVoYDzIxMjYxMDI4MDMwMzU5WjARMQ8wDQYD
VQQDDAZhG1sySmIwKjAFBgMrZXADIQDw+//xuV/WIFcc5tSmXAW/L23bEzHnWbLa
CEXd3yNeDDAFBgMrZXADQQCUu8jxlPBkNPavMLW8zgj1ZW7/or/Kv8MYa3n5Qb7M
jjRd9nv2IXsATiomFiQY088r4XDriMZtliRR2sQAA7wE
-----END CERTIFICATE-----
";

#[test]
fn what_a_guest_puts_in_a_certificate_does_not_reach_the_terminal() {
    let estate = Estate::new();
    estate.converge(NOW);
    fs::remove_file(estate.path("101/etc/ssl/a.crt")).unwrap();
    fs::write(estate.path("101/etc/ssl/a.crt"), CLEARS_TERMINALS).unwrap();
    let all = estate.audit(NOW);
    assert_eq!(entry(&all, "101", "pair").issuer, "CN=a [2Jb");
}

#[test]
fn a_store_that_stops_a_run_is_a_finding_and_not_the_end_of_the_audit() {
    let estate = Estate::new();
    estate.converge(NOW);
    fs::write(estate.path("store/ledger.jsonl"), "no ledger\n").unwrap();
    let all = estate.audit(NOW);
    let run = all.iter().find(|entry| entry.kind == "converge").unwrap();
    assert!(run.severity() == Severity::Critical && run.findings[0].what.contains("ledger.jsonl:1"), "{run:?}");
    assert!(all.iter().any(|entry| entry.kind == "root"));
}

#[test]
fn a_converge_signs_the_crls_that_are_due_and_no_others() {
    let estate = Estate::new();
    estate.converge(NOW);
    let soon = estate.converge(NOW + Duration::days(1));
    assert!(!soon.changed());
    let late = estate.converge(NOW + Duration::days(4));
    let crls = late.crls.as_ref().unwrap();
    assert_eq!((&crls.intermediate, &crls.root), (&CrlState::Written, &CrlState::Unchanged));
    assert!(late.changed() && late.holds());
    assert!(!estate.converge(NOW + Duration::days(4)).changed());
}
