//! How are quota groups of btrfs found, made and destroyed? By ioctls, and by looking into the tree that they are kept
//! in (btrfs-ioctl(2), btrfs-quota(8)). All of it is for who may do anything on the machine.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};

use linux_raw_sys::btrfs::{
    BTRFS_QGROUP_INFO_KEY, BTRFS_QGROUP_LEVEL_SHIFT, BTRFS_QGROUP_LIMIT_KEY,
    BTRFS_QGROUP_RELATION_KEY, BTRFS_QGROUP_STATUS_KEY, BTRFS_QUOTA_TREE_OBJECTID,
    BTRFS_ROOT_BACKREF_KEY, BTRFS_ROOT_ITEM_KEY, BTRFS_ROOT_TREE_OBJECTID,
    btrfs_ioctl_qgroup_assign_args, btrfs_ioctl_qgroup_create_args, btrfs_ioctl_qgroup_limit_args,
    btrfs_ioctl_quota_rescan_args, btrfs_ioctl_search_args, btrfs_ioctl_search_header,
    btrfs_qgroup_limit,
};
use linux_raw_sys::ioctl::{
    BTRFS_IOC_QGROUP_ASSIGN, BTRFS_IOC_QGROUP_CREATE, BTRFS_IOC_QGROUP_LIMIT,
    BTRFS_IOC_QUOTA_RESCAN, BTRFS_IOC_TREE_SEARCH,
};

use super::btrfs::call;

/// A quota group. Level 0 is a subvolume's, which comes and goes with it; those of higher levels hold others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(u64);

impl Group {
    /// That of this number at this level.
    #[must_use]
    pub fn new(level: u16, number: u64) -> Self {
        Self(u64::from(level) << BTRFS_QGROUP_LEVEL_SHIFT | number)
    }

    /// 0 for that of a subvolume.
    #[must_use]
    pub fn level(self) -> u16 {
        u16::try_from(self.0 >> BTRFS_QGROUP_LEVEL_SHIFT).expect("16 bits are left")
    }

    /// At level 0 the id of its subvolume; by custom that of the top of what it holds at others.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0 & ((1 << BTRFS_QGROUP_LEVEL_SHIFT) - 1)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.level(), self.number())
    }
}

/// How much may be in a group, as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub struct Limit(btrfs_qgroup_limit);

/// Whether a subvolume has a name somewhere, so was not destroyed.
pub fn is_linked(fs: impl AsFd, subvolume: u64) -> io::Result<bool> {
    let mut found = false;
    let all = 0..=u64::MAX;
    search(fs, BTRFS_ROOT_TREE_OBJECTID, subvolume, BTRFS_ROOT_BACKREF_KEY, all, |_, _| {
        found = true;
    })?;
    Ok(found)
}

/// Whether quotas are counted; ENOENT is `false`, and any other refusal an error.
pub fn are_on(fs: impl AsFd) -> io::Result<bool> {
    let mut found = false;
    let status =
        search(fs, BTRFS_QUOTA_TREE_OBJECTID, 0, BTRFS_QGROUP_STATUS_KEY, 0..=0, |_, _| {
            found = true;
        });
    match status {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| found),
    }
}

/// Whether there is something of a subvolume: until the kernel has given all of it back, that is so after it was
/// destroyed, too.
pub fn has_root(fs: impl AsFd, subvolume: u64) -> io::Result<bool> {
    let mut found = false;
    let all = 0..=u64::MAX;
    search(fs, BTRFS_ROOT_TREE_OBJECTID, subvolume, BTRFS_ROOT_ITEM_KEY, all, |_, _| {
        found = true;
    })?;
    Ok(found)
}

/// All groups of a file system.
pub fn all(fs: impl AsFd) -> io::Result<Vec<Group>> {
    let mut found = Vec::new();
    let each = 0..=u64::MAX;
    search(fs, BTRFS_QUOTA_TREE_OBJECTID, 0, BTRFS_QGROUP_INFO_KEY, each, |offset, _| {
        found.push(Group(offset));
    })?;
    Ok(found)
}

/// The groups that this one is in, and those in it.
pub fn relatives(fs: impl AsFd, group: Group) -> io::Result<Vec<Group>> {
    let mut found = Vec::new();
    let (each, kind) = (0..=u64::MAX, BTRFS_QGROUP_RELATION_KEY);
    search(fs, BTRFS_QUOTA_TREE_OBJECTID, group.0, kind, each, |offset, _| {
        found.push(Group(offset));
    })?;
    Ok(found)
}

/// What is set for a group; `None` if nothing is.
pub fn limit(fs: impl AsFd, group: Group) -> io::Result<Option<Limit>> {
    let mut found = None;
    let (this, kind) = (group.0..=group.0, BTRFS_QGROUP_LIMIT_KEY);
    search(fs, BTRFS_QUOTA_TREE_OBJECTID, 0, kind, this, |_, item| {
        let mut fields = item.chunks_exact(8).filter_map(|field| field.try_into().ok());
        let mut next = || fields.next().map_or(0, u64::from_le_bytes);
        let limit = btrfs_qgroup_limit {
            flags: next(),
            max_rfer: next(),
            max_excl: next(),
            rsv_rfer: next(),
            rsv_excl: next(),
        };
        found = (limit.flags != 0).then_some(Limit(limit));
    })?;
    Ok(found)
}

/// Sets what may be in a group.
pub fn set_limit(fs: impl AsFd, group: Group, limit: Limit) -> io::Result<()> {
    let mut args = btrfs_ioctl_qgroup_limit_args { qgroupid: group.0, lim: limit.0 };
    call(fs, BTRFS_IOC_QGROUP_LIMIT, &mut args)
}

/// Makes an empty group; EEXIST if there is one.
pub fn create(fs: impl AsFd, group: Group) -> io::Result<()> {
    let mut args = btrfs_ioctl_qgroup_create_args { create: 1, qgroupid: group.0 };
    call(fs, BTRFS_IOC_QGROUP_CREATE, &mut args)
}

/// Destroys a group; EBUSY if something is in it, or (Linux 6.1) its subvolume is not quite gone.
pub fn destroy(fs: impl AsFd, group: Group) -> io::Result<()> {
    let mut args = btrfs_ioctl_qgroup_create_args { create: 0, qgroupid: group.0 };
    call(fs, BTRFS_IOC_QGROUP_CREATE, &mut args)
}

/// Puts one group into another. Returns whether they must be counted again.
pub fn assign(fs: impl AsFd, member: Group, to: Group) -> io::Result<bool> {
    relate(fs, member, to, true)
}

/// Takes one group out of another. Returns whether they must be counted again.
pub fn unassign(fs: impl AsFd, member: Group, from: Group) -> io::Result<bool> {
    relate(fs, member, from, false)
}

fn relate(fs: impl AsFd, member: Group, group: Group, assign: bool) -> io::Result<bool> {
    let args =
        btrfs_ioctl_qgroup_assign_args { assign: assign.into(), src: member.0, dst: group.0 };
    let request = libc::Ioctl::from(BTRFS_IOC_QGROUP_ASSIGN);
    // SAFETY: the request is made of this structure, which the kernel only reads and which outlives the call.
    let result = unsafe { libc::ioctl(fs.as_fd().as_raw_fd(), request, std::ptr::from_ref(&args)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result > 0) }
}

/// Lets the kernel count all groups in the background; EINPROGRESS if it does.
pub fn count_again(fs: impl AsFd) -> io::Result<()> {
    let mut args = btrfs_ioctl_quota_rescan_args { flags: 0, progress: 0, reserved: [0; 6] };
    call(fs, BTRFS_IOC_QUOTA_RESCAN, &mut args)
}

/// Goes through the items of one object and one type in a tree of the file system.
fn search(
    fs: impl AsFd,
    tree: u32,
    object: u64,
    kind: u32,
    offsets: RangeInclusive<u64>,
    mut found: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    const HEADER_BYTES: usize = size_of::<btrfs_ioctl_search_header>();
    // SAFETY: the structure is integers and arrays of them, for which zero is valid.
    let mut args: btrfs_ioctl_search_args = unsafe { std::mem::zeroed() };
    args.key.tree_id = tree.into();
    (args.key.min_objectid, args.key.max_objectid) = (object, object);
    (args.key.min_type, args.key.max_type) = (kind, kind);
    (args.key.min_offset, args.key.max_offset) = offsets.into_inner();
    args.key.max_transid = u64::MAX;
    loop {
        args.key.nr_items = u32::MAX;
        call(&fs, BTRFS_IOC_TREE_SEARCH, &mut args)?;
        let bytes: Vec<u8> = args.buf.iter().map(|byte: &c_char| byte.to_ne_bytes()[0]).collect();
        let mut rest = &bytes[..];
        let mut last = None;
        for _ in 0..args.key.nr_items {
            let Some((header, items)) = rest.split_at_checked(HEADER_BYTES) else { break };
            // transid, objectid, offset, type and length.
            let number = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
            let length = header[28..32].try_into().map_or(0, u32::from_ne_bytes);
            let Some((item, next)) = items.split_at_checked(length as usize) else { break };
            found(number(16), item);
            last = Some(number(16));
            rest = next;
        }
        match last.and_then(|last| last.checked_add(1)) {
            Some(next) if next <= args.key.max_offset => args.key.min_offset = next,
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_a_level_and_a_number() {
        let group = Group::new(255, 257);
        assert_eq!((group.level(), group.number()), (255, 257));
        assert_eq!(group.to_string(), "255/257");
        assert_eq!(Group::new(0, 257), Group(257));
    }
}
