//! The form of the TOML text. Its doc comments are what the JSON Schema tells an editor.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use phoenix_pki::{KeyType, Lifetime, Name, Permitted, Profile, Renewal};
#[cfg(feature = "schema")]
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};
use toml::Spanned;

use super::GuestId;
use super::source::{Source, accepts};
use crate::error::{Error, Result};
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
    /// The guests that get the root into their trust store, chosen anew on every run.
    pub(super) select: Select,
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

/// A single value and where it stands.
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

impl<'de, T: Scalar> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Parsed<T>>::deserialize(deserializer)?;
        Ok(Self { span: spanned.span(), value: spanned.into_inner().0 })
    }
}

#[cfg(feature = "schema")]
impl<T: Scalar> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        std::any::type_name::<T>().into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

/// A value parsed inside the visit, so that toml gives the error the value's place and not that of what holds it.
struct Parsed<T>(T);

impl<'de, T: Scalar> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<T>(PhantomData<T>);

        impl<T: Scalar> Visitor<'_> for Visit<T> {
            type Value = Parsed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::from_text(text).map(Parsed).map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
                let refused = || E::invalid_type(serde::de::Unexpected::Signed(number), &self);
                T::from_number(number).ok_or_else(refused)?.map(Parsed).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visit(PhantomData))
    }
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

/// A type that is written as one TOML value.
pub(super) trait Scalar: Sized {
    const EXPECTED: &'static str = "a string";

    /// The value of a string, or what is accepted.
    fn from_text(text: &str) -> Result<Self, String>;

    /// The value of an integer, where integers are accepted.
    fn from_number(_: i64) -> Option<Result<Self, String>> {
        None
    }

    #[cfg(feature = "schema")]
    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// What an error of the value's own parser says is accepted.
pub(super) trait Accepted: fmt::Display {
    fn accepted(self) -> String;
}

impl Accepted for phoenix_pki::Error {
    fn accepted(self) -> String {
        match self {
            Self::Value { accepted, .. } => accepted.into(),
            other => other.to_string(),
        }
    }
}

impl Accepted for Error {
    fn accepted(self) -> String {
        match self {
            Self::Value { accepted, .. } => accepted.into(),
            other => other.to_string(),
        }
    }
}

/// Scalars that are their type's own `FromStr`.
macro_rules! own_parser {
    ($($kind:ty),*) => {$(
        impl Scalar for $kind {
            fn from_text(text: &str) -> Result<Self, String> {
                <$kind>::from_str(text).map_err(Accepted::accepted)
            }
        }
    )*};
}

own_parser!(Name, Lifetime, Renewal, Mode, Owner, GuestPath);

impl Scalar for KeyType {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(Accepted::accepted)
    }

    #[cfg(feature = "schema")]
    fn schema() -> Schema {
        json_schema!({ "type": "string", "enum": Self::ALL.map(|(_, name)| name) })
    }
}

const PROFILES: [(&str, Profile); 3] =
    [("server", Profile::Server), ("client", Profile::Client), ("peer", Profile::Peer)];

impl Scalar for Profile {
    fn from_text(text: &str) -> Result<Self, String> {
        let found = PROFILES.iter().find(|(name, _)| *name == text).map(|(_, profile)| *profile);
        found.ok_or_else(|| accepts(text, &PROFILES.map(|(name, _)| name)))
    }

    #[cfg(feature = "schema")]
    fn schema() -> Schema {
        json_schema!({ "type": "string", "enum": PROFILES.map(|(name, _)| name) })
    }
}

impl Scalar for GuestId {
    const EXPECTED: &'static str = "a vmid, \"host\" or a name";

    fn from_text(text: &str) -> Result<Self, String> {
        match text.parse().map_err(Accepted::accepted)? {
            Self::Vmid(_) => Err("a vmid is written without quotes".into()),
            id => Ok(id),
        }
    }

    fn from_number(number: i64) -> Option<Result<Self, String>> {
        let vmid = u32::try_from(number).ok().filter(|vmid| (100..=999_999_999).contains(vmid));
        Some(vmid.map(Self::Vmid).ok_or_else(|| "a vmid lies between 100 and 999999999".into()))
    }

    #[cfg(feature = "schema")]
    fn schema() -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 100, "maximum": 999_999_999 },
            { "type": "string", "pattern": "^[A-Za-z][A-Za-z0-9._-]{0,63}$" },
        ] })
    }
}

impl Scalar for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        let sound = !text.is_empty() && !text.chars().any(char::is_control);
        sound.then(|| text.into()).ok_or_else(|| "a path without control characters".into())
    }
}

/// A domain or a network that an authority may certify.
pub(super) struct Subtree(pub(super) Permitted);

impl Scalar for Subtree {
    fn from_text(text: &str) -> Result<Self, String> {
        Permitted::parse([text]).map(Self).map_err(Accepted::accepted)
    }
}

/// Scalars that stay text, with what they are and what is accepted.
macro_rules! text {
    ($($(#[$doc:meta])* $name:ident($text:ident): $sound:expr, $accepted:expr;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name(pub(super) String);

        impl Scalar for $name {
            fn from_text($text: &str) -> Result<Self, String> {
                if $sound { Ok(Self($text.into())) } else { Err($accepted.into()) }
            }
        }
    )*};
}

text! {
    /// A name or a feature.
    Word(text): !text.is_empty() && text.trim() == text && text.len() <= 255 && !text.chars().any(char::is_control),
        "1 to 255 characters, no control characters, no space at either end";
    /// The organisation of an authority; X.520 allows 64 characters, and "Intermediate CA" with a number follows it.
    Organisation(text): !text.is_empty() && text.trim() == text && text.chars().count() <= 40 && !text.chars().any(char::is_control),
        "1 to 40 characters, no control characters, no space at either end";
    /// The name of an environment variable.
    Variable(text): !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'),
        "letters, digits and _";
    /// A word of a command.
    Argument(text): !text.contains('\0'), "a word without NUL";
    /// Where a service listens.
    Address(text): host_port(text).is_some_and(|port| port),
        "host:port, such as 10.0.0.101:443, nginx.internal.example:443 or [fd00::1]:443";
    /// A Docker registry, as images name it.
    Registry(text): host_port(text).is_some(), "a registry as images name it, such as registry.internal.example:5000";
}

/// Whether `host` or `host:port` has a port; nothing when it is neither.
fn host_port(text: &str) -> Option<bool> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some(true);
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    if host.parse::<Name>().ok()?.is_wildcard() {
        return None;
    }
    let Some(port) = port else { return Some(false) };
    let sound = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    sound.then_some(true)
}
