//! Converges an inventory, and fails when that changed anything: `nothing_due INVENTORY`.

use phoenix_guest::inventory::Inventory;
use phoenix_guest::{Options, converge, reach};
use time::OffsetDateTime;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: nothing_due INVENTORY")?;
    let inventory = Inventory::parse(&std::fs::read_to_string(&path)?, &path)?;
    let report = converge(&inventory, &reach, &Options::default(), OffsetDateTime::now_utc(), &|_| {})?;
    match report.holds() && !report.changed() {
        true => Ok(()),
        false => Err("something was due".into()),
    }
}
