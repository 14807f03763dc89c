//! How is a finished seccomp program handed to the kernel?
//!
//! No policy lives here, and `no_new_privs` is never touched: whoever loads without it needs CAP_SYS_ADMIN in the
//! own user namespace (seccomp(2), SEC-03).

use std::io;

/// Bytes of one `struct sock_filter` (linux/filter.h).
pub const INSTRUCTION_BYTES: usize = 8;

/// Loads one classic BPF program, given as the bytes of an array of `struct sock_filter` in host byte order.
///
/// It holds for the calling thread and whatever it forks or executes, and cannot be removed.
///
/// # Errors
///
/// EINVAL for a malformed program or a kernel without filters, EACCES without both CAP_SYS_ADMIN and
/// `no_new_privs`, ENOMEM beyond 32768 instructions for all programs together (seccomp(2)).
pub fn load(program: &[u8]) -> io::Result<()> {
    if program.is_empty() || !program.len().is_multiple_of(INSTRUCTION_BYTES) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // Copied because the bytes need not be aligned as the kernel's structure wants them.
    let mut code: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION_BYTES)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let len = u16::try_from(code.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let prog = libc::sock_fprog { len, filter: code.as_mut_ptr() };
    // SAFETY: seccomp(2) reads `len` instructions behind `filter`; both describe `code`, which outlives the call,
    // and the kernel copies them before it returns.
    let rc = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this kernel takes filters at all. Changes nothing.
#[must_use]
pub fn is_available() -> bool {
    // SAFETY: a null program is never read as one: a kernel with filters answers EFAULT (seccomp(2), NOTES), one
    // without answers EINVAL or ENOSYS, and neither installs anything.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    rc != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}
