//! A root into a guest's trust store, and out again: `cargo run -p phoenix-examples --bin trust_a_root [DIR]`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;

use phoenix_guest::{Rootfs, Trust};
use phoenix_pki::{Authority, AuthorityParams, Permitted, Store};
use time::OffsetDateTime;

fn main() -> Result<(), Box<dyn Error>> {
    let directory =
        std::env::args_os().nth(1).map_or_else(phoenix_examples::scratch, |path| Ok(PathBuf::from(path)))?;
    let (store, now) = (Store::new(directory.join("store")), OffsetDateTime::now_utc());
    let params = AuthorityParams::new("Example Internal", Permitted::parse(["internal.example"])?);
    let root = Authority::open_or_create(&store, &params, now)?.root().clone();

    // The guest says what it is, and that says where its anchors and its bundle are.
    let guest = directory.join("guest");
    std::fs::create_dir_all(guest.join("etc"))?;
    std::fs::write(guest.join("etc/os-release"), "ID=debian\n")?;
    let guest = Rootfs::new("web", guest)?;

    let trust = Trust::of(&guest, &["registry.internal.example:5000".into()])?;
    let installed = trust.install(std::slice::from_ref(&root))?;
    println!("installed, changed: {}", installed.changed);
    for status in installed.stores {
        println!("  {}: {}", status.store, status.state);
    }
    println!("in {}: {} anchors", trust.bundle_path()?, trust.bundle()?.len());

    // What we installed we can remove, by its fingerprint.
    println!("removed: {}", trust.remove(&root.fingerprint())?);
    println!("in {}: {} anchors", trust.bundle_path()?, trust.bundle()?.len());
    Ok(())
}
