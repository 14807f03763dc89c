//! How does a mount show its files as owned by others? By a user namespace whose map it takes over
//! (mount_setattr(2), MOUNT_ATTR_IDMAP, Linux 5.12), while it is attached nowhere.
//!
//! Which file systems can do it differs from kernel to kernel, so it is found out by trying: ext4, XFS and VFAT since
//! 5.12, btrfs since 5.15, overlays take such layers since 5.19, tmpfs since 6.3; an overlay itself cannot.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::stage::{Parent, fork};
use crate::sys::mount::map_ids;
use crate::sys::process::{FIRST_FD, keep_only};
use crate::userns::map::{Extent, IdMap, text};

/// What the host's root writes through a mapped mount is this user's on disk (systemd calls it UID_MAPPED_ROOT), who is
/// nobody's. Without it, it could write nothing there.
const HOST_ROOT: u32 = 0x7fff_fffe;

/// Which owners on disk are shown as which users of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
}

impl Shown {
    /// What is the container's own on disk is shown as the container's: user n on disk is user n of the container.
    pub(crate) fn as_container(map: &IdMap) -> Self {
        Self::new(map.uids().to_vec(), map.gids().to_vec())
    }

    /// The same, of a tree whose owners on disk start at `base`.
    pub(crate) fn as_container_from(map: &IdMap, base: u32) -> Option<Self> {
        let from = |extents: &[Extent]| {
            extents.iter().map(|extent| from_base(extent, base)).collect::<Option<Vec<_>>>()
        };
        Some(Self::new(from(map.uids())?, from(map.gids())?))
    }

    /// One user and group on disk are shown as one user and group of the host, and all others as nobody.
    pub(crate) fn one(disk: (u32, u32), host: (u32, u32)) -> Self {
        let extent = |container, host| vec![Extent { container, host, count: 1 }];
        Self::new(extent(disk.0, host.0), extent(disk.1, host.1))
    }

    /// The same, and all others as they are: nobody takes from a file what it is not shown as (Linux refuses to write to
    /// what has an owner or a group that the map lacks). None is shown as the user of the host whose id is taken.
    pub(crate) fn one_among_others(disk: (u32, u32), host: (u32, u32)) -> Self {
        Self { uids: among_others(disk.0, host.0), gids: among_others(disk.1, host.1) }
    }

    fn new(uids: Vec<Extent>, gids: Vec<Extent>) -> Self {
        Self { uids: with_host_root(uids), gids: with_host_root(gids) }
    }
}

fn from_base(extent: &Extent, base: u32) -> Option<Extent> {
    let container = extent.container.checked_add(base)?;
    container.checked_add(extent.count)?;
    Some(Extent { container, ..*extent })
}

fn among_others(disk: u32, host: u32) -> Vec<Extent> {
    let (low, high) = (disk.min(host), disk.max(host));
    // (u32)-1 is no id (user_namespaces(7)).
    let gaps = [(0, low), (low.saturating_add(1), high), (high.saturating_add(1), u32::MAX)];
    let others = gaps.into_iter().filter(|(first, end)| first < end);
    let others = others.map(|(first, end)| (first, first, end - first));
    let extent = |(container, host, count)| Extent { container, host, count };
    std::iter::once((disk, host, 1)).chain(others).map(extent).collect()
}

fn with_host_root(mut extents: Vec<Extent>) -> Vec<Extent> {
    let has = |first: u32, count: u32, id: u32| id.checked_sub(first).is_some_and(|at| at < count);
    let taken = extents.iter().any(|extent| {
        has(extent.host, extent.count, 0) || has(extent.container, extent.count, HOST_ROOT)
    });
    if !taken {
        extents.push(Extent { container: HOST_ROOT, host: 0, count: 1 });
    }
    extents
}

/// A map that mounts can take over.
#[derive(Debug)]
pub(crate) struct Mapping {
    users: OwnedFd,
}

/// Why a mount takes no map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) &'static str);

/// How much of a mount took a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It, and all that is mounted below it.
    All,
    /// It alone, since something below it takes none.
    Alone,
}

impl Mapping {
    /// Makes the user namespace that carries the map. `/proc` must be there, and we must have one thread.
    ///
    /// # Errors
    /// When the kernel makes no user namespace, or does not take the map.
    pub(crate) fn new(shown: &Shown) -> Result<Self> {
        let users = namespace(&text(&shown.uids), &text(&shown.gids))
            .context("making a user namespace for the owners of a mount")?;
        Ok(Self { users })
    }

    /// Puts the map on a mount that is attached nowhere yet.
    ///
    /// # Errors
    /// When something else keeps it from that than the kernel or the file system.
    pub(crate) fn put_on(
        &self,
        mount: BorrowedFd<'_>,
        recursive: bool,
    ) -> Result<Result<(), Refused>> {
        let error = match map_ids(mount, recursive, &self.users) {
            Ok(()) => return Ok(Ok(())),
            Err(error) => error,
        };
        let why = match Errno::from_io_error(&error) {
            Some(Errno::NOSYS) => "the kernel cannot map the owners of a mount before Linux 5.12",
            Some(Errno::INVAL | Errno::OPNOTSUPP) => {
                "the file system cannot map owners on this kernel"
            }
            Some(Errno::PERM) => {
                "its owners are mapped already, or it belongs to another user namespace"
            }
            _ => return Err(error).context("mapping the owners of a mount"),
        };
        Ok(Err(Refused(why)))
    }

    /// Puts the map on a mount with all that is mounted below it or, where that cannot be, alone.
    ///
    /// # Errors
    /// As [`Self::put_on`].
    pub(crate) fn put_on_as_much_as_can_be(
        &self,
        mount: BorrowedFd<'_>,
    ) -> Result<Result<Reach, Refused>> {
        match self.put_on(mount, true)? {
            Ok(()) => Ok(Ok(Reach::All)),
            Err(refused) => {
                Ok(self.put_on(mount, false)?.map(|()| Reach::Alone).map_err(|_| refused))
            }
        }
    }
}

/// A user namespace exists as long as somebody holds it, and its map is written from outside: so a child is made that
/// does nothing in it, until it hears that we have hold of it, or are gone.
///
/// What procfs we see may number processes otherwise than we do, so it is asked for the child's number.
fn namespace(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .context("making a link")?;
    let child = fork(
        0,
        Parent::Us,
        || enter_and_wait(its.as_fd()),
        |error| {
            // Without a parent there is nobody to tell.
            let _ = rustix::io::write(&its, format!("{error:#}").as_bytes());
        },
    )?;
    drop(its);
    let made = hear_of(ours.as_fd()).and_then(|()| {
        let info = format!("/proc/self/fdinfo/{}", child.pidfd.as_raw_fd());
        let info = fs::read_to_string(info).context("asking for its number")?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
        let pid = pid.context("asking for its number: there is none")?;
        fs::write(format!("/proc/{pid}/uid_map"), uid_map).context("writing its uid_map")?;
        fs::write(format!("/proc/{pid}/gid_map"), gid_map).context("writing its gid_map")?;
        let path = format!("/proc/{pid}/ns/user");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).context("taking hold of it")
    });
    drop(ours);
    waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
        .context("waiting for the child that made it")?;
    made
}

/// What the child says once it is in its namespace; anything else is why it is not.
const ENTERED: &[u8] = b"\0";

fn enter_and_wait(link: BorrowedFd<'_>) -> Result<()> {
    keep_only(FIRST_FD, &[link])?;
    // The kernel makes no user namespace for whose root is another than that of the mount namespace
    // (user_namespaces(7), EPERM), as ours is when something was mounted on top of it. `..` leads there.
    rustix::process::chdir("/").context("going to the root")?;
    rustix::process::chroot("..").context("changing the root")?;
    unshare(CloneFlags::CLONE_NEWUSER).context("entering it")?;
    rustix::io::write(link, ENTERED)?;
    // The end of the link is all that comes.
    rustix::io::read(link, &mut [0])?;
    Ok(())
}

fn hear_of(link: BorrowedFd<'_>) -> Result<()> {
    let mut said = [0; 4096];
    let length =
        rustix::io::read(link, &mut said).context("waiting for the child that makes it")?;
    match &said[..length] {
        ENTERED => Ok(()),
        [] => bail!("the child that was to make it has died"),
        why => bail!("{}", String::from_utf8_lossy(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userns::range::IdRange;

    fn map(base: u32) -> IdMap {
        IdMap::of_range(IdRange::new(base, 65536).unwrap())
    }

    /// U-02: the map of systemd-nspawn.
    #[test]
    fn the_hosts_root_can_write_through_a_mapped_mount() {
        let shown = Shown::as_container(&map(131_072));
        assert_eq!(text(&shown.uids), "0 131072 65536\n2147483646 0 1\n");
        assert_eq!(text(&shown.gids), text(&shown.uids));
    }

    #[test]
    fn whoever_is_the_hosts_root_already_is_not_mapped_twice() {
        assert_eq!(text(&Shown::as_container(&map(0)).uids), "0 0 65536\n");
        assert_eq!(text(&Shown::one((0x7fff_fffe, 5), (7, 0)).uids), "2147483646 7 1\n");
        assert_eq!(text(&Shown::one((0x7fff_fffe, 5), (7, 0)).gids), "5 0 1\n");
    }

    /// M-02: no id twice on either side.
    #[test]
    fn one_user_is_shown_as_another_and_all_others_as_they_are() {
        let shown = Shown::one_among_others((1000, 100_000), (70_000, 9));
        let uids = "1000 70000 1\n0 0 1000\n1001 1001 68999\n70001 70001 4294897294\n";
        assert_eq!(text(&shown.uids), uids);
        let gids = "100000 9 1\n0 0 9\n10 10 99990\n100001 100001 4294867294\n";
        assert_eq!(text(&shown.gids), gids);
        let edges = Shown::one_among_others((0, 1), (1, 1));
        assert_eq!(text(&edges.uids), "0 1 1\n2 2 4294967293\n");
        assert_eq!(text(&edges.gids), "1 1 1\n0 0 1\n2 2 4294967293\n");
    }

    #[test]
    fn a_tree_in_another_range_is_shown_as_the_containers() {
        let shown = Shown::as_container_from(&map(131_072), 0x7ffe_0000).unwrap();
        assert!(text(&shown.uids).starts_with("2147352576 131072 65536\n"));
        assert_eq!(Shown::as_container_from(&map(131_072), 0xffff_0000), None);
    }
}
