//! Which partitions does a disk have? Bytes in, a table out; GPT (UEFI 2.10, chapter 5) and MBR.
//!
//! Whatever wrote the disk is hostile, so nothing of it is believed before it was checked: signature, revision,
//! size and checksum of the header, number and size of the entries, checksum of the entries, bounds and
//! overlaps of the partitions. Where the primary header does not hold, the backup at the end is looked at.
//!
//! Invariants: no more than [`MAX_ENTRIES_BYTES`] are read at once; all arithmetic is checked; every partition
//! of a [`Table`] lies on the disk and apart from the others.
//!
//! The `gpt` crate is not used here. It panics, loops or allocates without bound on hostile headers, so all
//! of the checks above would have to stand before it; what it would add to them is the decoding of six fields.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};

use crate::errors::hinted;

/// The largest array of entries that is read; tools write 16 KiB, UEFI asks for no more.
pub const MAX_ENTRIES_BYTES: u64 = 1 << 20;

/// Sector sizes of disks (UEFI 2.10, 5.3.1 leaves it to the medium).
const SECTOR_BYTES: [u32; 2] = [512, 4096];
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes of a header that carry a meaning (UEFI 2.10, table 5-5).
const HEADER_BYTES: usize = 92;

/// Something with bytes at offsets.
pub trait Disk {
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `to` with what is at `offset`.
    ///
    /// # Errors
    /// When it ends before, or cannot be read.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;
}

impl Disk for [u8] {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..)?.get(..to.len()));
        to.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A file or block device, with its size.
#[derive(Debug)]
pub struct FileDisk<'a> {
    /// Open for reading.
    pub file: &'a OwnedFd,
    /// In bytes.
    pub size_bytes: u64,
}

impl Disk for FileDisk<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, mut offset: u64, mut to: &mut [u8]) -> io::Result<()> {
        while !to.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::pread(self.file, &mut *to, offset))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    to = &mut to[read..];
                    offset += read as u64;
                }
            }
        }
        Ok(())
    }
}

/// A 128-bit id as it is printed: the first three groups are stored with their bytes turned around.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub u128);

impl Guid {
    fn of(bytes: &[u8; 16]) -> Self {
        let b = bytes;
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        Self(u128::from_be_bytes(order.map(|at| b[at])))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        let groups = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        f.write_str(&groups.join("-"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a disk is divided into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// A GUID partition table.
    Gpt {
        /// 512 or 4096.
        sector_bytes: u32,
        /// Whether it was read from the end of the disk, since the one at the start is damaged.
        is_backup: bool,
        /// By number.
        partitions: Vec<Partition<Guid>>,
    },
    /// An old one, with up to four partitions; their kinds are type bytes, their attributes the boot flag.
    Mbr {
        /// By number.
        partitions: Vec<Partition<u8>>,
    },
    /// Nothing that looks like a table.
    None,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition<K> {
    /// From 1.
    pub number: u32,
    /// What it is for.
    pub kind: K,
    /// Which one it is among all partitions; 0 in an MBR.
    pub id: Guid,
    /// Where it starts, in bytes.
    pub start_bytes: u64,
    /// How long it is, in bytes; not 0.
    pub size_bytes: u64,
    /// The 64 attribute bits; of an MBR, 1 if it can be booted.
    pub attributes: u64,
}

/// Reads the partition table of a disk. A device tells its sector size; of a file, all are tried.
///
/// # Errors
/// When there is a table and it cannot be believed, or there are two.
pub fn read(disk: &(impl Disk + ?Sized), sector_bytes: Option<u32>) -> Result<Table> {
    let Some(boot) = boot_sector(disk)? else { return Ok(Table::None) };
    // A protective entry says that the table is a GPT (UEFI 2.10, 5.2.3).
    if !boot.iter().any(|entry| entry.kind == 0xEE) {
        return mbr(&boot, u64::from(sector_bytes.unwrap_or(SECTOR_BYTES[0])), disk.size_bytes());
    }
    let sizes = sector_bytes.map_or(SECTOR_BYTES.to_vec(), |size| vec![size]);
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for size in sizes {
        match gpt(disk, size) {
            Ok(Some(table)) => found.push(table),
            Ok(None) => {}
            Err(error) => problems.push(error),
        }
    }
    ensure!(found.len() < 2, "there are partition tables for sectors of 512 and of 4096 bytes");
    match (found.pop(), problems.pop()) {
        (Some(table), _) => Ok(table),
        (None, Some(problem)) => Err(problem),
        (None, None) => bail!(hinted(
            "the partition table is a GPT by its first sector, and there is none",
            "is the image whole? sgdisk(8) --verify tells what is wrong with it",
        )),
    }
}

struct BootEntry {
    bootable: u8,
    kind: u8,
    start: u32,
    count: u32,
}

/// The four entries of the first sector, if it holds a partition table at all.
fn boot_sector(disk: &(impl Disk + ?Sized)) -> Result<Option<Vec<BootEntry>>> {
    let mut sector = [0; 512];
    if disk.size_bytes() < 512 {
        return Ok(None);
    }
    disk.read_at(0, &mut sector).context("reading the first sector")?;
    if sector[510..] != [0x55, 0xAA] {
        return Ok(None);
    }
    let entry = |raw: &[u8]| BootEntry {
        bootable: raw[0],
        kind: raw[4],
        start: u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]),
        count: u32::from_le_bytes([raw[12], raw[13], raw[14], raw[15]]),
    };
    let entries: Vec<_> = sector[446..510].chunks_exact(16).map(entry).collect();
    // Boot sectors of file systems end in the same two bytes; there the entries are code.
    let plausible = entries.iter().all(|entry| matches!(entry.bootable, 0 | 0x80));
    let any = entries.iter().any(|entry| entry.kind != 0);
    Ok((plausible && any).then_some(entries))
}

fn mbr(entries: &[BootEntry], sector_bytes: u64, disk_bytes: u64) -> Result<Table> {
    let mut partitions = Vec::new();
    for (entry, number) in entries.iter().zip(1..) {
        if entry.kind == 0 || entry.count == 0 {
            continue;
        }
        // 32 bits times 4096 fit.
        let partition = Partition {
            number,
            kind: entry.kind,
            id: Guid(0),
            start_bytes: u64::from(entry.start) * sector_bytes,
            size_bytes: u64::from(entry.count) * sector_bytes,
            attributes: u64::from(entry.bootable >> 7),
        };
        partitions.push(partition);
    }
    check_places(&partitions, sector_bytes, disk_bytes)?;
    Ok(Table::Mbr { partitions })
}

/// `None` when there is no header for this sector size at either end.
fn gpt(disk: &(impl Disk + ?Sized), sector_bytes: u32) -> Result<Option<Table>> {
    let size = u64::from(sector_bytes);
    let Some(last) = (disk.size_bytes() / size).checked_sub(1).filter(|last| *last > 1) else {
        return Ok(None);
    };
    let mut problem = None;
    for (at, is_backup) in [(1, false), (last, true)] {
        match half(disk, size, at, last) {
            Ok(Some(partitions)) => {
                return Ok(Some(Table::Gpt { sector_bytes, is_backup, partitions }));
            }
            Ok(None) => {}
            // What is wrong with the first is what the user wants to know.
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    problem.map_or(Ok(None), Err)
}

struct Header {
    first_usable: u64,
    last_usable: u64,
    entries_at: u64,
    entry_count: u64,
    entry_bytes: u64,
    entries_crc: u32,
}

/// One of the two tables, by the sector of its header.
fn half(
    disk: &(impl Disk + ?Sized),
    sector_bytes: u64,
    at: u64,
    last: u64,
) -> Result<Option<Vec<Partition<Guid>>>> {
    let mut sector = vec![0; usize::try_from(sector_bytes).expect("it is 512 or 4096")];
    disk.read_at(at * sector_bytes, &mut sector).context("reading the header of the GPT")?;
    if !sector.starts_with(SIGNATURE) {
        return Ok(None);
    }
    let header = header(&sector, at, last)?;
    let bytes = header.entry_count * header.entry_bytes;
    let start = header.entries_at.checked_mul(sector_bytes).context("locating the entries")?;
    let mut entries = vec![0; usize::try_from(bytes).expect("it is at most 1 MiB")];
    disk.read_at(start, &mut entries).context("reading the entries of the GPT")?;
    ensure!(crc32(&entries) == header.entries_crc, "the checksum of the GPT's entries is wrong");
    let chunks = entries.chunks_exact(usize::try_from(header.entry_bytes).expect("as above"));
    let mut partitions = Vec::new();
    for (raw, number) in chunks.zip(1..) {
        if let Some(partition) = entry(raw, number, &header, sector_bytes)? {
            partitions.push(partition);
        }
    }
    check_places(&partitions, sector_bytes, (last + 1) * sector_bytes)?;
    Ok(Some(partitions))
}

fn header(sector: &[u8], at: u64, last: u64) -> Result<Header> {
    let u32_at =
        |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().expect("four bytes are four"));
    let u64_at = |at: usize| {
        u64::from_le_bytes(sector[at..at + 8].try_into().expect("eight bytes are eight"))
    };
    ensure!(u32_at(8) >> 16 == 1, "the GPT has the unknown revision {:#x}", u32_at(8));
    let length = u32_at(12) as usize;
    ensure!((HEADER_BYTES..=sector.len()).contains(&length), "the GPT's header has {length} bytes");
    let mut summed = sector[..length].to_vec();
    // The sum is taken over a header whose own field for it is zero.
    summed[16..20].fill(0);
    ensure!(crc32(&summed) == u32_at(16), "the checksum of the GPT's header is wrong");
    ensure!(u64_at(24) == at, "the GPT's header says that it is elsewhere");
    let header = Header {
        first_usable: u64_at(40),
        last_usable: u64_at(48),
        entries_at: u64_at(72),
        entry_count: u64::from(u32_at(80)),
        entry_bytes: u64::from(u32_at(84)),
        entries_crc: u32_at(88),
    };
    let Header { first_usable, last_usable, entries_at, entry_count, entry_bytes, .. } = header;
    ensure!(
        last_usable <= last,
        hinted(
            format!("the image ends before its partitions do, at sector {last} of {last_usable}"),
            "was it copied or downloaded only in part?",
        )
    );
    ensure!(first_usable > 1 && first_usable <= last_usable, "the GPT has no room for partitions");
    // 128 times a power of two (UEFI 2.10, table 5-5).
    ensure!(
        entry_bytes >= 128 && entry_bytes.is_power_of_two(),
        "the GPT's entries have {entry_bytes} bytes"
    );
    ensure!(
        entry_count.checked_mul(entry_bytes).is_some_and(|all| all <= MAX_ENTRIES_BYTES),
        "the GPT has {entry_count} entries"
    );
    ensure!(entries_at > 1 && entries_at <= last, "the GPT's entries are not on the disk");
    Ok(header)
}

fn entry(
    raw: &[u8],
    number: u32,
    header: &Header,
    sector_bytes: u64,
) -> Result<Option<Partition<Guid>>> {
    let bytes = |at: usize| raw[at..at + 16].try_into().expect("an entry has 128 bytes or more");
    let u64_at =
        |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().expect("eight bytes are eight"));
    let kind = Guid::of(&bytes(0));
    if kind.0 == 0 {
        return Ok(None);
    }
    let (first, last) = (u64_at(32), u64_at(40));
    ensure!(
        first >= header.first_usable && first <= last && last <= header.last_usable,
        "partition {number} lies outside of the disk's usable part"
    );
    // Both are at most the disk's last sector.
    let (start_bytes, size_bytes) = (first * sector_bytes, (last - first + 1) * sector_bytes);
    let (id, attributes) = (Guid::of(&bytes(16)), u64_at(48));
    Ok(Some(Partition { number, kind, id, start_bytes, size_bytes, attributes }))
}

/// That no partition holds the table, leaves the disk, or shares a byte with another.
fn check_places<K>(partitions: &[Partition<K>], first_bytes: u64, disk_bytes: u64) -> Result<()> {
    let mut sorted: Vec<_> = partitions.iter().collect();
    sorted.sort_by_key(|partition| partition.start_bytes);
    let mut free = (first_bytes, 0);
    for partition in sorted {
        let number = partition.number;
        ensure!(
            partition.start_bytes >= free.0,
            match free.1 {
                0 => format!("partition {number} covers the partition table"),
                other => format!("partitions {other} and {number} overlap"),
            }
        );
        let end = partition.start_bytes.checked_add(partition.size_bytes);
        let end = end.filter(|end| *end <= disk_bytes).with_context(|| {
            hinted(
                format!("partition {number} goes on behind the end of the image"),
                "was it copied or downloaded only in part?",
            )
        })?;
        free = (end, number);
    }
    Ok(())
}

/// CRC-32 as UEFI uses it (ISO 3309, polynomial 0x04C11DB7, bits turned around).
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = (value >> 1) ^ (0xEDB8_8320 & (value & 1).wrapping_neg());
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests;
