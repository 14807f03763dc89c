//! `cargo xtask setup`: what the workspace needs beyond cargo and a C linker, from a table.
//!
//! Root installs what is missing through apt; anybody else gets the one command to run.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::apt::is_fresh;
use crate::tool;

/// Age at which the machine's package lists are fetched again before something is installed.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);

/// How the presence of something is told.
#[derive(Debug, Clone, Copy)]
enum Probe {
    /// A program on PATH.
    Program(&'static str),
    /// Any of these files.
    AnyFile(&'static [&'static str]),
    /// dpkg knows it as installed: for what leaves no single telling file.
    Installed,
}

/// For what something is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Building rspawn itself.
    Launcher,
    /// Building and running the suite too.
    Suite,
}

#[derive(Debug)]
struct Wanted {
    package: &'static str,
    why: &'static str,
    scope: Scope,
    probe: Probe,
}

const fn wanted(package: &'static str, why: &'static str, scope: Scope, probe: Probe) -> Wanted {
    Wanted { package, why, scope, probe }
}

const TABLE: &[Wanted] = &[
    wanted("gcc", "links every Rust program", Scope::Launcher, Probe::Program("gcc")),
    wanted("libc6-dev", "links every Rust program", Scope::Launcher, Probe::Installed),
    wanted(
        "libseccomp-dev",
        "builds the system call filters",
        Scope::Launcher,
        Probe::AnyFile(&["/usr/include/seccomp.h"]),
    ),
    wanted("pkg-config", "finds libseccomp", Scope::Launcher, Probe::Program("pkg-config")),
    wanted("libclang-dev", "bindgen of loopdev, for the cases", Scope::Suite, Probe::Installed),
    wanted(
        "qemu-system-x86",
        "runs the guests",
        Scope::Suite,
        Probe::Program("qemu-system-x86_64"),
    ),
    wanted("mmdebstrap", "makes Debian trees", Scope::Suite, Probe::Program("mmdebstrap")),
    wanted("debian-archive-keyring", "verifies packages", Scope::Suite, Probe::Installed),
    wanted("uidmap", "makes trees without root", Scope::Suite, Probe::Program("newuidmap")),
    wanted("e2fsprogs", "makes ext4 images", Scope::Suite, Probe::Program("mkfs.ext4")),
    wanted("btrfs-progs", "makes btrfs images", Scope::Suite, Probe::Program("mkfs.btrfs")),
    wanted("fdisk", "makes partition tables", Scope::Suite, Probe::Program("sfdisk")),
    wanted("kmod", "lists module dependencies", Scope::Suite, Probe::Program("depmod")),
    wanted("xz-utils", "unpacks kernels and modules", Scope::Suite, Probe::Program("xz")),
    wanted("zstd", "unpacks kernels", Scope::Suite, Probe::Program("zstd")),
    wanted("lz4", "unpacks kernels", Scope::Suite, Probe::Program("lz4")),
    wanted("tmux", "types sessions as a user would", Scope::Suite, Probe::Program("tmux")),
    wanted(
        "busybox-static",
        "is the shell of those sessions",
        Scope::Suite,
        Probe::Program("busybox"),
    ),
];

impl Wanted {
    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(name) => tool::find(name).is_some(),
            Probe::AnyFile(paths) => paths.iter().any(|path| Path::new(path).exists()),
            Probe::Installed => {
                tool::text(tool::command("dpkg-query").args(["-W", "-f=${Status}", self.package]))
                    .is_ok_and(|status| status.ends_with(" installed"))
            }
        }
    }
}

/// What is missing, as package and reason.
#[must_use]
pub fn missing(scope: Scope) -> Vec<(&'static str, &'static str)> {
    let in_scope = |wanted: &&Wanted| scope == Scope::Suite || wanted.scope == Scope::Launcher;
    let absent = TABLE.iter().filter(in_scope).filter(|wanted| !wanted.is_there());
    absent.map(|wanted| (wanted.package, wanted.why)).collect()
}

/// Installs what is missing, or says how.
///
/// # Errors
/// When something is missing and we are not root, or apt fails.
pub fn run(scope: Scope) -> Result<()> {
    let missing = missing(scope);
    if missing.is_empty() {
        super::say("setup: nothing is missing");
        return Ok(());
    }
    for (package, why) in &missing {
        super::say(&format!("setup: missing {package}: {why}"));
    }
    let packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    let command = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if tool::find("apt-get").is_none() {
        bail!(
            "this machine has no apt-get\nhint: install what these Debian packages hold: {}",
            packages.join(" ")
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!("some packages are missing\nhint: as root, run: {command}");
    }
    if !is_fresh(Path::new("/var/lib/apt/lists/partial"), LISTS_AGE) || lists_are_empty() {
        apt_get(&["update"]).context("fetching package lists")?;
    }
    let install = [&["install", "-y", "--no-install-recommends"], packages.as_slice()].concat();
    if apt_get(&install).is_err() {
        // The lists can name versions that the mirror has replaced since.
        apt_get(&["update"]).context("fetching package lists")?;
        apt_get(&install).context("installing what is missing")?;
    }
    let left = self::missing(scope);
    if !left.is_empty() {
        bail!("apt succeeded, but this is still missing: {left:?}");
    }
    super::say(&format!("setup: installed {}", packages.join(" ")));
    Ok(())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = tool::command("apt-get");
    tool::output(command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q").args(args)).map(drop)
}

fn lists_are_empty() -> bool {
    let Ok(entries) = std::fs::read_dir("/var/lib/apt/lists") else { return true };
    !entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_package_is_listed_twice_and_each_says_why() {
        let mut names: Vec<_> = TABLE.iter().map(|wanted| wanted.package).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
        assert!(TABLE.iter().all(|wanted| !wanted.why.is_empty()));
    }
}
