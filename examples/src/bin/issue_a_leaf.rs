//! An authority, and a certificate that is made once and then kept: `cargo run -p phoenix-examples --bin issue_a_leaf [DIR]`.
//! Run it twice with the same directory: the second run makes nothing.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;

use phoenix_pki::{Authority, AuthorityParams, LeafParams, Permitted, Profile, Store, verify};
use time::OffsetDateTime;

fn main() -> Result<(), Box<dyn Error>> {
    let directory =
        std::env::args_os().nth(1).map_or_else(phoenix_examples::scratch, |path| Ok(PathBuf::from(path)))?;
    let (store, now) = (Store::new(directory.join("store")), OffsetDateTime::now_utc());

    // What the authority may ever certify is written into its certificates.
    let permitted = Permitted::parse(["internal.example", "10.0.0.0/8"])?;
    let authority = Authority::open_or_create(&store, &AuthorityParams::new("Example Internal", permitted), now)?;

    let wanted =
        LeafParams { lifetime: "30d".parse()?, ..LeafParams::server(["nginx.internal.example", "10.0.0.101"])? };
    let ensured = authority.ensure(&wanted, now)?;
    println!("{}: {}", wanted.label(), ensured.reason);

    // Another look at it, by the rules that its clients apply.
    let chain = ensured.leaf.chain();
    verify(chain, &[authority.root().clone()], Profile::Server, Some(&"10.0.0.101".parse()?), now)?;
    println!("good for 10.0.0.101 until {}", ensured.leaf.certificate().not_after().date());
    println!("certificate {}", store.certificate_path(ensured.leaf.label()).display());
    Ok(())
}
