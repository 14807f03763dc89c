//! Which file system is on a partition? By its magic numbers, from a list of those that we let the kernel
//! mount: what is on it may be hostile, and not every driver was written with that in mind (IMG-17).

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use super::gpt::Disk;
use crate::errors::hinted;

/// A file system that may be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// And ext2, ext3, which its driver mounts too.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT with long names.
    Vfat,
    /// Read-only.
    Squashfs,
    /// Read-only.
    Erofs,
}

impl FileSystem {
    /// As mount(8) calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }

    /// Whether it can only be read.
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::Squashfs | Self::Erofs)
    }

    /// The option with which it is mounted read-only although its journal was not written back, which
    /// it cannot do on a device that nobody may write to.
    pub fn without_recovery(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Ext4 => Some(("noload", "")),
            Self::Xfs => Some(("norecovery", "")),
            // Linux 5.9.
            Self::Btrfs => Some(("rescue", "nologreplay")),
            Self::Vfat | Self::Squashfs | Self::Erofs => None,
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a partition's content by a magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Mountable(FileSystem),
    Luks,
    Swap,
    Verity,
    Other(&'static str),
}

/// Magic numbers: offset in bytes, what is there, and what it means. From the headers of each driver in
/// Linux, fs/ and include/uapi/linux/magic.h; LUKS from its on-disk format, section 2.
const MAGICS: [(u64, &[u8], Content); 14] = [
    (0x438, b"\x53\xef", Content::Mountable(FileSystem::Ext4)),
    (0, b"XFSB", Content::Mountable(FileSystem::Xfs)),
    (0x10040, b"_BHRfS_M", Content::Mountable(FileSystem::Btrfs)),
    (0x36, b"FAT12   ", Content::Mountable(FileSystem::Vfat)),
    (0x36, b"FAT16   ", Content::Mountable(FileSystem::Vfat)),
    (0x52, b"FAT32   ", Content::Mountable(FileSystem::Vfat)),
    (0, b"hsqs", Content::Mountable(FileSystem::Squashfs)),
    (0x400, b"\xe2\xe1\xf5\xe0", Content::Mountable(FileSystem::Erofs)),
    (0, b"LUKS\xba\xbe", Content::Luks),
    (0xff6, b"SWAPSPACE2", Content::Swap),
    (0, b"verity\0\0", Content::Verity),
    (0x8001, b"CD001", Content::Other("an ISO 9660 file system")),
    (0x400, b"\x10\x20\xf5\xf2", Content::Other("an F2FS file system")),
    (3, b"NTFS    ", Content::Other("an NTFS file system")),
];

/// Tells what the partition of this size at `start_bytes` holds.
///
/// # Errors
/// When it is nothing that is mounted, or several things at once.
pub fn probe(disk: &(impl Disk + ?Sized), start_bytes: u64, size_bytes: u64) -> Result<FileSystem> {
    let mut found: Vec<Content> = Vec::new();
    for (at, magic, content) in MAGICS {
        let mut there = [0; 10];
        let there = &mut there[..magic.len()];
        if at + magic.len() as u64 > size_bytes {
            continue;
        }
        disk.read_at(start_bytes + at, there).context("reading a magic number")?;
        if there == magic && !found.contains(&content) {
            found.push(content);
        }
    }
    let [content] = found[..] else {
        ensure!(
            found.is_empty(),
            "it is not clear what it holds: there are signs of several file systems"
        );
        bail!(hinted(
            "no file system is known there",
            "ext4, xfs, btrfs, vfat, squashfs and erofs are mounted from an image"
        ));
    };
    match content {
        Content::Mountable(system) => Ok(system),
        Content::Luks => bail!(hinted(
            "it is encrypted (LUKS)",
            "open it with cryptsetup(8) first, and give the device below /dev/mapper with -i"
        )),
        Content::Swap => bail!("it holds swap space, no file system"),
        Content::Verity => bail!("it holds dm-verity data, no file system"),
        Content::Other(what) => bail!(hinted(
            format!("it holds {what}"),
            "ext4, xfs, btrfs, vfat, squashfs and erofs are mounted from an image"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn with(magics: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 17];
        for (at, magic) in magics {
            bytes[4096 + at..4096 + at + magic.len()].copy_from_slice(magic);
        }
        bytes
    }

    const EXT4: (usize, &[u8]) = (0x438, b"\x53\xef");
    const XFS: (usize, &[u8]) = (0, b"XFSB");
    const BTRFS: (usize, &[u8]) = (0x10040, b"_BHRfS_M");
    const FAT16: (usize, &[u8]) = (0x36, b"FAT16   ");
    const FAT32: (usize, &[u8]) = (0x52, b"FAT32   ");
    const LUKS: (usize, &[u8]) = (0, b"LUKS\xba\xbe");
    const SWAP: (usize, &[u8]) = (0xff6, b"SWAPSPACE2");

    /// IMG-17.
    #[rstest]
    #[case(&[EXT4], Ok("ext4"))]
    #[case(&[BTRFS], Ok("btrfs"))]
    #[case(&[FAT32], Ok("vfat"))]
    #[case::both_fat_words_are_one_thing(&[FAT32, FAT16], Ok("vfat"))]
    #[case::ambiguous(&[XFS, EXT4], Err("not clear"))]
    #[case::luks(&[LUKS], Err("encrypted"))]
    #[case::swap(&[SWAP], Err("swap"))]
    #[case::nothing(&[], Err("no file system is known"))]
    fn content_is_told_by_its_magic_number(
        #[case] magics: &[(usize, &[u8])],
        #[case] expected: Result<&str, &str>,
    ) {
        match (probe(&*with(magics), 4096, (1 << 17) - 4096), expected) {
            (Ok(system), Ok(name)) => assert_eq!(system.name(), name),
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn what_lies_behind_the_partition_is_not_looked_at() {
        let bytes = with(&[BTRFS]);
        assert!(probe(&*bytes, 4096, 0x10040).is_err());
        assert!(probe(&*bytes, 4096, 0x10048).is_ok());
    }

    #[test]
    fn luks_comes_with_a_hint() {
        let error = probe(&*with(&[LUKS]), 4096, 8192).unwrap_err();
        assert!(crate::errors::Report::of(&error).hint.unwrap().contains("cryptsetup"));
    }
}
