//! How fast can a container start at all? One clone with the namespaces that rspawn's payload gets, the mounts of its
//! mount table, a switch of the root, and exec: no option is read, no path is guarded, no device node is made, nothing
//! is dropped or filtered, and nobody is asked.
//!
//! The rows repeat rspawn's mount table on purpose, in plain mount(2) calls: the harness does not depend on what it
//! measures. `cargo xtask bench` shows how many mounts each program's payload sees, so that a difference is visible.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

use crate::sys;

/// A file system of every container.
#[derive(Debug)]
pub(super) struct FileSystem {
    /// Relative to the container's root.
    pub(super) on: &'static str,
    pub(super) fstype: &'static str,
    flags: MountFlags,
    /// Its own, with commas.
    pub(super) options: &'static str,
}

impl FileSystem {
    /// The flags, as mount(8) names them.
    pub(super) fn words(&self) -> impl Iterator<Item = &'static str> {
        let words = [
            (MountFlags::RDONLY, "ro"),
            (MountFlags::NOSUID, "nosuid"),
            (MountFlags::NODEV, "nodev"),
            (MountFlags::NOEXEC, "noexec"),
            (MountFlags::STRICTATIME, "strictatime"),
        ];
        let flags = self.flags;
        words.into_iter().filter_map(move |(flag, word)| flags.contains(flag).then_some(word))
    }
}

/// In the order in which they are mounted.
pub(super) fn file_systems() -> [FileSystem; 9] {
    let row = |on, fstype, flags, options| FileSystem { on, fstype, flags, options };
    let fresh = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::STRICTATIME;
    let dev = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::STRICTATIME;
    let pts = MountFlags::NOSUID | MountFlags::NOEXEC;
    let data = pts | MountFlags::NODEV;
    let read_only = data | MountFlags::RDONLY;
    [
        row("tmp", "tmpfs", fresh, "mode=1777,size=10%,nr_inodes=400k"),
        row("dev", "tmpfs", dev, "mode=755,size=4m,nr_inodes=64k"),
        row("dev/shm", "tmpfs", fresh, "mode=1777,size=10%,nr_inodes=400k"),
        row("run", "tmpfs", fresh, "mode=755,size=20%,nr_inodes=800k"),
        row("dev/pts", "devpts", pts, "ptmxmode=0666,mode=620,gid=5"),
        row("dev/mqueue", "mqueue", data, ""),
        row("proc", "proc", data, ""),
        row("sys", "sysfs", read_only, ""),
        row("sys/fs/cgroup", "cgroup2", read_only, ""),
    ]
}

/// Absolute, in the container.
pub(super) fn read_only_paths() -> [String; 8] {
    READ_ONLY.map(|path| format!("/{path}"))
}

/// What is bound onto itself read-only, as far as the kernel has it.
const READ_ONLY: [&str; 8] = [
    "proc/sys",
    "proc/acpi",
    "proc/asound",
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/scsi",
    "proc/sysrq-trigger",
];

/// What a file of ours is bound over, as far as the kernel has it.
const COVERED: [&str; 6] = [
    "proc/kallsyms",
    "proc/kcore",
    "proc/keys",
    "proc/timer_list",
    "proc/kmsg",
    "proc/sys/kernel/random/boot_id",
];

const COVER: &str = "run/host/cover";

/// Runs `payload` with `tree` as its root, to its end; the payload's exit code is ours.
///
/// # Errors
/// When the caller has threads or no privileges, or a step is refused in the parent; the child says its own on stderr.
pub fn run(tree: &Path, payload: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = payload.split_first().context("there is nothing to run")?;
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWCGROUP;
    let code = sys::run_in_namespaces(namespaces, || become_payload(tree, program, arguments))?;
    Ok(ExitCode::from(code))
}

/// In the child, which is PID 1 of the new PID namespace.
fn become_payload(tree: &Path, program: &OsString, arguments: &[OsString]) -> Result<Infallible> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("keeping our mounts from the host")?;
    mount_bind_recursive(tree, tree).context("binding the tree")?;
    chdir(tree).context("entering the tree")?;
    for FileSystem { on, fstype, flags, options } in file_systems() {
        if matches!(on, "dev/shm" | "dev/pts" | "dev/mqueue") {
            fs::create_dir(on).with_context(|| format!("making {on}"))?;
        }
        let options = CString::new(options).expect("no option of the table holds a NUL");
        mount(fstype, on, fstype, flags, &*options)
            .with_context(|| format!("mounting {fstype} on {on}"))?;
    }
    for on in READ_ONLY {
        bind_read_only(on, on)?;
    }
    fs::create_dir("run/host").context("making run/host")?;
    fs::write(COVER, "").with_context(|| format!("making {COVER}"))?;
    for on in COVERED {
        bind_read_only(COVER, on)?;
    }
    bind_read_only("run/host", "run/host")?;
    pivot_root(".", ".").context("switching the root")?;
    unmount(".", UnmountFlags::DETACH).context("letting go of the host's root")?;
    chdir("/").context("entering the root")?;
    let refusal: io::Error = Command::new(program).args(arguments).exec();
    Err(refusal).context("executing the payload")
}

fn bind_read_only(from: &str, on: &str) -> Result<()> {
    match mount_bind(from, on) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.with_context(|| format!("binding {on}"))?,
    }
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    mount_remount(on, flags, c"").with_context(|| format!("making {on} read-only"))
}
