//! What is process 1 of a container with `--as-pid2` (E-01)? A program of its own, so that neither the memory nor
//! the file of rspawn is within the payload's reach: /proc/1/exe is a sealed file in memory (R11, CVE-2019-5736).

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::fcntl::AtFlags;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use crate::settings::value::ExitMode;

/// Made by `build.rs` of `src/sys/stub_program.rs`; empty on a machine that it does not know.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub"));

/// Whether there is a stub for this machine.
pub fn is_available() -> bool {
    !PROGRAM.is_empty()
}

/// Becomes the stub, with the rights and the blocked signals that we have: all of them, since it takes its signals
/// one by one. The payload is the child with the id `payload`.
///
/// # Errors
/// It comes back only with one.
pub(super) fn become_stub(payload: libc::pid_t, mode: ExitMode) -> Result<Infallible> {
    rustix::process::setsid().context("beginning a session for the stub")?;
    let program = sealed().context("making the stub's program")?;
    let pid = std::ffi::CString::new(payload.to_string()).expect("digits hold no zero byte");
    let mut words: Vec<&CStr> = vec![c"(rspawn-stub)", &pid];
    if mode == ExitMode::Shell {
        words.push(c"shell");
    }
    let environment: [&CStr; 0] = [];
    nix::unistd::execveat(&program, c"", &words, &environment, AtFlags::AT_EMPTY_PATH)
        .context("executing the stub")
}

/// The program in a file that nobody can change any more.
fn sealed() -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux 6.3 wants to be told that it is to be executed (vm.memfd_noexec); older ones refuse the flag.
    let file = match memfd_create(c"rspawn-stub", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(c"rspawn-stub", flags),
        other => other,
    };
    let mut file = File::from(file.context("making a file in memory")?);
    file.write_all(PROGRAM).context("writing it")?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals).context("sealing it")?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::fcntl_get_seals;

    /// R11.
    #[test]
    fn the_stubs_program_cannot_be_changed() {
        let program = sealed().unwrap();
        assert!(fcntl_get_seals(&program).unwrap().contains(SealFlags::WRITE | SealFlags::SEAL));
        let mut program = File::from(program);
        assert_eq!(program.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    /// E-01: it is copied at each start, so it must stay small.
    #[test]
    fn the_stub_is_a_small_program() {
        if is_available() {
            assert_eq!(&PROGRAM[..4], b"\x7fELF");
            assert!(PROGRAM.len() < 16 << 10, "{} bytes", PROGRAM.len());
        }
    }
}
