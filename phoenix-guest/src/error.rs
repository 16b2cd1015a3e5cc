//! What can go wrong with a guest: each variant says what was attempted, on which guest, on what.

use std::time::Duration;

use phoenix_pki::Fingerprint;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong between the hypervisor and a guest.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was given as a trust anchor may not be trusted as one.
    #[error("{subject:?} is no trust anchor: {why}")]
    Anchor {
        /// Its subject.
        subject: String,
        /// What it lacks.
        why: &'static str,
    },
    /// The authority or the store failed.
    #[error("the authority cannot do its part")]
    Authority {
        /// The cause.
        source: Box<phoenix_pki::Error>,
    },
    /// A certificate of the inventory cannot be made.
    #[error("{origin}: certificate.names")]
    Certificate {
        /// The file and line of its entry.
        origin: String,
        /// The cause.
        source: Box<phoenix_pki::Error>,
    },
    /// A command ended with a status that is not zero.
    #[error("guest {guest}: {argv} ended with status {status}{}", tail(stderr))]
    Command {
        /// The guest's name.
        guest: String,
        /// The program and its arguments, as one printable line.
        argv: String,
        /// The exit status.
        status: i32,
        /// The end of standard error, control characters removed.
        stderr: String,
    },
    /// A deadline passed.
    #[error("guest {guest}: {attempted} took longer than {limit:.0?}")]
    Deadline {
        /// The guest's name.
        guest: String,
        /// What was attempted.
        attempted: String,
        /// The time it had.
        limit: Duration,
    },
    /// A file operation in the guest failed.
    #[error("guest {guest}: cannot {attempted} {path}")]
    File {
        /// The guest's name.
        guest: String,
        /// The verb: `read`, `write`, `link`, `remove`, `observe`.
        attempted: &'static str,
        /// The path in the guest.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A TLS handshake did not prove what it should.
    #[error("TLS handshake with {address} for {name}: {why}")]
    Handshake {
        /// Where: `host:port`, or `files` for one in this process.
        address: String,
        /// The name that was asked for.
        name: String,
        /// What went wrong.
        why: String,
    },
    /// Something in an inventory cannot be meant.
    #[error("{file}:{line}:{column}: {}{why}", at(key, value))]
    Inventory {
        /// The file, as the caller calls it.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// The keys that lead there, such as `certificate.names`; empty when the text is no TOML.
        key: String,
        /// The value that was given; empty when it is a whole table, or missing.
        value: String,
        /// What is wrong with it, or what is accepted.
        why: String,
    },
    /// What was read back is not what was written.
    #[error("guest {guest}: {path} was written but reads back different: {found} instead of {expected}")]
    ReadBack {
        /// The guest's name.
        guest: String,
        /// The path in the guest.
        path: String,
        /// What was written.
        expected: String,
        /// What was read.
        found: String,
    },
    /// A trust store could not be refreshed. Unless `left` says otherwise, it is as it was before.
    #[error("guest {guest}: the trust store was not refreshed by {argv}; {}", restored(left.as_deref()))]
    Refresh {
        /// The guest's name.
        guest: String,
        /// The program that refreshes it and its arguments, as one printable line.
        argv: String,
        /// What went wrong.
        #[source]
        why: RefreshFailure,
        /// Why the old store could not be put back.
        left: Option<Box<Error>>,
    },
    /// A new pair was put back because the consumer's check, its reload or the proof failed.
    #[error("guest {guest}: {path} {}", rolled_back(rollback))]
    RolledBack {
        /// The guest's name.
        guest: String,
        /// The path of the certificate.
        path: String,
        /// Why it was rolled back.
        source: Box<Error>,
        /// What went wrong while rolling back, if anything did.
        rollback: Option<Box<Error>>,
    },
    /// The guest, or its transport, cannot do this at all.
    #[error("guest {guest}: {what}")]
    Unsupported {
        /// The guest's name.
        guest: String,
        /// What it cannot do, as a sentence without a full stop.
        what: String,
    },
    /// A value is not of an accepted form.
    #[error("{what} {value:?}: {accepted}")]
    Value {
        /// What kind of value: `path`, `mode`, `owner`, `address`.
        what: &'static str,
        /// The value that was given.
        value: String,
        /// What is accepted.
        accepted: &'static str,
    },
}

/// An error and its causes, outermost first.
pub(crate) fn causes(error: &dyn std::error::Error) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some errors hold their cause and say it too.
        if !causes.last().is_some_and(|said| said.contains(&text)) {
            causes.push(text);
        }
        source = cause.source();
    }
    causes
}

/// A failure on the way back: it has no place in the chain of sources, so its own chain is told here.
fn rolled_back(rollback: &Option<Box<Error>>) -> String {
    let Some(error) = rollback else { return "was rolled back".into() };
    format!("was to be rolled back, which failed too: {}", causes(error.as_ref()).join(": "))
}

/// Key and value of an inventory, as far as they are known, before the reason.
fn at(key: &str, value: &str) -> String {
    let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
    if value.is_empty() { key } else { format!("{key}{value:?}: ") }
}

/// Why a trust store was not refreshed.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum RefreshFailure {
    /// A file could not be placed, or the program could not be run to its end.
    #[error(transparent)]
    Failed(#[from] Box<Error>),
    /// The program ended with a status that is not zero.
    #[error("it ended with status {status}{}", tail(stderr))]
    Status {
        /// The exit status.
        status: i32,
        /// The end of standard error, control characters removed.
        stderr: String,
    },
    /// The program claims success, and the bundle is without the anchor.
    #[error("it ended with status 0, and the bundle is without the anchor {subject:?} ({fingerprint})")]
    Missing {
        /// The anchor's subject.
        subject: String,
        /// The anchor's fingerprint.
        fingerprint: Fingerprint,
    },
    /// The program claims success, and the bundle still has an anchor that was removed.
    #[error("it ended with status 0, and the bundle still has the removed anchor {fingerprint}")]
    Remains {
        /// The anchor's fingerprint.
        fingerprint: Fingerprint,
    },
    /// The program claims success, and most of what else was trusted is gone.
    #[error("it ended with status 0, and {lost} of the {before} other certificates left the bundle")]
    Lost {
        /// How many are gone.
        lost: usize,
        /// How many there were.
        before: usize,
    },
}

fn restored(left: Option<&Error>) -> String {
    left.map_or("what it held before was put back".into(), |error| {
        format!("what it held before could not be put back: {error}")
    })
}

/// The end of what a command said, on a line of its own, or nothing.
fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}
