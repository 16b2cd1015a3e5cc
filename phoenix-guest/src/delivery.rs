//! The pair swap: certificate and key reach a guest as one generation, switch by one rename, and go back if they do not serve.
//!
//! ```text
//! /etc/nginx/ssl/nginx.crt -> .phoenix/nginx.crt/current/cert.pem
//! /etc/nginx/ssl/nginx.key -> .phoenix/nginx.crt/current/key.pem
//! /etc/nginx/ssl/.phoenix/nginx.crt/current  -> 5f0c…     one rename switches both
//! /etc/nginx/ssl/.phoenix/nginx.crt/previous -> 91ab…     the way back
//! /etc/nginx/ssl/.phoenix/nginx.crt/pending  -> 5f0c…     from the first write until the consumer took the pair
//! ```
//!
//! Paths that are in use already are adopted: what is there is copied into a generation, and each path becomes a
//! symlink into it with its content unchanged, before the one switch changes both.
//!
//! At each moment both paths lead into one generation. A program that opens them one after the other may still meet the
//! rename in between, as with any two files; one that opens `current` and both files from there never does. A consumer
//! is told to read only after the switch, so what it reads then is one pair.
//!
//! Where a file system has no symlinks, files are replaced one by one after a backup, with no reload between them;
//! `pending` is then a file that names the backup, and the next run repairs what a kill between the two left.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

use phoenix_pki::{Certificate, Fingerprint, Leaf, Name, Profile};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use time::OffsetDateTime;

use crate::command::{Command, printable};
use crate::error::{Error, Result};
use crate::guest::{GuestPath, Id, Mode, Owner, Placed};
use crate::handshake::{Judge, PATIENCE, PairPem, Proof, Serves};
use crate::transport::{File, Observed, ObservedFile, Transport};

/// The longest file of a pair that is read back.
const LONGEST_FILE: usize = 1 << 20;

/// The directory beside a certificate that holds its generations.
const STATE: &str = ".phoenix";

/// The files of a generation that not every placement has.
const OPTIONAL: [&str; 2] = ["chain.pem", "root.pem"];

/// The most symlinks that the directory of a file may lead through, as in Linux.
const LINKS_LIMIT: usize = 40;

/// How long a service is given to show the previous certificate again.
const RESTORING: Duration = Duration::from_secs(5);

/// Where a pair goes in a guest, and how its consumer takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The chain: leaf first, then the intermediate.
    pub cert: Placed,
    /// The private key.
    pub key: Placed,
    /// The intermediate alone, for consumers that want it apart.
    pub chain: Option<Placed>,
    /// The root, for consumers that read it from a file.
    pub root: Option<Placed>,
    /// How the consumer checks its configuration; run before the reload.
    pub check: Option<Vec<String>>,
    /// How the consumer takes a new pair.
    pub reload: Option<Vec<String>>,
    /// Where it answers, and under which name.
    pub serves: Option<Serves>,
}

impl Placement {
    /// A pair at these two paths, with the usual modes, and nothing to reload.
    pub fn new(cert: GuestPath, key: GuestPath) -> Self {
        Self {
            cert: Placed::certificate(cert),
            key: Placed::key(key),
            chain: None,
            root: None,
            check: None,
            reload: None,
            serves: None,
        }
    }

    /// Every file of it, under its name in a generation.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Placed)> {
        let optional = OPTIONAL.into_iter().zip([&self.chain, &self.root]);
        [("cert.pem", &self.cert), ("key.pem", &self.key)]
            .into_iter()
            .chain(optional.filter_map(|(name, placed)| Some((name, placed.as_ref()?))))
    }
}

/// How a guest differs from what it should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "difference")]
#[non_exhaustive]
pub enum Difference {
    /// A file is not there.
    Missing {
        /// Its path.
        path: String,
    },
    /// A file holds other bytes.
    Content {
        /// Its path.
        path: String,
    },
    /// A file has another mode.
    Mode {
        /// Its path.
        path: String,
        /// What it has.
        found: String,
        /// What it should have.
        wanted: String,
    },
    /// A file has another owner.
    Owner {
        /// Its path.
        path: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// The files are in place and the consumer was not told, or did not answer, before a run ended.
    NotActivated,
    /// The service does not show this certificate.
    NotServing {
        /// What the handshake said.
        why: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => write!(f, "{path} is missing"),
            Self::Content { path } => write!(f, "{path} differs"),
            Self::Mode { path, found, wanted } => write!(f, "{path} has mode {found}, not {wanted}"),
            Self::Owner { path, found, wanted } => write!(f, "{path} is owned by {found}, not {wanted}"),
            Self::NotActivated => f.write_str("the consumer did not take it yet"),
            Self::NotServing { why } => f.write_str(why),
        }
    }
}

/// What a delivery came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Delivered {
    /// What differed; empty when nothing was done.
    pub differences: Vec<Difference>,
    /// What the handshake showed; none where no service is named and files cannot be judged by themselves.
    pub proof: Option<Proof>,
    /// What an operator should know, such as `owner not set (not root)`.
    pub notes: Vec<String>,
}

impl Delivered {
    /// Whether anything was done.
    pub fn changed(&self) -> bool {
        !self.differences.is_empty()
    }
}

/// A file as it should stand in the guest.
struct Wanted {
    name: &'static str,
    placed: Placed,
    bytes: zeroize::Zeroizing<Vec<u8>>,
    digest: [u8; 32],
}

/// One pair for one place in one guest.
pub(crate) struct Delivery<'a> {
    transport: &'a dyn Transport,
    leaf: &'a Leaf,
    placement: &'a Placement,
    state: GuestPath,
    wanted: Vec<Wanted>,
}

/// What stands in the guest for a delivery.
pub(crate) struct Standing {
    files: Vec<Observed>,
    current: Option<String>,
    previous: Option<String>,
    pending: Pending,
    /// The first path at which a directory stands.
    directory: Option<GuestPath>,
}

/// What a run left that did not come to its end.
#[derive(Debug, PartialEq, Eq)]
enum Pending {
    /// Nothing.
    No,
    /// A symlink: this generation was to become current, and may have.
    Switch(String),
    /// A file: files were being replaced one by one, and it names the backup.
    InPlace,
}

/// A change under way: what is put in place, and what undoes it.
enum Change {
    /// Nothing is put in place: an older pair does not help a service that is down.
    No,
    /// `current` goes to `new`; back to `old`, or away where nothing was there.
    Link { new: String, old: Option<String> },
    /// One file after the other; back to these, and those that are not among them away.
    InPlace { old: Vec<Wanted> },
}

impl Change {
    fn had_nothing(&self) -> bool {
        match self {
            Self::No => false,
            Self::Link { old, .. } => old.is_none(),
            Self::InPlace { old } => old.is_empty(),
        }
    }
}

impl<'a> Delivery<'a> {
    pub(crate) fn new(transport: &'a dyn Transport, leaf: &'a Leaf, placement: &'a Placement) -> Result<Self> {
        let state = placement.cert.path.parent().join(STATE)?.join(placement.cert.path.file_name())?;
        let mut seen = HashSet::new();
        for (_, placed) in placement.files() {
            let path = &placed.path;
            if !seen.insert(path) || in_state(path) {
                let accepted = "a path of its own for each file of a pair, outside of .phoenix";
                return Err(Error::Value { what: "path", value: path.to_string(), accepted });
            }
        }
        let wanted = placement.files().map(|(name, placed)| Wanted::of(leaf, name, placed.clone())).collect();
        Ok(Self { transport, leaf, placement, state, wanted })
    }

    /// The paths whose standing decides: the files, then the state of the last delivery.
    pub(crate) fn paths(&self) -> Result<Vec<GuestPath>> {
        let files = self.wanted.iter().map(|wanted| Ok(wanted.placed.path.clone()));
        files.chain(["current", "previous", "pending"].map(|name| self.state.join(name))).collect()
    }

    /// Reads what was observed at [`Delivery::paths`].
    pub(crate) fn standing(&self, mut observed: Vec<Observed>) -> Standing {
        // What a transport does not tell is not there.
        observed.resize(self.wanted.len() + 3, Observed::MISSING);
        let paths = self.paths().unwrap_or_default();
        let directory = paths.into_iter().zip(&observed).find(|(_, observed)| observed.directory).map(|(path, _)| path);
        let pending = match observed.pop() {
            Some(Observed { link: Some(name), .. }) => Pending::Switch(name),
            Some(Observed { file: Some(_), .. }) => Pending::InPlace,
            _ => Pending::No,
        };
        let mut generation = || observed.pop().and_then(|observed| observed.link).filter(|name| is_generation(name));
        let (previous, current) = (generation(), generation());
        Standing { files: observed, current, previous, pending, directory }
    }

    fn observe(&self) -> Result<Standing> {
        Ok(self.standing(self.transport.observe(&self.paths()?)?))
    }

    /// What differs, from what was observed alone.
    pub(crate) fn plan(&self, standing: &Standing) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (wanted, observed) in self.wanted.iter().zip(&standing.files) {
            differences.extend(differs(wanted, observed.file.as_ref(), self.transport.sets_owners()));
        }
        if differences.is_empty() && standing.pending != Pending::No {
            differences.push(Difference::NotActivated);
        }
        differences
    }

    /// The proof as it stands: does the service show the pair now, or do the files make a handshake?
    pub(crate) fn prove(&self, judge: &Judge<'_>, patience: Duration) -> Result<Option<Proof>> {
        let certificate = self.leaf.certificate();
        let profile = certificate.profile().unwrap_or_default();
        let serves = self.placement.serves.as_ref();
        if let Some(serves) = serves.filter(|_| self.transport.runs_programs()) {
            if profile != Profile::Client {
                return judge.serving(serves, None, patience).map(Some);
            }
            let (chain, key) = self.read_back()?;
            return judge.serving(serves, Some(&PairPem { chain: &chain, key: &key }), patience).map(Some);
        }
        let named = serves.map(|serves| serves.name.clone());
        let Some(name) = named.or_else(|| certificate.names().first().map(Name::example)) else { return Ok(None) };
        let (chain, key) = self.read_back()?;
        judge.files(&PairPem { chain: &chain, key: &key }, &name, profile).map(Some)
    }

    fn read_back(&self) -> Result<(Vec<u8>, zeroize::Zeroizing<Vec<u8>>)> {
        let read = |path: &GuestPath| {
            self.transport.get(path, LONGEST_FILE)?.ok_or_else(|| self.failed("read", path, ErrorKind::NotFound.into()))
        };
        Ok((read(&self.placement.cert.path)?, read(&self.placement.key.path)?.into()))
    }

    /// Makes the guest hold and use the pair, or puts back what was there.
    pub(crate) fn apply(
        &self,
        standing: &Standing,
        differences: &[Difference],
        judge: &Judge<'_>,
    ) -> Result<Option<Proof>> {
        let placed = differences
            .iter()
            .any(|difference| !matches!(difference, Difference::NotActivated | Difference::NotServing { .. }));
        let change = if placed { self.prepare(standing)? } else { self.unfinished(standing)? };
        let switched = if placed { self.switch(&change) } else { Ok(()) };
        let taken = switched
            .and_then(|()| self.read_back_as_wanted())
            .and_then(|()| self.activate())
            .and_then(|()| self.prove(judge, PATIENCE));
        match taken {
            Ok(proof) => {
                match &change {
                    Change::Link { new, old } => self.finish(&[Some(new), old.as_ref()])?,
                    Change::InPlace { .. } => self.finish(&[])?,
                    Change::No if standing.pending == Pending::No => {}
                    Change::No if standing.files.iter().all(|file| file.link.is_none()) => self.finish(&[])?,
                    Change::No => self.finish(&[standing.current.as_ref(), standing.previous.as_ref()])?,
                }
                Ok(proof)
            }
            Err(error) if matches!(change, Change::No) => Err(error),
            Err(error) => Err(self.roll_back(&change, error, judge)),
        }
    }

    /// The change of a run that ended between the switch and its proof; this run may still have to undo it.
    fn unfinished(&self, standing: &Standing) -> Result<Change> {
        Ok(match &standing.pending {
            Pending::Switch(new) if standing.current.as_ref() == Some(new) => match &standing.previous {
                // A generation that somebody removed is nothing to go back to.
                Some(old) if self.generation(old)?.is_empty() => Change::No,
                old => Change::Link { new: new.clone(), old: old.clone() },
            },
            Pending::InPlace => self.backup()?.map_or(Change::No, |old| Change::InPlace { old }),
            _ => Change::No,
        })
    }

    /// Writes everything that the switch needs. No byte that a consumer reads changes.
    fn prepare(&self, standing: &Standing) -> Result<Change> {
        let guest = self.transport;
        let repaired;
        let standing = match &standing.pending {
            Pending::InPlace => match self.backup()? {
                // A run was cut short between two files: what was there before comes back first.
                Some(old) => {
                    self.restore(&old)?;
                    repaired = self.observe()?;
                    &repaired
                }
                None => standing,
            },
            _ => standing,
        };
        let texts = self.link_texts()?;
        self.refuse_foreign(standing, &texts)?;
        let (current, previous) = (self.state.join("current")?, self.state.join("previous")?);
        let linked = standing.current.is_some()
            && texts.iter().zip(&standing.files).all(|(text, observed)| observed.link.as_ref() == Some(text));
        let mut old = standing.current.clone();
        let found = if linked { Vec::new() } else { self.found(standing)? };
        if linked && let Change::Link { old: Some(proven), .. } = self.unfinished(standing)? {
            // The way back leads to a pair that its consumer took, not to one that was never proven.
            guest.link(&current, &proven)?;
            old = Some(proven);
        }
        let new = generation_name()?;
        match guest.link(&self.state.join("pending")?, &new) {
            Err(error) if has_no_symlinks(&error) => return self.prepare_in_place(found),
            marked => marked?,
        }
        self.put_generation(&new, &self.wanted)?;
        self.put_generation(&new, &self.outlived(standing)?)?;
        if !linked {
            if found.is_empty() {
                // New links lead nowhere until the switch.
                old = None;
                guest.remove(&current)?;
            } else {
                let adopted = generation_name()?;
                self.put_generation(&adopted, &found)?;
                guest.link(&current, &adopted)?;
                old = Some(adopted);
            }
            for (wanted, text) in self.wanted.iter().zip(&texts) {
                match guest.link(&wanted.placed.path, text) {
                    Err(error) if has_no_symlinks(&error) => return self.prepare_in_place(found),
                    linked => linked?,
                }
            }
        }
        match &old {
            Some(old) => guest.link(&previous, old)?,
            None => guest.remove(&previous)?,
        }
        Ok(Change::Link { new, old })
    }

    /// Where no symlink can be: a backup, which the marker names.
    fn prepare_in_place(&self, old: Vec<Wanted>) -> Result<Change> {
        let mut backup = String::new();
        if !old.is_empty() {
            backup = generation_name()?;
            self.put_generation(&backup, &old)?;
        }
        let path = self.state.join("pending")?;
        self.transport.put(&File { path, bytes: backup.into(), mode: Mode::CERTIFICATE, owner: Owner::ROOT })?;
        Ok(Change::InPlace { old })
    }

    /// What a consumer reads changes here: by one rename, or where no symlink can be by one for each file.
    fn switch(&self, change: &Change) -> Result<()> {
        match change {
            Change::No => Ok(()),
            Change::Link { new, .. } => self.transport.link(&self.state.join("current")?, new),
            Change::InPlace { .. } => {
                self.wanted.iter().try_for_each(|wanted| self.transport.put(&wanted.file(&wanted.placed.path)))
            }
        }
    }

    /// What is neither a file nor absent stays as it is: somebody meant something by it.
    fn refuse_foreign(&self, standing: &Standing, texts: &[String]) -> Result<()> {
        if let Some(path) = &standing.directory {
            let why = io::Error::new(ErrorKind::IsADirectory, "a directory is there");
            return Err(self.failed("replace", path, why));
        }
        for ((wanted, observed), text) in self.wanted.iter().zip(&standing.files).zip(texts) {
            if *observed == Observed::MISSING {
                // A FIFO, a socket or a device is no file to observe either, and an error to read.
                self.transport.get(&wanted.placed.path, LONGEST_FILE)?;
            }
            if let Observed { link: Some(link), file: None, .. } = observed
                && link != text
            {
                let why = format!("a symlink is there that leads to no file: {:?}", printable(link.as_bytes()));
                return Err(self.failed("replace", &wanted.placed.path, io::Error::new(ErrorKind::AlreadyExists, why)));
            }
        }
        Ok(())
    }

    /// The files that the paths hold now, with their modes and owners.
    fn found(&self, standing: &Standing) -> Result<Vec<Wanted>> {
        let places = self.wanted.iter().map(|wanted| wanted.placed.path.clone()).collect::<Vec<_>>();
        self.read_files(&places, &standing.files)
    }

    /// The files of a generation; none when it is not there.
    fn generation(&self, name: &str) -> Result<Vec<Wanted>> {
        let directory = self.state.join(name)?;
        let places = self.wanted.iter().map(|wanted| directory.join(wanted.name)).collect::<Result<Vec<_>>>()?;
        self.read_files(&places, &self.transport.observe(&places)?)
    }

    fn read_files(&self, places: &[GuestPath], observed: &[Observed]) -> Result<Vec<Wanted>> {
        let mut files = Vec::new();
        for ((wanted, place), observed) in self.wanted.iter().zip(places).zip(observed) {
            let Some(file) = &observed.file else { continue };
            let Some(bytes) = self.transport.get(place, LONGEST_FILE)? else { continue };
            let owner = Owner { user: Id::Number(file.user.0), group: Id::Number(file.group.0) };
            let placed = Placed { path: wanted.placed.path.clone(), mode: file.mode, owner };
            let digest = digest(&bytes);
            files.push(Wanted { name: wanted.name, placed, bytes: bytes.into(), digest });
        }
        Ok(files)
    }

    /// What was there before files were replaced in place; `None` when nobody knows any more.
    fn backup(&self) -> Result<Option<Vec<Wanted>>> {
        let Some(name) = self.transport.get(&self.state.join("pending")?, 64)? else { return Ok(None) };
        match String::from_utf8(name) {
            Ok(name) if name.is_empty() => Ok(Some(Vec::new())),
            Ok(name) if is_generation(&name) => Ok(Some(self.generation(&name)?).filter(|files| !files.is_empty())),
            _ => Ok(None),
        }
    }

    fn restore(&self, old: &[Wanted]) -> Result<()> {
        self.wanted.iter().try_for_each(|wanted| match old.iter().find(|file| file.name == wanted.name) {
            Some(file) => self.transport.put(&file.file(&wanted.placed.path)),
            None => self.transport.remove(&wanted.placed.path),
        })
    }

    /// Files of the current generation that are placed no more. What was told their paths may still read them: the links
    /// stay, and do not lead nowhere after the switch.
    fn outlived(&self, standing: &Standing) -> Result<Vec<Wanted>> {
        let Some(current) = &standing.current else { return Ok(Vec::new()) };
        let directory = self.state.join(current)?;
        let mut outlived = Vec::new();
        for name in OPTIONAL.into_iter().filter(|name| self.wanted.iter().all(|wanted| wanted.name != *name)) {
            let path = directory.join(name)?;
            if self.transport.observe(std::slice::from_ref(&path))?.iter().any(|observed| observed.file.is_some()) {
                outlived.push(Wanted::of(self.leaf, name, Placed::certificate(path)));
            }
        }
        Ok(outlived)
    }

    fn put_generation(&self, name: &str, files: &[Wanted]) -> Result<()> {
        let directory = self.state.join(name)?;
        files.iter().try_for_each(|file| self.transport.put(&file.file(&directory.join(file.name)?)))
    }

    /// Law 2: in place means that digest, mode and owner read back as wanted, through the paths that the consumer uses.
    fn read_back_as_wanted(&self) -> Result<()> {
        let difference =
            self.plan(&self.observe()?).into_iter().find(|difference| *difference != Difference::NotActivated);
        difference.map_or(Ok(()), |difference| {
            Err(Error::ReadBack {
                guest: self.transport.guest().into(),
                path: self.placement.cert.path.to_string(),
                expected: "the pair as it was placed".into(),
                found: difference.to_string(),
            })
        })
    }

    /// Has the consumer check its configuration and take the pair.
    fn activate(&self) -> Result<()> {
        if !self.transport.runs_programs() {
            return Ok(());
        }
        let mut commands = [&self.placement.check, &self.placement.reload].into_iter().flatten();
        commands.try_for_each(|argv| run(self.transport, argv))
    }

    /// Puts back what was there and has the consumer take it; the error holds both causes.
    fn roll_back(&self, change: &Change, cause: Error, judge: &Judge<'_>) -> Error {
        Error::RolledBack {
            guest: self.transport.guest().into(),
            path: self.placement.cert.path.to_string(),
            source: Box::new(cause),
            rollback: self.undo(change, judge).err().map(Box::new),
        }
    }

    /// The marker goes last: while it is there, the next run knows that the consumer may hold another pair than the files.
    fn undo(&self, change: &Change, judge: &Judge<'_>) -> Result<()> {
        match change {
            Change::No => return Ok(()),
            Change::Link { old: Some(old), .. } => self.transport.link(&self.state.join("current")?, old)?,
            // Without it, all paths lead nowhere at once.
            Change::Link { old: None, .. } => self.transport.remove(&self.state.join("current")?)?,
            Change::InPlace { old } => self.restore(old)?,
        }
        if change.had_nothing() {
            // A consumer that runs keeps what it has: with its files gone again, it could load nothing.
            self.wanted.iter().try_for_each(|wanted| self.transport.remove(&wanted.placed.path))?;
            self.finish(&[])?;
            return self.transport.remove(&self.state);
        }
        if let (Some(reload), true) = (&self.placement.reload, self.transport.runs_programs()) {
            run(self.transport, reload)?;
        }
        self.prove_restored(judge)?;
        match change {
            Change::Link { old, .. } => self.finish(&[old.as_ref()]),
            _ => self.finish(&[]),
        }
    }

    /// Whether the service shows again what was put back, however that would be judged today.
    fn prove_restored(&self, judge: &Judge<'_>) -> Result<()> {
        let ours = self.leaf.certificate().profile() != Some(Profile::Client);
        let Some(serves) = self.placement.serves.as_ref().filter(|_| ours && self.transport.runs_programs()) else {
            return Ok(());
        };
        let chain = self.transport.get(&self.placement.cert.path, LONGEST_FILE)?.unwrap_or_default();
        match CertificateDer::from_pem_slice(&chain) {
            Ok(old) => judge.showing(serves, Fingerprint::of(&old), RESTORING),
            // What was there was no certificate, so no service showed it.
            Err(_) => Ok(()),
        }
    }

    /// Removes the generations that are not kept: what replaced, killed and rolled-back runs left. The marker goes last.
    fn finish(&self, kept: &[Option<&String>]) -> Result<()> {
        if kept.is_empty() {
            self.transport.remove(&self.state.join("current")?)?;
            self.transport.remove(&self.state.join("previous")?)?;
        }
        // With a `current` that nobody can read, any generation may be in use.
        if kept.is_empty() || kept[0].is_some() {
            for name in self.transport.list(&self.state)? {
                if is_generation(&name) && !kept.iter().flatten().any(|kept| **kept == name) {
                    self.transport.remove(&self.state.join(&name)?)?;
                }
            }
        }
        self.transport.remove(&self.state.join("pending")?)
    }

    /// What each path says as a symlink: relative, so that it holds through bind mounts.
    fn link_texts(&self) -> Result<Vec<String>> {
        let home = self.placement.cert.path.parent();
        let texts = self.wanted.iter().map(|wanted| {
            let parent = wanted.placed.path.parent();
            // Below the state's own directory a link only leads down; from elsewhere it first leads up.
            let from = if parent == home { parent } else { self.physical(parent)? };
            Ok(relative(&from, &self.state) + "/current/" + wanted.name)
        });
        texts.collect()
    }

    /// A directory as it is called without symlinks: where `..` leads up from.
    fn physical(&self, mut directory: GuestPath) -> Result<GuestPath> {
        for _ in 0..=LINKS_LIMIT {
            let mut prefixes = vec![directory.clone()];
            while let Some(last) = prefixes.last().filter(|last| last.as_str() != "/") {
                prefixes.push(last.parent());
            }
            prefixes.reverse();
            let observed = self.transport.observe(&prefixes)?;
            let first = prefixes.iter().zip(observed).find_map(|(path, observed)| Some((path, observed.link?)));
            let Some((link, target)) = first else { return Ok(directory) };
            let below = &directory.as_str()[link.as_str().len()..];
            let from = if target.starts_with('/') { GuestPath::root() } else { link.parent() };
            directory = format!("{target}{below}").split('/').try_fold(from, |at, part| match part {
                "" | "." => Ok(at),
                ".." => Ok(at.parent()),
                part => at.join(part),
            })?;
        }
        Err(self.failed("observe", &directory, io::Error::other("too many symlinks")))
    }

    fn failed(&self, attempted: &'static str, path: &GuestPath, source: io::Error) -> Error {
        Error::File { guest: self.transport.guest().into(), attempted, path: path.to_string(), source }
    }
}

impl Wanted {
    fn of(leaf: &Leaf, name: &'static str, placed: Placed) -> Self {
        let bytes = zeroize::Zeroizing::new(match name {
            "cert.pem" => leaf.chain_pem().into_bytes(),
            "key.pem" => leaf.key().to_pem().as_bytes().to_vec(),
            "chain.pem" => leaf.chain().iter().skip(1).map(Certificate::pem).collect::<String>().into_bytes(),
            _ => leaf.root().pem().into_bytes(),
        });
        let digest = digest(&bytes);
        Self { name, placed, bytes, digest }
    }

    fn file(&self, path: &GuestPath) -> File {
        let Placed { mode, owner, .. } = self.placed.clone();
        File { path: path.clone(), bytes: self.bytes.to_vec(), mode, owner }
    }
}

/// Runs a consumer's command; a status that is not zero is an error.
fn run(transport: &dyn Transport, argv: &[String]) -> Result<()> {
    let output = transport.exec(&Command::new(argv))?;
    if output.status == 0 {
        return Ok(());
    }
    Err(Error::Command {
        guest: transport.guest().into(),
        argv: printable(argv.join(" ").as_bytes()),
        status: output.status,
        stderr: printable(&output.stderr),
    })
}

fn differs(wanted: &Wanted, found: Option<&ObservedFile>, owners: bool) -> Option<Difference> {
    let path = wanted.placed.path.to_string();
    let Some(found) = found else { return Some(Difference::Missing { path }) };
    if found.digest != wanted.digest {
        return Some(Difference::Content { path });
    }
    if found.mode != wanted.placed.mode {
        let wanted = wanted.placed.mode.to_string();
        return Some(Difference::Mode { path, found: found.mode.to_string(), wanted });
    }
    if owners && !found.owned_by(&wanted.placed.owner) {
        let show = |(number, name): &(u32, Option<String>)| name.clone().unwrap_or_else(|| number.to_string());
        let found = format!("{}:{}", show(&found.user), show(&found.group));
        return Some(Difference::Owner { path, found, wanted: wanted.placed.owner.to_string() });
    }
    None
}

/// Whether a path leads into the state of a delivery.
pub(crate) fn in_state(path: &GuestPath) -> bool {
    path.as_str().split('/').any(|part| part == STATE)
}

/// A generation's name: 16 hexadecimal digits, so that no link of the guest's leads elsewhere.
fn is_generation(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn has_no_symlinks(error: &Error) -> bool {
    matches!(error, Error::File { attempted: "link", source, .. }
        if matches!(source.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied))
}

/// The way from one directory to another path, without leaving text that names the root.
fn relative(from: &GuestPath, to: &GuestPath) -> String {
    let parts = |path: &GuestPath| -> Vec<String> {
        path.as_str().split('/').filter(|part| !part.is_empty()).map(Into::into).collect()
    };
    let (from, to) = (parts(from), parts(to));
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..".to_string(), from.len() - shared);
    up.chain(to[shared..].iter().cloned()).collect::<Vec<_>>().join("/")
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    *phoenix_pki::Fingerprint::of(bytes).as_bytes()
}

/// Chance alone: the same files may come twice, and somebody may have changed the first by hand.
fn generation_name() -> Result<String> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Error::Unsupported { guest: "host".into(), what: "the system gives no random numbers".into() })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Places a pair, has its consumer check and take it, and proves it; or puts back what was there.
///
/// When nothing differs it writes nothing, runs nothing and only proves. `anchors` are what the handshake trusts, and
/// nothing else is; `at` is the time that it judges by.
///
/// ```
/// use phoenix_guest::{Placement, Rootfs, ensure_pair};
///
/// # use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, RootKey, Store};
/// # let (directory, now) = (tempfile::tempdir()?, time::OffsetDateTime::now_utc());
/// # let params = AuthorityParams::new("Example", Permitted::parse(["internal.example"])?);
/// # let params = AuthorityParams { root_key: RootKey::Plain, ..params };
/// # let authority = Authority::create(&Store::new(directory.path().join("store")), &params, now)?;
/// # let path = directory.path().join("guest");
/// # std::fs::create_dir(&path)?;
/// let guest = Rootfs::new("101", &path)?;
/// let leaf = authority.ensure(&LeafParams::server(["nginx.internal.example"])?, now)?.leaf;
/// let anchors = [authority.root().der().clone()];
/// let placement = Placement::new("/etc/nginx/ssl/nginx.crt".parse()?, "/etc/nginx/ssl/nginx.key".parse()?);
/// let first = ensure_pair(&guest, &leaf, &placement, &anchors, now)?;
/// assert_eq!(first.differences[0].to_string(), "/etc/nginx/ssl/nginx.crt is missing");
/// assert!(!ensure_pair(&guest, &leaf, &placement, &anchors, now)?.changed());
/// assert!(path.join("etc/nginx/ssl/nginx.crt").is_symlink());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
/// # Errors
/// [`Error::RolledBack`] when the consumer's check, its reload or the proof failed; the transport's otherwise.
pub fn ensure_pair(
    transport: &dyn Transport,
    leaf: &Leaf,
    placement: &Placement,
    anchors: &[CertificateDer<'static>],
    at: OffsetDateTime,
) -> Result<Delivered> {
    let delivery = Delivery::new(transport, leaf, placement)?;
    let standing = delivery.standing(transport.observe(&delivery.paths()?)?);
    delivery.ensure(&standing, anchors, at)
}

impl Delivery<'_> {
    /// [`ensure_pair`] from what was observed already.
    pub(crate) fn ensure(
        &self,
        standing: &Standing,
        anchors: &[CertificateDer<'static>],
        at: OffsetDateTime,
    ) -> Result<Delivered> {
        let mut delivered = self.examine(standing, anchors, at)?;
        if delivered.changed() {
            delivered.proof = self.apply(standing, &delivered.differences, &self.judge(anchors, at))?;
        }
        Ok(delivered)
    }

    /// What [`Delivery::ensure`] would find to do. Looks, and changes nothing.
    pub(crate) fn examine(
        &self,
        standing: &Standing,
        anchors: &[CertificateDer<'static>],
        at: OffsetDateTime,
    ) -> Result<Delivered> {
        let mut differences = self.plan(standing);
        let mut proof = None;
        if differences.is_empty() {
            match self.prove(&self.judge(anchors, at), Duration::ZERO) {
                Ok(shown) => proof = shown,
                Err(error @ Error::Handshake { .. }) if self.asks_a_server() => {
                    differences.push(Difference::NotServing { why: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        let mut notes = Vec::new();
        let owned = |(wanted, observed): (&Wanted, &Observed)| {
            observed.file.as_ref().is_some_and(|file| file.owned_by(&wanted.placed.owner))
        };
        if !self.transport.sets_owners() && !self.wanted.iter().zip(&standing.files).all(owned) {
            notes.push("owner not set (not root)".into());
        }
        Ok(Delivered { differences, proof, notes })
    }

    fn judge<'a>(&self, anchors: &'a [CertificateDer<'static>], at: OffsetDateTime) -> Judge<'a> {
        Judge { anchors, expected: self.leaf.certificate().fingerprint(), at }
    }

    fn asks_a_server(&self) -> bool {
        self.placement.serves.is_some() && self.transport.runs_programs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative_and_need_no_root() {
        let path = |text: &str| text.parse::<GuestPath>().unwrap();
        let state = path("/etc/nginx/ssl/.phoenix/nginx.crt");
        assert_eq!(relative(&path("/etc/nginx/ssl"), &state), ".phoenix/nginx.crt");
        assert_eq!(relative(&path("/etc/nginx/private"), &state), "../ssl/.phoenix/nginx.crt");
        assert_eq!(relative(&path("/"), &state), "etc/nginx/ssl/.phoenix/nginx.crt");
        assert_eq!(relative(&path("/srv/keys"), &state), "../../etc/nginx/ssl/.phoenix/nginx.crt");
    }
}
