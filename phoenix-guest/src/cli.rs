//! The operator's command as one function: the Rust binary and Python call it. The one place with a clock.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use clap::Parser;
use phoenix_pki::Store;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::error::causes;
use crate::inventory::{GuestKind, Inventory};

mod audit;
mod converge;
mod inspect;
mod issue;
mod keep;
mod report;
mod sandbox;
mod verify;

/// Everything holds.
const HOLDS: u8 = 0;
/// Something failed.
const FAILED: u8 = 1;
/// The arguments were not understood; clap's own.
const USAGE: u8 = 2;
/// Changes are pending, or a warning.
const PENDING: u8 = 3;
/// The audit found what fails now.
const CRITICAL: u8 = 4;

/// Where an inventory is looked for when none is named.
const INVENTORIES: [&str; 2] = ["phoenix.toml", "/etc/phoenix/phoenix.toml"];

/// The longest inventory that is read.
const LONGEST_INVENTORY: u64 = 16 << 20;

/// The longest file of certificates or keys that is read.
const LONGEST_INPUT: u64 = 1 << 20;

const EXIT_CODES: &str = "\
Exit codes:
  0  everything holds
  1  something failed; what else could be done was done
  2  the arguments were not understood
  3  changes are pending (a dry run, a stopped guest), or the audit warns
  4  the audit found something critical

Where no inventory is named, it is ./phoenix.toml or /etc/phoenix/phoenix.toml.
Relative paths in an inventory start from its directory.";

/// The private PKI of a hypervisor: certificates into its guests, the root into their trust stores, proven by handshakes.
#[derive(Parser)]
#[command(name = "phoenix-pki", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Converge(converge::Arguments),
    Issue(issue::Arguments),
    Inspect(inspect::Arguments),
    Verify(verify::Arguments),
    Audit(audit::Arguments),
    Revoke(keep::Revoke),
    Seal(keep::Seal),
    Export(keep::Export),
}

/// Where the command speaks.
#[non_exhaustive]
pub struct Terminal {
    /// Results.
    pub out: Box<dyn Write>,
    /// Errors.
    pub err: Box<dyn Write>,
    /// Whether results are for a terminal, and so fitted to its width.
    pub fitted: bool,
    /// Whether progress may be drawn on the terminal of standard error.
    pub progress: bool,
}

impl Terminal {
    /// The process's own standard output and standard error.
    pub fn process() -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let (fitted, progress) = (out.is_terminal() && !dumb, err.is_terminal() && !dumb);
        Self { out: Box::new(out), err: Box::new(err), fitted, progress }
    }

    /// Both in these writers, for nobody's eyes in particular.
    pub fn new(out: impl Write + 'static, err: impl Write + 'static) -> Self {
        Self { out: Box::new(out), err: Box::new(err), fitted: false, progress: false }
    }

    /// Writes results. A reader that went away, such as `head`, has what it wanted.
    fn say(&mut self, text: &str) -> Result<()> {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|source| failure("cannot write the result", source)),
        }
    }

    /// Writes an error and, indented, what caused it.
    fn complain(&mut self, error: &dyn std::error::Error) {
        let text = format!("error: {}\n", causes(error).join("\n  "));
        // Nobody is left to tell when this fails.
        let _ = self.err.write_all(text.as_bytes()).and_then(|()| self.err.flush());
    }
}

/// Runs the command with these arguments, the program's name first, and returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>, terminal: &mut Terminal) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let text = error.render().to_string();
            let _ = match error.use_stderr() {
                true => terminal.err.write_all(text.as_bytes()).and_then(|()| terminal.err.flush()),
                false => terminal.out.write_all(text.as_bytes()).and_then(|()| terminal.out.flush()),
            };
            return if error.use_stderr() { USAGE } else { HOLDS };
        }
    };
    let now = OffsetDateTime::now_utc();
    let done = match &arguments.command {
        Command::Converge(arguments) => converge::run(arguments, terminal, now),
        Command::Issue(arguments) => issue::run(arguments, terminal, now),
        Command::Inspect(arguments) => inspect::run(arguments, terminal, now),
        Command::Verify(arguments) => verify::run(arguments, terminal, now),
        Command::Audit(arguments) => audit::run(arguments, terminal, now),
        Command::Revoke(arguments) => keep::revoke(arguments, terminal, now),
        Command::Seal(arguments) => keep::seal(arguments, terminal),
        Command::Export(arguments) => keep::export(arguments, terminal),
    };
    done.unwrap_or_else(|error| {
        terminal.complain(error.as_ref());
        FAILED
    })
}

/// Any error of the crates below, to be shown with its causes.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// What was attempted, and why it did not work.
#[derive(Debug, thiserror::Error)]
#[error("{attempted}")]
struct Failure {
    attempted: String,
    source: io::Error,
}

fn failure(attempted: impl Into<String>, source: io::Error) -> Box<dyn std::error::Error> {
    Box::new(Failure { attempted: attempted.into(), source })
}

/// Which store is meant.
#[derive(clap::Args)]
struct Place {
    /// The store, whatever the inventory says
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The inventory that names the store
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
}

impl Place {
    /// The store, and the inventory unless the store alone was named.
    fn find(&self) -> Result<(Store, Option<Inventory>)> {
        let inventory = match (&self.inventory, &self.store) {
            (None, Some(_)) => None,
            (named, _) => Some(load(named.as_deref())?),
        };
        let named = self.store.as_ref().or(inventory.as_ref().map(|inventory| &inventory.authority.store));
        Ok((Store::new(named.map_or(Path::new(""), PathBuf::as_path)), inventory))
    }
}

/// Reads the inventory that is named, or the one in its usual place.
fn load(named: Option<&Path>) -> Result<Inventory> {
    let usual = || INVENTORIES.iter().map(Path::new).find(|path| path.exists());
    let path = named.or_else(usual).ok_or_else(|| {
        let [here, system] = INVENTORIES;
        format!("there is no inventory: neither ./{here} nor {system} exists, and none is named")
    })?;
    let name = path.display().to_string();
    let bytes = read(path, LONGEST_INVENTORY)?;
    let text = String::from_utf8(bytes).map_err(|error| format!("{name}: an inventory is UTF-8 text: {error}"))?;
    let mut inventory = Inventory::parse(&text, &name)?;
    let base = path.parent().unwrap_or(Path::new(""));
    let resolve = |path: &mut PathBuf| *path = base.join(&*path);
    resolve(&mut inventory.authority.store);
    if let phoenix_pki::RootKey::Encrypted(phoenix_pki::PassphraseSource::File(path)) =
        &mut inventory.authority.params.root_key
    {
        resolve(path);
    }
    for guest in &mut inventory.guests {
        if let GuestKind::Rootfs(path) = &mut guest.kind {
            resolve(path);
        }
    }
    Ok(inventory)
}

/// Reads a regular file of at most `limit` bytes.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let attempt = || -> io::Result<Vec<u8>> {
        // Without O_NONBLOCK a FIFO in the file's place would hang the run.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes")));
        }
        Ok(bytes)
    };
    attempt().map_err(|source| failure(format!("cannot read {}", path.display()), source))
}

/// Reads a file of certificates or keys, or standard input for `-`, with the name that errors give it.
fn input(path: &Path) -> Result<(Zeroizing<Vec<u8>>, String)> {
    use std::io::Read as _;

    if path != Path::new("-") {
        return Ok((Zeroizing::new(read(path, LONGEST_INPUT)?), path.display().to_string()));
    }
    let (origin, mut bytes) = ("standard input".to_string(), Zeroizing::new(Vec::new()));
    let read = io::stdin().lock().take(LONGEST_INPUT + 1).read_to_end(&mut bytes);
    let sound = |length| match length {
        length if length as u64 <= LONGEST_INPUT => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {LONGEST_INPUT} bytes"))),
    };
    read.and_then(sound).map_err(|source| failure(format!("cannot read {origin}"), source))?;
    Ok((bytes, origin))
}

/// A day, as people write it in tables: the date, and how many days are left.
fn until(end: OffsetDateTime, now: OffsetDateTime) -> String {
    let days = (end - now).whole_days();
    format!("{} ({days} {})", end.date(), if days == 1 { "day" } else { "days" })
}
