//! The single values of an inventory: each type with its parser and its schema.

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
use serde::de::{Deserializer, Visitor};
use toml::Spanned;

use super::GuestId;
use super::source::accepts;
use crate::error::{Error, Result};
use crate::guest::{GuestPath, Mode, Owner};

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
        sound
            .then(|| text.into())
            .ok_or_else(|| "a path of one or more characters, none of them a control character".into())
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
