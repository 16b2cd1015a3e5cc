//! The store on disk: the only file of this crate that touches the file system, and the one that knows every path.
//!
//! ```text
//! STORE/{lock,converge.lock}              flock, permanent
//! STORE/ledger.jsonl                      everything ever issued, appended
//! STORE/authority/current -> 0001
//! STORE/authority/0001/{root,intermediate}.{crt,key,crl}
//! STORE/authority.pending/intermediate.key  waits for its certificate
//! STORE/certificates/LABEL/current -> SERIAL
//! STORE/certificates/LABEL/SERIAL/{cert.pem,key.pem}
//! ```
//!
//! What is published is complete before one symlink is renamed to it, so a reader sees the old or the new pair.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::certificate::SerialNumber;
use crate::error::{Error, Result};
use crate::key::{Passphrase, random};
use crate::ledger::{self, Event, Ledger, hex};
use crate::profile::{PassphraseSource, RootKey};

/// The longest file that is read: a chain or a key is a few kilobytes.
const LONGEST_FILE: u64 = 1 << 20;

/// The longest ledger that is read.
const LONGEST_LEDGER: u64 = 1 << 30;

/// How long another process may hold the lock, unless [`Store::patience`] says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// From this many pairs on, two `syncfs` cost less than an `fsync` for each file.
const BATCH: usize = 8;

/// A directory that holds an authority, its certificates and the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    path: PathBuf,
    patience: Duration,
}

/// A pair as it lies in the store.
pub(crate) struct StoredPair {
    pub(crate) chain: Vec<u8>,
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) origin: String,
}

/// A pair that is to be published.
pub(crate) struct NewPair {
    pub(crate) label: String,
    pub(crate) serial: SerialNumber,
    pub(crate) chain: String,
    pub(crate) key: Zeroizing<String>,
}

/// The files of one authority generation, as they lie in the store.
pub(crate) struct StoredAuthority {
    pub(crate) generation: String,
    pub(crate) root: Vec<u8>,
    pub(crate) intermediate: Vec<u8>,
}

/// Which of an authority's two certificates a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Root,
    Intermediate,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
        }
    }
}

impl Store {
    /// The store at this path, which need not be there yet. Nothing is opened; a relative path is one from the directory
    /// that is current now.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        // A slash or dot at the end would put the passphrase file into the store.
        let path = std::path::absolute(&path).unwrap_or(path).components().collect();
        Self { path, patience: PATIENCE }
    }

    /// The same store, with this long to wait for another process that holds its lock; a minute otherwise.
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a generated passphrase of the root key is kept: beside the store, not in it.
    pub fn passphrase_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".passphrase");
        name.into()
    }

    /// Takes the lock that every change needs, and makes the store's directories where they are missing.
    pub(crate) fn lock(&self) -> Result<Lock<'_>> {
        Ok(Lock { store: self, file: self.lock_file("lock", || ())? })
    }

    /// Keeps other runs that deliver from this store out, until the value is dropped. Changes of the store itself have
    /// a lock of their own. `waiting` is called once when another run is at it.
    ///
    /// # Errors
    /// [`Error::Locked`] when another run goes on for longer than a minute.
    pub fn exclusive(&self, waiting: impl FnOnce()) -> Result<Exclusive> {
        Ok(Exclusive { _file: self.lock_file("converge.lock", waiting)? })
    }

    /// Locks a file that stays: the kernel gives the lock back when the process ends, however it ends.
    fn lock_file(&self, name: &str, waiting: impl FnOnce()) -> Result<File> {
        make_parents(parent(&self.path))?;
        if make_directory(&self.path)? {
            sync(parent(&self.path))?;
        }
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&path)
            .map_err(failed("create", &path))?;
        let start = Instant::now();
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if start.elapsed() < self.patience => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Locked { path, seconds: self.patience.as_secs() });
                }
                Err(TryLockError::Error(source)) => return Err(Error::WriteFile { attempted: "lock", path, source }),
            }
        }
    }

    /// The authority of the current generation, when there is one.
    pub(crate) fn authority(&self) -> Result<Option<StoredAuthority>> {
        let directory = self.path.join("authority");
        let Some(generation) = read_link(&directory.join("current"))? else { return Ok(None) };
        let read = |role: Role| {
            let path = self.authority_file(&generation, role, "crt");
            read_file(&path, LONGEST_FILE)?.ok_or_else(|| missing(&path))
        };
        let (root, intermediate) = (read(Role::Root)?, read(Role::Intermediate)?);
        Ok(Some(StoredAuthority { generation, root, intermediate }))
    }

    /// The path of a file of an authority.
    pub(crate) fn authority_file(&self, generation: &str, role: Role, extension: &str) -> PathBuf {
        self.path.join("authority").join(generation).join(format!("{}.{extension}", role.name()))
    }

    /// The key file of an authority; `None` when it left the store.
    pub(crate) fn authority_key(&self, generation: &str, role: Role) -> Result<Option<Zeroizing<Vec<u8>>>> {
        read_key(&self.authority_file(generation, role, "key"))
    }

    /// The CRL of an authority, when there is one.
    pub(crate) fn crl(&self, generation: &str, role: Role) -> Result<Option<Vec<u8>>> {
        read_file(&self.authority_file(generation, role, "crl"), LONGEST_FILE)
    }

    /// Where the key of a requested intermediate waits for its certificate.
    pub(crate) fn pending_key_path(&self) -> PathBuf {
        self.path.join("authority.pending").join("intermediate.key")
    }

    /// That key, when one waits.
    pub(crate) fn pending_key(&self) -> Result<Option<Zeroizing<Vec<u8>>>> {
        read_key(&self.pending_key_path())
    }

    /// The path of the current certificate under a label, with its chain.
    pub fn certificate_path(&self, label: &str) -> PathBuf {
        self.path.join("certificates").join(label).join("current").join("cert.pem")
    }

    /// The path of the current private key under a label.
    pub fn key_path(&self, label: &str) -> PathBuf {
        self.certificate_path(label).with_file_name("key.pem")
    }

    /// The path of the ledger.
    pub(crate) fn ledger_path(&self) -> PathBuf {
        self.path.join("ledger.jsonl")
    }

    /// Whether a generated passphrase lies beside the store.
    pub(crate) fn has_generated_passphrase(&self) -> bool {
        self.passphrase_path().symlink_metadata().is_ok()
    }

    /// The current pair under a label, when there is one.
    pub(crate) fn pair(&self, label: &str) -> Result<Option<StoredPair>> {
        let directory = self.path.join("certificates").join(label);
        let current = directory.join("current");
        let mut last = None;
        loop {
            let Some(generation) = read_link(&current)? else { return Ok(None) };
            let generation = directory.join(generation);
            let (cert, key) = (generation.join("cert.pem"), generation.join("key.pem"));
            let chain = read_file(&cert, LONGEST_FILE)?;
            match (chain, read_key(&key)?) {
                (Some(chain), Some(key)) => {
                    return Ok(Some(StoredPair { chain, key, origin: cert.display().to_string() }));
                }
                // Two changes since the link was read removed this generation: the link leads elsewhere now.
                _ if last.as_ref() != Some(&generation) => last = Some(generation),
                (None, _) => return Err(missing(&cert)),
                (_, None) => return Err(missing(&key)),
            }
        }
    }

    /// The labels of all pairs, sorted.
    pub(crate) fn labels(&self) -> Result<Vec<String>> {
        list(&self.path.join("certificates"))
    }

    /// Everything ever issued.
    ///
    /// # Errors
    /// [`Error::ReadFile`], or [`Error::Parse`] naming the line.
    pub fn ledger(&self) -> Result<Ledger> {
        let path = self.ledger_path();
        let mut bytes = read_file(&path, LONGEST_LEDGER)?.unwrap_or_default();
        // What a killed run left of a line may end within a character.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let origin = path.display().to_string();
        if (bytes.len() - whole) as u64 > LONGEST_FILE {
            return Err(Error::Parse { origin, what: "ledger", why: "its last line has no end".into() });
        }
        bytes.truncate(whole);
        let text = str::from_utf8(&bytes).map_err(|error| Error::Parse {
            origin: origin.clone(),
            what: "ledger",
            why: error.to_string(),
        })?;
        Ledger::parse(text, &origin)
    }

    /// The passphrase from where the caller keeps it.
    pub(crate) fn passphrase(&self, source: &PassphraseSource) -> Result<Passphrase> {
        match source {
            PassphraseSource::Variable(name) => match std::env::var(name) {
                Ok(text) if !text.is_empty() => Ok(Passphrase::new(text)),
                _ => Err(Error::Passphrase { origin: name.clone(), why: "the environment variable is not set" }),
            },
            PassphraseSource::File(path) => {
                let why = "there is no such passphrase file";
                let bytes =
                    read_key(path)?.ok_or_else(|| Error::Passphrase { origin: path.display().to_string(), why })?;
                let text = str::from_utf8(&bytes).ok().and_then(|text| text.lines().next()).unwrap_or_default();
                if text.is_empty() {
                    let why = "its first line holds no passphrase";
                    return Err(Error::Passphrase { origin: path.display().to_string(), why });
                }
                Ok(Passphrase::new(text))
            }
        }
    }
}

impl RootKey {
    /// Where the passphrase of the root key comes from; `None` when it rests plain.
    pub(crate) fn passphrase_source(&self, store: &Store) -> Option<PassphraseSource> {
        match self {
            Self::Generated => Some(PassphraseSource::File(store.passphrase_path())),
            Self::Encrypted(source) => Some(source.clone()),
            Self::Plain => None,
        }
    }
}

/// The right to deliver from a store, held by one run at a time.
#[derive(Debug)]
pub struct Exclusive {
    _file: File,
}

/// The store, open for changes: no other process changes it while this value lives.
pub(crate) struct Lock<'a> {
    store: &'a Store,
    /// Has a length while pairs are published, so that the next holder knows when this one was killed at it.
    file: File,
}

impl Lock<'_> {
    /// Puts a whole new authority in place, by one rename.
    pub(crate) fn create_authority(&self, files: &[(Role, &str, &[u8])]) -> Result<()> {
        let target = self.store.path.join("authority");
        if target.join("current").symlink_metadata().is_ok() {
            return Err(Error::AuthorityExists { store: self.store.path.clone() });
        }
        let staging = self.store.path.join("authority.new");
        remove_tree(&staging)?;
        let generation = staging.join("0001");
        make_directory(&staging)?;
        make_directory(&generation)?;
        for (role, extension, bytes) in files {
            write_file(&generation.join(format!("{}.{extension}", role.name())), bytes, true)?;
        }
        link("0001", &staging.join("current"))?;
        sync(&generation)?;
        sync(&staging)?;
        fs::rename(&staging, &target).map_err(failed("rename", &target))?;
        sync(&self.store.path)
    }

    /// Keeps the key of a requested intermediate.
    pub(crate) fn keep_pending_key(&self, pem: &str) -> Result<()> {
        let path = self.store.pending_key_path();
        if let Some(directory) = path.parent() {
            make_directory(directory)?;
            sync(&self.store.path)?;
        }
        replace_file(&path, pem.as_bytes())
    }

    /// Removes that key from where it waited.
    pub(crate) fn drop_pending_key(&self) -> Result<()> {
        remove_tree(&self.store.path.join("authority.pending"))?;
        sync(&self.store.path)
    }

    /// Replaces a file of an authority by one rename.
    pub(crate) fn replace_authority_file(
        &self,
        generation: &str,
        role: Role,
        extension: &str,
        bytes: &[u8],
    ) -> Result<()> {
        replace_file(&self.store.authority_file(generation, role, extension), bytes)
    }

    /// Moves the root key out of the store, to a file that must not be there yet, or holds the key already: a run that
    /// was killed between the copy and the removal is finished by the next.
    pub(crate) fn seal(&self, generation: &str, to: &Path) -> Result<()> {
        let from = self.store.authority_file(generation, Role::Root, "key");
        let key = read_key(&from)?.ok_or_else(|| Error::Sealed { store: self.store.path.clone() })?;
        // A killed run left it there whole; anything else there is somebody's.
        let there = matches!(read_key(to), Ok(Some(there)) if there == key);
        if !there {
            if to.symlink_metadata().is_ok() {
                return Err(failed("create", to)(ErrorKind::AlreadyExists.into()));
            }
            let staging = beside(to, &hex(&random::<4>()?));
            write_file(&staging, &key, true)?;
            fs::rename(&staging, to).map_err(|source| {
                let _ = fs::remove_file(&staging);
                Error::WriteFile { attempted: "rename", path: to.into(), source }
            })?;
        }
        sync(parent(to))?;
        fs::remove_file(&from).map_err(failed("remove", &from))?;
        sync(from.parent().unwrap_or(&self.store.path))
    }

    /// Writes a generated passphrase beside the store, or reads the one that a run before left there.
    pub(crate) fn generated_passphrase(&self) -> Result<Passphrase> {
        let path = self.store.passphrase_path();
        if path.symlink_metadata().is_err() {
            let passphrase = Passphrase::generate()?;
            let line = Zeroizing::new(format!("{}\n", passphrase.expose()));
            replace_file(&path, line.as_bytes())?;
        }
        self.store.passphrase(&PassphraseSource::File(path))
    }

    /// Appends to the ledger, and does not return before it is on the disk.
    pub(crate) fn record(&self, events: &[Event]) -> Result<()> {
        let path = self.store.ledger_path();
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&path)
            .map_err(failed("create", &path))?;
        let length = file.metadata().map_err(failed("read", &path))?.len();
        let whole = whole_lines(&mut file, length).map_err(failed("read", &path))?;
        if length - whole > LONGEST_FILE {
            let (origin, why) = (path.display().to_string(), "its last line has no end".into());
            return Err(Error::Parse { origin, what: "ledger", why });
        }
        if whole < length {
            // A killed run left half a line; what it was about was never published.
            file.set_len(whole).map_err(failed("write", &path))?;
        }
        let mut lines = String::new();
        for event in events {
            let line = ledger::line(event).map_err(|error| failed("write", &path)(error.into()))?;
            lines.push_str(&line);
        }
        let written = file.write_all(lines.as_bytes()).and_then(|()| file.sync_all());
        if let Err(source) = written {
            // Half a line would be dropped by the next run; take it back now where the disk allows.
            let _ = file.set_len(whole);
            return Err(Error::WriteFile { attempted: "write", path, source });
        }
        if length == 0 {
            sync(&self.store.path)?;
        }
        Ok(())
    }

    /// Publishes pairs: all files on the disk first, then one rename each.
    pub(crate) fn publish(&self, pairs: &[NewPair]) -> Result<()> {
        let certificates = self.store.path.join("certificates");
        let lock = self.store.path.join("lock");
        if self.file.metadata().map_err(failed("read", &lock))?.len() > 0 {
            for label in self.store.labels()? {
                self.sweep(&certificates.join(label))?;
            }
        }
        self.file.set_len(1).map_err(failed("write", &lock))?;
        if make_directory(&certificates)? {
            sync(&self.store.path)?;
        }
        // Opened before anything is written: `syncfs` reports the failures since then and no others.
        let batch = match pairs.len() >= BATCH {
            true => Some(File::open(&certificates).map_err(failed("sync", &certificates))?),
            false => None,
        };
        let sync_all = |file_system: &File| {
            rustix::fs::syncfs(file_system).map_err(|error| failed("sync", &certificates)(error.into()))
        };
        for pair in pairs {
            let directory = certificates.join(&pair.label);
            make_directory(&directory)?;
            self.sweep(&directory)?;
            let generation = directory.join(hex(pair.serial.as_bytes()));
            remove_tree(&generation)?;
            make_directory(&generation)?;
            write_file(&generation.join("cert.pem"), pair.chain.as_bytes(), batch.is_none())?;
            write_file(&generation.join("key.pem"), pair.key.as_bytes(), batch.is_none())?;
            if batch.is_none() {
                sync(&generation)?;
                sync(&directory)?;
            }
        }
        match &batch {
            Some(file_system) => sync_all(file_system)?,
            None => sync(&certificates)?,
        }
        for pair in pairs {
            let directory = certificates.join(&pair.label);
            let current = directory.join("current");
            if let Some(old) = read_link(&current)? {
                link(&old, &directory.join("previous"))?;
            }
            link(&hex(pair.serial.as_bytes()), &current)?;
            if batch.is_none() {
                sync(&directory)?;
            }
        }
        if let Some(file_system) = &batch {
            sync_all(file_system)?;
        }
        pairs.iter().try_for_each(|pair| self.sweep(&certificates.join(&pair.label)))?;
        self.file.set_len(0).map_err(failed("write", &lock))
    }

    /// Removes the generations of a pair that are neither current nor previous, and what a killed run left.
    fn sweep(&self, directory: &Path) -> Result<()> {
        let kept = [read_link(&directory.join("current"))?, read_link(&directory.join("previous"))?];
        for entry in list(directory)? {
            let kept =
                matches!(entry.as_str(), "current" | "previous") || kept.iter().flatten().any(|name| *name == entry);
            if !kept {
                remove_tree(&directory.join(entry))?;
            }
        }
        Ok(())
    }
}

/// Reads a regular file, of at most `limit` bytes; `None` when it is not there.
fn read_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    Ok(read_into(path, limit, &mut bytes)?.map(|_| bytes))
}

/// Reads a file that nobody but its owner may read; `None` when it is not there.
fn read_key(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    match read_into(path, LONGEST_FILE, &mut bytes)? {
        Some(mode) if mode & 0o077 != 0 => Err(Error::OpenKey { path: path.into(), mode: mode & 0o7777 }),
        other => Ok(other.map(|_| bytes)),
    }
}

/// Reads into an empty buffer of the caller, who may want to wipe it. Gives the file's mode.
fn read_into(path: &Path, limit: u64, bytes: &mut Vec<u8>) -> Result<Option<u32>> {
    let failed = |source| Error::ReadFile { path: path.into(), source };
    // Without O_NONBLOCK a FIFO in the file's place would hang the run.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")));
    }
    if metadata.len() > limit {
        let why = format!("it has {} bytes where at most {limit} are sensible", metadata.len());
        return Err(failed(std::io::Error::new(ErrorKind::FileTooLarge, why)));
    }
    bytes.reserve_exact(metadata.len() as usize + 1);
    file.take(limit).read_to_end(bytes).map_err(failed)?;
    Ok(Some(metadata.mode()))
}

/// Writes a file that is not there yet, mode 0600.
fn write_file(path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed("create", path))?;
    let written = file.write_all(bytes).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
    written.map_err(|source| {
        let _ = fs::remove_file(path);
        Error::WriteFile { attempted: "write", path: path.into(), source }
    })
}

/// Replaces a file by one rename.
fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let staging = beside(path, "new");
    remove_tree(&staging)?;
    write_file(&staging, bytes, true)?;
    fs::rename(&staging, path).map_err(failed("rename", path))?;
    sync(parent(path))
}

/// Makes a symlink, replacing one that is there by one rename.
fn link(target: &str, path: &Path) -> Result<()> {
    let staging = beside(path, &hex(&random::<4>()?));
    symlink(target, &staging).map_err(failed("link", &staging))?;
    fs::rename(&staging, path).map_err(|source| {
        let _ = fs::remove_file(&staging);
        Error::WriteFile { attempted: "rename", path: path.into(), source }
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{suffix}"));
    name.into()
}

fn read_link(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        // A generation is one name; anything else would lead out of the store.
        Ok(target) => match target.to_str().filter(|name| !name.contains('/') && !matches!(*name, "" | "." | "..")) {
            Some(name) => Ok(Some(name.into())),
            None => {
                let why = format!("it leads to {}, which is no generation beside it", target.display());
                Err(Error::ReadFile { path: path.into(), source: std::io::Error::new(ErrorKind::InvalidData, why) })
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::ReadFile { path: path.into(), source }),
    }
}

fn list(path: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::ReadFile { path: path.into(), source };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Makes a directory that only its owner may enter; says whether it was missing.
fn make_directory(path: &Path) -> Result<bool> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        other => other.map(|()| true).map_err(failed("create", path)),
    }
}

/// Makes the directories that lead to a store, which others may enter but not change whatever the umask is.
fn make_parents(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_parents(parent(path))?;
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(failed("create", path)(error)),
        Ok(()) => sync(parent(path)),
    }
}

/// The directory of a path, the current one for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// The flag for files that are appended to or held: a link there would lead the writing out of the store.
fn no_follow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn remove_tree(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.map_err(failed("remove", path))
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync", directory))
}

/// How many bytes of the file are whole lines.
fn whole_lines(file: &mut File, length: u64) -> std::io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    let mut end = length;
    let mut buffer = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let part = &mut buffer[..(end - start) as usize];
        file.read_exact_at(part, start)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn missing(path: &Path) -> Error {
    Error::ReadFile { path: path.into(), source: ErrorKind::NotFound.into() }
}

fn failed(attempted: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::WriteFile { attempted, path: path.clone(), source }
}
