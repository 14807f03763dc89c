//! Which ids does a container have? That of the machine, which stays, and that of the boot, which never does.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FileType, OFlags};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::inroot::{InRoot, Links, file_type};

/// A 128-bit id in dashed form.
pub type Id = String;

/// The ids of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// What `container_uuid` says (E-09).
    pub machine: Id,
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

/// The tree's own machine id, if it has one (machine-id(5)). Anything else than 32 hex digits and a line
/// end is none: the file may be empty, say "uninitialized", or be made by someone hostile.
pub fn of_tree(root: &InRoot) -> Option<Id> {
    let path = Path::new("/etc/machine-id");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = root.open(path, Links::Inside, flags).ok()?;
    if file_type(&file).ok()? != FileType::RegularFile {
        return None;
    }
    let mut text = String::new();
    File::from(file).take(34).read_to_string(&mut text).ok()?;
    let digits = text.trim_end_matches('\n');
    let plain = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u128::from_str_radix(digits, 16).ok().filter(|id| plain && *id != 0)?;
    Some(dashed(id))
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

    #[rstest]
    #[case("0123456789abcdef0123456789abcdef\n", Some("01234567-89ab-cdef-0123-456789abcdef"))]
    #[case("", None)]
    #[case("uninitialized\n", None)]
    #[case("00000000000000000000000000000000\n", None)]
    #[case("+123456789abcdef0123456789abcdef", None)]
    #[case("0123456789abcdef0123456789abcdef0", None)]
    fn the_trees_id_is_taken_if_it_is_one(#[case] text: &str, #[case] expected: Option<&str>) {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("etc")).unwrap();
        fs::write(tree.path().join("etc/machine-id"), text).unwrap();
        let root = InRoot::new(fs::File::open(tree.path()).unwrap().into());
        assert_eq!(of_tree(&root).as_deref(), expected);
    }
}
