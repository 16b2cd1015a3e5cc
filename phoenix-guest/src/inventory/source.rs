//! The text of an inventory, and errors that point into it.

use std::fmt::Display;
use std::ops::Range;

use crate::error::Error;

/// The text with the offsets at which its lines begin.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    file: &'a str,
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

    /// The error of a value.
    pub(super) fn refuse(
        &self,
        at: usize,
        key: impl Into<String>,
        value: impl Display,
        why: impl Into<String>,
    ) -> Error {
        let (line, column) = self.position(at);
        Error::Inventory {
            file: self.file.into(),
            line,
            column,
            key: key.into(),
            value: cut(&value.to_string()),
            why: why.into(),
        }
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
        self.refuse(span.start, line(key), value, why)
    }

    /// The value at fault and what is wrong with it.
    fn words(&self, span: &Range<usize>, message: &str) -> (String, String) {
        if let Some((key, accepted)) = unknown(message, "unknown field `") {
            let hint = near(key, &accepted).map_or(String::new(), |near| format!("did you mean `{near}`? "));
            return (String::new(), format!("unknown key `{}`; {hint}accepted: {}", line(key), accepted.join(", ")));
        }
        if let Some((value, accepted)) = unknown(message, "unknown variant `") {
            let hint = near(value, &accepted).map_or(String::new(), |near| format!("did you mean {near:?}? "));
            return (value.into(), format!("{hint}accepted: {}", accepted.join(", ")));
        }
        if let Some(key) = message.strip_prefix("missing field ") {
            return (String::new(), format!("missing key {key}"));
        }
        if message.starts_with("wanted exactly 1 element") {
            return (String::new(), "exactly one key is accepted here".into());
        }
        if message.starts_with("invalid ") {
            return (String::new(), line(message));
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

/// The accepted word that was probably meant.
fn near<'m>(word: &str, accepted: &[&'m str]) -> Option<&'m str> {
    // Comparing is quadratic in the length, and nobody misspells a word into a long one.
    let word = (word.len() <= 64).then_some(word)?;
    let scored = accepted.iter().map(|candidate| (strsim::jaro_winkler(word, candidate), *candidate));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, near)| near)
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
