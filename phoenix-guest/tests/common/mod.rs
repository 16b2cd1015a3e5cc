//! What several tests need: an authority, leaves, tools that may be missing.
#![allow(dead_code, reason = "each test uses its own part")]

use std::io::Write as _;
use std::path::Path;

use phoenix_pki::{Authority, AuthorityParams, Leaf, LeafParams, Permitted, RootKey, Store};
use time::{Duration, OffsetDateTime};

pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub(crate) fn authority(directory: &Path) -> Authority {
    let permitted =
        Permitted::parse(["internal.example", "localhost", "127.0.0.0/8", "10.0.0.0/8", "::1/128"]).unwrap();
    let params = AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new("Example Internal", permitted) };
    Authority::open_or_create(&Store::new(directory), &params, now() - Duration::hours(3)).unwrap()
}

/// A new server certificate for `www.internal.example` and the loopback addresses.
pub(crate) fn server(authority: &Authority) -> Leaf {
    authority.issue(&LeafParams::server(["www.internal.example", "127.0.0.1", "::1"]).unwrap(), now()).unwrap()
}

/// Whether all of these programs are here. If one is not, the test is skipped by name: on standard output and in the file
/// that `PHOENIX_SKIPPED` names.
pub(crate) fn has(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let mut directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter();
        !directories.any(|directory| Path::new(directory).join(program).exists())
    });
    missing.map(|program| skip(test, &format!("{program} is not installed"))).is_none()
}

pub(crate) fn skip(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
    if let Some(file) = std::env::var_os("PHOENIX_SKIPPED") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}
