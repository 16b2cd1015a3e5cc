//! Names that a certificate can carry, and the name constraints that bound them. The only name validation.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::error::{Error, Result};

/// A subject alternative name: a DNS name, perhaps a wildcard, or an IP address.
///
/// Parsed from text: an address becomes [`Name::Ip`], everything else a DNS name in lower-case A-labels
/// (RFC 5890), so two spellings of one name are equal.
///
/// ```
/// use phoenix_pki::Name;
///
/// let name: Name = "*.Internal.ThinkHeads.ai".parse()?;
/// assert_eq!(name.to_string(), "*.internal.thinkheads.ai");
/// assert!("a.*.b".parse::<Name>().is_err());
/// # Ok::<(), phoenix_pki::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Name {
    /// A dNSName in lower-case A-labels, its whole left label perhaps `*`.
    Dns(String),
    /// An iPAddress.
    Ip(IpAddr),
}

impl Name {
    /// A name as a certificate has it. What somebody else issued may hold names that Phoenix would not: those compare as text.
    pub(crate) fn found(text: &str) -> Self {
        text.parse().unwrap_or_else(|_| Self::Dns(text.to_ascii_lowercase()))
    }

    /// Whether it is one that parsing gives.
    pub(crate) fn is_sound(&self) -> bool {
        self.to_string().parse().is_ok_and(|parsed: Self| parsed == *self)
    }

    /// Whether this is a wildcard such as `*.internal.example`.
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Dns(name) if name.starts_with("*."))
    }

    /// A concrete name that this one covers: itself, or for a wildcard a host below it.
    pub fn example(&self) -> Self {
        match self {
            Self::Dns(name) if self.is_wildcard() => Self::Dns(format!("phoenix-check{}", &name[1..])),
            other => other.clone(),
        }
    }

    /// Whether a certificate with this name is good for `host` (RFC 6125 §6.4.3: `*` stands for one label).
    pub fn covers(&self, host: &Self) -> bool {
        match (self, host) {
            (Self::Dns(pattern), Self::Dns(name)) if self.is_wildcard() && !host.is_wildcard() => {
                name.split_once('.').is_some_and(|(_, rest)| rest == &pattern[2..])
            }
            _ => self == host,
        }
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |accepted| Error::Value { what: "name", value: text.into(), accepted };
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(address.to_canonical()));
        }
        let (star, host) = match text.strip_prefix("*.") {
            Some(host) => ("*.", host),
            None => ("", text),
        };
        if host.contains('*') {
            return Err(refused("a wildcard is `*` as the whole left label, such as *.internal.example"));
        }
        if host.ends_with('.') {
            return Err(refused("a DNS name without the trailing dot"));
        }
        if host.contains([':', '/', '@']) {
            return Err(refused("a DNS name or an IP address, without port, path or scheme"));
        }
        let ascii = idna::domain_to_ascii_strict(host)
            .map_err(|_| refused("a DNS name of letters, digits and hyphens, or an IP address"))?;
        if ascii.len() + star.len() > 253 {
            return Err(refused("a DNS name has at most 253 characters"));
        }
        if ascii.rsplit('.').next().is_none_or(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(refused("a DNS name does not end in a number; an IPv4 address has four"));
        }
        if !star.is_empty() && !ascii.contains('.') {
            return Err(refused("a wildcard needs at least two labels after the `*`"));
        }
        Ok(Self::Dns(format!("{star}{ascii}")))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an authority may certify: its permitted subtrees (RFC 5280 §4.2.1.10).
///
/// `internal.example` permits that name and all below it; `10.0.0.0/8` permits the addresses in it, `10.0.0.1` itself.
/// A kind with no entry at all is excluded altogether.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permitted {
    /// Domains, in lower-case A-labels.
    pub domains: BTreeSet<String>,
    /// Networks.
    pub networks: BTreeSet<IpNet>,
}

/// The address ranges that are private by RFC 1918 and RFC 4193, and the loopback ones.
const PRIVATE: [&str; 6] = ["10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"];

impl Permitted {
    /// The subtrees written as text: domains and networks.
    ///
    /// # Errors
    /// [`Error::Value`] for an entry that is neither.
    pub fn parse<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut permitted = Self::default();
        for entry in entries {
            let entry = entry.as_ref();
            if let Ok(network) = entry.parse::<IpNet>() {
                permitted.networks.insert(network.trunc());
                continue;
            }
            match entry.parse()? {
                Name::Ip(address) => permitted.networks.insert(address.into()),
                name @ Name::Dns(_) if name.is_wildcard() => {
                    return Err(Error::Value {
                        what: "permitted entry",
                        value: entry.into(),
                        accepted: "a domain permits all below it; write it without `*.`",
                    });
                }
                Name::Dns(domain) => permitted.domains.insert(domain),
            };
        }
        Ok(permitted)
    }

    /// The parent domains of these names and the private address ranges, so that tomorrow's guest fits too.
    pub fn around<'a>(names: impl IntoIterator<Item = &'a Name>) -> Self {
        let mut permitted = Self {
            domains: BTreeSet::new(),
            networks: PRIVATE.iter().filter_map(|network| network.parse().ok()).collect(),
        };
        for name in names {
            match name {
                Name::Ip(_) if permitted.permits(name) => {}
                Name::Ip(address) => drop(permitted.networks.insert((*address).into())),
                // A parent of one label would be a whole top-level domain.
                Name::Dns(dns) => drop(permitted.domains.insert(match dns.split_once('.') {
                    Some((_, parent)) if parent.contains('.') => parent.into(),
                    Some((_, parent)) if name.is_wildcard() => parent.into(),
                    _ => dns.clone(),
                })),
            }
        }
        let all = permitted.domains.clone();
        permitted.domains.retain(|domain| !all.iter().any(|other| other != domain && below(domain, other)));
        permitted
    }

    /// Whether everything that `other` permits is permitted here too.
    pub fn covers(&self, other: &Self) -> bool {
        let networks = |inner: &IpNet| self.networks.iter().any(|network| network.contains(inner));
        other.domains.iter().all(|domain| self.domains.iter().any(|own| below(domain, own)))
            && other.networks.iter().all(networks)
    }

    /// Whether a certificate with this name may be issued.
    pub fn permits(&self, name: &Name) -> bool {
        match name {
            Name::Dns(dns) => {
                let host = dns.strip_prefix("*.").unwrap_or(dns);
                self.domains.iter().any(|domain| below(host, domain))
            }
            Name::Ip(address) => self.networks.iter().any(|network| network.contains(address)),
        }
    }
}

/// Whether `host` is `domain` or lies below it; everything lies below the empty one.
fn below(host: &str, domain: &str) -> bool {
    domain.is_empty() || host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

impl fmt::Display for Permitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains = self.domains.iter().cloned();
        let networks = self.networks.iter().map(IpNet::to_string);
        f.write_str(&domains.chain(networks).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_one_spelling() {
        assert_eq!(name("Nginx.Internal.ThinkHeads.AI"), name("nginx.internal.thinkheads.ai"));
        assert_eq!(name("bücher.example"), name("xn--bcher-kva.example"));
        assert_eq!(name("10.0.0.1"), Name::Ip([10, 0, 0, 1].into()));
        assert_eq!(name("::ffff:10.0.0.1"), name("10.0.0.1"));
        assert_eq!(name("FD00::0:1"), name("fd00::1"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a_b.example",
            "-a.example",
            "a-.example",
            "*",
            "*.",
            "*.com",
            "a.*.b",
            "*a.b.c",
            "**.b.c",
            "*.*.b.c",
            "host:443",
            "https://host",
            "user@host",
            "10.0.0.256",
            "10.0.0",
            "1",
            "a b",
            "a\0b",
            "a\nb",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("{}.example", "a".repeat(64)).parse::<Name>().is_err());
        assert!(vec!["abcdefgh"; 40].join(".").parse::<Name>().is_err());
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let wildcard = name("*.internal.example");
        assert!(wildcard.covers(&name("www.internal.example")));
        assert!(!wildcard.covers(&name("internal.example")));
        assert!(!wildcard.covers(&name("a.b.internal.example")));
        assert!(!wildcard.covers(&name("www.notinternal.example")));
    }

    #[test]
    fn the_default_subtrees_leave_room_for_tomorrow() {
        let names = [
            "*.internal.thinkheads.ai",
            "portainer.phoenix.local",
            "agent.agent.phoenix.local",
            "gateway-client",
            "10.0.0.101",
        ]
        .map(name);
        let permitted = Permitted::around(&names);
        assert_eq!(
            permitted.domains,
            ["gateway-client", "internal.thinkheads.ai", "phoenix.local"].map(String::from).into()
        );
        for tomorrow in
            names.iter().cloned().chain(["new.internal.thinkheads.ai", "172.16.100.11", "fd00::9"].map(name))
        {
            assert!(permitted.permits(&tomorrow), "{tomorrow}");
        }
        for outside in ["example.com", "local", "notphoenix.local", "8.8.8.8", "2001:db8::1"] {
            assert!(!permitted.permits(&name(outside)), "{outside}");
        }
    }
}
