//! A whole inventory from a program: `cargo run -p phoenix-examples --bin converge [DIR]`.
//! The command does the same with a progress bar, a table and a sandbox.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;

use phoenix_guest::inventory::Inventory;
use phoenix_guest::{Event, Options, converge, reach};
use time::OffsetDateTime;

const INVENTORY: &str = r#"
authority = { name = "Example Internal", store = "store" }
trust = { select = "all" }

[[guest]]
id = "web"
type = "rootfs"
path = "web"

[[certificate]]
names = ["*.internal.example"]

[[certificate.deliver]]
guest = "web"
cert = { path = "/etc/nginx/ssl/nginx.crt" }
key = { path = "/etc/nginx/ssl/nginx.key" }
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let directory =
        std::env::args_os().nth(1).map_or_else(phoenix_examples::scratch, |path| Ok(PathBuf::from(path)))?;
    std::fs::create_dir_all(directory.join("web/etc"))?;
    std::fs::write(directory.join("web/etc/os-release"), "ID=debian\n")?;
    // The inventory's paths are relative: they start here.
    std::env::set_current_dir(&directory)?;

    let inventory = Inventory::parse(INVENTORY, "inventory")?;
    let now = OffsetDateTime::now_utc();
    let events = |event: Event<'_>| {
        if let Event::Working { guest, what } = event {
            println!("  {guest}: {what}");
        }
    };
    for _ in 0..2 {
        let report = converge(&inventory, &reach, &Options::default(), now, &events)?;
        println!("changed: {}, holds: {}", report.changed(), report.holds());
        for delivery in report.guests.iter().flat_map(|guest| &guest.deliveries) {
            println!("{} {:?}", delivery.path, delivery.proof.as_ref().map(ToString::to_string));
        }
    }
    Ok(())
}
