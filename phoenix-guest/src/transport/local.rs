//! The hypervisor itself as a guest: its own files, its own programs.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::{File, Observed, Rootfs, Transport};
use crate::command::{Command, OUTPUT_LIMIT, Output};
use crate::error::{Error, Result};
use crate::guest::GuestPath;

/// How long a killed program has to disappear, before it is left to the kernel.
const REAPING: Duration = Duration::from_secs(2);

/// The machine that this program runs on.
#[derive(Clone, Debug)]
pub struct Local {
    files: Rootfs,
}

impl Local {
    /// This machine, called `host`.
    pub fn new() -> Self {
        Self::named("host")
    }

    /// This machine under another name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { files: Rootfs { name: name.into(), root: "/".into() } }
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for Local {
    fn guest(&self) -> &str {
        self.files.guest()
    }

    fn exec(&self, command: &Command) -> Result<Output> {
        run(self.guest(), command, OUTPUT_LIMIT)
    }

    fn put(&self, file: &File) -> Result<()> {
        self.files.put(file)
    }

    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>> {
        self.files.get(path, limit)
    }

    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>> {
        self.files.observe(paths)
    }

    fn link(&self, path: &GuestPath, target: &str) -> Result<()> {
        self.files.link(path, target)
    }

    fn remove(&self, path: &GuestPath) -> Result<()> {
        self.files.remove(path)
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<String>> {
        self.files.list(path)
    }

    fn runs_programs(&self) -> bool {
        true
    }

    fn sets_owners(&self) -> bool {
        self.files.sets_owners()
    }
}

/// Runs a program of this machine, for this guest or for one that the program reaches.
///
/// The program sees a clean environment, `/` as its directory and nothing of this process but its pipes. It leads a process
/// group, which is killed at the deadline. Once it has ended, what it left behind in the background is not waited for.
/// Of each of its streams the first `keep` bytes are kept.
pub(super) fn run(guest: &str, command: &Command, keep: usize) -> Result<Output> {
    let start = Instant::now();
    let failed = |source| Error::File { guest: guest.into(), attempted: "run a program in", path: "/".into(), source };
    let mut child = spawn(command).map_err(failed)?;
    match converse(&mut child, command, keep, start) {
        Ok(Some(output)) => Ok(output),
        ended => {
            end(&mut child);
            match ended {
                Err(error) => Err(failed(error)),
                _ => Err(Error::Deadline {
                    guest: guest.into(),
                    attempted: format!("{:?}", command.argv),
                    limit: command.deadline,
                }),
            }
        }
    }
}

fn spawn(command: &Command) -> io::Result<Child> {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err(io::Error::new(ErrorKind::InvalidInput, "a command without a program"));
    };
    std::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0)
        .stdin(if command.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program:?}: {error}")))
}

/// Feeds a program, and keeps what it says, until it ends; `None` at the deadline.
///
/// One loop rather than a thread for each pipe: a thread that a forgotten descendant keeps waiting could never be ended.
fn converse(child: &mut Child, command: &Command, keep: usize, start: Instant) -> io::Result<Option<Output>> {
    let exit = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut input = child.stdin.take().map(OwnedFd::from);
    let mut stdout = Stream::new(child.stdout.take().map(OwnedFd::from), keep);
    let mut stderr = Stream::new(child.stderr.take().map(OwnedFd::from), keep);
    for pipe in [&input, &stdout.pipe, &stderr.pipe].into_iter().flatten() {
        rustix::fs::fcntl_setfl(pipe, rustix::fs::OFlags::NONBLOCK)?;
    }
    let mut unsent = command.stdin.as_slice();
    loop {
        let left = command.deadline.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        let mut waited = vec![PollFd::new(&exit, PollFlags::IN)];
        waited.extend(input.iter().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        waited.extend([&stdout.pipe, &stderr.pipe].into_iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        wait(&mut waited, left)?;
        let ended = !waited[0].revents().is_empty();
        if let Some(pipe) = &input
            && send(pipe, &mut unsent)?
        {
            input = None;
        }
        // After its end, at most what the pipe holds can be the program's own: one turn reads more than that.
        stdout.receive()?;
        stderr.receive()?;
        if ended {
            break;
        }
    }
    let status = child.wait()?;
    Ok(Some(Output {
        // A status has a code or a signal.
        status: status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
        truncated: stdout.truncated || stderr.truncated,
        stdout: stdout.kept,
        stderr: stderr.kept,
    }))
}

/// Kills a program and all of its process group. It is not yet reaped, so the group's number is still its own.
fn end(child: &mut Child) {
    let leader = Pid::from_child(child);
    let _ = rustix::process::kill_process_group(leader, Signal::KILL);
    // A process that hangs in the kernel does not end: it is not worth waiting for.
    if let Ok(exit) = rustix::process::pidfd_open(leader, PidfdFlags::empty()) {
        let _ = wait(&mut [PollFd::new(&exit, PollFlags::IN)], REAPING);
    }
    let _ = child.try_wait();
}

/// Waits until something is ready, at most this long.
fn wait(waited: &mut [PollFd<'_>], limit: Duration) -> io::Result<()> {
    let hour = Duration::from_secs(3600);
    let limit = Timespec::try_from(limit.min(hour)).map_err(io::Error::other)?;
    match rustix::event::poll(waited, Some(&limit)) {
        Err(Errno::INTR) => Ok(()),
        polled => Ok(polled.map(drop)?),
    }
}

/// Writes what a pipe takes; whether there is no more to write.
fn send(pipe: &OwnedFd, unsent: &mut &[u8]) -> io::Result<bool> {
    while !unsent.is_empty() {
        match rustix::io::write(pipe, unsent) {
            Ok(count) => *unsent = &unsent[count..],
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            // A program need not read what it is given.
            Err(Errno::PIPE) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// A stream of a program's output, of which the beginning is kept.
struct Stream {
    pipe: Option<OwnedFd>,
    kept: Vec<u8>,
    keep: usize,
    truncated: bool,
}

impl Stream {
    fn new(pipe: Option<OwnedFd>, keep: usize) -> Self {
        Self { pipe, kept: Vec::new(), keep, truncated: false }
    }

    /// Reads what is there, but in one turn no more than a bound: a flood must not outlast the deadline.
    fn receive(&mut self) -> io::Result<()> {
        let (mut buffer, mut received) = ([0; 16 << 10], 0);
        while let Some(pipe) = &self.pipe
            && received < OUTPUT_LIMIT
        {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    let kept = count.min(self.keep - self.kept.len());
                    self.kept.extend_from_slice(&buffer[..kept]);
                    self.truncated |= kept < count;
                    received += count;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
