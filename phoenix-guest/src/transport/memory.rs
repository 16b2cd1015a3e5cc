//! A guest that exists in memory alone, for tests.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::rootfs::{Names, sha256, too_large};
use super::{File, Observed, ObservedFile, Transport};
use crate::command::{Command, Output};
use crate::error::{Error, Result};
use crate::guest::{GuestPath, Mode};

/// The most symlinks that one path may lead through, as in Linux.
const LINKS_LIMIT: usize = 40;

type Answer = dyn Fn(&Command, &Memory) -> Output + Send + Sync;

/// A guest in memory: files, symlinks, directories, and programs that answer as the test says.
///
/// ```
/// use phoenix_guest::{Command, Memory, Output, Transport};
///
/// let guest = Memory::new("web")
///     .with_file("/etc/nginx/ssl/nginx.crt".parse()?, "old")
///     .on_exec(|command, _| Output {
///         status: i32::from(command.argv != ["nginx", "-t"]),
///         stdout: Vec::new(),
///         stderr: Vec::new(),
///         truncated: false,
///     });
/// assert_eq!(guest.exec(&Command::new(["nginx", "-t"]))?.status, 0);
/// assert_eq!(guest.commands().len(), 1);
/// assert_eq!(guest.writes(), 0);
/// # Ok::<(), phoenix_guest::Error>(())
/// ```
pub struct Memory {
    name: String,
    state: Mutex<State>,
    answer: Box<Answer>,
}

impl Memory {
    /// An empty guest that knows the users and groups `root`, `www-data` and `nobody`.
    ///
    /// Each program it is asked to run ends with status 0 and without a word.
    pub fn new(name: impl Into<String>) -> Self {
        let names = "root:x:0\nwww-data:x:33\nnobody:x:65534\n".as_bytes();
        let state = State {
            nodes: BTreeMap::new(),
            users: Names::parse("user", names),
            groups: Names::parse("group", names),
            commands: Vec::new(),
            writes: 0,
        };
        let silent =
            |_: &Command, _: &Self| Output { status: 0, stdout: Vec::new(), stderr: Vec::new(), truncated: false };
        Self { name: name.into(), state: Mutex::new(state), answer: Box::new(silent) }
    }

    /// Has programs answer in this way; the guest is passed for what they would do to its files.
    pub fn on_exec(mut self, answer: impl Fn(&Command, &Memory) -> Output + Send + Sync + 'static) -> Self {
        self.answer = Box::new(answer);
        self
    }

    /// Adds a file of root's with mode 0644, and the directories above it. It counts as no write.
    pub fn with_file(self, path: GuestPath, bytes: impl Into<Vec<u8>>) -> Self {
        self.with(path, Node::File { bytes: bytes.into(), mode: Mode::CERTIFICATE, user: 0, group: 0 })
    }

    /// Adds a symlink with this target text, and the directories above it. It counts as no write.
    pub fn with_link(self, path: GuestPath, target: impl Into<String>) -> Self {
        self.with(path, Node::Link(target.into()))
    }

    /// Adds a directory, and those above it. It counts as no write.
    pub fn with_directory(self, path: GuestPath) -> Self {
        self.with(path, Node::Directory)
    }

    /// Adds a user and a group of this name and number.
    pub fn with_user(self, name: &str, number: u32) -> Self {
        self.state().users.add(name, number);
        self.state().groups.add(name, number);
        self
    }

    /// The commands that were run, in their order.
    pub fn commands(&self) -> Vec<Command> {
        self.state().commands.clone()
    }

    /// How many files were put, linked or removed.
    pub fn writes(&self) -> usize {
        self.state().writes
    }

    fn with(self, path: GuestPath, node: Node) -> Self {
        let mut above = path.parent();
        while above.as_str() != "/" {
            self.state().nodes.entry(above.to_string()).or_insert(Node::Directory);
            above = above.parent();
        }
        self.state().nodes.insert(path.to_string(), node);
        self
    }

    /// A test that panicked while it held the lock has failed already.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, attempted: &'static str, path: &GuestPath) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::File { guest: self.name.clone(), attempted, path: path.to_string(), source }
    }
}

impl Transport for Memory {
    fn guest(&self) -> &str {
        &self.name
    }

    fn exec(&self, command: &Command) -> Result<Output> {
        self.state().commands.push(command.clone());
        // Without the lock: an answer may read and write the guest.
        Ok((self.answer)(command, self))
    }

    fn put(&self, file: &File) -> Result<()> {
        self.state().put(file).map_err(self.failed("write", &file.path))
    }

    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>> {
        self.state().get(path, limit).map_err(self.failed("read", path))
    }

    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>> {
        let state = self.state();
        paths.iter().map(|path| state.observe(path).map_err(self.failed("observe", path))).collect()
    }

    fn link(&self, path: &GuestPath, target: &str) -> Result<()> {
        self.state().replace(path, Node::Link(target.into())).map_err(self.failed("link", path))
    }

    fn remove(&self, path: &GuestPath) -> Result<()> {
        self.state().remove(path).map_err(self.failed("remove", path))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<String>> {
        self.state().list(path).map_err(self.failed("list", path))
    }

    fn runs_programs(&self) -> bool {
        true
    }

    fn sets_owners(&self) -> bool {
        true
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "Memory({}: {} names, {} writes)", self.name, state.nodes.len(), state.writes)
    }
}

enum Node {
    Directory,
    Link(String),
    File { bytes: Vec<u8>, mode: Mode, user: u32, group: u32 },
}

struct State {
    /// What stands at each path, symlinks not followed; the root stands by itself.
    nodes: BTreeMap<String, Node>,
    users: Names,
    groups: Names,
    commands: Vec<Command>,
    writes: usize,
}

impl State {
    /// Where a path leads: the key of a node, whether or not there is one; empty for the root.
    fn resolve(&self, path: &str, follow_last: bool) -> io::Result<String> {
        let (mut at, mut links) = (String::new(), 0);
        let mut rest: Vec<String> = path.split('/').rev().map(Into::into).collect();
        while let Some(part) = rest.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    at.truncate(at.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let here = format!("{at}/{part}");
            match self.nodes.get(&here) {
                Some(Node::Link(target)) if follow_last || !rest.is_empty() => {
                    links += 1;
                    if links > LINKS_LIMIT {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with('/') {
                        at.clear();
                    }
                    rest.extend(target.split('/').rev().map(Into::into));
                }
                None if !rest.is_empty() => return Err(Errno::NOENT.into()),
                Some(Node::File { .. }) if !rest.is_empty() => return Err(Errno::NOTDIR.into()),
                _ => at = here,
            }
        }
        Ok(at)
    }

    /// What a path leads to, symlinks followed: its key and its node; `None` when nothing is there.
    fn found(&self, path: &str, follow_last: bool) -> io::Result<Option<(String, &Node)>> {
        match self.resolve(path, follow_last) {
            Ok(at) if at.is_empty() => Ok(Some((at, &Node::Directory))),
            Ok(at) => Ok(self.nodes.get(&at).map(|node| (at, node))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The key of a directory, which is made when it is missing.
    fn directory(&mut self, path: &GuestPath) -> io::Result<String> {
        match self.found(path.as_str(), true)? {
            Some((at, Node::Directory)) => return Ok(at),
            Some(_) => return Err(Errno::NOTDIR.into()),
            None => {}
        }
        let here = format!("{}/{}", self.directory(&path.parent())?, path.file_name());
        if self.nodes.contains_key(&here) {
            return Err(Errno::EXIST.into());
        }
        self.nodes.insert(here.clone(), Node::Directory);
        Ok(here)
    }

    fn put(&mut self, file: &File) -> io::Result<()> {
        let (user, group) = (self.users.number(&file.owner.user)?, self.groups.number(&file.owner.group)?);
        self.replace(&file.path, Node::File { bytes: file.bytes.clone(), mode: file.mode, user, group })
    }

    fn replace(&mut self, path: &GuestPath, node: Node) -> io::Result<()> {
        not_root(path)?;
        if matches!(&node, Node::Link(target) if target.is_empty()) {
            return Err(Errno::NOENT.into());
        }
        let here = format!("{}/{}", self.directory(&path.parent())?, path.file_name());
        if let Some(Node::Directory) = self.nodes.get(&here) {
            return Err(Errno::ISDIR.into());
        }
        self.nodes.insert(here, node);
        self.writes += 1;
        Ok(())
    }

    fn get(&self, path: &GuestPath, limit: usize) -> io::Result<Option<Vec<u8>>> {
        match self.found(path.as_str(), true)? {
            Some((_, Node::File { bytes, .. })) if bytes.len() > limit => Err(too_large(limit as u64)),
            Some((_, Node::File { bytes, .. })) => Ok(Some(bytes.clone())),
            Some(_) => Err(Errno::ISDIR.into()),
            None => Ok(None),
        }
    }

    fn observe(&self, path: &GuestPath) -> io::Result<Observed> {
        let Some((_, node)) = self.found(path.as_str(), false)? else { return Ok(Observed::MISSING) };
        let (link, node) = match node {
            Node::Directory => return Ok(Observed { directory: true, ..Observed::MISSING }),
            Node::File { .. } => (None, Some(node)),
            Node::Link(target) => {
                (Some(target.clone()), self.found(path.as_str(), true).ok().flatten().map(|(_, node)| node))
            }
        };
        let file = match node {
            Some(Node::File { bytes, mode, user, group }) => Some(ObservedFile {
                digest: sha256(bytes),
                length: bytes.len() as u64,
                mode: *mode,
                user: (*user, self.users.name(*user)),
                group: (*group, self.groups.name(*group)),
            }),
            _ => None,
        };
        Ok(Observed { link, file, directory: false })
    }

    fn remove(&mut self, path: &GuestPath) -> io::Result<()> {
        not_root(path)?;
        let Some((at, _)) = self.found(path.as_str(), false)? else { return Ok(()) };
        let below = format!("{at}/");
        self.nodes.retain(|key, _| *key != at && !key.starts_with(&below));
        self.writes += 1;
        Ok(())
    }

    fn list(&self, path: &GuestPath) -> io::Result<Vec<String>> {
        match self.found(path.as_str(), true)? {
            None => Ok(Vec::new()),
            Some((at, Node::Directory)) => {
                let below = format!("{at}/");
                let names = self.nodes.keys().filter_map(|key| key.strip_prefix(&below));
                Ok(names.filter(|name| !name.contains('/')).map(Into::into).collect())
            }
            Some(_) => Err(Errno::NOTDIR.into()),
        }
    }
}

fn not_root(path: &GuestPath) -> io::Result<()> {
    if path.as_str() == "/" {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the root of the guest itself"));
    }
    Ok(())
}
