//! The calls of the guest's side that no safe crate offers.
//!
//! Each function takes plain numbers or borrowed descriptors and passes the kernel no pointer.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Makes the kernel's random generator take its seed anew from the input pool (random(4), RNDRESEEDCRNG), so that
/// two guests restored from one image do not draw the same numbers.
///
/// # Errors
/// What the kernel answers.
pub(crate) fn reseed_random(urandom: impl AsFd) -> io::Result<()> {
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    // SAFETY: this request takes no argument and touches no memory of ours.
    let result = unsafe { libc::ioctl(urandom.as_fd().as_raw_fd(), RNDRESEEDCRNG) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the terminal at standard input the controlling one of this session (TIOCSCTTY, ioctl_tty(2)).
///
/// # Errors
/// What the kernel answers.
pub(crate) fn take_terminal() -> io::Result<()> {
    // SAFETY: the request takes an integer, which says not to steal the terminal from another session.
    let result = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The error of a system call made with arguments that the call itself refuses: all of them -1. A filter answers
/// before the kernel looks at them, so its answer can be told from the kernel's own.
///
/// Returns 0 when the call succeeds all the same.
pub(crate) fn errno_of_bad_call(number: i64) -> i32 {
    // SAFETY: -1 is neither a descriptor nor an address of user space: the kernel writes nothing through it. The
    // callers pass the calls of `probe::CALLS` only, none of which acts on such arguments.
    let result = unsafe { libc::syscall(number, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64) };
    if result == -1 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// Makes the processor trap on an instruction that it does not have: SIGILL, even for process 1 of a container.
pub(crate) fn crash() -> ! {
    // SAFETY: `ud2` does nothing but raise the invalid-opcode exception (Intel SDM, volume 2); nothing runs after it.
    unsafe { std::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}
