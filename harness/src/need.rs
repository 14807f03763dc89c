//! Confirms in the guest what the plan believed of it.
//!
//! Three answers, as xfstests has them: a need that cannot be looked at is neither met nor unmet, it is broken, and
//! that fails the case.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Error, Result};

use crate::case::Need;
use crate::guest::observe::mounts_of;
use crate::guest::{Guest, Subject};
use crate::kernels::version_of;
use crate::shape::Shape;

/// What was found.
#[derive(Debug)]
pub enum Answer {
    /// The need is met.
    Yes,
    /// It is not, and what was found instead.
    No(String),
    /// It could not be found out.
    Broken(Error),
}

/// Looks whether `need` is met here.
#[must_use]
pub fn confirm(need: &Need, guest: &Guest) -> Answer {
    let found = match need {
        Need::Fs(kind) => confirm_fs(kind, guest.scratch()),
        Need::Kernel(major, minor) => {
            release().and_then(|release| confirm_kernel(&release, (*major, *minor)))
        }
        Need::Tool(name) => Ok(confirm_tool(name)),
        Need::Module(name) => confirm_module(name),
        Need::Only(subject) => Ok(confirm_subject(*subject, guest.subject())),
        Need::Shape(shape) => confirm_shape(*shape),
        Need::Memory(mib) => confirm_memory(*mib),
        Need::Disk(mib) => confirm_disk(guest, *mib),
        // Who gives the guest its orders keeps these.
        Need::Fresh | Need::Restart => Ok(None),
    };
    match found {
        Ok(None) => Answer::Yes,
        Ok(Some(why)) => Answer::No(why),
        Err(error) => Answer::Broken(error),
    }
}

/// The type of the file system that holds `path`, by the mount table.
///
/// # Errors
/// When the table cannot be read.
pub fn fs_of(path: &Path) -> Result<String> {
    let mounts = mounts_of("self")?;
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.on))
        // Later lines cover earlier ones at the same place.
        .max_by_key(|mount| mount.on.len())
        .map(|mount| mount.fs.clone())
        .with_context(|| format!("no mount holds {}", path.display()))
}

fn confirm_fs(kind: &str, scratch: &Path) -> Result<Option<String>> {
    let found = fs_of(scratch)?;
    Ok((found != kind).then(|| format!("needs scratch on {kind}, which is on {found}")))
}

fn release() -> Result<String> {
    rustix::system::uname()
        .release()
        .to_str()
        .map(str::to_owned)
        .context("reading the kernel's release")
}

fn confirm_kernel(release: &str, least: (u32, u32)) -> Result<Option<String>> {
    let version = version_of(release)
        .with_context(|| format!("a kernel release of an unknown form: \"{release}\""))?;
    let why = || format!("needs kernel {}.{} or later, this is {release}", least.0, least.1);
    Ok((version < least).then(why))
}

fn confirm_tool(name: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let there = path.split(':').any(|dir| Path::new(dir).join(name).is_file());
    (!there).then(|| format!("needs the program {name}, which is not on the PATH"))
}

fn confirm_subject(only: Subject, is: Subject) -> Option<String> {
    (only != is).then(|| format!("is about options that only {} has", only.name()))
}

fn confirm_shape(shape: Shape) -> Result<Option<String>> {
    // What systemd itself goes by (sd_booted(3)).
    let booted = Path::new("/run/systemd/system").try_exists();
    let booted = booted.context("looking whether systemd runs")?;
    let is = if booted { Shape::Systemd } else { Shape::Lean };
    Ok((is != shape).then(|| format!("needs a {} guest, this one is {}", shape.name(), is.name())))
}

fn confirm_memory(mib: u32) -> Result<Option<String>> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let found = total.context("reading MemTotal from /proc/meminfo")? / 1024;
    // The kernel keeps some of it to itself.
    let enough = found >= u64::from(mib) * 9 / 10 && found <= u64::from(mib);
    Ok((!enough).then(|| format!("needs {mib} MiB of memory, this guest has {found}")))
}

fn confirm_disk(guest: &Guest, mib: u32) -> Result<Option<String>> {
    let space = rustix::fs::statvfs(guest.scratch()).context("measuring the scratch disk")?;
    let found = space.f_blocks.saturating_mul(space.f_frsize) >> 20;
    // The file system keeps some of it to itself.
    let fits = found <= u64::from(mib) && found >= u64::from(mib) / 2;
    Ok((!fits).then(|| format!("needs a scratch disk of {mib} MiB, this one has {found}")))
}

fn confirm_module(name: &str) -> Result<Option<String>> {
    if Path::new("/sys/module").join(name).exists() {
        return Ok(None);
    }
    let known = fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
    if known.split_whitespace().any(|word| word == name) {
        return Ok(None);
    }
    let result = Command::new("modprobe").arg(name).output().context("running modprobe")?;
    let text = String::from_utf8_lossy(&result.stderr).trim().to_owned();
    Ok((!result.status.success()).then(|| format!("needs the module {name}: {text}")))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::same("5.15.0-1-cloud-amd64", true)]
    #[case::later_minor("5.16.2", true)]
    #[case::later_major("6.1.0-13", true)]
    #[case::earlier_minor("5.10.0-30", false)]
    #[case::earlier_major("4.19.0", false)]
    fn a_kernel_is_compared_by_number(#[case] release: &str, #[case] enough: bool) {
        assert_eq!(confirm_kernel(release, (5, 15)).unwrap().is_none(), enough);
    }

    #[test]
    fn a_release_without_numbers_is_broken_not_unmet() {
        assert!(confirm_kernel("next", (5, 15)).is_err());
    }

    #[test]
    fn a_program_that_is_nowhere_is_unmet() {
        assert!(confirm_tool("no-such-program-here").is_some());
        assert!(confirm_tool("sh").is_none());
    }

    #[test]
    fn a_case_about_one_launcher_is_not_for_the_other() {
        assert!(confirm_subject(Subject::Rspawn, Subject::Nspawn).is_some());
        assert!(confirm_subject(Subject::Rspawn, Subject::Rspawn).is_none());
    }
}
