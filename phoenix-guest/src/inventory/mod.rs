//! The inventory: which certificates exist, which guests hold them, and who trusts the root. Text in, plain data out.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use phoenix_pki::{AuthorityParams, LeafParams};

use crate::delivery::Placement;
use crate::error::{Error, Result};

mod check;
mod form;
mod scalar;
mod source;

/// How long one guest may hold up a run when its entry says nothing else: five minutes.
pub const GUEST_DEADLINE: Duration = Duration::from_secs(300);

/// A whole inventory, parsed and checked.
///
/// ```
/// use phoenix_guest::inventory::Inventory;
///
/// let text = r#"
/// [authority]
/// name = "Example Internal"
/// store = "/var/lib/phoenix"
///
/// [[guest]]
/// id = 101
/// type = "lxc"
///
/// [[certificate]]
/// names = ["*.internal.example"]
///
/// [[certificate.deliver]]
/// guest = 101
/// service = "nginx"
/// cert = { path = "/etc/nginx/ssl/nginx.crt" }
/// key = { path = "/etc/nginx/ssl/nginx.key", mode = "0640", owner = "root:www-data" }
/// serves = { address = "10.0.0.101:443", name = "www.internal.example" }
/// "#;
/// let inventory = Inventory::parse(text, "phoenix.toml")?;
/// assert!(inventory.certificates[0].deliver[0].placement.reload.is_some());
///
/// let error = Inventory::parse("[authorty]", "phoenix.toml").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "phoenix.toml:1:2: unknown key `authorty`; did you mean `authority`? \
///      accepted: authority, defaults, trust, guest, certificate"
/// );
/// # Ok::<(), phoenix_guest::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Inventory {
    /// Who signs.
    pub authority: AuthorityEntry,
    /// Which guests trust the root.
    pub trust: Select,
    /// Every guest that holds or trusts something.
    pub guests: Vec<GuestEntry>,
    /// Every certificate that is to exist.
    pub certificates: Vec<CertificateEntry>,
}

/// The authority: where it is kept and what shape it has.
#[derive(Clone, Debug)]
pub struct AuthorityEntry {
    /// The directory of its store; a relative one is the caller's to resolve.
    pub store: PathBuf,
    /// What it is made like. Unless the inventory says otherwise it may certify what lies around the inventory's names.
    pub params: AuthorityParams,
}

/// A choice of guests, resolved on every run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Select {
    /// No guest.
    #[default]
    None,
    /// Every guest.
    All,
    /// These.
    Guests(Vec<GuestId>),
    /// Those that have this feature.
    Feature(String),
}

impl Select {
    /// Whether it chooses this guest.
    pub fn selects(&self, guest: &GuestEntry) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Guests(ids) => ids.contains(&guest.id),
            Self::Feature(feature) => guest.features.contains(feature),
        }
    }
}

/// What a guest is called in the inventory: `host`, a vmid, or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GuestId {
    /// The hypervisor itself.
    Host,
    /// A container or VM of the hypervisor, 100 to 999999999.
    Vmid(u32),
    /// A root file system that is no guest of a hypervisor, or not yet.
    Named(String),
}

impl FromStr for GuestId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |accepted| Error::Value { what: "guest id", value: text.into(), accepted };
        if text == "host" {
            return Ok(Self::Host);
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return match text.parse() {
                Ok(vmid @ 100..=999_999_999) => Ok(Self::Vmid(vmid)),
                _ => Err(refused("a vmid lies between 100 and 999999999")),
            };
        }
        let sound = text.len() <= 64
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if sound {
            return Ok(Self::Named(text.into()));
        }
        Err(refused("a vmid, \"host\", or a name of letters, digits and - _ . that starts with a letter"))
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Vmid(vmid) => write!(f, "{vmid}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// What kind of guest it is, and so how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestKind {
    /// The hypervisor that Phoenix runs on.
    Host,
    /// A container.
    Lxc,
    /// A virtual machine with a guest agent.
    Vm,
    /// A directory that holds a guest's root file system; a relative one is the caller's to resolve.
    Rootfs(PathBuf),
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Lxc => "lxc",
            Self::Vm => "vm",
            Self::Rootfs(_) => "rootfs",
        })
    }
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestEntry {
    /// Its id.
    pub id: GuestId,
    /// How it is reached.
    pub kind: GuestKind,
    /// What people call it.
    pub name: Option<String>,
    /// Its features, for [`Select::Feature`].
    pub features: Vec<String>,
    /// The guests that come first.
    pub depends: Vec<GuestId>,
    /// The registries, as `host:port`, for which its Docker daemon trusts the root.
    pub docker_registries: Vec<String>,
    /// How long it may hold up a run.
    pub deadline: Duration,
}

/// One certificate, and where it goes.
#[derive(Clone, Debug)]
pub struct CertificateEntry {
    /// What it is.
    pub leaf: LeafParams,
    /// Where it goes.
    pub deliver: Vec<Delivery>,
    /// The file and line that it begins on, such as `phoenix.toml:42`.
    pub origin: String,
}

/// One pair in one guest: its files, how they are taken up, and what then shows it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The guest.
    pub guest: GuestId,
    /// The service that uses the pair, when it is one that Phoenix knows.
    pub service: Option<String>,
    /// Where the pair goes, how it is taken, and what shows it.
    pub placement: Placement,
}

impl Inventory {
    /// Parses and checks the text of an inventory; `file` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Inventory`] for the first thing in it that cannot be meant, with line and column.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let source = source::Source::new(text, file);
        check::check(&source, form::read(&source)?)
    }

    /// The guests that trust the root.
    pub fn trusting(&self) -> impl Iterator<Item = &GuestEntry> {
        self.guests.iter().filter(|guest| self.trust.selects(guest))
    }

    /// The guests in the order in which they can be served: each layer depends only on those before it.
    pub fn layers(&self) -> Vec<Vec<&GuestEntry>> {
        let mut placed = HashSet::new();
        let mut layers = Vec::new();
        let mut rest: Vec<_> = self.guests.iter().collect();
        while !rest.is_empty() {
            let (mut ready, waiting): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|guest| guest.depends.iter().all(|id| placed.contains(id)));
            rest = waiting;
            if ready.is_empty() {
                // Only an inventory that was not parsed can hold a cycle; nobody is left out for it.
                ready = std::mem::take(&mut rest);
            }
            placed.extend(ready.iter().map(|guest| &guest.id));
            layers.push(ready);
        }
        layers
    }
}

/// The JSON Schema of an inventory, for editors: indented, with a final newline.
#[cfg(feature = "schema")]
pub fn schema() -> String {
    let mut schema = schemars::schema_for!(form::Document).to_value();
    without_null(&mut schema);
    format!("{schema:#}\n")
}

/// Takes out the alternative of null: TOML has none, what is optional is left out.
#[cfg(feature = "schema")]
fn without_null(value: &mut serde_json::Value) {
    use serde_json::Value;

    match value {
        Value::Object(map) => map.values_mut().for_each(without_null),
        Value::Array(list) => {
            list.retain(|item| !item.is_null() && item != "null" && item["type"] != "null");
            list.iter_mut().for_each(without_null);
        }
        _ => {}
    }
}
