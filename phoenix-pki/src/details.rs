//! A certificate for people and for `--json`: everything of `openssl x509 -text` that an operator needs.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificate::Certificate;
use crate::key::KeyType;
use crate::name::{Name, Permitted};

/// A certificate spelled out. `Display` is the text form, several lines with a final newline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Details {
    /// Its subject.
    pub subject: String,
    /// Its issuer's subject.
    pub issuer: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// The same with colons, as OpenSSL prints it.
    pub serial_colons: String,
    /// Start of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// End of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// Its names: DNS and IP.
    pub names: Vec<Name>,
    /// Its other subject alternative names, as text.
    pub other_names: Vec<String>,
    /// The kind of its key; none for one that Phoenix does not make.
    pub key_type: Option<KeyType>,
    /// Key usages, by their RFC 5280 names.
    pub key_usage: Vec<&'static str>,
    /// Extended key usages, by their RFC 5280 names.
    pub extended_key_usage: Vec<String>,
    /// Whether it is a CA.
    pub authority: bool,
    /// How many CAs may follow it.
    pub path_length: Option<u32>,
    /// Its subject key identifier, with colons.
    pub subject_key_id: Option<String>,
    /// Its authority key identifier, with colons.
    pub authority_key_id: Option<String>,
    /// Permitted subtrees of its name constraints.
    pub permitted: Vec<String>,
    /// Excluded subtrees of its name constraints; `*` is every DNS name.
    pub excluded: Vec<String>,
    /// The algorithm of its signature.
    pub signature_algorithm: String,
    /// SHA-256 of its DER, hexadecimal.
    pub sha256: String,
    /// The same with colons, as OpenSSL and browsers print it.
    pub sha256_colons: String,
    /// SHA-1 of its DER with colons: for finding it in programs that still list by it, good for nothing else.
    pub sha1_colons: String,
}

impl Certificate {
    /// Everything about it that an operator needs.
    pub fn details(&self) -> Details {
        let subtrees = |subtrees: Option<&Permitted>| -> Vec<String> {
            let Some(subtrees) = subtrees else { return Vec::new() };
            let domains = subtrees.domains.iter().map(|domain| match domain.as_str() {
                "" => "*".into(),
                domain => domain.to_owned(),
            });
            domains.chain(subtrees.networks.iter().map(ToString::to_string)).collect()
        };
        let sha1 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, self.der());
        Details {
            subject: self.subject().into(),
            issuer: self.issuer().into(),
            serial: self.serial_number().to_string(),
            serial_colons: colons(self.serial_number().as_bytes()),
            not_before: self.not_before(),
            not_after: self.not_after(),
            names: self.names().iter().cloned().collect(),
            other_names: self.other_names().to_vec(),
            key_type: self.key_type(),
            key_usage: self.key_usage().to_vec(),
            extended_key_usage: self.extended_key_usage().to_vec(),
            authority: self.is_authority(),
            path_length: self.path_length(),
            subject_key_id: self.subject_key_id().map(colons),
            authority_key_id: self.authority_key_id().map(colons),
            permitted: subtrees(self.permitted()),
            excluded: subtrees(self.excluded()),
            signature_algorithm: self.signature_algorithm().into(),
            sha256: self.fingerprint().to_string(),
            sha256_colons: format!("{:#}", self.fingerprint()),
            sha1_colons: colons(sha1.as_ref()),
        }
    }
}

/// Upper-case hexadecimal with colons, as OpenSSL prints it.
fn colons(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names.iter().map(Name::to_string).chain(self.other_names.iter().cloned());
        let names = names.collect::<Vec<_>>().join(", ");
        let authority = match (self.authority, self.path_length) {
            (false, _) => "no".into(),
            (true, None) => "yes".into(),
            (true, Some(length)) => format!("yes, path length {length}"),
        };
        let lines = [
            ("Subject", self.subject.clone()),
            ("Issuer", self.issuer.clone()),
            ("Serial", self.serial_colons.clone()),
            ("Not before", rfc3339(self.not_before)),
            ("Not after", rfc3339(self.not_after)),
            ("Names", names),
            ("Key", self.key_type.map_or("of another kind".into(), |kind| kind.to_string())),
            ("Key usage", self.key_usage.join(", ")),
            ("Extended key usage", self.extended_key_usage.join(", ")),
            ("CA", authority),
            ("Permitted", self.permitted.join(", ")),
            ("Excluded", self.excluded.join(", ")),
            ("Subject key id", self.subject_key_id.clone().unwrap_or_default()),
            ("Authority key id", self.authority_key_id.clone().unwrap_or_default()),
            ("Signature", self.signature_algorithm.clone()),
            ("SHA-256", self.sha256.clone()),
            ("", self.sha256_colons.clone()),
            ("SHA-1", self.sha1_colons.clone()),
        ];
        for (label, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
            writeln!(f, "{label:<20}{}", printable(value))?;
        }
        Ok(())
    }
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

/// A certificate's text is its maker's: control characters stay off the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use crate::key::{KeyType, PrivateKey};
    use crate::name::Permitted;
    use crate::profile::AuthorityParams;
    use crate::sign;

    #[test]
    fn a_root_is_spelled_out() {
        let params = AuthorityParams::new("Exa\x1bmple", Permitted::parse(["10.0.0.0/8"]).unwrap());
        let key = PrivateKey::generate(KeyType::EcdsaP384).unwrap();
        let root = sign::root(&params, &key, datetime!(2026-11-21 12:00 UTC)).unwrap();
        let details = root.details();
        assert_eq!(details.permitted, ["10.0.0.0/8"]);
        assert_eq!(details.excluded, ["*", "::/0"]);
        assert_eq!((details.authority, details.path_length), (true, Some(1)));
        assert_eq!(details.subject_key_id, details.authority_key_id);
        assert_eq!(details.serial_colons.replace(':', "").to_lowercase(), details.serial);
        assert_eq!((details.sha256_colons.len(), details.sha1_colons.len()), (95, 59));
        assert_eq!(details.signature_algorithm, "ecdsa-with-SHA384");
        let text = details.to_string();
        assert!(!text.contains('\x1b') && text.contains("Key usage           keyCertSign, cRLSign\n"), "{text}");
        let json = serde_json::to_value(&details).unwrap();
        assert_eq!(json["not_before"], "2026-11-21T11:00:00Z");
        assert_eq!(json["key_type"], "ecdsa-p384");
    }
}
