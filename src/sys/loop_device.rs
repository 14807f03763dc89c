//! How is a loop device attached? Two ioctls (loop(4)), and the sector size of a block device.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use linux_raw_sys::ioctl::{BLKGETSIZE64, BLKSSZGET};
use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_READ_ONLY, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, loop_config,
};

/// What a loop device shows of its file. Its sectors have 512 bytes whatever the image's have: a file system for
/// larger ones can be read in smaller ones, but not the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where it starts in the file, in bytes.
    pub offset_bytes: u64,
    /// How much it shows, in bytes; 0 is all that follows.
    pub size_bytes: u64,
    /// Whether nobody may write through it.
    pub read_only: bool,
}

/// The number of a device that is free, made if there is none. It may be taken before one can use it.
pub fn next_free(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: the ioctl takes no argument and touches no memory of ours.
    let number =
        unsafe { libc::ioctl(control.as_fd().as_raw_fd(), libc::Ioctl::from(LOOP_CTL_GET_FREE)) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Attaches a file to a free device, which lets go of it by itself when it is closed for the last time.
///
/// # Errors
/// EBUSY when someone was faster; EINVAL before Linux 5.8.
pub fn configure(device: impl AsFd, file: impl AsFd, window: Window) -> io::Result<()> {
    // SAFETY: the structure is integers and arrays of them, for which zero is valid.
    let mut config: loop_config = unsafe { std::mem::zeroed() };
    config.fd = u32::try_from(file.as_fd().as_raw_fd()).expect("descriptors are not negative");
    config.block_size = 512;
    config.info.lo_offset = window.offset_bytes;
    config.info.lo_sizelimit = window.size_bytes;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR as u32;
    if window.read_only {
        config.info.lo_flags |= LO_FLAGS_READ_ONLY as u32;
    }
    // SAFETY: the ioctl reads the structure behind its argument, which outlives the call.
    let result = unsafe {
        let request = libc::Ioctl::from(LOOP_CONFIGURE);
        libc::ioctl(device.as_fd().as_raw_fd(), request, &raw const config)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Size of a block device, in bytes.
pub fn size_bytes(device: impl AsFd) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: the ioctl writes 64 bits through its argument, which is as big and outlives the call.
    let result = unsafe {
        let request = libc::Ioctl::from(BLKGETSIZE64);
        libc::ioctl(device.as_fd().as_raw_fd(), request, &raw mut size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(size) }
}

/// Size of a logical sector of a block device, in bytes.
pub fn sector_bytes(device: impl AsFd) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the ioctl writes one int through its argument, which outlives the call.
    let result = unsafe {
        let request = libc::Ioctl::from(BLKSSZGET);
        libc::ioctl(device.as_fd().as_raw_fd(), request, &raw mut size)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(size).map_err(|_| io::ErrorKind::InvalidData.into())
}
