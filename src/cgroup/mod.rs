//! The container's own cgroup: what the device program hangs on (R10), and what an init divides further (P-04).
//!
//! It lies below the cgroup that we run in, and nobody is asked: no service manager is needed. As long as its maker
//! lives its directory is locked (flock(2)); one that can be locked is what a killed run left behind, and the next
//! start that looks there removes it. Without cgroup2, or where it cannot be written, there is none: a container
//! inside another one has the devices of that one.

mod devices;

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Uid, flock};
use rustix::io::Errno;

use devices::{Device, Kind};

use crate::mounts::{Custom, CustomKind, From};
use crate::sys::bpf;
use crate::undo::Undo;

/// What the names of our cgroups begin with.
const PREFIX: &str = "rspawn.";
/// Where cgroup2 is mounted; the second one is that of hosts that keep the old hierarchies beside it.
const MOUNTED: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// f_type of cgroup2 (statfs(2)).
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// A cgroup of our own, locked as long as it is open.
#[derive(Debug)]
pub struct Cgroup {
    dir: OwnedFd,
    guarded: bool,
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Cgroup {
    /// Makes a cgroup. It is removed, with whatever was made below it, when `undo` runs.
    ///
    /// # Errors
    /// When there is no cgroup2, or it cannot be written to.
    pub(crate) fn create(machine: &str, undo: &mut Undo) -> Result<Self> {
        let parent = open(&ours()?).context("opening our own cgroup")?;
        sweep(&parent);
        let (dir, name) = make(&parent, machine)?;
        undo.push("removing the container's cgroup", move || {
            remove(parent.as_fd(), &name).map_err(Into::into)
        });
        Ok(Self { dir, guarded: false })
    }

    /// Sees to it that only the usual devices and `more` can be opened in it, from the first time on.
    ///
    /// # Errors
    /// When the kernel takes no device program.
    pub(crate) fn guard(&mut self, more: &[Device]) -> Result<()> {
        if !self.guarded {
            let program = bpf::load_device_program(&devices::program(&[&devices::ALWAYS, more]))
                .context("loading a device program")?;
            bpf::attach_device_program(program.as_fd(), self.dir.as_fd())
                .context("attaching the device program")?;
            self.guarded = true;
        }
        Ok(())
    }
}

/// What somebody must own to divide a cgroup (cgroups(7), Delegation). The kernel says the same in
/// /sys/kernel/cgroup/delegate, and names files that are there only with some controllers.
const DELEGATED: [&str; 4] =
    ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "memory.oom.group"];

impl Cgroup {
    /// Gives it to whoever is to divide it.
    ///
    /// # Errors
    /// When one of its files cannot be given.
    pub(crate) fn give_to(&self, uid: Uid, gid: Gid) -> Result<()> {
        rustix::fs::fchown(&self.dir, Some(uid), Some(gid)).context("giving the cgroup away")?;
        for name in DELEGATED {
            match rustix::fs::chownat(&self.dir, name, Some(uid), Some(gid), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).with_context(|| format!("giving away {name}")),
            }
        }
        Ok(())
    }
}

/// Removes what killed runs left in the cgroup that we are in (G-05). Without one, they left nothing.
pub fn collect() {
    if let Ok(path) = ours()
        && let Ok(parent) = open(&path)
    {
        sweep(&parent);
    }
}

/// A new cgroup, locked.
fn make(parent: &OwnedFd, machine: &str) -> Result<(OwnedFd, CString)> {
    for _ in 0..8 {
        let id = crate::ids::random()?;
        let name = CString::new(format!("{PREFIX}{machine}.{}", &id[..8])).context("naming it")?;
        rustix::fs::mkdirat(parent, &name, Mode::from_raw_mode(0o755)).context("making it")?;
        // Before it is locked, another start may take it for a leftover.
        if let Ok(dir) = subdirectory(parent, &name)
            && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
            && rustix::fs::statat(parent, &name, AtFlags::empty()).is_ok()
        {
            return Ok((dir, name));
        }
    }
    bail!("every cgroup that was made was removed at once")
}

/// The devices whose nodes the user binds into the container (P-03).
pub(crate) fn devices_of(mounts: &[Custom]) -> Vec<Device> {
    let bound = mounts.iter().filter_map(|mount| match &mount.kind {
        CustomKind::Bind { from: From::Host(path), .. } => rustix::fs::stat(path).ok(),
        _ => None,
    });
    let device = |stat: Stat| {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Kind::Block,
            FileType::CharacterDevice => Kind::Character,
            _ => return None,
        };
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        Some(Device { kind, major, minor: Some(minor) })
    };
    bound.filter_map(device).collect()
}

/// The directory of the cgroup that we are in (cgroups(7), `/proc/[pid]/cgroup`).
fn ours() -> Result<PathBuf> {
    let is_cgroup2 =
        |path: &&&str| rustix::fs::statfs(**path).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC);
    let mounted = MOUNTED.iter().find(is_cgroup2).context("cgroup2 is not mounted")?;
    let text = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(Path::new(mounted).join(path.context("we are in no cgroup of cgroup2")?))
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}

fn subdirectory(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

fn subdirectories(dir: impl AsFd) -> Result<Vec<CString>, Errno> {
    let entries = rustix::fs::Dir::read_from(dir)?.collect::<Result<Vec<_>, _>>()?;
    let names = entries.iter().filter(|entry| entry.file_type().is_dir());
    let names = names.map(|entry| entry.file_name().to_owned());
    Ok(names.filter(|name| !matches!(name.to_bytes(), b"." | b"..")).collect())
}

/// Removes a cgroup, those below it first. Processes are never in them any more: they died with the container's
/// process 1.
fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::BUSY) => {}
        other => return other,
    }
    let dir = subdirectory(parent, name)?;
    for below in subdirectories(&dir)? {
        remove(dir.as_fd(), &below)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Removes what killed runs left. What cannot be removed is somebody's, or the next start's.
fn sweep(parent: &OwnedFd) {
    let Ok(names) = subdirectories(parent) else { return };
    for name in names.iter().filter(|name| name.to_bytes().starts_with(PREFIX.as_bytes())) {
        let Ok(dir) = subdirectory(parent, name) else { continue };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // It was ours alone, and empty unless its processes are dying just now.
            let _ = remove(parent.as_fd(), name);
        }
    }
}
