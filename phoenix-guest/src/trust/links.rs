//! The directory of symlinks beside a bundle, in which OpenSSL finds anchors by the hash of their subject.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::error::Result;
use crate::guest::GuestPath;
use crate::transport::{Observed, Transport};

/// How many subjects of one hash are looked at.
const SLOTS: usize = 16;

/// The links of one anchor: `name.pem` to its file, and `hash.N` to `name.pem`.
pub(super) struct Links<'a> {
    pub(super) directory: GuestPath,
    pub(super) name: String,
    pub(super) anchor: &'a GuestPath,
    pub(super) hash: Option<String>,
}

impl Links<'_> {
    /// Makes the links as `update-ca-certificates` would; those that are there stay.
    pub(super) fn add(&self, transport: &dyn Transport) -> Result<()> {
        let (link, slots) = self.observe(transport)?;
        if link.link.as_deref() != Some(self.anchor.as_str()) {
            transport.link(&self.directory.join(&self.name)?, self.anchor.as_str())?;
        }
        if let (Some(free), false) =
            (slots.iter().find(|slot| slot.target.is_none()), slots.iter().any(|slot| self.is_ours(slot)))
        {
            transport.link(&free.path, &self.name)?;
        }
        Ok(())
    }

    /// Removes the links, if they are those of this anchor.
    pub(super) fn remove(&self, transport: &dyn Transport) -> Result<()> {
        let (link, slots) = self.observe(transport)?;
        if let Some(at) = slots.iter().position(|slot| self.is_ours(slot)) {
            // OpenSSL stops at the first number that is missing, so the last one moves into the gap.
            let last = slots[at..].iter().take_while(|slot| slot.target.is_some()).last();
            if let Some(Slot { path, target: Some(Some(target)) }) = last.filter(|last| last.path != slots[at].path) {
                transport.link(&slots[at].path, target)?;
                transport.remove(path)?;
            } else {
                transport.remove(&slots[at].path)?;
            }
        }
        if link.link.as_deref() == Some(self.anchor.as_str()) {
            transport.remove(&self.directory.join(&self.name)?)?;
        }
        Ok(())
    }

    fn is_ours(&self, slot: &Slot) -> bool {
        matches!(&slot.target, Some(Some(target)) if *target == self.name)
    }

    /// What stands at `name.pem`, and at each `hash.N`.
    fn observe(&self, transport: &dyn Transport) -> Result<(Observed, Vec<Slot>)> {
        let mut paths = vec![self.directory.join(&self.name)?];
        if let Some(hash) = &self.hash {
            for number in 0..SLOTS {
                paths.push(self.directory.join(&format!("{hash}.{number}"))?);
            }
        }
        let mut observed = transport.observe(&paths)?.into_iter();
        let link = observed.next().unwrap_or(Observed::MISSING);
        let slots = paths
            .drain(1..)
            .zip(observed)
            .map(|(path, observed)| Slot { path, target: (observed != Observed::MISSING).then_some(observed.link) });
        Ok((link, slots.collect()))
    }
}

struct Slot {
    path: GuestPath,
    /// What is there: nothing, something, or a symlink to this target.
    target: Option<Option<String>>,
}

/// The hash of a certificate's subject as in `openssl x509 -subject_hash`; `None` for a subject that OpenSSL refuses.
///
/// SHA-1 over the subject's canonical encoding, of which four bytes are a little-endian number. It finds a file; it
/// protects nothing.
pub(super) fn subject_hash(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut canonical = Vec::new();
    for set in certificate.subject().iter_rdn() {
        let mut entries = Vec::new();
        for attribute in set.iter() {
            let (tag, text) = canonical_value(attribute.attr_value().tag().0, attribute.attr_value().data)?;
            let value = tlv(tag, &text);
            entries.push(tlv(0x30, &[tlv(0x06, attribute.attr_type().as_bytes()), value].concat()));
        }
        entries.sort();
        canonical.extend(tlv(0x31, &entries.concat()));
    }
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, &canonical);
    let number = <[u8; 4]>::try_from(&digest.as_ref()[..4]).ok()?;
    Some(format!("{:08x}", u32::from_le_bytes(number)))
}

/// A string as UTF-8, ASCII in lower case, white space at both ends removed and elsewhere a single space.
fn canonical_value(tag: u32, data: &[u8]) -> Option<(u8, Vec<u8>)> {
    const UTF8: u32 = 12;
    let wide = |width: usize| {
        let characters = data.chunks(width).map(|bytes| {
            (bytes.len() == width).then(|| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
        });
        characters.map(|number| char::from_u32(number?)).collect::<Option<String>>()
    };
    let text = match tag {
        UTF8 => String::from_utf8(data.to_vec()).ok()?,
        // PrintableString, IA5String and VisibleString are ASCII; OpenSSL takes TeletexString for Latin-1.
        19 | 20 | 22 | 26 => data.iter().map(|byte| char::from(*byte)).collect(),
        28 => wide(4)?,
        30 => wide(2)?,
        other => return Some((u8::try_from(other).ok()?, data.to_vec())),
    };
    let space = |c: char| matches!(c, ' ' | '\t'..='\r');
    let words: Vec<&str> = text.split(space).filter(|word| !word.is_empty()).collect();
    Some((UTF8 as u8, words.join(" ").to_ascii_lowercase().into_bytes()))
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut length = content.len().to_be_bytes().to_vec();
    length.drain(..length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1));
    if content.len() > 127 {
        length.insert(0, 0x80 | length.len() as u8);
    }
    [vec![tag], length, content.to_vec()].concat()
}
