//! A report for people.

use comfy_table::{Table, presets};
use phoenix_pki::{CrlRefresh, CrlState};
use time::OffsetDateTime;

use super::until;
use crate::report::{CertificateReport, DeliveryReport, GuestReport, Report, State, TrustReport};

/// The certificates, then each guest, then one line that sums it up.
pub(super) fn text(report: &Report, now: OffsetDateTime) -> String {
    let mut certificates = table(["CERTIFICATE", "FOR", "UNTIL", "WHAT"]);
    for certificate in &report.certificates {
        certificates.add_row([
            short(certificate),
            certificate.profile.to_string(),
            certificate.not_after.map(|end| until(end, now)).unwrap_or_default(),
            what(certificate),
        ]);
    }
    let mut guests = table(["GUEST", "STATE", "PROOF"]);
    for guest in &report.guests {
        guests.add_rows(rows(guest));
    }
    format!("{}\n{}\n\n{}\n\n{}\n", authority(report), plain(&certificates), plain(&guests), summary(report))
}

/// A table without lines and as wide as it is: a path that was broken to fit a terminal could not be copied from it.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The table without spaces at the end of its lines.
pub(super) fn plain(table: &Table) -> String {
    table.trim_fmt()
}

fn authority(report: &Report) -> String {
    let mut text = match (&report.root, report.authority_created) {
        (Some(root), true) => format!("authority made, root SHA-256 {root}\n"),
        (Some(root), false) => format!("authority root SHA-256 {root}\n"),
        (None, _) => "authority would be made\n".into(),
    };
    let crls = report.crls.iter().flat_map(|crls| [("root", &crls.root), ("intermediate", &crls.intermediate)]);
    for (role, state) in crls {
        match state {
            CrlState::Written => text.push_str(&format!("CRL of the {role} written\n")),
            CrlState::Due => text.push_str(&format!("CRL of the {role} would be written\n")),
            CrlState::Waiting { why } => text.push_str(&format!("CRL of the {role} is due, and waits: {why}\n")),
            _ => {}
        }
    }
    text
}

/// What people call a certificate: the name it was given or its first one, and how many more there are.
fn short(certificate: &CertificateReport) -> String {
    let label = certificate.label.replace("_wildcard.", "*.");
    let label = label.trim_end_matches(&format!("+{}", certificate.profile));
    match certificate.names.len() {
        0 | 1 => label.into(),
        more => format!("{label} +{}", more - 1),
    }
}

fn what(certificate: &CertificateReport) -> String {
    match &certificate.state {
        State::Changed => format!("made: {}", certificate.reason),
        State::Due => format!("would be made: {}", certificate.reason),
        state @ State::Failed { .. } => format!("failed: {}", why(state)),
        _ => certificate.reason.to_string(),
    }
}

fn rows(guest: &GuestReport) -> Vec<[String; 3]> {
    let name = match &guest.name {
        Some(name) => format!("{} {name}", guest.guest),
        None => guest.guest.clone(),
    };
    let mut rows = match &guest.state {
        State::Unchanged => vec![[name, String::new(), String::new()]],
        state => vec![[name, word(state), why(state)]],
    };
    rows.extend(guest.trust.iter().flat_map(trust));
    rows.extend(guest.deliveries.iter().map(delivery));
    rows
}

fn trust(trust: &TrustReport) -> Vec<[String; 3]> {
    if trust.stores.is_empty() {
        let why = match &trust.state {
            State::Due => "the root is not made yet".into(),
            state => why(state),
        };
        return vec![["  trust".into(), word(&trust.state), why]];
    }
    let mut rows: Vec<_> = trust
        .stores
        .iter()
        .map(|store| [format!("  trust {}", store.store), word(&trust.state), format!("root {}", store.state)])
        .collect();
    if let (State::Failed { .. }, Some(last)) = (&trust.state, rows.last_mut()) {
        last[2] = format!("{}\n{}", last[2], why(&trust.state));
    }
    rows
}

fn delivery(delivery: &DeliveryReport) -> [String; 3] {
    let mut lines = Vec::new();
    match (&delivery.state, &delivery.proof) {
        (State::Failed { .. } | State::Pending { .. }, _) => lines.push(why(&delivery.state)),
        (State::Due, _) if delivery.differences.is_empty() => lines.push("follows the new certificate".into()),
        (State::Due, _) => lines.extend(delivery.differences.iter().map(ToString::to_string)),
        (_, proof) => lines.extend(proof.iter().map(ToString::to_string)),
    }
    lines.extend(delivery.notes.iter().cloned());
    [format!("  {}", delivery.path), word(&delivery.state), lines.join("\n")]
}

fn word(state: &State) -> String {
    match state {
        State::Unchanged => "unchanged",
        State::Changed => "changed",
        State::Due => "due",
        State::Pending { .. } => "pending",
        State::Failed { .. } => "failed",
    }
    .into()
}

/// What something waits for, or why it failed: each cause below the error that it caused.
fn why(state: &State) -> String {
    match state {
        State::Pending { why } => why.clone(),
        State::Failed { causes } => {
            let indented = |(depth, cause): (usize, &String)| format!("{}{cause}", if depth == 0 { "" } else { "  " });
            causes.iter().enumerate().map(indented).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn summary(report: &Report) -> String {
    let (certificates, guests) = (report.certificates.len(), report.guests.len());
    if report.holds() && !report.changed() {
        let pairs: usize = report.guests.iter().map(|guest| guest.deliveries.len()).sum();
        let trusting = report.guests.iter().filter(|guest| guest.trust.is_some()).count();
        return format!(
            "nothing to do: {pairs} pairs in {guests} guests were proven, {trusting} guests trust the root"
        );
    }
    let count = |matching: fn(&State) -> bool| report.states().filter(|state| matching(state)).count();
    let crls = usize::from(report.crls.as_ref().is_some_and(CrlRefresh::changed));
    let made = crls + usize::from(report.authority_created);
    let changed = made + count(|state| matches!(state, State::Changed | State::Due));
    let word = if report.dry_run { "due" } else { "changed" };
    let pending = count(|state| matches!(state, State::Pending { .. }));
    let failed = count(|state| matches!(state, State::Failed { .. }));
    format!("{certificates} certificates, {guests} guests: {changed} {word}, {pending} pending, {failed} failed")
}
