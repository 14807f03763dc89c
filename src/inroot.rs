//! Where is a path of the container? Only ever below the container's root directory.
//!
//! Invariants: **nothing else in the program joins a path to the container's root**; a path is walked once,
//! by the kernel, and what comes out is a descriptor that is acted on (security.md, R2). Links of the
//! tree are followed inside the tree, or not at all ([`Links`]). Needs openat2 (Linux 5.6).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::errors::hinted;

/// How many links to nothing may follow on each other; as the kernel counts links (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Whether links of the tree may be followed on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// They are, and an absolute one starts again at the container's root.
    Inside,
    /// There must be none: the places of API file systems.
    Refused,
}

/// The root directory of a container, as a descriptor.
#[derive(Debug)]
pub struct InRoot(OwnedFd);

impl AsFd for InRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl InRoot {
    /// Takes a directory for a container's root.
    pub fn new(root: OwnedFd) -> Self {
        Self(root)
    }

    /// Opens what is at `path`. `O_CLOEXEC` is added; a magic link of procfs is never followed.
    pub fn open(&self, path: &Path, links: Links, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, links, flags, Mode::empty())
    }

    fn open_with(
        &self,
        path: &Path,
        links: Links,
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT
            | match links {
                Links::Inside => ResolveFlags::NO_MAGICLINKS,
                Links::Refused => ResolveFlags::NO_SYMLINKS,
            };
        loop {
            // EAGAIN: something was renamed while the kernel walked through a `..` (openat2(2)).
            match rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// Opens the regular file at `path` to be read; links are followed inside. What is there is looked at first: to open
    /// a device can have effects.
    ///
    /// # Errors
    /// What openat2(2) says; and that it is no regular file.
    pub fn open_regular(&self, path: &Path) -> io::Result<OwnedFd> {
        let regular = |flags| -> io::Result<OwnedFd> {
            let found = self.open(path, Links::Inside, flags)?;
            match file_type(&found)? {
                FileType::RegularFile => Ok(found),
                _ => Err(io::Error::other("it is no regular file")),
            }
        };
        regular(OFlags::PATH)?;
        // What has taken its place meanwhile is looked at too.
        regular(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    /// Whether something is at `path`; for a dangling link, no.
    pub fn holds(&self, path: &Path) -> bool {
        self.open(path, Links::Inside, OFlags::PATH).is_ok()
    }

    /// Opens the directory at `path`, making it and its parents where they are missing, mode 0755. A link to
    /// nothing is made to lead to something: trees have many that lead below /run, which starts empty.
    ///
    /// # Errors
    /// When a component is no directory, or a link and links are refused.
    pub fn make_dir(&self, path: &Path, links: Links) -> Result<OwnedFd> {
        self.make_dir_with(path, links, Mode::from_raw_mode(0o755))
    }

    /// The same with another mode for what is made; the umask takes its share.
    pub fn make_dir_with(&self, path: &Path, links: Links, mode: Mode) -> Result<OwnedFd> {
        self.make_dir_over(path, links, mode, MAX_LINKS)
    }

    fn make_dir_over(
        &self,
        path: &Path,
        links: Links,
        mode: Mode,
        links_left: u32,
    ) -> Result<OwnedFd> {
        // Most of what a start asks for is there, and one look is cheaper than one for each of its parents.
        if let Ok(dir) = self.directory(path, links) {
            return Ok(dir);
        }
        let mut walked = PathBuf::from("/");
        let mut dir = self.directory(&walked, links)?;
        for name in components(path) {
            walked.push(name);
            dir = match self.directory(&walked, links) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&dir, name, mode) {
                        Ok(()) => self.directory(&walked, links),
                        Err(Errno::EXIST) => match target(&dir, name, &walked) {
                            Some(target) => {
                                let left = links_left.checked_sub(1);
                                let left = left.ok_or_else(|| explain(&walked, Errno::LOOP))?;
                                Ok(self.make_dir_over(&target, links, mode, left)?)
                            }
                            // Somebody else has made it in the meantime.
                            None => self.directory(&walked, links),
                        },
                        Err(errno) => return Err(not_made(&walked, errno)),
                    }
                    .map_err(|errno| explain(&walked, errno))?
                }
                Err(errno) => return Err(explain(&walked, errno)),
            };
        }
        Ok(dir)
    }

    /// Opens the file at `path` with `O_PATH`; where nothing is, makes an empty one, and its parents. A link
    /// to nothing is treated as by [`InRoot::make_dir`].
    pub fn make_file(&self, path: &Path, links: Links) -> Result<OwnedFd> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match self.open(&path, links, OFlags::PATH) {
                Ok(file) => return Ok(file),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(explain(&path, errno)),
            }
            let (parent, name) = self.make_parent(&path, links)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o644);
            match rustix::fs::openat(&parent, name, flags | OFlags::WRONLY, mode) {
                Ok(_) => {}
                Err(Errno::EXIST) => {
                    if let Some(target) = target(&parent, name, &path) {
                        path = target;
                    }
                }
                Err(errno) => return Err(not_made(&path, errno)),
            }
        }
        Err(explain(&path, Errno::LOOP))
    }

    /// The directory that holds `path`, made if missing, and the last component of it.
    pub fn make_parent<'p>(&self, path: &'p Path, links: Links) -> Result<(OwnedFd, &'p Path)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("{path:?} has no name");
        };
        Ok((self.make_dir(parent, links)?, Path::new(name)))
    }

    fn directory(&self, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
        self.open(path, links, OFlags::PATH | OFlags::DIRECTORY)
    }
}

/// The names of an absolute path; what has no name (`/`, `.`) is left out, and `..` stays, since the
/// kernel keeps it inside.
fn components(path: &Path) -> impl Iterator<Item = &Path> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(Path::new(name)),
        Component::ParentDir => Some(Path::new("..")),
        _ => None,
    })
}

/// Where the link `name` leads, as a path of the container; `at` is its own.
fn target(parent: impl AsFd, name: &Path, at: &Path) -> Option<PathBuf> {
    let target = rustix::fs::readlinkat(parent, name, Vec::new()).ok()?;
    let target = Path::new(OsStr::from_bytes(target.to_bytes()));
    // An absolute one replaces all that is before it.
    Some(at.parent()?.join(target))
}

fn not_made(path: &Path, errno: Errno) -> anyhow::Error {
    let shown = path.display();
    let what = format!("making {shown} in the container's tree");
    let error = anyhow::Error::new(errno);
    match errno {
        Errno::ROFS => error
            .context(hinted(what, format!("it is read-only there, so {shown} must exist already"))),
        _ => error.context(what),
    }
}

/// Says what an errno of a walk means for the tree.
fn explain(path: &Path, errno: Errno) -> anyhow::Error {
    let shown = path.display();
    let what = format!("opening {shown} in the container's tree");
    let hint = match errno {
        Errno::LOOP => format!("{shown} of the tree is, or leads over, a symbolic link"),
        Errno::NOTDIR => format!("{shown} of the tree must be a directory"),
        _ => return anyhow::Error::new(errno).context(what),
    };
    anyhow::Error::new(errno).context(hinted(what, hint))
}

/// What kind of file a descriptor is.
pub fn file_type(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root(make: impl Fn(&Path)) -> (tempfile::TempDir, InRoot) {
        let outside = tempfile::tempdir().unwrap();
        let tree = outside.path().join("tree");
        fs::create_dir(&tree).unwrap();
        make(&tree);
        (outside, InRoot::new(fs::File::open(&tree).unwrap().into()))
    }

    #[test]
    fn an_absolute_link_starts_at_the_containers_root() {
        let (outside, root) = root(|tree| {
            fs::create_dir(tree.join("real")).unwrap();
            symlink("/real", tree.join("link")).unwrap();
        });
        root.make_dir(Path::new("/link/made"), Links::Inside).unwrap();
        assert!(outside.path().join("tree/real/made").is_dir());
    }

    #[test]
    fn a_link_upwards_never_leaves_the_tree() {
        let (outside, root) = root(|tree| symlink("../../..", tree.join("up")).unwrap());
        root.make_dir(Path::new("/up/made"), Links::Inside).unwrap();
        assert!(outside.path().join("tree/made").is_dir());
        assert!(!outside.path().join("made").exists());
    }

    #[test]
    fn a_link_in_the_place_of_an_api_file_system_is_refused_with_a_hint() {
        let (_outside, root) = root(|tree| symlink("/tmp", tree.join("proc")).unwrap());
        let error = root.make_dir(Path::new("/proc"), Links::Refused).unwrap_err();
        let report = crate::errors::Report::of(&error);
        assert!(report.hint.unwrap().contains("symbolic link"), "{}", report.chain);
    }

    #[test]
    fn a_missing_file_is_made_and_an_existing_one_is_kept() {
        let (outside, root) = root(|tree| fs::write(tree.join("old"), "kept").unwrap());
        root.make_file(Path::new("/a/b/new"), Links::Inside).unwrap();
        root.make_file(Path::new("/old"), Links::Inside).unwrap();
        assert_eq!(fs::read(outside.path().join("tree/a/b/new")).unwrap(), b"");
        assert_eq!(fs::read(outside.path().join("tree/old")).unwrap(), b"kept");
    }

    /// MNT-35, DEF-07: as systemd-nspawn 252 does it, but by descriptor.
    #[test]
    fn what_a_link_to_nothing_leads_to_is_made_inside() {
        let (outside, root) = root(|tree| {
            fs::create_dir(tree.join("var")).unwrap();
            symlink("../run/lock", tree.join("var/lock")).unwrap();
            symlink("/chain", tree.join("link")).unwrap();
            symlink("../../../gone", tree.join("chain")).unwrap();
        });
        root.make_dir(Path::new("/var/lock/dir"), Links::Inside).unwrap();
        root.make_file(Path::new("/link"), Links::Inside).unwrap();
        root.make_file(Path::new("/var/lock/new/file"), Links::Inside).unwrap();
        let tree = outside.path().join("tree");
        assert!(tree.join("run/lock/dir").is_dir());
        assert!(tree.join("gone").is_file());
        assert!(tree.join("run/lock/new/file").is_file());
        assert!(!outside.path().join("gone").exists());
    }

    #[test]
    fn a_link_that_always_leads_on_is_an_end() {
        let (_outside, root) = root(|tree| symlink("link/more", tree.join("link")).unwrap());
        for error in [
            root.make_dir(Path::new("/link"), Links::Inside).unwrap_err(),
            root.make_file(Path::new("/link"), Links::Inside).unwrap_err(),
        ] {
            let report = crate::errors::Report::of(&error);
            assert!(report.hint.unwrap().contains("symbolic link"), "{}", report.chain);
        }
    }
}
