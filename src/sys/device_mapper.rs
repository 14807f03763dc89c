//! How is a device made that maps another one? The ioctls of /dev/mapper/control (linux/dm-ioctl.h, interface 4.0.0).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::opcode;

/// linux/dm-ioctl.h: `struct dm_ioctl`, whose size is part of the numbers of the ioctls.
const HEADER_BYTES: usize = 312;
/// linux/dm-ioctl.h: `struct dm_target_spec`.
const TARGET_BYTES: usize = 40;
/// Longest name, without its end (DM_NAME_LEN).
const MAX_NAME_BYTES: usize = 127;
/// Room for an answer; a list that is longer is cut by the kernel, which says so.
const ANSWER_BYTES: usize = 64 << 10;

const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const NAME: usize = 48;

const READ_ONLY: u32 = 1 << 0;
/// Goes when it is closed for the last time (Linux 3.13).
const DEFERRED_REMOVE: u32 = 1 << 17;

#[derive(Clone, Copy)]
enum Command {
    List = 2,
    Create = 3,
    Remove = 4,
    /// With no flag, a device that was suspended goes on, with the table that was loaded.
    Resume = 6,
    Load = 9,
}

/// Makes a device without a table yet. Returns its number, as `st_rdev` has it.
///
/// # Errors
/// EBUSY when there is one of this name.
pub fn create(control: impl AsFd, name: &str) -> io::Result<u64> {
    let answer = call(control, Command::Create, name, 0, &[])?;
    // The kernel's old form of a number: 8 bits of the minor, 12 of the major, the rest of the minor.
    let old = u64_at(&answer, DEVICE);
    let (major, minor) = ((old >> 8) & 0xfff, (old & 0xff) | ((old >> 12) & 0xfff00));
    Ok(rustix::fs::makedev(u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)))
}

/// Removes a device that is not in use, or lets it go with its last user.
///
/// # Errors
/// ENXIO when there is none, EBUSY when it is in use and `deferred` is not said.
pub fn remove(control: impl AsFd, name: &str, deferred: bool) -> io::Result<()> {
    let flags = if deferred { DEFERRED_REMOVE } else { 0 };
    call(control, Command::Remove, name, flags, &[]).map(drop)
}

/// Gives a device its one target, which can only be read. Its node is there from then on (Linux 5.15).
///
/// # Errors
/// EINVAL and others when the target refuses its parameters; the kernel's log says why.
pub fn load(
    control: impl AsFd,
    name: &str,
    target: &str,
    size_bytes: u64,
    parameters: &str,
) -> io::Result<()> {
    let mut spec = vec![0; TARGET_BYTES];
    spec[8..16].copy_from_slice(&(size_bytes / 512).to_ne_bytes());
    let kind = spec.get_mut(24..24 + target.len()).filter(|_| target.len() < 16);
    kind.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(target.as_bytes());
    spec.extend(parameters.as_bytes());
    spec.push(0);
    call(control, Command::Load, name, READ_ONLY, &spec).map(drop)
}

/// Lets a device serve by the table that was loaded.
///
/// # Errors
/// When its target cannot begin.
pub fn resume(control: impl AsFd, name: &str) -> io::Result<()> {
    call(control, Command::Resume, name, READ_ONLY, &[]).map(drop)
}

/// The names of all devices.
pub fn names(control: impl AsFd) -> io::Result<Vec<String>> {
    let answer = call(control, Command::List, "", 0, &[])?;
    let mut names = Vec::new();
    let mut at = u32_at(&answer, DATA_START) as usize;
    // struct dm_name_list: the number, where the next one is, the name.
    while let Some(entry) = answer.get(at..).filter(|entry| entry.len() > 12) {
        let name = entry[12..].split(|byte| *byte == 0).next().unwrap_or_default();
        if u64_at(entry, 0) != 0 {
            names.push(String::from_utf8_lossy(name).into_owned());
        }
        match u32_at(entry, 8) as usize {
            0 => break,
            next => at += next,
        }
    }
    Ok(names)
}

fn call(
    control: impl AsFd,
    command: Command,
    name: &str,
    flags: u32,
    data: &[u8],
) -> io::Result<Vec<u8>> {
    if name.len() > MAX_NAME_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut buffer = vec![0; HEADER_BYTES.max(HEADER_BYTES + data.len()).max(ANSWER_BYTES)];
    let size = u32::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut put = |at: usize, bytes: &[u8]| buffer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &4_u32.to_ne_bytes());
    put(DATA_SIZE, &size.to_ne_bytes());
    put(DATA_START, &(HEADER_BYTES as u32).to_ne_bytes());
    put(TARGET_COUNT, &u32::from(!data.is_empty()).to_ne_bytes());
    put(FLAGS, &flags.to_ne_bytes());
    put(NAME, name.as_bytes());
    put(HEADER_BYTES, data);
    let request = opcode::read_write::<[u8; HEADER_BYTES]>(0xfd, command as u8);
    // SAFETY: the ioctl reads and writes what its argument points to, no more than the size that is in it, and the
    // buffer has that size and outlives the call.
    let result = unsafe {
        libc::ioctl(control.as_fd().as_raw_fd(), request as libc::Ioctl, buffer.as_mut_ptr())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(buffer) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes are four"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight"))
}
