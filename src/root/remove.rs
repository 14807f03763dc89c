//! How is a directory tree removed that a hostile container has written? By descriptors, without following
//! a link, without leaving its file system's subvolumes, and without recursion on the stack.

use std::ffi::{CStr, CString};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Dir, FileType, IFlags, Mode, OFlags, RenameFlags, unlinkat};
use rustix::io::Errno;

use crate::sys::btrfs;

const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How many directories are open at a time. A container can nest more than a process can open.
const MOST_LEVELS: usize = 128;

/// A directory that is being emptied.
struct Level {
    dir: OwnedFd,
    name: CString,
    subdirectories: Vec<CString>,
}

/// Removes the directory `name` in `parent` with everything in it. It is no error if it is gone.
///
/// # Errors
/// At the first thing that cannot be removed.
pub(crate) fn tree(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let mut levels: Vec<Level> = Vec::new();
    let mut next = Some(name.to_owned());
    let mut lifted = 0_u64;
    loop {
        let above = levels.last().map_or(parent, |level| level.dir.as_fd());
        if let Some(name) = next.take() {
            match enter(above, name)? {
                Some(level) => levels.push(level),
                None if levels.is_empty() => return Ok(()),
                None => {}
            }
        }
        let Some(level) = levels.last_mut() else { return Ok(()) };
        next = level.subdirectories.pop();
        if let Some(name) = next.as_ref().filter(|_| levels.len() >= MOST_LEVELS)
            && lift(&mut levels, name, lifted)
        {
            lifted += 1;
            next = None;
            continue;
        }
        if next.is_some() {
            continue;
        }
        let done = levels.pop().expect("it was just there");
        let above = levels.last().map_or(parent, |level| level.dir.as_fd());
        drop(done.dir);
        remove_directory(above, &done.name)?;
        if levels.is_empty() {
            return Ok(());
        }
    }
}

/// Moves a directory that is too deep to the top, for later. Returns whether that was possible: what is not, such as
/// for a subvolume that is read-only, is removed where it is.
fn lift(levels: &mut [Level], name: &CStr, number: u64) -> bool {
    let [top, .., level] = levels else { return false };
    let place = CString::new(format!(".#rspawn.deep-{number}")).expect("it has no NUL");
    let flags = RenameFlags::NOREPLACE;
    let moved = rustix::fs::renameat_with(&level.dir, name, &top.dir, &place, flags).is_ok();
    if moved {
        top.subdirectories.push(place);
    }
    moved
}

/// Opens a directory, removes its files and lists its directories. `None` when it is gone, or went
/// whole because it was a subvolume.
fn enter(parent: BorrowedFd<'_>, name: CString) -> Result<Option<Level>> {
    let shown = || format!("emptying {name:?}");
    // Fast, and the only way for a subvolume that is read-only.
    let Err(refusal) = btrfs::destroy(parent, &name) else { return Ok(None) };
    let dir = match rustix::fs::openat(parent, &name, OPEN_DIR, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.with_context(shown)?,
    };
    if refusal.kind() == ErrorKind::DirectoryNotEmpty {
        // It is a subvolume with others in it, which cannot be taken out of one that is read-only.
        btrfs::make_writable(&dir).with_context(shown)?;
    }
    let mut subdirectories = Vec::new();
    for entry in Dir::read_from(&dir).with_context(shown)? {
        let entry = entry.with_context(shown)?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        match unlink(dir.as_fd(), entry.file_name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => subdirectories.push(entry.file_name().to_owned()),
            // Some file systems say EPERM of a directory (POSIX unlink).
            Err(Errno::PERM) if entry.file_type() == FileType::Directory => {
                subdirectories.push(entry.file_name().to_owned());
            }
            Err(errno) => {
                return Err(errno).with_context(|| format!("removing {:?}", entry.file_name()));
            }
        }
    }
    Ok(Some(Level { dir, name, subdirectories }))
}

fn remove_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match unlink(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // A subvolume that held others goes now that they are gone.
        Err(_) if btrfs::destroy(parent, name).is_ok() => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("removing the directory {name:?}")),
    }
}

/// Unlinks; what a container has made immutable or append-only is made ordinary first.
fn unlink(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(dir, name, flags) {
        Err(Errno::PERM) => {}
        other => return other,
    }
    release(dir)?;
    let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    // Only regular files and directories have these flags; opening anything else could have effects.
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if matches!(kind, FileType::RegularFile | FileType::Directory) {
        release(rustix::fs::openat(dir, name, open | OFlags::CLOEXEC, Mode::empty())?)?;
    }
    unlinkat(dir, name, flags)
}

fn release(file: impl AsFd) -> Result<(), Errno> {
    let flags = match rustix::fs::ioctl_getflags(&file) {
        // A file system without such flags.
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    let held = IFlags::IMMUTABLE | IFlags::APPEND;
    if flags.intersects(held) { rustix::fs::ioctl_setflags(&file, flags - held) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_deep_tree_is_removed_and_what_its_links_lead_to_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let mut deep = dir.path().join("tree");
        for _ in 0..50 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "").unwrap();
        symlink(&kept, deep.join("link")).unwrap();
        symlink(&kept, dir.path().join("tree/link")).unwrap();
        let parent = fs::File::open(dir.path()).unwrap();
        tree(parent.as_fd(), c"tree").unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(kept.join("file").exists());
    }

    #[test]
    fn a_tree_deeper_than_a_process_can_open_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let parent = fs::File::open(dir.path()).unwrap();
        rustix::fs::mkdirat(&parent, "tree", Mode::RWXU).unwrap();
        let mut level = rustix::fs::openat(&parent, "tree", OPEN_DIR, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&level, "d", Mode::RWXU).unwrap();
            level = rustix::fs::openat(&level, "d", OPEN_DIR, Mode::empty()).unwrap();
        }
        drop(level);
        tree(parent.as_fd(), c"tree").unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn what_is_gone_already_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        tree(fs::File::open(dir.path()).unwrap().as_fd(), c"gone").unwrap();
    }
}
