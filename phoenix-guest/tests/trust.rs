//! Trust stores by effect: installed, found unchanged, replaced, removed, cut off at every step, and refreshed by
//! programs that fail or lie.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phoenix_guest::{
    Command, Error, Family, File, GuestPath, Memory, Mode, Observed, Output, Owner, RefreshFailure, Rootfs, StoreState,
    Transport, Trust, TrustStore,
};
use phoenix_pki::{Authority, AuthorityParams, Certificate, Fingerprint, LeafParams, Permitted, RootKey, Store};
use tempfile::TempDir;
use time::OffsetDateTime;

// Certificates, made once.

fn authority(name: &str) -> (TempDir, Authority) {
    let directory = tempfile::tempdir().unwrap();
    let permitted = Permitted { domains: ["test".into()].into(), ..Permitted::default() };
    let params = AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new(name, permitted) };
    let store = Store::new(directory.path().join("store"));
    let authority = Authority::create(&store, &params, OffsetDateTime::now_utc()).unwrap();
    (directory, authority)
}

struct Roots {
    /// What the distribution trusts.
    others: Vec<Certificate>,
    old: Certificate,
    new: Certificate,
    intermediate: Certificate,
    leaf: Certificate,
    leaf_key: String,
}

static ROOTS: LazyLock<Roots> = LazyLock::new(|| {
    let root = |name: &str| authority(name).1.root().clone();
    let (_directory, authority) = authority("House");
    let leaf = authority.issue(&LeafParams::server(["www.test"]).unwrap(), OffsetDateTime::now_utc()).unwrap();
    Roots {
        others: ["Alpha", "Beta", "Gamma"].map(root).into(),
        old: root("House"),
        new: authority.root().clone(),
        intermediate: authority.intermediate().clone(),
        leaf: leaf.certificate().clone(),
        leaf_key: leaf.key().to_pem().to_string(),
    }
});

fn old() -> Certificate {
    ROOTS.old.clone()
}

fn new() -> Certificate {
    ROOTS.new.clone()
}

fn bundle_of(certificates: &[Certificate]) -> String {
    certificates.iter().map(Certificate::pem).collect()
}

fn prints(certificates: &[Certificate]) -> BTreeSet<Fingerprint> {
    certificates.iter().map(Certificate::fingerprint).collect()
}

fn file_of(anchor: &Certificate) -> String {
    format!("phoenix-{}.crt", anchor.fingerprint().short())
}

// Guests.

/// Where a distribution keeps what, as recorded from its releases.
struct Recorded {
    family: Family,
    os_release: &'static str,
    anchors: &'static str,
    bundle: &'static str,
    bundle_mode: u32,
    links: Option<&'static str>,
}

const RECORDED: [Recorded; 5] = [
    Recorded {
        family: Family::Debian,
        os_release: "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n",
        anchors: "/usr/local/share/ca-certificates",
        bundle: "/etc/ssl/certs/ca-certificates.crt",
        bundle_mode: 0o644,
        links: Some(""),
    },
    Recorded {
        family: Family::RedHat,
        os_release: "NAME=\"Rocky Linux\"\nVERSION=\"9.4 (Blue Onyx)\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
        anchors: "/etc/pki/ca-trust/source/anchors",
        bundle: "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        bundle_mode: 0o444,
        links: None,
    },
    Recorded {
        family: Family::Alpine,
        os_release: "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.20.3\n",
        anchors: "/usr/local/share/ca-certificates",
        bundle: "/etc/ssl/certs/ca-certificates.crt",
        bundle_mode: 0o644,
        links: Some("ca-cert-"),
    },
    Recorded {
        family: Family::Arch,
        os_release: "NAME=\"Arch Linux\"\nID=arch\nBUILD_ID=rolling\n",
        anchors: "/etc/ca-certificates/trust-source/anchors",
        bundle: "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
        bundle_mode: 0o444,
        links: None,
    },
    Recorded {
        family: Family::Suse,
        os_release: "NAME=\"openSUSE Leap\"\nVERSION=\"15.6\"\nID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n",
        anchors: "/etc/pki/trust/anchors",
        bundle: "/var/lib/ca-certificates/ca-bundle.pem",
        bundle_mode: 0o444,
        links: None,
    },
];

const DEBIAN: &Recorded = &RECORDED[0];

fn path(text: impl AsRef<str>) -> GuestPath {
    text.as_ref().parse().unwrap()
}

impl Recorded {
    /// The bundle of a fresh guest: comments and blank lines between certificates, as p11-kit writes them.
    fn fresh_bundle(&self) -> String {
        let labelled = |(at, root): (usize, &Certificate)| format!("# Root {at}\n{}\n", root.pem());
        ROOTS.others.iter().enumerate().map(labelled).collect()
    }

    fn anchor(&self, anchor: &Certificate) -> GuestPath {
        path(format!("{}/{}", self.anchors, file_of(anchor)))
    }

    /// A root file system at rest.
    fn rootfs(&self) -> (TempDir, Rootfs) {
        // In memory where that is possible: each write is synced, and there are thousands.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let guest = Rootfs::new("101", directory.path()).unwrap();
        let put = |at: &str, text: &str, mode: u32| {
            let mode = Mode::new(mode).unwrap();
            guest.put(&File { path: path(at), bytes: text.into(), mode, owner: Owner::ROOT }).unwrap();
        };
        put("/usr/lib/os-release", self.os_release, 0o644);
        guest.link(&path("/etc/os-release"), "../usr/lib/os-release").unwrap();
        put(self.bundle, &self.fresh_bundle(), self.bundle_mode);
        put(&format!("{}/admin.crt", self.anchors), &ROOTS.others[2].pem(), 0o640);
        (directory, guest)
    }

    /// A guest that runs programs: the one that refreshes its bundle answers as `refresh` says.
    fn running(&self, refresh: impl Fn(&Refresher, &Memory) -> Output + Send + Sync + 'static) -> Memory {
        let refresher = Refresher { anchors: path(self.anchors), bundle: path(self.bundle), links: self.links };
        Memory::new("101")
            .with_file(path("/etc/os-release"), self.os_release)
            .with_file(path(self.bundle), self.fresh_bundle())
            .with_file(path(format!("{}/admin.crt", self.anchors)), ROOTS.others[2].pem())
            .on_exec(move |_, guest| refresh(&refresher, guest))
    }
}

/// What the programs of the distributions do, as far as the bundle and its links go.
struct Refresher {
    anchors: GuestPath,
    bundle: GuestPath,
    links: Option<&'static str>,
}

impl Refresher {
    fn run(&self, guest: &dyn Transport) -> Output {
        let mut bundle = bundle_of(&ROOTS.others[..2]).into_bytes();
        let links = path("/etc/ssl/certs");
        for name in guest.list(&self.anchors).unwrap() {
            let file = self.anchors.join(&name).unwrap();
            bundle.extend(guest.get(&file, 1 << 20).unwrap().unwrap());
            if let Some(prefix) = self.links {
                let link = format!("{prefix}{}", name.replace(".crt", ".pem"));
                guest.link(&links.join(&link).unwrap(), file.as_str()).unwrap();
            }
        }
        write(guest, &self.bundle, bundle);
        ended(0, "")
    }
}

fn write(guest: &dyn Transport, path: &GuestPath, bytes: impl Into<Vec<u8>>) {
    let file = File { path: path.clone(), bytes: bytes.into(), mode: Mode::CERTIFICATE, owner: Owner::ROOT };
    guest.put(&file).unwrap();
}

fn ended(status: i32, stderr: &str) -> Output {
    Output { status, stdout: Vec::new(), stderr: stderr.into(), truncated: false }
}

fn effective(guest: &dyn Transport) -> BTreeSet<Fingerprint> {
    Trust::of(guest, &[]).unwrap().bundle().unwrap().iter().map(|der| Fingerprint::of(der)).collect()
}

fn state(guest: &dyn Transport, anchors: &[Certificate]) -> StoreState {
    Trust::of(guest, &[]).unwrap().status(anchors).unwrap().remove(0).state
}

fn install(guest: &dyn Transport, anchors: &[Certificate]) -> Result<bool, Error> {
    let installed = Trust::of(guest, &[]).unwrap().install(anchors)?;
    assert!(installed.stores[0].state.holds(), "{:?}", installed.stores);
    Ok(installed.changed)
}

fn remove(guest: &dyn Transport, anchor: &Certificate) -> Result<bool, Error> {
    Trust::of(guest, &[]).unwrap().remove(&anchor.fingerprint())
}

/// Every name below a directory with its inode, times, mode and content.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let at = entry.unwrap().path();
        let meta = at.symlink_metadata().unwrap();
        let bytes = match meta.file_type() {
            kind if kind.is_dir() => {
                found.extend(snapshot(&at));
                Vec::new()
            }
            kind if kind.is_symlink() => std::fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes(),
            _ => std::fs::read(&at).unwrap(),
        };
        found.insert(at, (meta.ino(), meta.mtime_nsec(), meta.ctime_nsec(), meta.mode(), bytes));
    }
    found
}

/// What is below a directory, without what differs between two trees that were made in the same way.
fn content(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let tree = snapshot(root).into_iter();
    tree.map(|(at, (_, _, _, mode, bytes))| (at.strip_prefix(root).unwrap().to_path_buf(), (mode, bytes))).collect()
}

fn skipped(test: &str, missing: &str) {
    println!("SKIPPED {test}: {missing}");
    if let Some(list) = std::env::var_os("PHOENIX_SKIPPED") {
        let mut list = std::fs::OpenOptions::new().create(true).append(true).open(list).unwrap();
        writeln!(list, "{test}: {missing}").unwrap();
    }
}

/// The first line that a program writes; `None` when it is not there or fails.
fn output(program: &mut Program, stdin: &str) -> Option<String> {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

// The system's store, at rest.

#[test]
fn each_family_trusts_what_is_installed_and_an_unchanged_one_is_not_written_to() {
    for recorded in &RECORDED {
        let (directory, guest) = recorded.rootfs();
        let family = Trust::of(&guest, &[]).unwrap().family();
        assert_eq!(family, Some(recorded.family));
        let before = content(directory.path());
        assert_eq!(state(&guest, &[new()]), StoreState::Missing, "{family:?}");

        assert!(install(&guest, &[new()]).unwrap(), "{family:?}");
        assert_eq!(state(&guest, &[new()]), StoreState::Present, "{family:?}");
        assert_eq!(effective(&guest), prints(&[ROOTS.others.clone(), vec![new()]].concat()), "{family:?}");
        let bundle = guest.get(&path(recorded.bundle), 1 << 20).unwrap().unwrap();
        assert_eq!(bundle, format!("{}{}", recorded.fresh_bundle(), new().pem()).as_bytes(), "{family:?}");
        let observed = guest.observe(&[path(recorded.bundle), recorded.anchor(&new())]).unwrap();
        let modes: Vec<u32> = observed.iter().map(|seen| seen.file.as_ref().unwrap().mode.bits()).collect();
        assert_eq!(modes, [recorded.bundle_mode, 0o644], "{family:?}");

        let installed = snapshot(directory.path());
        assert!(!install(&guest, &[new()]).unwrap(), "{family:?}");
        assert_eq!(snapshot(directory.path()), installed, "{family:?}");

        // And all of it can go again.
        assert!(remove(&guest, &new()).unwrap(), "{family:?}");
        assert_eq!(content(directory.path()), before, "{family:?}");
        let removed = snapshot(directory.path());
        assert!(!remove(&guest, &new()).unwrap(), "{family:?}");
        assert_eq!(snapshot(directory.path()), removed, "{family:?}");
    }
}

#[test]
fn an_older_anchor_of_ours_is_replaced_and_a_rotation_trusts_both() {
    for recorded in &RECORDED {
        let (directory, guest) = recorded.rootfs();
        install(&guest, &[old()]).unwrap();
        let first = content(directory.path());
        assert_eq!(state(&guest, &[new()]), StoreState::Stale);
        assert!(install(&guest, &[old(), new()]).unwrap());
        assert_eq!(effective(&guest), prints(&[ROOTS.others.clone(), vec![old(), new()]].concat()));
        assert!(!install(&guest, &[new(), old()]).unwrap(), "the order does not count");
        assert_eq!(state(&guest, &[new()]), StoreState::Stale);
        assert!(install(&guest, &[new()]).unwrap());
        assert_eq!(effective(&guest), prints(&[ROOTS.others.clone(), vec![new()]].concat()));
        assert_eq!(guest.observe(&[recorded.anchor(&old())]).unwrap(), [Observed::MISSING]);
        assert!(install(&guest, &[old()]).unwrap());
        assert_eq!(content(directory.path()), first);
    }
}

#[test]
fn what_others_installed_stays_byte_for_byte() {
    let (directory, guest) = DEBIAN.rootfs();
    let anchors = directory.path().join("usr/local/share/ca-certificates");
    let named_like_ours = [
        ("phoenix-0123456789abcdef.crt", ROOTS.others[0].pem()),
        ("phoenix-0123456789abcdee.crt", "not a certificate".into()),
        (&format!("phoenix-{}.crt", ROOTS.leaf.fingerprint().short()), ROOTS.leaf.pem()),
        (&format!("phoenix-{}.pem", old().fingerprint().short()), old().pem()),
        ("phoenix.crt", old().pem()),
    ];
    for (name, bytes) in &named_like_ours {
        std::fs::write(anchors.join(name), bytes).unwrap();
    }
    symlink("admin.crt", anchors.join("phoenix-0123456789abcded.crt")).unwrap();
    std::fs::create_dir(anchors.join("phoenix-0123456789abcdec.crt")).unwrap();
    let before = snapshot(&anchors);
    install(&guest, &[new()]).unwrap();
    assert_eq!(state(&guest, &[new()]), StoreState::Present);
    assert!(!remove(&guest, &ROOTS.leaf).unwrap());
    assert!(!remove(&guest, &old()).unwrap());
    assert!(remove(&guest, &new()).unwrap());
    assert_eq!(snapshot(&anchors), before);
}

#[test]
fn an_anchor_that_somebody_else_installed_is_trusted_and_left_alone() {
    let (directory, guest) = DEBIAN.rootfs();
    write(&guest, &path("/usr/local/share/ca-certificates/cloud-init-ca-certs.crt"), new().pem());
    write(&guest, &path(DEBIAN.bundle), DEBIAN.fresh_bundle() + &new().pem());
    let before = snapshot(directory.path());
    assert_eq!(state(&guest, &[new()]), StoreState::Foreign);
    assert!(!install(&guest, &[new()]).unwrap());
    assert!(!remove(&guest, &new()).unwrap());
    assert_eq!(snapshot(directory.path()), before);

    // Ours beside theirs goes, and the trust that theirs gives stays.
    write(&guest, &DEBIAN.anchor(&new()), new().pem());
    assert_eq!(state(&guest, &[new()]), StoreState::Present);
    assert!(remove(&guest, &new()).unwrap());
    assert_eq!(state(&guest, &[new()]), StoreState::Foreign);
}

#[test]
fn a_file_of_ours_that_was_changed_is_put_right() {
    let (_directory, guest) = DEBIAN.rootfs();
    install(&guest, &[new()]).unwrap();
    let damages: [&dyn Fn(); 4] = [
        &|| {
            let mode = Mode::new(0o600).unwrap();
            let file = File { path: DEBIAN.anchor(&new()), bytes: new().pem().into(), mode, owner: Owner::ROOT };
            guest.put(&file).unwrap();
        },
        &|| write(&guest, &DEBIAN.anchor(&new()), &new().pem()[..100]),
        &|| write(&guest, &DEBIAN.anchor(&new()), ""),
        &|| guest.link(&DEBIAN.anchor(&new()), "admin.crt").unwrap(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        assert_eq!(state(&guest, &[new()]), StoreState::Stale, "damage {number}");
        assert!(install(&guest, &[new()]).unwrap());
        assert_eq!(state(&guest, &[new()]), StoreState::Present, "damage {number}");
        assert_eq!(guest.get(&DEBIAN.anchor(&new()), 1 << 20).unwrap().unwrap(), new().pem().as_bytes());
    }
    assert_eq!(guest.get(&DEBIAN.anchor(&ROOTS.others[2]), 1 << 20).unwrap(), None);
}

#[test]
fn a_removal_that_was_cut_off_in_the_guest_is_finished_at_rest() {
    let (directory, guest) = DEBIAN.rootfs();
    let before = content(directory.path());
    let finished: [fn(&dyn Transport); 2] = [
        |guest| assert!(remove(guest, &new()).unwrap()),
        |guest| {
            assert!(install(guest, &[old()]).unwrap());
            assert!(remove(guest, &old()).unwrap());
        },
    ];
    for finish in finished {
        install(&guest, &[new()]).unwrap();
        write(&guest, &DEBIAN.anchor(&new()), "");
        finish(&guest);
        assert_eq!(content(directory.path()), before);
    }
}

#[test]
fn only_a_root_is_an_anchor() {
    let (directory, guest) = DEBIAN.rootfs();
    let before = snapshot(directory.path());
    for refused in [vec![ROOTS.leaf.clone()], vec![ROOTS.intermediate.clone()], vec![new(), ROOTS.leaf.clone()], vec![]]
    {
        let refused = refused.as_slice();
        let trust = Trust::of(&guest, &["registry:5000".into()]).unwrap();
        assert!(matches!(trust.install(refused), Err(Error::Anchor { .. })), "{refused:?}");
        assert!(matches!(trust.status(refused), Err(Error::Anchor { .. })), "{refused:?}");
    }
    // A root's name and key identifier on somebody else's signature.
    let mut forged = new().der().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let forged = Certificate::from_der(&forged, "forged").unwrap();
    assert!(matches!(install(&guest, &[forged]), Err(Error::Anchor { .. })));
    assert_eq!(snapshot(directory.path()), before);
    // A chain and a key are no certificate to begin with, and what stands beside one in a file is not written.
    let chain = bundle_of(&[new(), old()]);
    assert!(Certificate::from_pem(chain.as_bytes(), "chain").is_err());
    assert!(Certificate::from_pem(ROOTS.leaf_key.as_bytes(), "key").is_err());
    let with_key = Certificate::from_pem((ROOTS.leaf_key.clone() + &new().pem()).as_bytes(), "both").unwrap();
    install(&guest, &[with_key]).unwrap();
    assert_eq!(guest.get(&DEBIAN.anchor(&new()), 1 << 20).unwrap().unwrap(), new().pem().as_bytes());
}

#[test]
fn a_hostile_bundle_is_read_as_far_as_it_is_one() {
    let (_directory, guest) = DEBIAN.rootfs();
    let [alpha, beta, gamma] = [0, 1, 2].map(|at| ROOTS.others[at].pem());
    let cut = &beta[..beta.len() / 2];
    // Garbage, a block that is cut off, one that is no certificate, one with Windows line ends, and no final newline.
    let hostile = format!(
        "\0\u{1b}[2J{alpha}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{cut}\n{}{}",
        beta.replace('\n', "\r\n"),
        gamma.trim_end()
    );
    let hostile = hostile.replacen("\u{1b}[2J-----BEGIN", "\n-----BEGIN", 1);
    write(&guest, &path(DEBIAN.bundle), hostile.clone());
    assert_eq!(effective(&guest), prints(&ROOTS.others));
    install(&guest, &[new()]).unwrap();
    let bundle = guest.get(&path(DEBIAN.bundle), 1 << 20).unwrap().unwrap();
    assert_eq!(bundle, format!("{hostile}\n{}", new().pem()).as_bytes());
    install(&guest, &[old()]).unwrap();
    assert_eq!(effective(&guest), prints(&[ROOTS.others.clone(), vec![old()]].concat()));

    write(&guest, &path(DEBIAN.bundle), vec![b'\n'; (4 << 20) + 1]);
    assert!(matches!(Trust::of(&guest, &[]).unwrap().bundle(), Err(Error::File { .. })));
    guest.remove(&path(DEBIAN.bundle)).unwrap();
    assert_eq!(effective(&guest), BTreeSet::new());
    guest.link(&path(DEBIAN.bundle), "elsewhere.pem").unwrap();
    assert!(matches!(install(&guest, &[new()]), Err(Error::Unsupported { .. })));
}

#[test]
fn an_unknown_distribution_is_unsupported_and_the_rest_goes_on() {
    let guest = Memory::new("101").with_file(path("/etc/os-release"), "ID=nixos\n");
    let trust = Trust::of(&guest, &["registry:5000".into()]).unwrap();
    assert!(matches!(trust.bundle_path(), Err(Error::Unsupported { .. })));
    assert!(matches!(trust.bundle(), Err(Error::Unsupported { .. })));
    let installed = trust.install(&[new()]).unwrap();
    assert!(matches!(&installed.stores[0].state, StoreState::Unsupported { why } if why.contains("nixos")));
    assert_eq!(installed.stores[1].state, StoreState::Present);
    assert!(!installed.stores[0].state.holds());
    let guest = Memory::new("101");
    assert!(matches!(state(&guest, &[new()]), StoreState::Unsupported { .. }));
}

// The system's store, with its programs.

#[test]
fn each_family_is_refreshed_by_its_own_program() {
    for recorded in &RECORDED {
        let guest = recorded.running(|refresher, guest| refresher.run(guest));
        assert!(install(&guest, &[old()]).unwrap());
        assert_eq!(state(&guest, &[old()]), StoreState::Present);
        let (writes, commands) = (guest.writes(), guest.commands().len());
        assert!(!install(&guest, &[old()]).unwrap());
        assert_eq!((guest.writes(), guest.commands().len()), (writes, commands), "unchanged is untouched");
        assert!(install(&guest, &[new()]).unwrap());
        assert_eq!(effective(&guest), prints(&[ROOTS.others.clone(), vec![new()]].concat()));
        assert!(remove(&guest, &new()).unwrap());
        assert_eq!(effective(&guest), prints(&ROOTS.others));
        assert_eq!(guest.list(&path(recorded.anchors)).unwrap(), ["admin.crt"]);
        let links = guest.list(&path("/etc/ssl/certs")).unwrap();
        assert!(links.iter().all(|name| !name.contains("phoenix")), "{links:?}");
        let [first, second, _] = [0, 1, 2].map(|at| guest.commands()[at].argv.join(" "));
        let (refresh, removed) = match recorded.family {
            Family::Debian => ("update-ca-certificates", "update-ca-certificates --fresh"),
            Family::RedHat => ("update-ca-trust extract", "update-ca-trust extract"),
            Family::Arch => ("update-ca-trust", "update-ca-trust"),
            Family::Alpine | Family::Suse => ("update-ca-certificates", "update-ca-certificates"),
        };
        assert_eq!((first.as_str(), second.as_str()), (refresh, removed));
    }
}

#[test]
fn a_refresh_that_fails_or_lies_leaves_the_old_bundle_and_the_old_anchors() {
    type Refresh = fn(&Refresher, &Memory) -> Output;
    type Expected = fn(&RefreshFailure) -> bool;
    let cases: [(&str, Refresh, Expected); 7] = [
        (
            "fails",
            |_, _| ended(3, "no space\u{1b}[31m left"),
            |why| matches!(why, RefreshFailure::Status { status: 3, stderr } if stderr == "no space [31m left"),
        ),
        ("does nothing", |_, _| ended(0, ""), |why| matches!(why, RefreshFailure::Missing { .. })),
        (
            "fails after its work",
            |refresher, guest| {
                refresher.run(guest);
                ended(1, "")
            },
            |why| matches!(why, RefreshFailure::Status { .. }),
        ),
        (
            "ruins the bundle",
            |refresher, guest| {
                write(guest, &refresher.bundle, "-----BEGIN CERTIFICATE-----\nruin");
                ended(0, "")
            },
            |why| matches!(why, RefreshFailure::Missing { .. }),
        ),
        (
            "removes the bundle",
            |refresher, guest| {
                guest.remove(&refresher.bundle).unwrap();
                ended(0, "")
            },
            |why| matches!(why, RefreshFailure::Missing { .. }),
        ),
        (
            "trusts only ours",
            |refresher, guest| {
                write(guest, &refresher.bundle, bundle_of(&[new()]));
                ended(0, "")
            },
            |why| matches!(why, RefreshFailure::Lost { lost: 3, before: 3 }),
        ),
        (
            "keeps the removed one",
            |refresher, guest| {
                write(guest, &refresher.bundle, bundle_of(&[ROOTS.others.clone(), vec![old(), new()]].concat()));
                ended(0, "")
            },
            |why| matches!(why, RefreshFailure::Remains { .. }),
        ),
    ];
    for recorded in &RECORDED {
        for (name, refresh, expected) in cases {
            // The first refresh is a good one: an anchor of ours is there to be replaced.
            let good = AtomicUsize::new(1);
            let guest = recorded.running(move |refresher, guest| {
                let left = good.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if left.is_ok() { refresher.run(guest) } else { refresh(refresher, guest) }
            });
            install(&guest, &[old()]).unwrap();
            let bundle = guest.get(&path(recorded.bundle), 1 << 20).unwrap();
            let files = guest.list(&path(recorded.anchors)).unwrap();
            match install(&guest, &[new()]) {
                Err(Error::Refresh { why, left: None, .. }) if expected(&why) => {}
                other => panic!("{:?} {name}: {other:?}", recorded.family),
            }
            assert_eq!(guest.get(&path(recorded.bundle), 1 << 20).unwrap(), bundle, "{name}");
            assert_eq!(guest.list(&path(recorded.anchors)).unwrap(), files, "{name}");
            assert_eq!(state(&guest, &[old()]), StoreState::Present, "{name}");
            let links = guest.list(&path("/etc/ssl/certs")).unwrap();
            assert!(links.iter().all(|link| !link.contains(&new().fingerprint().short())), "{name}: {links:?}");
        }
    }
}

#[test]
fn a_bundle_that_another_mode_had_gets_it_back() {
    let guest = DEBIAN.running(|refresher, guest| {
        write(guest, &refresher.bundle, "ruin");
        ended(0, "")
    });
    let mode = Mode::new(0o444).unwrap();
    let bytes = DEBIAN.fresh_bundle().into_bytes();
    guest.put(&File { path: path(DEBIAN.bundle), bytes, mode, owner: "0:33".parse().unwrap() }).unwrap();
    let before = guest.observe(&[path(DEBIAN.bundle)]).unwrap();
    assert!(install(&guest, &[new()]).is_err());
    assert_eq!(guest.observe(&[path(DEBIAN.bundle)]).unwrap(), before);
}

// Cut off at every step.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// This one operation fails.
    Once,
    /// From this operation on none works any more, as after a kill.
    Cut,
    /// As `Cut`, but this operation still takes effect.
    CutAfter,
}

/// A guest whose k-th write or program fails.
struct Faulty<'a> {
    guest: &'a dyn Transport,
    fault: Fault,
    at: usize,
    count: AtomicUsize,
}

impl<'a> Faulty<'a> {
    fn new(guest: &'a dyn Transport, fault: Fault, at: usize) -> Self {
        Self { guest, fault, at, count: AtomicUsize::new(0) }
    }

    fn step<T>(&self, step: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let count = self.count.fetch_add(1, Ordering::SeqCst);
        let failed = Err(Error::Deadline { guest: "101".into(), attempted: "a step".into(), limit: Duration::ZERO });
        match self.fault {
            Fault::Once | Fault::Cut if count == self.at => failed,
            Fault::CutAfter if count == self.at => step().and(failed),
            Fault::Cut | Fault::CutAfter if count > self.at => failed,
            _ => step(),
        }
    }

    fn hit(&self) -> bool {
        self.count.load(Ordering::SeqCst) > self.at
    }
}

impl Transport for Faulty<'_> {
    fn guest(&self) -> &str {
        self.guest.guest()
    }
    fn exec(&self, command: &Command) -> Result<Output, Error> {
        self.step(|| self.guest.exec(command))
    }
    fn put(&self, file: &File) -> Result<(), Error> {
        self.step(|| self.guest.put(file))
    }
    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        self.guest.get(path, limit)
    }
    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>, Error> {
        self.guest.observe(paths)
    }
    fn link(&self, path: &GuestPath, target: &str) -> Result<(), Error> {
        self.step(|| self.guest.link(path, target))
    }
    fn remove(&self, path: &GuestPath) -> Result<(), Error> {
        self.step(|| self.guest.remove(path))
    }
    fn list(&self, path: &GuestPath) -> Result<Vec<String>, Error> {
        self.guest.list(path)
    }
    fn runs_programs(&self) -> bool {
        self.guest.runs_programs()
    }
    fn sets_owners(&self) -> bool {
        self.guest.sets_owners()
    }
}

/// A root file system whose programs are those of a [`Refresher`].
struct Live(Rootfs, Refresher);

impl Transport for Live {
    fn guest(&self) -> &str {
        self.0.guest()
    }
    fn exec(&self, _: &Command) -> Result<Output, Error> {
        Ok(self.1.run(&self.0))
    }
    fn put(&self, file: &File) -> Result<(), Error> {
        self.0.put(file)
    }
    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        self.0.get(path, limit)
    }
    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>, Error> {
        self.0.observe(paths)
    }
    fn link(&self, path: &GuestPath, target: &str) -> Result<(), Error> {
        self.0.link(path, target)
    }
    fn remove(&self, path: &GuestPath) -> Result<(), Error> {
        self.0.remove(path)
    }
    fn list(&self, path: &GuestPath) -> Result<Vec<String>, Error> {
        self.0.list(path)
    }
    fn runs_programs(&self) -> bool {
        true
    }
    fn sets_owners(&self) -> bool {
        self.0.sets_owners()
    }
}

#[test]
fn whatever_step_fails_the_store_is_old_or_new_and_the_next_run_ends_as_if_nothing_had_happened() {
    type Change = fn(&Trust<'_>) -> Result<bool, Error>;
    let changes: [(&str, &[Certificate], Change); 4] = [
        ("install", &[], |trust| trust.install(&[new()]).map(|installed| installed.changed)),
        ("replace", &[old()], |trust| trust.install(&[new()]).map(|installed| installed.changed)),
        ("end a rotation", &[old(), new()], |trust| trust.install(&[new()]).map(|installed| installed.changed)),
        ("remove", &[new()], |trust| trust.remove(&new().fingerprint())),
    ];
    let registries = ["10.0.0.103:5000".to_string()];
    let mut faults = 0;
    for recorded in &RECORDED {
        for live in [false, true] {
            for (name, before, change) in &changes {
                let made = || {
                    let (directory, rootfs) = recorded.rootfs();
                    let refresher = Refresher {
                        anchors: path(recorded.anchors),
                        bundle: path(recorded.bundle),
                        links: recorded.links,
                    };
                    let guest: Box<dyn Transport> =
                        if live { Box::new(Live(rootfs, refresher)) } else { Box::new(rootfs) };
                    if !before.is_empty() {
                        Trust::of(&*guest, &registries).unwrap().install(before).unwrap();
                    }
                    (directory, guest)
                };
                let (expected, guest) = made();
                let old_set = effective(&*guest);
                change(&Trust::of(&*guest, &registries).unwrap()).unwrap();
                let (expected, new_set) = (content(expected.path()), effective(&*guest));
                for fault in [Fault::Once, Fault::Cut, Fault::CutAfter] {
                    for at in 0.. {
                        let (directory, guest) = made();
                        let faulty = Faulty::new(&*guest, fault, at);
                        let result = change(&Trust::of(&faulty, &registries).unwrap());
                        if !faulty.hit() {
                            assert!(result.unwrap());
                            break;
                        }
                        faults += 1;
                        let what = format!("{:?} live {live}, {name}, {fault:?} at step {at}", recorded.family);
                        assert!(result.is_err(), "{what}");
                        let set = effective(&*guest);
                        assert!(set == old_set || set == new_set, "{what}: neither old nor new");
                        change(&Trust::of(&*guest, &registries).unwrap()).unwrap();
                        assert_eq!(effective(&*guest), new_set, "{what}");
                        let found = content(directory.path());
                        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
                        assert!(found == expected, "{what}");
                        assert!(!change(&Trust::of(&*guest, &registries).unwrap()).unwrap(), "{what}");
                    }
                }
            }
        }
    }
    assert!(faults > 500, "{faults}");
}

// Docker.

const REGISTRY: &str = "10.0.0.103:5000";

fn docker(guest: &dyn Transport) -> (Trust<'_>, GuestPath) {
    (Trust::of(guest, &[REGISTRY.into()]).unwrap(), path("/etc/docker/certs.d/10.0.0.103:5000"))
}

fn docker_state(trust: &Trust<'_>, anchors: &[Certificate]) -> StoreState {
    let status = trust.status(anchors).unwrap().remove(1);
    assert_eq!(status.store, TrustStore::Docker { registry: REGISTRY.into() });
    status.state
}

#[test]
fn docker_finds_our_anchors_in_ca_crt() {
    let (tree, guest) = DEBIAN.rootfs();
    let (trust, directory) = docker(&guest);
    assert_eq!(docker_state(&trust, &[old()]), StoreState::Missing);
    trust.install(&[old()]).unwrap();
    assert_eq!(docker_state(&trust, &[old()]), StoreState::Present);
    assert_eq!(docker_state(&trust, &[new()]), StoreState::Stale);
    trust.install(&[old(), new(), new()]).unwrap();
    assert_eq!(trust.bundle().unwrap().len(), ROOTS.others.len() + 2, "one given twice is there once");
    assert_eq!(docker_state(&trust, &[new(), old()]), StoreState::Present);
    let ca = guest.get(&directory.join("ca.crt").unwrap(), 1 << 20).unwrap().unwrap();
    assert_eq!(Certificate::all_from_pem(&ca, "ca.crt").unwrap(), [old(), new()]);
    let before = snapshot(tree.path());
    assert!(!trust.install(&[new(), old()]).unwrap().changed);
    assert_eq!(snapshot(tree.path()), before);
    trust.install(&[new()]).unwrap();
    let ca = guest.get(&directory.join("ca.crt").unwrap(), 1 << 20).unwrap().unwrap();
    assert_eq!(Certificate::all_from_pem(&ca, "ca.crt").unwrap(), [new()]);
    assert_eq!(guest.list(&directory).unwrap(), ["ca.crt"]);
    assert!(!trust.remove(&old().fingerprint()).unwrap());
    assert!(trust.remove(&new().fingerprint()).unwrap());
    assert_eq!(guest.list(&directory).unwrap(), [""; 0]);
}

#[test]
fn a_ca_crt_of_somebody_else_stays_and_ours_goes_beside() {
    let (tree, guest) = DEBIAN.rootfs();
    let (trust, directory) = docker(&guest);
    let ca = directory.join("ca.crt").unwrap();
    write(&guest, &ca, ROOTS.others[0].pem());
    let theirs = guest.observe(std::slice::from_ref(&ca)).unwrap();
    trust.install(&[old()]).unwrap();
    assert_eq!(guest.list(&directory).unwrap(), ["ca.crt".to_string(), file_of(&old())]);
    trust.install(&[new()]).unwrap();
    assert_eq!(guest.list(&directory).unwrap(), ["ca.crt".to_string(), file_of(&new())]);
    assert_eq!(docker_state(&trust, &[new()]), StoreState::Present);
    assert!(trust.remove(&new().fingerprint()).unwrap());
    assert_eq!(guest.observe(std::slice::from_ref(&ca)).unwrap(), theirs);

    // What an older script put there is the anchor itself.
    write(&guest, &ca, new().pem());
    assert_eq!(docker_state(&trust, &[new()]), StoreState::Foreign);
    trust.install(&[new()]).unwrap();
    assert_eq!(guest.list(&directory).unwrap(), ["ca.crt"]);
    let before = snapshot(tree.path());
    assert!(!trust.install(&[new()]).unwrap().changed);
    assert_eq!(snapshot(tree.path()), before);

    // What we wrote and somebody changed is theirs from then on.
    guest.remove(&ca).unwrap();
    trust.install(&[old()]).unwrap();
    let mut edited = guest.get(&ca, 1 << 20).unwrap().unwrap();
    edited.extend(ROOTS.others[0].pem().bytes());
    write(&guest, &ca, edited.clone());
    trust.install(&[new()]).unwrap();
    assert_eq!(guest.get(&ca, 1 << 20).unwrap().unwrap(), edited);
    assert_eq!(docker_state(&trust, &[new()]), StoreState::Present);
}

#[test]
fn a_registry_is_one_name() {
    let guest = Memory::new("101");
    for name in ["registry:5000", "10.0.0.103:5000", "registry.internal.test", "[fd00::1]:5000", "Registry:5000"] {
        assert!(Trust::of(&guest, &[name.into()]).is_ok(), "{name}");
    }
    for name in
        ["", ".", "..", "../..", "a/b", "-a:1", "a b", "a\n", "ä:5000", "https://registry:5000", &"a".repeat(300)]
    {
        assert!(matches!(Trust::of(&guest, &[name.into()]), Err(Error::Value { .. })), "{name}");
    }
}

// Against the real programs.

/// A self-signed root that OpenSSL makes, with this subject and these further arguments.
fn root_by_openssl(subject: &str, arguments: &[&str]) -> Option<Certificate> {
    let mut openssl = Program::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "/dev/null",
    ]);
    openssl.args(["-days", "30", "-addext", "keyUsage=critical,keyCertSign", "-subj", subject]).args(arguments);
    Certificate::from_pem(output(&mut openssl, "")?.as_bytes(), subject).ok()
}

/// The links of OpenSSL's directory that lead to our anchors, and where they lead.
fn links(tree: &Path) -> BTreeMap<String, String> {
    let names = std::fs::read_dir(tree.join("etc/ssl/certs")).unwrap().map(|entry| entry.unwrap().path());
    let target = |at: PathBuf| {
        let target = std::fs::read_link(&at).ok()?.to_string_lossy().into_owned();
        target.contains("phoenix").then(|| (at.file_name().unwrap().to_string_lossy().into_owned(), target))
    };
    names.filter_map(target).collect()
}

#[test]
fn the_subject_hash_is_the_one_of_openssl() {
    let subjects: [(&str, &[&str]); 9] = [
        ("/CN=Root", &[]),
        ("/C=DE/O=ThinkHeads Internal/OU=PKI/CN=ThinkHeads Internal Root 1f2e", &[]),
        ("/O=  Two   Spaces  /CN=UPPER lower", &[]),
        ("/O=Bäckerei Österreich/CN=Größe", &["-utf8"]),
        ("/C=DE/ST=Bayern/L=München/O=Ä/CN=日本語", &["-utf8"]),
        ("/CN=a+OU=b+O=c", &["-multivalue-rdn"]),
        ("/emailAddress=Root@Example.TEST/CN=With Mail", &[]),
        ("/DC=test/DC=internal/CN=Domain Components", &[]),
        (&format!("/CN={}/O={}", "n".repeat(64), "o".repeat(64)), &[]),
    ];
    if output(Program::new("openssl").arg("version"), "").is_none() {
        return skipped("the_subject_hash_is_the_one_of_openssl", "openssl");
    }
    let made = subjects.iter().map(|(subject, more)| root_by_openssl(subject, more).expect(subject));
    for root in made.chain([new(), old()]) {
        let hash = output(Program::new("openssl").args(["x509", "-noout", "-subject_hash"]), &root.pem()).unwrap();
        let (directory, guest) = DEBIAN.rootfs();
        install(&guest, std::slice::from_ref(&root)).unwrap();
        let name = format!("phoenix-{}.pem", root.fingerprint().short());
        let expected = [(format!("{hash}.0"), name.clone()), (name, DEBIAN.anchor(&root).to_string())];
        assert_eq!(links(directory.path()), expected.into(), "{}", root.subject());
    }
}

#[test]
fn anchors_of_one_subject_have_one_hash_and_leave_no_gap() {
    let Some(roots) = (0..3).map(|_| root_by_openssl("/CN=Same", &[])).collect::<Option<Vec<_>>>() else {
        return skipped("anchors_of_one_subject_have_one_hash_and_leave_no_gap", "openssl");
    };
    let (directory, guest) = DEBIAN.rootfs();
    install(&guest, &roots).unwrap();
    let hashed = || -> Vec<(String, String)> {
        links(directory.path()).into_iter().filter(|(name, _)| !name.ends_with(".pem")).collect()
    };
    let pem = |at: usize| format!("phoenix-{}.pem", roots[at].fingerprint().short());
    let numbered = |pems: &[String]| -> Vec<(String, String)> {
        let hash = hashed()[0].0.split('.').next().unwrap().to_string();
        pems.iter().enumerate().map(|(at, pem)| (format!("{hash}.{at}"), pem.clone())).collect()
    };
    assert_eq!(hashed(), numbered(&[pem(0), pem(1), pem(2)]));
    assert!(remove(&guest, &roots[0]).unwrap());
    assert_eq!(hashed(), numbered(&[pem(2), pem(1)]));
    assert!(remove(&guest, &roots[1]).unwrap());
    assert_eq!(hashed(), numbered(&[pem(2)]));
    assert!(remove(&guest, &roots[2]).unwrap());
    assert_eq!(hashed(), []);
}

/// A root file system in which this machine's `update-ca-certificates` runs: over its directories, in a mount namespace.
struct Mounted(PathBuf, Rootfs);

impl Transport for Mounted {
    fn guest(&self) -> &str {
        self.1.guest()
    }
    fn exec(&self, command: &Command) -> Result<Output, Error> {
        let script = "set -e; tree=$1; shift; \
            for at in etc/ssl/certs usr/local/share/ca-certificates usr/share/ca-certificates etc/ca-certificates.conf; \
            do mount --bind \"$tree/$at\" \"/$at\"; done; exec \"$@\" --hooksdir /nonexistent";
        let mut program = Program::new("unshare");
        program.args(["-m", "sh", "-c", script, "sh"]).arg(&self.0).args(&command.argv);
        let output = program.output().unwrap();
        let (stdout, stderr) = (output.stdout, output.stderr);
        Ok(Output { status: output.status.code().unwrap_or(128), stdout, stderr, truncated: false })
    }
    fn put(&self, file: &File) -> Result<(), Error> {
        self.1.put(file)
    }
    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        self.1.get(path, limit)
    }
    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>, Error> {
        self.1.observe(paths)
    }
    fn link(&self, path: &GuestPath, target: &str) -> Result<(), Error> {
        self.1.link(path, target)
    }
    fn remove(&self, path: &GuestPath) -> Result<(), Error> {
        self.1.remove(path)
    }
    fn list(&self, path: &GuestPath) -> Result<Vec<String>, Error> {
        self.1.list(path)
    }
    fn runs_programs(&self) -> bool {
        true
    }
    fn sets_owners(&self) -> bool {
        self.1.sets_owners()
    }
}

#[test]
fn the_real_update_ca_certificates_and_the_native_rebuild_agree() {
    let test = "the_real_update_ca_certificates_and_the_native_rebuild_agree";
    if !Path::new("/usr/sbin/update-ca-certificates").exists()
        || !Path::new("/etc/ca-certificates.conf").exists()
        || !Path::new("/usr/local/share/ca-certificates").exists()
    {
        return skipped(test, "ca-certificates of Debian");
    }
    if output(Program::new("unshare").args(["-m", "mount", "--bind", "/usr", "/usr"]), "").is_none() {
        return skipped(test, "root that may make a mount namespace");
    }
    let made = || {
        let (directory, guest) = DEBIAN.rootfs();
        for (name, root) in ["alpha", "beta"].iter().zip(&ROOTS.others) {
            write(&guest, &path(format!("/usr/share/ca-certificates/{name}.crt")), root.pem());
        }
        write(&guest, &path("/etc/ca-certificates.conf"), "alpha.crt\nbeta.crt\n");
        (directory, guest)
    };
    let (native_tree, native) = made();
    let (real_tree, real) = made();
    let real = Mounted(real_tree.path().to_path_buf(), real);
    // As on an installed system, the program has run before.
    assert_eq!(real.exec(&Command::new(["update-ca-certificates"])).unwrap().status, 0);
    assert_eq!(effective(&real), prints(&ROOTS.others));
    let agree = |step: &str| {
        assert_eq!(effective(&real), effective(&native), "{step}");
        assert_eq!(links(real_tree.path()), links(native_tree.path()), "{step}");
        let anchors = path(DEBIAN.anchors);
        assert_eq!(real.list(&anchors).unwrap(), native.list(&anchors).unwrap(), "{step}");
    };
    agree("before");
    for (step, anchors) in [("install", vec![old()]), ("rotate", vec![old(), new()]), ("end", vec![new()])] {
        for guest in [&real as &dyn Transport, &native] {
            assert!(install(guest, &anchors).unwrap(), "{step}");
            assert_eq!(state(guest, &anchors), StoreState::Present, "{step}");
            assert!(!install(guest, &anchors).unwrap(), "{step}");
        }
        agree(step);
    }
    for guest in [&real as &dyn Transport, &native] {
        assert!(remove(guest, &new()).unwrap());
    }
    agree("remove");
    assert_eq!(effective(&real), prints(&ROOTS.others));
    assert_eq!(links(real_tree.path()), BTreeMap::new());

    // What the native rebuild left is what the real program would have left: it finds nothing to do.
    install(&native, &[new()]).unwrap();
    let expected = links(native_tree.path());
    let native = Mounted(native_tree.path().to_path_buf(), native);
    assert_eq!(native.exec(&Command::new(["update-ca-certificates"])).unwrap().status, 0);
    assert_eq!(links(native_tree.path()), expected);
    assert_eq!(state(&native, &[new()]), StoreState::Present);
}
