//! `issue`: one certificate, made only when it is due.

use phoenix_pki::{Authority, KeyType, LeafParams, Lifetime, Name, Profile};
use time::OffsetDateTime;

use super::{HOLDS, Place, Result, Terminal, until};
use crate::inventory::{CertificateEntry, Inventory};

/// Have a certificate: the one that is there, or a new one when that is due
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Its DNS names and IP addresses; or the one name of a certificate of the inventory
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// What it is for
    #[arg(long, default_value_t, value_name = "server|client|peer")]
    profile: Profile,
    /// How long it lives, such as 24h or 90d
    #[arg(long)]
    lifetime: Option<Lifetime>,
    /// The kind of its key, such as ecdsa-p256, ed25519 or rsa-2048
    #[arg(long)]
    key_type: Option<KeyType>,
    /// Make a new one, whatever is there
    #[arg(long)]
    always: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal, now: OffsetDateTime) -> Result<u8> {
    let (store, inventory) = arguments.place.find()?;
    let wanted = arguments.wanted(inventory.as_ref())?;
    let authority = match &inventory {
        Some(inventory) => Authority::open_or_create(&store, &inventory.authority.params, now)?,
        None => Authority::open(&store)?,
    };
    let (leaf, what) = match arguments.always {
        true => (authority.issue(&wanted, now)?, "made: requested".into()),
        false => {
            let ensured = authority.ensure(&wanted, now)?;
            let what = match ensured.changed() {
                true => format!("made: {}", ensured.reason),
                false => format!("unchanged: {}", ensured.reason),
            };
            (ensured.leaf, what)
        }
    };
    terminal.say(&format!(
        "{}: {what}, until {}\n  certificate  {}\n  key          {}\n",
        leaf.label(),
        until(leaf.certificate().not_after(), now),
        store.certificate_path(leaf.label()).display(),
        store.key_path(leaf.label()).display(),
    ))?;
    Ok(HOLDS)
}

impl Arguments {
    /// What is asked for. A certificate of the inventory is asked for as it stands there: two opinions about one
    /// certificate would replace it in turns.
    fn wanted(&self, inventory: Option<&Inventory>) -> Result<LeafParams> {
        let mut wanted = LeafParams::new(self.profile, self.names.iter().map(Name::to_string))?;
        if let Some(lifetime) = self.lifetime {
            wanted.lifetime = lifetime;
        }
        if let Some(key_type) = self.key_type {
            wanted.key_type = key_type;
        }
        let listed = |entry: &&CertificateEntry| entry.leaf.label() == wanted.label();
        let Some(entry) = inventory.and_then(|inventory| inventory.certificates.iter().find(listed)) else {
            return Ok(wanted);
        };
        let named_alone = self.names.len() == 1 || self.names.iter().eq(&entry.leaf.names);
        if !named_alone || self.lifetime.is_some() || self.key_type.is_some() {
            let label = wanted.label();
            return Err(format!("{}: the inventory says what {label} is; change it there", entry.origin).into());
        }
        Ok(entry.leaf.clone())
    }
}
