//! What other programs say of our certificates and keys, and what we say of theirs.

mod common;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use common::{NOW, has, has_module, params, python, said, scratch};
use phoenix_pki::{
    Authority, AuthorityParams, Certificate, KeyType, LeafParams, Name, Passphrase, PrivateKey, Profile, Revocation,
    RootKey, Store, verify,
};

const KINDS: [KeyType; 4] = [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Ed25519, KeyType::Rsa2048];

/// Why a verifier has to refuse, or that it has to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Accepted,
    WrongName,
    WrongPurpose,
    OutsideConstraints,
}

/// A question to a verifier, with the answer that is due.
struct Case {
    kind: KeyType,
    directory: PathBuf,
    leaf: &'static str,
    purpose: Profile,
    name: &'static str,
    due: Due,
}

impl Case {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.pem"))
    }

    fn line(&self) -> String {
        let [root, intermediate, leaf] = ["root", "intermediate", self.leaf].map(|name| self.file(name));
        let (root, intermediate, leaf) = (root.display(), intermediate.display(), leaf.display());
        format!("{root}\t{intermediate}\t{leaf}\t{}\t{}\t{}\n", NOW.unix_timestamp(), self.purpose, self.name)
    }

    fn judge(&self, verifier: &str, verdict: &str) {
        let Self { kind, leaf, purpose, name, due, .. } = self;
        let accepted = verdict == "accepted";
        assert!(
            accepted == (*due == Due::Accepted),
            "{verifier} on the {kind} leaf {leaf} as {purpose} {name}: {verdict:?} where {due:?} is due"
        );
    }
}

/// Root, intermediate, server, client, peer and leaves outside the name constraints, as PEM files for each kind of key.
fn cases() -> &'static [Case] {
    static CASES: OnceLock<(tempfile::TempDir, Vec<Case>)> = OnceLock::new();
    let (_, cases) = CASES.get_or_init(|| {
        let directory = scratch();
        let cases = KINDS.iter().flat_map(|kind| cases_of(*kind, &directory.path().join(kind.to_string()))).collect();
        (directory, cases)
    });
    cases
}

fn cases_of(kind: KeyType, directory: &Path) -> Vec<Case> {
    let authority = AuthorityParams { key_type: kind, ..params() };
    let store = Store::new(directory.join("store"));
    let authority = Authority::create(&store, &authority, NOW).unwrap();
    let keep = |name: &str, certificate: &Certificate| {
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
    };
    keep("root", authority.root());
    keep("intermediate", authority.intermediate());
    for wanted in [
        LeafParams::server(["www.internal.example", "*.internal.example", "10.0.0.101", "fd00::7"]).unwrap(),
        LeafParams {
            name: Some("exact".into()),
            ..LeafParams::server(["exact.internal.example", "10.0.0.102"]).unwrap()
        },
        LeafParams::client(["gateway.internal.example"]).unwrap(),
        LeafParams::peer(["node.internal.example", "10.0.0.9"]).unwrap(),
    ] {
        let wanted = LeafParams { key_type: kind, ..wanted };
        keep(
            wanted.name.as_deref().unwrap_or(&wanted.profile.to_string()),
            authority.issue(&wanted, NOW).unwrap().certificate(),
        );
    }
    let address = LeafParams { key_type: kind, ..LeafParams::server(["10.0.0.77"]).unwrap() };
    keep("address", authority.issue(&address, NOW).unwrap().certificate());
    keep("outside-name", &outside(&authority, Name::Dns("www.outside.example".into())));
    keep("outside-address", &outside(&authority, Name::Ip([192, 0, 2, 1].into())));

    use Due::{Accepted, OutsideConstraints, WrongName, WrongPurpose};
    use Profile::{Client, Server};
    [
        ("server", Server, "www.internal.example", Accepted),
        ("server", Server, "below-the-wildcard.internal.example", Accepted),
        ("server", Server, "10.0.0.101", Accepted),
        ("server", Server, "fd00::7", Accepted),
        ("server", Server, "a.b.internal.example", WrongName),
        ("server", Server, "internal.example", WrongName),
        ("server", Server, "10.0.0.102", WrongName),
        ("server", Client, "", WrongPurpose),
        ("client", Client, "", Accepted),
        ("client", Server, "gateway.internal.example", WrongPurpose),
        ("peer", Client, "", Accepted),
        ("peer", Server, "node.internal.example", Accepted),
        ("peer", Server, "10.0.0.9", Accepted),
        ("address", Server, "10.0.0.77", Accepted),
        ("outside-name", Server, "www.outside.example", OutsideConstraints),
        ("outside-address", Server, "192.0.2.1", OutsideConstraints),
    ]
    .map(|(leaf, purpose, name, due)| Case { kind, directory: directory.into(), leaf, purpose, name, due })
    .into()
}

/// A leaf that our own checks would never make, signed with the intermediate's key from the store.
fn outside(authority: &Authority, name: Name) -> Certificate {
    let key = fs::read(authority.store().path().join("authority/current/intermediate.key")).unwrap();
    let key = PrivateKey::from_pem(&key, None, "intermediate.key").unwrap();
    let key = rcgen::KeyPair::try_from(key.to_der()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(authority.intermediate().der(), key).unwrap();
    let own = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::default();
    leaf.distinguished_name = rcgen::DistinguishedName::new();
    leaf.distinguished_name.push(rcgen::DnType::CommonName, name.to_string());
    leaf.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x41; 16]));
    leaf.subject_alt_names = vec![match name {
        Name::Dns(name) => rcgen::SanType::DnsName(name.as_str().try_into().unwrap()),
        Name::Ip(address) => rcgen::SanType::IpAddress(address),
        _ => unreachable!(),
    }];
    leaf.is_ca = rcgen::IsCa::ExplicitNoCa;
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    leaf.not_before = NOW - std::time::Duration::from_secs(60);
    leaf.not_after = NOW + std::time::Duration::from_secs(86_400);
    Certificate::from_der(leaf.signed_by(&own, &issuer).unwrap().der(), "leaf outside").unwrap()
}

/// Asks a program that reads cases from its standard input and answers a line for each.
fn ask(verifier: &str, command: &mut Command, cases: &[&Case]) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for case in cases {
        input.write_all(case.line().as_bytes()).unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{verifier}: {}", said(&output));
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), cases.len(), "{verifier}: {answers:?}");
    for (case, answer) in cases.iter().zip(answers) {
        case.judge(verifier, answer);
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name)
}

#[test]
fn webpki_agrees() {
    for case in cases() {
        let read = |name: &str| Certificate::from_pem(&fs::read(case.file(name)).unwrap(), name).unwrap();
        let name: Option<Name> = (!case.name.is_empty()).then(|| case.name.parse().unwrap());
        let chain = [read(case.leaf), read("intermediate")];
        let verdict = match verify(&chain, &[read("root")], case.purpose, name.as_ref(), NOW) {
            Ok(()) => "accepted".into(),
            Err(error) => error.to_string(),
        };
        case.judge("webpki", &verdict);
    }
}

#[test]
fn openssl_agrees() {
    if !has("openssl_agrees", "openssl") {
        return;
    }
    for case in cases() {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-attime", &NOW.unix_timestamp().to_string()]);
        command.arg("-CAfile").arg(case.file("root")).arg("-untrusted").arg(case.file("intermediate"));
        command.args(["-purpose", if case.purpose == Profile::Client { "sslclient" } else { "sslserver" }]);
        match case.name.parse() {
            Ok(Name::Ip(_)) => drop(command.args(["-verify_ip", case.name])),
            Ok(_) => drop(command.args(["-verify_hostname", case.name])),
            Err(_) => {}
        }
        let output = command.arg(case.file(case.leaf)).output().unwrap();
        let verdict = if output.status.success() { "accepted".into() } else { said(&output) };
        case.judge("openssl", &verdict);
    }
}

#[test]
fn go_agrees() {
    if has("go_agrees", "go") {
        let all: Vec<&Case> = cases().iter().collect();
        ask("go", Command::new("go").arg("run").arg(source("verify.go")), &all);
    }
}

#[test]
fn java_agrees() {
    if has("java_agrees", "java") {
        // Its path validation knows no host names.
        let some: Vec<&Case> = cases().iter().filter(|case| case.due != Due::WrongName).collect();
        ask("java", Command::new("java").arg(source("Verify.java")), &some);
    }
}

#[test]
fn python_agrees() {
    if has_module("python_agrees", "cryptography.x509.verification") {
        // It takes the algorithms of the Web PKI only, which Ed25519 is not one of.
        let some: Vec<&Case> = cases().iter().filter(|case| case.kind != KeyType::Ed25519).collect();
        ask("python", Command::new(python()).arg(source("verify.py")), &some);
    }
}

#[test]
fn pkilint_finds_nothing() {
    if !has_module("pkilint_finds_nothing", "pkilint") {
        return;
    }
    let mut runs = Vec::new();
    for case in cases().iter().filter(|case| case.name == "www.internal.example") {
        for name in ["root", "intermediate", "exact", "client", "peer", "address"] {
            runs.push(format!("lint_pkix_cert\tlint\t{}", case.file(name).display()));
        }
        for (issuer, subject) in
            [("root", "root"), ("root", "intermediate"), ("intermediate", "server"), ("intermediate", "client")]
        {
            let (issuer, subject) = (case.file(issuer), case.file(subject));
            let (issuer, subject) = (issuer.display(), subject.display());
            runs.push(format!("lint_pkix_signer_signee_cert_chain\tlint\t{issuer}\t{subject}"));
        }
    }
    assert_eq!(findings(&runs), "");
    // RFC 5280 knows no wildcards, RFC 9525 does: for one that is in use everywhere, this is the only finding.
    for case in cases().iter().filter(|case| case.name == "www.internal.example") {
        let found = findings(&[format!("lint_pkix_cert\tlint\t{}", case.file("server").display())]);
        assert_eq!(found.lines().count(), 1, "{found}");
        assert!(found.contains("pkix.invalid_domain_name_syntax") && found.contains("*.internal.example"), "{found}");
    }
}

#[test]
fn pkilint_finds_nothing_in_crls() {
    if !has_module("pkilint_finds_nothing_in_crls", "pkilint") {
        return;
    }
    let mut runs = Vec::new();
    let directory = scratch();
    for (kind, place) in KINDS.iter().map(|kind| (kind, directory.path().join(kind.to_string()))) {
        let store = Store::new(place.join("store"));
        let authority = Authority::create(&store, &AuthorityParams { key_type: *kind, ..params() }, NOW).unwrap();
        let reasons = [Revocation::Unspecified, Revocation::KeyCompromise, Revocation::Superseded];
        let mut keep = |name: &str| {
            for (role, crl) in ["CRL", "ARL"].iter().zip(authority.crls().unwrap()) {
                let path = place.join(format!("{name}-{role}.pem"));
                fs::write(&path, crl.pem()).unwrap();
                runs.push(format!("lint_crl\tlint\t-t\t{role}\t-p\tPKIX\t{}", path.display()));
            }
        };
        keep("empty");
        for (reason, name) in
            reasons.into_iter().zip(["a.internal.example", "b.internal.example", "c.internal.example"])
        {
            authority.issue(&LeafParams::server([name]).unwrap(), NOW).unwrap();
            authority.revoke(name, reason, NOW).unwrap();
        }
        authority.revoke(&authority.intermediate().serial_number().to_string(), reasons[2], NOW).unwrap();
        authority.refresh_crls(&RootKey::Plain, NOW).unwrap();
        assert_eq!(authority.crls().unwrap().iter().map(|crl| crl.entries().len()).collect::<Vec<_>>(), [3, 1]);
        keep("filled");
    }
    assert_eq!(findings(&runs), "");
}

/// OpenSSL and we agree on what a CRL revokes.
#[test]
fn openssl_refuses_what_is_revoked() {
    if !has("openssl_refuses_what_is_revoked", "openssl") {
        return;
    }
    let (directory, authority) = common::authority();
    let file = |name: &str| directory.path().join(name);
    let leaves: Vec<_> = ["kept", "revoked"]
        .iter()
        .map(|name| authority.issue(&LeafParams::server([format!("{name}.internal.example")]).unwrap(), NOW).unwrap())
        .collect();
    authority.revoke("revoked.internal.example", Revocation::KeyCompromise, NOW).unwrap();
    fs::write(file("root.pem"), authority.root().pem()).unwrap();
    fs::write(file("intermediate.pem"), authority.intermediate().pem()).unwrap();
    fs::write(file("crls.pem"), authority.crls().unwrap().iter().map(|crl| crl.pem()).collect::<String>()).unwrap();
    for (leaf, due) in leaves.iter().zip([true, false]) {
        fs::write(file("leaf.pem"), leaf.certificate().pem()).unwrap();
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-crl_check_all", "-attime", &NOW.unix_timestamp().to_string()]);
        command.arg("-CAfile").arg(file("root.pem")).arg("-untrusted").arg(file("intermediate.pem"));
        let output = command.arg("-CRLfile").arg(file("crls.pem")).arg(file("leaf.pem")).output().unwrap();
        assert_eq!(output.status.success(), due, "{}: {}", leaf.label(), said(&output));
        assert_eq!(said(&output).contains("certificate revoked"), !due, "{}: {}", leaf.label(), said(&output));
    }
}

/// Runs pkilint's programs, one for each line, and gives what they find above INFO.
fn findings(runs: &[String]) -> String {
    let output = Command::new(python()).arg(source("lint.py")).args(runs).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let (last, found) = text.trim_end().rsplit_once('\n').map_or((text.trim_end(), ""), |(found, last)| (last, found));
    assert_eq!(last, format!("{} runs", runs.len()), "{text}");
    found.into()
}

/// Runs OpenSSL on standard input.
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", said(&output));
    output.stdout
}

#[test]
fn openssl_reads_our_keys() {
    if !has("openssl_reads_our_keys", "openssl") {
        return;
    }
    for kind in KINDS {
        let key = PrivateKey::generate(kind).unwrap();
        let plain = openssl(&["pkey", "-pubout", "-outform", "DER"], key.to_pem().as_bytes());
        assert_eq!(plain, key.public_key(), "{kind}");
        openssl(&["pkey", "-check", "-noout"], key.to_pem().as_bytes());
        let encrypted = key.to_encrypted_pem(&Passphrase::new("open sesame")).unwrap();
        let opened = openssl(&["pkcs8", "-passin", "pass:open sesame"], encrypted.as_bytes());
        assert_eq!(openssl(&["pkey", "-pubout", "-outform", "DER"], &opened), key.public_key(), "{kind}");
    }
}

#[test]
fn we_read_the_keys_of_openssl_in_every_form() {
    if !has("we_read_the_keys_of_openssl_in_every_form", "openssl") {
        return;
    }
    let passphrase = Passphrase::new("open sesame");
    for (kind, arguments, old_form) in [
        (KeyType::EcdsaP256, ["EC", "ec_paramgen_curve:P-256"].as_slice(), Some("EC PRIVATE KEY")),
        (KeyType::EcdsaP384, &["EC", "ec_paramgen_curve:P-384"], Some("EC PRIVATE KEY")),
        (KeyType::Ed25519, &["ED25519"], None),
        (KeyType::Rsa2048, &["RSA", "rsa_keygen_bits:2048"], Some("RSA PRIVATE KEY")),
        (KeyType::Rsa3072, &["RSA", "rsa_keygen_bits:3072"], Some("RSA PRIVATE KEY")),
    ] {
        let mut generate = vec!["genpkey", "-algorithm", arguments[0]];
        generate.extend(arguments[1..].iter().flat_map(|option| ["-pkeyopt", option]));
        let pkcs8 = openssl(&generate, b"");
        let public = openssl(&["pkey", "-pubout", "-outform", "DER"], &pkcs8);
        let assert_read = |form: &str, pem: &[u8], passphrase: Option<&Passphrase>| {
            let read = PrivateKey::from_pem(pem, passphrase, form).unwrap_or_else(|error| panic!("{kind}: {error}"));
            assert_eq!((read.key_type(), read.public_key()), (kind, public.clone()), "{form}");
        };
        assert_read("PKCS#8", &pkcs8, None);
        let der = openssl(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"], &pkcs8);
        assert_eq!(PrivateKey::from_der(&der, "PKCS#8 DER").unwrap().public_key(), public, "{kind}");
        if let Some(label) = old_form {
            let old = openssl(&["pkey", "-traditional"], &pkcs8);
            assert!(String::from_utf8_lossy(&old).contains(label), "{kind}");
            assert_read(label, &old, None);
        }
        let pass = ["pkcs8", "-topk8", "-passout", "pass:open sesame"];
        let shapes: [&[&str]; 3] =
            [&[], &["-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA256", "-iter", "600000"], &["-scrypt"]];
        for shape in shapes {
            let encrypted = openssl(&[&pass, shape].concat(), &pkcs8);
            assert_read(&format!("{shape:?}"), &encrypted, Some(&passphrase));
        }
    }
    // A parameters block before the key, as `openssl ecparam -genkey` writes it.
    let both = openssl(&["ecparam", "-name", "prime256v1", "-genkey"], b"");
    assert!(both.starts_with(b"-----BEGIN EC PARAMETERS-----"));
    assert_eq!(PrivateKey::from_pem(&both, None, "ecparam").unwrap().key_type(), KeyType::EcdsaP256);
}

#[test]
fn python_and_we_read_each_others_encrypted_keys() {
    if !has_module("python_and_we_read_each_others_encrypted_keys", "cryptography") {
        return;
    }
    let directory = scratch();
    let (ours, theirs) = (directory.path().join("ours.pem"), directory.path().join("theirs.pem"));
    let passphrase = Passphrase::new("open sesame");
    for kind in KINDS {
        let key = PrivateKey::generate(kind).unwrap();
        fs::write(&ours, key.to_encrypted_pem(&passphrase).unwrap().as_bytes()).unwrap();
        let output = Command::new(python()).arg(source("keys.py")).arg(&ours).arg(&theirs).output().unwrap();
        assert!(output.status.success(), "{kind}: {}", said(&output));
        let read = PrivateKey::from_pem(&fs::read(&theirs).unwrap(), Some(&passphrase), "theirs.pem").unwrap();
        assert_eq!(read.public_key(), key.public_key(), "{kind}");
    }
}

#[test]
fn encrypted_keys_have_the_one_shape_that_all_readers_take() {
    if !has("encrypted_keys_have_the_one_shape_that_all_readers_take", "openssl") {
        return;
    }
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let pem = key.to_encrypted_pem(&Passphrase::new("open sesame")).unwrap();
    assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
    let text = String::from_utf8(openssl(&["asn1parse"], pem.as_bytes())).unwrap();
    // `  15:d=4  hl=2 l=   9 prim: OBJECT            :PBES2` becomes `4 OBJECT:PBES2`, random contents left out.
    let shape: Vec<String> = text
        .lines()
        .map(|line| {
            let (_, depth) = line.split_once("d=").unwrap();
            let (depth, _) = depth.split_once(' ').unwrap();
            let (_, value) = line.split_once(": ").unwrap();
            let value = value.split("[HEX DUMP]").next().unwrap().trim_end();
            let (kind, value) = value.split_once(':').unwrap_or((value, ""));
            format!("{depth} {} {value}", kind.trim()).trim_end().into()
        })
        .collect();
    let due = [
        "0 SEQUENCE",
        "1 SEQUENCE",
        "2 OBJECT PBES2",
        "2 SEQUENCE",
        "3 SEQUENCE",
        "4 OBJECT PBKDF2",
        "4 SEQUENCE",
        "5 OCTET STRING",
        "5 INTEGER 0927C0",
        "5 SEQUENCE",
        "6 OBJECT hmacWithSHA256",
        "6 NULL",
        "3 SEQUENCE",
        "4 OBJECT aes-256-cbc",
        "4 OCTET STRING",
        "1 OCTET STRING",
    ];
    assert_eq!(shape, due, "{text}");
    assert_eq!(0x0927C0, 600_000);
}
