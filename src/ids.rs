//! Which ids does a container have? That of the machine, which stays, and that of the boot, which never does.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::inroot::InRoot;

/// A 128-bit id in dashed form.
pub type Id = String;

/// The ids of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// What `container_uuid` says (E-09).
    pub machine: Id,
    /// Whether the next run has the same, since the tree or the user gave it.
    pub machine_stays: bool,
    /// What /proc/sys/kernel/random/boot_id says (DEV-07).
    pub boot: Id,
}

/// A random id (RFC 9562, version 4).
pub fn random() -> Result<Id> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("asking for random bytes")?;
    let id = u128::from_be_bytes(bytes);
    let version = 0x4 << 76;
    let variant = 0b10 << 62;
    Ok(dashed((id & !(0xf << 76) & !(0b11 << 62)) | version | variant))
}

/// What a tree's /etc/machine-id says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OfTree {
    /// An id.
    Id(Id),
    /// That it has none yet: no such file, an empty one, or "uninitialized" (machine-id(5), FIRST BOOT
    /// SEMANTICS).
    None,
    /// Something else: no regular file, or no id.
    Garbage,
}

/// Reads the tree's own machine id. The file may be made by someone hostile, so a pipe is not waited for, a
/// device is not opened, and no more is read than an id is long (R3).
pub fn of_tree(root: &InRoot) -> OfTree {
    let mut text = String::new();
    let read = root.open_regular(Path::new("/etc/machine-id"));
    match read.and_then(|file| File::from(file).take(34).read_to_string(&mut text)) {
        Ok(_) => parse(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => OfTree::None,
        Err(_) => OfTree::Garbage,
    }
}

fn parse(text: &str) -> OfTree {
    let word = text.strip_suffix('\n').unwrap_or(text);
    if matches!(word, "" | "uninitialized") {
        return OfTree::None;
    }
    let plain = word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u128::from_str_radix(word, 16) {
        Ok(id @ 1..) if plain => OfTree::Id(dashed(id)),
        _ => OfTree::Garbage,
    }
}

fn dashed(id: u128) -> Id {
    let hex = format!("{id:032x}");
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::fs;

    #[test]
    fn a_random_id_has_its_version_and_differs_from_the_next() {
        let (one, other) = (random().unwrap(), random().unwrap());
        assert_eq!((one.len(), &one[14..15]), (36, "4"));
        assert!("89ab".contains(&one[19..20]), "{one}");
        assert_ne!(one, other);
    }

    /// P-01, HST-03 a; systemd-nspawn 252 refuses to start where this finds garbage.
    #[rstest]
    #[case("0123456789abcdef0123456789abcdef\n", id("01234567-89ab-cdef-0123-456789abcdef"))]
    #[case("0123456789ABCDEF0123456789abcdef", id("01234567-89ab-cdef-0123-456789abcdef"))]
    #[case("", OfTree::None)]
    #[case("\n", OfTree::None)]
    #[case("uninitialized\n", OfTree::None)]
    #[case("00000000000000000000000000000000\n", OfTree::Garbage)]
    #[case("01234567-89ab-cdef-0123-456789abcdef\n", OfTree::Garbage)]
    #[case("+123456789abcdef0123456789abcdef", OfTree::Garbage)]
    #[case("0123456789abcdef0123456789abcdef0", OfTree::Garbage)]
    #[case("0123456789abcdef0123456789abcde\n\n", OfTree::Garbage)]
    fn the_trees_id_is_taken_if_it_is_one(#[case] text: &str, #[case] expected: OfTree) {
        let (tree, root) = tree();
        fs::write(tree.path().join("etc/machine-id"), text).unwrap();
        assert_eq!(of_tree(&root), expected);
    }

    #[test]
    fn a_tree_without_the_file_has_no_id_and_one_with_a_pipe_has_garbage() {
        let (tree, root) = tree();
        assert_eq!(of_tree(&root), OfTree::None);
        let path = tree.path().join("etc/machine-id");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(of_tree(&root), OfTree::Garbage);
    }

    fn id(text: &str) -> OfTree {
        OfTree::Id(text.to_owned())
    }

    fn tree() -> (tempfile::TempDir, InRoot) {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("etc")).unwrap();
        let root = InRoot::new(fs::File::open(tree.path()).unwrap().into());
        (tree, root)
    }
}
