//! How does a part of a file become a block device? By one atomic call for each part, so that neither udev
//! nor the kernel's scan for partitions is needed.
//!
//! Invariant: a device lets go of its file by itself (AUTOCLEAR) when the last of its users is gone, so that
//! nothing of it is left when we are killed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::checkpoint;
use crate::errors::hinted;
use crate::sys::loop_device::{Window, configure, next_free};

const CONTROL: &str = "/dev/loop-control";
/// How often others may be faster than us before we give up.
const ATTEMPTS: u32 = 64;

/// A device with a file in it.
#[derive(Debug)]
pub(super) struct LoopDevice {
    path: PathBuf,
    /// Keeps the file attached.
    device: OwnedFd,
}

impl LoopDevice {
    /// Its node.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Attaches a window of a file to a device that is free.
///
/// # Errors
/// When the kernel has no loop devices, or all that it may make are taken.
pub(super) fn attach(file: impl AsFd, window: Window) -> Result<LoopDevice> {
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
    };
    let control = open(Path::new(CONTROL)).map_err(explain_missing)?;
    for attempt in 0..ATTEMPTS {
        let number = next_free(&control).map_err(explain_exhausted)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = match open(&path) {
            // Removed since.
            Err(Errno::NXIO | Errno::NODEV) => {
                wait_a_little(attempt);
                continue;
            }
            Err(errno) => return Err(explain_node(errno, &path)),
            Ok(device) => device,
        };
        match configure(&device, &file, window) {
            Ok(()) => {
                checkpoint::reach("loop-attached");
                return Ok(LoopDevice { path, device });
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => wait_a_little(attempt),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("attaching the image to {}", path.display()));
            }
        }
    }
    bail!(hinted(
        "looking for a free loop device: others were always faster",
        "losetup(8) shows what is attached"
    ))
}

/// Others who look for a device at the same time are to find one, too: at first at once, then with pauses of up to
/// 2 seconds in all.
fn wait_a_little(attempt: u32) {
    std::thread::sleep(std::time::Duration::from_millis(u64::from(attempt.saturating_sub(4))));
}

fn explain_exhausted(error: std::io::Error) -> anyhow::Error {
    const WHAT: &str = "looking for a free loop device";
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::ENOMEM | libc::ENODEV) => anyhow::Error::new(error)
            .context(hinted(WHAT, "all that the kernel makes are taken; losetup(8) shows by what")),
        _ => anyhow::Error::new(error).context(WHAT),
    }
}

fn explain_node(errno: Errno, path: &Path) -> anyhow::Error {
    let what = format!("opening {}", path.display());
    match errno {
        Errno::NOENT => anyhow::Error::new(errno).context(hinted(
            what,
            "its node is missing: /dev is no devtmpfs, or the host of this container must hand it in",
        )),
        _ => anyhow::Error::new(errno).context(what),
    }
}

/// CON-13: what cannot work here is said as such.
fn explain_missing(errno: Errno) -> anyhow::Error {
    let what = format!("opening {CONTROL}");
    if !matches!(errno, Errno::NOENT | Errno::NODEV | Errno::NXIO) {
        return anyhow::Error::new(errno).context(what);
    }
    anyhow::Error::new(errno).context(hinted(
        what,
        "disk images need loop devices, which this kernel does not have: try \"modprobe loop\"; in a \
         container, its host must hand them in",
    ))
}
