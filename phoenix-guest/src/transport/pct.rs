//! A running container of a Proxmox VE host, through its program `pct`.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::local::run;
use super::rootfs::nonce;
use super::shell::Shell;
use super::{File, Observed, Transport};
use crate::command::{Command, OUTPUT_LIMIT, Output, printable};
use crate::error::{Error, Result};
use crate::guest::GuestPath;

/// Where Proxmox VE has the program.
const PROGRAM: &str = "/usr/sbin/pct";

/// How long `pct status` may take: it is a Perl program that asks the cluster's file system.
const STATUS_DEADLINE: Duration = Duration::from_secs(30);

/// How much `pct` and `lxc-attach` may say on their own before the marker.
const PREAMBLE: usize = 16 << 10;

/// Runs the command in the container, after a marker on standard error that says that the container was entered.
///
/// The exit statuses 1, 126, 127 and 255 are those of `lxc-attach` as well as of programs; with the marker they are the
/// program's. Killing `pct exec` leaves what it runs running, so the time is bounded in there too, if the guest's
/// `timeout` can (the one of an old busybox takes other options).
const ENTER: &str = r#"
printf '%s\n' "$1" >&2
seconds=$2
shift 2
if timeout -k 1 9 true 2>/dev/null; then timeout -k 1 "$seconds" "$@"; else (exec "$@"); fi
exit "$?"
"#;

/// A container of this Proxmox VE host, privileged or not, entered by `pct exec`.
///
/// Users and groups are the container's own. A container that does not run cannot be entered: see [`Pct::state`].
/// `pct push` and `pct pull` are not used: they end with 0 whatever happened, and do not replace a file at once.
///
/// ```no_run
/// use phoenix_guest::{Command, ContainerState, Pct, Transport};
///
/// let guest = Pct::new(101);
/// if guest.state()? == ContainerState::Running {
///     println!("{:?}", guest.exec(&Command::new(["nginx", "-t"]))?);
/// }
/// # Ok::<(), phoenix_guest::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pct {
    vmid: String,
    program: String,
}

/// What `pct status` says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContainerState {
    /// It can be entered.
    Running,
    /// It is there, and cannot be entered now.
    Stopped,
    /// This host has no container of this number; another one of the cluster may.
    Absent,
}

impl Pct {
    /// The container of this number on this host.
    pub fn new(vmid: u32) -> Self {
        Self { vmid: vmid.to_string(), program: PROGRAM.into() }
    }

    /// The same container through another program than `/usr/sbin/pct`.
    pub fn with_program(self, program: impl Into<String>) -> Self {
        Self { program: program.into(), ..self }
    }

    /// Whether the container runs, is stopped, or is not there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no `pct`, [`Error::File`] for an answer that is none of the three,
    /// [`Error::Deadline`].
    pub fn state(&self) -> Result<ContainerState> {
        let argv = [&self.program, "status", &self.vmid];
        let output = self.pct(&Command { deadline: STATUS_DEADLINE, ..Command::new(argv) }, OUTPUT_LIMIT)?;
        // Its status is 0 also for a container that is stopped.
        match (output.status, output.stdout.as_slice()) {
            (0, b"status: running\n") => Ok(ContainerState::Running),
            (0, b"status: stopped\n") => Ok(ContainerState::Stopped),
            (1.., _) if self.absent(&output) => Ok(ContainerState::Absent),
            _ => Err(self.failed(ErrorKind::InvalidData, "pct status", &output)),
        }
    }

    /// `pct` looks for the configuration first, on its own node.
    fn absent(&self, output: &Output) -> bool {
        let said = printable(&output.stderr);
        said.contains("Configuration file 'nodes/")
            && said.contains(&format!("/lxc/{}.conf' does not exist", self.vmid))
    }

    /// Runs `pct` itself, with its working directory `/`, which every container has, and with pipes: for a terminal,
    /// `lxc-attach` would mangle bytes, and a regular file it would give to root.
    fn pct(&self, command: &Command, keep: usize) -> Result<Output> {
        run(&self.vmid, command, keep).map_err(|error| match error {
            Error::File { source, .. } if source.kind() == ErrorKind::NotFound => Error::Unsupported {
                guest: self.vmid.clone(),
                what: format!("containers are reached on a Proxmox VE host, and there is no {} here", self.program),
            },
            other => other,
        })
    }

    fn run(&self, command: &Command, keep: usize) -> Result<Output> {
        if command.argv.is_empty() {
            return Err(self.file(io::Error::new(ErrorKind::InvalidInput, "a command without a program")));
        }
        let marker = nonce().and_then(|half| Ok(half + &nonce()?)).map_err(|source| self.file(source))?;
        // Two seconds earlier than this side gives up: one to end by itself, one to be killed. Whole seconds are all
        // that every `timeout` takes.
        let seconds = command.deadline.as_secs().saturating_sub(2).max(1);
        let bound = seconds.to_string();
        // Old versions of pct give the host's environment to the container, and all of them a PATH without /usr/local.
        let enter = [
            &self.program,
            "exec",
            &self.vmid,
            "--",
            "/usr/bin/env",
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C",
            "/bin/sh",
            "-c",
            ENTER,
            "sh",
            &marker,
            &bound,
        ];
        let argv = enter.into_iter().map(String::from).chain(command.argv.iter().cloned()).collect();
        let start = Instant::now();
        let entered = Command { argv, stdin: command.stdin.clone(), deadline: command.deadline };
        let deadline = || Error::Deadline {
            guest: self.vmid.clone(),
            attempted: format!("{:?}", command.argv),
            limit: command.deadline,
        };
        let mut output = self.pct(&entered, keep + PREAMBLE).map_err(|error| match error {
            Error::Deadline { .. } => deadline(),
            other => other,
        })?;
        let line = format!("{marker}\n");
        let Some(at) = output.stderr.windows(line.len()).position(|said| said == line.as_bytes()) else {
            return Err(self.not_entered(&output));
        };
        output.stderr.drain(..at + line.len());
        // `timeout` says 124, or 137 when it had to kill.
        if matches!(output.status, 124 | 137) && start.elapsed() >= Duration::from_secs(seconds) {
            return Err(deadline());
        }
        for stream in [&mut output.stdout, &mut output.stderr] {
            output.truncated |= stream.len() > keep;
            stream.truncate(keep);
        }
        Ok(output)
    }

    /// Why the command was not even begun.
    fn not_entered(&self, output: &Output) -> Error {
        let said = printable(&output.stderr);
        if self.absent(output) {
            return self.failed(ErrorKind::NotFound, "pct exec", output);
        }
        if said.contains(&format!("container '{}' not running", self.vmid)) {
            return self.failed(ErrorKind::NotConnected, "pct exec", output);
        }
        match output.status {
            // What `lxc-attach` and `env` say of a program that is not there or is none.
            126 | 127 => Error::Unsupported {
                guest: self.vmid.clone(),
                what: "it has no /bin/sh and /usr/bin/env that could be run".into(),
            },
            _ => self.failed(ErrorKind::Other, "pct exec", output),
        }
    }

    fn failed(&self, kind: ErrorKind, what: &str, output: &Output) -> Error {
        let (stdout, stderr) = (printable(&output.stdout), printable(&output.stderr));
        let said = if stderr.is_empty() { stdout } else { stderr };
        self.file(io::Error::new(kind, format!("{what} ended with status {}: {said}", output.status)))
    }

    fn file(&self, source: io::Error) -> Error {
        Error::File { guest: self.vmid.clone(), attempted: "run a program in", path: "/".into(), source }
    }

    fn files<T>(&self, asked: impl FnOnce(Shell<'_>) -> T) -> T {
        asked(Shell { guest: &self.vmid, exec: &|command, keep| self.run(command, keep) })
    }
}

impl Transport for Pct {
    fn guest(&self) -> &str {
        &self.vmid
    }

    fn exec(&self, command: &Command) -> Result<Output> {
        self.run(command, OUTPUT_LIMIT)
    }

    fn put(&self, file: &File) -> Result<()> {
        self.files(|files| files.put(file))
    }

    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>> {
        self.files(|files| files.get(path, limit))
    }

    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>> {
        self.files(|files| files.observe(paths))
    }

    fn link(&self, path: &GuestPath, target: &str) -> Result<()> {
        self.files(|files| files.link(path, target))
    }

    fn remove(&self, path: &GuestPath) -> Result<()> {
        self.files(|files| files.remove(path))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<String>> {
        self.files(|files| files.list(path))
    }

    fn runs_programs(&self) -> bool {
        true
    }

    fn sets_owners(&self) -> bool {
        true
    }
}
