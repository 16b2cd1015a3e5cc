//! The architecture as a test: one file touches the world, and no file imports from a higher rank.

use std::collections::BTreeMap;
use std::path::Path;

/// The files of `src` from the ground up; files of one rank do not import from each other.
const RANKS: [&[&str]; 10] = [
    &["error"],
    &["name", "key"],
    &["profile"],
    &["certificate"],
    &["crl", "details", "ledger", "plan"],
    &["leaf", "sign", "verify"],
    &["export", "store"],
    &["authority"],
    &["import", "request", "revocation"],
    &["audit"],
];

/// What only the store may name: files, processes, sockets, the environment and the clock.
const WORLD: [&str; 10] = [
    "std::fs",
    "std::process",
    "std::env",
    "rustix::",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "SystemTime::now",
    "OffsetDateTime::now_utc",
    "Instant::now",
];

/// Each file of `src` by its name, without comments and without its tests.
fn sources() -> BTreeMap<String, String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        assert!(path.is_file(), "{}: a directory has no rank yet", path.display());
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        sources.insert(path.file_stem().unwrap().to_str().unwrap().into(), code.join("\n"));
    }
    sources
}

#[test]
fn only_the_store_touches_the_world() {
    for (file, code) in sources() {
        for word in WORLD.iter().filter(|_| file != "store") {
            assert!(!code.contains(word), "{file}.rs mentions {word}");
        }
    }
}

#[test]
fn no_file_imports_from_its_own_rank_or_above() {
    let rank = |file: &str| RANKS.iter().position(|files| files.contains(&file));
    for (file, code) in sources() {
        if file == "lib" {
            continue;
        }
        let own = rank(&file).unwrap_or_else(|| panic!("{file}.rs has no rank"));
        for (_, rest) in code.match_indices("crate::").map(|(at, word)| code.split_at(at + word.len())) {
            let imported: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let other = rank(&imported).unwrap_or_else(|| panic!("{file}.rs imports {imported}, which has no rank"));
            assert!(other < own, "{file}.rs imports {imported}.rs, which does not rank below it");
        }
    }
}

#[test]
fn every_ranked_file_exists() {
    let sources = sources();
    for file in RANKS.concat() {
        assert!(sources.contains_key(file), "{file}.rs is ranked and is not there");
    }
}
