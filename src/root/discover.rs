//! Which partition is what? A partition table and a policy in, the partitions that are used out. Pure.
//!
//! Kinds are told by the type ids of the Discoverable Partitions Specification (UAPI.2). The lowest number of a
//! kind wins (IMG-14); swap and what is not known is never used (IMG-21).

use std::fmt;

use anyhow::{Result, bail, ensure};

use super::gpt::{Guid, Partition, Table};
use super::policy;
use crate::errors::hinted;
use crate::settings::value::{ImagePolicy, RootHash};

/// What a partition is for. In the order in which they are mounted, so that what lies on another comes
/// after it (IMG-19).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The root.
    Root,
    /// `/usr`.
    Usr,
    /// `/home`.
    Home,
    /// `/srv`.
    Srv,
    /// `/var`.
    Var,
    /// `/var/tmp`.
    Tmp,
    /// The Extended Boot Loader Partition, on `/boot`; before the ESP, which may lie in it.
    Xbootldr,
    /// The EFI System Partition, on `/efi` or `/boot` (IMG-20).
    Esp,
}

impl Role {
    /// As an image policy calls it, and we in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Usr => "usr",
            Self::Home => "home",
            Self::Srv => "srv",
            Self::Var => "var",
            Self::Tmp => "tmp",
            Self::Esp => "esp",
            Self::Xbootldr => "xbootldr",
        }
    }

    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::Root,
        Self::Usr,
        Self::Home,
        Self::Srv,
        Self::Var,
        Self::Tmp,
        Self::Xbootldr,
        Self::Esp,
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose programs a root or /usr holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Programs {
    /// This machine's.
    Native,
    /// The 32-bit ones that it runs too (IMG-15).
    Secondary,
}

/// A processor, with the ids that the specification gives its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    native: Ids,
    secondary: Option<Ids>,
}

/// Type ids of root, of /usr, and of the dm-verity data of each.
type Ids = [u128; 4];

const X86_64: Ids = [
    0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709,
    0x8484680c_9521_48c6_9c11_b0720656f69e,
    0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5,
    0x77ff5f63_e7b6_4633_acf4_1565b864c0e6,
];
const X86: Ids = [
    0x44479540_f297_41b2_9af7_d131d5f0458a,
    0x75250d76_8cc6_458e_bd66_bd47cc81a812,
    0xd13c5d3b_b5d1_422a_b29f_9454fdc89d76,
    0x8f461b0d_14ee_4e81_9aa9_049b6fb97abd,
];
const ARM64: Ids = [
    0xb921b045_1df0_41c3_af44_4c6f280d3fae,
    0xb0e01050_ee5f_4390_949a_9101b17104e9,
    0xdf3300ce_d69f_4c92_978c_9bfb0f38d820,
    0x6e11a4e7_fbca_4ded_b9e9_e1a512bb664e,
];
const ARM: Ids = [
    0x69dad710_2ce4_4e3c_b16c_21a1d49abed3,
    0x7d0359a3_02b3_4f0a_865c_654403e70625,
    0x7386cdf2_203c_47a9_a498_f2ecce45a2d6,
    0xc215d751_7bcd_4649_be90_6627490a4c05,
];
const RISCV64: Ids = [
    0x72ec70a6_cf74_40e6_bd49_4bda08e8f224,
    0xbeaec34b_8442_439b_a40b_984381ed097d,
    0xb6ed5582_440b_4209_b8da_5ff7c419ea3d,
    0x8f1056be_9b05_47c4_81d6_be53128e5b54,
];

const KINDS: [(u128, Role); 6] = [
    (0x933ac7e1_2eb4_4f13_b844_0e14e2aef915, Role::Home),
    (0x3b8f8425_20e0_4f3b_907f_1a25a76f98e8, Role::Srv),
    (0x4d21b016_b534_45c2_a9fb_5c16e091fd2d, Role::Var),
    (0x7ec6f557_3bc5_4aca_b293_16ef5df639d1, Role::Tmp),
    (0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b, Role::Esp),
    (0xbc13c2ff_59e6_4262_a352_b275fd6f7172, Role::Xbootldr),
];

/// Any Linux file system.
const LINUX: u128 = 0x0fc63daf_8483_4772_8e79_3d69d8477de4;
/// The type byte of the same in an MBR.
const MBR_LINUX: u8 = 0x83;

const NO_BLOCK_IO: u64 = 1 << 1;
const GROW_FS: u64 = 1 << 59;
const READ_ONLY: u64 = 1 << 60;
const NO_AUTO: u64 = 1 << 63;

impl Architecture {
    /// That which this program was built for; `None` where the specification's ids are not known to us.
    pub const fn ours() -> Option<Self> {
        let (native, secondary) = if cfg!(target_arch = "x86_64") {
            (X86_64, Some(X86))
        } else if cfg!(target_arch = "aarch64") {
            (ARM64, Some(ARM))
        } else if cfg!(target_arch = "x86") {
            (X86, None)
        } else if cfg!(target_arch = "arm") {
            (ARM, None)
        } else if cfg!(target_arch = "riscv64") {
            (RISCV64, None)
        } else {
            return None;
        };
        Some(Self { native, secondary })
    }

    fn kind(self, id: Guid) -> Option<(Kind, Programs)> {
        let kinds = [
            Kind::Content(Role::Root),
            Kind::Content(Role::Usr),
            Kind::HashTree(Role::Root),
            Kind::HashTree(Role::Usr),
        ];
        let both = [(Some(self.native), Programs::Native), (self.secondary, Programs::Secondary)];
        for (ids, programs) in both {
            let at = ids.and_then(|ids| ids.iter().position(|known| *known == id.0));
            if let Some(at) = at {
                return Some((kinds[at], programs));
            }
        }
        let known = KINDS.iter().find(|(known, _)| *known == id.0);
        known.map(|(_, role)| (Kind::Content(*role), Programs::Native))
    }
}

/// What is in a partition, by its type id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Its file system.
    Content(Role),
    /// The dm-verity data of that.
    HashTree(Role),
}

/// How a file system is kept from being changed by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protection {
    /// Not at all.
    None,
    /// Each block of it is checked against a root hash (dm-verity).
    Verity,
    /// The same, and the kernel trusts who signed the hash.
    Signed,
}

impl Protection {
    /// As an image policy calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "unprotected",
            Self::Verity => "verity",
            Self::Signed => "signed",
        }
    }
}

/// What is known of an image from outside of it (I-10).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootHashes {
    /// That of the root.
    pub root: Option<RootHash>,
    /// That of /usr.
    pub usr: Option<RootHash>,
    /// Whether that of the root is signed.
    pub signed: bool,
    /// Whether the dm-verity data of the root is somewhere else than in the image.
    pub data_is_elsewhere: bool,
}

impl RootHashes {
    /// That of a role.
    pub fn of(&self, role: Role) -> Option<&RootHash> {
        match role {
            Role::Root => self.root.as_ref(),
            Role::Usr => self.usr.as_ref(),
            _ => None,
        }
    }

    /// Which partition of a kind is meant, where a root hash tells: its halves are the ids of the two partitions
    /// (UAPI.2, "Partition Types").
    fn id(&self, kind: Kind) -> Option<Guid> {
        let (hash, is_tree) = match kind {
            Kind::Content(role) => (self.of(role)?, false),
            Kind::HashTree(role) => (self.of(role)?, true),
        };
        let half = match is_tree {
            false => hash.bytes().first_chunk()?,
            true => hash.bytes().last_chunk()?,
        };
        Some(Guid(u128::from_be_bytes(*half)))
    }
}

/// A partition that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// For what.
    pub role: Role,
    /// Its number in the table; `None` when the image is one file system.
    pub number: Option<u32>,
    /// Where it starts, in bytes.
    pub start_bytes: u64,
    /// How long it is, in bytes; `None` is all that there is.
    pub size_bytes: Option<u64>,
    /// It says so itself (IMG-13).
    pub read_only: bool,
    /// Its file system is to be grown to its size.
    pub grow: bool,
    /// How it is protected. What is, is only read.
    pub protection: Protection,
    /// Where the dm-verity data of it is, if that is in the image.
    pub hash_tree: Option<Place>,
}

/// A piece of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it starts, in bytes.
    pub start_bytes: u64,
    /// How long it is, in bytes.
    pub size_bytes: u64,
}

/// What of an image is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In the order in which they are mounted; the first is the root.
    pub used: Vec<Used>,
    /// Whose programs they hold.
    pub programs: Programs,
}

/// Finds the partitions of an image.
///
/// # Errors
/// When there is no root (IMG-16), it is not clear which it is, or the policy forbids what there is.
pub fn discover(
    table: &Table,
    architecture: Option<Architecture>,
    hashes: &RootHashes,
    policy: Option<&ImagePolicy>,
) -> Result<Layout> {
    let mut layout = match table {
        Table::None => Layout { used: vec![bare()], programs: Programs::Native },
        Table::Mbr { partitions } => only_bootable(partitions)?,
        Table::Gpt { partitions, .. } => by_type(partitions, architecture, hashes)?,
    };
    protect(&mut layout, hashes)?;
    if let Some(policy) = policy {
        policy::apply(policy, &mut layout)?;
    }
    ensure!(
        layout.used.first().is_some_and(|used| used.role == Role::Root),
        no_root("the image policy leaves no root partition")
    );
    Ok(layout)
}

/// The image is one file system (IMG-10 d).
fn bare() -> Used {
    Used {
        role: Role::Root,
        number: None,
        start_bytes: 0,
        size_bytes: None,
        read_only: false,
        grow: false,
        protection: Protection::None,
        hash_tree: None,
    }
}

fn no_root(what: &str) -> crate::errors::Hinted {
    hinted(
        what,
        "an image is a GPT with a root partition of this machine's type (Discoverable Partitions \
         Specification) or one generic Linux partition, an MBR with one bootable Linux partition, or \
         a file system alone",
    )
}

fn only_bootable(partitions: &[Partition<u8>]) -> Result<Layout> {
    let wanted = |p: &&Partition<u8>| p.kind == MBR_LINUX && p.attributes == 1;
    let found: Vec<_> = partitions.iter().filter(wanted).collect();
    match found[..] {
        [one] => Ok(Layout { used: vec![used(one, Role::Root)], programs: Programs::Native }),
        [] => bail!(no_root("no root partition: the MBR has no bootable Linux partition")),
        _ => bail!(no_root("it is not clear which is the root: several partitions can be booted")),
    }
}

fn by_type(
    partitions: &[Partition<Guid>],
    architecture: Option<Architecture>,
    hashes: &RootHashes,
) -> Result<Layout> {
    let mut known: Vec<((Kind, Programs), &Partition<Guid>)> = Vec::new();
    for partition in partitions {
        let kind = architecture.and_then(|known| known.kind(partition.kind));
        let Some((kind, programs)) = kind else { continue };
        let skipped = if kind == Kind::Content(Role::Esp) { NO_BLOCK_IO } else { NO_AUTO };
        if partition.attributes & skipped == 0 {
            known.push(((kind, programs), partition));
        }
    }
    // Numbers ascend, so the first of a kind has the lowest; one that the root hash names comes before it.
    let pick = |kind, programs| {
        let mut fitting = known.iter().filter(|(k, _)| *k == (kind, programs)).map(|(_, p)| *p);
        let lowest = fitting.clone().next();
        hashes.id(kind).and_then(|id| fitting.find(|p| p.id == id)).or(lowest)
    };
    let root = |programs| pick(Kind::Content(Role::Root), programs).is_some();
    let programs = match (root(Programs::Native), root(Programs::Secondary)) {
        (true, _) => Programs::Native,
        (false, true) => Programs::Secondary,
        (false, false) => return only_linux(partitions),
    };
    let mut all = Vec::new();
    for role in Role::ALL {
        // A /usr of the other kind does not belong to this root.
        let of = if matches!(role, Role::Root | Role::Usr) { programs } else { Programs::Native };
        let Some(partition) = pick(Kind::Content(role), of) else { continue };
        let tree = pick(Kind::HashTree(role), of);
        let hash_tree =
            tree.map(|tree| Place { start_bytes: tree.start_bytes, size_bytes: tree.size_bytes });
        all.push(Used { hash_tree, ..used(partition, role) });
    }
    Ok(Layout { used: all, programs })
}

/// Decides how each is protected.
fn protect(layout: &mut Layout, hashes: &RootHashes) -> Result<()> {
    for used in &mut layout.used {
        if hashes.of(used.role).is_none() {
            continue;
        }
        let is_root = used.role == Role::Root;
        ensure!(
            used.hash_tree.is_some() || is_root && hashes.data_is_elsewhere,
            hinted(
                format!("there is a root hash of the {0} and no dm-verity data", used.role),
                "it is in a partition of the image, or in a file: IMAGE.verity or --verity-data=",
            )
        );
        let signed = is_root && hashes.signed;
        used.protection = if signed { Protection::Signed } else { Protection::Verity };
    }
    Ok(())
}

fn only_linux(partitions: &[Partition<Guid>]) -> Result<Layout> {
    let wanted = |p: &&Partition<Guid>| p.kind.0 == LINUX && p.attributes & NO_AUTO == 0;
    let found: Vec<_> = partitions.iter().filter(wanted).collect();
    match found[..] {
        [one] => Ok(Layout { used: vec![used(one, Role::Root)], programs: Programs::Native }),
        [] => bail!(no_root("no root partition was found")),
        _ => bail!(no_root(
            "no root partition was found: of several generic Linux partitions it is not clear which"
        )),
    }
}

fn used<K>(partition: &Partition<K>, role: Role) -> Used {
    Used {
        role,
        number: Some(partition.number),
        start_bytes: partition.start_bytes,
        size_bytes: Some(partition.size_bytes),
        read_only: partition.attributes & READ_ONLY != 0,
        grow: partition.attributes & GROW_FS != 0,
        protection: Protection::None,
        hash_tree: None,
    }
}

#[cfg(test)]
mod tests;
