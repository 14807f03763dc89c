//! How is a small file read, and how is one of the tree replaced?
//!
//! Invariants: what is read is a regular file of at most [`MAX_BYTES`] and is never waited for; a name of the
//! tree is looked at and replaced below a descriptor of its directory and never followed (R2, R3). A file of
//! the tree is replaced by renaming, so that a hard link that another tree has to it keeps its content.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::ids;
use crate::inroot::{InRoot, Links, file_type};

/// The longest file that is read, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Links that a path of the host may lead over, as many as for the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Opens a file of the host; links are followed. The kernel would lead a relative one, such as the /etc/resolv.conf that
/// comes with systemd-resolved, into the container: its tree is mounted on top of / by now, and there a `..` ends up.
///
/// # Errors
/// As open(2).
pub(super) fn open_of_host(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let held = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut left: Vec<OsString> = names(path);
    let mut above: Vec<OwnedFd> = vec![rustix::fs::open("/", held, Mode::empty())?];
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            // Above / is /.
            above.truncate((above.len() - 1).max(1));
            continue;
        }
        let dir = above.last().expect("/ stays");
        let found = rustix::fs::openat(dir, &name, held, Mode::empty())?;
        if file_type(&found)? == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = rustix::fs::readlinkat(dir, &name, Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.to_bytes()));
            if target.is_absolute() {
                above.truncate(1);
            }
            left.extend(names(target));
        } else if left.is_empty() {
            return rustix::fs::openat(dir, &name, flags | OFlags::NOFOLLOW, Mode::empty());
        } else {
            above.push(found);
        }
    }
    Err(Errno::ISDIR)
}

/// The names of a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(name).collect()
}

/// Reads a file of the host; links are followed.
///
/// # Errors
/// When it is not there, is no regular file, or is longer than [`MAX_BYTES`].
pub(crate) fn read_of_host(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    read_regular(&open_of_host(path, flags)?)
}

/// Reads a file of the tree; links are followed inside.
///
/// # Errors
/// When it is not there, is no regular file, or is longer than [`MAX_BYTES`].
pub(crate) fn read_in(tree: &InRoot, path: &Path) -> io::Result<Vec<u8>> {
    read_regular(&tree.open_regular(path)?)
}

fn read_regular(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is no regular file"));
    }
    let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    // One byte more, so that one call tells that this was all.
    let mut content = vec![0; size.min(MAX_BYTES) + 1];
    let mut length = 0;
    while length < content.len() {
        match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut content[length..]))? {
            0 => break,
            more => length += more,
        }
        if length >= size && length < content.len() {
            break;
        }
    }
    if length > MAX_BYTES || length == content.len() {
        return Err(io::Error::other("it is longer than 1 MiB, or grows while it is read"));
    }
    content.truncate(length);
    Ok(content)
}

/// What has a name in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A regular file of so many bytes.
    File(usize),
    /// A symbolic link.
    Link,
    /// Anything else.
    Other,
}

/// A name in a directory of the tree.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    root: &'a InRoot,
    /// The directory; none as long as it does not exist.
    dir: Option<OwnedFd>,
    path: &'static str,
    name: &'static str,
}

impl<'a> Slot<'a> {
    /// Finds the directory of an absolute path of the tree.
    pub(super) fn open(root: &'a InRoot, path: &'static str) -> Result<Self> {
        let (parent, name) = path.rsplit_once('/').expect("it is absolute");
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = match root.open(Path::new(parent), Links::Inside, flags) {
            Ok(dir) => Some(dir),
            Err(Errno::NOENT) => None,
            Err(errno) => {
                return Err(errno).with_context(|| format!("opening {parent} of the container"));
            }
        };
        Ok(Self { root, dir, path, name })
    }

    /// Whether its directory exists.
    pub(super) fn has_directory(&self) -> bool {
        self.dir.is_some()
    }

    /// What is there.
    pub(super) fn found(&self) -> Result<Found> {
        let Some(dir) = &self.dir else { return Ok(Found::Nothing) };
        let stat = match rustix::fs::statat(dir, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            other => other.with_context(|| format!("looking at {} of the container", self.path))?,
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                Found::File(usize::try_from(stat.st_size).unwrap_or(usize::MAX))
            }
            FileType::Symlink => Found::Link,
            _ => Found::Other,
        })
    }

    /// Where the link leads that is there; `None` for anything else.
    pub(super) fn link_target(&self) -> Option<Vec<u8>> {
        let target = rustix::fs::readlinkat(self.dir.as_ref()?, self.name, Vec::new());
        target.ok().map(std::ffi::CString::into_bytes)
    }

    /// Whether a regular file with this content is there already.
    fn holds(&self, content: &[u8]) -> bool {
        let Some(dir) = &self.dir else { return false };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::openat(dir, self.name, flags | OFlags::NOFOLLOW, Mode::empty())
            .is_ok_and(|file| read_regular(&file).is_ok_and(|found| found == content))
    }

    /// Puts a file there, mode 0644, in the place of whatever is there but a directory. A file that is as it
    /// should be is not touched.
    pub(super) fn put_file(&mut self, found: Found, content: &[u8]) -> Result<()> {
        if found == Found::File(content.len()) && self.holds(content) {
            return Ok(());
        }
        self.replace(|dir, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))?;
            File::from(file).write_all(content)
        })
    }

    /// Puts a link there, in the place of whatever is there but a directory.
    pub(super) fn put_link(&mut self, target: &str) -> Result<()> {
        self.replace(|dir, name| Ok(rustix::fs::symlinkat(target, dir, name)?))
    }

    /// Makes something under another name and renames it, so that there is never half of it.
    fn replace(&mut self, make: impl FnOnce(&OwnedFd, &str) -> io::Result<()>) -> Result<()> {
        let dir = match self.dir.take() {
            Some(dir) => dir,
            None => self.root.make_parent(Path::new(self.path), Links::Inside)?.0,
        };
        let dir = self.dir.insert(dir);
        let made = format!(".#{}-{}", self.name, ids::random()?);
        let done = make(dir, &made)
            .and_then(|()| Ok(rustix::fs::renameat(&*dir, made.as_str(), &*dir, self.name)?));
        if done.is_err() {
            // Either it was never made, or it cannot be removed where it could be made: then it stays.
            let _ = rustix::fs::unlinkat(&*dir, made.as_str(), AtFlags::empty());
        }
        done.with_context(|| format!("replacing {} of the container", self.path))
    }

    /// Removes what is there, which must be no directory.
    pub(super) fn remove(&self) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        match rustix::fs::unlinkat(dir, self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => {
                Err(errno).with_context(|| format!("removing {} of the container", self.path))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn tree() -> (tempfile::TempDir, InRoot) {
        let tree = tempfile::tempdir().unwrap();
        let root = InRoot::new(fs::File::open(tree.path()).unwrap().into());
        (tree, root)
    }

    fn put(root: &InRoot, content: &[u8]) -> Result<()> {
        let mut slot = Slot::open(root, "/etc/x")?;
        let found = slot.found()?;
        slot.put_file(found, content)
    }

    /// VOL-05.
    #[test]
    fn a_missing_parent_is_made() {
        let (tree, root) = tree();
        put(&root, b"new").unwrap();
        assert_eq!(fs::read(tree.path().join("etc/x")).unwrap(), b"new");
    }

    #[test]
    fn a_file_that_is_right_is_not_touched_and_another_is_exchanged_with_its_hard_links_spared() {
        let (tree, root) = tree();
        put(&root, b"one").unwrap();
        let path = tree.path().join("etc/x");
        let first = fs::metadata(&path).unwrap().ino();
        put(&root, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first);
        fs::hard_link(&path, tree.path().join("etc/y")).unwrap();
        put(&root, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read(tree.path().join("etc/y")).unwrap(), b"one");
        assert_eq!(fs::read_dir(tree.path().join("etc")).unwrap().count(), 2, "something is left");
    }

    /// R2, R3; crun CVE-2025-24965.
    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let (tree, root) = tree();
        fs::create_dir(tree.path().join("etc")).unwrap();
        fs::write(tree.path().join("victim"), "kept").unwrap();
        symlink(tree.path().join("victim"), tree.path().join("etc/x")).unwrap();
        put(&root, b"new").unwrap();
        assert_eq!(fs::read(tree.path().join("victim")).unwrap(), b"kept");
        assert_eq!(fs::read(tree.path().join("etc/x")).unwrap(), b"new");
    }

    #[test]
    fn a_directory_is_neither_replaced_nor_removed_and_nothing_is_left_beside_it() {
        let (tree, root) = tree();
        fs::create_dir_all(tree.path().join("etc/x")).unwrap();
        assert!(put(&root, b"new").is_err());
        assert!(Slot::open(&root, "/etc/x").unwrap().remove().is_err());
        assert_eq!(fs::read_dir(tree.path().join("etc")).unwrap().count(), 1);
    }

    /// Defect 8 of systemd-nspawn 252: it would wait for a writer.
    #[test]
    fn a_pipe_is_no_file_and_is_not_waited_for() {
        let (tree, root) = tree();
        fs::create_dir(tree.path().join("etc")).unwrap();
        let path = tree.path().join("etc/x");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        assert_eq!(Slot::open(&root, "/etc/x").unwrap().found().unwrap(), Found::Other);
        assert!(read_of_host(&path).is_err());
        put(&root, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_and_not_beyond() {
        let (tree, _root) = tree();
        let path = tree.path().join("long");
        for (length, fits) in [(0, true), (1, true), (MAX_BYTES, true), (MAX_BYTES + 1, false)] {
            fs::write(&path, vec![b'x'; length]).unwrap();
            assert_eq!(
                read_of_host(&path).is_ok_and(|read| read.len() == length),
                fits,
                "{length}"
            );
        }
    }

    /// T-01: `..` of the host's root is where the container's tree lies by then, so the kernel is never asked for it.
    #[test]
    fn links_of_the_host_lead_where_they_led_before_anything_was_mounted() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("etc")).unwrap();
        std::fs::create_dir_all(base.join("run/deep")).unwrap();
        std::fs::write(base.join("run/deep/file"), "found").unwrap();
        symlink("../run/via", base.join("etc/relative")).unwrap();
        symlink(base.join("run/deep"), base.join("run/via")).unwrap();
        symlink("loop", base.join("loop")).unwrap();
        let read = |path: &str| read_of_host(&base.join(path));
        assert_eq!(read("etc/relative/file").unwrap(), b"found");
        assert_eq!(read("etc/relative/../../etc/relative/./file").unwrap(), b"found");
        let up = "../".repeat(30);
        let path = base.join(format!("{up}{}", base.strip_prefix("/").unwrap().display()));
        assert_eq!(read_of_host(&path.join("run/deep/file")).unwrap(), b"found");
        assert_eq!(read("loop").unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert!(read("run/nothing").is_err() && read("run/deep").is_err());
    }
}
