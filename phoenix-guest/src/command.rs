//! A command for a guest and what came of it.

use std::fmt;
use std::time::Duration;

/// How long a command may take when nothing else is said: one minute.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The most bytes of each output stream that are kept, 1 MiB; the rest is read and dropped.
pub const OUTPUT_LIMIT: usize = 1 << 20;

/// A program with its arguments: an argv, never a shell line.
#[derive(Clone)]
pub struct Command {
    /// The program and its arguments. Nothing secret: a guest's process list shows them.
    pub argv: Vec<String>,
    /// What the program reads; secrets go here.
    pub stdin: Vec<u8>,
    /// How long it may take, [`DEADLINE`] unless said otherwise; then it is killed.
    pub deadline: Duration,
}

impl Command {
    /// A command without input and with the usual deadline.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), stdin: Vec::new(), deadline: DEADLINE }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("argv", &self.argv)
            .field("stdin", &format_args!("{} bytes", self.stdin.len()))
            .field("deadline", &self.deadline)
            .finish()
    }
}

/// What a command left behind: bounded, and not to be believed beyond what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit status; `128 + signal` for a program that a signal ended.
    pub status: i32,
    /// Standard output, at most [`OUTPUT_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// Standard error, at most [`OUTPUT_LIMIT`] bytes.
    pub stderr: Vec<u8>,
    /// Whether either stream was longer than what is kept.
    pub truncated: bool,
}

/// The printable end of what a guest said: at most 2,000 characters, control characters replaced by spaces.
pub fn printable(bytes: &[u8]) -> String {
    // Marks of direction would show text in another order than it has.
    let unshown = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let text: String = String::from_utf8_lossy(bytes).chars().map(|c| if unshown(c) { ' ' } else { c }).collect();
    let text = text.trim();
    let start = text.char_indices().rev().nth(1999).map_or(0, |(at, _)| at);
    text[start..].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_made_printable() {
        for (said, told) in [
            (&b""[..], ""),
            (b"  nginx: [emerg] bad key\n", "nginx: [emerg] bad key"),
            (b"\x1b[31mred\x1b[0m\x07", "[31mred [0m"),
            (b"nul\0nul", "nul nul"),
            (b"two\r\nlines\tand a tab", "two  lines and a tab"),
            (b"\xff\xfe not UTF-8", "\u{fffd}\u{fffd} not UTF-8"),
            ("C1 \u{9b}2J, kept: é 証".as_bytes(), "C1  2J, kept: é 証"),
        ] {
            assert_eq!(printable(said), told);
        }
    }

    #[test]
    fn of_much_the_end_is_kept() {
        for letter in ["x", "é", "証"] {
            let told = printable(format!("start {} end", letter.repeat(5000)).as_bytes());
            assert_eq!(told.chars().count(), 2000);
            assert!(told.starts_with(letter) && told.ends_with(" end"));
        }
        assert_eq!(printable("x".repeat(2000).as_bytes()).len(), 2000);
    }

    #[test]
    fn debug_shows_no_input() {
        let command = Command { stdin: b"secret".into(), ..Command::new(["cat", "-"]) };
        let told = format!("{command:?}");
        assert!(told.contains("6 bytes") && told.contains("cat") && !told.contains("secret"), "{told}");
    }
}
