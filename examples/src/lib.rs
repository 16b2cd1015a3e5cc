//! What the small programs share.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

/// A new directory for a program that was given none; it stays, to be looked at.
///
/// # Errors
/// When it cannot be made.
pub fn scratch() -> io::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("phoenix-example-{}", std::process::id()));
    std::fs::create_dir(&path)?;
    println!("in {}", path.display());
    Ok(path)
}
