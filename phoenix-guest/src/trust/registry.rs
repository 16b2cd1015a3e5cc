//! Docker's trust in one registry: a directory of its own, read at each connection.

use phoenix_pki::{Certificate, Fingerprint};

use super::bundle::{BUNDLE_LIMIT, Bundle};
use super::{CANDIDATES, StoreState, anchor_file, file_name, named_by, placed};
use crate::error::{Error, Result};
use crate::guest::GuestPath;
use crate::transport::Transport;

/// The file that Docker's manual names. Docker reads each `*.crt` beside it too, and takes a `*.cert` for a client's.
const USUAL: &str = "ca.crt";

/// What stands before each anchor in a file that is all ours. Docker skips what is not PEM.
const MARK: &str = "# phoenix-pki trust anchor ";

/// A registry and the directory of its anchors.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    pub(super) name: String,
    directory: GuestPath,
}

impl Registry {
    pub(super) fn parse(name: &str) -> Result<Self> {
        let refused = || Error::Value {
            what: "registry",
            value: name.into(),
            accepted: "host:port as in an image's name, such as 10.0.0.103:5000",
        };
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        if !name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[') || !name.bytes().all(sound) {
            return Err(refused());
        }
        let directory = format!("/etc/docker/certs.d/{name}").parse().map_err(|_| refused())?;
        Ok(Self { name: name.into(), directory })
    }

    /// What the directory holds against what it shall hold.
    pub(super) fn see<'c>(
        &self,
        transport: &dyn Transport,
        wanted: &'c [Certificate],
        unwanted: impl Fn(Fingerprint) -> bool,
    ) -> Result<Seen<'c>> {
        let names = transport.list(&self.directory)?.into_iter().filter(|name| name.ends_with(".crt")).take(CANDIDATES);
        let paths = names.map(|name| self.directory.join(&name)).collect::<Result<Vec<_>>>()?;
        let mut seen = Seen { usual: Some(Usual::default()), ..Seen::default() };
        for (path, observed) in paths.iter().zip(transport.observe(&paths)?) {
            let readable = observed.file.as_ref().is_some_and(|file| file.length <= BUNDLE_LIMIT as u64);
            let bytes = if readable { transport.get(path, BUNDLE_LIMIT)?.unwrap_or_default() } else { Vec::new() };
            let usual = path.file_name() == USUAL;
            let ours =
                if usual { marked(&bytes) } else { named_by(path.file_name(), &bytes).map(|anchor| vec![anchor]) };
            let Some(anchors) = ours.filter(|_| observed.link.is_none()) else {
                seen.foreign.extend(Bundle::parse(bytes).fingerprints());
                if usual {
                    seen.usual = None;
                }
                continue;
            };
            let whole = observed.file.as_ref().is_some_and(|file| placed(transport, file));
            seen.unwanted |= anchors.iter().any(|anchor| unwanted(anchor.fingerprint()));
            seen.damaged |= !whole;
            match usual {
                true => seen.usual = Some(Usual { anchors, whole }),
                false => seen.beside.extend(anchors.into_iter().map(|anchor| (path.clone(), whole, anchor))),
            }
        }
        for anchor in wanted {
            if !seen.holds(anchor.fingerprint()) && !seen.missing.contains(&anchor) {
                seen.missing.push(anchor);
            }
        }
        seen.only_foreign = wanted
            .iter()
            .any(|anchor| seen.ours().all(|ours| ours != anchor) && seen.foreign.contains(&anchor.fingerprint()));
        Ok(seen)
    }

    /// Makes the directory hold what was seen to be missing, and lose what is unwanted.
    pub(super) fn settle(
        &self,
        transport: &dyn Transport,
        seen: &Seen<'_>,
        unwanted: impl Fn(Fingerprint) -> bool,
    ) -> Result<bool> {
        if !seen.unwanted && !seen.damaged && seen.missing.is_empty() {
            return Ok(false);
        }
        let mut beside: Vec<&Certificate> = Vec::new();
        match &seen.usual {
            None => beside.extend(&seen.missing),
            Some(usual) => {
                let kept = usual.anchors.iter().filter(|anchor| !unwanted(anchor.fingerprint()));
                let shall: Vec<&Certificate> = kept.chain(seen.missing.iter().copied()).collect();
                let path = self.directory.join(USUAL)?;
                if usual.anchors.iter().ne(shall.iter().copied()) || !usual.whole {
                    match shall.is_empty() {
                        true => transport.remove(&path)?,
                        false => transport.put(&anchor_file(path, rendered(&shall)))?,
                    }
                }
            }
        }
        for (path, whole, anchor) in &seen.beside {
            match unwanted(anchor.fingerprint()) {
                true => transport.remove(path)?,
                false if !whole => beside.push(anchor),
                false => {}
            }
        }
        for anchor in beside {
            transport.put(&anchor_file(self.directory.join(&file_name(anchor.fingerprint()))?, anchor.pem()))?;
        }
        Ok(true)
    }
}

/// What the directory of a registry holds.
#[derive(Default)]
pub(super) struct Seen<'c> {
    /// The usual file; `None` when it is somebody else's.
    usual: Option<Usual>,
    /// Our anchors in files of their own, and whether mode and owner are as placed.
    beside: Vec<(GuestPath, bool, Certificate)>,
    foreign: Vec<Fingerprint>,
    missing: Vec<&'c Certificate>,
    unwanted: bool,
    damaged: bool,
    only_foreign: bool,
}

/// Our anchors in the usual file, none when there is no file.
struct Usual {
    anchors: Vec<Certificate>,
    /// Whether mode and owner are as placed.
    whole: bool,
}

impl Default for Usual {
    fn default() -> Self {
        Self { anchors: Vec::new(), whole: true }
    }
}

impl Seen<'_> {
    fn ours(&self) -> impl Iterator<Item = &Certificate> {
        self.usual.iter().flat_map(|usual| &usual.anchors).chain(self.beside.iter().map(|(_, _, anchor)| anchor))
    }

    fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.foreign.contains(&fingerprint) || self.ours().any(|anchor| anchor.fingerprint() == fingerprint)
    }

    pub(super) fn holds_unwanted(&self) -> bool {
        self.unwanted
    }

    pub(super) fn state(&self) -> StoreState {
        StoreState::of(self.unwanted || self.damaged, !self.missing.is_empty(), self.only_foreign)
    }
}

fn rendered(anchors: &[&Certificate]) -> String {
    anchors.iter().map(|anchor| format!("{MARK}{}\n{}", anchor.fingerprint(), anchor.pem())).collect()
}

/// The anchors of a file that we wrote and nobody changed.
fn marked(bytes: &[u8]) -> Option<Vec<Certificate>> {
    if !bytes.starts_with(MARK.as_bytes()) {
        return None;
    }
    let anchors = Certificate::all_from_pem(bytes, USUAL).ok()?;
    (rendered(&anchors.iter().collect::<Vec<_>>()).as_bytes() == bytes).then_some(anchors)
}
