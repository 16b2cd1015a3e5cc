//! A command for a guest and what came of it.

use std::fmt;
use std::time::Duration;

/// How long a command may take when nothing else is said.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The most bytes of each output stream that are kept; the rest is read and dropped.
pub const OUTPUT_LIMIT: usize = 1 << 20;

/// A program with its arguments: an argv, never a shell line.
#[derive(Clone)]
pub struct Command {
    /// The program and its arguments. Nothing secret: a guest's process list shows them.
    pub argv: Vec<String>,
    /// What the program reads; secrets go here.
    pub stdin: Vec<u8>,
    /// How long it may take.
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
    let text: String = String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    let start = text.char_indices().rev().nth(1999).map_or(0, |(at, _)| at);
    text[start..].to_string()
}
