//! How a guest is reached: one trait, one file for each way.

use std::fmt;

use crate::command::{Command, Output};
use crate::error::Result;
use crate::guest::{GuestPath, Id, Mode, Owner};

mod local;
mod memory;
mod pct;
mod rootfs;
mod shell;

pub use local::Local;
pub use memory::Memory;
pub use pct::{ContainerState, Pct};
pub use rootfs::Rootfs;

/// A file to place in a guest. `Debug` shows its length, never its bytes: it may be a key.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Where it goes. Missing directories above it are made, mode 0755, owned by root.
    pub path: GuestPath,
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Its permission bits, set before any byte is written.
    pub mode: Mode,
    /// Its owner, set before any byte is written.
    pub owner: Owner,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({} {} {} {} bytes)", self.path, self.mode, self.owner, self.bytes.len())
    }
}

/// What stands at a path, without following a symlink in its last component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// What is there itself: for a symlink, its target as text.
    pub link: Option<String>,
    /// The regular file that is there, or that the symlink leads to inside the guest.
    pub file: Option<ObservedFile>,
    /// Whether a directory is there.
    pub directory: bool,
}

impl Observed {
    /// Nothing at all.
    pub const MISSING: Self = Self { link: None, file: None, directory: false };
}

/// A regular file as the guest holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedFile {
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
    /// Its length in bytes.
    pub length: u64,
    /// Its permission bits.
    pub mode: Mode,
    /// Owning user: number, and name where the guest has one.
    pub user: (u32, Option<String>),
    /// Owning group: number, and name where the guest has one.
    pub group: (u32, Option<String>),
}

impl ObservedFile {
    /// Whether the file is owned as wanted: numbers compare with numbers, names with names.
    pub fn owned_by(&self, owner: &Owner) -> bool {
        let is = |(number, name): &(u32, Option<String>), id: &Id| match id {
            Id::Number(wanted) => number == wanted,
            Id::Name(wanted) => name.as_ref() == Some(wanted),
        };
        is(&self.user, &owner.user) && is(&self.group, &owner.group)
    }
}

/// A way to reach one guest.
///
/// Every implementation passes `tests/contract.rs`. A path is resolved inside the guest: no symlink
/// there leads an operation outside it.
pub trait Transport: Send + Sync {
    /// The guest's name for reports and errors, such as `101` or `host`.
    fn guest(&self) -> &str;

    /// Runs a program and waits for it, at most until its deadline.
    ///
    /// # Errors
    /// [`Error::Deadline`](crate::Error::Deadline), [`Error::Unsupported`](crate::Error::Unsupported) where no program can run,
    /// [`Error::File`](crate::Error::File) when it cannot be started. A status that is not zero is no error here.
    fn exec(&self, command: &Command) -> Result<Output>;

    /// Places a file: temporary name in the same directory, mode and owner before the bytes, `fsync`, rename, read back.
    ///
    /// What stood there before stays whole until the rename. A symlink in the last component is replaced, not followed.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), or [`Error::ReadBack`](crate::Error::ReadBack) when digest, mode or owner are not what was asked for.
    fn put(&self, file: &File) -> Result<()>;

    /// The bytes of a regular file, symlinks followed inside the guest; `None` when nothing is there.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), also for a file longer than `limit` bytes and for anything that is not a regular file.
    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>>;

    /// What stands at each path, in the order asked, in one trip to the guest.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) when the guest cannot be read at all.
    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>>;

    /// Makes `path` a symlink with this target text, replacing what is there (a file or symlink) by one rename.
    ///
    /// Missing directories above it are made, as for a file.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File); its source says `Unsupported` or `PermissionDenied` where the file system has no symlinks.
    fn link(&self, path: &GuestPath, target: &str) -> Result<()>;

    /// Removes a file, a symlink (not what it leads to) or a whole directory tree; nothing there is no error.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File).
    fn remove(&self, path: &GuestPath) -> Result<()>;

    /// The names in a directory, sorted; empty when it is not there.
    ///
    /// Names that no path can hold (control characters, not UTF-8) are left out.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File).
    fn list(&self, path: &GuestPath) -> Result<Vec<String>>;

    /// Whether programs run in this guest.
    fn runs_programs(&self) -> bool;

    /// Whether owners can be set: not on a [`Rootfs`] of an ordinary user.
    fn sets_owners(&self) -> bool;
}
