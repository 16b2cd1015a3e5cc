//! Guests to try an inventory on: each one a directory with a small but real Debian root file system.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use phoenix_pki::{RootKey, Store};

use crate::converge::Reached;
use crate::error::{Error, Result};
use crate::guest::{GuestPath, Id};
use crate::inventory::{GuestEntry, Inventory};
use crate::transport::{Memory, Rootfs};

const OS_RELEASE: &str = "\
PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"
NAME=\"Debian GNU/Linux\"
VERSION_ID=\"12\"
VERSION=\"12 (bookworm)\"
VERSION_CODENAME=bookworm
ID=debian
";

const USERS: [(&str, u32); 2] = [("root", 0), ("www-data", 33)];

/// Two roots of nobody: what a distribution's own set is to a guest that is only tried.
const PUBLIC_ROOTS: &str = include_str!("sandbox.crt");

/// A directory that holds a store and guests; nothing outside it is touched.
pub(super) struct Sandbox {
    directory: PathBuf,
    dry_run: bool,
    layouts: Vec<(String, Layout)>,
}

/// What a guest's root file system begins with.
struct Layout {
    files: Vec<(GuestPath, String)>,
    directories: BTreeSet<GuestPath>,
    users: Vec<(String, u32)>,
}

impl Sandbox {
    /// Moves an inventory into the sandbox: its store too, and the passphrase of its root key.
    pub(super) fn of(directory: &Path, inventory: &mut Inventory, dry_run: bool) -> Result<Self> {
        let store = Store::new(directory.join("store"));
        let taken = [store.path().to_path_buf(), store.passphrase_path()];
        if let Some(guest) = inventory.guests.iter().find(|guest| taken.contains(&directory.join(guest.id.to_string())))
        {
            return Err(Error::Unsupported {
                guest: guest.id.to_string(),
                what: "in a sandbox that name is the store's".into(),
            });
        }
        inventory.authority.store = store.path().to_path_buf();
        if inventory.authority.params.root_key != RootKey::Plain {
            inventory.authority.params.root_key = RootKey::Generated;
        }
        let layouts = inventory.guests.iter().map(|guest| Ok((guest.id.to_string(), Layout::of(inventory, guest)?)));
        Ok(Self { directory: directory.into(), dry_run, layouts: layouts.collect::<Result<_>>()? })
    }

    /// The guest's directory, laid out when there is none. A dry run lays it out in memory.
    pub(super) fn reach(&self, entry: &GuestEntry) -> Result<Reached> {
        let id = entry.id.to_string();
        let root = self.directory.join(&id);
        let layout = self.layouts.iter().find(|(other, _)| *other == id).map(|(_, layout)| layout);
        let absent = root.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if let (true, Some(layout)) = (absent, layout) {
            if self.dry_run {
                return Ok(Reached::Ready(Box::new(layout.in_memory(&id))));
            }
            layout.write(&self.directory.join(format!(".{id}.new")), &root).map_err(|source| Error::File {
                guest: id.clone(),
                attempted: "lay out",
                path: "/".into(),
                source,
            })?;
        }
        Ok(Reached::Ready(Box::new(Rootfs::new(id, root)?)))
    }
}

impl Layout {
    fn of(inventory: &Inventory, guest: &GuestEntry) -> Result<Self> {
        let deliveries = inventory.certificates.iter().flat_map(|certificate| &certificate.deliver);
        let placed: Vec<_> = deliveries
            .filter(|delivery| delivery.guest == guest.id)
            .flat_map(|delivery| delivery.placement.files().map(|(_, placed)| placed))
            .collect();
        let mut users: Vec<(String, u32)> = USERS.map(|(name, number)| (name.into(), number)).into();
        for id in placed.iter().flat_map(|placed| [&placed.owner.user, &placed.owner.group]) {
            if let Id::Name(name) = id
                && !users.iter().any(|(known, _)| known == name)
            {
                users.push((name.clone(), 1000 + users.len() as u32));
            }
        }
        let passwd = users.iter().map(|(name, id)| format!("{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n"));
        let group = users.iter().map(|(name, id)| format!("{name}:x:{id}:\n"));
        let files = [
            ("/etc/os-release", OS_RELEASE.into()),
            ("/etc/passwd", passwd.collect()),
            ("/etc/group", group.collect()),
            ("/etc/ssl/certs/ca-certificates.crt", PUBLIC_ROOTS.into()),
        ];
        let mut directories: BTreeSet<GuestPath> = placed.iter().map(|placed| placed.path.parent()).collect();
        directories.insert("/usr/local/share/ca-certificates".parse()?);
        let files = files.into_iter().map(|(path, text): (&str, String)| Ok((path.parse()?, text)));
        Ok(Self { files: files.collect::<Result<_>>()?, directories, users })
    }

    fn in_memory(&self, id: &str) -> Memory {
        let guest = self.users.iter().fold(Memory::new(id), |guest, (name, number)| guest.with_user(name, *number));
        let guest = self.directories.iter().fold(guest, |guest, path| guest.with_directory(path.clone()));
        self.files.iter().fold(guest, |guest, (path, text)| guest.with_file(path.clone(), text.as_str()))
    }

    /// Writes it all below `staging`, then renames that to `root`: a guest is there whole or not at all.
    fn write(&self, staging: &Path, root: &Path) -> io::Result<()> {
        match fs::remove_dir_all(staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let inside = |path: &GuestPath| staging.join(path.as_str().trim_start_matches('/'));
        for directory in self.directories.iter().cloned().chain(self.files.iter().map(|(path, _)| path.parent())) {
            fs::create_dir_all(inside(&directory))?;
        }
        for (path, text) in &self.files {
            fs::write(inside(path), text)?;
        }
        fs::rename(staging, root)
    }
}
