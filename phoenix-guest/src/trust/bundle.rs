//! A bundle: the PEM file in which a guest's programs find their trust anchors.

use std::ops::Range;

use phoenix_pki::{Certificate, Fingerprint};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The longest bundle that is read: some twenty times as long as those of the distributions.
pub(super) const BUNDLE_LIMIT: usize = 4 << 20;

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
const END: &[u8] = b"-----END CERTIFICATE-----";

/// The bytes of a bundle and the certificates in them.
#[derive(Default)]
pub(super) struct Bundle {
    pub(super) bytes: Vec<u8>,
    blocks: Vec<Block>,
}

struct Block {
    range: Range<usize>,
    der: CertificateDer<'static>,
    fingerprint: Fingerprint,
}

impl Bundle {
    /// Reads PEM. What no program would read as a certificate is only bytes.
    pub(super) fn parse(bytes: Vec<u8>) -> Self {
        let (mut blocks, mut begin, mut at) = (Vec::new(), None, 0);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = line.trim_ascii_end();
            if text == BEGIN {
                begin = Some(at);
            } else if text == END {
                blocks.extend(begin.take().and_then(|begin| block(&bytes, begin..at + line.len())));
            }
            at += line.len();
        }
        Self { bytes, blocks }
    }

    /// The certificates in their order.
    pub(super) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.blocks.iter().map(|block| block.der.clone()).collect()
    }

    pub(super) fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.blocks.iter().map(|block| block.fingerprint)
    }

    pub(super) fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.fingerprints().any(|held| held == fingerprint)
    }

    /// The DER of the first certificate whose fingerprint begins with these digits.
    pub(super) fn find(&self, short: &str) -> Option<&CertificateDer<'static>> {
        self.blocks.iter().find(|block| block.fingerprint.short() == short).map(|block| &block.der)
    }

    /// The bytes without some certificates and with others at the end. All else stays as it is.
    pub(super) fn edited(&self, without: impl Fn(Fingerprint) -> bool, with: &[&Certificate]) -> Vec<u8> {
        let (mut edited, mut from) = (Vec::with_capacity(self.bytes.len()), 0);
        for block in self.blocks.iter().filter(|block| without(block.fingerprint)) {
            edited.extend_from_slice(&self.bytes[from..block.range.start]);
            from = block.range.end;
        }
        edited.extend_from_slice(&self.bytes[from..]);
        for certificate in with {
            // A last line without an end would swallow the first one of ours.
            if edited.last().is_some_and(|last| *last != b'\n') {
                edited.push(b'\n');
            }
            edited.extend_from_slice(certificate.pem().as_bytes());
        }
        edited
    }
}

fn block(bytes: &[u8], range: Range<usize>) -> Option<Block> {
    let der = CertificateDer::from_pem_slice(&bytes[range.clone()]).ok()?;
    let (rest, _) = X509Certificate::from_der(&der).ok()?;
    let fingerprint = Fingerprint::of(&der);
    rest.is_empty().then_some(Block { range, der, fingerprint })
}
