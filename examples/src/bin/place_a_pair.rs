//! A certificate and its key into a guest, proven there: `cargo run -p phoenix-examples --bin place_a_pair [DIR]`.
//! The guest is a directory; with `Local::new()` it would be this machine.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;

use phoenix_guest::{Placement, Rootfs, ensure_pair};
use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, Store};
use time::OffsetDateTime;

fn main() -> Result<(), Box<dyn Error>> {
    let directory =
        std::env::args_os().nth(1).map_or_else(phoenix_examples::scratch, |path| Ok(PathBuf::from(path)))?;
    let (store, now) = (Store::new(directory.join("store")), OffsetDateTime::now_utc());
    let params = AuthorityParams::new("Example Internal", Permitted::parse(["internal.example"])?);
    let authority = Authority::open_or_create(&store, &params, now)?;
    let leaf = authority.ensure(&LeafParams::server(["nginx.internal.example"])?, now)?.leaf;

    let root = directory.join("guest");
    std::fs::create_dir_all(root.join("etc/nginx/ssl"))?;
    let guest = Rootfs::new("web", root)?;
    let mut placement = Placement::new("/etc/nginx/ssl/nginx.crt".parse()?, "/etc/nginx/ssl/nginx.key".parse()?);
    // In a guest whose programs run, these refuse a pair that does not work, and have it taken.
    placement.check = Some(["nginx", "-t"].map(String::from).into());
    placement.reload = Some(["systemctl", "reload", "nginx"].map(String::from).into());

    // Whom the proof's handshake trusts: the root, and nobody else.
    let anchors = [authority.root().der().clone()];
    for run in 1..=2 {
        let delivered = ensure_pair(&guest, &leaf, &placement, &anchors, now)?;
        println!("run {run}: {} differences", delivered.differences.len());
        if let Some(proof) = delivered.proof {
            println!("run {run}: proven: {proof}");
        }
    }
    Ok(())
}
