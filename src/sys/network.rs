//! How is a network interface brought up? By the two ioctls that have always done it (netdevice(7)).
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Brings up the interface `name` of our network namespace.
///
/// # Errors
/// ENODEV when there is none; ENAMETOOLONG for a name of 16 bytes and more.
pub fn bring_up(name: &str) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    // SAFETY: ifreq is a name and a union of plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([byte]);
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of `request`, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has put the flags there.
    unsafe {
        request.ifr_ifru.ifru_flags |=
            libc::c_short::try_from(libc::IFF_UP).expect("the flag is 1");
    }
    // SAFETY: SIOCSIFFLAGS reads `request`, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
