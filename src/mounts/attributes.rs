//! How does a mount get its attributes? By mount_setattr(2) while it is attached nowhere; before Linux 5.12,
//! which has no such call, by remounting it, and what is mounted below it, after it was attached.
//!
//! Which of the two is found out by trying. Either way a mount has its attributes before anything of the
//! payload runs, and no path of the container is resolved: a mount is named by `/proc/self/fd/N`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, mount_remount};

use super::Attrs;
use crate::sys::mount::{MountAttr, mount_setattr};

/// What is left to do once the mount is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// The kernel wants it attached first: [`set_attached`].
    Attributes,
}

/// Sets what `attrs` asks for on a mount that is attached nowhere yet.
pub(super) fn set_detached(mount: BorrowedFd<'_>, recursive: bool, attrs: Attrs) -> Result<Left> {
    if attrs == Attrs::none() {
        return Ok(Left::Nothing);
    }
    match by_setattr(mount, recursive, attrs) {
        Ok(()) => Ok(Left::Nothing),
        Err(Errno::NOSYS) => Ok(Left::Attributes),
        Err(errno) => Err(errno).context("setting the attributes of the mount"),
    }
}

/// Sets what `attrs` asks for on a mount that is attached in our mount namespace. `/proc` must be there.
pub(crate) fn set_attached(mount: BorrowedFd<'_>, recursive: bool, attrs: Attrs) -> Result<()> {
    match by_setattr(mount, recursive, attrs) {
        Err(Errno::NOSYS) => by_remount(mount, recursive, attrs),
        other => other.map_err(anyhow::Error::new),
    }
    .context("setting the attributes of the mount")
}

fn by_setattr(mount: BorrowedFd<'_>, recursive: bool, attrs: Attrs) -> Result<(), Errno> {
    let set = u64::from(flags(attrs).bits());
    let attr = MountAttr { set, ..MountAttr::default() };
    let result = mount_setattr(mount, recursive, attr);
    result.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

pub(super) fn flags(attrs: Attrs) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attrs.read_only);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attrs.nosuid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attrs.nodev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attrs.noexec);
    flags.set(MountAttrFlags::MOUNT_ATTR_STRICTATIME, attrs.strictatime);
    flags
}

fn by_remount(mount: BorrowedFd<'_>, recursive: bool, attrs: Attrs) -> Result<()> {
    remount(mount, attrs)?;
    if !recursive {
        return Ok(());
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("reading our mounts")?;
    for (id, path) in below(&table, mount_id(mount)?) {
        // What another mount hides cannot be reached, by the payload neither.
        if let Some(found) = open_mount(mount, id, &path)? {
            remount(found.as_fd(), attrs)
                .with_context(|| format!("of what is mounted on {} below", path.display()))?;
        }
    }
    Ok(())
}

/// Remounting replaces all the attributes, so those that are there are given again.
fn remount(mount: BorrowedFd<'_>, attrs: Attrs) -> Result<()> {
    use rustix::fs::StatVfsMountFlags as Has;
    let has = rustix::fs::fstatvfs(mount).context("asking for the attributes")?.f_flag;
    let mut flags = MountFlags::BIND;
    flags.set(MountFlags::RDONLY, attrs.read_only || has.contains(Has::RDONLY));
    flags.set(MountFlags::NOSUID, attrs.nosuid || has.contains(Has::NOSUID));
    flags.set(MountFlags::NODEV, attrs.nodev || has.contains(Has::NODEV));
    flags.set(MountFlags::NOEXEC, attrs.noexec || has.contains(Has::NOEXEC));
    // Without a word about access times they stay as they are (mount(2)).
    flags.set(MountFlags::STRICTATIME, attrs.strictatime);
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    Ok(mount_remount(path, flags, "")?)
}

/// The id that mountinfo lists a mount under (statx(2), Linux 5.8). procfs would tell it too, but not to a process that
/// must not be looked into and has no rights over the host.
fn mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    let stat = statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)
        .context("reading the id of a mount")?;
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    ensure!(told, "reading the id of a mount: there is none");
    Ok(stat.stx_mnt_id)
}

/// The mounts below the mount `top` with their paths from its root, parents first.
fn below(table: &str, top: u64) -> Vec<(u64, PathBuf)> {
    let rows: Vec<(u64, u64, &str)> = table
        .lines()
        .filter_map(|line| {
            // id, parent, device, root, mount point (proc_pid_mountinfo(5)).
            let mut fields = line.split(' ');
            let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((id, parent, fields.nth(2)?))
        })
        .collect();
    let Some(&(.., start)) = rows.iter().find(|(id, ..)| *id == top) else { return Vec::new() };
    let start = unescaped(start);
    let mut found = vec![(top, PathBuf::new())];
    let mut next = 0;
    while let Some(&(above, _)) = found.get(next) {
        next += 1;
        for &(id, parent, on) in &rows {
            let new = parent == above && found.iter().all(|(known, _)| *known != id);
            if let Ok(path) = Path::new(&unescaped(on)).strip_prefix(&start)
                && new
            {
                found.push((id, path.to_owned()));
            }
        }
    }
    found.remove(0);
    found
}

/// Blanks, line ends and backslashes are written as octal numbers there.
fn unescaped(field: &str) -> String {
    let replaced = [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")];
    replaced.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Opens the mount `id` at `path` below another's root, unless something else is mounted over it.
fn open_mount(top: BorrowedFd<'_>, id: u64, path: &Path) -> Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
        Ok(found) => Ok(Some(found).filter(|found| mount_id(found.as_fd()).is_ok_and(|i| i == id))),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("opening {} below", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MNT-33 before Linux 5.12: a table as a kernel prints it, with the same path mounted elsewhere too.
    #[test]
    fn what_is_mounted_below_is_found_by_parents_and_not_by_paths() {
        let table = r"20 1 8:1 / / rw - ext4 /dev/vda rw
30 20 8:1 /tree / rw - ext4 /dev/vda rw
31 30 0:5 / /mnt/a\040b rw - tmpfs tmpfs rw
32 31 0:6 / /mnt/a\040b/deep rw - tmpfs tmpfs rw
33 32 0:7 / /mnt/a\040b/deep rw - tmpfs over rw
40 20 0:8 / /mnt/a\040b/other rw - tmpfs tmpfs rw";
        let expected = [(32, PathBuf::from("deep")), (33, PathBuf::from("deep"))];
        assert_eq!(below(table, 31), expected);
        assert_eq!(below(table, 30).len(), 3);
        assert_eq!(below(table, 7), []);
    }
}
