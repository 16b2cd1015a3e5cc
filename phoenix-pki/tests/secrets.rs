//! No key and no passphrase is shown, passed on, left lying or kept in memory.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{NOW, act, action, argument, can_trace, params, said, scratch, server, tree};
use phoenix_pki::{
    Authority, AuthorityParams, KeyType, LeafParams, Passphrase, PassphraseSource, PrivateKey, RootKey, Store, verify,
};

const LABEL: &str = "www.internal.example";
const PASSPHRASE: &str = "correct-horse-battery-staple";

/// An authority with Ed25519 keys, whose private half is 32 bytes at the end of its PKCS#8.
fn ed25519(passphrase: &Path) -> AuthorityParams {
    let root_key = RootKey::Encrypted(PassphraseSource::File(passphrase.into()));
    AuthorityParams { key_type: KeyType::Ed25519, root_key, ..params() }
}

fn leaf() -> LeafParams {
    LeafParams { key_type: KeyType::Ed25519, ..server(LABEL) }
}

fn write_passphrase(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("passphrase");
    fs::write(&path, format!("{PASSPHRASE}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Not a test by itself: what other tests run in a process of its own.
#[test]
fn act_when_asked() {
    let Some(action) = action() else { return };
    let store = Store::new(argument(0));
    match action.as_str() {
        "create" => {
            let authority = Authority::create(&store, &ed25519(&argument(1)), NOW).unwrap();
            authority.ensure(&leaf(), NOW).unwrap();
            println!("done");
            std::io::stdout().flush().unwrap();
            let _ = std::io::stdin().read_line(&mut String::new());
        }
        "mask" => {
            let key = fs::read(store.path().join("authority/current/intermediate.key")).unwrap();
            let key = PrivateKey::from_pem(&key, None, "intermediate.key").unwrap();
            println!("mask {}", hex(&key.to_der()[16..48].iter().map(|byte| byte ^ MASK).collect::<Vec<_>>()));
        }
        "scan" => {
            let authority = Authority::open(&store).unwrap();
            authority.issue(&leaf(), NOW).unwrap();
            println!("found {} {}", count(argument(1).to_str().unwrap()), count(argument(2).to_str().unwrap()));
        }
        other => panic!("no action {other}"),
    }
}

/// A secret that is looked for in memory must not be brought there by looking for it.
const MASK: u8 = 0xA5;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How often these bytes, masked and as hexadecimal, are in the writable memory of this process.
fn count(masked: &str) -> usize {
    let masked: Vec<u8> =
        (0..masked.len()).step_by(2).map(|at| u8::from_str_radix(&masked[at..at + 2], 16).unwrap()).collect();
    let mut memory = fs::File::open("/proc/self/mem").unwrap();
    let mut found = 0;
    let mut page = vec![0; 0];
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let mut parts = line.split_whitespace();
        let (range, rights) = (parts.next().unwrap(), parts.next().unwrap());
        if !rights.starts_with("rw") || line.ends_with("[vvar]") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|number| u64::from_str_radix(number, 16).unwrap());
        page.resize((end - start) as usize, 0);
        if memory.seek(std::io::SeekFrom::Start(start)).is_err() || memory.read_exact(&mut page).is_err() {
            continue;
        }
        found += page
            .windows(masked.len())
            .filter(|window| window.iter().zip(&masked).all(|(byte, masked)| byte ^ MASK == *masked))
            .count();
    }
    found
}

/// Every way in which bytes could be written out.
fn renderings(secret: &[u8]) -> Vec<String> {
    let decimal = |separator: &str| secret[..8].iter().map(u8::to_string).collect::<Vec<_>>().join(separator);
    let hexadecimal = hex(&secret[..8]);
    vec![hexadecimal.to_uppercase(), hexadecimal, decimal(", "), decimal(",")]
}

/// What must never be seen of these keys: their private halves in any rendering, and every line of their PEM.
fn forbidden(keys: &[&PrivateKey]) -> Vec<String> {
    let mut forbidden = vec![PASSPHRASE.to_string()];
    for key in keys {
        assert_eq!(key.key_type(), KeyType::Ed25519);
        forbidden.extend(renderings(&key.to_der()[16..48]));
        let pem = key.to_pem();
        // Its first characters are the same for all keys of a kind.
        forbidden.extend(pem.lines().filter(|line| !line.starts_with("-----")).map(|line| line[24..].to_string()));
    }
    forbidden
}

fn assert_clean(text: &str, forbidden: &[String], what: &str) {
    for secret in forbidden {
        assert!(!text.contains(secret.as_str()), "{what} shows a secret");
    }
    assert!(!text.contains("PRIVATE KEY-----"), "{what} shows a key");
}

fn key_at(path: &Path, passphrase: Option<&Passphrase>) -> PrivateKey {
    PrivateKey::from_pem(&fs::read(path).unwrap(), passphrase, "key").unwrap()
}

#[test]
fn no_type_shows_a_secret() {
    let directory = scratch();
    let passphrase_file = write_passphrase(directory.path());
    let store = Store::new(directory.path().join("store"));
    let params = ed25519(&passphrase_file);
    let authority = Authority::create(&store, &params, NOW).unwrap();
    let ensured = authority.ensure(&leaf(), NOW).unwrap();
    let passphrase = Passphrase::new(PASSPHRASE);
    let generation = store.path().join("authority/current");
    let root = key_at(&generation.join("root.key"), Some(&passphrase));
    let intermediate = key_at(&generation.join("intermediate.key"), None);
    let forbidden = forbidden(&[&root, &intermediate, ensured.leaf.key()]);

    let shown = [
        format!("{passphrase:?} {root:?} {intermediate:?}"),
        format!("{authority:?} {authority:#?}"),
        format!("{ensured:?} {ensured:#?} {}", ensured.reason),
        format!("{store:?} {params:#?} {:#?}", leaf()),
        format!("{:#?} {:#?}", store.ledger().unwrap(), ensured.leaf.chain()),
        format!("{:?}", ensured.leaf.chain_pem()),
    ];
    for text in shown {
        assert_clean(&text, &forbidden, &text);
    }

    // Errors about keys, wrong passphrases and passphrase files.
    let (root_pem, plain) = (root.to_encrypted_pem(&passphrase).unwrap(), intermediate.to_pem());
    let wrong = Passphrase::new("wrong");
    let cut = &plain.as_bytes()[..plain.len() - 40];
    let flipped: Vec<u8> = plain.bytes().enumerate().map(|(at, byte)| if at == 30 { byte ^ 1 } else { byte }).collect();
    let mut errors = vec![
        PrivateKey::from_pem(root_pem.as_bytes(), Some(&wrong), "root.key").unwrap_err(),
        PrivateKey::from_pem(root_pem.as_bytes(), None, "root.key").unwrap_err(),
        PrivateKey::from_pem(cut, None, "key").unwrap_err(),
        PrivateKey::from_pem(&flipped, None, "key").unwrap_err(),
        PrivateKey::from_pem(plain.repeat(2).as_bytes(), None, "key").unwrap_err(),
        PrivateKey::from_der(&intermediate.to_der()[..40], "key").unwrap_err(),
        Authority::create(&store, &params, NOW).unwrap_err(),
        verify(ensured.leaf.chain(), &[], leaf().profile, None, NOW).unwrap_err(),
        authority.seal(&passphrase_file).unwrap_err(),
    ];
    for (file, spoil) in [("intermediate.key", cut), ("intermediate.key", ensured.leaf.key().to_pem().as_bytes())] {
        fs::write(generation.join(file), spoil).unwrap();
        errors.push(authority.issue(&leaf(), NOW).unwrap_err());
    }
    for error in errors {
        let mut text = format!("{error} {error:?} {error:#?}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(&format!(" {cause} {cause:?}"));
            source = cause.source();
        }
        assert_clean(&text, &forbidden, &text);
    }
}

#[test]
fn a_process_that_handles_keys_shows_none_and_starts_no_other() {
    let test = "a_process_that_handles_keys_shows_none_and_starts_no_other";
    if !can_trace(test) {
        return;
    }
    let directory = scratch();
    let passphrase_file = write_passphrase(directory.path());
    let store = Store::new(directory.path().join("store"));
    let trace = directory.path().join("trace");
    let itself = act("create", &[store.path(), &passphrase_file]);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=execve,execveat,connect,sendto,sendmsg", "-s", "4096", "-o"]).arg(&trace);
    command.arg(itself.get_program()).args(itself.get_args());
    command.envs(itself.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut printed = String::new();
    while !printed.ends_with("done\n") {
        assert!(output.read_line(&mut printed).unwrap() > 0, "{printed}");
    }
    // The process is the only child of strace.
    let id = child.id();
    let tracee = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let tracee = tracee.split_whitespace().next().unwrap();
    let seen: Vec<(String, Vec<u8>)> = ["cmdline", "environ", "comm", "status"]
        .iter()
        .map(|name| (format!("/proc/PID/{name}"), fs::read(format!("/proc/{tracee}/{name}")).unwrap()))
        .collect();
    drop(child.stdin.take());
    output.read_to_string(&mut printed).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", said(&ended));

    let passphrase = Passphrase::new(PASSPHRASE);
    let generation = store.path().join("authority/current");
    let root = key_at(&generation.join("root.key"), Some(&passphrase));
    let intermediate = key_at(&generation.join("intermediate.key"), None);
    let leaf = key_at(&store.path().join("certificates").join(LABEL).join("current/key.pem"), None);
    let forbidden = forbidden(&[&root, &intermediate, &leaf]);
    for (what, bytes) in seen {
        assert_clean(&String::from_utf8_lossy(&bytes), &forbidden, &what);
    }
    assert_clean(&printed, &forbidden, "standard output");
    assert_clean(&said(&ended), &forbidden, "standard error");
    let trace = fs::read_to_string(trace).unwrap();
    assert_eq!(trace.lines().count(), 1, "other programs or connections:\n{trace}");

    // Plain keys lie in their own files and nowhere else; the root's in none.
    for path in tree(directory.path()).into_keys().filter(|path| path.is_file()) {
        let bytes = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            "intermediate.key" | "key.pem" => assert!(text.starts_with("-----BEGIN PRIVATE KEY-----"), "{name}"),
            "root.key" => assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{name}"),
            "passphrase" => {}
            _ => assert_clean(&text, &forbidden, name),
        }
    }
}

/// The authority's key is opened for the signing call, and wiped.
#[test]
fn after_signing_the_key_is_no_longer_in_memory() {
    let directory = scratch();
    let passphrase_file = write_passphrase(directory.path());
    let store = Store::new(directory.path().join("store"));
    Authority::create(&store, &ed25519(&passphrase_file), NOW).unwrap();
    let line = |command: &mut Command, word: &str| {
        let output = command.output().unwrap();
        let text = said(&output);
        assert!(output.status.success(), "{text}");
        let found = text.lines().find_map(|line| line.split_once(word).map(|(_, rest)| rest.trim().to_string()));
        found.unwrap_or_else(|| panic!("{text}"))
    };
    let masked = line(&mut act("mask", &[store.path()]), "mask ");
    // The path of the store is certainly in that memory: the search finds what is there.
    let known = hex(&store.path().as_os_str().as_encoded_bytes().iter().map(|byte| byte ^ MASK).collect::<Vec<_>>());
    let found = line(&mut act("scan", &[store.path(), Path::new(&masked), Path::new(&known)]), "found ");
    let (secret, control) = found.split_once(' ').unwrap();
    assert_ne!(control, "0", "the search does not work");
    assert_eq!(secret, "0", "copies of the intermediate's key are left");
}
