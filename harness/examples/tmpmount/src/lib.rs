//! A helper that mounts a small tmpfs: the smallest program that cannot be tested without being root.
//!
//! It is here to show how a package of its own uses the `harness` crate: `tests/cases.rs` has the cases,
//! `src/bin/tmpmount-vm.rs` the command that runs them, `qemu/` and `images/` what they run on.

use std::ffi::CString;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

/// Mounts a tmpfs of so many KiB on an empty directory.
///
/// # Errors
/// When it is none, or the kernel refuses.
pub fn mount_on(dir: &Path, size_kib: u32) -> Result<()> {
    let what = || format!("looking into {}", dir.display());
    let mut entries = std::fs::read_dir(dir).with_context(what)?;
    ensure!(entries.next().is_none(), "{} is not empty", dir.display());
    let options = CString::new(format!("size={size_kib}k,mode=700")).context("writing options")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpmount", dir, "tmpfs", flags, options.as_c_str())
        .with_context(|| format!("mounting a tmpfs on {}", dir.display()))
}
