//! How are subvolumes of btrfs snapshot and destroyed? Two ioctls (btrfs-ioctl(2)).
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use linux_raw_sys::btrfs::{btrfs_ioctl_vol_args, btrfs_ioctl_vol_args_v2};
use linux_raw_sys::ioctl::{BTRFS_IOC_SNAP_CREATE_V2, BTRFS_IOC_SNAP_DESTROY};

/// Makes a writable snapshot of the subvolume `source`, named `name`, in the directory `parent`.
pub fn snapshot(parent: impl AsFd, source: impl AsFd, name: &CStr) -> io::Result<()> {
    // SAFETY: the structure is integers, arrays and unions of them, for which zero is valid.
    let mut args: btrfs_ioctl_vol_args_v2 = unsafe { std::mem::zeroed() };
    args.fd = i64::from(source.as_fd().as_raw_fd());
    // SAFETY: both members of the union are plain bytes; the name is the one this ioctl reads.
    put(unsafe { &mut args.__bindgen_anon_2.name }, name)?;
    // SAFETY: the ioctl reads the structure behind its argument, which outlives the call.
    let result = unsafe {
        libc::ioctl(
            parent.as_fd().as_raw_fd(),
            libc::Ioctl::from(BTRFS_IOC_SNAP_CREATE_V2),
            &raw const args,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Destroys the subvolume `name` in the directory `parent`; ENOTEMPTY if it holds others.
pub fn destroy(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    // SAFETY: as above.
    let mut args: btrfs_ioctl_vol_args = unsafe { std::mem::zeroed() };
    put(&mut args.name, name)?;
    // SAFETY: as above.
    let result = unsafe {
        libc::ioctl(
            parent.as_fd().as_raw_fd(),
            libc::Ioctl::from(BTRFS_IOC_SNAP_DESTROY),
            &raw const args,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn put(to: &mut [c_char], name: &CStr) -> io::Result<()> {
    let name = name.to_bytes_with_nul();
    if name.len() > to.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, byte) in to.iter_mut().zip(name) {
        *to = c_char::from_ne_bytes([*byte]);
    }
    Ok(())
}
