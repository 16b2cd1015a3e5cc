//! The pair swap, on a root file system.

use phoenix_guest::{Placed, Placement, Rootfs, Serves, ensure_pair};
use phoenix_pki::{Authority, AuthorityParams, Leaf, LeafParams, Permitted, RootKey, Store};
use time::OffsetDateTime;
use time::macros::datetime;

const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

fn authority(directory: &std::path::Path) -> Authority {
    let permitted = Permitted::parse(["internal.example", "10.0.0.0/8"]).unwrap();
    let params = AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new("Example Internal", permitted) };
    Authority::open_or_create(&Store::new(directory.join("store")), &params, NOW).unwrap()
}

fn leaf(authority: &Authority) -> Leaf {
    authority.issue(&LeafParams::server(["nginx.internal.example", "10.0.0.101"]).unwrap(), NOW).unwrap()
}

fn placement() -> Placement {
    Placement {
        root: Some(Placed::certificate("/etc/nginx/ssl/root.crt".parse().unwrap())),
        serves: Some("10.0.0.101:443".parse::<Serves>().unwrap()),
        ..Placement::new("/etc/nginx/ssl/nginx.crt".parse().unwrap(), "/etc/nginx/private/nginx.key".parse().unwrap())
    }
}

#[test]
fn a_pair_is_placed_once_and_replaced_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let root = directory.path().join("guest");
    std::fs::create_dir(&root).unwrap();
    let guest = Rootfs::new("101", &root).unwrap();
    let anchors = [authority.root().der().clone()];

    for round in 0..3 {
        let leaf = leaf(&authority);
        let first = ensure_pair(&guest, &leaf, &placement(), &anchors, NOW).unwrap();
        assert!(first.changed(), "round {round}");
        assert_eq!(*first.proof.unwrap().fingerprint(), leaf.certificate().fingerprint());
        let second = ensure_pair(&guest, &leaf, &placement(), &anchors, NOW).unwrap();
        assert!(!second.changed(), "{:?}", second.differences);
    }
    let generations = std::fs::read_dir(root.join("etc/nginx/ssl/.phoenix/nginx.crt")).unwrap().count();
    assert_eq!(generations, 4, "two generations, current and previous");
}
