//! `verify`: whether a chain ends in a root, for a name and a purpose, at a time.

use std::path::{Path, PathBuf};

use phoenix_pki::{Authority, Certificate, Error, Name, Profile, Verification};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{HOLDS, Place, Result, Terminal, input, until};
use crate::command::printable;

/// Verify a chain, leaf first, by webpki
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A PEM file with leaf and intermediates, or a DER certificate; - is standard input
    file: PathBuf,
    /// The roots to trust, a PEM file; without it the store's, which also knows what was revoked
    #[arg(long, value_name = "FILE", conflicts_with_all = ["store", "inventory"])]
    root: Option<PathBuf>,
    /// A name that it must be good for; may be given again
    #[arg(long)]
    name: Vec<Name>,
    /// What it must be good for [default: what it says of itself]
    #[arg(long, value_parser = ["server", "client"])]
    purpose: Option<String>,
    /// The time asked about, such as 2027-01-31T12:00:00Z [default: now]
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    at: Option<OffsetDateTime>,
    #[command(flatten)]
    place: Place,
}

fn instant(text: &str) -> std::result::Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "a time such as 2027-01-31T12:00:00Z".into())
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal, now: OffsetDateTime) -> Result<u8> {
    let chain = certificates(&arguments.file)?;
    let leaf = &chain[0];
    let anchors = match &arguments.root {
        Some(file) => roots(file)?,
        None => {
            let (store, _) = arguments.place.find()?;
            let authority = Authority::open(&store)?;
            // The ledger is the authority on what was revoked; a CRL is a copy of it that ages.
            let ledger = store.ledger()?;
            if chain.iter().any(|certificate| ledger.revocation(certificate.serial_number()).is_some()) {
                return Err(Error::Revoked { subject: leaf.to_string() }.into());
            }
            vec![authority.root().clone()]
        }
    };
    let purpose = match arguments.purpose.as_deref() {
        Some("client") => Profile::Client,
        Some(_) => Profile::Server,
        None => leaf.profile().unwrap_or_default(),
    };
    let names: Vec<&Name> = arguments.name.iter().collect();
    Verification { purpose, names: &names, at: arguments.at.unwrap_or(now), crls: &[] }.check(&chain, &anchors)?;
    let end = until(leaf.not_after(), now);
    terminal.say(&format!("{}: good for {purpose}, until {end}\n", printable(leaf.to_string().as_bytes())))?;
    Ok(HOLDS)
}

/// The roots of a file. To a verifier any certificate can be an anchor; a chain given by mistake would then vouch for itself.
fn roots(file: &Path) -> Result<Vec<Certificate>> {
    let roots = certificates(file)?;
    match roots.iter().find(|root| !root.is_authority() || !root.is_signed_by(root)) {
        None => Ok(roots),
        Some(other) => {
            let subject = printable(other.subject().as_bytes());
            Err(format!("{}: {subject} is no root: it is not a CA that signed itself", file.display()).into())
        }
    }
}

/// The certificates of a PEM file, or the one of a DER file.
fn certificates(file: &Path) -> Result<Vec<Certificate>> {
    let (bytes, origin) = input(file)?;
    Ok(match bytes.first() {
        Some(0x30) => vec![Certificate::from_der(&bytes, &origin)?],
        _ => Certificate::all_from_pem(&bytes, &origin)?,
    })
}
