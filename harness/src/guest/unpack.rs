//! Puts what a person brings along into the guest: an archive on a disk becomes a directory or a file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::init::{disk, tool};
use super::observe::entries;

/// Where a single file is unpacked before it gets its name, beside that.
const HALF: &str = ".being-copied";

/// Unpacks the archive on the disk with this serial.
///
/// # Errors
/// When the disk is not there, or its files cannot be written.
pub(super) fn run(serial: &str, to: &Path, directory: bool) -> Result<()> {
    let archive = disk(serial)?;
    let archive = archive.to_str().context("naming the disk")?;
    let into = |dir: &Path| {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let dir = dir.to_str().context("naming the directory")?;
        let what = ["--extract", "--file", archive, "--directory", dir];
        let how = ["--same-owner", "--same-permissions", "--numeric-owner", "--acls", "--xattrs"];
        tool("tar", &[&what[..], &how, &["--xattrs-include=*"]].concat())
    };
    if directory {
        return into(to);
    }
    let half = to.parent().context("a file needs a name")?.join(HALF);
    into(&half)?;
    let unpacked = entries(&half)?;
    let [file] = unpacked.as_slice() else {
        bail!("the archive has {} files, not one", unpacked.len());
    };
    fs::rename(file, to).with_context(|| format!("making {}", to.display()))?;
    fs::remove_dir(&half).with_context(|| format!("removing {}", half.display()))
}
