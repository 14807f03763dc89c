//! Is a file system whole before it is written to? Those that say of themselves that they were not unmounted, or
//! that errors were found, are repaired by the host's fsck, without questions.
//!
//! Of a clean one nothing is asked: its program would only read the same few bytes. XFS and btrfs look after
//! themselves when they are mounted; their fsck programs do nothing (fsck.xfs(8), fsck.btrfs(8)).

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::MemfdFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions, set_parent_process_death_signal, waitid};

use super::filesystem::FileSystem;
use super::gpt::Disk;
use crate::errors::{hinted, warn};
use crate::stage::{Parent, fork};
use crate::sys::process::{FIRST_FD, keep_only, reset_signals};

/// Where fsck programs are.
const PLACES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// fsck(8), EXIT STATUS: errors were corrected.
const CORRECTED: i32 = 1;

/// Whether what a file system says of itself is a reason to check it.
///
/// # Errors
/// When it cannot be read.
pub fn is_needed(disk: &(impl Disk + ?Sized), start: u64, system: FileSystem) -> Result<bool> {
    let byte = |at: u64| -> Result<u8> {
        let mut byte = [0];
        disk.read_at(start + at, &mut byte).context("reading the state of the file system")?;
        Ok(byte[0])
    };
    Ok(match system {
        // fs/ext4/ext4.h: s_state is 1 when it was unmounted; 4 in s_feature_incompat is a journal to replay.
        FileSystem::Ext4 => byte(0x43a)? & 3 != 1 || byte(0x460)? & 4 != 0,
        // linux/msdos_fs.h, `state` of the boot sector: bit 0 is dirty.
        FileSystem::Vfat => {
            let fat32 = byte(0x52)? == b'F';
            byte(if fat32 { 0x41 } else { 0x25 })? & 1 != 0
        }
        FileSystem::Xfs | FileSystem::Btrfs | FileSystem::Squashfs | FileSystem::Erofs => false,
    })
}

/// Repairs what can be repaired without a question. `what` is told in messages.
///
/// # Errors
/// When errors remain.
pub(super) fn repair(system: FileSystem, device: &Path, what: &str) -> Result<()> {
    let (name, option) = match system {
        FileSystem::Ext4 => ("fsck.ext4", "-p"),
        FileSystem::Vfat => ("fsck.vfat", "-a"),
        FileSystem::Xfs | FileSystem::Btrfs | FileSystem::Squashfs | FileSystem::Erofs => {
            return Ok(());
        }
    };
    let program = PLACES.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    let Some(program) = program else {
        warn(format_args!("{what} was not unmounted cleanly, and there is no {name} to check it"));
        return Ok(());
    };
    let output = rustix::fs::memfd_create("fsck", MemfdFlags::CLOEXEC)
        .context("making a file for the output of fsck")?;
    let words = [OsStr::new(option), device.as_os_str()];
    let code = run(&program, &words, &output).with_context(|| format!("running {name}"))?;
    match code {
        0 => Ok(()),
        CORRECTED => {
            warn(format_args!("{name} has corrected {what}"));
            Ok(())
        }
        code => Err(anyhow!("it ended with code {code}: {}", last_line(output))).with_context(|| {
            hinted(
                format!("checking {what} with {name}"),
                "it cannot be repaired without a decision: run that program on it by hand, or use --read-only",
            )
        }),
    }
}

fn run(program: &PathBuf, words: &[&OsStr], output: &OwnedFd) -> Result<i32> {
    let child = fork(0, Parent::Us, || become_program(program, words, output), drop)?;
    let ended = rustix::io::retry_on_intr(|| {
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
    });
    let ended = ended.context("waiting for it")?.context("it has no status")?;
    match (ended.exit_status(), ended.terminating_signal()) {
        (Some(code), _) => Ok(code),
        (None, signal) => bail!("it was killed by signal {}", signal.unwrap_or_default()),
    }
}

/// The child. Comes back only when nothing was executed. It can be interrupted, and goes when we are killed.
fn become_program(program: &PathBuf, words: &[&OsStr], output: &OwnedFd) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("tying it to us")?;
    keep_only(FIRST_FD, &[output.as_fd()]).context("closing what it must not see")?;
    reset_signals();
    let stream = || output.try_clone().context("handing over the output file");
    let refusal = Command::new(program)
        .args(words)
        .env_clear()
        .env("PATH", PLACES.join(":"))
        .stdin(Stdio::null())
        .stdout(stream()?)
        .stderr(stream()?)
        .exec();
    Err(refusal).context("executing it")
}

/// What a program said last, of bounded length.
fn last_line(output: OwnedFd) -> String {
    let mut text = [0; 4096];
    let length = File::from(output).read_at(&mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..length]);
    text.trim().lines().last().unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// I-04.
    #[rstest]
    #[case::clean(FileSystem::Ext4, &[(0x43a, 1)], false)]
    #[case::not_unmounted(FileSystem::Ext4, &[(0x43a, 0)], true)]
    #[case::with_errors(FileSystem::Ext4, &[(0x43a, 3)], true)]
    #[case::with_a_journal_to_replay(FileSystem::Ext4, &[(0x43a, 1), (0x460, 6)], true)]
    #[case::clean_fat(FileSystem::Vfat, &[(0x25, 0), (0x41, 1)], false)]
    #[case::dirty_fat(FileSystem::Vfat, &[(0x25, 1)], true)]
    #[case::dirty_fat32(FileSystem::Vfat, &[(0x52, b'F'), (0x41, 1)], true)]
    #[case::clean_fat32(FileSystem::Vfat, &[(0x52, b'F'), (0x25, 1)], false)]
    #[case::looks_after_itself(FileSystem::Xfs, &[], false)]
    fn a_file_system_says_whether_it_wants_a_check(
        #[case] system: FileSystem,
        #[case] bytes: &[(usize, u8)],
        #[case] needed: bool,
    ) {
        let mut disk = vec![0; 8192];
        for (at, byte) in bytes {
            disk[4096 + at] = *byte;
        }
        assert_eq!(is_needed(&*disk, 4096, system).unwrap(), needed);
    }
}
