//! Is each partition told by its type, and the right one taken?

use super::*;
use Programs::{Native, Secondary};
use rstest::rstest;

const ROOT: u128 = X86_64[0];
const ROOT_32: u128 = X86[0];
const USR: u128 = X86_64[1];
const USR_32: u128 = X86[1];
const HOME: u128 = KINDS[0].0;
const SRV: u128 = KINDS[1].0;
const VAR: u128 = KINDS[2].0;
const TMP: u128 = KINDS[3].0;
const ESP: u128 = KINDS[4].0;
const BOOT: u128 = KINDS[5].0;
const SWAP: u128 = 0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f;
const PC: Architecture = Architecture { native: X86_64, secondary: Some(X86) };

fn table(kinds: &[(u128, u64)]) -> Table {
    let partition = |(&(kind, attributes), number): (&(u128, u64), u32)| Partition {
        number,
        kind: Guid(kind),
        id: Guid(u128::from(number)),
        start_bytes: u64::from(number) << 20,
        size_bytes: 1 << 20,
        attributes,
    };
    let partitions = kinds.iter().zip(1..).map(partition).collect();
    Table::Gpt { sector_bytes: 512, is_backup: false, partitions }
}

fn found(layout: &Layout) -> Vec<(&'static str, u32)> {
    layout.used.iter().map(|used| (used.role.name(), used.number.unwrap_or(0))).collect()
}

/// IMG-11, IMG-12, IMG-14, IMG-15, IMG-19, IMG-21, IMG-22.
#[rstest]
#[case::root_alone(&[(ROOT, 0)], &[("root", 1)], Native)]
#[case::the_lowest_number_wins(&[(SWAP, 0), (ROOT, 0), (ROOT, 0)], &[("root", 2)], Native)]
#[case::all_in_mounting_order(
    &[(ESP, 0), (BOOT, 0), (TMP, 0), (VAR, 0), (SRV, 0), (HOME, 0), (USR, 0), (ROOT, 0)],
    &[("root", 8), ("usr", 7), ("home", 6), ("srv", 5), ("var", 4), ("tmp", 3), ("xbootldr", 2), ("esp", 1)],
    Native
)]
#[case::native_is_preferred(&[(ROOT_32, 0), (ROOT, 0)], &[("root", 2)], Native)]
#[case::secondary_if_there_is_no_other(
    &[(ROOT_32, 0), (USR_32, 0), (USR, 0)], &[("root", 1), ("usr", 2)], Secondary
)]
#[case::a_usr_of_the_other_kind_is_left(&[(ROOT, 0), (USR_32, 0)], &[("root", 1)], Native)]
#[case::no_auto_is_skipped(&[(ROOT, NO_AUTO), (ROOT, 0), (HOME, NO_AUTO)], &[("root", 2)], Native)]
#[case::swap_and_unknown_are_left(&[(SWAP, 0), (0x1234, 0), (ROOT, 0)], &[("root", 3)], Native)]
#[case::one_generic(&[(SWAP, 0), (LINUX, 0)], &[("root", 2)], Native)]
#[case::generic_beside_a_root_is_left(&[(LINUX, 0), (ROOT, 0)], &[("root", 2)], Native)]
#[case::generic_that_is_not_auto_is_left(&[(LINUX, NO_AUTO), (LINUX, 0)], &[("root", 2)], Native)]
fn partitions_are_told_by_type(
    #[case] kinds: &[(u128, u64)],
    #[case] expected: &[(&str, u32)],
    #[case] programs: Programs,
) {
    let layout = discover(&table(kinds), Some(PC), &RootHashes::default(), None).unwrap();
    assert_eq!((found(&layout).as_slice(), layout.programs), (expected, programs));
}

/// IMG-13, and the flag for growing.
#[test]
fn flags_of_a_partition_are_kept() {
    let layout = discover(
        &table(&[(ROOT, READ_ONLY), (HOME, GROW_FS)]),
        Some(PC),
        &RootHashes::default(),
        None,
    )
    .unwrap();
    let flags: Vec<_> = layout.used.iter().map(|used| (used.read_only, used.grow)).collect();
    assert_eq!(flags, [(true, false), (false, true)]);
}

/// IMG-10, IMG-16.
#[rstest]
#[case::none(&[])]
#[case::two_generic(&[(LINUX, 0), (LINUX, 0)])]
#[case::another_machines(&[(ARM64[0], 0)])]
#[case::usr_alone(&[(USR, 0)])]
fn without_a_root_the_forms_of_an_image_are_listed(#[case] kinds: &[(u128, u64)]) {
    let report = crate::errors::Report::of(
        &discover(&table(kinds), Some(PC), &RootHashes::default(), None).unwrap_err(),
    );
    assert!(report.chain.contains("no root partition"), "{}", report.chain);
    assert!(report.hint.unwrap().contains("bootable Linux partition"));
}

/// IMG-10 a and d, I-04.
#[rstest]
#[case(&[(0x83, 1)], Some(1))]
#[case(&[(0x82, 0), (0x83, 0), (0x83, 1)], Some(3))]
#[case(&[(0x83, 0)], None)]
#[case(&[(0x83, 1), (0x83, 1)], None)]
fn an_mbr_has_one_bootable_partition(#[case] kinds: &[(u8, u64)], #[case] root: Option<u32>) {
    let partition = |(&(kind, attributes), number)| Partition {
        number,
        kind,
        id: Guid(0),
        start_bytes: u64::from(number) << 20,
        size_bytes: 1 << 20,
        attributes,
    };
    let table = Table::Mbr { partitions: kinds.iter().zip(1..).map(partition).collect() };
    let found = discover(&table, Some(PC), &RootHashes::default(), None)
        .ok()
        .map(|layout| layout.used[0].number);
    assert_eq!(found.flatten(), root);
}

#[test]
fn a_bare_file_system_is_the_root() {
    assert_eq!(
        found(&discover(&Table::None, None, &RootHashes::default(), None).unwrap()),
        [("root", 0)]
    );
}

const ROOT_TREE: u128 = X86_64[2];
const USR_TREE: u128 = X86_64[3];

fn hash(halves: [u128; 2]) -> RootHash {
    format!("{:032x}{:032x}", halves[0], halves[1]).parse().unwrap()
}

/// I-10: numbers of [`table`] are ids too, so a root hash of 3 and 4 names these partitions.
#[rstest]
#[case::by_its_halves(&[(ROOT_TREE, 0), (ROOT, 0), (ROOT, 0), (ROOT_TREE, 0)], [3, 4], (3, 4))]
#[case::or_the_lowest_numbers(&[(ROOT_TREE, 0), (ROOT, 0), (ROOT, 0)], [7, 8], (2, 1))]
fn a_root_hash_names_its_partitions(
    #[case] kinds: &[(u128, u64)],
    #[case] halves: [u128; 2],
    #[case] expected: (u32, u64),
) {
    let hashes = RootHashes { root: Some(hash(halves)), ..RootHashes::default() };
    let layout = discover(&table(kinds), Some(PC), &hashes, None).unwrap();
    let root = &layout.used[0];
    let tree = root.hash_tree.unwrap().start_bytes >> 20;
    assert_eq!((root.number, tree), (Some(expected.0), expected.1));
    assert_eq!(root.protection, Protection::Verity);
}

/// I-10, IMG-23.
#[test]
fn without_a_root_hash_nothing_is_verified_and_without_data_nothing_can_be() {
    let both = table(&[(ROOT, 0), (ROOT_TREE, 0), (USR, 0), (USR_TREE, 0)]);
    let layout = discover(&both, Some(PC), &RootHashes::default(), None).unwrap();
    let kinds: Vec<_> = layout.used.iter().map(|used| used.protection).collect();
    assert_eq!(kinds, [Protection::None; 2]);
    let usr = RootHashes { usr: Some(hash([9, 9])), ..RootHashes::default() };
    let layout = discover(&both, Some(PC), &usr, None).unwrap();
    let kinds: Vec<_> = layout.used.iter().map(|used| used.protection).collect();
    assert_eq!(kinds, [Protection::None, Protection::Verity]);
    let root = RootHashes { root: Some(hash([9, 9])), ..RootHashes::default() };
    let bare = |hashes: &RootHashes| discover(&table(&[(ROOT, 0)]), Some(PC), hashes, None);
    assert!(bare(&root).unwrap_err().to_string().contains("no dm-verity data"));
    let elsewhere = RootHashes { data_is_elsewhere: true, signed: true, ..root };
    assert_eq!(bare(&elsewhere).unwrap().used[0].protection, Protection::Signed);
}
