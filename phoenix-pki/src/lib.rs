//! The private PKI of a hypervisor: an authority, its certificates, one store, typed plans.
#![forbid(unsafe_code)]

mod certificate;
mod error;
mod key;
mod name;
mod profile;
mod sign;

pub use certificate::{Certificate, Fingerprint, SerialNumber};
pub use error::{Error, Result};
pub use key::{KeyType, Passphrase, PrivateKey};
pub use name::{Name, Permitted};
pub use profile::{
    AuthorityParams, BACKDATE, LONGEST_LEAF, LeafParams, Lifetime, PassphraseSource, Profile, Renewal, Revocation,
    RootKey,
};
