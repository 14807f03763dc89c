//! Which directories of the host does a session make for its mounts, and who takes them away?
//!
//! Two kinds: a new directory for each empty source (M-01, M-04), all in one holder below `/var/tmp`; and
//! the working directory of an overlay, next to its upper layer. Both have names and locks like the layers of
//! [`crate::root`], so that whatever kills us, a later run removes them. They outlive a container's reboot.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::layers::open_host;
use super::{Custom, CustomKind, From};
use crate::errors::hinted;
use crate::inroot::{InRoot, Links};
use crate::root::{hold, remove_tree, sweep_place};
use crate::undo::Undo;

/// In the directory of an empty source: what the container sees.
pub(super) const TREE: &str = "tree";
/// Beside it: the working directory of an overlay on top of which it is.
pub(super) const WORK: &str = "work";

const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directories of a session. What removes them is in the session's `Undo`; as long as this lives they
/// are locked.
#[derive(Debug, Default)]
pub struct Scratch {
    holder: Option<(PathBuf, OwnedFd)>,
    works: Vec<OwnedFd>,
}

impl Scratch {
    /// Makes what the mounts ask for, the new directories in the first of `places` that takes them. `tree` is
    /// the container's tree where that outlives the session.
    ///
    /// # Errors
    /// When a directory cannot be made, or an upper layer is in use.
    pub fn make(
        mounts: &[Custom],
        places: &[PathBuf],
        tree: Option<BorrowedFd<'_>>,
        undo: &mut Undo,
    ) -> Result<Self> {
        let mut scratch = Self::default();
        let wanted =
            mounts.iter().flat_map(sources).filter(|from| matches!(from, From::Scratch(_)));
        let count = wanted.count();
        if count > 0 {
            scratch.holder = Some(holder(places, count, undo)?);
        }
        for upper in mounts.iter().filter_map(writable_upper) {
            let made = match (upper, tree) {
                (From::Host(path), _) => work_of_host(path, undo),
                (From::Inside(path), Some(tree)) => work_inside(path, tree, undo),
                _ => Ok(None),
            };
            scratch.works.extend(made.context("making the working directory of an overlay")?);
        }
        Ok(scratch)
    }

    /// What must stay open for who opens the directories.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.holder.iter().map(|(_, held)| held.as_fd())
    }

    /// Opens the directory of the source with this number, from our own mount namespace.
    pub(super) fn open(&self, number: usize) -> Result<OwnedFd> {
        let (path, held) = self.holder.as_ref().context("a bug in rspawn: there is no scratch")?;
        let opened = open_host(path, OFlags::PATH | OFlags::DIRECTORY)?;
        let same = |a: &rustix::fs::Stat, b: &rustix::fs::Stat| {
            (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
        };
        ensure!(
            same(&rustix::fs::fstat(&opened)?, &rustix::fs::fstat(held)?),
            "{} was exchanged",
            path.display()
        );
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(opened, number.to_string(), flags, Mode::empty())?)
    }
}

/// Where a killed run may have left working directories of these mounts.
pub fn places_of_work(mounts: &[Custom]) -> Vec<PathBuf> {
    let uppers = mounts.iter().filter_map(writable_upper);
    let parent = |upper: &From| match upper {
        From::Host(path) => path.parent().map(Path::to_owned),
        // A path of the container is not looked up here; the next run takes over what lies there.
        From::Inside(_) | From::Scratch(_) => None,
    };
    uppers.filter_map(parent).collect()
}

fn sources(mount: &Custom) -> Vec<&From> {
    match &mount.kind {
        CustomKind::Bind { from, .. } => vec![from],
        CustomKind::Overlay { lower, upper, .. } => lower.iter().chain([upper]).collect(),
        CustomKind::Tmpfs { .. } | CustomKind::Inaccessible => Vec::new(),
    }
}

fn writable_upper(mount: &Custom) -> Option<&From> {
    match &mount.kind {
        CustomKind::Overlay { upper, read_only: false, .. } => Some(upper),
        _ => None,
    }
}

fn holder(places: &[PathBuf], count: usize, undo: &mut Undo) -> Result<(PathBuf, OwnedFd)> {
    let mut refused = Vec::new();
    for place in places {
        // Where it was led to once, nobody leads it elsewhere.
        let Ok(place) = std::fs::canonicalize(place) else { continue };
        sweep_place(&place);
        match hold(&place, "scratch".as_ref()) {
            Ok((held, name)) => {
                let path = place.join(name.to_string_lossy().as_ref());
                let parent = open_host(&place, OFlags::PATH | OFlags::DIRECTORY)?;
                undo.push(format!("removing {}", path.display()), move || {
                    remove_tree(parent.as_fd(), &name)
                });
                fill(&held, count).with_context(|| format!("filling {}", path.display()))?;
                return Ok((path, held));
            }
            Err(errno) => refused.push(format!("{}: {errno}", place.display())),
        }
    }
    bail!(hinted(
        format!("no directory can be made for an empty source: {}", refused.join("; ")),
        "TMPDIR names another place than /var/tmp",
    ))
}

/// Directories without permissions: that nobody has used one yet shows by that.
fn fill(holder: &OwnedFd, count: usize) -> Result<(), Errno> {
    for number in 0..count {
        rustix::fs::mkdirat(holder, number.to_string(), Mode::RWXU)?;
        let path = |name| format!("{number}/{name}");
        rustix::fs::mkdirat(holder, path(TREE), Mode::empty())?;
        rustix::fs::mkdirat(holder, path(WORK), Mode::RWXU)?;
    }
    Ok(())
}

/// What the working directory of an upper layer is called: the prefix is that of a layer's holder.
pub(super) fn work_name(upper: &OwnedFd) -> Result<CString> {
    let inode = rustix::fs::fstat(upper).context("asking for the layer's inode")?.st_ino;
    Ok(CString::new(format!(".#rspawn.work.{inode:x}")).expect("digits hold no NUL"))
}

fn work_of_host(upper: &Path, undo: &mut Undo) -> Result<Option<OwnedFd>> {
    let (Some(parent), Some(name)) = (upper.parent(), upper.file_name()) else { return Ok(None) };
    let parent = open_host(parent, OFlags::PATH | OFlags::DIRECTORY)?;
    work(parent, Path::new(name), undo).map(Some)
}

/// What is not there, or not yet, is told by who mounts it.
fn work_inside(upper: &Path, tree: BorrowedFd<'_>, undo: &mut Undo) -> Result<Option<OwnedFd>> {
    let (Some(parent), Some(name)) = (upper.parent(), upper.file_name()) else { return Ok(None) };
    let root = InRoot::new(tree.try_clone_to_owned().context("keeping hold of the tree")?);
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let Ok(parent) = root.open(parent, Links::Inside, flags) else { return Ok(None) };
    if rustix::fs::openat(&parent, name, OPEN_DIR, Mode::empty()).is_err() {
        return Ok(None);
    }
    work(parent, Path::new(name), undo).map(Some)
}

/// Makes the working directory, or takes over what a killed run has left of it, and locks it.
fn work(parent: OwnedFd, upper: &Path, undo: &mut Undo) -> Result<OwnedFd> {
    let shown = upper.display();
    let opened = rustix::fs::openat(&parent, upper, OPEN_DIR, Mode::empty());
    let name = work_name(&opened.with_context(|| format!("opening the upper layer {shown}"))?)?;
    loop {
        match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("making {name:?}")),
        }
        let dir = match rustix::fs::openat(&parent, &name, OPEN_DIR, Mode::empty()) {
            // A sweep was quicker.
            Err(Errno::NOENT) => continue,
            other => other.with_context(|| format!("opening {name:?}"))?,
        };
        let owner = rustix::fs::fstat(&dir).context("looking at it")?.st_uid;
        ensure!(owner == rustix::process::geteuid().as_raw(), "{name:?} is somebody else's");
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => bail!(hinted(
                format!("the upper layer {shown} is in use by another container"),
                "an empty upper layer is a new directory for each container",
            )),
            other => other.context("locking it")?,
        }
        if rustix::fs::fstat(&dir).context("looking at it")?.st_nlink > 0 {
            undo.push(format!("removing the working directory of {shown}"), move || {
                remove_tree(parent.as_fd(), &name)
            });
            return Ok(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn overlay(upper: From) -> Custom {
        let lower = vec![From::Host("/".into())];
        Custom { on: "/x".into(), kind: CustomKind::Overlay { lower, upper, read_only: false } }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// M-01, M-04: one holder for all, and nothing is left of it.
    #[test]
    fn empty_sources_get_a_directory_each_that_goes_with_the_session() {
        let dir = tempfile::tempdir().unwrap();
        let places = ["/no/such/place".into(), dir.path().to_owned()];
        let mut undo = Undo::default();
        let mounts = [overlay(From::Scratch(0)), overlay(From::Scratch(1))];
        let scratch = Scratch::make(&mounts, &places, None, &mut undo).unwrap();
        let held = names(dir.path());
        assert!(held.len() == 1 && held[0].starts_with(".#rspawn.scratch"), "{held:?}");
        assert_eq!(names(&dir.path().join(&held[0])), ["0", "1"]);
        scratch.open(1).unwrap();
        undo.finish();
        assert!(names(dir.path()).is_empty());
    }

    /// M-04: beside the upper layer, and one container at a time.
    #[test]
    fn a_working_directory_is_locked_reused_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().canonicalize().unwrap().join("upper");
        fs::create_dir(&upper).unwrap();
        let make =
            |undo: &mut Undo| Scratch::make(&[overlay(From::Host(upper.clone()))], &[], None, undo);
        let mut undo = Undo::default();
        let first = make(&mut undo).unwrap();
        let error = make(&mut Undo::default()).unwrap_err();
        assert!(format!("{error:#}").contains("in use"), "{error:#}");
        assert_eq!(names(dir.path()).len(), 2);
        drop(first);
        // As after kill -9: there, and not locked.
        let mut again = Undo::default();
        let second = make(&mut again).unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        again.finish();
        drop(second);
        undo.finish();
        assert_eq!(names(dir.path()), ["upper"]);
    }
}
