//! Attributes of the calling process that nix and rustix cannot set or read: personality, session keyring and the
//! limits of another process.

use std::io;

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
