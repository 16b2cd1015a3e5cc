//! The form of the TOML text. Its doc comments are what the JSON Schema tells an editor.

use std::path::PathBuf;

use phoenix_pki::{KeyType, Lifetime, Name, Profile, Renewal};
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use toml::Spanned;

use super::GuestId;
use super::scalar::{Address, Argument, At, Organisation, Registry, Subtree, Variable, Word};
use super::source::Source;
use crate::error::Result;
use crate::guest::{GuestPath, Mode, Owner};

/// Reads the form, and every single value of it.
pub(super) fn read(source: &Source<'_>) -> Result<Document> {
    let table = toml::Deserializer::parse(source.text).map_err(|error| source.explain(error))?;
    Document::deserialize(table).map_err(|error| source.explain(error))
}

/// Which certificates exist, which guests hold them, and who trusts the root.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[cfg_attr(feature = "schema", derive(JsonSchema), schemars(title = "Phoenix inventory"))]
pub(super) struct Document {
    /// Who signs.
    pub(super) authority: Authority,
    /// What certificates are like that say nothing else.
    #[serde(default)]
    pub(super) defaults: Defaults,
    /// Who trusts the root. Without it nobody does.
    pub(super) trust: Option<Trust>,
    /// A guest: the hypervisor, a container, a VM, or a root file system.
    #[serde(default)]
    pub(super) guest: Vec<Guest>,
    /// A certificate.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<Certificate>"))]
    pub(super) certificate: Vec<Spanned<Certificate>>,
}

/// The authority: a root, and an intermediate that signs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Authority {
    /// The organisation in its subjects, such as `ThinkHeads Internal`.
    pub(super) name: At<Organisation>,
    /// The directory of its store.
    pub(super) store: At<PathBuf>,
    /// The domains and networks that it may certify. Default: the parent domains of the inventory's names and the private networks.
    #[serde(default, deserialize_with = "some")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub(super) permitted: Option<Vec<At<Subtree>>>,
    /// The kind of both its keys. Default: ecdsa-p256.
    pub(super) key_type: Option<At<KeyType>>,
    /// How long the root lives. Default: 3650d.
    pub(super) root_lifetime: Option<At<Lifetime>>,
    /// How long the intermediate lives. Default: 1825d.
    pub(super) intermediate_lifetime: Option<At<Lifetime>>,
    /// How the root key rests. Default: encrypted, with a passphrase that Phoenix makes and keeps beside the store.
    pub(super) root_key: Option<RootKey>,
}

/// How the root key rests.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) enum RootKey {
    /// As it is; the audit reports it.
    Plain,
    /// Encrypted; the passphrase is the first line of this file.
    PassphraseFile(At<PathBuf>),
    /// Encrypted; the passphrase is in this environment variable.
    PassphraseEnv(At<Variable>),
}

/// What certificates are like that say nothing else.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Defaults {
    /// How long a certificate lives, such as 24h or 90d. Default: 90d; at most 825d.
    pub(super) lifetime: Option<At<Lifetime>>,
    /// When it is renewed: after a share of its lifetime such as 66%, or a span before its end such as 30d. Default: 66%.
    pub(super) renew: Option<At<Renewal>>,
    /// The kind of its key. Default: ecdsa-p256.
    pub(super) key_type: Option<At<KeyType>>,
}

/// Who trusts the root.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Trust {
    /// The guests that get the root into their trust store, chosen anew on every run. Without it there are none.
    pub(super) select: Option<Select>,
    /// Files that hold the root beside the trust stores, for what reads it from there.
    #[serde(default)]
    pub(super) copies: Vec<Copy>,
}

/// A file of a guest that holds the root.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { guest = \"host\", path = \"/srv/ca.crt\" }")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Copy {
    /// The guest's id.
    pub(super) guest: At<GuestId>,
    /// Its absolute path.
    pub(super) path: At<GuestPath>,
    /// Its permission bits in octal. Default: 0644.
    pub(super) mode: Option<At<Mode>>,
    /// Its owner as user:group. Default: root:root.
    pub(super) owner: Option<At<Owner>>,
}

/// A choice of guests.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) enum Select {
    /// No guest.
    None,
    /// Every guest.
    All,
    /// These guests.
    #[serde(deserialize_with = "some_guests")]
    Guests(Vec<At<GuestId>>),
    /// Every guest with this feature.
    Feature(At<Word>),
}

/// A guest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Guest {
    /// Its vmid, "host" for the hypervisor itself, or a name for a root file system.
    pub(super) id: At<GuestId>,
    /// How it is reached: the hypervisor itself, a container, a VM, or a directory with its root file system.
    pub(super) r#type: Type,
    /// The directory, of a rootfs guest.
    pub(super) path: Option<At<PathBuf>>,
    /// What people call it.
    pub(super) name: Option<At<Word>>,
    /// Its features, for `trust.select`.
    #[serde(default)]
    pub(super) features: Vec<At<Word>>,
    /// The guests that come first.
    #[serde(default)]
    pub(super) depends: Vec<At<GuestId>>,
    /// The registries, as host:port, for which its Docker daemon trusts the root (/etc/docker/certs.d).
    #[serde(default)]
    pub(super) docker_registries: Vec<At<Registry>>,
    /// How long it may hold up a run, such as 5m. Default: 5m.
    pub(super) deadline: Option<At<Lifetime>>,
}

/// How a guest is reached.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) enum Type {
    /// The hypervisor itself.
    Host,
    /// A container.
    Lxc,
    /// A VM with a guest agent.
    Vm,
    /// A directory that holds a guest's root file system.
    Rootfs,
}

/// A certificate.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Certificate {
    /// What the store calls it. Default: its first name.
    pub(super) name: Option<At<Word>>,
    /// Its names: DNS names, wildcards, IP addresses.
    #[serde(deserialize_with = "some_names")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub(super) names: Vec<At<Name>>,
    /// What it is for: server, client, or peer for both. Default: server.
    pub(super) profile: Option<At<Profile>>,
    /// How long it lives. Default: as `defaults` says.
    pub(super) lifetime: Option<At<Lifetime>>,
    /// When it is renewed. Default: as `defaults` says.
    pub(super) renew: Option<At<Renewal>>,
    /// The kind of its key. Default: as `defaults` says.
    pub(super) key_type: Option<At<KeyType>>,
    /// A place that it goes to.
    #[serde(default)]
    pub(super) deliver: Vec<Deliver>,
}

/// A pair in a guest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Deliver {
    /// The guest's id.
    pub(super) guest: At<GuestId>,
    /// The service that uses the pair, when it is one that Phoenix knows: it is checked and reloaded.
    pub(super) service: Option<At<Word>>,
    /// Where the certificate goes, with its intermediate. Default mode: 0644.
    pub(super) cert: Placed,
    /// Where the private key goes. Default mode: 0600.
    pub(super) key: Placed,
    /// Where the certificates above it go, if in a file of their own. Default mode: 0644.
    pub(super) chain: Option<Placed>,
    /// Where a copy of the root goes, beside the guest's trust store. Default mode: 0644.
    pub(super) root: Option<Placed>,
    /// A command that refuses a pair the service could not use: the program and its arguments.
    #[serde(default, deserialize_with = "some")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub(super) check: Option<Vec<At<Argument>>>,
    /// The command after which the service uses the new pair: the program and its arguments.
    #[serde(default, deserialize_with = "some")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub(super) reload: Option<Vec<At<Argument>>>,
    /// Where a TLS handshake shows the certificate.
    pub(super) serves: Option<Serves>,
}

/// A file in a guest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { path = \"/etc/ssl/a.crt\" }")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Placed {
    /// Its absolute path.
    pub(super) path: At<GuestPath>,
    /// Its permission bits in octal, such as "0640".
    pub(super) mode: Option<At<Mode>>,
    /// Its owner as user:group, names or numbers of the guest, such as "root:www-data". Default: root:root.
    pub(super) owner: Option<At<Owner>>,
}

/// Where a certificate is seen from outside.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { address = \"10.0.0.101:443\" }")]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub(super) struct Serves {
    /// host:port, such as 10.0.0.101:443, nginx.internal.example:443 or [fd00::1]:443.
    pub(super) address: At<Address>,
    /// The TLS server name to ask for. Default: the certificate's first name; a wildcard needs one.
    pub(super) name: Option<At<Name>>,
}

/// A list with something in it, where it stands at all.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    match Vec::deserialize(deserializer)? {
        list if list.is_empty() => Err(D::Error::custom("at least one is needed")),
        list => Ok(Some(list)),
    }
}

fn some_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<At<Name>>, D::Error> {
    some(deserializer).map(Option::unwrap_or_default)
}

fn some_guests<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<At<GuestId>>, D::Error> {
    some(deserializer).map(Option::unwrap_or_default)
}
