//! What is mounted over something that must not be reached? A node of the same type without permissions
//! (M-03, T-06), made by us where nobody else could have prepared it (runc CVE-2025-31133).

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat};
use rustix::io::Errno;

use crate::inroot::{InRoot, Links};

/// The nodes, with their names below /run/host/inaccessible. The regular file is there already.
const NODES: [(&str, FileType); 4] = [
    ("fifo", FileType::Fifo),
    ("sock", FileType::Socket),
    ("chr", FileType::CharacterDevice),
    ("blk", FileType::BlockDevice),
];

/// Makes the nodes. The umask must be empty, and /run/host filled.
pub fn covers(root: &InRoot) -> Result<()> {
    let dir: OwnedFd = root
        .open(Path::new("/run/host/inaccessible"), Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
        .context("opening /run/host/inaccessible of the container")?;
    mkdirat(&dir, "dir", Mode::empty()).context("making /run/host/inaccessible/dir")?;
    for (name, kind) in NODES {
        match mknodat(&dir, name, kind, Mode::empty(), 0) {
            // Who may make no devices has a socket cover them: that cannot be opened either.
            Err(Errno::PERM) => mknodat(&dir, name, FileType::Socket, Mode::empty(), 0),
            other => other,
        }
        .with_context(|| format!("making /run/host/inaccessible/{name}"))?;
    }
    Ok(())
}
