//! The pair swap: certificate and key reach a guest as one generation, switch by one rename, and go back if they do not serve.
//!
//! ```text
//! /etc/nginx/ssl/nginx.crt -> .phoenix/nginx.crt/current/cert.pem
//! /etc/nginx/ssl/nginx.key -> .phoenix/nginx.crt/current/key.pem
//! /etc/nginx/ssl/.phoenix/nginx.crt/current  -> 5f0c…     one rename switches both
//! /etc/nginx/ssl/.phoenix/nginx.crt/previous -> 91ab…
//! /etc/nginx/ssl/.phoenix/nginx.crt/pending               there until the consumer took the pair
//! ```
//!
//! Paths that are in use already are adopted: what is there is copied into a generation, and each path becomes a
//! symlink into it with its content unchanged, before the one switch changes both. Where a file system has no symlinks,
//! files are replaced one by one with no reload between them, and a kill between the two is repaired by the next run.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use phoenix_pki::{Leaf, Name, Profile};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;

use crate::command::{Command, printable};
use crate::error::{Error, Result};
use crate::guest::{GuestPath, Mode, Owner};
use crate::handshake::{Judge, PATIENCE, PairPem, Proof, Serves};
use crate::transport::{File, Observed, ObservedFile, Transport};

/// The longest file of a pair that is read back.
const LONGEST_FILE: usize = 1 << 20;

/// Where one file goes, and who may read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its path in the guest.
    pub path: GuestPath,
    /// Its permission bits.
    pub mode: Mode,
    /// Its owner.
    pub owner: Owner,
}

impl Placed {
    /// A certificate: mode 0644, owned by root.
    pub fn certificate(path: GuestPath) -> Self {
        Self { path, mode: Mode::CERTIFICATE, owner: Owner::ROOT }
    }

    /// A private key: mode 0600, owned by root.
    pub fn key(path: GuestPath) -> Self {
        Self { path, mode: Mode::KEY, owner: Owner::ROOT }
    }
}

/// Where a pair goes in a guest, and how its consumer takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The chain: leaf first, then the intermediate.
    pub cert: Placed,
    /// The private key.
    pub key: Placed,
    /// The intermediate alone, for consumers that want it apart.
    pub chain: Option<Placed>,
    /// The root, for consumers that read it from a file.
    pub root: Option<Placed>,
    /// How the consumer checks its configuration; run before the reload.
    pub check: Option<Vec<String>>,
    /// How the consumer takes a new pair.
    pub reload: Option<Vec<String>>,
    /// Where it answers, and under which name.
    pub serves: Option<Serves>,
}

impl Placement {
    /// A pair at these two paths, with the usual modes, and nothing to reload.
    pub fn new(cert: GuestPath, key: GuestPath) -> Self {
        Self {
            cert: Placed::certificate(cert),
            key: Placed::key(key),
            chain: None,
            root: None,
            check: None,
            reload: None,
            serves: None,
        }
    }

    /// Every file of it, under its name in a generation.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Placed)> {
        let optional = [("chain.pem", &self.chain), ("root.pem", &self.root)];
        [("cert.pem", &self.cert), ("key.pem", &self.key)]
            .into_iter()
            .chain(optional.into_iter().filter_map(|(name, placed)| Some((name, placed.as_ref()?))))
    }
}

/// How a guest differs from what it should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "difference")]
#[non_exhaustive]
pub enum Difference {
    /// A file is not there.
    Missing {
        /// Its path.
        path: String,
    },
    /// A file holds other bytes.
    Content {
        /// Its path.
        path: String,
    },
    /// A file has another mode.
    Mode {
        /// Its path.
        path: String,
        /// What it has.
        found: String,
        /// What it should have.
        wanted: String,
    },
    /// A file has another owner.
    Owner {
        /// Its path.
        path: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// The files are in place and the consumer was not told, or did not answer, before a run ended.
    NotActivated,
    /// The service does not show this certificate.
    NotServing {
        /// What the handshake said.
        why: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => write!(f, "{path} is missing"),
            Self::Content { path } => write!(f, "{path} differs"),
            Self::Mode { path, found, wanted } => write!(f, "{path} has mode {found}, not {wanted}"),
            Self::Owner { path, found, wanted } => write!(f, "{path} is owned by {found}, not {wanted}"),
            Self::NotActivated => f.write_str("the consumer did not take it yet"),
            Self::NotServing { why } => f.write_str(why),
        }
    }
}

/// What a delivery came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Delivered {
    /// What differed; empty when nothing was done.
    pub differences: Vec<Difference>,
    /// What the handshake showed; none where no service is named and files cannot be judged by themselves.
    pub proof: Option<Proof>,
    /// What an operator should know, such as `owner not set (not root)`.
    pub notes: Vec<String>,
}

impl Delivered {
    /// Whether anything was done.
    pub fn changed(&self) -> bool {
        !self.differences.is_empty()
    }
}

/// A file as it should stand in the guest.
struct Wanted {
    name: &'static str,
    placed: Placed,
    bytes: zeroize::Zeroizing<Vec<u8>>,
    digest: [u8; 32],
}

/// One pair for one place in one guest.
pub(crate) struct Delivery<'a> {
    transport: &'a dyn Transport,
    leaf: &'a Leaf,
    placement: &'a Placement,
    state: GuestPath,
    wanted: Vec<Wanted>,
}

/// What stands in the guest for a delivery.
pub(crate) struct Standing {
    files: Vec<Observed>,
    current: Option<String>,
    pending: bool,
}

impl<'a> Delivery<'a> {
    pub(crate) fn new(transport: &'a dyn Transport, leaf: &'a Leaf, placement: &'a Placement) -> Result<Self> {
        let state = placement.cert.path.parent().join(".phoenix")?.join(placement.cert.path.file_name())?;
        let wanted = placement
            .files()
            .map(|(name, placed)| {
                let bytes = zeroize::Zeroizing::new(match name {
                    "cert.pem" => leaf.chain_pem().into_bytes(),
                    "key.pem" => leaf.key().to_pem().as_bytes().to_vec(),
                    "chain.pem" => {
                        leaf.chain()[1..].iter().map(phoenix_pki::Certificate::pem).collect::<String>().into_bytes()
                    }
                    _ => leaf.root().pem().into_bytes(),
                });
                let digest = digest(&bytes);
                Wanted { name, placed: placed.clone(), bytes, digest }
            })
            .collect();
        Ok(Self { transport, leaf, placement, state, wanted })
    }

    /// The paths whose standing decides: the files, then the state of the last delivery.
    pub(crate) fn paths(&self) -> Result<Vec<GuestPath>> {
        let mut paths: Vec<GuestPath> = self.wanted.iter().map(|wanted| wanted.placed.path.clone()).collect();
        paths.push(self.state.join("current")?);
        paths.push(self.state.join("pending")?);
        Ok(paths)
    }

    /// Reads what was observed at [`Delivery::paths`].
    pub(crate) fn standing(&self, mut observed: Vec<Observed>) -> Standing {
        let pending = observed.pop().is_some_and(|observed| observed.file.is_some());
        let current = observed.pop().and_then(|observed| observed.link).filter(|name| is_generation(name));
        Standing { files: observed, current, pending }
    }

    /// What differs, from what was observed alone.
    pub(crate) fn plan(&self, standing: &Standing) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (wanted, observed) in self.wanted.iter().zip(&standing.files) {
            differences.extend(differs(wanted, observed.file.as_ref(), self.transport.sets_owners()));
        }
        if differences.is_empty() && standing.pending {
            differences.push(Difference::NotActivated);
        }
        differences
    }

    /// The proof as it stands: does the service show the pair now, or do the files make a handshake?
    pub(crate) fn prove(&self, judge: &Judge<'_>, patience: Duration) -> Result<Option<Proof>> {
        let certificate = self.leaf.certificate();
        let profile = certificate.profile().unwrap_or_default();
        let Some(serves) = self.placement.serves.as_ref().filter(|_| self.transport.runs_programs()) else {
            // On a guest whose programs run, files say nothing about them.
            let named = self.placement.serves.as_ref().map(|serves| serves.name.clone());
            let Some(name) = named.or_else(|| certificate.names().first().map(Name::example)) else { return Ok(None) };
            let (chain, key) = self.read_back()?;
            return judge.files(&PairPem { chain: &chain, key: &key }, &name, profile).map(Some);
        };
        if profile == Profile::Client {
            let (chain, key) = self.read_back()?;
            return judge.serving(serves, Some(&PairPem { chain: &chain, key: &key }), patience).map(Some);
        }
        judge.serving(serves, None, patience).map(Some)
    }

    fn read_back(&self) -> Result<(Vec<u8>, zeroize::Zeroizing<Vec<u8>>)> {
        let read = |path: &GuestPath| {
            self.transport.get(path, LONGEST_FILE)?.ok_or_else(|| Error::File {
                guest: self.transport.guest().into(),
                attempted: "read",
                path: path.to_string(),
                source: ErrorKind::NotFound.into(),
            })
        };
        Ok((read(&self.placement.cert.path)?, read(&self.placement.key.path)?.into()))
    }

    /// Makes the guest hold and use the pair, or puts back what was there.
    pub(crate) fn apply(
        &self,
        standing: &Standing,
        differences: &[Difference],
        judge: &Judge<'_>,
    ) -> Result<Option<Proof>> {
        let placed = differences
            .iter()
            .any(|difference| !matches!(difference, Difference::NotActivated | Difference::NotServing { .. }));
        let back = if placed {
            self.switch(standing)?
        } else if standing.pending {
            Back::To(self.previous()?)
        } else {
            // The pair stood here before this run: a service that is down is not helped by an older one.
            Back::Nowhere
        };
        let proof = match self
            .read_back_as_wanted()
            .and_then(|()| self.activate())
            .and_then(|()| self.prove(judge, PATIENCE))
        {
            Ok(proof) => proof,
            Err(error) if matches!(back, Back::Nowhere) => return Err(error),
            Err(error) => return Err(self.roll_back(&back, error)),
        };
        // The marker goes last: without it, nobody would look for what is left.
        self.sweep()?;
        self.transport.remove(&self.state.join("pending")?)?;
        Ok(proof)
    }

    /// Puts the new generation in place. Nothing that a consumer reads changes before the one rename at the end.
    fn switch(&self, standing: &Standing) -> Result<Back> {
        let guest = self.transport;
        let generation = self.put_generation(&self.wanted)?;
        let mut old = standing.current.clone();
        let linked = self
            .wanted
            .iter()
            .zip(&standing.files)
            .all(|(wanted, observed)| observed.link.as_deref() == Some(self.link_text(wanted).as_str()));
        if !linked {
            let adopted = self.adopt(standing)?;
            if let Some((name, _)) = &adopted {
                match guest.link(&self.state.join("current")?, name) {
                    Err(error) if has_no_symlinks(&error) => return self.replace_in_place(adopted),
                    other => other?,
                }
            } else if standing.current.is_some() {
                // Links into a generation that nothing reads: start clean, so that new links lead nowhere yet.
                guest.remove(&self.state.join("current")?)?;
            }
            for wanted in &self.wanted {
                match guest.link(&wanted.placed.path, &self.link_text(wanted)) {
                    Err(error) if has_no_symlinks(&error) => return self.replace_in_place(adopted),
                    other => other?,
                }
            }
            old = adopted.map(|(name, _)| name);
        }
        self.mark_pending()?;
        let previous = self.state.join("previous")?;
        match &old {
            Some(old) => guest.link(&previous, old)?,
            None => guest.remove(&previous)?,
        }
        guest.link(&self.state.join("current")?, &generation)?;
        Ok(Back::To(old))
    }

    /// Copies what the paths hold now into a generation, so that they can become links without changing.
    fn adopt(&self, standing: &Standing) -> Result<Option<(String, Vec<Wanted>)>> {
        let mut adopted = Vec::new();
        for (wanted, observed) in self.wanted.iter().zip(&standing.files) {
            let Some(file) = &observed.file else { continue };
            let Some(bytes) = self.transport.get(&wanted.placed.path, LONGEST_FILE)? else { continue };
            let owner =
                Owner { user: crate::guest::Id::Number(file.user.0), group: crate::guest::Id::Number(file.group.0) };
            let placed = Placed { path: wanted.placed.path.clone(), mode: file.mode, owner };
            let digest = digest(&bytes);
            adopted.push(Wanted { name: wanted.name, placed, bytes: bytes.into(), digest });
        }
        if adopted.is_empty() {
            return Ok(None);
        }
        Ok(Some((self.put_generation(&adopted)?, adopted)))
    }

    /// Where no symlink can be: new files over old ones, no reload between.
    fn replace_in_place(&self, adopted: Option<(String, Vec<Wanted>)>) -> Result<Back> {
        self.mark_pending()?;
        self.wanted.iter().try_for_each(|wanted| self.transport.put(&wanted.file(&wanted.placed.path)))?;
        Ok(Back::InPlace(adopted.map(|(_, files)| files).unwrap_or_default()))
    }

    fn put_generation(&self, files: &[Wanted]) -> Result<String> {
        let mut all = Vec::new();
        for file in files {
            all.extend_from_slice(&file.digest);
            all.extend_from_slice(format!("{} {} {}\n", file.name, file.placed.mode, file.placed.owner).as_bytes());
        }
        // Time and chance keep it apart from a generation of the same files that somebody changed by hand.
        all.extend_from_slice(&random()?);
        let name: String = digest(&all).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        for file in files {
            self.transport.put(&file.file(&self.state.join(&name)?.join(file.name)?))?;
        }
        Ok(name)
    }

    fn mark_pending(&self) -> Result<()> {
        let path = self.state.join("pending")?;
        self.transport.put(&File { path, bytes: Vec::new(), mode: Mode::CERTIFICATE, owner: Owner::ROOT })
    }

    /// Law 2: in place means that digest, mode and owner read back as wanted, through the paths that the consumer uses.
    fn read_back_as_wanted(&self) -> Result<()> {
        let standing = self.standing(self.transport.observe(&self.paths()?)?);
        match self.plan(&standing).into_iter().find(|difference| *difference != Difference::NotActivated) {
            None => Ok(()),
            Some(difference) => Err(Error::ReadBack {
                guest: self.transport.guest().into(),
                path: self.placement.cert.path.to_string(),
                expected: "the pair as it was placed".into(),
                found: difference.to_string(),
            }),
        }
    }

    /// Has the consumer check its configuration and take the pair.
    fn activate(&self) -> Result<()> {
        if !self.transport.runs_programs() {
            return Ok(());
        }
        for argv in [&self.placement.check, &self.placement.reload].into_iter().flatten() {
            run(self.transport, argv)?;
        }
        Ok(())
    }

    fn previous(&self) -> Result<Option<String>> {
        Ok(self.generations()?.into_iter().nth(1).flatten())
    }

    /// What `current` and `previous` lead to.
    fn generations(&self) -> Result<Vec<Option<String>>> {
        let observed = self.transport.observe(&[self.state.join("current")?, self.state.join("previous")?])?;
        Ok(observed.into_iter().map(|observed| observed.link.filter(|name| is_generation(name))).collect())
    }

    /// Puts back what was there and has the consumer take it; the error holds both causes.
    fn roll_back(&self, back: &Back, cause: Error) -> Error {
        let restored = (|| {
            match back {
                Back::Nowhere => {}
                Back::To(Some(old)) => self.transport.link(&self.state.join("current")?, old)?,
                Back::To(None) => {
                    for wanted in &self.wanted {
                        self.transport.remove(&wanted.placed.path)?;
                    }
                    self.transport.remove(&self.state)?;
                }
                Back::InPlace(files) => {
                    for wanted in &self.wanted {
                        match files.iter().find(|file| file.name == wanted.name) {
                            Some(file) => self.transport.put(&file.file(&file.placed.path))?,
                            None => self.transport.remove(&wanted.placed.path)?,
                        }
                    }
                }
            }
            if !matches!(back, Back::To(None)) {
                if let (Some(reload), true) = (&self.placement.reload, self.transport.runs_programs()) {
                    run(self.transport, reload)?;
                }
                self.sweep()?;
                self.transport.remove(&self.state.join("pending")?)?;
            }
            Ok(())
        })();
        Error::RolledBack {
            guest: self.transport.guest().into(),
            path: self.placement.cert.path.to_string(),
            source: Box::new(cause),
            rollback: restored.err().map(Box::new),
        }
    }

    /// Removes generations that are neither current nor previous: what killed and rolled-back runs left.
    fn sweep(&self) -> Result<()> {
        let kept = self.generations()?;
        for name in self.transport.list(&self.state)? {
            if is_generation(&name) && !kept.iter().flatten().any(|kept| *kept == name) {
                self.transport.remove(&self.state.join(&name)?)?;
            }
        }
        Ok(())
    }

    /// What the path of a file says as a symlink: relative, so that it holds through bind mounts.
    fn link_text(&self, wanted: &Wanted) -> String {
        relative(&wanted.placed.path.parent(), &self.state) + "/current/" + wanted.name
    }
}

impl Wanted {
    fn file(&self, path: &GuestPath) -> File {
        let Placed { mode, owner, .. } = self.placed.clone();
        File { path: path.clone(), bytes: self.bytes.to_vec(), mode, owner }
    }
}

/// What a rollback restores.
enum Back {
    /// Nothing: this run did not switch.
    Nowhere,
    /// The link, to this generation; with none, nothing was there before.
    To(Option<String>),
    /// The files themselves.
    InPlace(Vec<Wanted>),
}

/// Runs a consumer's command; a status that is not zero is an error.
fn run(transport: &dyn Transport, argv: &[String]) -> Result<()> {
    let output = transport.exec(&Command::new(argv))?;
    if output.status == 0 {
        return Ok(());
    }
    Err(Error::Command {
        guest: transport.guest().into(),
        argv: printable(argv.join(" ").as_bytes()),
        status: output.status,
        stderr: printable(&output.stderr),
    })
}

fn differs(wanted: &Wanted, found: Option<&ObservedFile>, owners: bool) -> Option<Difference> {
    let path = wanted.placed.path.to_string();
    let Some(found) = found else { return Some(Difference::Missing { path }) };
    if found.digest != wanted.digest {
        return Some(Difference::Content { path });
    }
    if found.mode != wanted.placed.mode {
        let wanted = wanted.placed.mode.to_string();
        return Some(Difference::Mode { path, found: found.mode.to_string(), wanted });
    }
    if owners && !found.owned_by(&wanted.placed.owner) {
        let show = |(number, name): &(u32, Option<String>)| name.clone().unwrap_or_else(|| number.to_string());
        let found = format!("{}:{}", show(&found.user), show(&found.group));
        return Some(Difference::Owner { path, found, wanted: wanted.placed.owner.to_string() });
    }
    None
}

/// A generation's name: 16 hexadecimal digits, so that no link of the guest's leads elsewhere.
fn is_generation(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn has_no_symlinks(error: &Error) -> bool {
    matches!(error, Error::File { attempted: "link", source, .. }
        if matches!(source.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied))
}

/// The way from one directory to another path, without leaving text that names the root.
fn relative(from: &GuestPath, to: &GuestPath) -> String {
    let parts = |path: &GuestPath| -> Vec<String> {
        path.as_str().split('/').filter(|part| !part.is_empty()).map(Into::into).collect()
    };
    let (from, to) = (parts(from), parts(to));
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..".to_string(), from.len() - shared);
    up.chain(to[shared..].iter().cloned()).collect::<Vec<_>>().join("/")
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    *phoenix_pki::Fingerprint::of(bytes).as_bytes()
}

fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Error::Unsupported { guest: "host".into(), what: "the system gives no random numbers".into() })?;
    Ok(bytes)
}

/// Places a pair, has its consumer check and take it, and proves it; or puts back what was there.
///
/// `anchors` are what the handshake trusts, and nothing else is.
///
/// # Errors
/// [`Error::RolledBack`] when the consumer's check, its reload or the proof failed; the transport's otherwise.
pub fn ensure_pair(
    transport: &dyn Transport,
    leaf: &Leaf,
    placement: &Placement,
    anchors: &[CertificateDer<'static>],
    at: OffsetDateTime,
) -> Result<Delivered> {
    let delivery = Delivery::new(transport, leaf, placement)?;
    let standing = delivery.standing(transport.observe(&delivery.paths()?)?);
    delivery.ensure(&standing, anchors, at)
}

impl Delivery<'_> {
    /// [`ensure_pair`] from what was observed already.
    pub(crate) fn ensure(
        &self,
        standing: &Standing,
        anchors: &[CertificateDer<'static>],
        at: OffsetDateTime,
    ) -> Result<Delivered> {
        let mut delivered = self.examine(standing, anchors, at)?;
        if delivered.changed() {
            delivered.proof = self.apply(standing, &delivered.differences, &self.judge(anchors, at))?;
        }
        Ok(delivered)
    }

    /// What [`Delivery::ensure`] would find to do. Looks, and changes nothing.
    pub(crate) fn examine(
        &self,
        standing: &Standing,
        anchors: &[CertificateDer<'static>],
        at: OffsetDateTime,
    ) -> Result<Delivered> {
        let mut differences = self.plan(standing);
        let mut proof = None;
        if differences.is_empty() {
            match self.prove(&self.judge(anchors, at), Duration::ZERO) {
                Ok(shown) => proof = shown,
                Err(error @ Error::Handshake { .. }) if self.asks_a_server() => {
                    differences.push(Difference::NotServing { why: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        let mut notes = Vec::new();
        if !self.transport.sets_owners() && self.wanted.iter().any(|wanted| wanted.placed.owner != Owner::ROOT) {
            notes.push("owner not set (not root)".into());
        }
        Ok(Delivered { differences, proof, notes })
    }

    fn judge<'a>(&self, anchors: &'a [CertificateDer<'static>], at: OffsetDateTime) -> Judge<'a> {
        Judge { anchors, expected: self.leaf.certificate().fingerprint(), at }
    }

    fn asks_a_server(&self) -> bool {
        self.placement.serves.is_some() && self.transport.runs_programs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative_and_need_no_root() {
        let path = |text: &str| text.parse::<GuestPath>().unwrap();
        let state = path("/etc/nginx/ssl/.phoenix/nginx.crt");
        assert_eq!(relative(&path("/etc/nginx/ssl"), &state), ".phoenix/nginx.crt");
        assert_eq!(relative(&path("/etc/nginx/private"), &state), "../ssl/.phoenix/nginx.crt");
        assert_eq!(relative(&path("/"), &state), "etc/nginx/ssl/.phoenix/nginx.crt");
        assert_eq!(relative(&path("/srv/keys"), &state), "../../etc/nginx/ssl/.phoenix/nginx.crt");
    }
}
