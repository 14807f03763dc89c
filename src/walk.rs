//! How does one go through a directory tree that someone hostile has written and still writes to? By descriptors,
//! from the top down and back, without following a link, without entering what is mounted in it, and without
//! recursion on the stack.
//!
//! Invariants: a directory is opened by one name in its parent, never by a path; however deep a tree is, no more than
//! [`OPEN_LEVELS`] of its directories are open, and a directory that is opened once more, over the `..` of one below,
//! is the one that it was.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

/// How many directories of one branch are open at a time.
const OPEN_LEVELS: usize = 64;
/// How much of a directory is read at a time, in bytes.
const BUFFER_BYTES: usize = 32 << 10;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is done with what is found.
pub(crate) trait Visitor {
    /// Before a directory is opened. Whether it is to be entered.
    ///
    /// # Errors
    /// Any, and the walk is over.
    fn before(&mut self, _place: &Place<'_>, _name: &CStr) -> Result<bool> {
        Ok(true)
    }

    /// Something in a directory, of the type that the directory tells. Whether it is a directory to be entered.
    ///
    /// # Errors
    /// Any, and the walk is over.
    fn entry(&mut self, place: &Place<'_>, name: &CStr, kind: FileType) -> Result<bool>;

    /// A directory that was to be entered cannot be: it is no directory any more (ENOTDIR, ELOOP), it is a mount
    /// point (EXDEV), or something else is wrong. One that is gone is never told of.
    ///
    /// # Errors
    /// Any, and the walk is over.
    fn closed(&mut self, place: &Place<'_>, name: &CStr, errno: Errno) -> Result<()>;

    /// All that is in a directory was visited. `place` is where it is found.
    ///
    /// # Errors
    /// Any, and the walk is over.
    fn after(&mut self, place: &Place<'_>, name: &CStr, dir: OwnedFd) -> Result<()>;
}

/// A directory of the tree, on the way.
pub(crate) struct Place<'a> {
    /// Itself.
    pub(crate) dir: BorrowedFd<'a>,
    above: &'a [Level],
}

impl Place<'_> {
    /// Where something in it is, from the top of the walk on.
    pub(crate) fn path(&self, name: &CStr) -> PathBuf {
        let names = self.above.iter().map(|level| level.name.as_c_str()).chain([name]);
        names.map(|name| OsStr::from_bytes(name.to_bytes())).collect()
    }
}

/// A directory that was entered.
struct Level {
    dir: Held,
    name: CString,
    /// What is in it to be entered still.
    directories: Vec<CString>,
}

enum Held {
    Open(OwnedFd),
    /// While too many below it are open; its device and inode.
    Closed(u64, u64),
}

/// Visits the directory `name` of `parent` with all that is in it. It is no error if it is gone.
///
/// # Errors
/// What the visitor says, and what keeps us from reading a directory.
pub(crate) fn tree(parent: BorrowedFd<'_>, name: &CStr, visitor: &mut impl Visitor) -> Result<()> {
    let mut walk = Walk { parent, levels: Vec::new(), buffer: Vec::with_capacity(BUFFER_BYTES) };
    walk.descend(name, visitor)?;
    while let Some(level) = walk.levels.last_mut() {
        match level.directories.pop() {
            Some(name) => walk.descend(&name, visitor)?,
            None => walk.ascend(visitor)?,
        }
    }
    Ok(())
}

/// Visits what is in a directory, but not the directory itself.
///
/// # Errors
/// As [`tree`].
pub(crate) fn below(dir: BorrowedFd<'_>, visitor: &mut impl Visitor) -> Result<()> {
    // Read from the start, wherever the caller's own descriptor is.
    let top = open(dir, c".", DIRECTORY).context("opening the directory")?;
    let place = Place { dir: top.as_fd(), above: &[] };
    for name in list(&place, &mut Vec::with_capacity(BUFFER_BYTES), visitor)? {
        tree(top.as_fd(), &name, visitor)?;
    }
    Ok(())
}

struct Walk<'a> {
    parent: BorrowedFd<'a>,
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// The lowest directory that was entered.
    fn place(&self) -> Place<'_> {
        let dir = match self.levels.last() {
            None => self.parent,
            Some(Level { dir: Held::Open(dir), .. }) => dir.as_fd(),
            Some(_) => unreachable!("the lowest level is always open"),
        };
        Place { dir, above: &self.levels }
    }

    fn descend(&mut self, name: &CStr, visitor: &mut impl Visitor) -> Result<()> {
        let place = self.place();
        if !visitor.before(&place, name)? {
            return Ok(());
        }
        let dir = match open(place.dir, name, DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return visitor.closed(&place, name, errno),
        };
        let dir = Held::Open(dir);
        self.levels.push(Level { dir, name: name.to_owned(), directories: Vec::new() });
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS + 1) {
            let far = &mut self.levels[far].dir;
            if let Held::Open(dir) = far {
                let (device, inode) = id_of(dir.as_fd()).context("looking at a directory")?;
                *far = Held::Closed(device, inode);
            }
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let place = self.place();
        let found = list(&place, &mut buffer, visitor)?;
        self.buffer = buffer;
        self.levels.last_mut().expect("it was just pushed").directories = found;
        Ok(())
    }

    fn ascend(&mut self, visitor: &mut impl Visitor) -> Result<()> {
        let Some(Level { dir: Held::Open(dir), name, .. }) = self.levels.pop() else {
            unreachable!("the lowest level is always open")
        };
        if let Some(above) = self.levels.last_mut()
            && let Held::Closed(device, inode) = above.dir
        {
            let opening = || format!("returning to {:?}", above.name);
            let found = open(dir.as_fd(), c"..", DIRECTORY).with_context(opening)?;
            let same = id_of(found.as_fd()).with_context(opening)? == (device, inode);
            ensure!(same, "{:?} was moved while we went through it", above.name);
            above.dir = Held::Open(found);
        }
        visitor.after(&self.place(), &name, dir)
    }
}

/// Shows the visitor what is in a directory; returns what of it is to be entered.
fn list(
    place: &Place<'_>,
    buffer: &mut Vec<u8>,
    visitor: &mut impl Visitor,
) -> Result<Vec<CString>> {
    let mut directories = Vec::new();
    let mut entries = RawDir::new(place.dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry =
            entry.with_context(|| format!("reading the directory {:?}", place.path(c"")))?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..")
            && visitor.entry(place, name, entry.file_type())?
        {
            directories.push(name.to_owned());
        }
    }
    Ok(directories)
}

fn id_of(dir: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Opens one name in a directory, unless it is a link or something is mounted there.
pub(crate) fn open(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(dir, name, flags, Mode::empty(), ResolveFlags::NO_XDEV)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    type Act = Box<dyn Fn()>;

    #[derive(Default)]
    struct Seen {
        paths: Vec<PathBuf>,
        closed: Vec<Errno>,
        /// What is done when the directory of this name is listed.
        meanwhile: Option<(&'static str, Act)>,
    }

    impl Visitor for Seen {
        fn entry(&mut self, place: &Place<'_>, name: &CStr, kind: FileType) -> Result<bool> {
            if let Some((when, act)) = &self.meanwhile
                && when.as_bytes() == name.to_bytes()
            {
                act();
            }
            if kind != FileType::Directory {
                self.paths.push(place.path(name));
            }
            Ok(kind == FileType::Directory)
        }

        fn closed(&mut self, _: &Place<'_>, _: &CStr, errno: Errno) -> Result<()> {
            self.closed.push(errno);
            Ok(())
        }

        fn after(&mut self, place: &Place<'_>, name: &CStr, _: OwnedFd) -> Result<()> {
            self.paths.push(place.path(name));
            Ok(())
        }
    }

    fn walked(top: &Path, seen: &mut Seen) -> Result<()> {
        below(fs::File::open(top).unwrap().as_fd(), seen)
    }

    #[test]
    fn everything_is_seen_once_and_directories_after_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "").unwrap();
        symlink("/etc", dir.path().join("a/link")).unwrap();
        let mut seen = Seen::default();
        walked(dir.path(), &mut seen).unwrap();
        let place =
            |path: &str| seen.paths.iter().position(|seen| seen == Path::new(path)).unwrap();
        assert!(place("a/b/file") < place("a/b") && place("a/b") < place("a"));
        assert!(place("a/link") < place("a"));
        assert_eq!(seen.paths.len(), 4);
    }

    /// No more directories are open than a process may have, and each way back is the way there.
    #[test]
    fn a_tree_may_be_deeper_than_files_can_be_open() {
        let dir = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", 1500).collect();
        fs::create_dir_all(dir.path().join(&deep)).unwrap();
        fs::create_dir(dir.path().join("d/last")).unwrap();
        let mut seen = Seen::default();
        walked(dir.path(), &mut seen).unwrap();
        assert_eq!(seen.paths.len(), 1501);
        assert!(seen.paths.contains(&deep) && seen.paths.contains(&PathBuf::from("d/last")));
    }

    #[test]
    fn a_directory_that_became_a_link_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "").unwrap();
        let place = dir.path().join("swapped");
        fs::create_dir(&place).unwrap();
        let target = outside.path().to_owned();
        let act = move || {
            fs::remove_dir(&place).unwrap();
            symlink(&target, &place).unwrap();
        };
        let mut seen = Seen { meanwhile: Some(("swapped", Box::new(act))), ..Seen::default() };
        walked(dir.path(), &mut seen).unwrap();
        assert!(seen.paths.is_empty(), "{:?}", seen.paths);
        assert!(matches!(seen.closed[..], [Errno::NOTDIR | Errno::LOOP]), "{:?}", seen.closed);
    }

    /// Moved out of the tree while we were far below it.
    #[test]
    fn a_branch_that_was_moved_meanwhile_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", 200).collect();
        fs::create_dir_all(dir.path().join(&deep)).unwrap();
        fs::create_dir(dir.path().join(&deep).join("lowest")).unwrap();
        let half: PathBuf = std::iter::repeat_n("d", 100).collect();
        let (from, to) = (dir.path().join(half), outside.path().join("moved"));
        let act = move || fs::rename(&from, &to).unwrap();
        let mut seen = Seen { meanwhile: Some(("lowest", Box::new(act))), ..Seen::default() };
        let error = walked(dir.path(), &mut seen).unwrap_err();
        assert!(error.to_string().contains("was moved"), "{error:#}");
    }
}
