//! `revoke`, `seal` and `export`: what an operator does to a store now and then.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use phoenix_pki::{Authority, Error, Leaf, Passphrase, Revocation, SerialNumber, export};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{HOLDS, Place, Result, Terminal, failure, read};

/// The longest passphrase file that is read.
const LONGEST_PASSPHRASE: u64 = 64 << 10;

/// Revoke a certificate and write the CRL; the next converge makes and delivers another
#[derive(clap::Args)]
pub(super) struct Revoke {
    /// Its name in the store, or its serial number
    #[arg(value_name = "NAME|SERIAL")]
    wanted: String,
    /// unspecified, key-compromise, affiliation-changed, superseded or cessation-of-operation
    #[arg(long, default_value = "unspecified")]
    reason: Revocation,
    #[command(flatten)]
    place: Place,
}

pub(super) fn revoke(arguments: &Revoke, terminal: &mut Terminal, now: OffsetDateTime) -> Result<u8> {
    let (store, _) = arguments.place.find()?;
    let authority = Authority::open(&store)?;
    let revoked = authority.revoke(&label(&arguments.wanted), arguments.reason, now)?;
    if revoked.is_empty() {
        terminal.say(&format!("{}: unchanged: revoked before\n", arguments.wanted))?;
        return Ok(HOLDS);
    }
    let serials = revoked.iter().map(SerialNumber::to_string).collect::<Vec<_>>().join(", ");
    let next = match revoked.contains(authority.intermediate().serial_number()) {
        true => "converge writes it into the root's CRL; it issues on until it is rotated",
        false => "converge to replace it",
    };
    terminal.say(&format!("{}: revoked, serial {serials}; {next}\n", arguments.wanted))?;
    Ok(HOLDS)
}

/// Move the root key out of the store to a file; the intermediate works on
#[derive(clap::Args)]
pub(super) struct Seal {
    /// Where the root key goes: a file that is not there yet, such as one on a medium that you lock away
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    place: Place,
}

pub(super) fn seal(arguments: &Seal, terminal: &mut Terminal) -> Result<u8> {
    let (store, _) = arguments.place.find()?;
    Authority::open(&store)?.seal(&arguments.to)?;
    terminal.say(&format!("the root key left the store and is in {}: take it away\n", arguments.to.display()))?;
    Ok(HOLDS)
}

/// Write a certificate in the form that another program takes
#[derive(clap::Args)]
pub(super) struct Export {
    /// Its name in the store
    name: String,
    /// The form: pem and der are the leaf alone, chain what is between it and the root, fullchain both, key its private
    /// key, pkcs12 key and chain, root the trust anchor
    #[arg(long, value_enum, default_value_t = Format::Fullchain)]
    format: Format,
    /// Where it goes; a file there is replaced
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A file whose first line is the passphrase of the PKCS#12 file
    #[arg(long, value_name = "FILE", required_if_eq("format", "pkcs12"))]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Pem,
    Der,
    Chain,
    Fullchain,
    Key,
    Pkcs12,
    Root,
}

pub(super) fn export(arguments: &Export, terminal: &mut Terminal) -> Result<u8> {
    let (store, _) = arguments.place.find()?;
    let label = label(&arguments.name);
    let leaf = Authority::open(&store)?.leaf(&label)?.ok_or(Error::NotIssued { wanted: label })?;
    let (bytes, mode) = arguments.form(&leaf)?;
    write(&arguments.out, &bytes, mode)
        .map_err(|source| failure(format!("cannot write {}", arguments.out.display()), source))?;
    terminal.say(&format!("{}: written to {}\n", leaf.label(), arguments.out.display()))?;
    Ok(HOLDS)
}

impl Export {
    /// The bytes of the form, and the mode of a file that holds them.
    fn form(&self, leaf: &Leaf) -> Result<(Zeroizing<Vec<u8>>, u32)> {
        let public = |text: String| (Zeroizing::new(text.into_bytes()), 0o644);
        Ok(match self.format {
            Format::Pem => public(export::certificate(leaf)),
            Format::Der => (Zeroizing::new(export::der(leaf)), 0o644),
            Format::Chain => public(export::chain(leaf)),
            Format::Fullchain => public(export::full_chain(leaf)),
            Format::Root => public(leaf.root().pem()),
            Format::Key => (Zeroizing::new(export::key(leaf).as_bytes().to_vec()), 0o600),
            Format::Pkcs12 => {
                let file = self.passphrase_file.as_deref().unwrap_or(Path::new(""));
                (export::pkcs12(leaf, &passphrase(file)?)?, 0o600)
            }
        })
    }
}

/// The first line of a file that only its owner may read.
fn passphrase(path: &Path) -> Result<Passphrase> {
    let bytes = Zeroizing::new(read(path, LONGEST_PASSPHRASE)?);
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.mode());
    if mode & 0o077 != 0 {
        return Err(Error::OpenKey { path: path.into(), mode: mode & 0o7777 }.into());
    }
    let origin = path.display().to_string();
    match std::str::from_utf8(&bytes).ok().and_then(|text| text.lines().next()).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Passphrase::new(line)),
        None => Err(Error::Passphrase { origin, why: "its first line holds no passphrase" }.into()),
    }
}

/// Replaces a file by one rename; a secret is never in a file that others may read.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no regular file is there"));
    }
    let mut staging = path.as_os_str().to_os_string();
    staging.push(format!(".{}.new", std::process::id()));
    let staging = PathBuf::from(staging);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&staging)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&staging, path));
    if written.is_err() {
        let _ = fs::remove_file(&staging);
    }
    written
}

/// What the store calls a certificate that is asked for by its name.
fn label(name: &str) -> String {
    name.replacen("*.", "_wildcard.", 1)
}
