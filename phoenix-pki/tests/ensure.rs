//! The verb of daily use, against a store on disk.

use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, Reason, RootKey, Store};
use time::OffsetDateTime;
use time::macros::datetime;

const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

fn params() -> AuthorityParams {
    let permitted = Permitted::parse(["internal.example", "10.0.0.0/8"]).unwrap();
    AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new("Example Internal", permitted) }
}

#[test]
fn the_second_ensure_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path().join("store"));
    let authority = Authority::open_or_create(&store, &params(), NOW).unwrap();
    let wanted = LeafParams::server(["nginx.internal.example", "10.0.0.101"]).unwrap();

    let first = authority.ensure(&wanted, NOW).unwrap();
    assert_eq!(first.reason, Reason::Missing);
    let second = authority.ensure(&wanted, NOW).unwrap();
    assert!(!second.changed());
    assert_eq!(first.leaf.certificate(), second.leaf.certificate());
}
