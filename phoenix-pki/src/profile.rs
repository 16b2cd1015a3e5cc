//! What is asked for: the profile, names, lifetime and key of a leaf, and the shape of an authority. Plain data.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::key::KeyType;
use crate::name::{Name, Permitted};

/// What a leaf is for (extended key usage, RFC 5280 §4.2.1.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Profile {
    /// serverAuth alone.
    #[default]
    Server,
    /// clientAuth alone.
    Client,
    /// Both: for programs that are server and client to each other under one name.
    Peer,
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Peer => "peer",
        })
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Server, Self::Client, Self::Peer]
            .into_iter()
            .find(|profile| profile.to_string() == text)
            .ok_or_else(|| Error::Value { what: "profile", value: text.into(), accepted: "server, client or peer" })
    }
}

/// A span of time in whole seconds, written like `90s`, `15m`, `24h`, `90d` or `2y` (a year is 365 days), at most `100y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lifetime(Duration);

impl Lifetime {
    /// This many days of 24 hours.
    pub const fn days(days: u32) -> Self {
        Self(Duration::from_secs(days as u64 * 86_400))
    }

    /// This many hours.
    pub const fn hours(hours: u32) -> Self {
        Self(Duration::from_secs(hours as u64 * 3_600))
    }

    /// The span itself.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// How long before `now` a certificate with this lifetime begins: [`BACKDATE`], or a tenth of a short life, so that
    /// the renewal point of a certificate for minutes does not lie before its making.
    pub fn backdate(self) -> Duration {
        BACKDATE.min(Duration::from_secs(self.0.as_secs() / 10))
    }
}

impl From<Duration> for Lifetime {
    fn from(span: Duration) -> Self {
        Self(Duration::from_secs(span.as_secs()))
    }
}

impl FromStr for Lifetime {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || Error::Value {
            what: "lifetime",
            value: text.into(),
            accepted: "a whole number and a unit of s, m, h, d or y, such as 24h or 90d, and at most 100y",
        };
        let unit = match text.chars().last().ok_or_else(refused)? {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            'y' => 365 * 86_400,
            _ => return Err(refused()),
        };
        let digits = &text[..text.len() - 1];
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        let seconds = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit)).ok_or_else(refused)?;
        if seconds == 0 || seconds > LONGEST.0.as_secs() {
            return Err(refused());
        }
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl std::fmt::Display for Lifetime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let (unit, letter) = [(86_400, 'd'), (3_600, 'h'), (60, 'm')]
            .into_iter()
            .find(|(unit, _)| seconds.is_multiple_of(*unit) && seconds > 0)
            .unwrap_or((1, 's'));
        write!(f, "{}{letter}", seconds / unit)
    }
}

/// When a certificate is due for renewal; as text a share of its lifetime such as `66%`, or a span before its end such as
/// `12h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// When this share of its own lifetime, in percent from 1 to 99, is over.
    Share(u8),
    /// This long before its end.
    Before(Lifetime),
}

impl Default for Renewal {
    /// Two thirds of the lifetime, as step and certbot have it.
    fn default() -> Self {
        Self::Share(66)
    }
}

impl FromStr for Renewal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(share) = text.strip_suffix('%') {
            return match share.parse() {
                Ok(share @ 1..=99) => Ok(Self::Share(share)),
                _ => Err(Error::Value {
                    what: "renewal",
                    value: text.into(),
                    accepted: "a share from 1% to 99% of the lifetime, or a span before the end such as 12h",
                }),
            };
        }
        text.parse().map(Self::Before)
    }
}

impl std::fmt::Display for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Share(percent) => write!(f, "{percent}%"),
            Self::Before(span) => write!(f, "{span}"),
        }
    }
}

/// How long before `now` the validity of a new certificate begins at most, for guests whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(3_600);

/// How long a CRL of the intermediate holds; it is made anew when half of that is over.
pub const INTERMEDIATE_CRL: Lifetime = Lifetime::days(7);

/// How long a CRL of the root holds; it is made anew when half of that is over and the root key is at hand.
pub const ROOT_CRL: Lifetime = Lifetime::days(365);

/// The longest span there is a use for; ends beyond the year 9999 cannot be written.
const LONGEST: Lifetime = Lifetime::days(36_500);

/// The least a leaf may live.
pub const SHORTEST_LEAF: Lifetime = Lifetime(Duration::from_secs(60));

/// The most a leaf may live: Apple's bound for certificates of any authority (support document 103769).
pub const LONGEST_LEAF: Lifetime = Lifetime::days(825);

/// A leaf that is wanted: what `ensure` and `issue` are given.
///
/// ```
/// use phoenix_pki::{LeafParams, Lifetime};
///
/// let wanted = LeafParams {
///     lifetime: "30d".parse()?,
///     ..LeafParams::server(["nginx.internal.example", "10.0.0.101"])?
/// };
/// assert_eq!(wanted.label(), "nginx.internal.example");
/// assert_eq!(wanted.lifetime, Lifetime::days(30));
/// # Ok::<(), phoenix_pki::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LeafParams {
    /// What the store calls it, when the names alone do not tell it from another.
    pub name: Option<String>,
    /// The subject alternative names; the first DNS name of at most 64 characters gives the common name.
    pub names: Vec<Name>,
    /// What it is for.
    pub profile: Profile,
    /// The kind of its key.
    pub key_type: KeyType,
    /// How long it lives, at most [`LONGEST_LEAF`] and never past its issuer.
    pub lifetime: Lifetime,
    /// When it is due for renewal.
    pub renewal: Renewal,
}

impl LeafParams {
    /// A server certificate for these names: ECDSA P-256, 90 days.
    ///
    /// # Errors
    /// [`Error::Value`] for what is no name, and for no name at all.
    pub fn server<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::new(Profile::Server, names)
    }

    /// A client certificate with these identities.
    ///
    /// # Errors
    /// As [`LeafParams::server`].
    pub fn client<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::new(Profile::Client, names)
    }

    /// A certificate for a program that is both server and client.
    ///
    /// # Errors
    /// As [`LeafParams::server`].
    pub fn peer<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::new(Profile::Peer, names)
    }

    /// A certificate of any profile.
    ///
    /// # Errors
    /// As [`LeafParams::server`].
    pub fn new<S: AsRef<str>>(profile: Profile, names: impl IntoIterator<Item = S>) -> Result<Self> {
        let names = names.into_iter().map(|name| name.as_ref().parse()).collect::<Result<Vec<_>>>()?;
        if names.is_empty() {
            return Err(Error::Value { what: "names", value: "[]".into(), accepted: "at least one name" });
        }
        Ok(Self {
            name: None,
            names,
            profile,
            key_type: KeyType::default(),
            lifetime: Lifetime::days(90),
            renewal: Renewal::default(),
        })
    }

    /// What the store calls it: `name`, or the first name with the profile behind it unless it is a server's.
    pub fn label(&self) -> String {
        let first = || {
            let first = self.names.first().map(Name::to_string).unwrap_or_default();
            let first = first.replace("*.", "_wildcard.");
            match self.profile {
                Profile::Server => first,
                other => format!("{first}+{other}"),
            }
        };
        self.name.clone().unwrap_or_else(first)
    }

    /// Checks what the types leave open: the label, the names and the lifetime.
    ///
    /// # Errors
    /// [`Error::Value`].
    pub fn check(&self) -> Result<()> {
        let label = self.label();
        let sound = !label.is_empty()
            && label.len() <= 255
            && !label.starts_with(['.', '-'])
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | ':'));
        if !sound {
            let accepted = "at most 255 letters, digits and . - _ + : and not one of . - at the start";
            return Err(Error::Value { what: "certificate name", value: label, accepted });
        }
        if self.names.is_empty() {
            return Err(Error::Value { what: "names", value: "[]".into(), accepted: "at least one name" });
        }
        // A name can be put together without being parsed.
        if let Some(name) = self.names.iter().find(|name| !name.is_sound()) {
            let accepted = "a DNS name in lower-case A-labels, or an IP address; names that are parsed from text are";
            return Err(Error::Value { what: "name", value: name.to_string(), accepted });
        }
        if self.lifetime > LONGEST_LEAF {
            let accepted = "a leaf lives at most 825d: clients refuse longer ones";
            return Err(Error::Value { what: "lifetime", value: self.lifetime.to_string(), accepted });
        }
        if self.lifetime < SHORTEST_LEAF {
            let accepted = "a leaf lives at least 60s";
            return Err(Error::Value { what: "lifetime", value: self.lifetime.to_string(), accepted });
        }
        // One that is due from its first second on would be made anew in every run.
        let (life, backdated) = (self.lifetime.duration().as_secs(), self.lifetime.backdate().as_secs());
        let rests = match self.renewal {
            Renewal::Share(percent) => {
                matches!(percent, 1..=99) && (life + backdated) * u64::from(percent) / 100 > backdated
            }
            Renewal::Before(span) => span.duration().as_secs() + 1 < life,
        };
        if !rests {
            let value = format!("{} of {}", self.renewal, self.lifetime);
            let accepted = "a new certificate would be due at once; renew later in its life, or let it live longer";
            return Err(Error::Value { what: "renewal", value, accepted });
        }
        Ok(())
    }
}

/// Where a passphrase comes from. The passphrase itself is read when a key is opened, and wiped after.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PassphraseSource {
    /// The first line of a file that only its owner may read.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
}

/// How the root key rests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootKey {
    /// Encrypted with a passphrase that Phoenix makes, in a file of mode 0600 beside the store (`<store>.passphrase`),
    /// so that neither the store nor a copy of it opens the root. Move that file to where you keep such things.
    #[default]
    Generated,
    /// Encrypted with this passphrase.
    Encrypted(PassphraseSource),
    /// As it is, mode 0600. The audit reports it.
    Plain,
}

/// The shape of an authority that is to be made: a root and an intermediate below it.
#[derive(Clone, Debug)]
pub struct AuthorityParams {
    /// The organisation in its subjects, such as `ThinkHeads Internal`.
    pub name: String,
    /// Its name constraints.
    pub permitted: Permitted,
    /// The kind of both keys.
    pub key_type: KeyType,
    /// How long the root lives.
    pub root_lifetime: Lifetime,
    /// How long the intermediate lives.
    pub intermediate_lifetime: Lifetime,
    /// How the root key rests.
    pub root_key: RootKey,
}

impl AuthorityParams {
    /// An authority with ECDSA P-256 keys, a root of ten years and an intermediate of five.
    pub fn new(name: impl Into<String>, permitted: Permitted) -> Self {
        Self {
            name: name.into(),
            permitted,
            key_type: KeyType::default(),
            root_lifetime: Lifetime::days(3_650),
            intermediate_lifetime: Lifetime::days(1_825),
            root_key: RootKey::default(),
        }
    }

    /// Checks what the types leave open: the name, the permitted subtrees and the lifetimes.
    ///
    /// # Errors
    /// [`Error::Value`].
    pub fn check(&self) -> Result<()> {
        self.check_name()?;
        if self.permitted == Permitted::default() {
            let accepted = "at least one domain or network: it could not certify anything";
            return Err(Error::Value { what: "permitted", value: "[]".into(), accepted });
        }
        for (what, lifetime) in
            [("root lifetime", self.root_lifetime), ("intermediate lifetime", self.intermediate_lifetime)]
        {
            if !(SHORTEST_LEAF..=LONGEST).contains(&lifetime) {
                let accepted = "an authority lives from 60s to 100y";
                return Err(Error::Value { what, value: lifetime.to_string(), accepted });
            }
        }
        if self.intermediate_lifetime > self.root_lifetime {
            let (value, accepted) =
                (self.intermediate_lifetime.to_string(), "an intermediate does not outlive its root");
            return Err(Error::Value { what: "intermediate lifetime", value, accepted });
        }
        Ok(())
    }

    /// The name stands in two common names with more behind it, and those have 64 characters (RFC 5280 appendix A).
    pub(crate) fn check_name(&self) -> Result<()> {
        let name = self.name.as_str();
        match !name.is_empty() && name.trim() == name && name.chars().count() <= 40 && !name.contains(char::is_control)
        {
            true => Ok(()),
            false => {
                let accepted = "1 to 40 characters, no control characters, no space at either end";
                Err(Error::Value { what: "authority name", value: name.into(), accepted })
            }
        }
    }
}

/// Why a certificate is revoked (RFC 5280 §5.3.1); as text in lower case with hyphens, such as `key-compromise`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Revocation {
    /// No reason is given.
    #[default]
    Unspecified,
    /// The key is, or may be, in other hands.
    KeyCompromise,
    /// The holder changed its name or role.
    AffiliationChanged,
    /// Another certificate took its place.
    Superseded,
    /// The service is gone.
    CessationOfOperation,
}

impl Revocation {
    /// Every reason with its name.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Unspecified, "unspecified"),
        (Self::KeyCompromise, "key-compromise"),
        (Self::AffiliationChanged, "affiliation-changed"),
        (Self::Superseded, "superseded"),
        (Self::CessationOfOperation, "cessation-of-operation"),
    ];
}

impl std::fmt::Display for Revocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::ALL.iter().find(|(reason, _)| reason == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Revocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(reason, _)| *reason).ok_or_else(|| Error::Value {
            what: "revocation reason",
            value: text.into(),
            accepted: "unspecified, key-compromise, affiliation-changed, superseded or cessation-of-operation",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_with_one_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("24h", 86_400), ("90d", 7_776_000), ("2y", 63_072_000)] {
            assert_eq!(text.parse::<Lifetime>().unwrap().duration().as_secs(), seconds);
        }
        assert_eq!(Lifetime::hours(24).to_string(), "1d");
        for text in ["", "d", "0d", "-1d", "1.5d", "90", "90 d", "1w", "101y", "99999999999999999999d", "1d2h", "1é"] {
            assert!(text.parse::<Lifetime>().is_err(), "{text:?} was accepted");
        }
        assert_eq!("75%".parse::<Renewal>().unwrap(), Renewal::Share(75));
        assert_eq!("12h".parse::<Renewal>().unwrap(), Renewal::Before(Lifetime::hours(12)));
        for text in ["0%", "100%", "256%", "%", "x"] {
            assert!(text.parse::<Renewal>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn what_would_never_rest_is_refused() {
        for (lifetime, renewal, sound) in [
            ("90d", "66%", true),
            ("24h", "66%", true),
            ("1h", "66%", true),
            ("60s", "12h", false),
            ("60s", "66%", true),
            // A tenth of its life lies before its making: less than that is over before it begins.
            ("60s", "9%", false),
            ("60s", "11%", true),
            ("60s", "99%", true),
            ("60s", "30s", true),
            ("59s", "1s", false),
            ("24h", "24h", false),
            ("24h", "86399s", false),
            ("24h", "86398s", true),
            ("24h", "2d", false),
            ("825d", "1%", true),
            ("826d", "66%", false),
        ] {
            let wanted = LeafParams {
                lifetime: lifetime.parse().unwrap(),
                renewal: renewal.parse().unwrap(),
                ..LeafParams::server(["a.internal.example"]).unwrap()
            };
            assert_eq!(wanted.check().is_ok(), sound, "{renewal} of {lifetime}");
        }
    }

    #[test]
    fn names_that_were_not_parsed_are_checked() {
        for name in ["a_b.internal.example", "A.internal.example", "*.*.internal.example", "10.0.0.1", "a b"] {
            let wanted = LeafParams { names: vec![Name::Dns(name.into())], ..LeafParams::server(["a"]).unwrap() };
            let wanted = LeafParams { name: Some("label".into()), ..wanted };
            assert!(wanted.check().is_err(), "{name:?} was accepted");
        }
    }

    #[test]
    fn an_authority_that_could_not_serve_is_refused() {
        let sound = || AuthorityParams::new("Example", Permitted::parse(["internal.example"]).unwrap());
        sound().check().unwrap();
        let named = |name: &str| AuthorityParams { name: name.into(), ..sound() };
        named(&"ä".repeat(40)).check().unwrap();
        for params in [
            named(""),
            named(" a"),
            named("a\nb"),
            named(&"a".repeat(41)),
            AuthorityParams { permitted: Permitted::default(), ..sound() },
            AuthorityParams { root_lifetime: Lifetime::days(u32::MAX), ..sound() },
            AuthorityParams { root_lifetime: Duration::MAX.into(), ..sound() },
            AuthorityParams { intermediate_lifetime: Lifetime::days(101 * 365), ..sound() },
            AuthorityParams { intermediate_lifetime: Lifetime::days(0), ..sound() },
            AuthorityParams { intermediate_lifetime: Lifetime::days(3_651), ..sound() },
        ] {
            assert!(params.check().is_err(), "{params:?} was accepted");
        }
    }

    #[test]
    fn profiles_and_reasons_are_read_as_they_are_written() {
        for profile in [Profile::Server, Profile::Client, Profile::Peer] {
            assert_eq!(profile.to_string().parse::<Profile>().unwrap(), profile);
        }
        for (reason, name) in Revocation::ALL {
            assert_eq!((reason.to_string().as_str(), name.parse::<Revocation>().unwrap()), (name, reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), name);
        }
        assert!("Server".parse::<Profile>().is_err() && "".parse::<Revocation>().is_err());
    }

    #[test]
    fn labels_are_safe_file_names() {
        let label = |names: &[&str], profile| LeafParams::new(profile, names).unwrap().label();
        assert_eq!(label(&["*.internal.example"], Profile::Server), "_wildcard.internal.example");
        assert_eq!(label(&["gateway"], Profile::Client), "gateway+client");
        assert_eq!(label(&["fd00::1"], Profile::Server), "fd00::1");
        for name in ["", ".", "..", "../x", "a/b", "-rf", "a b", "a\nb"] {
            let wanted = LeafParams { name: Some(name.into()), ..LeafParams::server(["a"]).unwrap() };
            assert!(wanted.check().is_err(), "{name:?} was accepted");
        }
    }
}
