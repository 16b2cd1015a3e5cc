//! Whom a guest trusts: its system's trust store and Docker's, judged by effect.
//!
//! A trust anchor is a certificate, a trust store the place where a distribution wants anchors to be put, and the bundle
//! the file that is generated from them and that programs read. An anchor is trusted when it is in the bundle.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use phoenix_pki::{Certificate, Fingerprint};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use self::bundle::{BUNDLE_LIMIT, Bundle};
use self::links::{Links, subject_hash};
use self::registry::Registry;
use crate::command::{Command, printable};
use crate::error::{Error, RefreshFailure, Result};
use crate::facts::{Family, OsRelease};
use crate::guest::{GuestPath, Id, Mode, Owner};
use crate::transport::{File, Observed, ObservedFile, Transport};

mod bundle;
mod links;
mod registry;

/// The longest file that is looked at as one of anchors.
const ANCHOR_LIMIT: usize = 256 << 10;

/// The most files of a directory that are looked at; the guest decides how many there are.
const CANDIDATES: usize = 64;

/// How long a refresh may take: a second or two on an idle machine, hooks for Java's store included.
const REFRESH_DEADLINE: Duration = Duration::from_secs(180);

/// How a family keeps its trust store.
struct Layout {
    family: Family,
    /// Where an administrator puts anchors.
    anchors: &'static str,
    /// Where else, apart from the distribution's own set, they come from.
    others: &'static [&'static str],
    /// What programs read.
    bundle: &'static str,
    /// The program that makes the bundle from the anchors.
    refresh: &'static [&'static str],
    /// The same after an anchor was removed.
    refresh_removed: &'static [&'static str],
    /// The directory of links for OpenSSL, and what the names of those to anchors begin with.
    links: Option<(&'static str, &'static str)>,
}

const LAYOUTS: [Layout; 5] = [
    Layout {
        family: Family::Debian,
        anchors: "/usr/local/share/ca-certificates",
        others: &["/usr/share/ca-certificates"],
        bundle: "/etc/ssl/certs/ca-certificates.crt",
        refresh: &["update-ca-certificates"],
        // Without it the links of the removed anchor stay.
        refresh_removed: &["update-ca-certificates", "--fresh"],
        links: Some(("/etc/ssl/certs", "")),
    },
    Layout {
        family: Family::RedHat,
        anchors: "/etc/pki/ca-trust/source/anchors",
        others: &["/usr/share/pki/ca-trust-source/anchors"],
        bundle: "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        refresh: &["update-ca-trust", "extract"],
        refresh_removed: &["update-ca-trust", "extract"],
        links: None,
    },
    Layout {
        family: Family::Alpine,
        anchors: "/usr/local/share/ca-certificates",
        others: &["/usr/share/ca-certificates"],
        bundle: "/etc/ssl/certs/ca-certificates.crt",
        refresh: &["update-ca-certificates"],
        refresh_removed: &["update-ca-certificates"],
        links: Some(("/etc/ssl/certs", "ca-cert-")),
    },
    Layout {
        family: Family::Arch,
        anchors: "/etc/ca-certificates/trust-source/anchors",
        others: &["/usr/share/ca-certificates/trust-source/anchors"],
        bundle: "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
        refresh: &["update-ca-trust"],
        refresh_removed: &["update-ca-trust"],
        links: None,
    },
    Layout {
        family: Family::Suse,
        anchors: "/etc/pki/trust/anchors",
        others: &["/usr/share/pki/trust/anchors"],
        bundle: "/var/lib/ca-certificates/ca-bundle.pem",
        refresh: &["update-ca-certificates"],
        refresh_removed: &["update-ca-certificates"],
        links: None,
    },
];

/// A trust store of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TrustStore {
    /// That of its distribution, which most programs read.
    System,
    /// That of Docker for one registry.
    Docker {
        /// The registry, as `host:port`.
        registry: String,
    },
    /// A file that holds the root, for what reads it from there.
    Copy {
        /// Its path.
        path: String,
    },
}

impl fmt::Display for TrustStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Docker { registry } => write!(f, "docker {registry}"),
            Self::Copy { path } => write!(f, "copy {path}"),
        }
    }
}

impl Serialize for TrustStore {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a trust store stands to the anchors that it shall hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum StoreState {
    /// All of them are effective, from our files.
    Present,
    /// At least one of them is not effective.
    Missing,
    /// Something of ours is there that shall not be, or not as it shall be: an older anchor, a cut-off removal.
    Stale,
    /// All of them are effective, at least one of them from a file that is not ours.
    Foreign,
    /// The guest has no such store that Phoenix knows.
    Unsupported {
        /// Why not.
        why: String,
    },
}

impl StoreState {
    /// Whether all anchors are effective and nothing is left to do.
    pub fn holds(&self) -> bool {
        matches!(self, Self::Present | Self::Foreign)
    }

    fn of(stale: bool, missing: bool, foreign: bool) -> Self {
        match (stale, missing, foreign) {
            (true, ..) => Self::Stale,
            (_, true, _) => Self::Missing,
            (.., true) => Self::Foreign,
            _ => Self::Present,
        }
    }
}

impl fmt::Display for StoreState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("present"),
            Self::Missing => f.write_str("missing"),
            Self::Stale => f.write_str("stale"),
            Self::Foreign => f.write_str("foreign"),
            Self::Unsupported { why } => write!(f, "unsupported: {why}"),
        }
    }
}

/// A trust store and its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreStatus {
    /// Which store.
    pub store: TrustStore,
    /// How it stands.
    #[serde(flatten)]
    pub state: StoreState,
}

/// What an installation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Whether anything was written.
    pub changed: bool,
    /// The stores, as observed afterwards.
    pub stores: Vec<StoreStatus>,
}

/// The trust stores of one guest.
///
/// ```
/// use phoenix_guest::{Rootfs, StoreState, Trust};
///
/// # use phoenix_pki::{Authority, AuthorityParams, Permitted, RootKey, Store};
/// # let (directory, now) = (tempfile::tempdir()?, time::OffsetDateTime::now_utc());
/// # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
/// # let params = AuthorityParams { root_key: RootKey::Plain, ..params };
/// # let authority = Authority::create(&Store::new(directory.path().join("store")), &params, now)?;
/// # let path = directory.path().join("guest");
/// # std::fs::create_dir_all(path.join("etc/ssl/certs"))?;
/// # std::fs::write(path.join("etc/os-release"), "ID=debian\n")?;
/// # std::fs::write(path.join("etc/ssl/certs/ca-certificates.crt"), "")?;
/// let guest = Rootfs::new("101", &path)?;
/// let trust = Trust::of(&guest, &[])?;
/// let anchors = [authority.root().clone()];
/// assert_eq!(trust.status(&anchors)?[0].state, StoreState::Missing);
/// assert!(trust.install(&anchors)?.changed);
/// assert!(!trust.install(&anchors)?.changed);
/// assert_eq!(trust.bundle()?, [authority.root().der().clone()]);
/// assert!(trust.remove(&authority.root().fingerprint())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Trust<'a> {
    transport: &'a dyn Transport,
    release: OsRelease,
    registries: Vec<Registry>,
}

impl<'a> Trust<'a> {
    /// The stores of this guest: its system's, and Docker's for these registries, each `host:port`.
    ///
    /// # Errors
    /// [`Error::File`] when os-release cannot be read, [`Error::Value`] for a registry.
    pub fn of(transport: &'a dyn Transport, registries: &[String]) -> Result<Self> {
        let registries = registries.iter().map(|name| Registry::parse(name)).collect::<Result<_>>()?;
        Ok(Self { transport, release: OsRelease::of(transport)?, registries })
    }

    /// The family of the guest's distribution; `None` for one that Phoenix does not know.
    pub fn family(&self) -> Option<Family> {
        self.release.family()
    }

    /// The file in which the guest's programs find their trust anchors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a distribution that Phoenix does not know.
    pub fn bundle_path(&self) -> Result<GuestPath> {
        let unsupported = || Error::Unsupported { guest: self.transport.guest().into(), what: self.unsupported() };
        self.layout().ok_or_else(unsupported)?.bundle.parse()
    }

    /// The trust anchors of the guest's programs, as DER; none when there is no bundle.
    ///
    /// What in the bundle does not parse is left out, as those programs leave it out.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a distribution that Phoenix does not know, [`Error::File`], also for a bundle of more than 4 MiB.
    pub fn bundle(&self) -> Result<Vec<CertificateDer<'static>>> {
        let bytes = self.transport.get(&self.bundle_path()?, BUNDLE_LIMIT)?;
        Ok(Bundle::parse(bytes.unwrap_or_default()).certificates())
    }

    /// How each store stands to these anchors. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Anchor`], [`Error::File`].
    pub fn status(&self, anchors: &[Certificate]) -> Result<Vec<StoreStatus>> {
        let seen = self.see(anchors, unwanted(anchors))?;
        Ok(self.stores(&seen))
    }

    /// Makes each store trust these anchors, and of our earlier ones no others. Unchanged stores are not written to.
    ///
    /// An anchor that is effective from somebody else's file is trusted, and left alone. A distribution that Phoenix does
    /// not know is no error: its state says so.
    ///
    /// # Errors
    /// [`Error::Anchor`] before anything is touched, [`Error::Refresh`] after the old store was put back, [`Error::File`].
    pub fn install(&self, anchors: &[Certificate]) -> Result<Installed> {
        let unwanted = unwanted(anchors);
        let seen = self.see(anchors, &unwanted)?;
        match self.settle(&seen, &unwanted)? {
            true => Ok(Installed { changed: true, stores: self.status(anchors)? }),
            false => Ok(Installed { changed: false, stores: self.stores(&seen) }),
        }
    }

    /// Removes what we installed with this fingerprint from each store; says whether there was any.
    ///
    /// Somebody else's file with the same certificate stays, and with it the trust.
    ///
    /// # Errors
    /// [`Error::Refresh`] after the old store was put back, [`Error::File`].
    pub fn remove(&self, fingerprint: &Fingerprint) -> Result<bool> {
        let unwanted = |held: Held<'_>| match held {
            Held::Certificate(held) => held == *fingerprint,
            Held::Nothing(short) => short == fingerprint.short(),
        };
        let seen = self.look(&[], &unwanted)?;
        let any = seen.system.as_ref().is_some_and(|system| !system.gone.is_empty())
            || seen.registries.iter().any(registry::Seen::holds_unwanted);
        Ok(any && self.settle(&seen, &unwanted)?)
    }

    fn layout(&self) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|layout| Some(layout.family) == self.family())
    }

    fn unsupported(&self) -> String {
        format!("distribution {:?} has no trust store that Phoenix knows", self.release.id)
    }

    fn see<'c>(&self, anchors: &'c [Certificate], unwanted: impl Fn(Held<'_>) -> bool) -> Result<Seen<'c>> {
        if anchors.is_empty() {
            return Err(Error::Anchor { subject: String::new(), why: "none is given" });
        }
        anchors.iter().try_for_each(fit)?;
        self.look(anchors, &unwanted)
    }

    fn look<'c>(&self, anchors: &'c [Certificate], unwanted: &dyn Fn(Held<'_>) -> bool) -> Result<Seen<'c>> {
        let of_registry =
            |registry: &Registry| registry.see(self.transport, anchors, |held| unwanted(Held::Certificate(held)));
        Ok(Seen {
            system: self
                .layout()
                .map(|layout| System { layout, transport: self.transport }.see(anchors, unwanted))
                .transpose()?,
            registries: self.registries.iter().map(of_registry).collect::<Result<_>>()?,
        })
    }

    fn settle(&self, seen: &Seen<'_>, unwanted: &dyn Fn(Held<'_>) -> bool) -> Result<bool> {
        let mut changed = false;
        for (registry, seen) in self.registries.iter().zip(&seen.registries) {
            changed |= registry.settle(self.transport, seen, |held| unwanted(Held::Certificate(held)))?;
        }
        if let (Some(layout), Some(seen)) = (self.layout(), &seen.system) {
            changed |= System { layout, transport: self.transport }.settle(seen)?;
        }
        Ok(changed)
    }

    fn stores(&self, seen: &Seen<'_>) -> Vec<StoreStatus> {
        let state = match &seen.system {
            Some(system) => system.state(),
            None => StoreState::Unsupported { why: self.unsupported() },
        };
        let registries = self.registries.iter().zip(&seen.registries).map(|(registry, seen)| StoreStatus {
            store: TrustStore::Docker { registry: registry.name.clone() },
            state: seen.state(),
        });
        std::iter::once(StoreStatus { store: TrustStore::System, state }).chain(registries).collect()
    }
}

/// Whether a path is that of a bundle, in whichever distribution.
pub(crate) fn is_bundle(path: &GuestPath) -> bool {
    LAYOUTS.iter().any(|layout| layout.bundle == path.as_str())
}

/// What all stores of a guest hold.
struct Seen<'c> {
    system: Option<SystemSeen<'c>>,
    registries: Vec<registry::Seen<'c>>,
}

/// What a file of ours holds.
#[derive(Clone, Copy)]
enum Held<'h> {
    Certificate(Fingerprint),
    /// Nothing any more: a removal that was cut off left the file, whose name has these first digits of the fingerprint.
    Nothing(&'h str),
}

/// Of our files, those of other anchors than these.
fn unwanted(anchors: &[Certificate]) -> impl Fn(Held<'_>) -> bool {
    |held| {
        !anchors.iter().any(|anchor| match held {
            Held::Certificate(fingerprint) => anchor.fingerprint() == fingerprint,
            Held::Nothing(short) => anchor.fingerprint().short() == short,
        })
    }
}

/// Whether a certificate may be trusted as an anchor: a root, and nothing that a root has issued.
fn fit(anchor: &Certificate) -> Result<()> {
    let refused = |why| Err(Error::Anchor { subject: anchor.subject().into(), why });
    if !anchor.is_authority() {
        return refused("it is not the certificate of an authority");
    }
    if !anchor.key_usage().is_empty() && !anchor.key_usage().contains(&"keyCertSign") {
        return refused("its key may not sign certificates");
    }
    let signed = X509Certificate::from_der(anchor.der())
        .is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer() && parsed.verify_signature(None).is_ok());
    if signed { Ok(()) } else { refused("it is not signed by its own key: it is no root") }
}

/// The name of our file for an anchor.
fn file_name(fingerprint: Fingerprint) -> String {
    format!("phoenix-{}.crt", fingerprint.short())
}

/// The digits in a file name of ours.
fn digits(name: &str) -> Option<&str> {
    let digits = name.strip_prefix("phoenix-")?.strip_suffix(".crt")?;
    let sound = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (digits.len() == 16 && digits.bytes().all(sound)).then_some(digits)
}

/// The anchor in a file, if the file's name is the one that we give to this anchor.
fn named_by(name: &str, bytes: &[u8]) -> Option<Certificate> {
    let anchor = Certificate::from_pem(bytes, name).ok()?;
    (anchor.is_authority() && digits(name)? == anchor.fingerprint().short()).then_some(anchor)
}

/// A file of anchors, readable by all.
fn anchor_file(path: GuestPath, pem: impl Into<Vec<u8>>) -> File {
    File { path, bytes: pem.into(), mode: Mode::CERTIFICATE, owner: Owner::ROOT }
}

/// Whether a file has the mode and, where owners can be set, the owner that ours have.
fn placed(transport: &dyn Transport, file: &ObservedFile) -> bool {
    file.mode == Mode::CERTIFICATE && (!transport.sets_owners() || file.owned_by(&Owner::ROOT))
}

/// The trust store of a guest's distribution.
struct System<'a> {
    layout: &'static Layout,
    transport: &'a dyn Transport,
}

/// What the system's store holds against what it shall hold.
struct SystemSeen<'c> {
    wanted: &'c [Certificate],
    bundle: Bundle,
    /// The bundle's mode and owner; `None` when there is no bundle.
    bundle_file: Option<ObservedFile>,
    bundle_is_link: bool,
    /// The anchors that are not effective.
    absent: Vec<&'c Certificate>,
    /// The anchors whose file is to be written.
    unplaced: Vec<&'c Certificate>,
    /// What of ours is to go.
    gone: Vec<Gone>,
    foreign: bool,
}

/// A file of ours that is to go.
struct Gone {
    path: GuestPath,
    short: String,
    bytes: Vec<u8>,
    der: Option<CertificateDer<'static>>,
}

impl SystemSeen<'_> {
    fn state(&self) -> StoreState {
        let damaged = self.unplaced.iter().any(|anchor| self.bundle.holds(anchor.fingerprint()));
        StoreState::of(damaged || !self.gone.is_empty(), !self.absent.is_empty(), self.foreign)
    }
}

impl System<'_> {
    fn see<'c>(&self, wanted: &'c [Certificate], unwanted: &dyn Fn(Held<'_>) -> bool) -> Result<SystemSeen<'c>> {
        let directory: GuestPath = self.layout.anchors.parse()?;
        let bundle_path: GuestPath = self.layout.bundle.parse()?;
        let names = self.transport.list(&directory)?;
        let candidates: Vec<String> = names
            .into_iter()
            .filter(|name| digits(name).is_some_and(|short| unwanted(Held::Nothing(short))))
            .take(CANDIDATES)
            .collect();
        let ours = wanted.iter().map(|anchor| file_name(anchor.fingerprint()));
        let mut paths = vec![bundle_path];
        for name in ours.chain(candidates) {
            paths.push(directory.join(&name)?);
        }
        let mut observed = self.transport.observe(&paths)?;
        let (files, candidates) = (observed.split_off(1), paths.split_off(1 + wanted.len()));
        let Observed { link, file: bundle_file, .. } = observed.pop().unwrap_or(Observed::MISSING);
        let bytes = match &bundle_file {
            Some(_) => self.transport.get(&paths[0], BUNDLE_LIMIT)?,
            None => None,
        };
        let mut seen = SystemSeen {
            wanted,
            bundle: Bundle::parse(bytes.unwrap_or_default()),
            bundle_file,
            bundle_is_link: link.is_some(),
            absent: Vec::new(),
            unplaced: Vec::new(),
            gone: Vec::new(),
            foreign: false,
        };
        // Read only when an anchor is effective without a file of ours: usually there is one, and nothing more to ask.
        let mut provided = None;
        for (anchor, file) in wanted.iter().zip(&files) {
            let digest = *Fingerprint::of(anchor.pem().as_bytes()).as_bytes();
            let whole = file.link.is_none()
                && file.file.as_ref().is_some_and(|file| file.digest == digest && placed(self.transport, file));
            let effective = seen.bundle.holds(anchor.fingerprint());
            let mut foreign = effective && *file == Observed::MISSING;
            if foreign {
                // In the bundle and in no file that it is made from, it would be gone with the next refresh.
                let provided = match &provided {
                    Some(provided) => provided,
                    None => provided.insert(self.provided_by_others()?),
                };
                foreign = provided.contains(&anchor.fingerprint());
            }
            if !effective && !seen.absent.contains(&anchor) {
                seen.absent.push(anchor);
            }
            if !whole && !foreign {
                seen.unplaced.push(anchor);
            }
            seen.foreign |= foreign;
        }
        for (path, file) in candidates.into_iter().zip(&files[wanted.len()..]) {
            let readable = file.file.as_ref().is_some_and(|file| file.length <= ANCHOR_LIMIT as u64);
            let Some(short) = digits(path.file_name()).filter(|_| readable && file.link.is_none()) else { continue };
            let bytes = self.transport.get(&path, ANCHOR_LIMIT)?.unwrap_or_default();
            let anchor = named_by(path.file_name(), &bytes);
            let ours = match &anchor {
                Some(anchor) => unwanted(Held::Certificate(anchor.fingerprint())),
                None => bytes.is_empty(),
            };
            if ours {
                let der = anchor.map(|anchor| anchor.der().clone()).or_else(|| seen.bundle.find(short).cloned());
                seen.gone.push(Gone { short: short.into(), path, bytes, der });
            }
        }
        Ok(seen)
    }

    fn settle(&self, seen: &SystemSeen<'_>) -> Result<bool> {
        if seen.absent.is_empty() && seen.unplaced.is_empty() && seen.gone.is_empty() {
            return Ok(false);
        }
        // What somebody else's file provides as well stays in the bundle.
        let provided = if seen.gone.is_empty() { BTreeSet::new() } else { self.provided_by_others()? };
        let dropped =
            |held: Fingerprint| !provided.contains(&held) && seen.gone.iter().any(|gone| gone.short == held.short());
        match self.transport.runs_programs() {
            true => self.refresh(seen, &dropped)?,
            false => self.rebuild(seen, &dropped)?,
        }
        Ok(true)
    }

    /// The certificates in the files of others from which the bundle is made.
    fn provided_by_others(&self) -> Result<BTreeSet<Fingerprint>> {
        let mut provided = BTreeSet::new();
        for directory in [&[self.layout.anchors], self.layout.others].concat() {
            let directory: GuestPath = directory.parse()?;
            let names =
                self.transport.list(&directory)?.into_iter().filter(|name| digits(name).is_none()).take(CANDIDATES);
            let paths = names.map(|name| directory.join(&name)).collect::<Result<Vec<_>>>()?;
            for (path, observed) in paths.iter().zip(self.transport.observe(&paths)?) {
                if observed.file.is_some_and(|file| file.length <= ANCHOR_LIMIT as u64) {
                    let bytes = self.transport.get(path, ANCHOR_LIMIT)?.unwrap_or_default();
                    provided.extend(Bundle::parse(bytes).fingerprints());
                }
            }
        }
        Ok(provided)
    }

    /// Has the guest's own program make the bundle, and puts the old one back unless the effect is there.
    fn refresh(&self, seen: &SystemSeen<'_>, dropped: &dyn Fn(Fingerprint) -> bool) -> Result<()> {
        let argv = if seen.gone.is_empty() { self.layout.refresh } else { self.layout.refresh_removed };
        let refreshed = self.rewrite(seen).and_then(|()| self.run(argv, seen, dropped));
        if let Err(why) = refreshed {
            let (guest, left) = (self.transport.guest().into(), self.put_back(seen).err().map(Box::new));
            return Err(Error::Refresh { guest, argv: argv.join(" "), why, left });
        }
        // The file goes last: as long as it is there, the next run knows what to finish.
        for gone in &seen.gone {
            self.remove_links(&gone.path, &gone.short, gone.der.as_ref())?;
            self.transport.remove(&gone.path)?;
        }
        Ok(())
    }

    /// Writes the anchors that are wanted and empties the others.
    fn rewrite(&self, seen: &SystemSeen<'_>) -> Result<(), RefreshFailure> {
        self.place(seen).map_err(Box::new)?;
        for gone in &seen.gone {
            self.transport.put(&anchor_file(gone.path.clone(), "")).map_err(Box::new)?;
        }
        Ok(())
    }

    fn place(&self, seen: &SystemSeen<'_>) -> Result<()> {
        for anchor in &seen.unplaced {
            self.transport.put(&anchor_file(self.anchor_path(anchor)?, anchor.pem()))?;
        }
        Ok(())
    }

    fn run(
        &self,
        argv: &[&str],
        seen: &SystemSeen<'_>,
        dropped: &dyn Fn(Fingerprint) -> bool,
    ) -> Result<(), RefreshFailure> {
        let command = Command { deadline: REFRESH_DEADLINE, ..Command::new(argv.iter().copied()) };
        let output = self.transport.exec(&command).map_err(Box::new)?;
        if output.status != 0 {
            return Err(RefreshFailure::Status { status: output.status, stderr: printable(&output.stderr) });
        }
        let path: GuestPath = self.layout.bundle.parse().map_err(Box::new)?;
        let bytes = self.transport.get(&path, BUNDLE_LIMIT).map_err(Box::new)?.unwrap_or_default();
        let now: BTreeSet<Fingerprint> = Bundle::parse(bytes).fingerprints().collect();
        if let Some(anchor) = seen.wanted.iter().find(|anchor| !now.contains(&anchor.fingerprint())) {
            let (subject, fingerprint) = (anchor.subject().into(), anchor.fingerprint());
            return Err(RefreshFailure::Missing { subject, fingerprint });
        }
        if let Some(fingerprint) = now.iter().copied().find(|held| dropped(*held)) {
            return Err(RefreshFailure::Remains { fingerprint });
        }
        // A refresh may also do what others left to do, but not at the expense of most of the bundle.
        let before: BTreeSet<Fingerprint> = seen.bundle.fingerprints().filter(|held| !dropped(*held)).collect();
        let lost = before.difference(&now).count();
        if 2 * lost > before.len() {
            return Err(RefreshFailure::Lost { lost, before: before.len() });
        }
        Ok(())
    }

    /// Undoes a refresh: our files as they were, and the old bundle if another one is in its place.
    fn put_back(&self, seen: &SystemSeen<'_>) -> Result<()> {
        let mut undone = Ok(());
        let mut attempt = |result: Result<()>| undone = std::mem::replace(&mut undone, Ok(())).and(result);
        for gone in &seen.gone {
            attempt(self.transport.put(&anchor_file(gone.path.clone(), gone.bytes.clone())));
        }
        attempt(self.put_back_bundle(seen));
        for anchor in &seen.absent {
            attempt(self.anchor_path(anchor).and_then(|path| {
                self.remove_links(&path, &anchor.fingerprint().short(), Some(anchor.der()))?;
                self.transport.remove(&path)
            }));
        }
        undone
    }

    fn put_back_bundle(&self, seen: &SystemSeen<'_>) -> Result<()> {
        let Some(file) = &seen.bundle_file else { return Ok(()) };
        let path: GuestPath = self.layout.bundle.parse()?;
        match self.transport.get(&path, BUNDLE_LIMIT) {
            Ok(Some(bytes)) if bytes == seen.bundle.bytes => Ok(()),
            _ => self.put_bundle(path, seen.bundle.bytes.clone(), Some(file)),
        }
    }

    fn put_bundle(&self, path: GuestPath, bytes: Vec<u8>, as_before: Option<&ObservedFile>) -> Result<()> {
        let file = anchor_file(path, bytes);
        self.transport.put(&match as_before {
            Some(before) => File {
                mode: before.mode,
                owner: Owner { user: Id::Number(before.user.0), group: Id::Number(before.group.0) },
                ..file
            },
            None => file,
        })
    }

    /// Makes the bundle without any program of the guest.
    fn rebuild(&self, seen: &SystemSeen<'_>, dropped: &dyn Fn(Fingerprint) -> bool) -> Result<()> {
        if seen.bundle_is_link {
            let what =
                format!("its bundle {} is a symlink, which only its own programs may replace", self.layout.bundle);
            return Err(Error::Unsupported { guest: self.transport.guest().into(), what });
        }
        // The bundle is written after all that belongs to an anchor and before anything of an anchor goes. So whatever is
        // in it is complete, and whatever is to leave it is still known by its file.
        self.place(seen)?;
        for anchor in &seen.absent {
            let path = self.anchor_path(anchor)?;
            if let Some(links) = self.links(&path, &anchor.fingerprint().short(), Some(anchor.der())) {
                links?.add(self.transport)?;
            }
        }
        let edited = seen.bundle.edited(dropped, &seen.absent);
        if edited != seen.bundle.bytes {
            self.put_bundle(self.layout.bundle.parse()?, edited, seen.bundle_file.as_ref())?;
        }
        for gone in &seen.gone {
            self.remove_links(&gone.path, &gone.short, gone.der.as_ref())?;
            self.transport.remove(&gone.path)?;
        }
        Ok(())
    }

    fn remove_links(&self, path: &GuestPath, short: &str, der: Option<&CertificateDer<'_>>) -> Result<()> {
        self.links(path, short, der).map_or(Ok(()), |links| links?.remove(self.transport))
    }

    fn anchor_path(&self, anchor: &Certificate) -> Result<GuestPath> {
        self.layout.anchors.parse::<GuestPath>()?.join(&file_name(anchor.fingerprint()))
    }

    /// The links of an anchor, where the family has such.
    fn links<'p>(
        &self,
        anchor: &'p GuestPath,
        short: &str,
        der: Option<&CertificateDer<'_>>,
    ) -> Option<Result<Links<'p>>> {
        let (directory, prefix) = self.layout.links?;
        Some(directory.parse().map(|directory| Links {
            directory,
            name: format!("{prefix}phoenix-{short}.pem"),
            anchor,
            hash: der.and_then(|der| subject_hash(der)),
        }))
    }
}
