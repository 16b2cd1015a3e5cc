//! The architecture as a test: few files touch the world, and no file imports from a higher rank.

use std::collections::BTreeMap;
use std::path::Path;

/// The rooms of `src` from the ground up; rooms of one rank do not import from each other.
const RANKS: [&[&str]; 11] = [
    &["error"],
    &["command", "guest", "service"],
    &["transport"],
    &["facts", "handshake"],
    &["delivery", "trust"],
    &["inventory"],
    &["report"],
    &["converge"],
    &["audit"],
    &["cli"],
    &["lib"],
];

/// What touches files, processes, sockets, the environment and the clock.
const WORLD: [&str; 12] = [
    "std::fs",
    "std::process",
    "std::env",
    "rustix::fs",
    "rustix::process",
    "rustix::event",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "SystemTime::now",
    "OffsetDateTime::now_utc",
    "Instant::now",
];

/// Who may name some of it: the ways to a guest, the handshake, the deadlines of a run, and the command.
const EXCEPTIONS: [(&str, &[&str]); 7] = [
    ("transport/local.rs", &["std::process", "rustix::fs", "rustix::process", "rustix::event", "Instant::now"]),
    ("transport/pct.rs", &["Instant::now"]),
    ("transport/rootfs.rs", &["std::fs", "rustix::fs", "rustix::process"]),
    ("transport/rootfs/", &["std::fs", "rustix::fs", "rustix::process"]),
    ("handshake.rs", &["TcpStream", "Instant::now"]),
    ("converge.rs", &["Instant::now"]),
    ("cli", &WORLD),
];

/// Each file below `src`, without comments and without its tests.
fn sources() -> BTreeMap<String, String> {
    fn walk(directory: &Path, root: &Path, sources: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, sources);
                continue;
            }
            // The unit tests of a room may lie in a file of their own.
            if path.ends_with("tests.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            sources.insert(path.strip_prefix(root).unwrap().to_str().unwrap().into(), code.join("\n"));
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    walk(&root, &root, &mut sources);
    sources
}

/// The room of a file: its own name, or that of the directory it lies in.
fn room(file: &str) -> &str {
    file.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

#[test]
fn pure_rooms_do_not_touch_the_world() {
    for (file, code) in sources() {
        let allowed = EXCEPTIONS.iter().filter(|(who, _)| file.starts_with(who)).flat_map(|(_, words)| *words);
        let allowed: Vec<&&str> = allowed.collect();
        for word in WORLD.iter().filter(|word| !allowed.contains(word)) {
            assert!(!code.contains(word), "{file} mentions {word}");
        }
    }
}

#[test]
fn no_room_imports_from_its_own_rank_or_above() {
    let rank = |room: &str| {
        RANKS.iter().position(|rooms| rooms.contains(&room)).unwrap_or_else(|| panic!("{room} has no rank"))
    };
    for (file, code) in sources() {
        let own = room(&file);
        if own == "lib" {
            continue;
        }
        for (_, rest) in code.match_indices("crate::").map(|(at, word)| code.split_at(at + word.len())) {
            let imported: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let below = imported == own || rank(&imported) < rank(own);
            assert!(below, "{file} imports {imported}, which does not rank below {own}");
        }
    }
}

#[test]
fn every_ranked_room_exists() {
    let sources = sources();
    // The command is not in every checkout's build, but its files are.
    for wanted in RANKS.concat() {
        assert!(sources.keys().any(|file| room(file) == wanted), "{wanted} is ranked and is not there");
    }
}
