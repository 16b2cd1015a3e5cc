//! What can go wrong with a guest: each variant says what was attempted, on which guest, on what.

use std::time::Duration;

use phoenix_pki::Fingerprint;

use crate::guest::GuestPath;

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
