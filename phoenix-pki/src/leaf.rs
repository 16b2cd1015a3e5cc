//! A leaf with its chain and its private key, and what `ensure` came to.

use crate::certificate::Certificate;
use crate::key::PrivateKey;
use crate::plan::Reason;

/// A leaf with its chain and its private key.
#[derive(Debug)]
pub struct Leaf {
    pub(crate) label: String,
    pub(crate) chain: Vec<Certificate>,
    pub(crate) key: PrivateKey,
}

impl Leaf {
    /// What the store calls it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The leaf certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.chain[0]
    }

    /// Leaf first, then the intermediate; the root is left out.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// The chain as PEM: what a server's certificate file holds.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(Certificate::pem).collect()
    }

    /// Its private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }
}

/// What `ensure` came to.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ensured {
    /// The leaf that is current now.
    pub leaf: Leaf,
    /// Why it was made, or that nothing was due.
    pub reason: Reason,
}

impl Ensured {
    /// Whether a new certificate was made.
    pub fn changed(&self) -> bool {
        self.reason.is_due()
    }
}
