//! What can go wrong in the PKI: each variant says what was attempted and on what.

use std::path::PathBuf;

use time::OffsetDateTime;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong while making, keeping or judging certificates.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An authority is already there, and is never overwritten.
    #[error("{} already holds an authority; it is replaced only by a rotation", store.display())]
    AuthorityExists {
        /// The store.
        store: PathBuf,
    },
    /// The store holds no authority.
    #[error("{} holds no authority yet", store.display())]
    AuthorityMissing {
        /// The store.
        store: PathBuf,
    },
    /// A root or intermediate may not serve as one.
    #[error("{role} certificate {subject:?} cannot be used: {why}")]
    AuthorityUnfit {
        /// `root` or `intermediate`.
        role: &'static str,
        /// Its subject.
        subject: String,
        /// What is wrong with it.
        why: String,
    },
    /// A chain does not verify.
    #[error("certificate {subject:?} does not verify: {why}")]
    Chain {
        /// The subject of the leaf, or its names where that is empty.
        subject: String,
        /// The verifier's verdict.
        why: String,
    },
    /// Certificate and key do not belong together.
    #[error("{}: the private key does not belong to the certificate", origin)]
    KeyMismatch {
        /// Where the pair is from.
        origin: String,
    },
    /// A label means two different certificates.
    #[error("two certificates are called {label:?}; give one of them another `name`")]
    LabelTwice {
        /// The label.
        label: String,
    },
    /// The lock of the store stayed taken.
    #[error("another process holds the lock {} for longer than {seconds} s", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// A name lies outside the authority's name constraints (RFC 5280 §4.2.1.10).
    #[error(
        "{name} is outside what the authority may certify ({permitted}); `rotate` with a wider `permitted` to add it"
    )]
    NotPermitted {
        /// The name.
        name: String,
        /// The permitted subtrees, as one line.
        permitted: String,
    },
    /// Nothing of that name or serial number was ever issued.
    #[error("no certificate {wanted:?} was issued here")]
    NotIssued {
        /// What was looked for.
        wanted: String,
    },
    /// A file with a private key or a passphrase is readable by others.
    #[error("{} has mode {mode:04o}: a file with a key or a passphrase must not be accessible by group or others", path.display())]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something could not be parsed.
    #[error("{origin}: not a usable {what}: {why}")]
    Parse {
        /// The file, or a word for bytes that came from the caller.
        origin: String,
        /// What was expected there.
        what: &'static str,
        /// Why it is not.
        why: String,
    },
    /// The passphrase of a key is missing or wrong.
    #[error("{origin}: {why}")]
    Passphrase {
        /// The file of the key or of the passphrase, or the environment variable's name.
        origin: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A certificate, or one above it, was revoked.
    #[error("certificate {subject:?} or an issuer of it was revoked")]
    Revoked {
        /// The subject of the leaf.
        subject: String,
    },
    /// The root key is not in the store.
    #[error("the root key is sealed: it left the store {}", store.display())]
    Sealed {
        /// The store.
        store: PathBuf,
    },
    /// A signature, key or random number could not be made.
    #[error("cannot {attempted}: {why}")]
    Sign {
        /// The verb and its object.
        attempted: &'static str,
        /// What the cryptographic library said.
        why: String,
    },
    /// The certificate's time has not come or is over.
    #[error("certificate {subject:?} is not valid at {at}: valid from {not_before} to {not_after}")]
    Time {
        /// Its subject.
        subject: String,
        /// The time asked about.
        at: OffsetDateTime,
        /// Start of validity.
        not_before: OffsetDateTime,
        /// End of validity.
        not_after: OffsetDateTime,
    },
    /// A value is not of an accepted form.
    #[error("{what} {value:?}: {accepted}")]
    Value {
        /// What kind of value: `name`, `lifetime`, `key type`.
        what: &'static str,
        /// The value that was given.
        value: String,
        /// What is accepted, or why this is not.
        accepted: &'static str,
    },
    /// A file could not be written.
    #[error("cannot {attempted} {}", path.display())]
    WriteFile {
        /// The verb: `create`, `write`, `sync`, `rename`, `link`, `remove`.
        attempted: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
