//! A guest's root file system as a directory: every path is resolved by the kernel below that directory.

use std::ffi::CString;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use aws_lc_rs::digest::{self, SHA256};
use rustix::fs::{AtFlags, Dir, FileType, Gid, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::path::Arg;

use super::{File, Observed, ObservedFile, Transport};
use crate::command::{Command, Output};
use crate::error::{Error, Result};
use crate::guest::{GuestPath, Id, Mode};

/// The longest file whose digest is taken.
pub(super) const OBSERVED_LIMIT: u64 = 64 << 20;

/// The longest `/etc/passwd` or `/etc/group` that is read.
const NAMES_LIMIT: usize = 4 << 20;

/// The most names of one directory that are read; the guest decides how many there are.
const ENTRIES_LIMIT: usize = 100_000;

/// How deep a tree that is removed may be: one descriptor is open for each level.
const DEPTH_LIMIT: usize = 64;

/// How files that are not yet in place begin, followed by 16 hexadecimal digits.
const TEMPORARY: &str = ".phoenix-tmp-";

/// A directory that holds a guest's root file system: a container at rest, a mounted image, an installation under test.
///
/// Absolute symlinks and `..` are resolved inside the directory, and magic links not at all, so nothing in the guest leads
/// an operation outside it (`openat2` with `RESOLVE_IN_ROOT`, Linux 5.6). Owners are stored as they are given: mount
/// an unprivileged container's root with its id mapping, or reach it through `pct`.
///
/// One caller at a time writes to a guest; the next one removes what a killed one left under a temporary name.
///
/// ```
/// use phoenix_guest::{File, Mode, Owner, Rootfs, Transport};
///
/// # let directory = tempfile::tempdir()?;
/// let guest = Rootfs::new("101", directory.path())?;
/// let path = "/etc/motd".parse()?;
/// guest.put(&File { path, bytes: b"hello".into(), mode: Mode::CERTIFICATE, owner: Owner::ROOT })?;
/// assert_eq!(std::fs::read(directory.path().join("etc/motd"))?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Rootfs {
    pub(super) name: String,
    pub(super) root: PathBuf,
}

impl Rootfs {
    /// The guest of this name whose root file system is the directory `root`.
    ///
    /// # Errors
    /// [`Error::File`] when `root` is not a directory that can be opened.
    pub fn new(name: impl Into<String>, root: impl Into<PathBuf>) -> Result<Self> {
        let rootfs = Self { name: name.into(), root: root.into() };
        rootfs.open("/", OFlags::PATH | OFlags::DIRECTORY).map_err(|error| Error::File {
            guest: rootfs.name.clone(),
            attempted: "open",
            path: "/".into(),
            source: io::Error::new(error.kind(), format!("{}: {error}", rootfs.root.display())),
        })?;
        Ok(rootfs)
    }

    /// Opens what a path of the guest leads to. The root is opened anew each time, so a transport pins no mount.
    fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let root = rustix::fs::open(&self.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, NO_MODE)?;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // The kernel gives up, rather than risk an escape, when a rename anywhere races with a `..` of the path.
        for _ in 0..256 {
            match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, NO_MODE, inside) {
                Err(Errno::AGAIN) => {}
                opened => return Ok(opened?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The directory that holds a path, and the path's name in it.
    fn place<'p>(&self, path: &'p GuestPath) -> io::Result<(OwnedFd, &'p str)> {
        match path.file_name() {
            "" => Err(io::Error::new(ErrorKind::InvalidInput, "the root of the guest itself")),
            name => Ok((self.open(path.parent().as_str(), OFlags::PATH | OFlags::DIRECTORY)?, name)),
        }
    }

    /// Makes a directory and those above it, as far as they are missing: each one durable before the next.
    fn make_directory(&self, path: &GuestPath) -> io::Result<()> {
        match self.open(path.as_str(), OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if error.kind() == ErrorKind::NotFound && path.as_str() != "/" => {}
            opened => return opened.map(drop),
        }
        self.make_directory(&path.parent())?;
        let (above, name) = self.place(path)?;
        rustix::fs::mkdirat(&above, name, rustix::fs::Mode::from_raw_mode(0o755))?;
        let made = open_directory(&above, name, ResolveFlags::empty())?;
        if self.sets_owners() {
            rustix::fs::fchown(&made, Some(Uid::ROOT), Some(Gid::ROOT))?;
        }
        // The caller's umask had a say in mkdir.
        rustix::fs::fchmod(&made, rustix::fs::Mode::from_raw_mode(0o755))?;
        rustix::fs::fsync(&made)?;
        sync(&above)
    }

    /// Puts what `make` makes under a temporary name in the place of a path, by one rename.
    fn replace(&self, path: &GuestPath, make: impl FnOnce(&OwnedFd, &str) -> io::Result<()>) -> io::Result<()> {
        self.make_directory(&path.parent())?;
        let (directory, name) = self.place(path)?;
        sweep(&directory);
        let temporary = temporary_name()?;
        let renamed = make(&directory, &temporary)
            .and_then(|()| Ok(rustix::fs::renameat(&directory, &temporary, &directory, name)?));
        if renamed.is_err() {
            let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
        }
        renamed?;
        sync(&directory)
    }

    fn write(&self, file: &File) -> io::Result<(u32, u32)> {
        let (user, group) = match self.sets_owners() {
            true => (self.users()?.number(&file.owner.user)?, self.groups()?.number(&file.owner.group)?),
            false => (0, 0),
        };
        self.replace(&file.path, |directory, temporary| {
            let exclusive = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(directory, temporary, exclusive, rustix::fs::Mode::from_raw_mode(0o600))?;
            if self.sets_owners() {
                rustix::fs::fchown(&opened, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
            }
            rustix::fs::fchmod(&opened, rustix::fs::Mode::from_raw_mode(file.mode.bits()))?;
            let mut opened = std::fs::File::from(opened);
            opened.write_all(&file.bytes)?;
            opened.sync_all()
        })?;
        Ok((user, group))
    }

    /// The regular file that a path leads to, opened for reading; `None` when nothing is there.
    fn open_file(&self, path: &str) -> io::Result<Option<(std::fs::File, Stat)>> {
        let Some(seen) = present(self.open(path, OFlags::PATH))? else { return Ok(None) };
        let stat = rustix::fs::fstat(&seen)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file")),
        }
        // What was judged is what is opened: opening by name again could meet a FIFO or a device in its place.
        let again = format!("/proc/self/fd/{}", seen.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(Some((rustix::fs::open(again, flags, NO_MODE)?.into(), stat)))
    }

    fn read(&self, path: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let Some((file, _)) = self.open_file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit { Err(too_large(limit as u64)) } else { Ok(Some(bytes)) }
    }

    fn users(&self) -> io::Result<Names> {
        self.names("user", "/etc/passwd")
    }

    fn groups(&self) -> io::Result<Names> {
        self.names("group", "/etc/group")
    }

    fn names(&self, kind: &'static str, file: &str) -> io::Result<Names> {
        let read = self.read(file, NAMES_LIMIT);
        let bytes = read.map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
        Ok(Names::parse(kind, &bytes.unwrap_or_default()))
    }

    fn observe_one(&self, path: &GuestPath, users: &Names, groups: &Names) -> io::Result<Observed> {
        if path.as_str() == "/" {
            return Ok(Observed { directory: true, ..Observed::MISSING });
        }
        let Some((directory, name)) = present(self.place(path))? else { return Ok(Observed::MISSING) };
        let seen = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let Some(stat) = present(seen.map_err(Into::into))? else { return Ok(Observed::MISSING) };
        let link = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => None,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&directory, name, Vec::new())?;
                Some(target.to_string_lossy().into_owned())
            }
            kind => return Ok(Observed { directory: kind == FileType::Directory, ..Observed::MISSING }),
        };
        let opened = match self.open_file(path.as_str()) {
            // A symlink to a directory, to a device or to itself is a symlink that leads to no file.
            Err(_) if link.is_some() => None,
            opened => opened?,
        };
        let Some((file, stat)) = opened else { return Ok(Observed { link, ..Observed::MISSING }) };
        let (digest, length) = digest_of(file)?;
        let file = ObservedFile {
            digest,
            length,
            mode: Mode::of(stat.st_mode),
            user: (stat.st_uid, users.name(stat.st_uid)),
            group: (stat.st_gid, groups.name(stat.st_gid)),
        };
        Ok(Observed { link, file: Some(file), directory: false })
    }

    fn remove_at(&self, path: &GuestPath) -> io::Result<()> {
        let Some((directory, name)) = present(self.place(path))? else { return Ok(()) };
        match remove_tree(&directory, name, DEPTH_LIMIT) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync(&directory)),
        }
    }

    /// An error with what was attempted on which path.
    fn failed(&self, attempted: &'static str, path: &GuestPath) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::File { guest: self.name.clone(), attempted, path: path.to_string(), source }
    }
}

impl Transport for Rootfs {
    fn guest(&self) -> &str {
        &self.name
    }

    fn exec(&self, _: &Command) -> Result<Output> {
        Err(Error::Unsupported { guest: self.name.clone(), what: "a root file system at rest runs no programs".into() })
    }

    fn put(&self, file: &File) -> Result<()> {
        let owner = self.write(file).map_err(self.failed("write", &file.path))?;
        let found =
            self.observe_one(&file.path, &Names::NONE, &Names::NONE).map_err(self.failed("read back", &file.path))?;
        let mut expected = ObservedFile {
            digest: sha256(&file.bytes),
            length: file.bytes.len() as u64,
            mode: file.mode,
            user: (owner.0, None),
            group: (owner.1, None),
        };
        if let (Some(found), false) = (&found.file, self.sets_owners()) {
            (expected.user, expected.group) = (found.user.clone(), found.group.clone());
        }
        let expected = Observed { file: Some(expected), ..Observed::MISSING };
        read_back(&self.name, &file.path, &expected, &found)
    }

    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>> {
        self.read(path.as_str(), limit).map_err(self.failed("read", path))
    }

    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>> {
        let users = self.users().map_err(self.failed("observe", &GuestPath::root()))?;
        let groups = self.groups().map_err(self.failed("observe", &GuestPath::root()))?;
        paths.iter().map(|path| self.observe_one(path, &users, &groups).map_err(self.failed("observe", path))).collect()
    }

    fn link(&self, path: &GuestPath, target: &str) -> Result<()> {
        self.replace(path, |directory, temporary| Ok(rustix::fs::symlinkat(target, directory, temporary)?))
            .map_err(self.failed("link", path))?;
        let found = self.place(path).and_then(|(directory, name)| {
            Ok(rustix::fs::readlinkat(directory, name, Vec::new())?.to_string_lossy().into_owned())
        });
        let found = Observed { link: Some(found.map_err(self.failed("read back", path))?), ..Observed::MISSING };
        let expected = Observed { link: Some(target.into()), ..Observed::MISSING };
        read_back(&self.name, path, &expected, &found)
    }

    fn remove(&self, path: &GuestPath) -> Result<()> {
        self.remove_at(path).map_err(self.failed("remove", path))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<String>> {
        let opened = match self.open(path.as_str(), OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened.map_err(self.failed("list", path))?,
        };
        let names = entries(&opened).map_err(self.failed("list", path))?;
        let mut names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| path.join(name).is_ok());
        names.sort();
        Ok(names)
    }

    fn runs_programs(&self) -> bool {
        false
    }

    fn sets_owners(&self) -> bool {
        rustix::process::geteuid().is_root()
    }
}

impl fmt::Debug for Rootfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rootfs({} at {})", self.name, self.root.display())
    }
}

/// The users or the groups of a guest, in the order of its file, where the first entry of a number names it.
#[derive(Clone)]
pub(super) struct Names {
    kind: &'static str,
    entries: Vec<(String, u32)>,
}

impl Names {
    pub(super) const NONE: Self = Self { kind: "user", entries: Vec::new() };

    /// What passwd(5) and group(5) have in common. Lines that are neither are the guest's own affair.
    pub(super) fn parse(kind: &'static str, bytes: &[u8]) -> Self {
        let entries = String::from_utf8_lossy(bytes)
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                let (name, number) = (fields.next()?, fields.nth(1)?);
                // The same forms as an inventory's: a name that control characters are in reaches no report.
                match (name.parse(), number.parse()) {
                    (Ok(Id::Name(name)), Ok(Id::Number(number))) => Some((name, number)),
                    _ => None,
                }
            })
            .collect();
        Self { kind, entries }
    }

    pub(super) fn add(&mut self, name: &str, number: u32) {
        self.entries.push((name.into(), number));
    }

    pub(super) fn number(&self, id: &Id) -> io::Result<u32> {
        match id {
            Id::Number(number) => Ok(*number),
            Id::Name(wanted) => {
                let found = self.entries.iter().find(|(name, _)| name == wanted);
                found.map(|(_, number)| *number).ok_or_else(|| {
                    io::Error::new(ErrorKind::InvalidInput, format!("the guest has no {} {wanted:?}", self.kind))
                })
            }
        }
    }

    pub(super) fn name(&self, number: u32) -> Option<String> {
        self.entries.iter().find(|(_, entry)| *entry == number).map(|(name, _)| name.clone())
    }
}

/// Whether a place holds what was put there.
pub(super) fn read_back(guest: &str, path: &GuestPath, expected: &Observed, found: &Observed) -> Result<()> {
    let told = |observed: &Observed| match observed {
        Observed { link: Some(target), .. } => format!("a symlink to {target:?}"),
        Observed { directory: true, .. } => "a directory".into(),
        Observed { file: Some(file), .. } => {
            let digest: String = file.digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            let (user, group) = (file.user.0, file.group.0);
            format!("{} bytes (SHA-256 {digest}…), mode {}, owner {user}:{group}", file.length, file.mode)
        }
        Observed { file: None, .. } => "nothing".into(),
    };
    if expected == found {
        return Ok(());
    }
    Err(Error::ReadBack { guest: guest.into(), path: path.to_string(), expected: told(expected), found: told(found) })
}

/// SHA-256 of bytes.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(digest::digest(&SHA256, bytes).as_ref());
    digest
}

pub(super) fn too_large(limit: u64) -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, format!("longer than {limit} bytes"))
}

const NO_MODE: rustix::fs::Mode = rustix::fs::Mode::empty();

/// Nothing where nothing is: a name that is missing, or below something that is no directory.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        result => result.map(Some),
    }
}

fn digest_of(file: std::fs::File) -> io::Result<([u8; 32], u64)> {
    let (mut context, mut length, mut buffer) = (digest::Context::new(&SHA256), 0, vec![0; 64 << 10]);
    // Counted while reading: the length that stat tells may grow, or be 0 as in /proc.
    let mut file = file.take(OBSERVED_LIMIT + 1);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                context.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
    if length > OBSERVED_LIMIT {
        return Err(too_large(OBSERVED_LIMIT));
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok((digest, length))
}

/// Opens a directory by its name in another one, never through a symlink.
fn open_directory(above: &OwnedFd, name: impl Arg, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(above, name, flags, NO_MODE, resolve | ResolveFlags::BENEATH)?)
}

/// The names in a directory, as the guest wrote them.
fn entries(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for (count, entry) in Dir::read_from(directory)?.enumerate() {
        if count > ENTRIES_LIMIT {
            return Err(io::Error::other(format!("a directory with more than {ENTRIES_LIMIT} names")));
        }
        match entry?.file_name() {
            name if name == c"." || name == c".." => {}
            name => names.push(name.into()),
        }
    }
    Ok(names)
}

/// Makes a rename or a removal in a directory durable.
fn sync(directory: &OwnedFd) -> io::Result<()> {
    // A descriptor that only names a directory cannot be synced.
    Ok(rustix::fs::fsync(open_directory(directory, ".", ResolveFlags::empty())?)?)
}

pub(super) fn temporary_name() -> io::Result<String> {
    Ok(format!("{TEMPORARY}{}", nonce()?))
}

/// 16 hexadecimal digits that nobody can foresee.
pub(super) fn nonce() -> io::Result<String> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no random bytes"))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(random)))
}

/// Removes what killed runs left under temporary names. Only an attempt: what stays is in nobody's way.
fn sweep(directory: &OwnedFd) {
    let opened = open_directory(directory, ".", ResolveFlags::empty());
    for name in opened.and_then(|opened| entries(&opened)).unwrap_or_default() {
        let random = name.to_bytes().strip_prefix(TEMPORARY.as_bytes()).unwrap_or_default();
        if random.len() == 16 && random.iter().all(u8::is_ascii_hexdigit) {
            let _ = rustix::fs::unlinkat(directory, &name, AtFlags::empty());
        }
    }
}

/// Removes a name and all below it, through descriptors alone.
fn remove_tree(directory: &OwnedFd, name: impl Arg + Copy, depth: usize) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        unlinked => return Ok(unlinked?),
    }
    if depth == 0 {
        return Err(io::Error::other(format!("more than {DEPTH_LIMIT} directories deep")));
    }
    // What is mounted in the tree belongs to somebody else.
    let opened = open_directory(directory, name, ResolveFlags::NO_XDEV)?;
    for entry in entries(&opened)? {
        remove_tree(&opened, entry.as_c_str(), depth - 1)?;
    }
    Ok(rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?)
}
