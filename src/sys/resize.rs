//! How is a mounted file system made as large as its device? One ioctl for each that can (fs/ext4/ext4.h,
//! linux/btrfs.h, fs/xfs/libxfs/xfs_fs.h).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::{Opcode, opcode};

const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);
/// `struct btrfs_ioctl_vol_args`: a descriptor, which is not used here, and a text.
const BTRFS_IOC_RESIZE: Opcode = opcode::write::<[u8; 4096]>(0x94, 3);
/// `struct xfs_fsop_geom_v1`.
const XFS_IOC_FSGEOMETRY: Opcode = opcode::read::<[u64; 14]>(b'X', 100);
/// `struct xfs_growfs_data`.
const XFS_IOC_FSGROWFSDATA: Opcode = opcode::write::<[u64; 2]>(b'X', 110);

/// Grows the ext4 that a directory lies on to a size in bytes.
///
/// # Errors
/// EINVAL when it would become smaller, EOPNOTSUPP when it was not made for that.
pub fn ext4(root: impl AsFd, size_bytes: u64) -> io::Result<()> {
    let block = rustix::fs::fstatfs(&root)?.f_bsize;
    let block = u64::try_from(block).ok().filter(|block| *block > 0);
    let mut blocks = [size_bytes / block.ok_or(io::ErrorKind::InvalidData)?];
    call(root, EXT4_IOC_RESIZE_FS, &mut blocks)
}

/// Grows the btrfs that a directory lies on to the size of its first device.
///
/// # Errors
/// As ioctl(2) and btrfs-ioctl(2) say.
pub fn btrfs(root: impl AsFd) -> io::Result<()> {
    let mut arguments = [0_u64; 512];
    arguments[1] = u64::from_le_bytes(*b"max\0\0\0\0\0").to_le();
    call(root, BTRFS_IOC_RESIZE, &mut arguments)
}

/// Grows the xfs that a directory lies on to a size in bytes, if that is more than it has.
///
/// # Errors
/// As ioctl_xfs_fsgrowfs(2) says.
pub fn xfs(root: impl AsFd, size_bytes: u64) -> io::Result<()> {
    let mut geometry = [0_u64; 14];
    call(&root, XFS_IOC_FSGEOMETRY, &mut geometry)?;
    let bytes: Vec<u8> = geometry.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let (block, inodes_percent, blocks) = (u32_at(0), u32_at(28), geometry[4]);
    let wanted = size_bytes / u64::from(block.max(1));
    if wanted <= blocks {
        return Ok(());
    }
    let percent = inodes_percent.to_ne_bytes();
    let percent = [percent[0], percent[1], percent[2], percent[3], 0, 0, 0, 0];
    call(root, XFS_IOC_FSGROWFSDATA, &mut [wanted, u64::from_ne_bytes(percent)])
}

/// The argument is as large as the request's number says.
fn call(fd: impl AsFd, request: Opcode, argument: &mut [u64]) -> io::Result<()> {
    // SAFETY: each request reads or writes one structure of integers, which is no larger than the argument; that
    // outlives the call.
    let result = unsafe {
        libc::ioctl(fd.as_fd().as_raw_fd(), request as libc::Ioctl, argument.as_mut_ptr())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
