//! Paths, modes and owners inside a guest: parsed, never looked up.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// An absolute path inside a guest, free of `..`, control characters and a trailing slash.
///
/// Parsed from text of at most 4096 bytes, each component at most 255; nothing is normalised, `.` and `//` are refused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPath(String);

impl GuestPath {
    /// The root of the guest, `/`.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory that holds it; `/` for a path directly below the root.
    pub fn parent(&self) -> Self {
        match self.0.rfind('/') {
            Some(0) | None => Self::root(),
            Some(at) => Self(self.0[..at].into()),
        }
    }

    /// The last component.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The path one or more components below this one.
    ///
    /// # Errors
    /// [`Error::Value`] when the result is not a guest path.
    pub fn join(&self, below: &str) -> Result<Self> {
        format!("{}/{below}", self.0.trim_end_matches('/')).parse()
    }
}

impl FromStr for GuestPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let sound = text.starts_with('/')
            && text.len() <= 4096
            && !text.chars().any(char::is_control)
            && (text == "/" || !text.ends_with('/'))
            && (text == "/" || text[1..].split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255));
        if sound {
            return Ok(Self(text.into()));
        }
        Err(Error::Value {
            what: "path",
            value: text.into(),
            accepted: "an absolute path without '.', '..', '//', control characters or a trailing slash, such as /etc/nginx/ssl/nginx.crt",
        })
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Permission bits of a file, `0o000` to `0o777`; as text three or four octal digits such as `0640`, perhaps after `0o`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode(u32);

impl Mode {
    /// Readable by all, writable by the owner: certificates.
    pub const CERTIFICATE: Self = Self(0o644);
    /// For the owner alone: private keys.
    pub const KEY: Self = Self(0o600);

    /// The mode of these permission bits.
    ///
    /// # Errors
    /// [`Error::Value`] for bits beyond `0o777`.
    pub fn new(bits: u32) -> Result<Self> {
        if bits <= 0o777 {
            return Ok(Self(bits));
        }
        Err(Error::Value { what: "mode", value: format!("{bits:#o}"), accepted: "permission bits from 0000 to 0777" })
    }

    /// The permission bits of a file's `st_mode`.
    pub(crate) fn of(st_mode: u32) -> Self {
        Self(st_mode & 0o777)
    }

    /// The permission bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let refused = || Error::Value {
            what: "mode",
            value: text.into(),
            accepted: "three or four octal digits, such as \"0640\"",
        };
        if !(3..=4).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(refused());
        }
        Self::new(u32::from_str_radix(digits, 8).map_err(|_| refused())?).map_err(|_| refused())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A user or a group of the guest: by name, as its own `/etc/passwd` and `/etc/group` have it, or by number.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Id {
    /// A name of the guest.
    Name(String),
    /// A number of the guest, never one of the host.
    Number(u32),
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused =
            || Error::Value { what: "owner", value: text.into(), accepted: "a name or a number, such as \"www-data\"" };
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            // The highest number means "leave as it is" to chown(2).
            return text.parse().ok().filter(|number| *number != u32::MAX).map(Self::Number).ok_or_else(refused);
        }
        // What useradd(8) accepts, plus the capitals and dots that some distributions allow.
        let sound = text.len() <= 32
            && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
        if sound { Ok(Self::Name(text.into())) } else { Err(refused()) }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// Who owns a file in the guest, written `user:group`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Owner {
    /// The owning user.
    pub user: Id,
    /// The owning group.
    pub group: Id,
}

impl Owner {
    /// `root:root`, by number.
    pub const ROOT: Self = Self { user: Id::Number(0), group: Id::Number(0) };
}

impl FromStr for Owner {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split_once(':')
            .and_then(|(user, group)| Some(Self { user: user.parse().ok()?, group: group.parse().ok()? }))
            .ok_or_else(|| Error::Value {
                what: "owner",
                value: text.into(),
                accepted: "user:group, names or numbers, such as \"root:www-data\"",
            })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.user, self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_absolute_and_plain() {
        let long = format!("/{}", "n".repeat(255));
        for sound in ["/", "/etc", "/etc/nginx/ssl/nginx.crt", "/a b/ü/*", "/...", "/.hidden", "/-n", long.as_str()] {
            assert_eq!(sound.parse::<GuestPath>().unwrap().as_str(), sound);
        }
        let too_long = [format!("/{}", "n".repeat(256)), "/n".repeat(2049)];
        let refused =
            ["", "etc", "./etc", "//", "/etc/", "/etc//ssl", "/.", "/..", "/etc/../ssl", "/etc/.", "/a\nb", "/a\0"];
        for refused in refused.into_iter().chain(["/\x1b[2J", "/\u{85}"]).chain(too_long.iter().map(String::as_str)) {
            assert!(matches!(refused.parse::<GuestPath>(), Err(Error::Value { what: "path", .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_path_knows_its_surroundings() {
        for (path, parent, name) in [("/a/b", "/a", "b"), ("/a", "/", "a"), ("/", "/", "")] {
            let path: GuestPath = path.parse().unwrap();
            assert_eq!((path.parent().as_str(), path.file_name()), (parent, name));
        }
        assert_eq!(GuestPath::root().join("a/b").unwrap().as_str(), "/a/b");
        let etc: GuestPath = "/etc".parse().unwrap();
        assert_eq!(etc.join("ssl").unwrap().as_str(), "/etc/ssl");
        for refused in ["", "..", "/ssl", "ssl/", "a/../b"] {
            assert!(etc.join(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_mode_is_octal_and_has_permission_bits_alone() {
        for (text, bits) in [("0640", 0o640), ("640", 0o640), ("0o644", 0o644), ("000", 0), ("0777", 0o777)] {
            assert_eq!(text.parse::<Mode>().unwrap().bits(), bits);
        }
        for refused in ["", "0", "64", "0648", "1777", "4755", "00640", "-640", "+640", "0x1ff", "0o", "rw-", " 640"] {
            assert!(matches!(refused.parse::<Mode>(), Err(Error::Value { what: "mode", .. })), "{refused:?}");
        }
        assert!(Mode::new(0o1000).is_err());
        assert_eq!(Mode::of(0o104755).bits(), 0o755);
        assert_eq!((Mode::KEY.to_string(), format!("{:?}", Mode::CERTIFICATE)), ("0600".into(), "0644".into()));
    }

    #[test]
    fn an_owner_is_two_names_or_numbers() {
        let name = |text: &str| Id::Name(text.into());
        for (text, user, group) in [
            ("root:www-data", name("root"), name("www-data")),
            ("0:33", Id::Number(0), Id::Number(33)),
            ("_apt:65534", name("_apt"), Id::Number(65534)),
            ("First.Last:g_1", name("First.Last"), name("g_1")),
            ("4294967294:0", Id::Number(u32::MAX - 1), Id::Number(0)),
        ] {
            let owner: Owner = text.parse().unwrap();
            assert_eq!((&owner.user, &owner.group), (&user, &group));
            assert_eq!(owner.to_string(), text);
        }
        let long = format!("{}:root", "n".repeat(33));
        for refused in
            ["", ":", "root", "root:", ":root", "a:b:c", "4294967295:0", "-1:0", "1a:0", "a b:c", "a\n:b", "é:b", &long]
        {
            assert!(matches!(refused.parse::<Owner>(), Err(Error::Value { what: "owner", .. })), "{refused:?}");
        }
        assert_eq!(Owner::ROOT.to_string(), "0:0");
    }
}
