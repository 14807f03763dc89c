//! How is a process made? The only `clone` of the program.
//!
//! Invariants, asserted where they can be:
//! * **one thread**: a lock that another thread held would stay locked in the child for ever;
//! * **the child never returns**: it ends in exec or `_exit`, so that no destructor of the parent's values
//!   runs in it and its `Undo` and guards cannot fire twice;
//! * **a panic is an error**: it is caught in the child and handed to `tell`, like any other failure.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow, ensure};

/// The exit code of a child that has told its failure over its link.
const TOLD: i32 = 1;

/// linux/sched.h; the crate's constant does not fit its type of clone flags.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child, which is reaped by whoever is its parent.
#[derive(Debug)]
pub struct Child {
    /// Its id in our PID namespace.
    pub pid: libc::pid_t,
    /// A descriptor that stays its own, whatever happens to the id.
    pub pidfd: OwnedFd,
}

/// Whose child the new process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// Ours.
    Us,
    /// Our parent's: a sibling. Its parent-death signal is then tied to that one (security.md, R7).
    OurParent,
}

/// Runs `body` in a new process with the namespaces of `flags` (`CLONE_NEW*`) of its own. The body ends
/// the process by exec or by returning; what it returns as an error goes to `tell`.
///
/// # Errors
/// When the kernel makes no process; EINVAL if it lacks one of the namespaces (NS-01).
pub fn fork(
    flags: libc::c_int,
    parent: Parent,
    body: impl FnOnce() -> Result<()>,
    tell: impl FnOnce(anyhow::Error),
) -> Result<Child> {
    fork_into(None, flags, parent, body, tell)
}

/// As [`fork`], with the process in a cgroup from its first moment on (clone(2), CLONE_INTO_CGROUP, Linux 5.7).
/// Moving it there later would take the kernel milliseconds.
///
/// # Errors
/// As [`fork`], and what writing to `cgroup.procs` may say (cgroups(7)).
pub(super) fn fork_into(
    cgroup: Option<BorrowedFd<'_>>,
    flags: libc::c_int,
    parent: Parent,
    body: impl FnOnce() -> Result<()>,
    tell: impl FnOnce(anyhow::Error),
) -> Result<Child> {
    let threads = threads().context("counting our threads")?;
    ensure!(threads <= 1, "forking with {threads} threads would lock up the child");
    let mut pidfd: libc::c_int = -1;
    match clone(cgroup, flags, parent, &mut pidfd).context("making a process")? {
        0 => {
            let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Err(anyhow!("a bug in rspawn: {}", text.as_deref().unwrap_or("panic")))
            });
            let code = match result {
                Ok(()) => 0,
                Err(error) => {
                    // A second panic must not unwind into the parent's frames either.
                    let told = catch_unwind(AssertUnwindSafe(|| tell(error)));
                    if told.is_ok() { TOLD } else { TOLD + 1 }
                }
            };
            // SAFETY: _exit takes an integer, runs no handler and does not return.
            unsafe { libc::_exit(code) }
        }
        pid => {
            // SAFETY: the kernel has just put a new descriptor there (CLONE_PIDFD), and nobody else has it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid, pidfd })
        }
    }
}

/// How many threads we have; 0 if nobody can tell. Outer has switched its root by the time it forks and has
/// no procfs; it is itself a fresh child, which has one thread.
fn threads() -> io::Result<u64> {
    match std::fs::metadata("/proc/self/task") {
        // A tree may have a file there.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(0)
        }
        // A directory has two links, and procfs adds one per thread (fs/proc/base.c, proc_task_getattr).
        tasks => Ok(tasks?.nlink().saturating_sub(2)),
    }
}

/// clone3, or the clone call where that is refused: kernels before 5.3, and system call filters of an
/// outer container, which cannot look into clone3's argument and so answer ENOSYS or EPERM.
fn clone(
    cgroup: Option<BorrowedFd<'_>>,
    flags: libc::c_int,
    parent: Parent,
    pidfd: &mut libc::c_int,
) -> io::Result<libc::pid_t> {
    let parent_flag = if parent == Parent::OurParent { libc::CLONE_PARENT } else { 0 };
    let flags = flags | libc::CLONE_PIDFD | parent_flag;
    // With CLONE_PARENT the signal is the one that announces us (clone(2)).
    let exit_signal = if parent == Parent::OurParent { 0 } else { libc::SIGCHLD };
    // SAFETY: clone_args is plain integers, for which zero is "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::try_from(flags).expect("clone flags are positive");
    args.pidfd = std::ptr::from_mut(pidfd) as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).expect("descriptors are positive");
    }
    args.exit_signal = u64::try_from(exit_signal).expect("signal numbers are positive");
    // SAFETY: no CLONE_VM, so the child has a copy of everything, and as the caller has one thread no lock
    // of the copy is held. `args` is of the size given and outlives the call, as does `pidfd`.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    let pid = match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) if pid < 0 && cgroup.is_none() => {
            // SAFETY: as above; a null stack means that the child goes on with its copy of ours.
            unsafe {
                libc::syscall(
                    libc::SYS_clone,
                    flags | exit_signal,
                    std::ptr::null::<libc::c_void>(),
                    std::ptr::from_mut(pidfd),
                    std::ptr::null::<libc::c_int>(),
                    0,
                )
            }
        }
        _ => pid,
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::pid_t::try_from(pid).expect("process ids fit pid_t"))
}
