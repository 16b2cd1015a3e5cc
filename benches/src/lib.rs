//! What the benches share: an authority, what is wanted of it, and the limits that it is measured against.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use phoenix_pki::{Authority, AuthorityParams, Leaf, LeafParams, Permitted, RootKey, Store};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use time::OffsetDateTime;

/// As many bytes as the part of a leaf that is signed has.
const SIGNED: [u8; 440] = [7; 440];

/// A directory in memory where the system has one, so that a bench sees no disk.
pub fn memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A directory on the disk that the bench was built on; a temporary directory may be memory.
pub fn disk() -> TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
}

/// A new authority, in a store below this directory.
pub fn authority(directory: &Path) -> Authority {
    let permitted = Permitted::parse(["internal.example", "10.0.0.0/8"]).unwrap();
    let params = AuthorityParams { root_key: RootKey::Plain, ..AuthorityParams::new("Bench", permitted) };
    Authority::create(&Store::new(directory.join("store")), &params, OffsetDateTime::now_utc()).unwrap()
}

/// This many server certificates with two DNS names and an address each.
pub fn wanted(count: usize) -> Vec<LeafParams> {
    let names = |at: usize| {
        let address = format!("10.0.{}.{}", at / 256, at % 256);
        [format!("host{at}.internal.example"), format!("www.host{at}.internal.example"), address]
    };
    (0..count).map(|at| LeafParams::server(names(at)).unwrap()).collect()
}

/// What a caller does with leaves: the PEM of chain and key.
pub fn to_pem(leaves: &[Leaf]) -> usize {
    leaves.iter().map(|leaf| leaf.chain_pem().len() + leaf.key().to_pem().len()).sum()
}

/// The limit of issuing: a key and a signature, without any encoding.
pub struct Raw {
    random: SystemRandom,
    issuer: EcdsaKeyPair,
}

impl Default for Raw {
    fn default() -> Self {
        Self { random: SystemRandom::new(), issuer: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap() }
    }
}

impl Raw {
    /// Makes a key and signs.
    pub fn issue(&self) -> (EcdsaKeyPair, impl AsRef<[u8]>) {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        (key, self.issuer.sign(&self.random, &SIGNED).unwrap())
    }

    /// Makes a key, signs and verifies the signature, as Phoenix does with every leaf.
    pub fn issue_verified(&self) -> (EcdsaKeyPair, impl AsRef<[u8]>) {
        let (key, signature) = self.issue();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.issuer.public_key().as_ref())
            .verify(&SIGNED, signature.as_ref())
            .unwrap();
        (key, signature)
    }
}

/// The files of a store, with their bytes: what a plain copy would read and write.
pub struct Files(Vec<(PathBuf, Vec<u8>)>);

impl Files {
    /// Every regular file below the directory, by its path within.
    pub fn below(directory: &Path) -> io::Result<Self> {
        let (mut files, mut open) = (Vec::new(), vec![directory.to_path_buf()]);
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(&next)? {
                let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type()))?;
                match kind? {
                    kind if kind.is_dir() => open.push(path),
                    kind if kind.is_file() => {
                        let inside = path.strip_prefix(directory).unwrap_or(&path).to_path_buf();
                        files.push((inside, fs::read(&path)?));
                    }
                    _ => {}
                }
            }
        }
        Ok(Self(files))
    }

    /// Opens and reads them all where they came from.
    pub fn read(&self, directory: &Path) -> io::Result<usize> {
        self.0.iter().map(|(path, _)| fs::read(directory.join(path)).map(|bytes| bytes.len())).sum()
    }

    /// Writes them all into an empty directory, and asks for no sync.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        for (path, bytes) in &self.0 {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap_or(directory))?;
            fs::write(path, bytes)?;
        }
        Ok(())
    }
}

/// Runs the work with one core only, the threads that it starts included.
pub fn on_one_core<T>(work: impl FnOnce() -> T) -> T {
    let all = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap_or(0);
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).unwrap();
    let result = work();
    sched_setaffinity(None, &all).unwrap();
    result
}

/// Does the same on this many threads.
pub fn on_threads(threads: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(&work))));
}

/// How long the work takes, in seconds.
pub fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    let result = work();
    let taken = start.elapsed().as_secs_f64();
    drop(result);
    taken
}

/// How much processor time the work takes in this process, in seconds: on one core the time that it takes when nothing
/// else runs there.
pub fn processor_seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let now = || {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    let start = now();
    let result = work();
    let taken = now() - start;
    drop(result);
    taken
}

/// The sum of the times of `rounds` calls; each gets a new value of `setup`, whose making and dropping do not count.
pub fn with_setup<S, T>(rounds: u64, setup: impl Fn() -> S, work: impl Fn(&S) -> T) -> Duration {
    let once = |_| {
        let input = setup();
        let start = Instant::now();
        let result = work(&input);
        let taken = start.elapsed();
        drop(result);
        taken
    };
    (0..rounds).map(once).sum()
}
