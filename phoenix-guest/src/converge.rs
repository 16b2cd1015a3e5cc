//! Making it so: observe, plan, issue, trust, deliver, activate, prove, report. One direction, no way back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use phoenix_pki::{Authority, Certificate, Ensured, Error as PkiError, Fingerprint, Leaf, LeafParams, Reason, Store};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::command::{Command, Output};
use crate::delivery::Delivery;
use crate::error::{Error, Result};
use crate::guest::{GuestPath, Placed};
use crate::inventory::{CertificateEntry, GuestEntry, GuestId, GuestKind, Inventory};
use crate::report::{CertificateReport, DeliveryReport, GuestReport, Report, State, TrustReport};
use crate::transport::{ContainerState, File, Local, Observed, Pct, Rootfs, Transport};
use crate::trust::{StoreState, StoreStatus, Trust, TrustStore};

/// How long a guest may take, after its deadline, to end what was begun: a pair that hangs is taken back all the same.
const WAY_BACK: Duration = Duration::from_secs(30);

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only look, and say what would be done.
    pub dry_run: bool,
    /// How many guests are worked on at once, at least one.
    pub parallel: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { dry_run: false, parallel: 8 }
    }
}

/// What a run is doing, for whoever shows it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another run holds the store; this one waits for it, a minute at most.
    Waiting,
    /// The certificates were judged; this many are made.
    Issuing {
        /// How many.
        due: usize,
    },
    /// A guest is being worked on.
    Working {
        /// Its id.
        guest: &'a str,
        /// What is done: `reach`, `trust`, or the path of a pair.
        what: &'a str,
    },
    /// A guest is done.
    Finished {
        /// Its id.
        guest: &'a str,
    },
}

/// A guest that was looked for.
#[non_exhaustive]
pub enum Reached {
    /// It is there.
    Ready(Box<dyn Transport>),
    /// It is not there now, and nothing is wrong with that: stopped, or not created yet.
    Absent {
        /// Why, such as `stopped`.
        why: String,
    },
}

impl Reached {
    /// A container, as far as it runs: one that is stopped, or not on this host, is absent.
    ///
    /// # Errors
    /// Those of [`Pct::state`].
    pub fn container(container: Pct) -> Result<Self> {
        Ok(match container.state()? {
            ContainerState::Running => Self::Ready(Box::new(container)),
            ContainerState::Stopped => Self::Absent { why: "stopped".into() },
            ContainerState::Absent => Self::Absent { why: "no such container on this host".into() },
        })
    }
}

/// Reaches a guest as its entry says.
///
/// # Errors
/// [`Error::Unsupported`] for a kind of guest that this version does not reach, and for a container anywhere but on a
/// Proxmox VE host; those of [`Pct::state`] and [`Rootfs::new`].
pub fn reach(entry: &GuestEntry) -> Result<Reached> {
    match &entry.kind {
        GuestKind::Host => Ok(Reached::Ready(Box::new(Local::named(entry.id.to_string())))),
        GuestKind::Rootfs(path) if !path.is_dir() => {
            Ok(Reached::Absent { why: format!("{} is no directory", path.display()) })
        }
        GuestKind::Rootfs(path) => Ok(Reached::Ready(Box::new(Rootfs::new(entry.id.to_string(), path)?))),
        GuestKind::Lxc => match entry.id {
            GuestId::Vmid(vmid) => Reached::container(Pct::new(vmid)),
            _ => Err(Error::Unsupported { guest: entry.id.to_string(), what: "a container has a number".into() }),
        },
        other => Err(Error::Unsupported {
            guest: entry.id.to_string(),
            what: format!("{other} guests cannot be reached by this version"),
        }),
    }
}

/// Makes the world as the inventory says, proves it, and does nothing when nothing has changed.
///
/// `reach` finds a guest, usually [`reach`]. One guest's failure does not stop the others: it is in the report. A run that
/// is not dry keeps other runs from the same store out.
///
/// ```
/// use phoenix_guest::inventory::Inventory;
/// use phoenix_guest::{Options, converge, reach};
///
/// # let (directory, now) = (tempfile::tempdir()?, time::OffsetDateTime::now_utc());
/// # let (store, web) = (directory.path().join("store"), directory.path().join("web"));
/// # std::fs::create_dir(&web)?;
/// let text = format!(r#"
///     authority = {{ name = "Example", store = {store:?}, root_key = "plain" }}
///
///     [[guest]]
///     id = "web"
///     type = "rootfs"
///     path = {web:?}
///
///     [[certificate]]
///     names = ["www.internal.example"]
///
///     [[certificate.deliver]]
///     guest = "web"
///     cert = {{ path = "/etc/ssl/www.crt" }}
///     key = {{ path = "/etc/ssl/www.key" }}
/// "#);
/// let inventory = Inventory::parse(&text, "phoenix.toml")?;
/// let report = converge(&inventory, &reach, &Options::default(), now, &|_| {})?;
/// assert!(report.changed() && report.holds());
/// let report = converge(&inventory, &reach, &Options::default(), now, &|_| {})?;
/// assert!(!report.changed() && report.holds());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
/// # Errors
/// Only for what concerns all guests: the authority, the store, a name outside the authority's constraints.
pub fn converge(
    inventory: &Inventory,
    reach: &(dyn Fn(&GuestEntry) -> Result<Reached> + Sync),
    options: &Options,
    now: OffsetDateTime,
    events: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Report> {
    let store = Store::new(&inventory.authority.store);
    let _alone = match options.dry_run {
        true => None,
        false => Some(store.exclusive(|| events(Event::Waiting)).map_err(pki)?),
    };
    let existing = match Authority::open(&store) {
        Err(PkiError::AuthorityMissing { .. }) => None,
        other => Some(other.map_err(pki)?),
    };
    let authority_created = existing.is_none() && !options.dry_run;
    let wanted: Vec<LeafParams> = inventory.certificates.iter().map(|entry| entry.leaf.clone()).collect();
    if let Some(authority) = &existing {
        permitted(inventory, authority)?;
    }
    let authority = match existing {
        None if !options.dry_run => Some(Authority::create(&store, &inventory.authority.params, now).map_err(pki)?),
        other => other,
    };
    let held = hold(authority.as_ref(), &wanted, options, now, events)?;
    let crls = match &authority {
        Some(authority) => {
            let root_key = &inventory.authority.params.root_key;
            let refreshed = match options.dry_run {
                true => authority.plan_crls(root_key, now),
                false => authority.refresh_crls(root_key, now),
            };
            Some(refreshed.map_err(pki)?)
        }
        None => None,
    };
    let run = Run { inventory, authority: authority.as_ref(), held: &held, reach, options, now, events };
    let mut guests = Vec::new();
    for layer in inventory.layers() {
        guests.extend(run.layer(&layer));
    }
    guests.sort_by_key(|report: &(usize, GuestReport)| report.0);
    Ok(Report {
        dry_run: options.dry_run,
        authority_created,
        root: authority.as_ref().map(|authority| authority.root().fingerprint()),
        crls,
        certificates: inventory.certificates.iter().zip(&held).map(|(entry, held)| held.report(entry)).collect(),
        guests: guests.into_iter().map(|(_, report)| report).collect(),
    })
}

/// A certificate of the inventory as the store holds it now.
struct Held {
    state: State,
    reason: Reason,
    leaf: Option<Leaf>,
}

impl Held {
    fn report(&self, entry: &CertificateEntry) -> CertificateReport {
        let certificate = self.leaf.as_ref().map(Leaf::certificate);
        CertificateReport {
            label: entry.leaf.label(),
            names: entry.leaf.names.clone(),
            profile: entry.leaf.profile,
            state: self.state.clone(),
            reason: self.reason.clone(),
            fingerprint: certificate.map(|certificate| certificate.fingerprint()),
            not_after: certificate.map(|certificate| certificate.not_after()),
        }
    }
}

/// Judges the certificates, and unless this is a dry run makes those that are due. What the store has of one and cannot
/// be read concerns that one alone.
fn hold(
    authority: Option<&Authority>,
    wanted: &[LeafParams],
    options: &Options,
    now: OffsetDateTime,
    events: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Vec<Held>> {
    let Some(authority) = authority else {
        return Ok(wanted.iter().map(|_| Held { state: State::Due, reason: Reason::Missing, leaf: None }).collect());
    };
    let each = |wanted| authority.observe(std::slice::from_ref(wanted), now).map(|mut observed| observed.remove(0));
    let observed: Vec<_> = match authority.observe(wanted, now) {
        Ok(observed) => observed.into_iter().map(Ok).collect(),
        Err(PkiError::OpenKey { .. } | PkiError::ReadFile { .. }) => wanted.iter().map(each).collect(),
        Err(error) => return Err(pki(error)),
    };
    let is_due =
        |observed: &phoenix_pki::Result<(Reason, _)>| observed.as_ref().is_ok_and(|(reason, _)| reason.is_due());
    let due: Vec<LeafParams> = wanted
        .iter()
        .zip(&observed)
        .filter(|(_, observed)| is_due(observed))
        .map(|(wanted, _)| wanted.clone())
        .collect();
    events(Event::Issuing { due: due.len() });
    let made =
        if options.dry_run || due.is_empty() { Vec::new() } else { authority.ensure_all(&due, now).map_err(pki)? };
    let mut made = made.into_iter();
    let held = |observed: phoenix_pki::Result<(Reason, Option<Leaf>)>| match observed {
        Err(error) => {
            let reason = Reason::Damaged { why: error.to_string() };
            Held { state: State::failed(&error), reason, leaf: None }
        }
        Ok((reason, _)) if reason.is_due() && options.dry_run => Held { state: State::Due, reason, leaf: None },
        // Between the two looks another process may have made it: then it is there, and nothing was due.
        Ok((reason, _)) if reason.is_due() => match made.next() {
            Some(Ensured { leaf, reason, .. }) => {
                let state = if reason.is_due() { State::Changed } else { State::Unchanged };
                Held { state, reason, leaf: Some(leaf) }
            }
            None => Held { state: State::Due, reason, leaf: None },
        },
        Ok((reason, leaf)) => Held { state: State::Unchanged, reason, leaf },
    };
    Ok(observed.into_iter().map(held).collect())
}

/// Refuses a name outside the authority's constraints before anything is made, naming the line.
fn permitted(inventory: &Inventory, authority: &Authority) -> Result<()> {
    let Some(permitted) = authority.permitted() else { return Ok(()) };
    for entry in &inventory.certificates {
        if let Some(name) = entry.leaf.names.iter().find(|name| !permitted.permits(name)) {
            let (name, permitted) = (name.to_string(), permitted.to_string());
            let source = Box::new(PkiError::NotPermitted { name, permitted });
            return Err(Error::Certificate { origin: entry.origin.clone(), source });
        }
    }
    Ok(())
}

fn pki(source: PkiError) -> Error {
    Error::Authority { source: Box::new(source) }
}

struct Run<'a> {
    inventory: &'a Inventory,
    authority: Option<&'a Authority>,
    held: &'a [Held],
    reach: &'a (dyn Fn(&GuestEntry) -> Result<Reached> + Sync),
    options: &'a Options,
    now: OffsetDateTime,
    events: &'a (dyn Fn(Event<'_>) + Sync),
}

impl Run<'_> {
    /// The guests of one layer, so many at once as the options say.
    fn layer(&self, guests: &[&GuestEntry]) -> Vec<(usize, GuestReport)> {
        let next = AtomicUsize::new(0);
        let reports = Mutex::new(Vec::new());
        let work = || {
            while let Some(entry) = guests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let report = self.guest(entry);
                (self.events)(Event::Finished { guest: &report.guest });
                let place = self.inventory.guests.iter().position(|other| other.id == entry.id).unwrap_or(usize::MAX);
                reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((place, report));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.options.parallel.clamp(1, guests.len().max(1)) {
                scope.spawn(work);
            }
            // This thread is one of those that work: a run without parallelism has no other.
            work();
        });
        reports.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn working(&self, entry: &GuestEntry, what: &str) {
        (self.events)(Event::Working { guest: &entry.id.to_string(), what });
    }

    fn guest(&self, entry: &GuestEntry) -> GuestReport {
        let mut report = GuestReport {
            guest: entry.id.to_string(),
            name: entry.name.clone(),
            state: State::Unchanged,
            trust: None,
            deliveries: Vec::new(),
        };
        self.working(entry, "reach");
        let transport = match (self.reach)(entry) {
            Ok(Reached::Ready(transport)) => Bounded { inner: transport, start: Instant::now(), limit: entry.deadline },
            Ok(Reached::Absent { why }) => {
                report.state = State::Pending { why };
                return report;
            }
            Err(error) => {
                report.state = State::failed(&error);
                return report;
            }
        };
        let mut anchors: Vec<CertificateDer<'static>> =
            self.authority.iter().map(|authority| authority.root().der().clone()).collect();
        let copies: Vec<&Placed> =
            self.inventory.copies.iter().filter(|copy| copy.guest == entry.id).map(|copy| &copy.placed).collect();
        let selected = self.inventory.trust.selects(entry);
        if selected || !copies.is_empty() {
            self.working(entry, "trust");
            let (trust, bundle) = self.trust(entry, selected, &copies, &transport);
            report.trust = Some(trust);
            if anchors.iter().all(|root| bundle.contains(root)) {
                // A guest that trusts the root judges what it serves by its own bundle, and by nothing else. That one does
                // not is said of its trust: to its pairs, which a renewal must still reach, the root alone says the same.
                anchors = bundle;
            }
        }
        for (certificate, held) in self.inventory.certificates.iter().zip(self.held) {
            for delivery in certificate.deliver.iter().filter(|delivery| delivery.guest == entry.id) {
                self.working(entry, delivery.placement.cert.path.as_str());
                report.deliveries.push(self.delivery(&transport, certificate, held, &delivery.placement, &anchors));
            }
        }
        report
    }

    /// The root in the guest's stores and files, and what the guest's programs trust then.
    fn trust(
        &self,
        entry: &GuestEntry,
        selected: bool,
        copies: &[&Placed],
        transport: &Bounded,
    ) -> (TrustReport, Vec<CertificateDer<'static>>) {
        let Some(authority) = self.authority else {
            return (TrustReport { state: State::Due, stores: Vec::new() }, Vec::new());
        };
        let made = || -> Result<_> {
            let (mut changed, mut stores, mut bundle) = (false, Vec::new(), Vec::new());
            transport.begin("trust")?;
            if selected {
                let roots = std::slice::from_ref(authority.root());
                let trust = Trust::of(transport, &entry.docker_registries)?;
                (changed, stores) = match self.options.dry_run {
                    true => (false, trust.status(roots)?),
                    false => trust.install(roots).map(|installed| (installed.changed, installed.stores))?,
                };
                if trust.family().is_some() {
                    bundle = trust.bundle()?;
                }
            }
            for copy in copies {
                let (written, status) = self.copy(copy, authority.root(), transport)?;
                changed |= written;
                stores.push(status);
            }
            let wanting = |store: &&StoreStatus| !store.state.holds();
            let state = match stores.iter().find(wanting) {
                Some(StoreStatus { state: StoreState::Unsupported { why }, .. }) => {
                    State::Failed { causes: vec![why.clone()] }
                }
                Some(_) if self.options.dry_run => State::Due,
                Some(store) => State::Failed { causes: vec![format!("{} is {} after all", store.store, store.state)] },
                None if changed => State::Changed,
                None => State::Unchanged,
            };
            Ok((TrustReport { state, stores }, bundle))
        };
        made().unwrap_or_else(|error| (TrustReport { state: State::failed(&error), stores: Vec::new() }, Vec::new()))
    }

    /// The root as a file, and whether it had to be written.
    fn copy(&self, copy: &Placed, root: &Certificate, transport: &dyn Transport) -> Result<(bool, StoreStatus)> {
        let bytes = root.pem().into_bytes();
        let observed = transport.observe(std::slice::from_ref(&copy.path))?.pop().and_then(|observed| observed.file);
        let holds = observed.is_some_and(|file| {
            file.digest == *Fingerprint::of(&bytes).as_bytes()
                && file.mode == copy.mode
                && (!transport.sets_owners() || file.owned_by(&copy.owner))
        });
        let write = !holds && !self.options.dry_run;
        if write {
            let Placed { path, mode, owner } = copy.clone();
            transport.put(&File { path, bytes, mode, owner })?;
        }
        let state = if holds || write { StoreState::Present } else { StoreState::Missing };
        Ok((write, StoreStatus { store: TrustStore::Copy { path: copy.path.to_string() }, state }))
    }

    fn delivery(
        &self,
        transport: &Bounded,
        certificate: &CertificateEntry,
        held: &Held,
        placement: &crate::delivery::Placement,
        anchors: &[CertificateDer<'static>],
    ) -> DeliveryReport {
        let mut report = DeliveryReport {
            certificate: certificate.leaf.label(),
            path: placement.cert.path.to_string(),
            state: State::Due,
            differences: Vec::new(),
            proof: None,
            notes: Vec::new(),
        };
        let Some(leaf) = &held.leaf else {
            // In a dry run, a certificate that is due has not been made: its delivery follows.
            if let State::Failed { .. } = &held.state {
                report.state = State::Failed { causes: vec!["its certificate cannot be read from the store".into()] };
            }
            return report;
        };
        let made = || -> Result<_> {
            transport.begin(placement.cert.path.as_str())?;
            let delivery = Delivery::new(transport, leaf, placement)?;
            let standing = delivery.standing(transport.observe(&delivery.paths()?)?);
            match self.options.dry_run {
                true => delivery.examine(&standing, anchors, self.now),
                false => delivery.ensure(&standing, anchors, self.now),
            }
        };
        match made() {
            Ok(delivered) => {
                report.state = match (delivered.changed(), self.options.dry_run) {
                    (false, _) => State::Unchanged,
                    (true, false) => State::Changed,
                    (true, true) => State::Due,
                };
                report.differences = delivered.differences;
                report.proof = delivered.proof;
                report.notes = delivered.notes;
            }
            Err(error) => report.state = State::failed(&error),
        }
        report
    }
}

/// A transport with a deadline for all that is asked of one guest together: nothing is begun after it, and what was begun
/// before has [`WAY_BACK`] more.
struct Bounded {
    inner: Box<dyn Transport>,
    start: Instant,
    limit: Duration,
}

impl Bounded {
    /// Whether something new may be begun.
    fn begin(&self, attempted: &str) -> Result<()> {
        self.until(self.limit, &format!("what came before {attempted}")).map(drop)
    }

    fn left(&self, attempted: &str) -> Result<Duration> {
        self.until(self.limit, attempted).or_else(|_| self.until(self.limit.saturating_add(WAY_BACK), attempted))
    }

    fn until(&self, limit: Duration, attempted: &str) -> Result<Duration> {
        limit.checked_sub(self.start.elapsed()).filter(|left| !left.is_zero()).ok_or_else(|| Error::Deadline {
            guest: self.inner.guest().into(),
            attempted: attempted.into(),
            limit,
        })
    }
}

impl Transport for Bounded {
    fn guest(&self) -> &str {
        self.inner.guest()
    }

    fn exec(&self, command: &Command) -> Result<Output> {
        let left = self.left(command.argv.first().map_or("a command", String::as_str))?;
        let mut command = command.clone();
        command.deadline = command.deadline.min(left);
        self.inner.exec(&command)
    }

    fn put(&self, file: &File) -> Result<()> {
        self.left(file.path.as_str())?;
        self.inner.put(file)
    }

    fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>> {
        self.left(path.as_str())?;
        self.inner.get(path, limit)
    }

    fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>> {
        self.left("observing")?;
        self.inner.observe(paths)
    }

    fn link(&self, path: &GuestPath, target: &str) -> Result<()> {
        self.left(path.as_str())?;
        self.inner.link(path, target)
    }

    fn remove(&self, path: &GuestPath) -> Result<()> {
        self.left(path.as_str())?;
        self.inner.remove(path)
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<String>> {
        self.left(path.as_str())?;
        self.inner.list(path)
    }

    fn runs_programs(&self) -> bool {
        self.inner.runs_programs()
    }

    fn sets_owners(&self) -> bool {
        self.inner.sets_owners()
    }
}
