//! How does the table become programs for the kernel?
//!
//! Invariants: names become numbers by the native table only (libseccomp translates them to the other
//! architectures; resolving by architecture gives a silently wrong filter); integers are compared by their low
//! 32 bits, because the kernel ignores the high half of an `int` argument and a caller may set it (CVE-2019-10063;
//! systemd-nspawn 252 compares 64 bits, so that `socket(AF_NETLINK | 1 << 32, …)` opens an audit socket there);
//! `no_new_privs` is left alone (SEC-03), which exporting instead of loading gives by itself.
//!
//! Rules of one program never contradict each other, so their order does not matter. What narrows an allowed call
//! is a program of its own: the kernel takes the strictest answer of all programs.
//!
//! This file is also compiled into the build script, so it uses nothing of the crate but its siblings.

use std::collections::{BTreeMap, BTreeSet};

use libseccomp::error::{SeccompErrno, SeccompError};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};

use super::families::{Families, HIGHEST};
use super::table;

/// A program that can be exported (`export_bpf`); only a failure of the library itself is an error (SEC-04).
pub type Built = Result<ScmpFilterContext, SeccompError>;

// Numbers of the asm-generic headers, equal on every architecture of [`arches`].
const EPERM: i32 = 1;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const EAFNOSUPPORT: i32 = 97;
const AF_NETLINK: u64 = 16;
const NETLINK_AUDIT: u64 = 9;
/// What socketcall(2) takes for socket(2) (linux/net.h).
const SYS_SOCKET: u64 = 1;
/// `O_DSYNC`, and the bit that `O_SYNC` has beyond it (asm-generic/fcntl.h).
const SYNC_FLAGS: [u64; 2] = [0o10000, 0o4000000];
/// `TIOCSTI` and `TIOCLINUX` (asm-generic/ioctls.h).
const INJECTING_IOCTLS: [u64; 2] = [0x5412, 0x541C];

/// Every calling convention by which a process may enter the kernel of a machine, named as in
/// [`std::env::consts::ARCH`]: the native one first. A convention left out would be a way around the filter.
#[must_use]
pub fn arches(machine: &str) -> Option<&'static [ScmpArch]> {
    Some(match machine {
        "x86_64" => &[ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32],
        "x86" => &[ScmpArch::X86],
        "aarch64" => &[ScmpArch::Aarch64, ScmpArch::Arm],
        "arm" => &[ScmpArch::Arm],
        "riscv64" => &[ScmpArch::Riscv64],
        "s390x" => &[ScmpArch::S390X, ScmpArch::S390],
        "loongarch64" => &[ScmpArch::Loongarch64],
        _ => return None,
    })
}

/// The allow list for a payload that keeps the capabilities `caps` (bits): allowed calls pass, other known calls
/// give EPERM, unknown calls ENOSYS. Calls in `denied` give EPERM whatever else allows them. Names that the library
/// does not know are skipped.
pub fn allow_list(
    arches: &[ScmpArch],
    caps: u64,
    allowed: &BTreeSet<&str>,
    denied: &BTreeSet<&str>,
) -> Built {
    let mut decided: BTreeMap<&str, ScmpAction> = BTreeMap::new();
    decided.extend(table::known().into_iter().map(|call| (call, ScmpAction::Errno(EPERM))));
    for row in table::ALLOWED.iter().filter(|row| row.with == 0 || row.with & caps != 0) {
        let items = row.items.split_ascii_whitespace().filter_map(table::calls);
        decided.extend(items.flatten().map(|call| (call, ScmpAction::Allow)));
    }
    decided.extend(allowed.iter().map(|call| (*call, ScmpAction::Allow)));
    decided.extend(denied.iter().map(|call| (*call, ScmpAction::Errno(EPERM))));

    let mut filter = start(arches, ScmpAction::Errno(ENOSYS))?;
    for (call, action) in decided {
        add(&mut filter, action, call, &[])?;
    }
    Ok(filter)
}

/// Makes `socket(AF_NETLINK, *, NETLINK_AUDIT)` fail with EAFNOSUPPORT, by which user space learns that there is
/// no audit here (SEC-02). i386's socketcall passes its arguments by pointer and cannot be seen, as in nspawn.
pub fn no_audit(arches: &[ScmpArch]) -> Built {
    let mut filter = start(arches, ScmpAction::Allow)?;
    let audit = [int_is(0, AF_NETLINK), int_is(2, NETLINK_AUDIT)];
    add(&mut filter, ScmpAction::Errno(EAFNOSUPPORT), "socket", &audit)?;
    Ok(filter)
}

/// Makes a socket of a family that is not allowed fail with EAFNOSUPPORT, as one that the kernel was built without
/// (S-04). socketpair(2) stays: what it connects was there before.
pub fn families(arches: &[ScmpArch], allowed: &Families) -> Built {
    let mut filter = start(arches, ScmpAction::Allow)?;
    let refused = ScmpAction::Errno(EAFNOSUPPORT);
    for family in (0..=HIGHEST).filter(|family| !allowed.allows(*family)) {
        add(&mut filter, refused, "socket", &[int_is(0, family.into())])?;
    }
    if let Families::Only(_) = allowed {
        // Later families, negative ones and whatever has bits beyond an int: none of them is in the list.
        let above = ScmpArgCompare::new(0, ScmpCompareOp::Greater, HIGHEST.into());
        add(&mut filter, refused, "socket", &[above])?;
    }
    add(&mut filter, refused, "socketcall", &[int_is(0, SYS_SOCKET)])?;
    Ok(filter)
}

/// Makes the calls that wait for a disk succeed at once (E-08). As systemd-nspawn 252 was seen to do: a negative
/// descriptor still gives EBADF, opening with O_SYNC or O_DSYNC gives EINVAL, and openat2, whose flags are behind a
/// pointer, gives ENOSYS.
pub fn no_sync(arches: &[ScmpArch]) -> Built {
    let mut filter = start(arches, ScmpAction::Allow)?;
    let done = ScmpAction::Errno(0);
    for call in ["sync", "msync"] {
        add(&mut filter, done, call, &[])?;
    }
    let descriptor = [ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(0x8000_0000), 0)];
    for call in ["fsync", "fdatasync", "syncfs", "sync_file_range", "sync_file_range2"] {
        add(&mut filter, done, call, &descriptor)?;
    }
    for flag in SYNC_FLAGS {
        for (call, arg) in [("open", 1), ("openat", 2)] {
            let given = [ScmpArgCompare::new(arg, ScmpCompareOp::MaskedEqual(flag), flag)];
            add(&mut filter, ScmpAction::Errno(EINVAL), call, &given)?;
        }
    }
    add(&mut filter, ScmpAction::Errno(ENOSYS), "openat2", &[])?;
    Ok(filter)
}

/// Refuses to put input into a terminal (TIOCSTI, TIOCLINUX) with EPERM: for a payload that shares its caller's
/// terminal (security.md, CVE-2017-5226).
pub fn no_terminal_input(arches: &[ScmpArch]) -> Built {
    let mut filter = start(arches, ScmpAction::Allow)?;
    for request in INJECTING_IOCTLS {
        add(&mut filter, ScmpAction::Errno(EPERM), "ioctl", &[int_is(1, request)])?;
    }
    Ok(filter)
}

/// Whether the library can make a rule for the call on this machine or one of its siblings.
#[must_use]
pub fn is_known_to_library(call: &str) -> bool {
    ScmpSyscall::from_name(call).is_ok()
}

fn int_is(arg: u32, value: u64) -> ScmpArgCompare {
    ScmpArgCompare::new(arg, ScmpCompareOp::MaskedEqual(0xffff_ffff), value)
}

fn start(arches: &[ScmpArch], default: ScmpAction) -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(default)?;
    // Without it every error is ECANCELED (seccomp_attr_set(3), SCMP_FLTATR_API_SYSRAWRC).
    filter.set_api_sysrawrc(true)?;
    // A convention that we do not know gets what an unknown call gets, not a killed process.
    filter.set_act_badarch(ScmpAction::Errno(ENOSYS))?;
    // A binary tree: hundreds of calls make a linear search slow (seccomp_attr_set(3), SCMP_FLTATR_CTL_OPTIMIZE).
    filter.set_ctl_optimize(2)?;
    for &arch in arches {
        if !filter.is_arch_present(arch)? {
            filter.add_arch(arch)?;
        }
    }
    // The build script of a cross build has another native architecture than the program.
    if !arches.contains(&ScmpArch::native()) {
        filter.remove_arch(ScmpArch::native())?;
    }
    Ok(filter)
}

fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    call: &str,
    when: &[ScmpArgCompare],
) -> Result<(), SeccompError> {
    // Unknown to this libseccomp: the default answer holds (SEC-01).
    let Ok(number) = ScmpSyscall::from_name(call) else { return Ok(()) };
    match filter.add_rule_conditional(action, number, when) {
        // The call exists on none of the architectures of this filter (seccomp_rule_add(3)).
        Err(err) if err.errno() == Some(SeccompErrno::EDOM) => Ok(()),
        other => other.map(drop),
    }
}
