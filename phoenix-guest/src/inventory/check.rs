//! What the form alone does not say: whether ids, names, paths and lifetimes fit each other.

use std::collections::{HashMap, HashSet};
use std::path::{Component, PathBuf};

use phoenix_pki::{
    AuthorityParams, LONGEST_LEAF, LeafParams, Lifetime, Name, PassphraseSource, Permitted, Profile, Renewal, RootKey,
};

use super::form;
use super::scalar::{Accepted as _, Argument, At, Subtree};
use super::source::{Source, accepts};
use super::{
    AuthorityEntry, CertificateEntry, Delivery, GUEST_DEADLINE, GuestEntry, GuestId, GuestKind, Inventory, RootCopy,
    Select,
};
use crate::delivery::{Placement, in_state};
use crate::error::Result;
use crate::guest::{GuestPath, Mode, Owner, Placed};
use crate::handshake::Serves;
use crate::service;
use crate::trust::is_bundle;

/// The inventory of a form.
pub(super) fn check(source: &Source<'_>, form: form::Document) -> Result<Inventory> {
    let permitted = permitted(source, &form)?;
    let guests = guests(source, &form.guest)?;
    let (select, copies) = form.trust.map_or((None, Vec::new()), |trust| (trust.select, trust.copies));
    let trust = trust(source, select, &guests)?;
    let authority = AuthorityEntry {
        store: form.authority.store.value.clone(),
        params: authority(source, &form.authority, permitted)?,
    };
    let mut labels = HashMap::new();
    let mut files = Files { source, taken: HashMap::new(), directories: HashMap::new() };
    let copies = copies.into_iter().map(|form| copy(&mut files, form, &guests)).collect::<Result<_>>()?;
    let mut certificates = Vec::with_capacity(form.certificate.len());
    for certificate in form.certificate {
        let begin = certificate.span().start;
        let (line, _) = source.position(begin);
        let certificate = certificate.into_inner();
        let leaf = leaf(source, begin, &certificate, &form.defaults)?;
        lives_within(source, &leaf, &certificate, &form.defaults, &form.authority, &authority.params)?;
        if let Some(before) = labels.insert(leaf.label(), line) {
            let why = format!("the certificate of line {before} is called so too; give one of them another `name`");
            return Err(match &certificate.name {
                Some(name) => source.refuse(name, "certificate.name", why),
                None => source.refuse(&certificate.names[0], "certificate.names", why),
            });
        }
        let deliver = certificate.deliver.into_iter().map(|form| delivery(&mut files, form, &leaf, &guests));
        let deliver = deliver.collect::<Result<_>>()?;
        certificates.push(CertificateEntry { leaf, deliver, origin: format!("{}:{line}", source.file) });
    }
    Ok(Inventory { authority, trust, copies, guests, certificates })
}

/// What the authority may certify; with a list of its own, every name must be in it.
fn permitted(source: &Source<'_>, form: &form::Document) -> Result<Permitted> {
    let names = || form.certificate.iter().flat_map(|certificate| &certificate.get_ref().names);
    let Some(entries) = &form.authority.permitted else {
        return Ok(Permitted::around(names().map(|name| &name.value)));
    };
    let mut permitted = Permitted::default();
    for Subtree(subtree) in entries.iter().map(|entry| &entry.value) {
        permitted.domains.extend(subtree.domains.iter().cloned());
        permitted.networks.extend(&subtree.networks);
    }
    match names().find(|name| !permitted.permits(&name.value)) {
        None => Ok(permitted),
        Some(name) => {
            let why = format!(
                "outside what the authority may certify ({permitted}); add it to `authority.permitted`, \
                 and `rotate` when the authority is made already"
            );
            Err(source.refuse(name, "certificate.names", why))
        }
    }
}

fn authority(source: &Source<'_>, form: &form::Authority, permitted: Permitted) -> Result<AuthorityParams> {
    let mut params = AuthorityParams::new(&form.name.value.0, permitted);
    if let Some(key_type) = &form.key_type {
        params.key_type = key_type.value;
    }
    if let Some(lifetime) = &form.root_lifetime {
        params.root_lifetime = lifetime.value;
    }
    if let Some(lifetime) = &form.intermediate_lifetime {
        params.intermediate_lifetime = lifetime.value;
    }
    let keys = ["authority.intermediate_lifetime", "authority.root_lifetime"];
    if let Some((key, lifetime)) = either(keys, &form.intermediate_lifetime, &form.root_lifetime)
        && params.intermediate_lifetime > params.root_lifetime
    {
        let (intermediate, root) = (params.intermediate_lifetime, params.root_lifetime);
        return Err(source.refuse(
            lifetime,
            key,
            format!("an intermediate of {intermediate} outlives a root of {root}"),
        ));
    }
    params.root_key = match &form.root_key {
        None => RootKey::Generated,
        Some(form::RootKey::Plain) => RootKey::Plain,
        Some(form::RootKey::PassphraseFile(path)) => RootKey::Encrypted(PassphraseSource::File(path.value.clone())),
        Some(form::RootKey::PassphraseEnv(name)) => {
            RootKey::Encrypted(PassphraseSource::Variable(name.value.0.clone()))
        }
    };
    Ok(params)
}

/// The first of two values that is there, with its key.
fn either<'a, T>(
    keys: [&'static str; 2],
    one: &'a Option<At<T>>,
    other: &'a Option<At<T>>,
) -> Option<(&'static str, &'a At<T>)> {
    keys.into_iter().zip([one, other]).find_map(|(key, value)| Some((key, value.as_ref()?)))
}

fn guests(source: &Source<'_>, forms: &[form::Guest]) -> Result<Vec<GuestEntry>> {
    let mut lines = HashMap::new();
    for form in forms {
        let (line, _) = source.position(form.id.span.start);
        if let Some(before) = lines.insert(&form.id.value, line) {
            let why = format!("the guest of line {before} has this id");
            return Err(source.refuse(&form.id, "guest.id", why));
        }
    }
    for id in forms.iter().flat_map(|form| &form.depends) {
        if !lines.contains_key(&id.value) {
            let ids = forms.iter().map(|form| &form.id.value);
            return Err(source.refuse(id, "guest.depends", none_such(ids)));
        }
    }
    let mut directories = HashMap::new();
    for path in forms.iter().filter_map(|form| form.path.as_ref()) {
        let (line, _) = source.position(path.span.start);
        let plain: PathBuf = path.value.components().filter(|part| *part != Component::CurDir).collect();
        if let Some(before) = directories.insert(plain, line) {
            return Err(source.refuse(path, "guest.path", format!("the guest of line {before} has this directory")));
        }
    }
    acyclic(source, forms)?;
    forms.iter().map(|form| guest(source, form)).collect()
}

fn guest(source: &Source<'_>, form: &form::Guest) -> Result<GuestEntry> {
    let id = &form.id;
    let refuse = |why: &str| Err(source.refuse(id, "guest.id", why));
    let kind = match (form.r#type, &id.value, &form.path) {
        (form::Type::Rootfs, _, Some(path)) => GuestKind::Rootfs(path.value.clone()),
        (form::Type::Rootfs, _, None) => return refuse("a rootfs guest needs the `path` of its directory"),
        (_, _, Some(path)) => {
            return Err(source.refuse(path, "guest.path", "only a rootfs guest has a path"));
        }
        (form::Type::Host, GuestId::Host, _) => GuestKind::Host,
        (form::Type::Host, ..) => return refuse("a guest of type \"host\" has the id \"host\""),
        (form::Type::Lxc, GuestId::Vmid(_), _) => GuestKind::Lxc,
        (form::Type::Vm, GuestId::Vmid(_), _) => GuestKind::Vm,
        _ => return refuse("a container or VM has its vmid as id, a number without quotes"),
    };
    Ok(GuestEntry {
        id: id.value.clone(),
        kind,
        name: form.name.as_ref().map(|name| name.value.0.clone()),
        features: form.features.iter().map(|feature| feature.value.0.clone()).collect(),
        depends: form.depends.iter().map(|id| id.value.clone()).collect(),
        docker_registries: form.docker_registries.iter().map(|registry| registry.value.0.clone()).collect(),
        deadline: form.deadline.as_ref().map_or(GUEST_DEADLINE, |deadline| deadline.value.duration()),
    })
}

/// Refuses guests that wait for each other.
fn acyclic(source: &Source<'_>, forms: &[form::Guest]) -> Result<()> {
    let mut waiting: HashMap<_, _> = forms.iter().map(|form| (&form.id.value, form)).collect();
    // What waits for nobody that still waits is served; who is left over waits in a circle, or behind one.
    loop {
        let ready = |form: &&&form::Guest| !form.depends.iter().any(|id| waiting.contains_key(&id.value));
        let served: Vec<_> = waiting.values().filter(ready).map(|form| &form.id.value).collect();
        if served.is_empty() {
            break;
        }
        for id in served {
            waiting.remove(id);
        }
    }
    let Some(mut form) = forms.iter().find(|form| waiting.contains_key(&form.id.value)) else { return Ok(()) };
    let mut circle = Vec::new();
    loop {
        let Some(next) = form.depends.iter().find(|id| waiting.contains_key(&id.value)) else { return Ok(()) };
        match circle.iter().position(|(id, _)| *id == &form.id.value) {
            Some(start) => {
                let ids = circle[start..].iter().map(|(id, _)| *id).chain([&form.id.value]);
                let ids = ids.map(GuestId::to_string).collect::<Vec<_>>().join(" → ");
                let first: &At<GuestId> = circle[start].1;
                let why = format!("these guests wait for each other: {ids}");
                return Err(source.refuse(first, "guest.depends", why));
            }
            None => circle.push((&form.id.value, next)),
        }
        form = waiting[&next.value];
    }
}

fn trust(source: &Source<'_>, form: Option<form::Select>, guests: &[GuestEntry]) -> Result<Select> {
    Ok(match form {
        None | Some(form::Select::None) => Select::None,
        Some(form::Select::All) => Select::All,
        Some(form::Select::Guests(ids)) => {
            let unknown = ids.iter().find(|id| !guests.iter().any(|guest| guest.id == id.value));
            if let Some(id) = unknown {
                let why = none_such(guests.iter().map(|guest| &guest.id));
                return Err(source.refuse(id, "trust.select.guests", why));
            }
            Select::Guests(ids.into_iter().map(|id| id.value).collect())
        }
        Some(form::Select::Feature(feature)) => {
            if !guests.iter().any(|guest| guest.features.contains(&feature.value.0)) {
                return Err(source.refuse(&feature, "trust.select.feature", "no guest has this feature"));
            }
            Select::Feature(feature.value.0)
        }
    })
}

fn leaf(source: &Source<'_>, begin: usize, form: &form::Certificate, defaults: &form::Defaults) -> Result<LeafParams> {
    let mut seen = HashSet::new();
    if let Some(name) = form.names.iter().find(|name| !seen.insert(&name.value)) {
        return Err(source.refuse(name, "certificate.names", "the certificate has this name already"));
    }
    let lifetime = form.lifetime.as_ref().or(defaults.lifetime.as_ref());
    let renew = form.renew.as_ref().or(defaults.renew.as_ref());
    let key_type = form.key_type.as_ref().or(defaults.key_type.as_ref());
    let leaf = LeafParams {
        name: form.name.as_ref().map(|name| name.value.0.clone()),
        names: form.names.iter().map(|name| name.value.clone()).collect(),
        profile: form.profile.as_ref().map(|profile| profile.value).unwrap_or_default(),
        key_type: key_type.map(|key_type| key_type.value).unwrap_or_default(),
        lifetime: lifetime.map_or(Lifetime::days(90), |lifetime| lifetime.value),
        renewal: renew.map(|renew| renew.value).unwrap_or_default(),
    };
    let sound = LeafParams { lifetime: LONGEST_LEAF, ..leaf.clone() }.check();
    sound.map(|()| leaf).map_err(|error| match (&form.name, error.accepted()) {
        (Some(name), why) => source.refuse(name, "certificate.name", why),
        (None, why) => source.error(begin, "certificate".into(), "", why),
    })
}

/// Refuses a lifetime that the certificate cannot have, or that a renewal would never leave.
fn lives_within(
    source: &Source<'_>,
    leaf: &LeafParams,
    form: &form::Certificate,
    defaults: &form::Defaults,
    authority: &form::Authority,
    params: &AuthorityParams,
) -> Result<()> {
    let most = params.intermediate_lifetime;
    let lifetime = either(["certificate.lifetime", "defaults.lifetime"], &form.lifetime, &defaults.lifetime);
    match (lifetime, &authority.intermediate_lifetime) {
        (Some((key, lifetime)), _) if lifetime.value > LONGEST_LEAF => {
            let why = format!("a certificate lives at most {LONGEST_LEAF}: clients refuse longer ones");
            return Err(source.refuse(lifetime, key, why));
        }
        (Some((key, lifetime)), _) if lifetime.value > most => {
            let why = format!("a certificate does not outlive its intermediate, which lives {most}");
            return Err(source.refuse(lifetime, key, why));
        }
        (None, Some(intermediate)) if leaf.lifetime > most => {
            let why = format!(
                "a certificate without a `lifetime` lives {}, and would outlive its intermediate",
                leaf.lifetime
            );
            return Err(source.refuse(intermediate, "authority.intermediate_lifetime", why));
        }
        _ => {}
    }
    let renew = either(["certificate.renew", "defaults.renew"], &form.renew, &defaults.renew);
    match (leaf.renewal, renew) {
        (Renewal::Before(before), Some((key, renew))) if before >= leaf.lifetime => {
            let why = format!("a certificate that lives {} would always be due", leaf.lifetime);
            Err(source.refuse(renew, key, why))
        }
        _ => Ok(()),
    }
}

/// The files of all deliveries so far, to find two for one path.
struct Files<'a> {
    source: &'a Source<'a>,
    /// The line of each.
    taken: HashMap<(GuestId, GuestPath), usize>,
    /// The directories that hold them, each with the line of a file below it.
    directories: HashMap<(GuestId, GuestPath), usize>,
}

impl Files<'_> {
    fn place(&mut self, guest: &GuestId, key: &str, form: form::Placed, usual: Mode) -> Result<Placed> {
        let (line, _) = self.source.position(form.path.span.start);
        let path = &form.path.value;
        let refuse = |why: String| Err(self.source.refuse(&form.path, &format!("{key}.path"), why));
        if in_state(path) {
            return refuse("a directory .phoenix holds the state of deliveries, and no other files".into());
        }
        if is_bundle(path) {
            return refuse(
                "all that the guest's programs trust stands there; `trust.select` adds the root to it".into(),
            );
        }
        if let Some(below) = self.directories.get(&(guest.clone(), path.clone())) {
            return refuse(format!("line {below} puts a file of guest {guest} below it"));
        }
        let mut directory = path.parent();
        while directory != GuestPath::root() {
            if let Some(before) = self.taken.get(&(guest.clone(), directory.clone())) {
                return refuse(format!("line {before} puts a file of guest {guest} where this needs a directory"));
            }
            self.directories.insert((guest.clone(), directory.clone()), line);
            directory = directory.parent();
        }
        if let Some(before) = self.taken.insert((guest.clone(), path.clone()), line) {
            return refuse(format!("line {before} puts another file of guest {guest} there"));
        }
        Ok(Placed {
            path: form.path.value,
            mode: form.mode.map_or(usual, |mode| mode.value),
            owner: form.owner.map_or(Owner::ROOT, |owner| owner.value),
        })
    }
}

fn copy(files: &mut Files<'_>, form: form::Copy, guests: &[GuestEntry]) -> Result<RootCopy> {
    if !guests.iter().any(|entry| entry.id == form.guest.value) {
        let why = none_such(guests.iter().map(|guest| &guest.id));
        return Err(files.source.refuse(&form.guest, "trust.copies.guest", why));
    }
    let guest = form.guest.value;
    let placed = form::Placed { path: form.path, mode: form.mode, owner: form.owner };
    Ok(RootCopy { placed: files.place(&guest, "trust.copies", placed, Mode::CERTIFICATE)?, guest })
}

fn delivery(files: &mut Files<'_>, form: form::Deliver, leaf: &LeafParams, guests: &[GuestEntry]) -> Result<Delivery> {
    let source = files.source;
    let guest = form.guest;
    if !guests.iter().any(|entry| entry.id == guest.value) {
        let why = none_such(guests.iter().map(|guest| &guest.id));
        return Err(source.refuse(&guest, "certificate.deliver.guest", why));
    }
    let guest = guest.value;
    let (mut check, mut reload) = (None, None);
    if let Some(service) = &form.service {
        let Some(known) = service::known(&service.value.0) else {
            let why = format!("no service that Phoenix knows; {}", accepts(&service.value.0, &service::names()));
            return Err(source.refuse(service, "certificate.deliver.service", why));
        };
        (check, reload) = (known.check, Some(known.reload));
    }
    if let Some(mode) = form.key.mode.as_ref().filter(|mode| mode.value.bits() & 0o007 != 0) {
        let why = "a private key is never open to others; \"0640\" lets a group read it";
        return Err(source.refuse(mode, "certificate.deliver.key.mode", why));
    }
    if form.cert.path.value == form.key.path.value {
        let why = "the certificate goes there; the key needs a file of its own";
        return Err(source.refuse(&form.key.path, "certificate.deliver.key.path", why));
    }
    let mut place = |key: &str, form| {
        let usual = if key == "key" { Mode::KEY } else { Mode::CERTIFICATE };
        files.place(&guest, &format!("certificate.deliver.{key}"), form, usual)
    };
    let placement = Placement {
        cert: place("cert", form.cert)?,
        key: place("key", form.key)?,
        chain: form.chain.map(|chain| place("chain", chain)).transpose()?,
        root: form.root.map(|root| place("root", root)).transpose()?,
        check: argv(source, form.check, "certificate.deliver.check")?.or(check),
        reload: argv(source, form.reload, "certificate.deliver.reload")?.or(reload),
        serves: form.serves.map(|form| serves(source, form, leaf)).transpose()?,
    };
    Ok(Delivery { guest, service: form.service.map(|service| service.value.0), placement })
}

fn argv(source: &Source<'_>, form: Option<Vec<At<Argument>>>, key: &str) -> Result<Option<Vec<String>>> {
    let Some(words) = form else { return Ok(None) };
    match words.first() {
        Some(program) if program.value.0.is_empty() => Err(source.refuse(program, key, "the program has no name")),
        _ => Ok(Some(words.into_iter().map(|word| word.value.0).collect())),
    }
}

/// The TLS server name that shows the certificate at an address.
fn serves(source: &Source<'_>, form: form::Serves, leaf: &LeafParams) -> Result<Serves> {
    let refuse = |why: String| match &form.name {
        Some(name) => Err(source.refuse(name, "certificate.deliver.serves.name", why)),
        None => Err(source.refuse(&form.address, "certificate.deliver.serves.address", why)),
    };
    if leaf.profile == Profile::Client {
        // The server that verifies it shows a certificate of its own, under its own name.
        let server: Serves = form.address.value.0.parse()?;
        let name = form.name.map_or(server.name, |name| name.value);
        return Ok(Serves { name, address: server.address });
    }
    let name = form.name.as_ref().map_or(&leaf.names[0], |name| &name.value);
    if name.is_wildcard() {
        return refuse(format!(
            "{name} is a wildcard; the `name` to ask for is one host, such as www{}",
            &name.to_string()[1..]
        ));
    }
    if !leaf.names.iter().any(|covering| covering.covers(name)) {
        let names = leaf.names.iter().map(Name::to_string).collect::<Vec<_>>().join(", ");
        return refuse(format!("the certificate does not cover this name, but {names}"));
    }
    Ok(Serves { name: name.clone(), address: form.address.value.0 })
}

/// What is said of a guest that the inventory does not have.
fn none_such<'a>(ids: impl Iterator<Item = &'a GuestId>) -> String {
    // A long inventory is not repeated in an error.
    let mut ids: Vec<_> = ids.take(21).map(GuestId::to_string).collect();
    if ids.len() > 20 {
        ids[20] = "…".into();
    }
    if ids.is_empty() { "there is no guest".into() } else { format!("no such guest; there are {}", ids.join(", ")) }
}
