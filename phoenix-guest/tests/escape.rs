//! A hostile guest tries to lead the hypervisor outside its root file system.
//!
//! Each attack ends with the same question: is everything outside as it was?

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use phoenix_guest::{File, GuestPath, Mode, Owner, Rootfs, Transport};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

/// A guest's root and, beside it, what the guest must not reach.
struct Hypervisor {
    directory: TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Hypervisor {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        for made in ["root/etc", "root/srv", "outside/ssl", "outside/etc/ssl"] {
            std::fs::create_dir_all(directory.path().join(made)).unwrap();
        }
        for name in ["secret", "ssl/cert", "ssl/.phoenix-tmp-0123456789abcdef", "etc/passwd", "etc/ssl/cert"] {
            std::fs::write(outside.join(name), "of the hypervisor").unwrap();
        }
        std::fs::write(outside.join("etc/passwd"), "intruder:x:4711:\n").unwrap();
        let before = contents(&outside);
        Self { directory, before }
    }

    fn guest(&self) -> Rootfs {
        Rootfs::new("hostile", self.root()).unwrap()
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    /// Every way to write that symlinks lead to, and every way to read.
    fn attack(&self, path: &str) {
        let (guest, path) = (self.guest(), path.parse::<GuestPath>().unwrap());
        let below = path.join("cert").unwrap();
        for path in [&path, &below] {
            let read = guest.get(path, 1000).ok().flatten().unwrap_or_default();
            assert!(!String::from_utf8_lossy(&read).contains("hypervisor"), "{path} was read outside");
            let listed = guest.list(path).unwrap_or_default();
            assert!(!listed.iter().any(|name| name == "secret"), "{path} was listed outside");
            for observed in guest.observe(std::slice::from_ref(path)).unwrap_or_default() {
                let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"of the hypervisor");
                assert!(observed.file.is_none_or(|file| file.digest != digest.as_ref()), "{path} was seen outside");
            }
        }
        // Some of these are refused, some write inside; neither is the question.
        let _ = guest.put(&file(&below));
        let _ = guest.link(&below, "/etc/passwd");
        let _ = guest.remove(&below);
        let _ = guest.put(&file(&path));
        let _ = guest.remove(&path);
        self.nothing_changed();
    }

    fn nothing_changed(&self) {
        assert_eq!(contents(&self.outside()), self.before, "the hypervisor was written to");
        let mut names: Vec<_> = names(self.directory.path());
        names.sort();
        assert_eq!(names, ["outside", "root"], "something new stands beside the guest's root");
    }
}

fn file(path: &GuestPath) -> File {
    File { path: path.clone(), bytes: b"of the guest".into(), mode: Mode::KEY, owner: Owner::ROOT }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// All below a directory, with what a write would change: inode, type and mode, owner, times, bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for name in names(directory) {
        let path = directory.join(name);
        let meta = path.symlink_metadata().unwrap();
        let bytes = if meta.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        let told = format!("{} {:o} {}:{} {times:?} {bytes:?}", meta.ino(), meta.mode(), meta.uid(), meta.gid());
        if meta.is_dir() {
            found.extend(contents(&path));
        }
        found.insert(path, told);
    }
    found
}

#[test]
fn an_absolute_symlink_as_a_directory() {
    let hypervisor = Hypervisor::new();
    symlink(hypervisor.outside(), hypervisor.root().join("etc/ssl")).unwrap();
    hypervisor.attack("/etc/ssl");
    symlink(hypervisor.outside(), hypervisor.root().join("srv/parent")).unwrap();
    hypervisor.attack("/srv/parent/ssl");
}

#[test]
fn a_symlink_upwards_as_a_directory() {
    for target in
        ["../../outside", "../../../../../../../../../../../outside", "../../srv/../outside", "./.././../outside"]
    {
        let hypervisor = Hypervisor::new();
        symlink(target, hypervisor.root().join("etc/ssl")).unwrap();
        hypervisor.attack("/etc/ssl");
        symlink(target, hypervisor.root().join("srv/parent")).unwrap();
        hypervisor.attack("/srv/parent/ssl");
    }
}

#[test]
fn all_of_etc_is_a_symlink() {
    let hypervisor = Hypervisor::new();
    std::fs::remove_dir(hypervisor.root().join("etc")).unwrap();
    symlink(hypervisor.outside().join("etc"), hypervisor.root().join("etc")).unwrap();
    // Nor are the hypervisor's users the guest's.
    if hypervisor.guest().sets_owners() {
        let path = "/srv/cert".parse().unwrap();
        let owner = "intruder:root".parse().unwrap();
        hypervisor.guest().put(&File { owner, ..file(&path) }).unwrap_err();
    }
    hypervisor.attack("/etc/ssl");
}

#[test]
fn users_and_groups_are_symlinks() {
    let hypervisor = Hypervisor::new();
    let path = "/srv/cert".parse::<GuestPath>().unwrap();
    for name in ["passwd", "group"] {
        symlink(hypervisor.outside().join("etc/passwd"), hypervisor.root().join("etc").join(name)).unwrap();
    }
    if hypervisor.guest().sets_owners() {
        let owner = "intruder:intruder".parse().unwrap();
        hypervisor.guest().put(&File { owner, ..file(&path) }).unwrap_err();
        hypervisor.guest().put(&File { owner: "4711:4711".parse().unwrap(), ..file(&path) }).unwrap();
        let seen = hypervisor.guest().observe(&[path]).unwrap().remove(0).file.unwrap();
        assert_eq!(seen.user, (4711, None));
    }
    hypervisor.nothing_changed();
}

#[test]
fn a_symlink_at_the_destination() {
    for target in ["../../outside/secret", "../../outside/new", "../../outside"] {
        let hypervisor = Hypervisor::new();
        symlink(target, hypervisor.root().join("etc/cert")).unwrap();
        symlink(hypervisor.outside().join("secret"), hypervisor.root().join("etc/key")).unwrap();
        for path in ["/etc/cert", "/etc/key"] {
            let path = path.parse().unwrap();
            hypervisor.guest().put(&file(&path)).unwrap();
            assert_eq!(hypervisor.guest().get(&path, 100).unwrap().unwrap(), b"of the guest");
        }
        hypervisor.attack("/etc/cert");
        hypervisor.attack("/etc/key");
    }
}

#[test]
fn an_absolute_symlink_leads_to_the_guests_own_file() {
    let hypervisor = Hypervisor::new();
    let inside = hypervisor.root().join(hypervisor.outside().strip_prefix("/").unwrap());
    std::fs::create_dir_all(&inside).unwrap();
    symlink(hypervisor.outside(), hypervisor.root().join("etc/ssl")).unwrap();
    hypervisor.guest().put(&file(&"/etc/ssl/secret".parse().unwrap())).unwrap();
    assert_eq!(std::fs::read(inside.join("secret")).unwrap(), b"of the guest");
    hypervisor.nothing_changed();
}

#[test]
fn a_tree_to_remove_leads_outside() {
    let hypervisor = Hypervisor::new();
    let tree = hypervisor.root().join("srv/tree");
    std::fs::create_dir_all(tree.join("below")).unwrap();
    symlink(hypervisor.outside(), tree.join("absolute")).unwrap();
    symlink("../../../../outside", tree.join("below/relative")).unwrap();
    symlink("../../../../outside/secret", tree.join("below/file")).unwrap();
    hypervisor.guest().remove(&"/srv/tree".parse().unwrap()).unwrap();
    assert!(!tree.exists());
    hypervisor.nothing_changed();
}

#[test]
fn a_tree_without_end_is_refused() {
    let hypervisor = Hypervisor::new();
    let deep = (0..200).fold(hypervisor.root().join("srv/tree"), |path, _| path.join("d"));
    std::fs::create_dir_all(deep).unwrap();
    hypervisor.guest().remove(&"/srv/tree".parse().unwrap()).unwrap_err();
    hypervisor.nothing_changed();
}

#[test]
fn magic_links_lead_nowhere() {
    // A guest's root is where its /proc is mounted; this machine's stands for it.
    let machine = Rootfs::new("hostile", "/").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let descriptor = std::fs::File::open(directory.path()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&descriptor);
    for link in ["root", "cwd", "exe", &format!("fd/{number}")] {
        for path in [format!("/proc/self/{link}"), format!("/proc/self/{link}/below")] {
            let path = path.parse().unwrap();
            assert!(machine.get(&path, 1000).is_err(), "{path}");
            assert!(machine.put(&file(&path)).is_err(), "{path}");
        }
        assert!(machine.list(&format!("/proc/self/{link}").parse().unwrap()).is_err(), "{link}");
    }
    assert_eq!(names(directory.path()), [""; 0]);
}

/// Ends the swapping, also when an assertion failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A guest that swaps its directory for a symlink, in a loop, while it is written to.
fn swapped(target: impl Fn(&Hypervisor) -> PathBuf) {
    let hypervisor = Hypervisor::new();
    let (directory, link) = (hypervisor.root().join("etc/ssl"), hypervisor.root().join("etc/swapped"));
    std::fs::create_dir(&directory).unwrap();
    symlink(target(&hypervisor), &link).unwrap();
    let (stop, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (guest, path) = (hypervisor.guest(), "/etc/ssl/cert".parse::<GuestPath>().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &directory, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _stop = Stop(&stop);
        let mut landed = 0;
        for round in 0..20_000 {
            // On a busy machine, it may take many to come through once.
            if round >= 500 && landed > 0 {
                break;
            }
            landed += usize::from(guest.put(&file(&path)).is_ok());
            let _ = guest.link(&"/etc/ssl/link".parse().unwrap(), "cert");
            let read = guest.get(&path, 1000).ok().flatten().unwrap_or_default();
            assert!(read.is_empty() || read == b"of the guest", "read outside");
            let _ = guest.remove(&"/etc/ssl/link".parse().unwrap());
            let _ = guest.list(&"/etc/ssl".parse().unwrap()).map(|names| assert!(!names.contains(&"secret".into())));
        }
        assert!(landed > 0, "the race was never won by the right side");
    });
    assert!(swaps.into_inner() > 100, "the guest hardly tried");
    hypervisor.nothing_changed();
}

#[test]
fn a_directory_is_swapped_for_an_absolute_symlink() {
    swapped(Hypervisor::outside);
}

#[test]
fn a_directory_is_swapped_for_a_symlink_upwards() {
    swapped(|_| "../../outside".into());
}
