//! How are subvolumes of btrfs made, found and destroyed? By ioctls (btrfs-ioctl(2)).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use linux_raw_sys::btrfs::{
    BTRFS_FIRST_FREE_OBJECTID, BTRFS_SUBVOL_RDONLY, btrfs_ioctl_fs_info_args,
    btrfs_ioctl_get_subvol_rootref_args, btrfs_ioctl_ino_lookup_args,
    btrfs_ioctl_ino_lookup_user_args, btrfs_ioctl_vol_args, btrfs_ioctl_vol_args_v2,
};
use linux_raw_sys::ioctl::{
    BTRFS_IOC_FS_INFO, BTRFS_IOC_GET_SUBVOL_ROOTREF, BTRFS_IOC_INO_LOOKUP,
    BTRFS_IOC_INO_LOOKUP_USER, BTRFS_IOC_SNAP_CREATE_V2, BTRFS_IOC_SNAP_DESTROY,
    BTRFS_IOC_SUBVOL_CREATE_V2, BTRFS_IOC_SUBVOL_GETFLAGS, BTRFS_IOC_SUBVOL_SETFLAGS,
};

/// A subvolume in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nested {
    /// The directory that it is in, relative to the outer subvolume; empty or with a slash at its end.
    pub directory: CString,
    /// Its name there.
    pub name: CString,
}

/// Makes a snapshot of the subvolume `source`, named `name`, in the directory `parent`. The subvolumes in it become
/// empty directories.
pub fn snapshot(
    parent: impl AsFd,
    source: impl AsFd,
    name: &CStr,
    read_only: bool,
) -> io::Result<()> {
    let mut args = volume(name)?;
    args.fd = i64::from(source.as_fd().as_raw_fd());
    args.flags = if read_only { u64::from(BTRFS_SUBVOL_RDONLY) } else { 0 };
    call(parent, BTRFS_IOC_SNAP_CREATE_V2, &mut args)
}

/// Makes an empty subvolume `name` in the directory `parent`; ENOTTY if the file system has none.
pub fn create(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    call(parent, BTRFS_IOC_SUBVOL_CREATE_V2, &mut volume(name)?)
}

/// Destroys the subvolume `name` in the directory `parent`; ENOTEMPTY if it holds others.
pub fn destroy(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    // SAFETY: the structure is integers and arrays of them, for which zero is valid.
    let mut args: btrfs_ioctl_vol_args = unsafe { std::mem::zeroed() };
    put(&mut args.name, name)?;
    call(parent, BTRFS_IOC_SNAP_DESTROY, &mut args)
}

/// Makes a subvolume read-only, by a descriptor of its top directory.
pub fn make_read_only(subvolume: impl AsFd) -> io::Result<()> {
    let mut flags = flags(&subvolume)? | u64::from(BTRFS_SUBVOL_RDONLY);
    call(&subvolume, BTRFS_IOC_SUBVOL_SETFLAGS, &mut flags)
}

/// Makes a subvolume writable, by a descriptor of its top directory.
pub fn make_writable(subvolume: impl AsFd) -> io::Result<()> {
    let mut flags = flags(&subvolume)? & !u64::from(BTRFS_SUBVOL_RDONLY);
    call(&subvolume, BTRFS_IOC_SUBVOL_SETFLAGS, &mut flags)
}

fn flags(subvolume: impl AsFd) -> io::Result<u64> {
    let mut flags = 0_u64;
    call(&subvolume, BTRFS_IOC_SUBVOL_GETFLAGS, &mut flags)?;
    Ok(flags)
}

/// The id of the subvolume that a directory lies in.
pub fn id(directory: impl AsFd) -> io::Result<u64> {
    // SAFETY: the structure is integers and arrays of them, for which zero is valid.
    let mut args: btrfs_ioctl_ino_lookup_args = unsafe { std::mem::zeroed() };
    // Of the top directory nothing is looked up, so anybody may ask.
    args.objectid = BTRFS_FIRST_FREE_OBJECTID.into();
    call(directory, BTRFS_IOC_INO_LOOKUP, &mut args)?;
    Ok(args.treeid)
}

/// The id of the file system that a file lies in.
pub fn file_system(file: impl AsFd) -> io::Result<[u8; 16]> {
    // SAFETY: the structure is integers and arrays of them, for which zero is valid.
    let mut args: btrfs_ioctl_fs_info_args = unsafe { std::mem::zeroed() };
    call(file, BTRFS_IOC_FS_INFO, &mut args)?;
    Ok(args.fsid)
}

/// The subvolumes directly in the one whose top directory this is (Linux 4.18).
pub fn nested(subvolume: impl AsFd) -> io::Result<Vec<Nested>> {
    let mut found = Vec::new();
    // SAFETY: the structure is integers and arrays of them, for which zero is valid.
    let mut refs: btrfs_ioctl_get_subvol_rootref_args = unsafe { std::mem::zeroed() };
    loop {
        let more = match call(&subvolume, BTRFS_IOC_GET_SUBVOL_ROOTREF, &mut refs) {
            Ok(()) => false,
            // There are more than fit; the next call goes on behind them.
            Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => true,
            Err(error) => return Err(error),
        };
        for child in &refs.rootref[..usize::from(refs.num_items)] {
            // SAFETY: as above.
            let mut place: btrfs_ioctl_ino_lookup_user_args = unsafe { std::mem::zeroed() };
            (place.dirid, place.treeid) = (child.dirid, child.treeid);
            match call(&subvolume, BTRFS_IOC_INO_LOOKUP_USER, &mut place) {
                Ok(()) => {}
                // It was removed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(error) => return Err(error),
            }
            found.push(Nested { directory: text(&place.path), name: text(&place.name) });
        }
        if !more {
            return Ok(found);
        }
    }
}

fn volume(name: &CStr) -> io::Result<btrfs_ioctl_vol_args_v2> {
    // SAFETY: the structure is integers, arrays and unions of them, for which zero is valid.
    let mut args: btrfs_ioctl_vol_args_v2 = unsafe { std::mem::zeroed() };
    // SAFETY: both members of the union are plain bytes; the name is the one these ioctls read.
    put(unsafe { &mut args.__bindgen_anon_2.name }, name)?;
    Ok(args)
}

/// An ioctl that reads and writes one structure.
pub(super) fn call<T>(fd: impl AsFd, request: u32, args: &mut T) -> io::Result<()> {
    // SAFETY: each caller passes the structure that its request is made of, which outlives the call; the kernel reads
    // and writes no more than that, and any bytes are valid for the integers in it.
    let result = unsafe {
        libc::ioctl(fd.as_fd().as_raw_fd(), libc::Ioctl::from(request), std::ptr::from_mut(args))
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

/// What the kernel has written up to its NUL.
fn text(from: &[c_char]) -> CString {
    let bytes = from.iter().map(|char| u8::from_ne_bytes(char.to_ne_bytes()));
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    CString::new(bytes).expect("it ends before its NUL")
}
