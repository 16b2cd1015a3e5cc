//! Real containers, through a stand-in for `pct`: one privileged, one unprivileged, one with nothing but busybox, and one
//! that never runs.
//!
//! Debian's root file system is built once and kept in the cache directory. All else lies in a temporary directory, and is
//! stopped and removed when this process ends, in whatever way.
#![allow(dead_code, reason = "each test uses its own part")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use phoenix_guest::Pct;

use crate::common::skip;

/// Debian 12 as root of this machine sees it.
pub(crate) const PRIVILEGED: u32 = 101;
/// The same, with its user 0 as user 100000 of this machine.
pub(crate) const UNPRIVILEGED: u32 = 102;
/// A static busybox, and nothing else.
pub(crate) const BUSYBOX: u32 = 103;
/// Configured, and never started.
pub(crate) const STOPPED: u32 = 104;
/// Running, without a shell and without `env`.
pub(crate) const BARE: u32 = 105;
/// Not even configured.
pub(crate) const ABSENT: u32 = 999;

/// The first of the unprivileged container's numbers.
pub(crate) const SHIFT: u32 = 100_000;

const PACKAGES: &str = "busybox-static,ca-certificates,openssl";

/// The containers of this process.
pub(crate) struct Lxc {
    directory: PathBuf,
    /// Cleans up when its standard input ends.
    _janitor: Child,
}

static LXC: LazyLock<Result<Lxc, String>> = LazyLock::new(|| rootfs().and_then(|rootfs| Lxc::start(&rootfs)));

/// The containers, started by whoever asks first; where there can be none, the test is skipped by name.
pub(crate) fn lxc() -> Option<&'static Lxc> {
    let thread = std::thread::current();
    LXC.as_ref().map_err(|why| skip(thread.name().unwrap_or("a test with containers"), why)).ok()
}

impl Lxc {
    fn start(rootfs: &Path) -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("phoenix-lxc-").tempdir().unwrap().keep();
        // Whoever is root in the unprivileged container goes through here.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let script = "cat >/dev/null
            for config in \"$1\"/*/config; do
                id=${config%/config}; lxc-stop -P \"$1\" -n \"${id##*/}\" -k
            done
            rm -rf --one-file-system \"$1\"";
        let janitor = Command::new("sh")
            .args(["-c", script, "sh", directory.to_str().unwrap()])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lxc = Self { directory, _janitor: janitor };
        std::thread::scope(|scope| {
            let started = [PRIVILEGED, UNPRIVILEGED].map(|vmid| {
                let lxc = &lxc;
                scope.spawn(move || lxc.debian(vmid, rootfs))
            });
            started.into_iter().try_for_each(|started| started.join().unwrap())
        })?;
        lxc.busybox(BUSYBOX)?;
        lxc.busybox(BARE)?;
        lxc.configure(STOPPED, "");
        Ok(lxc)
    }

    /// The root file system of a container.
    pub(crate) fn root(&self, vmid: u32) -> PathBuf {
        self.directory.join(vmid.to_string()).join("rootfs")
    }

    /// The transport to a container.
    pub(crate) fn pct(&self, vmid: u32) -> Pct {
        self.pct_with(vmid, "pct", "")
    }

    /// The transport through a stand-in of its own, of this name, which first does this.
    pub(crate) fn pct_with(&self, vmid: u32, name: &str, first: &str) -> Pct {
        let program = self.directory.join(name);
        let stand_in = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/pct");
        let directory = self.directory.display();
        let text = format!("#!/bin/sh\n{first}\nPCT_LXC={directory} exec {stand_in} \"$@\"\n");
        if fs::read_to_string(&program).ok().as_ref() != Some(&text) {
            // Under its name it is whole: another thread may run it already.
            let new = self.directory.join(format!("{name}.{:?}", std::thread::current().id()));
            write_program(&new, &text);
            fs::rename(new, &program).unwrap();
        }
        Pct::new(vmid).with_program(program.to_str().unwrap())
    }

    /// A file beside the containers.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn debian(&self, vmid: u32, rootfs: &Path) -> Result<(), String> {
        let root = self.root(vmid);
        fs::create_dir_all(&root).unwrap();
        run(Command::new("tar").arg("-xpf").arg(rootfs).arg("--numeric-owner").arg("-C").arg(&root));
        fs::write(root.join("etc/inittab"), "::sysinit:/bin/true\n").unwrap();
        let mut more = String::from("lxc.init.cmd = /usr/bin/busybox init\n");
        if vmid == UNPRIVILEGED {
            shift(&root);
            write!(more, "lxc.idmap = u 0 {SHIFT} 65536\nlxc.idmap = g 0 {SHIFT} 65536\n").unwrap();
        }
        self.configure(vmid, &more);
        self.lxc_start(vmid)
    }

    fn busybox(&self, vmid: u32) -> Result<(), String> {
        let root = self.root(vmid);
        for directory in ["bin", "usr/bin", "etc", "proc", "sys", "dev", "tmp", "srv"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let busybox = root.join("bin/busybox");
        fs::copy(self.root(PRIVILEGED).join("usr/bin/busybox"), &busybox).unwrap();
        if vmid == BUSYBOX {
            let applets = Command::new(&busybox).arg("--list").output().unwrap().stdout;
            for applet in String::from_utf8(applets).unwrap().lines().filter(|applet| *applet != "busybox") {
                symlink("/bin/busybox", root.join("bin").join(applet)).unwrap();
            }
            symlink("/bin/busybox", root.join("usr/bin/env")).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").unwrap();
        fs::write(root.join("etc/inittab"), "::sysinit:/bin/busybox true\n").unwrap();
        self.configure(vmid, "lxc.init.cmd = /bin/busybox init\n");
        self.lxc_start(vmid)
    }

    fn configure(&self, vmid: u32, more: &str) {
        let root = self.root(vmid);
        fs::create_dir_all(&root).unwrap();
        let text = format!(
            "lxc.uts.name = ct{vmid}\nlxc.rootfs.path = dir:{}\nlxc.net.0.type = empty\n\
             lxc.apparmor.profile = unconfined\nlxc.mount.auto = proc:mixed sys:ro\nlxc.autodev = 1\n{more}",
            root.display()
        );
        fs::write(root.with_file_name("config"), text).unwrap();
    }

    fn lxc_start(&self, vmid: u32) -> Result<(), String> {
        let log = self.directory.join(format!("{vmid}.log"));
        // Without `newuidmap` in its PATH, root writes the id map itself, and /etc/subuid need not be changed.
        let started = Command::new("/usr/bin/lxc-start")
            .env("PATH", "/nonexistent")
            .arg("-P")
            .arg(&self.directory)
            .args(["-n", &vmid.to_string(), "-l", "INFO", "-o"])
            .arg(&log)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        if started.success() {
            return Ok(());
        }
        let said = fs::read_to_string(log).unwrap_or_default();
        let why = said.lines().find(|line| line.contains(" ERROR ")).unwrap_or_default();
        Err(format!("a container cannot be started here: {}", why.trim()))
    }
}

/// Gives a tree to the users of the unprivileged container.
fn shift(path: &Path) {
    let mut seen = std::collections::HashSet::new();
    let mut left = vec![path.to_path_buf()];
    while let Some(path) = left.pop() {
        let stat = path.symlink_metadata().unwrap();
        // A hard link is met more than once.
        if !seen.insert(stat.ino()) {
            continue;
        }
        lchown(&path, Some(SHIFT + stat.uid()), Some(SHIFT + stat.gid())).unwrap();
        if stat.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

/// The archive of Debian's root file system, built if it is not in the cache; or why there are no containers here.
fn rootfs() -> Result<PathBuf, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".into());
    }
    let here = |program: &str| ["/usr/sbin", "/usr/bin"].iter().any(|place| Path::new(place).join(program).exists());
    if let Some(missing) = ["lxc-start", "debootstrap", "bash"].into_iter().find(|program| !here(program)) {
        return Err(format!("{missing} is not installed"));
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("PHOENIX_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("phoenix-pki")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/phoenix-pki")))
        .ok_or("no cache directory")?;
    fs::create_dir_all(&cache).map_err(|error| error.to_string())?;
    // Two test programs may want it at once.
    let lock = fs::File::create(cache.join("rootfs-bookworm.lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let archive = cache.join("rootfs-bookworm.tar");
    if !archive.exists() {
        build(&archive)?;
    }
    Ok(archive)
}

/// From the mirror that this machine's own packages come from.
fn build(archive: &Path) -> Result<(), String> {
    let script = r#"
        set -eu
        format='$(REPO_URI)'
        mirror=$(apt-get indextargets --format "$format" 'Created-By: Packages' 'Codename: bookworm' 'Component: main')
        mirror=${mirror%%
*}
        debootstrap --variant=minbase --include="$2" bookworm "$3" ${mirror:+"$mirror"} >"$3.log" 2>&1 || {
            tail -n 1 "$3.log"; exit 1; }
        rm -rf "$3"/var/cache/apt/archives/*.deb "$3"/var/lib/apt/lists/* "$3"/usr/share/doc "$3"/usr/share/man
        tar -C "$3" --numeric-owner --exclude=./dev/* -cf "$1.new" .
        mv "$1.new" "$1"
    "#;
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    let built = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(archive)
        .arg(PACKAGES)
        .arg(directory.path().join("rootfs"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if built.status.success() {
        return Ok(());
    }
    let (said, failed) = (String::from_utf8_lossy(&built.stdout), String::from_utf8_lossy(&built.stderr));
    Err(format!("Debian's root file system was not built: {}{}", said.trim(), failed.trim()))
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An executable file. It is written by another process: as long as one of this process had it open for writing, a child
/// that another thread forks meanwhile would keep it from being run.
fn write_program(path: &Path, text: &str) {
    run(Command::new("sh").args(["-c", "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"]).arg(path).arg(text));
}
