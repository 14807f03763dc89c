//! 500 images whose tables were changed at random, with the same seeds each time: a right run or a clear refusal, in
//! little memory. The reader alone is shown 20,000 (src/root/gpt/tests.rs).

use anyhow::{Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::gpt::{self, kind};
use harness::fixture::image::{Fs, Image};
use harness::guest::Guest;

use crate::image::{EXT4, LOOP, OURS, container, disk, root};

// They take long, so that several guests have a share of them.
cases![
    images_mutated_by_seed_1_do_no_harm: [OURS, LOOP, EXT4, PRLIMIT] within 150,
    images_mutated_by_seed_2_do_no_harm: [OURS, LOOP, EXT4, PRLIMIT] within 150,
    images_mutated_by_seed_3_do_no_harm: [OURS, LOOP, EXT4, PRLIMIT] within 150,
    images_mutated_by_seed_4_do_no_harm: [OURS, LOOP, EXT4, PRLIMIT] within 150,
];

/// Bounds the address space.
const PRLIMIT: Need = Need::Tool("prlimit");
/// For each seed.
const IMAGES: u32 = 125;
const SECTOR: usize = 512;
const ENTRIES: usize = 2 * SECTOR;
const ENTRY: usize = 128;

/// Always the same numbers (Marsaglia's xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap_or(0)
    }
}

/// The sectors with the tables: what is changed, and put back.
struct Tables {
    start: Vec<u8>,
    end: Vec<u8>,
}

fn mutate(random: &mut Random, tables: &mut Tables) {
    const INTERESTING: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xee, 0xfe, 0xff];
    let (mut sealed, last) = (false, tables.end.len() - SECTOR);
    for _ in 0..=random.below(4) {
        let value = match random.below(3) {
            0 => u8::try_from(random.below(256)).unwrap_or(0),
            _ => INTERESTING[random.below(INTERESTING.len())],
        };
        match random.below(6) {
            0 => tables.start[446 + random.below(66)] = value,
            1 => tables.start[SECTOR + random.below(92)] = value,
            2 => tables.end[last + random.below(92)] = value,
            3 => tables.end[last..].fill(0),
            at => {
                let place = if at == 4 { ENTRIES } else { SECTOR };
                tables.start[place + random.below(if at == 4 { 3 * ENTRY } else { 92 })] = value;
                sealed = true;
            }
        }
    }
    if sealed {
        gpt::seal(&mut tables.start);
    }
}

/// IMG-10, IMG-16, R14 of the security rules.
fn images_mutated_by_seed_1_do_no_harm(t: &Guest) -> Result<()> {
    mutated_images_do_no_harm(t, 0x5EED_0001)
}

/// As with the first seed.
fn images_mutated_by_seed_2_do_no_harm(t: &Guest) -> Result<()> {
    mutated_images_do_no_harm(t, 0x5EED_0002)
}

/// As with the first seed.
fn images_mutated_by_seed_3_do_no_harm(t: &Guest) -> Result<()> {
    mutated_images_do_no_harm(t, 0x5EED_0003)
}

/// As with the first seed.
fn images_mutated_by_seed_4_do_no_harm(t: &Guest) -> Result<()> {
    mutated_images_do_no_harm(t, 0x5EED_0004)
}

/// The address space of the launcher is bounded to 64 MiB.
fn mutated_images_do_no_harm(t: &Guest, seed: u64) -> Result<()> {
    let tree = root(t).build()?;
    let image: Image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .raw(kind::HOME, b"")
        .raw(kind::SWAP, b"")
        .build()?;
    let bytes = std::fs::read(image.path())?;
    let tail = bytes.len() - 33 * SECTOR;
    let whole = || Tables { start: bytes[..34 * SECTOR].to_vec(), end: bytes[tail..].to_vec() };
    let mut random = Random(seed);
    let (mut ran, mut refused) = (0, 0);
    for round in 0..IMAGES {
        let mut tables = whole();
        mutate(&mut random, &mut tables);
        image.patch(0, &tables.start)?;
        image.patch(tail as u64, &tables.end)?;
        let run = container(t, image.path())
            .through(&["prlimit", "--as=67108864"])
            .args(["--image-policy=root=open:=ignore", "--read-only"])
            .run(&["/bin/true"])?;
        ensure!(!run.stderr.contains("panic") && !run.stderr.contains("a bug"), "{round}\n{run}");
        match run.status.code() {
            Some(0) => ran += 1,
            Some(1) => {
                ensure!(run.stderr.contains("rspawn: "), "{round}: nothing is said of it\n{run}");
                let memory = run.stderr.contains("memory") || run.stderr.contains("(os error 12)");
                ensure!(!memory, "{round}: it wanted more memory\n{run}");
                refused += 1;
            }
            _ => anyhow::bail!("{round}: neither a right run nor a refusal\n{run}"),
        }
    }
    ensure!(ran > 10 && refused > 10, "{ran} ran and {refused} were refused");
    Ok(())
}
