//! Which terminal ioctls do nix and rustix lack? Each is one safe function that owns nothing.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Status byte of a packet that holds data (ioctl_tty(2), TIOCPKT).
pub const PACKET_DATA: u8 = 0;
/// Bit of a status byte: the terminal's modes have changed. Only told while `EXTPROC` is or was set
/// (ioctl_tty(2), TIOCPKT; Linux 2.6.36).
pub const PACKET_MODES: u8 = 0x40;

/// Puts a pseudo-terminal's master in packet mode: each read then starts with a status byte, so that
/// changes of the modes are events as well as the data (ioctl_tty(2), TIOCPKT).
pub fn enter_packet_mode(master: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: TIOCPKT reads one int through its argument, and `on` lives until the call returns. The
    // descriptor is borrowed, so it is open.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCPKT, &raw const on) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor from `first` on (close_range(2), Linux 5.9; before it, one by one).
///
/// Only for a process that is about to be nothing but its low descriptors: every owner of a higher
/// one in this process is left with a dead number, so no destructor of theirs may run afterwards.
pub fn close_from(first: RawFd) -> io::Result<()> {
    let from = libc::c_uint::try_from(first).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: close_range takes three integers and touches no memory. That no owner of a closed
    // descriptor runs afterwards is the caller's promise, stated above.
    let result = unsafe { libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, 0) };
    if result == 0 {
        return Ok(());
    }
    let refused = io::Error::last_os_error();
    if !matches!(refused.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
        return Err(refused);
    }
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd >= first)
        .collect();
    for fd in open {
        // SAFETY: as above; EBADF for the directory that was read is harmless.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
