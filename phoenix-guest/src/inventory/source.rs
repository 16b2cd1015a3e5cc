//! The text of an inventory, and errors that point into it.

use std::ops::Range;

use super::scalar::At;
use crate::error::Error;

/// The text with the offsets at which its lines begin.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) file: &'a str,
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str, file: &'a str) -> Self {
        // Editors on Windows begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, file, lines }
    }

    /// The line and the column, both from 1, of an offset.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= at);
        let before = self.text.get(self.lines[line - 1]..at).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    /// The error of a value, shown as it is written.
    pub(super) fn refuse<T>(&self, value: &At<T>, key: &str, why: impl Into<String>) -> Error {
        self.error(value.span.start, key.into(), &self.scalar(&value.span), why.into())
    }

    /// The error of what begins at an offset.
    pub(super) fn error(&self, at: usize, key: String, value: &str, why: String) -> Error {
        let (line, column) = self.position(at);
        Error::Inventory { file: self.file.into(), line, column, key, value: cut(value), why }
    }

    /// What toml found wrong, in our words.
    pub(super) fn explain(&self, mut error: toml::de::Error) -> Error {
        let span = error.span().unwrap_or_default();
        let message = error.message().to_string();
        // Without its input, toml shows the path of keys that led to the error, its only access to it.
        error.set_input(None);
        let shown = error.to_string();
        let key = shown.rsplit_once("\nin `").map_or("", |(_, key)| key.trim_end().trim_end_matches('`'));
        let (value, why) = self.words(&span, &message);
        // Who writes a passphrase where its source is due shall not find it in a log.
        let (value, why) = match key {
            "authority.root_key" => (String::new(), ROOT_KEY.into()),
            _ => (value, why),
        };
        self.error(span.start, line(key), &value, why)
    }

    /// The value at fault and what is wrong with it.
    fn words(&self, span: &Range<usize>, message: &str) -> (String, String) {
        if let Some((key, accepted)) = unknown(message, "unknown field `") {
            return (String::new(), format!("unknown key `{}`; {}", line(key), accepts(key, &accepted)));
        }
        if let Some((value, accepted)) = unknown(message, "unknown variant `") {
            return (value.into(), accepts(value, &accepted));
        }
        if let Some(key) = message.strip_prefix("missing field ") {
            return (String::new(), format!("missing key {key}"));
        }
        if message.starts_with("wanted exactly 1 element") {
            return (String::new(), "exactly one key is accepted here".into());
        }
        if message.starts_with("invalid ") {
            return (String::new(), line(message).replace("expected a sequence", "expected a list"));
        }
        (self.scalar(span), line(message))
    }

    /// The string or integer at a span; nothing for what is longer than one value.
    fn scalar(&self, span: &Range<usize>) -> String {
        let text = self.text.get(span.clone()).unwrap_or_default();
        match toml::de::ValueDeserializer::parse(text).map(<toml::Value as serde::Deserialize<'_>>::deserialize) {
            Ok(Ok(toml::Value::String(text))) => text,
            Ok(Ok(toml::Value::Integer(number))) => number.to_string(),
            _ => String::new(),
        }
    }
}

const ROOT_KEY: &str = "\"plain\", { passphrase_file = \"/path\" } or { passphrase_env = \"NAME\" }; \
                        without `root_key`, Phoenix makes a passphrase";

/// What serde did not know, and the words it would have taken.
fn unknown<'m>(message: &'m str, prefix: &str) -> Option<(&'m str, Vec<&'m str>)> {
    let (word, expected) = message.strip_prefix(prefix)?.rsplit_once("`, expected ")?;
    Some((word, expected.split('`').skip(1).step_by(2).collect()))
}

/// The words that are accepted in the place of this one, first the one that was probably meant.
pub(super) fn accepts(word: &str, accepted: &[&str]) -> String {
    let near = |candidate: &&&str| strsim::normalized_damerau_levenshtein(word, candidate);
    // Comparing is quadratic in the length, and nobody misspells a word into a long one.
    let candidates = accepted.iter().filter(|candidate| word.len() <= 64 && near(candidate) >= 0.6);
    let meant = candidates.max_by(|a, b| near(a).total_cmp(&near(b)));
    let hint = meant.map_or(String::new(), |meant| format!("did you mean `{meant}`? "));
    format!("{hint}accepted: {}", accepted.join(", "))
}

/// The beginning of a long text.
fn cut(text: &str) -> String {
    const MOST: usize = 200;
    text.char_indices().nth(MOST).map_or_else(|| text.into(), |(at, _)| format!("{}…", &text[..at]))
}

/// The beginning of a text of the inventory, on one line.
fn line(text: &str) -> String {
    cut(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
