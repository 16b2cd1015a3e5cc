//! Opens a store and issues one leaf: `one_leaf STORE NAME`.

use phoenix_pki::{Authority, LeafParams, Store};
use time::OffsetDateTime;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(store), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: one_leaf STORE NAME".into());
    };
    Authority::open(&Store::new(store))?.issue(&LeafParams::server([name])?, OffsetDateTime::now_utc())?;
    Ok(())
}
