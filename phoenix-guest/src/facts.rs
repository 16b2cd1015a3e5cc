//! What a guest says about itself: its distribution, from os-release(5).

use crate::error::Result;
use crate::guest::GuestPath;
use crate::transport::Transport;

/// The longest os-release that is read.
const OS_RELEASE_LIMIT: usize = 64 << 10;

/// A family of distributions: those that keep their trust store in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Debian, Ubuntu and what is made from them.
    Debian,
    /// Red Hat Enterprise Linux, Fedora and what is made from them.
    RedHat,
    /// Alpine Linux.
    Alpine,
    /// Arch Linux.
    Arch,
    /// SUSE Linux Enterprise and openSUSE.
    Suse,
}

impl Family {
    fn of(id: &str) -> Option<Self> {
        match id {
            "debian" | "ubuntu" => Some(Self::Debian),
            "rhel" | "fedora" | "centos" | "rocky" | "almalinux" | "ol" | "amzn" => Some(Self::RedHat),
            "alpine" => Some(Self::Alpine),
            "arch" => Some(Self::Arch),
            "suse" | "opensuse" | "sles" | "sled" => Some(Self::Suse),
            id if id.starts_with("opensuse-") => Some(Self::Suse),
            _ => None,
        }
    }
}

/// What os-release(5) says about a distribution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `ID`, such as `debian`; `linux` where the file names none, as the manual page has it.
    pub id: String,
    /// `ID_LIKE`: what it is made from, closest first.
    pub like: Vec<String>,
}

impl OsRelease {
    /// Reads the text of an os-release file. What is not as os-release(5) wants it does not count.
    pub fn parse(text: &str) -> Self {
        // As in the shell that this file is made for, the last assignment counts.
        let value = |key: &str| {
            let mut assignments = text.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
            assignments.next_back().map(unquoted).unwrap_or_default()
        };
        let id = |word: &str| {
            let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            (!word.is_empty() && word.len() <= 64 && word.bytes().all(sound)).then(|| word.to_ascii_lowercase())
        };
        Self {
            id: id(&value("ID")).unwrap_or_else(|| "linux".into()),
            like: value("ID_LIKE").split_whitespace().filter_map(id).collect(),
        }
    }

    /// Reads the guest's file: `/etc/os-release`, else `/usr/lib/os-release`.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File).
    pub fn of(transport: &dyn Transport) -> Result<Self> {
        for place in ["/etc/os-release", "/usr/lib/os-release"] {
            if let Some(bytes) = transport.get(&place.parse::<GuestPath>()?, OS_RELEASE_LIMIT)? {
                return Ok(Self::parse(&String::from_utf8_lossy(&bytes)));
            }
        }
        Ok(Self::parse(""))
    }

    /// The family that it belongs to, by its own name first; `None` for one that Phoenix does not know.
    pub fn family(&self) -> Option<Family> {
        std::iter::once(&self.id).chain(&self.like).find_map(|id| Family::of(id))
    }
}

/// A shell word: quotes and backslashes removed.
fn unquoted(value: &str) -> String {
    let value = value.trim();
    let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''));
    let inner = quote.and_then(|quote| value[1..].strip_suffix(quote)).unwrap_or(value);
    match quote {
        Some('\'') => inner.into(),
        _ => inner.replace('\\', ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_of_the_id_and_then_of_what_it_is_like() {
        for (text, id, family) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n", "debian", Some(Family::Debian)),
            ("NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n", "ubuntu", Some(Family::Debian)),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "linuxmint", Some(Family::Debian)),
            ("ID=raspbian\r\nID_LIKE=debian\r\n", "raspbian", Some(Family::Debian)),
            ("ID=\"rhel\"\nID_LIKE=\"fedora\"\n", "rhel", Some(Family::RedHat)),
            ("NAME=\"Rocky Linux\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "rocky", Some(Family::RedHat)),
            ("ID=fedora\n", "fedora", Some(Family::RedHat)),
            ("ID='eurolinux'\nID_LIKE='rhel fedora centos'\n", "eurolinux", Some(Family::RedHat)),
            ("NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.20.3\n", "alpine", Some(Family::Alpine)),
            ("ID=arch\nBUILD_ID=rolling\n", "arch", Some(Family::Arch)),
            ("ID=manjaro\nID_LIKE=arch\n", "manjaro", Some(Family::Arch)),
            ("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", "opensuse-leap", Some(Family::Suse)),
            ("ID=\"opensuse-tumbleweed\"\n", "opensuse-tumbleweed", Some(Family::Suse)),
            ("ID=\"sles\"\nID_LIKE=\"suse\"\n", "sles", Some(Family::Suse)),
            ("ID=nixos\n", "nixos", None),
            ("", "linux", None),
            ("ID=\n", "linux", None),
            // The last one counts, comments do not, and a key is a whole word.
            ("ID=debian\nID=alpine\n", "alpine", Some(Family::Alpine)),
            ("#ID=debian\nVARIANT_ID=server\nMY_ID=debian\n", "linux", None),
            // What no identifier can be reaches no report.
            ("ID=\"debian\u{1b}[2J\"\n", "linux", None),
            ("ID=\"de\\bian\"\n", "debian", Some(Family::Debian)),
            ("ID=\"\n", "linux", None),
            ("ID=\"debian\n", "linux", None),
        ] {
            let release = OsRelease::parse(text);
            assert_eq!((release.id.as_str(), release.family()), (id, family), "{text:?}");
        }
    }
}
