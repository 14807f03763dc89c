//! Who else uses this tree or image? Lock files that systemd-nspawn honours too (SNP-50…52).
//!
//! Two of them, because a tree can be reached by two paths and a path can lead to two trees: one next to
//! the tree (`.#NAME.lck`) and one named after device and inode below /run/systemd/nspawn/locks. Shared if
//! the tree is only read, else exclusive. The locks are those of open file descriptions (fcntl_locking(2)),
//! so the kernel lets go of them whatever kills us; the files are removed by who held them alone.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Access;
use crate::errors::hinted;
use crate::userns;

/// Where the locks by device and inode are.
const GLOBAL: &str = "/run/systemd/nspawn/locks";

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Lock {
    file: OwnedFd,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file goes with the last user: whoever can lock it alone may remove it.
        if locked(self.file.as_fd(), Access::Write).is_ok() {
            // Already gone, or not ours to remove: a lock file without a lock harms nobody.
            let _ = rustix::fs::unlinkat(CWD, &self.path, rustix::fs::AtFlags::empty());
        }
    }
}

/// Takes both locks of a tree.
///
/// # Errors
/// When the tree is in use, with the path in the text.
pub(super) fn tree(path: &Path, tree: BorrowedFd<'_>, access: Access) -> Result<Vec<Lock>> {
    let stat = rustix::fs::fstat(tree).context("asking for the tree's inode")?;
    let global = format!("inode-{}:{}", stat.st_dev, stat.st_ino);
    both("tree", path, beside(path), &global, access)
}

/// Takes the locks of a disk image: both for a file; for a block device that which is named after its
/// numbers, since all of its nodes are one device.
///
/// # Errors
/// When the image is in use, with the path in the text.
pub(super) fn image(path: &Path, image: BorrowedFd<'_>, access: Access) -> Result<Vec<Lock>> {
    let stat = rustix::fs::fstat(image).context("asking for the image's inode")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        let global = format!("inode-{}:{}", stat.st_dev, stat.st_ino);
        return both("image", path, beside(path), &global, access);
    }
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let local = beside(path).filter(|_| !path.starts_with("/dev"));
    both("image", path, local, &format!("block-{major}:{minor}"), access)
}

fn both(
    what: &str,
    path: &Path,
    local: Option<PathBuf>,
    global: &str,
    access: Access,
) -> Result<Vec<Lock>> {
    // An ordinary user can lock where its trees are, and where nobody can write nothing needs a lock.
    let is_user = userns::is_inside();
    let mut locks = Vec::new();
    if let Some(local) = local {
        match take(&local, access) {
            // What lies on a medium that cannot be written to needs no lock next to it to be read (I-13).
            Err(Errno::ROFS) if access == Access::Read => {}
            Err(Errno::ACCESS | Errno::ROFS) if is_user => {}
            other => locks.push(other.map_err(|errno| refused(what, errno, path, &local))?),
        }
    }
    match make_directory(Path::new(GLOBAL)) {
        Err(error) if is_user && error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Ok(locks);
        }
        made => made.with_context(|| format!("making {GLOBAL}"))?,
    }
    let global = Path::new(GLOBAL).join(global);
    match take(&global, access) {
        Err(Errno::ACCESS) if is_user => {}
        other => locks.push(other.map_err(|errno| refused(what, errno, path, &global))?),
    }
    Ok(locks)
}

/// Makes a directory of locks, which no other user may write to, whatever the caller's umask is: who can remove a lock
/// lets others have what it is for.
///
/// # Errors
/// What mkdir(2) says.
pub(crate) fn make_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// The name next to the tree; the root directory has no neighbour.
fn beside(path: &Path) -> Option<PathBuf> {
    let name: &OsStr = path.file_name()?;
    let mut lock = OsString::from(".#");
    lock.push(name);
    lock.push(".lck");
    Some(path.with_file_name(lock))
}

fn refused(what: &str, errno: Errno, path: &Path, lock: &Path) -> anyhow::Error {
    let shown = path.display();
    if errno != Errno::AGAIN {
        let lock = lock.display();
        let doing = format!("locking the {what} \"{shown}\" with the file \"{lock}\"");
        return anyhow::Error::new(errno).context(doing);
    }
    anyhow::Error::new(hinted(
        format!("the {what} \"{shown}\" is in use by another container"),
        "use -x to run on a throw-away layer of it, as many at once as you like",
    ))
}

/// Locks a file, which is made if it is missing and goes with its last user.
///
/// # Errors
/// EAGAIN when somebody else has it; and what open(2) says.
pub(crate) fn take(path: &Path, access: Access) -> Result<Lock, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600));
    loop {
        let file = match open(flags | OFlags::CREATE) {
            // In a directory like /tmp nobody makes a file that another user has made (proc_sys_fs(5),
            // protected_regular), but who may open it can.
            Err(Errno::ACCESS) => match open(flags) {
                Err(Errno::NOENT) => return Err(Errno::ACCESS),
                other => other?,
            },
            other => other?,
        };
        locked(file.as_fd(), access)?;
        // Its last holder may have removed the file after we opened it: then it locks nothing.
        if rustix::fs::fstat(&file)?.st_nlink > 0 {
            return Ok(Lock { file, path: path.to_owned() });
        }
    }
}

/// Locks an open file; the lock goes with its last descriptor.
///
/// # Errors
/// As [`take`].
pub(crate) fn locked(file: BorrowedFd<'_>, access: Access) -> Result<(), Errno> {
    let kind = match access {
        Access::Read => libc::F_RDLCK,
        Access::Write => libc::F_WRLCK,
    };
    let whole = libc::flock {
        l_type: i16::try_from(kind).expect("lock types are small"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("it is 0"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(path: &Path, access: Access) -> Result<Lock, Errno> {
        take(path, access)
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".#tree.lck");
        let first = lock(&path, Access::Read).unwrap();
        let second = lock(&path, Access::Read).unwrap();
        assert_eq!(lock(&path, Access::Write).unwrap_err(), Errno::AGAIN);
        drop(first);
        assert!(path.exists(), "the second reader still holds it");
        drop(second);
        assert!(!path.exists(), "the last one removes the file");
        lock(&path, Access::Write).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_a_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".#tree.lck");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(lock(&path, Access::Write).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn the_root_directory_has_no_lock_beside_it() {
        assert_eq!(beside(Path::new("/")), None);
        assert_eq!(beside(Path::new("/a/b")), Some(PathBuf::from("/a/.#b.lck")));
    }
}
