//! A file system in a file, on a loop device that an independent crate attaches, so that the launcher's own way of
//! attaching is not tested with itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::fixture::scratch::Mounted;
use harness::guest::Guest;
use loopdev::{LoopControl, LoopDevice};

/// Enough for a minimal tree and a journal, in bytes.
const SIZE_BYTES: u64 = 64 << 20;

/// A mounted file system in a file. Fields go in this order: unmounted, detached, removed.
#[derive(Debug)]
pub(crate) struct LoopFs {
    mounted: Mounted,
    _device: Attached,
    _file: Removed,
}

#[derive(Debug)]
struct Attached(LoopDevice);

impl Drop for Attached {
    fn drop(&mut self) {
        // The leftovers check names what stays attached.
        let _ = self.0.detach();
    }
}

#[derive(Debug)]
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // The leftovers check names what stays.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl LoopFs {
    /// A fresh ext4 below the case's scratch directory.
    pub(crate) fn ext4(guest: &Guest) -> Result<Self> {
        let path = guest.scratch().join("disk.img");
        File::create(&path)
            .and_then(|file| file.set_len(SIZE_BYTES))
            .context("making a disk image")?;
        let file = Removed(path);
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file.0).output();
        let made = made.context("running mkfs.ext4")?;
        ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr));
        let control = LoopControl::open().context("opening the loop devices' control")?;
        let device = control.next_free().context("looking for a free loop device")?;
        device.attach_file(&file.0).context("attaching a loop device")?;
        let device = Attached(device);
        let node = device.0.path().context("asking for the loop device's path")?;
        let mounted = Mounted::device(&node, &guest.scratch().join("mounted"), "ext4")?;
        // It is no part of a tree, and a launcher may object.
        let _ = std::fs::remove_dir(mounted.path().join("lost+found"));
        Ok(Self { mounted, _device: device, _file: file })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.mounted.path()
    }
}
