//! The calls of the guest's side that no safe crate offers.
//!
//! Each function takes plain numbers or borrowed descriptors and passes the kernel no pointer, but one to a byte.
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

/// As [`errno_of_bad_call`], but as a program of 32 bits makes it, with the number that it has there.
pub(crate) fn errno_of_bad_call_32(number: u32) -> i32 {
    let result: i32;
    // SAFETY: -1 is an address that no program of ours has anything at, so the rest is as above. The kernel changes eax,
    // and r8 to r11 in some versions (entry_64_compat.S); rbx, which the compiler keeps to itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) u64::from(u32::MAX) => _,
            inlateout("eax") number => result,
            in("ecx") u32::MAX,
            in("edx") u32::MAX,
            in("esi") u32::MAX,
            in("edi") u32::MAX,
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
        );
    }
    if result < 0 { -result } else { 0 }
}

/// The error of making a socket where all numbers have bits set above those that the kernel takes; 0 for success, and
/// then the socket stays.
pub(crate) fn errno_of_wide_socket(family: u32, kind: u32, protocol: u32) -> i32 {
    let wide = |number: u32| i64::from(number) | 1 << 32;
    // SAFETY: the call takes three numbers.
    let result =
        unsafe { libc::syscall(libc::SYS_socket, wide(family), wide(kind), wide(protocol)) };
    if result == -1 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// The error of a request to the terminal at standard input that reads a byte, which is a key; 0 for success.
pub(crate) fn errno_of_pushed_key(request: libc::Ioctl) -> i32 {
    let key = b'#';
    // SAFETY: the kernel reads one byte at the address, at which there is one.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, 0, request, &raw const key) };
    if result == -1 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// Makes the processor trap on an instruction that it does not have: SIGILL, even for process 1 of a container.
pub(crate) fn crash() -> ! {
    // SAFETY: `ud2` does nothing but raise the invalid-opcode exception (Intel SDM, volume 2); nothing runs after it.
    unsafe { std::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}
