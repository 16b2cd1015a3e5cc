//! Inventories, good and bad: what each is refused with, word by word.

use phoenix_guest::inventory::{GuestId, GuestKind, Inventory, Select};
use phoenix_guest::{Error, Mode, Owner};
use phoenix_pki::{LeafParams, Lifetime, Name, PassphraseSource, Profile, Renewal, RootKey};

const EXAMPLE: &str = include_str!("../../examples/phoenix.toml");

fn parse(text: &str) -> Result<Inventory, Error> {
    Inventory::parse(text, "phoenix.toml")
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Five lines that are right, for those that follow to be wrong.
const HEAD: &str = "authority = { name = \"A\", store = \"s\" }
[[guest]]
id = 101
type = \"lxc\"
features = [\"nginx\"]
";

/// A certificate from line 6 and a delivery from line 9 on, the delivery open for one more key on line 13.
const DELIVERY: &str = "[[certificate]]
names = [\"*.a.example\"]

[[certificate.deliver]]
guest = 101
cert = { path = \"/c\" }
key = { path = \"/k\" }
";

fn refused(text: &str, expected: &str) {
    let found = parse(text).expect_err(&format!("accepted: {text}")).to_string();
    assert_eq!(found, format!("phoenix.toml:{expected}"), "for\n{text}");
}

#[test]
fn what_is_no_toml() {
    for (text, expected) in [
        ("[authority\n", "1:11: unclosed table, expected `]`"),
        ("a", "1:2: key with no value, expected `=`"),
        ("a = ", "1:5: string values must be quoted, expected literal string"),
        ("a = 1\na = 2", "2:1: duplicate key"),
        ("a = \"b\nc\"", "2:3: key with no value, expected `=`"),
        ("\n\n  é = 1", "3:3: invalid unquoted key, expected letters, numbers, `-`, `_`"),
        ("a = \"\0\"", "1:6: invalid basic string, expected non-double-quote visible characters, `\\`"),
    ] {
        refused(text, expected);
    }
}

#[test]
fn what_has_not_the_form() {
    for (text, expected) in [
        ("", "1:1: missing key `authority`"),
        ("authority = 3", "1:13: authority: invalid type: integer `3`, expected a table"),
        ("[authority]\nname = \"A\"\n", "1:1: authority: missing key `store`"),
        ("[authority]\nname = 3\nstore = \"s\"", "2:8: authority.name: invalid type: integer `3`, expected a string"),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\nroot_key = \"hunter2\"",
            "4:12: authority.root_key: \"plain\", { passphrase_file = \"/path\" } or { passphrase_env = \"NAME\" }; without `root_key`, Phoenix makes a passphrase",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\nroot_key = { passphrase = \"hunter2\" }",
            "4:14: authority.root_key: \"plain\", { passphrase_file = \"/path\" } or { passphrase_env = \"NAME\" }; without `root_key`, Phoenix makes a passphrase",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\nroot_key = { passphrase_env = \"\" }",
            "4:31: authority.root_key: \"plain\", { passphrase_file = \"/path\" } or { passphrase_env = \"NAME\" }; without `root_key`, Phoenix makes a passphrase",
        ),
        (
            "[authority]\nname = \" \"\nstore = \"s\"",
            "2:8: authority.name: \" \": 1 to 40 characters, no control characters, no space at either end",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"\"",
            "3:9: authority.store: a path of one or more characters, none of them a control character",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\nkey_type = \"rsa\"",
            "4:12: authority.key_type: \"rsa\": ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\nroot_lifetime = \"10\"",
            "4:17: authority.root_lifetime: \"10\": a whole number and a unit of s, m, h, d or y, such as 24h or 90d, and at most 100y",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\npermitted = []",
            "4:13: authority.permitted: at least one is needed",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\npermitted = [\n  \"a.example\",\n  \"*.b.example\",\n]",
            "6:3: authority.permitted: \"*.b.example\": a domain permits all below it; write it without `*.`",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\n[trust]\ncopies = [{ path = \"/a\" }]",
            "5:11: trust.copies: missing key `guest`",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\n[trust]\nselect = \"al\"",
            "5:10: trust.select: \"al\": did you mean `all`? accepted: none, all, guests, feature",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\n[trust]\nselect = { feature = \"a\", guests = [] }",
            "5:10: trust.select: exactly one key is accepted here",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\n[trust]\nselect = { guests = [] }",
            "5:10: trust.select: at least one is needed",
        ),
        (
            "[authority]\nname = \"A\"\nstore = \"s\"\n[defaults]\nrenew = \"100%\"",
            "5:9: defaults.renew: \"100%\": a share from 1% to 99% of the lifetime, or a span before the end such as 12h",
        ),
    ] {
        refused(text, expected);
    }
}

#[test]
fn guests_that_cannot_be() {
    for (text, expected) in [
        ("[[guest]]\nid = 102\n", "6:1: guest: missing key `type`"),
        (
            "[[guest]]\nid = 102\ntype = \"lcx\"",
            "8:8: guest.type: \"lcx\": did you mean `lxc`? accepted: host, lxc, vm, rootfs",
        ),
        ("[[guest]]\nid = 99\ntype = \"lxc\"", "7:6: guest.id: \"99\": a vmid lies between 100 and 999999999"),
        (
            "[[guest]]\nid = 1000000000\ntype = \"lxc\"",
            "7:6: guest.id: \"1000000000\": a vmid lies between 100 and 999999999",
        ),
        ("[[guest]]\nid = -101\ntype = \"lxc\"", "7:6: guest.id: \"-101\": a vmid lies between 100 and 999999999"),
        (
            "[[guest]]\nid = 9223372036854775808\ntype = \"lxc\"",
            "7:6: guest.id: invalid type: integer `9223372036854775808`, expected a vmid, \"host\" or a name",
        ),
        (
            "[[guest]]\nid = 102.0\ntype = \"lxc\"",
            "7:6: guest.id: invalid type: floating point `102.0`, expected a vmid, \"host\" or a name",
        ),
        ("[[guest]]\nid = \"102\"\ntype = \"lxc\"", "7:6: guest.id: \"102\": a vmid is written without quotes"),
        (
            "[[guest]]\nid = \"a b\"\ntype = \"rootfs\"\npath = \"p\"",
            "7:6: guest.id: \"a b\": a vmid, \"host\", or a name of letters, digits and - _ . that starts with a letter",
        ),
        (
            "[[guest]]\nid = \"web\"\ntype = \"vm\"",
            "7:6: guest.id: \"web\": a container or VM has its vmid as id, a number without quotes",
        ),
        (
            "[[guest]]\nid = 102\ntype = \"host\"",
            "7:6: guest.id: \"102\": a guest of type \"host\" has the id \"host\"",
        ),
        (
            "[[guest]]\nid = \"host\"\ntype = \"lxc\"",
            "7:6: guest.id: \"host\": a container or VM has its vmid as id, a number without quotes",
        ),
        (
            "[[guest]]\nid = \"web\"\ntype = \"rootfs\"",
            "7:6: guest.id: \"web\": a rootfs guest needs the `path` of its directory",
        ),
        (
            "[[guest]]\nid = 102\ntype = \"lxc\"\npath = \"/srv\"",
            "9:8: guest.path: \"/srv\": only a rootfs guest has a path",
        ),
        (
            "[[guest]]\nid = \"a\"\ntype = \"rootfs\"\npath = \"srv/web\"\n[[guest]]\nid = \"b\"\ntype = \"rootfs\"\npath = \"./srv//web/\"",
            "13:8: guest.path: \"./srv//web/\": the guest of line 9 has this directory",
        ),
        ("[[guest]]\nid = 101\ntype = \"vm\"", "7:6: guest.id: \"101\": the guest of line 3 has this id"),
        (
            "[[guest]]\nid = 102\ntype = \"lxc\"\ndepends = [101,\n  103]",
            "10:3: guest.depends: \"103\": no such guest; there are 101, 102",
        ),
        ("depends = [101]", "6:12: guest.depends: \"101\": these guests wait for each other: 101 → 101"),
        (
            "depends = [102]\n[[guest]]\nid = 102\ntype = \"lxc\"\ndepends = [103]\n[[guest]]\nid = 103\ntype = \"vm\"\ndepends = [102]",
            "10:12: guest.depends: \"103\": these guests wait for each other: 102 → 103 → 102",
        ),
        (
            "docker_registries = [\"r.example:0\"]",
            "6:22: guest.docker_registries: \"r.example:0\": a registry as images name it, such as registry.internal.example:5000",
        ),
        (
            "docker_registries = [\"https://r.example\"]",
            "6:22: guest.docker_registries: \"https://r.example\": a registry as images name it, such as registry.internal.example:5000",
        ),
        (
            "deadline = \"5 minutes\"",
            "6:12: guest.deadline: \"5 minutes\": a whole number and a unit of s, m, h, d or y, such as 24h or 90d, and at most 100y",
        ),
        (
            "sevrice = \"nginx\"",
            "6:1: guest: unknown key `sevrice`; accepted: id, type, path, name, features, depends, docker_registries, deadline",
        ),
        ("name = \"\"", "6:8: guest.name: 1 to 255 characters, no control characters, no space at either end"),
        (
            "[trust]\nselect = { feature = \"ngnix\" }",
            "7:22: trust.select.feature: \"ngnix\": no guest has this feature",
        ),
        (
            "[trust]\nselect = { guests = [101,\n 102] }",
            "8:2: trust.select.guests: \"102\": no such guest; there are 101",
        ),
    ] {
        refused(&format!("{HEAD}{text}"), expected);
    }
}

#[test]
fn certificates_that_cannot_be() {
    for (text, expected) in [
        ("[[certificate]]\n", "6:1: certificate: missing key `names`"),
        ("[[certificate]]\nnames = []", "7:9: certificate.names: at least one is needed"),
        (
            "[[certificate]]\nnames = \"a.example\"",
            "7:9: certificate.names: invalid type: string \"a.example\", expected a list",
        ),
        (
            "[[certificate]]\nnames = [\n  \"a.example\",\n  \"a_b.example\",\n]",
            "9:3: certificate.names: \"a_b.example\": a DNS name of letters, digits and hyphens, or an IP address",
        ),
        (
            "[[certificate]]\nnames = [\"\"]",
            "7:10: certificate.names: a DNS name of letters, digits and hyphens, or an IP address",
        ),
        (
            "[[certificate]]\nnames = [\n  \"a.example\",\n  \"A.Example\",\n]",
            "9:3: certificate.names: \"A.Example\": the certificate has this name already",
        ),
        (
            "[[certificate]]\nnames = [\"a.example\"]\nname = \"../a\"",
            "8:8: certificate.name: \"../a\": at most 255 letters, digits and . - _ + : and not one of . - at the start",
        ),
        (
            "[[certificate]]\nnames = [\"a.example\"]\nprofile = \"sever\"",
            "8:11: certificate.profile: \"sever\": did you mean `server`? accepted: server, client, peer",
        ),
        (
            "[[certificate]]\nnames = [\"a.example\"]\nlifetime = \"826d\"",
            "8:12: certificate.lifetime: \"826d\": a certificate lives at most 825d: clients refuse longer ones",
        ),
        (
            "[[certificate]]\nnames = [\"a.example\"]\nlifetime = \"24h\"\nrenew = \"24h\"",
            "9:9: certificate.renew: \"24h\": a certificate that lives 1d would always be due",
        ),
        (
            "[[certificate]]\nnames = [\"a.example\"]\n[[certificate]]\nnames = [\"a.example\", \"b.example\"]",
            "9:10: certificate.names: \"a.example\": the certificate of line 6 is called so too; give one of them another `name`",
        ),
        (
            "[[certificate]]\nnames = [\"a.example\"]\nname = \"a\"\n[[certificate]]\nnames = [\"b.example\"]\nname = \"a\"",
            "11:8: certificate.name: \"a\": the certificate of line 6 is called so too; give one of them another `name`",
        ),
        (
            "[defaults]\nlifetime = \"3y\"\n[[certificate]]\nnames = [\"a.example\"]",
            "7:12: defaults.lifetime: \"3y\": a certificate lives at most 825d: clients refuse longer ones",
        ),
        (
            "[defaults]\nrenew = \"90d\"\n[[certificate]]\nnames = [\"a.example\"]",
            "7:9: defaults.renew: \"90d\": a certificate that lives 90d would always be due",
        ),
    ] {
        refused(&format!("{HEAD}{text}"), expected);
    }
}

#[test]
fn an_authority_that_is_too_short_or_too_narrow() {
    let head = "[authority]\nname = \"A\"\nstore = \"s\"\n";
    let leaf = "[[certificate]]\nnames = [\"a.example\"]\n";
    for (text, expected) in [
        (
            "intermediate_lifetime = \"11y\"\n",
            "4:25: authority.intermediate_lifetime: \"11y\": an intermediate of 4015d outlives a root of 3650d",
        ),
        (
            "root_lifetime = \"1y\"\n",
            "4:17: authority.root_lifetime: \"1y\": an intermediate of 1825d outlives a root of 365d",
        ),
        (
            "intermediate_lifetime = \"30d\"\n",
            "4:25: authority.intermediate_lifetime: \"30d\": a certificate without a `lifetime` lives 90d, and would outlive its intermediate",
        ),
        (
            "intermediate_lifetime = \"90d\"\n[defaults]\nlifetime = \"91d\"\n",
            "6:12: defaults.lifetime: \"91d\": a certificate does not outlive its intermediate, which lives 90d",
        ),
        (
            "permitted = [\"b.example\", \"10.0.0.0/8\"]\n",
            "6:10: certificate.names: \"a.example\": outside what the authority may certify (b.example, 10.0.0.0/8); add it to `authority.permitted`, and `rotate` when the authority is made already",
        ),
    ] {
        refused(&format!("{head}{text}{leaf}"), expected);
    }
}

#[test]
fn deliveries_that_cannot_be() {
    for (text, expected) in [
        (
            "sevrice = \"nginx\"",
            "13:1: certificate.deliver: unknown key `sevrice`; did you mean `service`? accepted: guest, service, cert, key, chain, root, check, reload, serves",
        ),
        (
            "service = \"ngnix\"",
            "13:11: certificate.deliver.service: \"ngnix\": no service that Phoenix knows; did you mean `nginx`? accepted: nginx",
        ),
        ("check = []", "13:9: certificate.deliver.check: at least one is needed"),
        ("reload = [\"\"]", "13:11: certificate.deliver.reload: the program has no name"),
        (
            "reload = \"systemctl reload nginx\"",
            "13:10: certificate.deliver.reload: invalid type: string \"systemctl reload nginx\", expected a list",
        ),
        (
            "chain = \"/chain\"",
            "13:9: certificate.deliver.chain: invalid type: string \"/chain\", expected a table such as { path = \"/etc/ssl/a.crt\" }",
        ),
        (
            "chain = { path = \"chain\" }",
            "13:18: certificate.deliver.chain.path: \"chain\": an absolute path without '.', '..', '//', control characters or a trailing slash, such as /etc/nginx/ssl/nginx.crt",
        ),
        (
            "chain = { path = \"/k\" }",
            "13:18: certificate.deliver.chain.path: \"/k\": line 12 puts another file of guest 101 there",
        ),
        (
            "chain = { path = \"/k/chain\" }",
            "13:18: certificate.deliver.chain.path: \"/k/chain\": line 12 puts a file of guest 101 where this needs a directory",
        ),
        (
            "chain = { path = \"/d/chain\" }\nroot = { path = \"/d\" }",
            "14:17: certificate.deliver.root.path: \"/d\": line 13 puts a file of guest 101 below it",
        ),
        (
            "chain = { path = \"/.phoenix/c/current\" }",
            "13:18: certificate.deliver.chain.path: \"/.phoenix/c/current\": a directory .phoenix holds the state of deliveries, and no other files",
        ),
        (
            "root = { path = \"/etc/ssl/certs/ca-certificates.crt\" }",
            "13:17: certificate.deliver.root.path: \"/etc/ssl/certs/ca-certificates.crt\": all that the guest's programs trust stands there; `trust.select` adds the root to it",
        ),
        (
            "[trust]\ncopies = [{ guest = 101, path = \"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem\" }]",
            "14:33: trust.copies.path: \"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem\": all that the guest's programs trust stands there; `trust.select` adds the root to it",
        ),
        (
            "root = { path = \"/r\", mode = 644 }",
            "13:30: certificate.deliver.root.mode: invalid type: integer `644`, expected a string",
        ),
        (
            "root = { path = \"/r\", mode = \"0888\" }",
            "13:30: certificate.deliver.root.mode: \"0888\": three or four octal digits, such as \"0640\"",
        ),
        (
            "root = { path = \"/r\", owner = \"root\" }",
            "13:31: certificate.deliver.root.owner: \"root\": user:group, names or numbers, such as \"root:www-data\"",
        ),
        (
            "serves = { address = \"10.0.0.101:443\" }",
            "13:22: certificate.deliver.serves.address: \"10.0.0.101:443\": *.a.example is a wildcard; the `name` to ask for is one host, such as www.a.example",
        ),
        (
            "serves = { address = \"10.0.0.101:443\", name = \"*.a.example\" }",
            "13:47: certificate.deliver.serves.name: \"*.a.example\": *.a.example is a wildcard; the `name` to ask for is one host, such as www.a.example",
        ),
        (
            "serves = { address = \"10.0.0.101:443\", name = \"b.example\" }",
            "13:47: certificate.deliver.serves.name: \"b.example\": the certificate does not cover this name, but *.a.example",
        ),
        (
            "serves = { address = \"10.0.0.101\", name = \"www.a.example\" }",
            "13:22: certificate.deliver.serves.address: \"10.0.0.101\": host:port, such as 10.0.0.101:443, nginx.internal.example:443 or [fd00::1]:443",
        ),
        (
            "serves = { address = \"fd00::1:443\", name = \"www.a.example\" }",
            "13:22: certificate.deliver.serves.address: \"fd00::1:443\": host:port, such as 10.0.0.101:443, nginx.internal.example:443 or [fd00::1]:443",
        ),
        (
            "serves = { address = \"10.0.0.101:https\", name = \"www.a.example\" }",
            "13:22: certificate.deliver.serves.address: \"10.0.0.101:https\": host:port, such as 10.0.0.101:443, nginx.internal.example:443 or [fd00::1]:443",
        ),
        (
            "[[certificate.deliver]]\nguest = 102\ncert = { path = \"/c2\" }\nkey = { path = \"/k2\" }",
            "14:9: certificate.deliver.guest: \"102\": no such guest; there are 101",
        ),
        (
            "[[certificate.deliver]]\nguest = 101\ncert = { path = \"/c2\" }\nkey = { path = \"/c2\" }",
            "16:16: certificate.deliver.key.path: \"/c2\": the certificate goes there; the key needs a file of its own",
        ),
        (
            "[[certificate.deliver]]\nguest = 101\ncert = { path = \"/c2\" }\nkey = { path = \"/k\" }",
            "16:16: certificate.deliver.key.path: \"/k\": line 12 puts another file of guest 101 there",
        ),
        (
            "[[certificate.deliver]]\nguest = 101\ncert = { path = \"/c2\" }\nkey = { path = \"/k2\", mode = \"0644\" }",
            "16:30: certificate.deliver.key.mode: \"0644\": a private key is never open to others; \"0640\" lets a group read it",
        ),
        (
            "[[certificate.deliver]]\nguest = 101\ncert = { path = \"/c2\" }",
            "13:1: certificate.deliver: missing key `key`",
        ),
    ] {
        refused(&format!("{HEAD}{DELIVERY}{text}"), expected);
    }
}

#[test]
fn an_error_points_and_tells_apart() {
    let error =
        parse("[authority]\nname = \"A\"\nstore = \"s\"\n[[certificate]]\nnames = [\"ä.example\", \"a_b.example\"]");
    let Err(Error::Inventory { file, line, column, key, value, why }) = error else { panic!("{error:?}") };
    assert_eq!((file.as_str(), line, column), ("phoenix.toml", 5, 23), "columns are characters");
    assert_eq!((key.as_str(), value.as_str()), ("certificate.names", "a_b.example"));
    assert_eq!(why, "a DNS name of letters, digits and hyphens, or an IP address");
}

#[test]
fn defaults_fill_what_is_left_out() {
    let inventory = parse(&format!("{HEAD}{DELIVERY}service = \"nginx\"")).unwrap();
    assert_eq!(inventory.trust, Select::None);
    assert_eq!(inventory.authority.store.to_str(), Some("s"), "a relative store stays relative");
    let params = &inventory.authority.params;
    assert_eq!((params.root_lifetime, params.intermediate_lifetime), (Lifetime::days(3650), Lifetime::days(1825)));
    assert_eq!(params.root_key, RootKey::Generated);
    assert!(params.permitted.permits(&name("b.a.example")) && params.permitted.permits(&name("10.9.9.9")));
    assert!(!params.permitted.permits(&name("b.example")));
    assert_eq!(inventory.guests[0].deadline.as_secs(), 300);
    let certificate = &inventory.certificates[0];
    assert_eq!(certificate.origin, "phoenix.toml:6");
    let (leaf, usual) = (&certificate.leaf, LeafParams::server(["*.a.example"]).unwrap());
    assert_eq!(leaf.names, usual.names);
    assert_eq!((leaf.profile, leaf.key_type), (usual.profile, usual.key_type));
    assert_eq!((leaf.lifetime, leaf.renewal), (usual.lifetime, usual.renewal));
    let delivery = &certificate.deliver[0];
    assert_eq!((delivery.placement.cert.mode, &delivery.placement.cert.owner), (Mode::CERTIFICATE, &Owner::ROOT));
    assert_eq!((delivery.placement.key.mode, &delivery.placement.key.owner), (Mode::KEY, &Owner::ROOT));
    assert_eq!(delivery.placement.check.as_deref(), Some(["nginx", "-t"].map(String::from).as_slice()));
    assert_eq!(
        delivery.placement.reload.as_deref(),
        Some(["systemctl", "reload", "nginx"].map(String::from).as_slice())
    );
}

#[test]
fn what_is_said_holds() {
    let text = r#"
[authority]
name = "A"
store = "/var/lib/phoenix"
key_type = "ecdsa-p384"
root_lifetime = "20y"
intermediate_lifetime = "10y"
root_key = { passphrase_file = "/etc/phoenix/passphrase" }
[defaults]
lifetime = "48h"
renew = "50%"
key_type = "rsa-2048"
[trust]
select = { guests = ["host", 101] }
[[guest]]
id = "host"
type = "host"
[[guest]]
id = 101
type = "rootfs"
path = "trees/101"
docker_registries = ["r.example", "r.example:5000", "[fd00::1]:5000"]
deadline = "90s"
[[certificate]]
names = ["www.a.example", "10.0.0.101"]
[[certificate]]
names = ["www.a.example"]
profile = "peer"
lifetime = "30d"
renew = "12h"
key_type = "ed25519"
[[certificate.deliver]]
guest = 101
service = "nginx"
reload = ["nginx", "-s", "reload"]
cert = { path = "/c", mode = "0444", owner = "1:2" }
key = { path = "/k", mode = "0o440", owner = "root:ssl-cert" }
serves = { address = "[fd00::1]:443" }
"#;
    let inventory = parse(text).unwrap();
    let params = &inventory.authority.params;
    assert_eq!(params.key_type.to_string(), "ecdsa-p384");
    assert_eq!((params.root_lifetime, params.intermediate_lifetime), (Lifetime::days(7300), Lifetime::days(3650)));
    assert_eq!(params.root_key, RootKey::Encrypted(PassphraseSource::File("/etc/phoenix/passphrase".into())));
    assert_eq!(inventory.trust, Select::Guests(vec![GuestId::Host, GuestId::Vmid(101)]));
    assert_eq!(inventory.trusting().count(), 2);
    assert_eq!(inventory.guests[1].kind, GuestKind::Rootfs("trees/101".into()));
    assert_eq!(inventory.guests[1].docker_registries.len(), 3);
    assert_eq!(inventory.guests[1].deadline.as_secs(), 90);
    let [first, second] = [0, 1].map(|at| &inventory.certificates[at].leaf);
    assert_eq!((first.lifetime, first.renewal), (Lifetime::hours(48), Renewal::Share(50)));
    assert_eq!(first.key_type.to_string(), "rsa-2048");
    assert_eq!((second.lifetime, second.renewal), (Lifetime::days(30), Renewal::Before(Lifetime::hours(12))));
    assert_eq!((second.profile, second.key_type.to_string()), (Profile::Peer, "ed25519".into()));
    let delivery = &inventory.certificates[1].deliver[0];
    assert_eq!(
        delivery.placement.check.as_deref(),
        Some(["nginx", "-t"].map(String::from).as_slice()),
        "known, not overridden"
    );
    assert_eq!(delivery.placement.reload.as_deref(), Some(["nginx", "-s", "reload"].map(String::from).as_slice()));
    assert_eq!(delivery.placement.key.mode.to_string(), "0440");
    assert_eq!(delivery.placement.cert.owner.to_string(), "1:2");
    assert_eq!(delivery.placement.serves.as_ref().unwrap().name, name("www.a.example"));
}

#[test]
fn every_choice_of_guests_and_keys() {
    for (select, trusting) in [("\"none\"", 0), ("\"all\"", 1), ("{ feature = \"nginx\" }", 1)] {
        assert_eq!(parse(&format!("{HEAD}[trust]\nselect = {select}")).unwrap().trusting().count(), trusting);
    }
    for (key, expected) in [
        ("\"plain\"", RootKey::Plain),
        ("{ passphrase_env = \"P\" }", RootKey::Encrypted(PassphraseSource::Variable("P".into()))),
    ] {
        let text = format!("[authority]\nname = \"A\"\nstore = \"s\"\nroot_key = {key}");
        assert_eq!(parse(&text).unwrap().authority.params.root_key, expected);
    }
}

#[test]
fn the_example_is_the_inventory_of_the_documents() {
    let inventory = parse(EXAMPLE).unwrap();
    let ids = |layer: &Vec<&phoenix_guest::inventory::GuestEntry>| layer.iter().map(|g| g.id.to_string()).collect();
    let layers: Vec<Vec<String>> = inventory.layers().iter().map(ids).collect();
    assert_eq!(layers, [vec!["host", "103"], vec!["102", "101"], vec!["1001"], vec!["1002"]]);
    assert_eq!(inventory.trusting().count(), 6, "everybody trusts the root");
    let docker = inventory.guests.iter().filter(|guest| !guest.docker_registries.is_empty());
    assert_eq!(docker.map(|guest| guest.id.to_string()).collect::<Vec<_>>(), ["1001", "1002"]);

    let deliveries = || inventory.certificates.iter().flat_map(|certificate| &certificate.deliver);
    let files: Vec<_> = deliveries()
        .flat_map(|delivery| {
            delivery.placement.files().map(|(_, placed)| format!("{}:{}", delivery.guest, placed.path))
        })
        .collect();
    for file in [
        "101:/etc/nginx/ssl/internal_traefik_proxy.crt",
        "101:/etc/nginx/ssl/internal_traefik_proxy.key",
        "101:/etc/nginx/ssl/phoenix_ca.crt",
        "102:/etc/traefik/ssl/phoenix_ca.crt",
        "1001:/persistent-storage/portainer/certs/cert.pem",
        "1001:/persistent-storage/portainer/certs/key.pem",
        "1001:/persistent-storage/portainer/certs/portainer-server-client.crt",
        "1001:/persistent-storage/portainer/certs/portainer-server-client.key",
    ] {
        assert!(files.iter().any(|found| found == file), "{file}");
    }
    assert!(files.iter().any(|file| file.starts_with("1002:/persistent-storage/certs/")));

    let served = deliveries().filter_map(|delivery| Some(delivery.placement.serves.as_ref()?.name.to_string()));
    assert_eq!(
        served.collect::<Vec<_>>(),
        [
            "nginx.internal.thinkheads.ai",
            "traefik.internal.thinkheads.ai",
            "qdrant.internal.thinkheads.ai",
            "portainer.phoenix.local",
            "agent.agent.phoenix.local",
        ]
    );
    let names: Vec<_> = inventory.certificates.iter().flat_map(|certificate| &certificate.leaf.names).collect();
    for service in ["traefik", "granite-embedding", "granite-3b", "ollama", "llamacpp", "qdrant"] {
        assert!(names.contains(&&name(&format!("{service}.internal.thinkheads.ai"))), "{service}");
    }
    let clients = inventory.certificates.iter().filter(|certificate| certificate.leaf.profile == Profile::Client);
    assert_eq!(clients.map(|certificate| certificate.leaf.label()).collect::<Vec<_>>(), ["portainer-server-client"]);
}

#[test]
fn every_prefix_is_judged() {
    for (end, _) in EXAMPLE.char_indices() {
        let error = match parse(&EXAMPLE[..end]) {
            Ok(_) => continue,
            Err(error) => error.to_string(),
        };
        assert!(error.starts_with("phoenix.toml:"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn line_ends_and_byte_order_marks_of_other_systems() {
    let windows = format!("\u{feff}{}", EXAMPLE.replace('\n', "\r\n"));
    let (here, there) = (parse(EXAMPLE).unwrap(), parse(&windows).unwrap());
    let lines =
        |inventory: &Inventory| inventory.certificates.iter().map(|entry| entry.origin.clone()).collect::<Vec<_>>();
    assert_eq!(lines(&here), lines(&there));
    refused("\u{feff}nmae = 1", "1:1: unknown key `nmae`; accepted: authority, defaults, trust, guest, certificate");
    refused(
        "authority = { name = \"A\", store = \"s\" }\r\n[[guest]]\r\nid = 9\r\n",
        "3:6: guest.id: \"9\": a vmid lies between 100 and 999999999",
    );
}

#[test]
fn garbage_neither_hangs_nor_overflows() {
    const MOST: usize = 300 * 1024;
    let head = "authority = { name = \"A\", store = \"s\" }\n";
    for unit in [
        "[",
        "{",
        "a.",
        "[[",
        "[a.",
        "a={",
        "a=[",
        "\"",
        "'''",
        "#",
        "\0",
        "é",
        "\r",
        "\n",
        "0",
        "a",
        "[[guest]]\n",
        "[a]\n",
        "\\",
        "=",
        "a = 1\n",
    ] {
        let mut garbage = unit.repeat(MOST / unit.len());
        for text in [
            garbage.clone(),
            format!("{head}{garbage}"),
            format!("{garbage}a = 1"),
            format!("{head}[[guest]]\nname = \"{garbage}\""),
        ] {
            let error = parse(&text).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.len() < 2_000, "{unit:?}: {} bytes of error", error.len());
        }
        garbage.clear();
    }
    let deep = format!("{head}[{}a]\n", "a.".repeat(MOST / 2));
    assert!(parse(&deep).is_err());
    // Bytes of a fixed linear congruential generator, as text.
    let mut state = 1_u64;
    let noise: String = (0..MOST)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from((state >> 56) as u8)
        })
        .collect();
    assert!(parse(&noise).is_err());
}

#[cfg(feature = "schema")]
mod schema {
    use std::collections::BTreeSet;

    use super::parse;

    /// The schema is kept beside the example; `PHOENIX_BLESS=1 cargo test -p phoenix-guest --features schema` updates it.
    #[test]
    fn it_is_in_step() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/phoenix.schema.json");
        let schema = phoenix_guest::inventory::schema();
        if std::env::var_os("PHOENIX_BLESS").is_some() {
            std::fs::write(path, &schema).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == schema, "examples/phoenix.schema.json is out of date: run this test with PHOENIX_BLESS=1");
    }

    /// The keys that the parser says it accepts are those of the schema, table by table.
    #[test]
    fn it_knows_the_keys_that_are_accepted() {
        let schema: serde_json::Value = serde_json::from_str(&phoenix_guest::inventory::schema()).unwrap();
        let head = "authority = { name = \"A\", store = \"s\" }\n";
        let pair = "[[certificate]]\nnames = [\"a.example\"]\n[[certificate.deliver]]\nguest = 101\n";
        for (table, text) in [
            ("", "zzz = 1".to_string()),
            ("Authority", "[authority]\nzzz = 1".into()),
            ("Defaults", format!("{head}[defaults]\nzzz = 1")),
            ("Trust", format!("{head}[trust]\nzzz = 1")),
            ("Guest", format!("{head}[[guest]]\nzzz = 1")),
            ("Certificate", format!("{head}[[certificate]]\nzzz = 1")),
            ("Deliver", format!("{head}{pair}zzz = 1")),
            ("Placed", format!("{head}{pair}cert = {{ zzz = 1 }}")),
            ("Serves", format!("{head}{pair}serves = {{ zzz = 1 }}")),
        ] {
            let table = if table.is_empty() { &schema } else { &schema["$defs"][table] };
            assert_eq!(table["additionalProperties"], false);
            let known: BTreeSet<_> = table["properties"].as_object().unwrap().keys().cloned().collect();
            let error = parse(&text).unwrap_err().to_string();
            let (_, accepted) = error.split_once("accepted: ").expect(&error);
            assert_eq!(known, accepted.split(", ").map(String::from).collect());
        }
    }
}
