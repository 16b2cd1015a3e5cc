//! Which types of other crates stand in the public API of the libraries: those of the crates below, and no others.
//!
//! A type in a signature, a field, a bound or an implemented trait ties the libraries' versions to those of its crate.
//! The API is read from rustdoc's JSON. Only rustdoc itself is told to allow its unstable option, so that cargo builds
//! no dependency anew.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};

/// Where types of a crate may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Anywhere.
    Any,
    /// Only as traits that public types implement.
    Implemented,
}

/// `serde_core` is where serde keeps `Serialize` and `Deserialize`.
const PKI: [(&str, Use); 5] = [
    ("ipnet", Use::Any),
    ("rustls_pki_types", Use::Any),
    ("serde_core", Use::Implemented),
    ("time", Use::Any),
    ("zeroize", Use::Any),
];

const GUEST: [(&str, Use); 4] =
    [("phoenix_pki", Use::Any), ("rustls_pki_types", Use::Any), ("serde_core", Use::Implemented), ("time", Use::Any)];

#[test]
fn the_public_api_holds_types_of_these_crates_only() {
    let rustdoc = Rustdoc::new();
    let faults: Vec<String> = [("phoenix-pki", &PKI[..]), ("phoenix-guest", &GUEST[..])]
        .into_iter()
        .flat_map(|(package, allowed)| faults(package, allowed, &rustdoc.json(package)))
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// A type that is not on the list, and a crate on the list that is not in the API: so a list is neither short nor
/// long, and JSON in which nothing is found is no success.
fn faults(package: &str, allowed: &[(&str, Use)], json: &Value) -> Vec<String> {
    let found = match Api::new(json).and_then(|api| api.external()) {
        Ok(found) => found,
        Err(why) => {
            let version = json.get("format_version").unwrap_or(&Value::Null);
            return vec![format!(
                "{package}: rustdoc's JSON of format version {version} is not as this test knows it: {why}"
            )];
        }
    };
    let mut faults = Vec::new();
    for ((name, how), places) in &found {
        let of = |(allowed, uses): &&(&str, Use)| allowed == name && (*uses == Use::Any || uses == how);
        if !allowed.iter().any(|allowed| of(&allowed)) {
            faults.extend(places.iter().map(|place| format!("{package}: {place}, and {name} is not on the list")));
        }
    }
    for (name, how) in allowed {
        if !found.keys().any(|(found, _)| found == name) {
            faults.push(format!("{package}: {name} ({how:?}) is on the list and not in the public API"));
        }
    }
    faults
}

/// A wrapper around rustdoc that lets it write JSON, and where cargo puts that.
struct Rustdoc {
    directory: tempfile::TempDir,
    target: PathBuf,
}

impl Rustdoc {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let wrapper = directory.path().join("rustdoc");
        let rustdoc = std::env::var("RUSTDOC").unwrap_or_else(|_| "rustdoc".into());
        std::fs::write(&wrapper, format!("#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec '{rustdoc}' \"$@\"\n")).unwrap();
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let metadata = cargo(&["metadata", "--no-deps", "--format-version=1"], &wrapper);
        let metadata: Value = serde_json::from_slice(&metadata).unwrap();
        Self { directory, target: metadata["target_directory"].as_str().unwrap().into() }
    }

    fn json(&self, package: &str) -> Value {
        let rustdoc = self.directory.path().join("rustdoc");
        let arguments = ["rustdoc", "--quiet", "--lib", "--all-features", "--package", package, "--"];
        // Hidden items are as public as others.
        let json = ["-Zunstable-options", "--output-format=json", "--document-hidden-items"];
        cargo(&[&arguments[..], &json].concat(), &rustdoc);
        let path = self.target.join("doc").join(package.replace('-', "_")).with_extension("json");
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

fn cargo(arguments: &[&str], rustdoc: &Path) -> Vec<u8> {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTDOC", rustdoc)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {}: {stderr}", arguments.join(" "));
    output.stdout
}

type Result<T> = std::result::Result<T, String>;

/// The crates of external types and how they are used, with the places where they stand.
type External = BTreeMap<(String, Use), BTreeSet<String>>;

/// A crate as rustdoc writes it: what is public and reachable is in `index`, whatever it refers to in `paths`.
struct Api<'a> {
    index: &'a Map<String, Value>,
    paths: &'a Map<String, Value>,
    crates: &'a Map<String, Value>,
    /// What is not written in this crate: automatic and blanket implementations, and the items of any implemented trait.
    given: HashSet<u64>,
}

impl<'a> Api<'a> {
    fn new(json: &'a Value) -> Result<Self> {
        let (index, paths) = (object(json, "index")?, object(json, "paths")?);
        let mut given = HashSet::new();
        for item in index.values() {
            let (kind, inner) = inner(item)?;
            if kind != "impl" {
                continue;
            }
            let automatic = field(inner, "is_synthetic")? != false || !field(inner, "blanket_impl")?.is_null();
            if automatic {
                given.insert(number(item, "id")?);
            }
            if automatic || !field(inner, "trait")?.is_null() {
                for id in field(inner, "items")?.as_array().ok_or("`items` is no array")? {
                    let item = index.get(&id.to_string()).ok_or_else(|| format!("no item {id}"))?;
                    // An associated type is the implementation's own choice; a method's signature is the trait's.
                    if automatic || self::inner(item)?.0 == "function" {
                        given.insert(number(item, "id")?);
                    }
                }
            }
        }
        Ok(Self { index, paths, crates: object(json, "external_crates")?, given })
    }

    fn external(&self) -> Result<External> {
        let mut external = External::new();
        for item in self.index.values() {
            if number(item, "crate_id")? != 0 || self.given.contains(&number(item, "id")?) {
                continue;
            }
            let (kind, inner) = inner(item)?;
            let name = field(item, "name")?.as_str().or_else(|| inner.get("name")?.as_str()).unwrap_or_default();
            let span = field(item, "span")?;
            let line = span.pointer("/begin/0").unwrap_or(&Value::Null);
            let file = span.get("filename").and_then(Value::as_str).unwrap_or_default();
            let place = format!("{file}:{line}: {kind} {name}").trim_end().to_string();
            if kind == "extern_crate" {
                external.entry((name.into(), Use::Any)).or_default().insert(place);
                continue;
            }
            self.walk(inner, &mut |path, name| {
                let implemented = kind == "impl" && inner.get("trait").is_some_and(|it| std::ptr::eq(it, path));
                let how = if implemented { Use::Implemented } else { Use::Any };
                let (krate, _) = name.split_once("::").unwrap_or((name, ""));
                external.entry((krate.into(), how)).or_default().insert(format!("{place} names {name}"));
            })?;
        }
        Ok(external)
    }

    /// Calls `found` for every reference below this value that leads to another crate, except to those of Rust itself.
    fn walk(&self, value: &Value, found: &mut dyn FnMut(&Value, &str)) -> Result<()> {
        match value {
            Value::Array(values) => values.iter().try_for_each(|value| self.walk(value, found)),
            Value::Object(fields) => {
                if let Some(id) = fields.get("id").filter(|id| !id.is_null()) {
                    let path = self.path(id)?;
                    if !matches!(path.split("::").next(), None | Some("self" | "std" | "core" | "alloc")) {
                        found(value, &path);
                    }
                }
                fields.values().try_for_each(|value| self.walk(value, found))
            }
            _ => Ok(()),
        }
    }

    /// The path of what an id refers to, beginning with the true name of its crate, or with `self`.
    fn path(&self, id: &Value) -> Result<String> {
        if !id.is_u64() {
            return Err(format!("{id} is no id"));
        }
        let Some(summary) = self.paths.get(&id.to_string()) else {
            let item = self.index.get(&id.to_string()).ok_or_else(|| format!("no path of {id}"))?;
            return match number(item, "crate_id")? {
                0 => Ok("self".into()),
                _ => Err(format!("no path of {id}, which is another crate's")),
            };
        };
        let krate = match number(summary, "crate_id")? {
            0 => "self",
            other => {
                let krate = self.crates.get(&other.to_string()).ok_or_else(|| format!("no crate {other}"))?;
                field(krate, "name")?.as_str().ok_or("a crate without a name")?
            }
        };
        let path = field(summary, "path")?.as_array().ok_or("`path` is no array")?;
        let below = path.iter().skip(1).filter_map(Value::as_str);
        Ok(std::iter::once(krate).chain(below).collect::<Vec<_>>().join("::"))
    }
}

/// The kind of an item and what is particular to it.
fn inner(item: &Value) -> Result<(&str, &Value)> {
    match object(item, "inner")?.iter().next() {
        Some((kind, inner)) => Ok((kind, inner)),
        None => Err("an item of no kind".into()),
    }
}

fn field<'a>(value: &'a Value, name: &str) -> Result<&'a Value> {
    value.get(name).ok_or_else(|| format!("no `{name}`"))
}

fn object<'a>(value: &'a Value, name: &str) -> Result<&'a Map<String, Value>> {
    field(value, name)?.as_object().ok_or_else(|| format!("`{name}` is no object"))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    field(value, name)?.as_u64().ok_or_else(|| format!("`{name}` is no number"))
}
