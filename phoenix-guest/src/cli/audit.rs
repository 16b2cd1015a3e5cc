//! `audit`: every certificate and anchor, soonest to end first.

use std::path::PathBuf;

use phoenix_pki::Severity;
use time::OffsetDateTime;

use super::report::{plain, table};
use super::sandbox::Sandbox;
use super::{CRITICAL, HOLDS, PENDING, Result, Terminal, load};
use crate::audit::{Audited, audit};
use crate::converge::reach;
use crate::inventory::GuestEntry;

/// Show every certificate and anchor, in the store and in the guests, and what is wrong; change nothing
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The inventory [default: ./phoenix.toml, then /etc/phoenix/phoenix.toml]
    inventory: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    /// Audit what `converge --sandbox DIR` made
    #[arg(long, value_name = "DIR")]
    sandbox: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal, now: OffsetDateTime) -> Result<u8> {
    let mut inventory = load(arguments.inventory.as_deref())?;
    let sandbox = match &arguments.sandbox {
        Some(directory) => Some(Sandbox::of(directory, &mut inventory, true)?),
        None => None,
    };
    let reach = |entry: &GuestEntry| match &sandbox {
        Some(sandbox) => sandbox.reach(entry),
        None => reach(entry),
    };
    let all = audit(&inventory, &reach, 8, now)?;
    match arguments.json {
        true => terminal.say(&format!("{}\n", serde_json::to_string_pretty(&all)?))?,
        false => terminal.say(&text(&all, terminal.fitted))?,
    }
    Ok(match all.iter().map(Audited::severity).max() {
        Some(Severity::Critical) => CRITICAL,
        Some(Severity::Warning) => PENDING,
        _ => HOLDS,
    })
}

fn text(all: &[Audited], fitted: bool) -> String {
    let mut entries = table(["DAYS", "KIND", "NAME", "ISSUER", "WHERE", "STATE"], fitted);
    for entry in all {
        entries.add_row([
            entry.days_left.map(|days| days.to_string()).unwrap_or_default(),
            entry.kind.clone(),
            common_name(&entry.name.replace("_wildcard.", "*.")).into(),
            common_name(&entry.issuer).into(),
            place(entry),
            entry.severity().to_string(),
        ]);
    }
    let mut findings: Vec<_> =
        all.iter().flat_map(|entry| entry.findings.iter().map(move |finding| (entry, finding))).collect();
    // The worst first, and among equals the order of the table.
    findings.sort_by_key(|(_, finding)| std::cmp::Reverse(finding.severity));
    let mut text = format!("{}\n\n", plain(&entries));
    for (entry, finding) in &findings {
        text.push_str(&format!("{}: {}: {}\n", finding.severity, place(entry), finding.what));
    }
    let count = |severity| findings.iter().filter(|(_, finding)| finding.severity == severity).count();
    let (critical, warnings, notices) = (count(Severity::Critical), count(Severity::Warning), count(Severity::Notice));
    let gap = if findings.is_empty() { "" } else { "\n" };
    text.push_str(&format!(
        "{gap}{} audited: {critical} critical, {warnings} warnings, {notices} notices\n",
        all.len()
    ));
    text
}

/// Where it is, with the guest before the path.
fn place(entry: &Audited) -> String {
    match &entry.guest {
        Some(guest) => format!("{guest}:{}", entry.location),
        None => entry.location.clone(),
    }
}

/// The end of a subject, which tells it from others; what is no subject stays as it is.
fn common_name(subject: &str) -> &str {
    subject.rsplit_once("CN=").map_or(subject, |(_, name)| name)
}
