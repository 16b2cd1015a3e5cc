//! `converge`: the whole inventory, with progress and a report.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use phoenix_pki::{RootKey, Store};
use time::OffsetDateTime;

use super::sandbox::Sandbox;
use super::{FAILED, HOLDS, PENDING, Result, Terminal, load, report};
use crate::converge::{Event, Options, Reached, converge, reach};
use crate::inventory::GuestEntry;

/// Make it as the inventory says, prove it, and do nothing when nothing has changed
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The inventory [default: ./phoenix.toml, then /etc/phoenix/phoenix.toml]
    inventory: Option<PathBuf>,
    /// Only show what would be done, and why; exit code 3 when that is anything
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Try it: every guest is a directory below DIR, laid out when it is not there, and the store is DIR/store
    #[arg(long, value_name = "DIR")]
    sandbox: Option<PathBuf>,
    /// How many guests to work on at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal, now: OffsetDateTime) -> Result<u8> {
    let mut inventory = load(arguments.inventory.as_deref())?;
    let options = Options { dry_run: arguments.dry_run, parallel: arguments.jobs.into() };
    let sandbox = match &arguments.sandbox {
        Some(directory) => Some(Sandbox::of(directory, &mut inventory, options.dry_run)?),
        None => None,
    };
    let reach = |entry: &GuestEntry| -> crate::error::Result<Reached> {
        match &sandbox {
            Some(sandbox) => sandbox.reach(entry),
            None => reach(entry),
        }
    };
    let progress = Progress::new(inventory.guests.len(), terminal.progress);
    let outcome = converge(&inventory, &reach, &options, now, &|event| progress.show(event));
    progress.0.finish_and_clear();
    let outcome = outcome?;
    if arguments.json {
        terminal.say(&format!("{}\n", serde_json::to_string_pretty(&outcome)?))?;
    } else {
        let mut text = report::text(&outcome, now);
        let made = outcome.authority_created;
        if made && inventory.authority.params.root_key == RootKey::Generated {
            let path = Store::new(&inventory.authority.store).passphrase_path();
            text.push_str(&format!(
                "The root key's passphrase is in {}: move that file to where you keep such things.\n",
                path.display()
            ));
        }
        terminal.say(&text)?;
    }
    Ok(match (outcome.failed(), outcome.holds()) {
        (true, _) => FAILED,
        (_, true) => HOLDS,
        _ => PENDING,
    })
}

/// A bar on the terminal that standard error is; elsewhere nothing.
struct Progress(ProgressBar);

impl Progress {
    fn new(guests: usize, shown: bool) -> Self {
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(guests as u64), target);
        // No colour in it, so there is none to take out for NO_COLOR.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} guests  {wide_msg}") {
            bar.set_style(style);
        }
        if shown {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self(bar)
    }

    fn show(&self, event: Event<'_>) {
        match event {
            Event::Waiting => self.0.set_message("another run holds the store: waiting for it"),
            Event::Issuing { due } => self.0.set_message(format!("certificates: {due} due")),
            Event::Working { guest, what } => self.0.set_message(format!("{guest}: {what}")),
            Event::Finished { .. } => self.0.inc(1),
        }
    }
}
