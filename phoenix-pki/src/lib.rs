#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod audit;
mod authority;
mod certificate;
mod crl;
mod details;
mod error;
pub mod export;
mod import;
mod key;
mod leaf;
mod ledger;
mod name;
mod plan;
mod profile;
mod request;
mod revocation;
mod sign;
mod store;
mod verify;

pub use audit::{AuditEntry, AuditKind, Finding, Severity};
pub use authority::Authority;
pub use certificate::{Certificate, Fingerprint, SerialNumber};
pub use crl::{Crl, Revoked};
pub use details::Details;
pub use error::{Error, Result};
pub use import::Import;
pub use key::{KeyType, Passphrase, PrivateKey};
pub use leaf::{Ensured, Leaf};
pub use ledger::{Issued, Ledger};
pub use name::{Name, Permitted};
pub use plan::Reason;
pub use profile::{
    AuthorityParams, BACKDATE, INTERMEDIATE_CRL, LONGEST_LEAF, LeafParams, Lifetime, PassphraseSource, Profile,
    ROOT_CRL, Renewal, Revocation, RootKey, SHORTEST_LEAF,
};
pub use request::Request;
pub use revocation::{CrlRefresh, CrlState};
pub use store::Store;
pub use verify::{Verification, verify};
