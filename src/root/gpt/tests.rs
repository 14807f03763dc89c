//! Are tables read as they were written, and are damaged ones refused?

use std::cell::Cell;
use std::io::Cursor;

use harness::fixture::gpt::{self as fixture, Part, flag, kind};
use rstest::rstest;

use super::*;

const KIB: u64 = 1 << 10;

fn part(number: u32, kind: &str, flags: u64) -> Part<'_> {
    Part { number, kind, flags, size_bytes: 64 * KIB }
}

fn disk(sector_bytes: u64, parts: &[Part<'_>]) -> Vec<u8> {
    let blank = vec![0; usize::try_from(fixture::disk_bytes(parts)).unwrap()];
    fixture::write(Cursor::new(blank), sector_bytes, parts).unwrap().0.into_inner()
}

fn two() -> Vec<u8> {
    disk(512, &[part(1, kind::ROOT, 0), part(2, kind::HOME, flag::READ_ONLY)])
}

fn refusal(bytes: &[u8]) -> String {
    format!("{:#}", read(bytes, None).unwrap_err())
}

/// Sets bytes of the primary header, or of the backup, and corrects its checksum.
fn patch(disk: &mut [u8], header: usize, at: usize, bytes: &[u8]) {
    disk[header + at..header + at + bytes.len()].copy_from_slice(bytes);
    let length = u32::from_le_bytes(disk[header + 12..header + 16].try_into().unwrap()) as usize;
    if (HEADER_BYTES..=512).contains(&length) {
        disk[header + 16..header + 20].fill(0);
        let sum = crc32(&disk[header..header + length]);
        disk[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Sets bytes of the first table's entries, and corrects both checksums.
fn patch_entries(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
    let sum = crc32(&disk[1024..1024 + 128 * 128]);
    patch(disk, 512, 88, &sum.to_le_bytes());
}

fn without_backup(mut disk: Vec<u8>) -> Vec<u8> {
    let last = disk.len() - 512;
    disk[last..].fill(0);
    disk
}

#[rstest]
#[case(512)]
#[case(4096)]
fn a_table_is_read_as_it_was_written(#[case] sector: u64) {
    let bytes = disk(sector, &[part(2, kind::ROOT, 0), part(1, kind::HOME, flag::READ_ONLY)]);
    let Table::Gpt { sector_bytes, is_backup, partitions } = read(&*bytes, None).unwrap() else {
        panic!()
    };
    assert_eq!((u64::from(sector_bytes), is_backup), (sector, false));
    let found: Vec<_> = partitions
        .iter()
        .map(|p| (p.number, p.kind.to_string(), p.start_bytes, p.size_bytes, p.attributes))
        .collect();
    assert_eq!(
        found,
        [
            (1, kind::HOME.to_owned(), 128 * KIB, 64 * KIB, flag::READ_ONLY),
            (2, kind::ROOT.to_owned(), 64 * KIB, 64 * KIB, 0),
        ]
    );
}

#[test]
fn a_device_of_other_sectors_has_no_table() {
    assert!(read(&*disk(512, &[part(1, kind::ROOT, 0)]), Some(4096)).is_err());
}

#[test]
fn the_backup_serves_when_the_first_header_is_damaged() {
    let mut bytes = two();
    bytes[512 + 40] ^= 1;
    let Table::Gpt { is_backup, partitions, .. } = read(&*bytes, None).unwrap() else { panic!() };
    assert_eq!((is_backup, partitions.len()), (true, 2));
    let last = bytes.len() - 512;
    bytes[last + 40] ^= 1;
    assert_eq!(refusal(&bytes), "the checksum of the GPT's header is wrong");
}

#[test]
fn the_backup_serves_when_the_first_entries_are_damaged() {
    let mut bytes = two();
    bytes[1024] ^= 1;
    assert!(matches!(read(&*bytes, None).unwrap(), Table::Gpt { is_backup: true, .. }));
    assert_eq!(refusal(&without_backup(bytes)), "the checksum of the GPT's entries is wrong");
}

#[rstest]
#[case::revision(8, &[0, 0, 2, 0], "unknown revision")]
#[case::short_header(12, &[91, 0, 0, 0], "header has 91 bytes")]
#[case::long_header(12, &[1, 2, 0, 0], "header has 513 bytes")]
#[case::elsewhere(24, &[2], "says that it is elsewhere")]
#[case::no_room(40, &[0xff, 0xff], "no room for partitions")]
#[case::many_entries(80, &[0xff, 0xff, 0xff, 0xff], "has 4294967295 entries")]
#[case::huge_entries(84, &[0, 0, 0, 0x80], "entries")]
#[case::odd_entries(84, &[129], "entries have 129 bytes")]
#[case::no_entry_size(84, &[0], "entries have 0 bytes")]
#[case::entries_elsewhere(72, &[0, 0, 0, 0, 0, 0, 0, 0x80], "entries are not on the disk")]
fn a_header_that_lies_is_refused(#[case] at: usize, #[case] to: &[u8], #[case] why: &str) {
    let mut bytes = without_backup(two());
    patch(&mut bytes, 512, at, to);
    let text = refusal(&bytes);
    assert!(text.contains(why), "{text}");
}

#[test]
fn partitions_that_overlap_are_refused() {
    let mut bytes = without_backup(two());
    let first = bytes[1024 + 32..1024 + 40].to_vec();
    patch_entries(&mut bytes, 128 + 32, &first);
    assert_eq!(refusal(&bytes), "partitions 1 and 2 overlap");
}

#[test]
fn a_partition_outside_of_the_disk_is_refused() {
    let mut bytes = without_backup(two());
    patch_entries(&mut bytes, 128 + 40, &[0xff; 8]);
    assert_eq!(refusal(&bytes), "partition 2 lies outside of the disk's usable part");
}

#[test]
fn a_partition_that_ends_before_it_starts_is_refused() {
    let mut bytes = without_backup(two());
    patch_entries(&mut bytes, 40, &[0; 8]);
    assert_eq!(refusal(&bytes), "partition 1 lies outside of the disk's usable part");
}

#[test]
fn a_truncated_disk_is_told_as_such() {
    let whole = two();
    for length in (4096..whole.len()).step_by(64 << 10) {
        let text = refusal(&whole[..length]);
        assert!(text.contains("ends before its partitions do"), "{length}: {text}");
    }
}

#[test]
fn an_old_table_is_read_when_no_entry_is_protective() {
    let mut bytes = vec![0; 1 << 20];
    bytes[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0, 0]);
    assert_eq!(read(&*bytes, None).unwrap(), Table::None);
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    let partition = Partition {
        number: 1,
        kind: 0x83,
        id: Guid(0),
        start_bytes: 4096,
        size_bytes: 8192,
        attributes: 1,
    };
    assert_eq!(read(&*bytes, None).unwrap(), Table::Mbr { partitions: vec![partition] });
    bytes[454..458].fill(0);
    assert_eq!(refusal(&bytes), "partition 1 covers the partition table");
}

#[test]
fn the_boot_code_of_a_file_system_is_no_table() {
    let mut bytes = vec![0x90; 4096];
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(read(&*bytes, None).unwrap(), Table::None);
    assert_eq!(read(&bytes[..100], None).unwrap(), Table::None);
}

#[test]
fn a_gpt_without_its_headers_is_no_bare_file_system() {
    let mut bytes = without_backup(two());
    bytes[512..1024].fill(0);
    assert!(refusal(&bytes).contains("there is none"));
}

/// Sees how much is read at once: what is read is what was allocated.
struct Watched<'a> {
    bytes: &'a [u8],
    largest: Cell<usize>,
    reads: Cell<usize>,
}

impl Disk for Watched<'_> {
    fn size_bytes(&self) -> u64 {
        self.bytes.size_bytes()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.largest.set(self.largest.get().max(to.len()));
        self.reads.set(self.reads.get() + 1);
        self.bytes.read_at(offset, to)
    }
}

/// Always the same numbers (Marsaglia's xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }
}

#[test]
fn no_mutated_table_takes_more_than_little_memory_or_time() {
    let mut random = Random(0x5EED);
    let (mut accepted, mut refused) = (0, 0);
    let sound =
        [512, 4096].map(|sector| disk(sector, &[part(1, kind::ROOT, 0), part(2, kind::HOME, 0)]));
    for round in 0..20_000 {
        let sector = [512, 4096][round % 2];
        let mut bytes = sound[round % 2].clone();
        let header = [sector, bytes.len() - 512][random.below(2)];
        for _ in 0..=random.below(4) {
            let interesting = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
            let value = [interesting[random.below(6)]];
            match random.below(4) {
                0 => bytes[random.below(512)] = value[0],
                1 => bytes[header + random.below(HEADER_BYTES)] = value[0],
                2 if sector == 512 => patch_entries(&mut bytes, random.below(256), &value),
                // With a right checksum, so that what lies behind it is reached.
                _ => patch(&mut bytes, header, random.below(HEADER_BYTES), &value),
            }
        }
        let end = if random.below(8) == 0 { random.below(bytes.len()) } else { bytes.len() };
        let watched = Watched { bytes: &bytes[..end], largest: Cell::new(0), reads: Cell::new(0) };
        match read(&watched, None) {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
        assert!(watched.largest.get() <= 1 << 20 && watched.reads.get() <= 9);
    }
    // Both ways were taken often.
    assert!(accepted > 1000 && refused > 1000, "{accepted} accepted, {refused} refused");
}
