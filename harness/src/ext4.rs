//! An ext4 image with a directory's content, made without mounting anything and without root.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::tool;

/// A read-only image of `dir` at `image`: no journal, no reserve, about as big as its content.
///
/// # Errors
/// When the directory cannot be read or mkfs.ext4 fails.
pub fn image_of(dir: &Path, image: &Path) -> Result<()> {
    let (bytes, inodes) = measure(dir)?;
    tool::output(mkfs(&mut tool::command("mkfs.ext4"), dir, image, bytes, inodes))
        .map(drop)
        .with_context(|| format!("making an ext4 image of {}", dir.display()))
}

fn mkfs<'a>(
    command: &'a mut Command,
    dir: &Path,
    image: &Path,
    bytes: u64,
    inodes: u64,
) -> &'a mut Command {
    command
        .args([
            "-q",
            "-F",
            "-m",
            "0",
            "-O",
            "^has_journal,^resize_inode",
            "-E",
            "root_owner=0:0",
            "-N",
        ])
        // mkfs spreads inodes over block groups and does not fill each: leave room.
        .arg((inodes + inodes / 4 + 512).to_string())
        .arg("-d")
        .arg(dir)
        .arg(image)
        .arg(format!("{}k", image_kib(bytes, inodes)))
}

/// Size of an image for this content: an eighth more for indirection, 512 bytes a file for its inode, and 16 MiB to breathe.
#[must_use]
pub fn image_kib(bytes: u64, inodes: u64) -> u64 {
    (bytes + bytes / 8 + inodes * 512) / 1024 + (16 << 10)
}

/// Bytes in whole blocks, and number of files.
fn measure(dir: &Path) -> Result<(u64, u64)> {
    let mut sum = (0, 1);
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry.with_context(|| format!("listing {}", dir.display()))?;
        let meta =
            entry.metadata().with_context(|| format!("looking at {}", entry.path().display()))?;
        let (bytes, inodes) = if meta.is_dir() { measure(&entry.path())? } else { (0, 1) };
        sum.0 += bytes + meta.len().next_multiple_of(4096);
        sum.1 += inodes;
    }
    Ok(sum)
}
