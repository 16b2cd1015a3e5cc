//! What the form alone does not say: whether ids, names, paths and lifetimes fit each other.

use std::collections::{HashMap, HashSet};

use phoenix_pki::{
    AuthorityParams, LONGEST_LEAF, LeafParams, Lifetime, Name, PassphraseSource, Permitted, Profile, Renewal, RootKey,
};

use super::form::{self, At};
use super::source::Source;
use super::{
    AuthorityEntry, CertificateEntry, Delivery, GUEST_DEADLINE, GuestEntry, GuestId, GuestKind, Inventory, Placed,
    Select, Serves,
};
use crate::error::Result;
use crate::guest::{Mode, Owner};
use crate::service;

/// The inventory of a form.
pub(super) fn check(source: &Source<'_>, form: form::Document) -> Result<Inventory> {
    let permitted = permitted(source, &form)?;
    let guests = guests(source, &form.guest)?;
    let trust = trust(source, form.trust, &guests)?;
    let intermediate = form.authority.intermediate_lifetime.as_ref().map(|lifetime| lifetime.at);
    let authority = authority(source, form.authority, permitted)?;
    let leaves = Leaves { source, defaults: &form.defaults, authority: &authority.params, intermediate };
    let mut labels = HashMap::new();
    let mut paths = HashMap::new();
    let mut certificates = Vec::with_capacity(form.certificate.len());
    for certificate in form.certificate {
        let at = certificate.span().start;
        let (line, _) = source.position(at);
        let certificate = certificate.into_inner();
        let leaf = leaves.leaf(at, &certificate)?;
        if let Some(before) = labels.insert(leaf.label(), line) {
            let why = format!("the certificate of line {before} is called so too; give one of them another `name`");
            let at = certificate.name.as_ref().map_or(certificate.names[0].at, |name| name.at);
            return Err(source.refuse(at, "certificate", leaf.label(), why));
        }
        let deliver = certificate.deliver.into_iter().map(|form| {
            let spots = [Some(&form.cert), Some(&form.key), form.chain.as_ref(), form.root.as_ref()];
            let spots: Vec<_> = spots.into_iter().flatten().map(|placed| placed.path.at).collect();
            let delivery = delivery(source, form, &leaf, &guests)?;
            for ((key, placed), at) in delivery.files().zip(spots) {
                let (line, _) = source.position(at);
                if let Some(before) = paths.insert((delivery.guest.clone(), placed.path.clone()), line) {
                    let why = format!("line {before} puts another file of guest {} there", delivery.guest);
                    return Err(source.refuse(at, format!("certificate.deliver.{key}.path"), &placed.path, why));
                }
            }
            Ok(delivery)
        });
        let deliver = deliver.collect::<Result<_>>()?;
        certificates.push(CertificateEntry { leaf, deliver, line });
    }
    Ok(Inventory { authority, trust, guests, certificates })
}

/// What the authority may certify; with a list of its own, every name must be in it.
fn permitted(source: &Source<'_>, form: &form::Document) -> Result<Permitted> {
    let names = || form.certificate.iter().flat_map(|certificate| &certificate.get_ref().names);
    let Some(entries) = &form.authority.permitted else {
        return Ok(Permitted::around(names().map(|name| &name.value)));
    };
    let mut permitted = Permitted::default();
    for form::Subtree(subtree) in entries.iter().map(|entry| &entry.value) {
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
            Err(source.refuse(name.at, "certificate.names", &name.value, why))
        }
    }
}

fn authority(source: &Source<'_>, form: form::Authority, permitted: Permitted) -> Result<AuthorityEntry> {
    let mut params = AuthorityParams::new(form.name.value.0, permitted);
    if let Some(key_type) = form.key_type {
        params.key_type = key_type.value;
    }
    if let Some(lifetime) = &form.root_lifetime {
        params.root_lifetime = lifetime.value;
    }
    if let Some(lifetime) = &form.intermediate_lifetime {
        params.intermediate_lifetime = lifetime.value;
    }
    if params.intermediate_lifetime > params.root_lifetime {
        let (key, lifetime) = match (&form.intermediate_lifetime, &form.root_lifetime) {
            (Some(lifetime), _) => ("authority.intermediate_lifetime", lifetime),
            (None, Some(lifetime)) => ("authority.root_lifetime", lifetime),
            (None, None) => return Ok(AuthorityEntry { store: form.store.value, params }),
        };
        let why =
            format!("an intermediate of {} outlives a root of {}", params.intermediate_lifetime, params.root_lifetime);
        return Err(source.refuse(lifetime.at, key, lifetime.value, why));
    }
    params.root_key = match form.root_key {
        None => RootKey::Generated,
        Some(form::RootKey::Plain) => RootKey::Plain,
        Some(form::RootKey::PassphraseFile(path)) => RootKey::Encrypted(PassphraseSource::File(path.value)),
        Some(form::RootKey::PassphraseEnv(name)) => RootKey::Encrypted(PassphraseSource::Variable(name.value.0)),
    };
    Ok(AuthorityEntry { store: form.store.value, params })
}

fn guests(source: &Source<'_>, forms: &[form::Guest]) -> Result<Vec<GuestEntry>> {
    let mut lines = HashMap::new();
    for form in forms {
        let (line, _) = source.position(form.id.at);
        if let Some(before) = lines.insert(&form.id.value, line) {
            let why = format!("the guest of line {before} has this id");
            return Err(source.refuse(form.id.at, "guest.id", &form.id.value, why));
        }
    }
    for id in forms.iter().flat_map(|form| &form.depends) {
        if !lines.contains_key(&id.value) {
            return Err(source.refuse(
                id.at,
                "guest.depends",
                &id.value,
                none_such(forms.iter().map(|form| &form.id.value)),
            ));
        }
    }
    acyclic(source, forms)?;
    forms.iter().map(|form| guest(source, form)).collect()
}

fn guest(source: &Source<'_>, form: &form::Guest) -> Result<GuestEntry> {
    let id = &form.id;
    let refuse = |why: &str| Err(source.refuse(id.at, "guest.id", &id.value, why));
    let kind = match (form.r#type, &id.value, &form.path) {
        (form::Type::Rootfs, _, Some(path)) => GuestKind::Rootfs(path.value.clone()),
        (form::Type::Rootfs, _, None) => return refuse("a rootfs guest needs the `path` of its directory"),
        (_, _, Some(path)) => {
            let why = "only a rootfs guest has a path";
            return Err(source.refuse(path.at, "guest.path", path.value.display(), why));
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
                return Err(source.refuse(first.at, "guest.depends", &first.value, why));
            }
            None => circle.push((&form.id.value, next)),
        }
        form = waiting[&next.value];
    }
}

fn trust(source: &Source<'_>, form: Option<form::Trust>, guests: &[GuestEntry]) -> Result<Select> {
    Ok(match form.map(|trust| trust.select) {
        None | Some(form::Select::None) => Select::None,
        Some(form::Select::All) => Select::All,
        Some(form::Select::Guests(ids)) => {
            let unknown = ids.iter().find(|id| !guests.iter().any(|guest| guest.id == id.value));
            if let Some(id) = unknown {
                let why = none_such(guests.iter().map(|guest| &guest.id));
                return Err(source.refuse(id.at, "trust.select.guests", &id.value, why));
            }
            Select::Guests(ids.into_iter().map(|id| id.value).collect())
        }
        Some(form::Select::Feature(At { value: form::Word(feature), at })) => {
            if !guests.iter().any(|guest| guest.features.contains(&feature)) {
                return Err(source.refuse(at, "trust.select.feature", feature, "no guest has this feature"));
            }
            Select::Feature(feature)
        }
    })
}

/// What the leaves of an inventory are measured by.
struct Leaves<'a> {
    source: &'a Source<'a>,
    defaults: &'a form::Defaults,
    authority: &'a AuthorityParams,
    /// Where the inventory sets the intermediate's lifetime.
    intermediate: Option<usize>,
}

impl Leaves<'_> {
    fn leaf(&self, at: usize, form: &form::Certificate) -> Result<LeafParams> {
        let source = self.source;
        let mut seen = HashSet::new();
        if let Some(name) = form.names.iter().find(|name| !seen.insert(&name.value)) {
            return Err(source.refuse(
                name.at,
                "certificate.names",
                &name.value,
                "the certificate has this name already",
            ));
        }
        let defaults = self.defaults;
        let lifetime = either(["certificate.lifetime", "defaults.lifetime"], &form.lifetime, &defaults.lifetime);
        let renew = either(["certificate.renew", "defaults.renew"], &form.renew, &defaults.renew);
        let key_type = form.key_type.as_ref().or(defaults.key_type.as_ref());
        let leaf = LeafParams {
            name: form.name.as_ref().map(|name| name.value.0.clone()),
            names: form.names.iter().map(|name| name.value.clone()).collect(),
            profile: form.profile.as_ref().map(|profile| profile.value).unwrap_or_default(),
            key_type: key_type.map(|key_type| key_type.value).unwrap_or_default(),
            lifetime: lifetime.map_or(Lifetime::days(90), |(_, lifetime)| lifetime.value),
            renewal: renew.map(|(_, renew)| renew.value).unwrap_or_default(),
        };

        let (key, spot) = lifetime.map_or(("certificate", self.intermediate.unwrap_or(at)), |(key, set)| (key, set.at));
        let too_long = |why: String| Err(source.refuse(spot, key, leaf.lifetime, why));
        if leaf.lifetime > LONGEST_LEAF {
            return too_long(format!("a leaf lives at most {LONGEST_LEAF}: clients refuse longer ones"));
        }
        let most = self.authority.intermediate_lifetime;
        if leaf.lifetime > most {
            return too_long(format!("a leaf does not outlive its intermediate, which lives {most}"));
        }
        if let (Renewal::Before(before), Some((key, renew))) = (leaf.renewal, renew)
            && before >= leaf.lifetime
        {
            let why = format!("a certificate that lives {} would always be due", leaf.lifetime);
            return Err(source.refuse(renew.at, key, before, why));
        }
        match leaf.check() {
            Ok(()) => Ok(leaf),
            Err(error) => {
                let spot = form.name.as_ref().map_or(at, |name| name.at);
                let (value, why) = match error {
                    phoenix_pki::Error::Value { value, accepted, .. } => (value, accepted.into()),
                    other => (leaf.label(), other.to_string()),
                };
                Err(source.refuse(spot, "certificate.name", value, why))
            }
        }
    }
}

/// The value of a certificate or else of the defaults, with its key.
fn either<'a, T>(
    keys: [&'a str; 2],
    own: &'a Option<At<T>>,
    default: &'a Option<At<T>>,
) -> Option<(&'a str, &'a At<T>)> {
    keys.into_iter().zip([own, default]).find_map(|(key, value)| Some((key, value.as_ref()?)))
}

fn delivery(source: &Source<'_>, form: form::Deliver, leaf: &LeafParams, guests: &[GuestEntry]) -> Result<Delivery> {
    let guest = form.guest;
    if !guests.iter().any(|entry| entry.id == guest.value) {
        let why = none_such(guests.iter().map(|guest| &guest.id));
        return Err(source.refuse(guest.at, "certificate.deliver.guest", &guest.value, why));
    }
    let known = match &form.service {
        None => None,
        Some(At { value: form::Word(name), at }) => Some(service::known(name).ok_or_else(|| {
            let why = format!("no service that Phoenix knows ({}); say `check` and `reload` instead", service::names());
            source.refuse(*at, "certificate.deliver.service", name, why)
        })?),
    };
    let (check, reload) = known.map_or((None, None), |known| (known.check, Some(known.reload)));
    if let Some(mode) = form.key.mode.as_ref().filter(|mode| mode.value.bits() & 0o007 != 0) {
        let why = "a private key is never open to others; \"0640\" lets a group read it";
        return Err(source.refuse(mode.at, "certificate.deliver.key.mode", mode.value, why));
    }
    if form.cert.path.value == form.key.path.value {
        let (at, why) = (form.key.path.at, "the certificate goes there; the key needs a file of its own");
        return Err(source.refuse(at, "certificate.deliver.key.path", &form.key.path.value, why));
    }
    Ok(Delivery {
        guest: guest.value,
        service: form.service.map(|service| service.value.0),
        cert: placed(form.cert, Mode::CERTIFICATE),
        key: placed(form.key, Mode::KEY),
        chain: form.chain.map(|chain| placed(chain, Mode::CERTIFICATE)),
        root: form.root.map(|root| placed(root, Mode::CERTIFICATE)),
        check: argv(source, form.check, "certificate.deliver.check")?.or(check),
        reload: argv(source, form.reload, "certificate.deliver.reload")?.or(reload),
        serves: form.serves.map(|form| serves(source, form, leaf)).transpose()?,
    })
}

fn placed(form: form::Placed, mode: Mode) -> Placed {
    Placed {
        path: form.path.value,
        mode: form.mode.map_or(mode, |mode| mode.value),
        owner: form.owner.map_or(Owner::ROOT, |owner| owner.value),
    }
}

fn argv(source: &Source<'_>, form: Option<Vec<At<form::Argument>>>, key: &str) -> Result<Option<Vec<String>>> {
    let Some(words) = form else { return Ok(None) };
    match words.first() {
        Some(program) if program.value.0.is_empty() => {
            Err(source.refuse(program.at, key, "", "the program has no name"))
        }
        _ => Ok(Some(words.into_iter().map(|word| word.value.0).collect())),
    }
}

/// The TLS server name that shows the certificate at an address.
fn serves(source: &Source<'_>, form: form::Serves, leaf: &LeafParams) -> Result<Serves> {
    let refuse = |why: String| match &form.name {
        Some(name) => source.refuse(name.at, "certificate.deliver.serves.name", &name.value, why),
        None => source.refuse(form.address.at, "certificate.deliver.serves", &form.address.value.0, why),
    };
    if leaf.profile == Profile::Client {
        return Err(refuse("a client certificate is shown by no server".into()));
    }
    let name = form.name.as_ref().map_or(&leaf.names[0], |name| &name.value);
    if name.is_wildcard() {
        return Err(refuse(format!(
            "{name} is a wildcard: say in `name` which host to ask for, such as {}",
            name.example()
        )));
    }
    if !leaf.names.iter().any(|covering| covering.covers(name)) {
        let names = leaf.names.iter().map(Name::to_string).collect::<Vec<_>>().join(", ");
        return Err(refuse(format!("the certificate does not cover this name: {names}")));
    }
    Ok(Serves { name: name.clone(), address: form.address.value.0 })
}

fn none_such<'a>(ids: impl Iterator<Item = &'a GuestId>) -> String {
    // A long inventory is not repeated in an error.
    let mut ids: Vec<_> = ids.take(21).map(GuestId::to_string).collect();
    if ids.len() > 20 {
        ids[20] = "…".into();
    }
    if ids.is_empty() { "there is no guest".into() } else { format!("no such guest; there are {}", ids.join(", ")) }
}
