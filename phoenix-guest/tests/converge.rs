//! The whole line, over the inventory of the documents: root file systems in a temporary directory as guests.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use phoenix_guest::inventory::{GuestEntry, Inventory};
use phoenix_guest::{Options, Reached, Report, Result, Rootfs, State, converge};
use phoenix_pki::{Authority, LeafParams, Name, Permitted, Reason, Revocation, Store};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

/// A hypervisor whose guests are directories.
struct Estate {
    directory: tempfile::TempDir,
    inventory: Inventory,
}

impl Estate {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut inventory = Inventory::parse(include_str!("../../examples/phoenix.toml"), "phoenix.toml").unwrap();
        inventory.authority.store = directory.path().join("store");
        let estate = Self { directory, inventory };
        estate.inventory.guests.iter().for_each(|guest| estate.lay_out(guest));
        estate
    }

    fn guest(&self, id: &str) -> PathBuf {
        self.directory.path().join(id)
    }

    fn lay_out(&self, guest: &GuestEntry) {
        let root = self.guest(&guest.id.to_string());
        for directory in ["etc/ssl/certs", "usr/local/share/ca-certificates"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\n").unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nwww-data:x:33:\n").unwrap();
        fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), "").unwrap();
    }

    fn reach(&self, guest: &GuestEntry) -> Result<Reached> {
        let path = self.guest(&guest.id.to_string());
        if !path.exists() {
            return Ok(Reached::Absent { why: "stopped".into() });
        }
        Ok(Reached::Ready(Box::new(Rootfs::new(guest.id.to_string(), path)?)))
    }

    fn run(&self, dry_run: bool, now: OffsetDateTime) -> Result<Report> {
        let options = Options { dry_run, ..Options::default() };
        converge(&self.inventory, &|guest| self.reach(guest), &options, now, &|_| {})
    }

    /// Inode, times and length of everything below the directory.
    fn stamp(&self) -> BTreeMap<PathBuf, (u64, i64, i64, i64, u64)> {
        fn walk(path: &Path, stamps: &mut BTreeMap<PathBuf, (u64, i64, i64, i64, u64)>) {
            let seen = path.symlink_metadata().unwrap();
            let stamp = (seen.ino(), seen.mtime(), seen.mtime_nsec(), seen.ctime_nsec(), seen.len());
            stamps.insert(path.into(), stamp);
            if seen.is_dir() {
                fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), stamps));
            }
        }
        let mut stamps = BTreeMap::new();
        walk(self.directory.path(), &mut stamps);
        stamps
    }
}

fn failures(report: &Report) -> Vec<String> {
    let states = report.guests.iter().flat_map(|guest| {
        std::iter::once(&guest.state)
            .chain(guest.trust.iter().map(|trust| &trust.state))
            .chain(guest.deliveries.iter().map(|delivery| &delivery.state))
    });
    states
        .filter_map(|state| match state {
            State::Failed { causes } => Some(causes.join(": ")),
            _ => None,
        })
        .collect()
}

#[test]
fn the_documents_inventory_converges_once_and_then_rests() {
    let estate = Estate::new();
    let first = estate.run(false, NOW).unwrap();
    assert_eq!(failures(&first), Vec::<String>::new());
    assert!(first.holds() && first.changed() && first.authority_created);
    let deliveries = || first.guests.iter().flat_map(|guest| &guest.deliveries);
    assert!(deliveries().count() >= 6);
    assert!(deliveries().all(|delivery| delivery.proof.is_some()), "every pair was proven");
    assert!(first.guests.iter().all(|guest| guest.trust.is_some()), "every guest trusts the root");

    let before = estate.stamp();
    let second = estate.run(false, NOW + Duration::hours(1)).unwrap();
    assert!(second.holds() && !second.changed(), "{second:#?}");
    assert_eq!(before, estate.stamp(), "an unchanged run writes nothing");
    let dry = estate.run(true, NOW + Duration::hours(1)).unwrap();
    assert!(dry.holds() && !dry.changed());
    assert_eq!(before, estate.stamp(), "nor does a dry one");
}

#[test]
fn a_dry_run_of_an_empty_installation_creates_nothing_and_says_what_is_due() {
    let estate = Estate::new();
    let before = estate.stamp();
    let report = estate.run(true, NOW).unwrap();
    assert_eq!(before, estate.stamp());
    assert!(report.changed() && !report.holds() && !report.failed());
    assert!(report.certificates.iter().all(|certificate| certificate.reason == Reason::Missing));
}

#[test]
fn a_copy_of_the_root_that_was_changed_by_hand_is_put_right() {
    use std::os::unix::fs::PermissionsExt as _;

    let estate = Estate::new();
    estate.run(false, NOW).unwrap();
    let copy = estate.guest("host").join(estate.inventory.copies[0].placed.path.as_str().trim_start_matches('/'));
    let root = fs::read(&copy).unwrap();
    let open = |mode| fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).unwrap();
    let damages: [&dyn Fn(); 3] =
        [&|| fs::remove_file(&copy).unwrap(), &|| fs::write(&copy, "another root").unwrap(), &|| open(0o666)];
    for damage in damages {
        damage();
        assert!(estate.run(true, NOW).unwrap().changed());
        assert!(estate.run(false, NOW).unwrap().holds());
        let mode = fs::metadata(&copy).unwrap().permissions().mode() & 0o777;
        assert_eq!((fs::read(&copy).unwrap(), mode), (root.clone(), 0o644));
        assert!(!estate.run(false, NOW).unwrap().changed());
    }
}

#[test]
fn what_was_changed_by_hand_is_found_and_mended() {
    let estate = Estate::new();
    estate.run(false, NOW).unwrap();
    let key = "etc/nginx/ssl/internal_traefik_proxy.key";
    type Damage = Box<dyn Fn(&Path)>;
    let damages: [(&str, Damage); 6] = [
        ("a key is gone", Box::new(move |root| fs::remove_file(root.join(key)).unwrap())),
        ("a key is another", Box::new(move |root| fs::write(root.join(key), "other").unwrap())),
        (
            "a key is open",
            Box::new(move |root| {
                use std::os::unix::fs::PermissionsExt as _;
                fs::set_permissions(root.join(key), fs::Permissions::from_mode(0o644)).unwrap();
            }),
        ),
        ("the generations are gone", Box::new(|root| fs::remove_dir_all(root.join("etc/nginx/ssl/.phoenix")).unwrap())),
        (
            "the anchor is gone",
            Box::new(|root| {
                fs::remove_dir_all(root.join("usr/local/share/ca-certificates")).unwrap();
            }),
        ),
        (
            "the bundle is without it",
            Box::new(|root| fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), "").unwrap()),
        ),
    ];
    for (what, damage) in damages {
        damage(&estate.guest("101"));
        let dry = estate.run(true, NOW).unwrap();
        assert!(dry.changed() && !dry.holds(), "{what}: not noticed");
        let mended = estate.run(false, NOW).unwrap();
        assert!(mended.holds() && mended.changed(), "{what}: {:?}", failures(&mended));
        assert!(!estate.run(false, NOW).unwrap().changed(), "{what}: does not come to rest");
    }
}

#[test]
fn renewal_revocation_and_new_names_reach_the_guests() {
    let mut estate = Estate::new();
    estate.run(false, NOW).unwrap();

    let later = NOW + Duration::days(61);
    let renewed = estate.run(false, later).unwrap();
    assert!(renewed.certificates.iter().all(|certificate| matches!(certificate.reason, Reason::Expiring { .. })));
    assert!(renewed.holds() && !estate.run(false, later).unwrap().changed());

    let authority = Authority::open(&Store::new(&estate.inventory.authority.store)).unwrap();
    authority.revoke("qdrant.internal.thinkheads.ai", Revocation::KeyCompromise, later).unwrap();
    let reissued = estate.run(false, later).unwrap();
    let reasons: Vec<_> = reissued.certificates.iter().filter(|certificate| certificate.reason.is_due()).collect();
    assert_eq!(reasons.len(), 1);
    assert_eq!(reasons[0].reason, Reason::Revoked);
    assert!(reissued.holds() && !estate.run(false, later).unwrap().changed());

    let added: Name = "new.internal.thinkheads.ai".parse().unwrap();
    estate.inventory.certificates[1].leaf.names.push(added.clone());
    let widened = estate.run(false, later).unwrap();
    assert_eq!(widened.certificates[1].reason, Reason::NamesChanged { added: [added].into(), removed: [].into() });
    assert!(widened.holds() && !estate.run(false, later).unwrap().changed());
}

#[test]
fn a_name_outside_the_constraints_stops_before_anything_is_made() {
    let mut estate = Estate::new();
    estate.run(false, NOW).unwrap();
    let before = estate.stamp();
    estate.inventory.certificates[2].leaf = LeafParams::server(["www.example.com"]).unwrap();
    let error = estate.run(false, NOW).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().starts_with("phoenix.toml:"), "{error}");
    assert!(source.contains("www.example.com") && source.contains("rotate"), "{source}");
    assert_eq!(before, estate.stamp());
}

#[test]
fn one_dead_guest_does_not_stop_the_others() {
    let estate = Estate::new();
    // Stopped, hostile and damaged, each in its own way.
    fs::remove_dir_all(estate.guest("102")).unwrap();
    let nginx = estate.guest("101").join("etc/nginx");
    fs::create_dir_all(&nginx).unwrap();
    symlink(estate.directory.path().join("outside"), nginx.join("ssl")).unwrap();
    fs::create_dir(estate.directory.path().join("outside")).unwrap();
    fs::remove_dir_all(estate.guest("1001")).unwrap();
    fs::write(estate.guest("1001"), "a file where a guest should be").unwrap();

    let report = estate.run(false, NOW).unwrap();
    let guest = |id: &str| report.guests.iter().find(|guest| guest.guest == id).unwrap();
    assert!(matches!(guest("102").state, State::Pending { .. }));
    assert!(report.failed() && report.pending() && !report.holds());
    assert!(matches!(guest("1001").state, State::Failed { .. }));
    assert_eq!(
        fs::read_dir(estate.directory.path().join("outside")).unwrap().count(),
        0,
        "nothing was written outside"
    );
    for whole in ["host", "103", "1002"] {
        let guest = guest(whole);
        assert_eq!(guest.trust.as_ref().unwrap().state, State::Changed, "{whole}");
        assert!(guest.deliveries.iter().all(|delivery| delivery.state == State::Changed), "{whole}");
    }

    // The stopped guest starts, the others are repaired: the next run finishes what was left.
    fs::remove_file(estate.guest("1001")).unwrap();
    fs::remove_file(nginx.join("ssl")).unwrap();
    estate
        .inventory
        .guests
        .iter()
        .filter(|guest| !estate.guest(&guest.id.to_string()).exists())
        .for_each(|guest| estate.lay_out(guest));
    let finished = estate.run(false, NOW).unwrap();
    assert!(finished.holds(), "{:?}", failures(&finished));
}

#[test]
fn one_certificate_that_cannot_be_read_does_not_stop_the_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let estate = Estate::new();
    estate.run(false, NOW).unwrap();
    let key = estate.inventory.authority.store.join("certificates/qdrant.internal.thinkheads.ai/current/key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let proxy = estate.guest("101").join("etc/nginx/ssl/internal_traefik_proxy.key");
    fs::remove_file(&proxy).unwrap();

    let report = estate.run(false, NOW).unwrap();
    let failed: Vec<_> =
        report.certificates.iter().filter(|certificate| matches!(certificate.state, State::Failed { .. })).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].label, "qdrant.internal.thinkheads.ai");
    assert!(proxy.exists(), "the other guest was mended all the same");
    assert!(failures(&report).iter().any(|cause| cause.contains("cannot be read from the store")));

    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let report = estate.run(false, NOW).unwrap();
    assert!(report.holds() && !report.changed());
}

#[test]
fn a_crl_that_is_due_is_seen_by_a_dry_run_and_one_that_waits_is_pending() {
    let estate = Estate::new();
    estate.run(false, NOW).unwrap();
    let crl = |role: &str| estate.inventory.authority.store.join(format!("authority/current/{role}.crl"));

    fs::remove_file(crl("intermediate")).unwrap();
    assert!(estate.run(true, NOW).unwrap().changed(), "a dry run says so");
    assert!(!crl("intermediate").exists(), "and writes nothing");
    assert!(estate.run(false, NOW).unwrap().changed() && crl("intermediate").exists());

    fs::remove_file(crl("root")).unwrap();
    let passphrase = Store::new(&estate.inventory.authority.store).passphrase_path();
    let away = estate.directory.path().join("away");
    fs::rename(&passphrase, &away).unwrap();
    for dry_run in [true, false] {
        let report = estate.run(dry_run, NOW).unwrap();
        assert!(report.pending() && !report.holds() && !report.failed());
    }
    fs::rename(&away, &passphrase).unwrap();
    assert!(estate.run(false, NOW).unwrap().holds() && crl("root").exists());
}

#[test]
fn two_runs_at_once_end_as_one() {
    let estate = Estate::new();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| estate.run(false, NOW).unwrap())).collect();
        for run in runs {
            assert!(run.join().unwrap().holds());
        }
    });
    assert!(!estate.run(false, NOW).unwrap().changed());
    let issued = Store::new(&estate.inventory.authority.store).ledger().unwrap().issued().len();
    assert_eq!(issued, 2 + estate.inventory.certificates.len(), "each certificate was made once");
}

#[test]
fn a_guest_has_a_deadline_and_the_others_do_not_wait_for_it() {
    let mut estate = Estate::new();
    let slow = estate.inventory.guests.iter_mut().find(|guest| guest.id.to_string() == "101").unwrap();
    slow.deadline = std::time::Duration::ZERO;
    let report = estate.run(false, NOW).unwrap();
    let failed = failures(&report);
    assert!(
        !failed.is_empty() && failed.iter().all(|cause| cause.contains("guest 101") && cause.contains("longer than")),
        "{failed:?}"
    );
}

#[test]
fn a_consumer_that_hangs_beyond_the_deadline_gets_its_old_pair_back() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ssl) = (directory.path().join("store"), directory.path().join("ssl"));
    let text = format!(
        r#"
        authority = {{ name = "Example", store = {store:?}, root_key = "plain" }}
        guest = [{{ id = "host", type = "host" }}]

        [[certificate]]
        names = ["www.internal.example"]

        [[certificate.deliver]]
        guest = "host"
        cert = {{ path = "{0}/www.crt", owner = "{1}:{2}" }}
        key = {{ path = "{0}/www.key", owner = "{1}:{2}" }}
        reload = ["true"]
        "#,
        ssl.display(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let mut inventory = Inventory::parse(&text, "phoenix.toml").unwrap();
    let run = |inventory: &Inventory| {
        converge(inventory, &phoenix_guest::reach, &Options::default(), NOW, &|_| {}).unwrap().guests.remove(0)
    };
    assert_eq!(run(&inventory).deliveries[0].state, State::Changed);
    let old = fs::read(ssl.join("www.crt")).unwrap();

    let authority = Authority::open(&Store::new(&store)).unwrap();
    authority.issue(&inventory.certificates[0].leaf, NOW).unwrap();
    inventory.guests[0].deadline = std::time::Duration::from_millis(500);
    let placement = &mut inventory.certificates[0].deliver[0].placement;
    placement.check = Some(vec!["sleep".into(), "30".into()]);
    let mut later = inventory.certificates[0].deliver[0].clone();
    later.placement =
        phoenix_guest::Placement::new("/nowhere/a.crt".parse().unwrap(), "/nowhere/a.key".parse().unwrap());
    inventory.certificates[0].deliver.push(later);
    let report = run(&inventory);
    let State::Failed { causes } = &report.deliveries[0].state else { panic!("{report:?}") };
    assert!(causes[0].ends_with("was rolled back") && causes[1].contains("took longer than"), "{causes:?}");
    assert_eq!(fs::read(ssl.join("www.crt")).unwrap(), old);
    let State::Failed { causes } = &report.deliveries[1].state else { panic!("{report:?}") };
    assert!(causes[0].contains("what came before /nowhere/a.crt took longer than 500ms"), "{causes:?}");
}

#[test]
fn a_guest_that_cannot_trust_the_root_gets_its_pairs_all_the_same() {
    let estate = Estate::new();
    fs::write(estate.guest("102").join("etc/os-release"), "ID=plan9\n").unwrap();
    for changed in [true, false] {
        let report = estate.run(false, NOW).unwrap();
        let guest = report.guests.iter().find(|guest| guest.guest == "102").unwrap();
        let trust = guest.trust.as_ref().unwrap();
        let State::Failed { causes } = &trust.state else { panic!("{trust:?}") };
        assert!(causes[0].contains("\"plan9\"") && trust.stores.len() == 1, "{trust:?}");
        let expected = if changed { State::Changed } else { State::Unchanged };
        assert!(guest.deliveries.iter().all(|delivery| delivery.state == expected), "{guest:#?}");
    }
}

#[test]
fn what_a_dry_run_would_first_make_trusted_is_no_failure_of_a_pair() {
    let estate = Estate::new();
    estate.run(false, NOW).unwrap();
    fs::write(estate.guest("102").join("etc/ssl/certs/ca-certificates.crt"), "").unwrap();
    let report = estate.run(true, NOW).unwrap();
    assert_eq!(failures(&report), Vec::<String>::new());
    let guest = report.guests.iter().find(|guest| guest.guest == "102").unwrap();
    assert_eq!(guest.trust.as_ref().unwrap().state, State::Due);
    assert!(guest.deliveries.iter().all(|delivery| delivery.state == State::Unchanged), "{guest:#?}");
}

#[test]
fn guests_are_worked_on_at_the_same_time() {
    // Every guest waits for all others of its layer: one after the other, the first would wait for ever.
    let mut estate = Estate::new();
    estate.inventory.guests.iter_mut().for_each(|guest| guest.depends.clear());
    let barrier = std::sync::Barrier::new(estate.inventory.guests.len());
    let reach = |guest: &GuestEntry| {
        barrier.wait();
        estate.reach(guest)
    };
    let options = Options { parallel: estate.inventory.guests.len(), ..Options::default() };
    assert!(converge(&estate.inventory, &reach, &options, NOW, &|_| {}).unwrap().holds());
}

#[test]
fn a_report_holds_no_key() {
    let estate = Estate::new();
    let report = estate.run(false, NOW).unwrap();
    assert!(!format!("{report:?}").contains("PRIVATE KEY"));
    let store = Store::new(&estate.inventory.authority.store);
    let leaf = Authority::open(&store).unwrap().leaf("qdrant.internal.thinkheads.ai").unwrap().unwrap();
    let secret = leaf.key().to_pem();
    let line = secret.lines().nth(1).unwrap();
    assert!(!format!("{report:?}{leaf:?}").contains(line));
}

#[test]
fn the_default_subtrees_cover_the_documents() {
    let inventory = Inventory::parse(include_str!("../../examples/phoenix.toml"), "phoenix.toml").unwrap();
    let names: Vec<Name> = inventory.certificates.iter().flat_map(|entry| entry.leaf.names.clone()).collect();
    let around = Permitted::around(&names);
    assert!(names.iter().all(|name| around.permits(name)));
}
