//! How is a program for device accesses handed to the kernel, and hung on a cgroup? (bpf(2); Linux 4.15.)
//!
//! No policy lives here. The program is gone with its cgroup.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction (`struct bpf_insn`, linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Class, operation and source.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high ones.
    pub registers: u8,
    /// Offset of a load or a jump.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

// Numbers of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of ancestors stay in force, and descendants may add their own.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads; the kernel takes what is left out for zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part that BPF_PROG_ATTACH reads.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a program that decides over device accesses.
///
/// # Errors
/// EPERM without CAP_BPF and CAP_NET_ADMIN or CAP_SYS_ADMIN, EINVAL for a kernel without such programs or a program
/// that its verifier refuses, ENOSYS without bpf(2).
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: program.as_ptr() as u64,
        license: c"".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: `load` is laid out as the kernel's structure and of the size given; what it points to is `program`, with
    // its length, and a constant string. All of it outlives the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, close-on-exec, and nobody else has it.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Hangs the program on the cgroup: it decides from now on, together with those of the cgroup's ancestors.
///
/// # Errors
/// EPERM where an ancestor's program allows no others below it.
pub fn attach_device_program(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let number =
        |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).expect("descriptors are positive");
    let attach = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` is laid out as the kernel's structure, of the size given, and outlives the call.
    let rc = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>())
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
