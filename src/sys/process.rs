//! Attributes of the calling process that nix and rustix cannot set or read: personality, session keyring and the
//! limits of another process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Sets the execution domain of the calling thread (personality(2)); `persona` is a `PER_*` value.
///
/// # Errors
///
/// EPERM or ENOSYS where a seccomp filter above us refuses it.
pub fn personality(persona: u32) -> io::Result<()> {
    // SAFETY: personality(2) takes a number and touches no memory.
    let rc = unsafe { libc::personality(libc::c_ulong::from(persona)) };
    if rc == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the calling process a new, anonymous session keyring (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING).
///
/// # Errors
///
/// ENOSYS without key support, EPERM under a seccomp filter, EDQUOT when the user's key quota is used up.
pub fn join_new_session_keyring() -> io::Result<()> {
    // SAFETY: with this operation a null name asks for an anonymous keyring; nothing is read through it.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    if rc == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts a key of type "user" into the keyring of the calling process, with which it goes (add_key(2)).
///
/// # Errors
///
/// ENOSYS without key support, EPERM under a seccomp filter, EDQUOT when the user's key quota is used up.
pub fn add_key(description: &std::ffi::CStr, payload: &[u8]) -> io::Result<()> {
    // SAFETY: two strings that end in NUL and a buffer with its length are only read.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            description.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            libc::KEY_SPEC_PROCESS_KEYRING,
        )
    };
    if rc == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Soft and hard limit of process `pid` for the `RLIMIT_*` number `resource`; `None` is unlimited (prlimit(2)).
///
/// # Errors
///
/// EPERM for a process of another user, ESRCH for none.
pub fn limits_of(pid: i32, resource: u32) -> io::Result<(Option<u64>, Option<u64>)> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the null third argument means "do not set"; the kernel writes one `struct rlimit64` to `old`.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut old,
        )
    };
    if rc == -1 {
        return Err(io::Error::last_os_error());
    }
    let finite = |v| (v != libc::RLIM64_INFINITY).then_some(v);
    Ok((finite(old.rlim_cur), finite(old.rlim_max)))
}

/// Sends a signal by number, real-time ones included (pidfd_send_signal(2), Linux 5.1).
///
/// # Errors
/// ESRCH when the process is gone.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes integers and a pointer that may be null; the descriptor is borrowed.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The first descriptor that is no standard stream.
pub const FIRST_FD: RawFd = 3;

/// Closes every descriptor from `first` on but `kept`. For the start of a program and for a fresh child, whose
/// copies of its parent's descriptors would keep links open and hand host directories to the payload.
///
/// Whatever owns one of the others is left with a dead number, so none of them may be dropped or used in
/// this process; the children of `stage/fork.rs` never return, so none is.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn keep_only(mut first: RawFd, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let lowest = first;
    for fd in kept.into_iter().filter(|fd| *fd >= lowest) {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX)
}

/// Makes the first `count` descriptors from 3 on close-on-exec.
///
/// # Errors
/// EBADF when one of them is not open.
pub fn set_close_on_exec(count: u16) -> io::Result<()> {
    set_fd_flags(count, libc::FD_CLOEXEC)
}

/// Lets the first `count` descriptors from 3 on survive exec.
///
/// # Errors
/// EBADF when one of them is not open.
pub fn set_inheritable(count: u16) -> io::Result<()> {
    set_fd_flags(count, 0)
}

fn set_fd_flags(count: u16, flags: libc::c_int) -> io::Result<()> {
    for fd in FIRST_FD..FIRST_FD + RawFd::from(count) {
        // SAFETY: F_SETFD takes integers and touches no memory; a number that is not open is refused.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, flags) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A close-on-exec copy of a descriptor that our caller has opened for writing, numbered `lowest` or above.
///
/// # Errors
/// EBADF when it is not open, or for reading only.
pub fn duplicate_writable(fd: RawFd, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: both operations take integers and touch no memory; a number that is not open is refused.
    let (flags, copy) = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        (flags, libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest))
    };
    if copy == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the copy, and nobody else has it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY | libc::O_RDWR => Ok(copy),
        _ => Err(io::Error::from_raw_os_error(libc::EBADF)),
    }
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    let number = |fd: RawFd| libc::c_uint::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput);
    // SAFETY: close_range takes three integers and touches no memory. That no owner of a closed descriptor
    // runs afterwards is the promise of `keep_only`'s caller.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, number(first)?, number(last)?, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has children that end wait until they are asked about (wait(2)): with a caller that ignores SIGCHLD, of whom we
/// have inherited that, the kernel would forget them.
pub fn keep_ended_children() {
    // SAFETY: the structure is integers and a null pointer, for which zero is valid; with it, the action is SIG_DFL
    // without any flag. The call reads it, and does not fail for a signal whose action can be changed.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, &raw const default, std::ptr::null_mut());
    }
}

/// Whether our caller has us ignore the hang-up of its terminal, as nohup(1) does.
pub fn ignores_hangup() -> bool {
    // SAFETY: as above; the call writes one structure and changes nothing.
    unsafe {
        let mut found: libc::sigaction = std::mem::zeroed();
        let rc = libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut found);
        rc == 0 && found.sa_sigaction == libc::SIG_IGN
    }
}

/// Gives every signal its default action and blocks none, as a new program expects it.
pub fn reset_signals() {
    /// A `struct sigaction` of the kernel's with SIG_DFL, no flags and an empty mask: all zero, and not
    /// longer than this on any architecture.
    const DEFAULT: [u64; 4] = [0; 4];
    const SET_BYTES: usize = 8;
    for signal in 1..=libc::SIGRTMAX() {
        // The C library keeps the first real-time signals for itself and refuses to reset them, so a caller
        // that ignores them would be noticed by the payload.
        // SAFETY: rt_sigaction reads one structure behind its second argument, which is long enough and
        // lives for ever; the null third one means that the old action is not asked for. For signals that
        // cannot be changed (SIGKILL, SIGSTOP) the call fails and has no effect.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null_mut::<libc::c_void>(),
                SET_BYTES,
            );
        }
    }
    let none: u64 = 0;
    // SAFETY: the call reads a set of the size given; the old mask is not asked for.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<libc::c_void>(),
            SET_BYTES,
        );
    }
}
