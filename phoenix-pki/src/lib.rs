//! The private PKI of a hypervisor: an authority, its certificates, one store, typed plans.
#![forbid(unsafe_code)]

mod authority;
mod certificate;
mod error;
mod key;
mod ledger;
mod name;
mod plan;
mod profile;
mod sign;
mod store;
mod verify;

pub use authority::{Authority, Ensured, Leaf};
pub use certificate::{Certificate, Fingerprint, SerialNumber};
pub use error::{Error, Result};
pub use key::{KeyType, Passphrase, PrivateKey};
pub use ledger::{Issued, Ledger};
pub use name::{Name, Permitted};
pub use plan::Reason;
pub use profile::{
    AuthorityParams, BACKDATE, LONGEST_LEAF, LeafParams, Lifetime, PassphraseSource, Profile, Renewal, Revocation,
    RootKey,
};
pub use store::Store;
pub use verify::verify;
