//! What can go wrong with a guest: each variant says what was attempted, on which guest, on what.

use std::time::Duration;

use crate::guest::GuestPath;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong between the hypervisor and a guest.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    #[error("guest {guest}: {attempted} took longer than {} s", limit.as_secs_f32())]
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
        path: GuestPath,
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
    /// What was read back is not what was written.
    #[error("guest {guest}: {path} was written but reads back different: {found} instead of {expected}")]
    ReadBack {
        /// The guest's name.
        guest: String,
        /// The path in the guest.
        path: GuestPath,
        /// What was written.
        expected: String,
        /// What was read.
        found: String,
    },
    /// A new pair was put back because the consumer's check, its reload or the proof failed.
    #[error("guest {guest}: {path} was rolled back{}", also(rollback))]
    RolledBack {
        /// The guest's name.
        guest: String,
        /// The path of the certificate.
        path: GuestPath,
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

/// A failure on the way back: it has no place in the chain of sources, so its own chain is told here.
fn also(rollback: &Option<Box<Error>>) -> String {
    let Some(error) = rollback else { return String::new() };
    let causes = std::iter::successors(Some(error.as_ref() as &dyn std::error::Error), |error| error.source());
    format!(", and that failed too: {}", causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// The end of what a command said, on a line of its own, or nothing.
fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}
