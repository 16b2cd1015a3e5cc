//! Damaged files in a store: a typed error that names the file, or a repair; never a panic, never half a pair.

mod common;

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use common::{NOW, assert_sound, authority, params, scratch, server};
use phoenix_pki::{
    Authority, AuthorityParams, Error, KeyType, LeafParams, Passphrase, PassphraseSource, PrivateKey, Profile, Reason,
    Revocation, RootKey, Store, Verification,
};

const LABEL: &str = "www.internal.example";

/// One bit, the case of a letter, the top bit, all bits.
const FLIPS: [u8; 4] = [0x01, 0x20, 0x80, 0xFF];

/// Every prefix of these bytes, then every byte of them changed in several ways; `stride` thins them out.
fn damages(sound: &[u8], stride: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    let prefixes = (0..sound.len()).step_by(stride).map(|end| (format!("cut at {end}"), sound[..end].to_vec()));
    let flips = (0..sound.len()).step_by(stride).flat_map(move |at| {
        FLIPS.into_iter().map(move |flip| {
            let mut bytes = sound.to_vec();
            bytes[at] ^= flip;
            (format!("byte {at} ^ {flip:#04x}"), bytes)
        })
    });
    prefixes.chain(flips)
}

/// A store with one leaf in it.
fn with_leaf(kind: KeyType) -> (tempfile::TempDir, Authority, LeafParams) {
    let (directory, authority) = authority();
    let wanted = LeafParams { key_type: kind, ..server(LABEL) };
    authority.ensure(&wanted, NOW).unwrap();
    (directory, authority, wanted)
}

fn current(authority: &Authority, file: &str) -> PathBuf {
    authority.store().path().join("certificates").join(LABEL).join("current").join(file)
}

/// The error says which file it is about.
fn assert_names(error: &Error, path: &Path, how: &str) {
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(error.to_string().contains(name), "{how}: {error}");
}

#[test]
fn a_damaged_leaf_is_made_anew_or_was_not_hurt() {
    for (kind, stride) in [(KeyType::EcdsaP256, 1), (KeyType::Ed25519, 5), (KeyType::Rsa2048, 29)] {
        let (_directory, authority, wanted) = with_leaf(kind);
        let sound = authority.leaf(LABEL).unwrap().unwrap();
        for file in ["cert.pem", "key.pem"] {
            let path = current(&authority, file);
            let bytes = fs::read(&path).unwrap();
            for (how, damaged) in damages(&bytes, stride) {
                fs::write(&path, damaged).unwrap();
                let reason = authority.plan(std::slice::from_ref(&wanted), NOW).unwrap().remove(0);
                if !reason.is_due() {
                    // A changed line end, say: what is read, and so what is delivered, is what was issued.
                    let read = authority.leaf(LABEL).unwrap().unwrap();
                    assert_eq!(read.chain(), sound.chain(), "{kind} {file} {how}");
                    assert_eq!(read.key().to_der(), sound.key().to_der(), "{kind} {file} {how}");
                }
            }
            fs::write(&path, bytes).unwrap();
        }
        assert!(!authority.ensure(&wanted, NOW).unwrap().changed());
    }
}

#[test]
fn ensure_repairs_a_damaged_pair() {
    let (_directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
    for file in ["cert.pem", "key.pem"] {
        let length = fs::read(current(&authority, file)).unwrap().len();
        for at in (30..length - 30).step_by(length / 6) {
            let path = current(&authority, file);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            fs::write(&path, bytes).unwrap();
            let reason = authority.ensure(&wanted, NOW).unwrap().reason;
            let typed = matches!(reason, Reason::Damaged { .. } | Reason::KeyMismatch | Reason::IssuerChanged);
            assert!(typed, "{file} {at}: {reason}");
            assert!(!authority.ensure(&wanted, NOW).unwrap().changed(), "{file} {at}");
        }
    }
    // What was damaged is the previous generation now; two more changes and it is gone.
    authority.issue(&wanted, NOW).unwrap();
    authority.issue(&wanted, NOW).unwrap();
    assert_sound(authority.store(), "after repairs");
}

#[test]
fn odd_pairs_are_repaired_and_say_why() {
    type Spoil = fn(&Authority, Vec<u8>, Vec<u8>) -> (Vec<u8>, Vec<u8>);
    let spoils: [(&str, Spoil); 8] = [
        ("cert and key swapped", |_, cert, key| (key, cert)),
        ("both empty", |_, _, _| (Vec::new(), Vec::new())),
        ("the key of another", |_, cert, _| {
            (cert, PrivateKey::generate(KeyType::EcdsaP256).unwrap().to_pem().as_bytes().to_vec())
        }),
        ("two keys", |_, cert, key| (cert, key.repeat(2))),
        ("the chain twice", |_, cert, key| (cert.repeat(2), key)),
        ("the leaf alone", |authority, _, key| {
            (authority.leaf(LABEL).unwrap().unwrap().certificate().pem().into(), key)
        }),
        ("a byte order mark", |_, cert, key| ([b"\xEF\xBB\xBF", &*cert].concat(), [b"\xEF\xBB\xBF", &*key].concat())),
        ("binary", |_, _, _| (vec![0; 100], vec![0xFF; 100])),
    ];
    for (how, spoil) in spoils {
        let (_directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
        let (cert, key) = (current(&authority, "cert.pem"), current(&authority, "key.pem"));
        let (new_cert, new_key) = spoil(&authority, fs::read(&cert).unwrap(), fs::read(&key).unwrap());
        fs::write(cert, new_cert).unwrap();
        fs::write(key, new_key).unwrap();
        let reason = authority.ensure(&wanted, NOW).unwrap().reason;
        assert!(matches!(reason, Reason::Damaged { .. } | Reason::KeyMismatch), "{how}: {reason}");
        assert!(!authority.ensure(&wanted, NOW).unwrap().changed(), "{how}");
    }
}

#[test]
fn carriage_returns_are_no_damage() {
    let (_directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
    let generation = authority.store().path().join("authority/current");
    for path in [
        current(&authority, "cert.pem"),
        current(&authority, "key.pem"),
        generation.join("root.crt"),
        generation.join("intermediate.crt"),
        generation.join("intermediate.key"),
    ] {
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace('\n', "\r\n")).unwrap();
    }
    let authority = Authority::open(authority.store()).unwrap();
    assert!(!authority.ensure(&wanted, NOW).unwrap().changed());
    authority.issue(&wanted, NOW).unwrap();
}

#[test]
fn an_encrypted_leaf_key_is_for_the_operator() {
    let (_directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
    let path = current(&authority, "key.pem");
    let key = PrivateKey::from_pem(&fs::read(&path).unwrap(), None, "key.pem").unwrap();
    fs::write(&path, key.to_encrypted_pem(&Passphrase::new("forgotten")).unwrap().as_bytes()).unwrap();
    let error = authority.ensure(&wanted, NOW).unwrap_err();
    assert!(matches!(error, Error::Passphrase { .. }), "{error}");
    assert_names(&error, &path, "encrypted");
}

#[test]
fn a_damaged_authority_certificate_is_refused_by_name() {
    for (kind, stride) in [(KeyType::EcdsaP256, 1), (KeyType::Rsa2048, 17)] {
        let directory = scratch();
        let store = Store::new(directory.path().join("store"));
        let sound = Authority::create(&store, &AuthorityParams { key_type: kind, ..params() }, NOW).unwrap();
        for file in ["root.crt", "intermediate.crt"] {
            let path = store.path().join("authority/current").join(file);
            let bytes = fs::read(&path).unwrap();
            for (how, damaged) in damages(&bytes, stride) {
                fs::write(&path, &damaged).unwrap();
                match Authority::open(&store) {
                    Ok(read) => {
                        assert_eq!(read.root(), sound.root(), "{kind} {file} {how}");
                        assert_eq!(read.intermediate(), sound.intermediate(), "{kind} {file} {how}");
                    }
                    // Which of the two is damaged cannot be told when the root's key no longer fits the intermediate.
                    Err(error @ (Error::Parse { .. } | Error::AuthorityUnfit { .. })) => {
                        assert!(error.to_string().contains(file), "{kind} {file} {how}: {error}");
                    }
                    Err(error) => panic!("{kind} {file} {how}: {error}"),
                }
            }
            for (how, damaged) in [("twice", bytes.repeat(2)), ("bom", [b"\xEF\xBB\xBF", &*bytes].concat())] {
                fs::write(&path, &damaged).unwrap();
                let error = Authority::open(&store).unwrap_err();
                assert!(matches!(error, Error::Parse { .. }), "{how}: {error}");
                assert_names(&error, &path, how);
            }
            fs::write(&path, bytes).unwrap();
        }
        let [root, intermediate] =
            ["root.crt", "intermediate.crt"].map(|file| store.path().join("authority/current").join(file));
        let (first, second) = (fs::read(&root).unwrap(), fs::read(&intermediate).unwrap());
        fs::write(&root, second).unwrap();
        fs::write(&intermediate, first).unwrap();
        assert!(Authority::open(&store).is_err(), "root and intermediate swapped");
    }
}

#[test]
fn a_damaged_intermediate_key_signs_nothing() {
    let (_directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
    let store = authority.store();
    let path = store.path().join("authority/current/intermediate.key");
    let bytes = fs::read(&path).unwrap();
    let ledger = store.path().join("ledger.jsonl");
    let (mut issued, mut refused) = (0, 0);
    for (how, damaged) in damages(&bytes, 1) {
        fs::write(&path, damaged).unwrap();
        let before = fs::metadata(&ledger).unwrap().len();
        match authority.issue(&wanted, NOW) {
            Ok(leaf) => {
                assert_eq!(leaf.chain()[1..], [authority.intermediate().clone()], "{how}");
                issued += 1;
            }
            Err(error @ (Error::Parse { .. } | Error::KeyMismatch { .. })) => {
                assert_names(&error, &path, &how);
                assert_eq!(fs::metadata(&ledger).unwrap().len(), before, "{how}");
                refused += 1;
            }
            Err(error) => panic!("{how}: {error}"),
        }
    }
    assert!(refused > 50 * issued, "{issued} issued, {refused} refused");
    fs::write(&path, PrivateKey::generate(KeyType::EcdsaP256).unwrap().to_pem().as_bytes()).unwrap();
    assert!(matches!(authority.issue(&wanted, NOW), Err(Error::KeyMismatch { .. })));
    fs::write(&path, bytes).unwrap();
    assert_sound(store, "after every damage");
}

#[test]
fn a_damaged_crl_is_made_anew_or_was_not_hurt() {
    let (_directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
    authority.revoke(LABEL, Revocation::KeyCompromise, NOW).unwrap();
    let leaf = authority.ensure(&wanted, NOW).unwrap().leaf;
    for (file, stride) in [("intermediate.crl", 1), ("root.crl", 1)] {
        let path = authority.store().path().join("authority/current").join(file);
        let bytes = fs::read(&path).unwrap();
        for (how, damaged) in damages(&bytes, stride) {
            fs::write(&path, damaged).unwrap();
            authority.refresh_crls(&RootKey::Plain, NOW).unwrap();
            let crls = authority.crls().unwrap_or_else(|error| panic!("{file} {how}: {error}"));
            assert_eq!((crls.len(), crls[0].entries().len()), (2, 1), "{file} {how}");
            let asked = Verification { purpose: Profile::Server, names: &[], at: NOW, crls: &crls };
            asked
                .check(leaf.chain(), std::slice::from_ref(authority.root()))
                .unwrap_or_else(|error| panic!("{file} {how}: {error}"));
        }
    }
    assert_sound(authority.store(), "after every damage");
}

#[test]
fn a_damaged_encrypted_key_is_never_another_key() {
    let passphrase = Passphrase::new("open sesame");
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let sound = key.to_encrypted_pem(&passphrase).unwrap();
    let check = |how: &str, damaged: &[u8]| match PrivateKey::from_pem(damaged, Some(&passphrase), "root.key") {
        Ok(read) => assert_eq!(read.public_key(), key.public_key(), "{how}"),
        Err(error @ (Error::Parse { .. } | Error::Passphrase { .. })) => {
            assert!(error.to_string().contains("root.key"), "{how}: {error}");
        }
        Err(error) => panic!("{how}: {error}"),
    };
    for end in 0..sound.len() {
        check(&format!("cut at {end}"), &sound.as_bytes()[..end]);
    }
    // Each of these that still parses costs 600,000 iterations, so some of the bytes stand for all.
    for at in (0..sound.len()).step_by(11) {
        let mut damaged = sound.as_bytes().to_vec();
        damaged[at] ^= if damaged[at].is_ascii_alphabetic() { 0x20 } else { 0x01 };
        check(&format!("byte {at}"), &damaged);
    }
    check("twice", sound.repeat(2).as_bytes());
    check("bom", [b"\xEF\xBB\xBF", sound.as_bytes()].concat().as_slice());
}

#[test]
fn a_damaged_ledger_is_refused_by_name_and_line() {
    let directory = scratch();
    let store = Store::new(directory.path().join("store"));
    // Characters of several bytes, for the cut within one.
    let authority = AuthorityParams { name: "Bücher – Größe".into(), ..params() };
    let authority = Authority::create(&store, &authority, NOW).unwrap();
    let wanted = server(LABEL);
    authority.ensure(&wanted, NOW).unwrap();
    let path = store.path().join("ledger.jsonl");
    let bytes = fs::read(&path).unwrap();
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    for end in 0..bytes.len() {
        fs::write(&path, &bytes[..end]).unwrap();
        let whole = bytes[..end].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(store.ledger().unwrap().issued().len(), whole, "cut at {end}");
        // Losing the ledger's end is no reason to make what is there anew.
        assert_eq!(authority.plan(std::slice::from_ref(&wanted), NOW).unwrap(), [Reason::UpToDate], "cut at {end}");
    }
    for (how, damaged) in damages(&bytes, 1).skip(bytes.len()) {
        fs::write(&path, &damaged).unwrap();
        match store.ledger() {
            // Without its end, the last line is one that a killed run left.
            Ok(ledger) => assert!(ledger.issued().len() < lines && damaged.last() != Some(&b'\n'), "{how}"),
            Err(error @ Error::Parse { .. }) => assert!(error.to_string().contains("ledger.jsonl"), "{how}: {error}"),
            Err(error) => panic!("{how}: {error}"),
        }
    }
    // The next change takes half a line away and goes on behind the whole ones.
    fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    authority.issue(&wanted, NOW).unwrap();
    assert_eq!(store.ledger().unwrap().issued().len(), lines);
    assert_sound(&store, "after half a line");
}

#[test]
fn what_is_no_regular_file_is_refused_by_name() {
    let files = ["authority/current/root.crt", "authority/current/intermediate.crt"];
    let later = ["authority/current/intermediate.key", "ledger.jsonl"];
    let leaf = [format!("certificates/{LABEL}/current/cert.pem"), format!("certificates/{LABEL}/current/key.pem")];
    for file in files.into_iter().chain(later).chain(leaf.iter().map(String::as_str)) {
        for how in ["fifo", "directory", "300 MiB", "dangling link", "link to itself", "socket"] {
            let (_directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
            let path = authority.store().path().join(file);
            put(how, &path);
            let result = Authority::open(authority.store()).and_then(|authority| {
                authority.ensure(&wanted, NOW)?;
                authority.issue(&LeafParams { name: Some("another".into()), ..wanted.clone() }, NOW)
            });
            // A ledger that is a dangling link counts as none when read, and is refused when written.
            let Err(error) = result else { panic!("{file} as {how} was accepted") };
            let typed = matches!(
                error,
                Error::ReadFile { .. } | Error::WriteFile { .. } | Error::Sealed { .. } | Error::Parse { .. }
            );
            assert!(typed, "{file} as {how}: {error:?}");
            let name = path.file_name().unwrap().to_str().unwrap();
            if !matches!(error, Error::Sealed { .. }) {
                assert!(error.to_string().contains(name), "{file} as {how}: {error}");
            }
            assert!(!authority.store().path().join("certificates/another").exists(), "{file} as {how}");
        }
    }
}

/// Puts something other than a file into a file's place.
fn put(how: &str, path: &Path) {
    let _ = fs::remove_file(path);
    match how {
        "fifo" => {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        "directory" => fs::create_dir(path).unwrap(),
        "300 MiB" => {
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
            file.set_len(300 << 20).unwrap();
        }
        "dangling link" => symlink("nowhere", path).unwrap(),
        "link to itself" => symlink(path.file_name().unwrap(), path).unwrap(),
        // The path of a socket has at most 107 bytes, which a temporary directory may exceed.
        "socket" => {
            let short = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir_in("/tmp")).unwrap();
            drop(std::os::unix::net::UnixListener::bind(short.path().join("s")).unwrap());
            if fs::rename(short.path().join("s"), path).is_err() {
                symlink("nowhere", path).unwrap();
            }
        }
        _ => unreachable!(),
    }
}

#[test]
fn a_link_to_an_open_key_is_refused() {
    let (directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
    let (path, open) = (current(&authority, "key.pem"), directory.path().join("open.pem"));
    fs::copy(&path, &open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    fs::remove_file(&path).unwrap();
    symlink(&open, &path).unwrap();
    let error = authority.ensure(&wanted, NOW).unwrap_err();
    assert!(matches!(error, Error::OpenKey { mode: 0o644, .. }), "{error}");
}

#[test]
fn a_ledger_or_lock_that_is_a_link_leads_no_writing_out_of_the_store() {
    for file in ["ledger.jsonl", "lock"] {
        let (directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
        let (path, outside) = (authority.store().path().join(file), directory.path().join("outside"));
        fs::rename(&path, &outside).unwrap();
        symlink(&outside, &path).unwrap();
        let before = fs::read(&outside).unwrap();
        let error = authority.issue(&wanted, NOW).unwrap_err();
        assert!(matches!(error, Error::WriteFile { .. }), "{error}");
        assert_names(&error, &authority.store().path().join("certificates").join(file), file);
        assert_eq!(fs::read(&outside).unwrap(), before);
    }
}

#[test]
fn a_generation_link_that_leads_elsewhere_is_refused() {
    for target in ["../../elsewhere", "/tmp", "..", ".", "a/b", "missing"] {
        let (_directory, authority, wanted) = with_leaf(KeyType::EcdsaP256);
        let ledger = authority.store().path().join("ledger.jsonl");
        let length = fs::metadata(&ledger).unwrap().len();
        let link = authority.store().path().join("certificates").join(LABEL).join("current");
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        for _ in 0..2 {
            let error = authority.ensure(&wanted, NOW).unwrap_err();
            assert!(matches!(error, Error::ReadFile { .. }), "{target}: {error}");
            assert!(error.to_string().contains(LABEL), "{target}: {error}");
        }
        assert_eq!(fs::metadata(&ledger).unwrap().len(), length, "{target}: a refused run was recorded");

        let link = authority.store().path().join("authority/current");
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        let error = Authority::open_or_create(authority.store(), &params(), NOW).unwrap_err();
        assert!(matches!(error, Error::ReadFile { .. }), "{target}: {error}");
        assert!(error.to_string().contains("authority"), "{target}: {error}");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
    }
}

#[test]
fn a_passphrase_file_that_is_none_is_refused_before_anything_is_made() {
    let directory = scratch();
    let path = directory.path().join("passphrase");
    let create = || {
        let root_key = RootKey::Encrypted(PassphraseSource::File(path.clone()));
        let store = Store::new(directory.path().join("store"));
        (store.clone(), Authority::create(&store, &AuthorityParams { root_key, ..params() }, NOW))
    };
    for how in
        ["missing", "fifo", "directory", "300 MiB", "dangling link", "link to itself", "empty", "blank", "binary"]
    {
        let _ = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
        let contents: Option<&[u8]> = match how {
            "empty" => Some(b""),
            "blank" => Some(b"\nsecond line\n"),
            "binary" => Some(b"\xFF\xFE\xFF"),
            "missing" => None,
            other => {
                put(other, &path);
                None
            }
        };
        if let Some(contents) = contents {
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let (store, result) = create();
        let error = result.unwrap_err();
        assert!(matches!(error, Error::ReadFile { .. } | Error::Passphrase { .. }), "{how}: {error:?}");
        assert!(error.to_string().contains("passphrase"), "{how}: {error}");
        assert!(!store.path().join("authority").exists() && !store.path().join("ledger.jsonl").exists(), "{how}");
    }
    fs::write(&path, "open sesame\r\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(create().1, Err(Error::OpenKey { mode: 0o640, .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let (store, result) = create();
    result.unwrap();
    // The line end of another system is no part of the passphrase.
    let key = fs::read(store.path().join("authority/current/root.key")).unwrap();
    PrivateKey::from_pem(&key, Some(&Passphrase::new("open sesame")), "root.key").unwrap();
}
