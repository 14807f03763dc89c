//! Where are the layers of an overlay, and its working directory? (M-04.)
//!
//! Layers of the host are opened before anything of the container's tree is touched, those inside when the
//! tree is there, by descriptor. The working directory is a sibling of the upper layer, named after its
//! inode: [`super::scratch`] makes it and takes it away, or it goes with a throw-away tree.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::apply::{named, overlay_of};
use super::scratch::{Scratch, TREE, WORK, work_name};
use super::{Attrs, From};
use crate::errors::hinted;
use crate::inroot::{InRoot, Links};
use crate::userns;
use crate::userns::map::IdMap;

const PATH_DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);

/// The layers of one overlay as far as they are of the host.
#[derive(Debug)]
pub(super) struct Layers {
    lower: Vec<Option<OwnedFd>>,
    upper: Option<Top>,
}

/// An upper layer and its working directory.
#[derive(Debug)]
struct Top {
    upper: OwnedFd,
    work: OwnedFd,
    /// Nothing was written to it yet, so it is to look like what it covers.
    fresh: bool,
}

impl Layers {
    /// Opens what is of the host; the rest stays for [`Layers::combine`].
    pub(super) fn open(
        lower: &[From],
        upper: Option<&From>,
        scratch: Option<&Scratch>,
    ) -> Result<Self> {
        let opened = lower.iter().map(|from| match from {
            From::Inside(_) => Ok(None),
            other => {
                let layer = host_directory(other, scratch);
                layer.map(Some).with_context(|| format!("opening the layer {}", named(other)))
            }
        });
        let lower = opened.collect::<Result<_>>()?;
        let upper = match upper {
            None | Some(From::Inside(_)) => None,
            Some(other) => {
                let top = host_top(other, scratch);
                Some(top.with_context(|| format!("opening the upper layer {}", named(other)))?)
            }
        };
        Ok(Self { lower, upper })
    }

    /// The overlay, attached nowhere yet.
    pub(super) fn combine(
        &self,
        lower: &[From],
        upper: Option<&From>,
        attrs: Attrs,
        root: &InRoot,
    ) -> Result<OwnedFd> {
        let mut inside = Vec::new();
        for from in lower {
            if let From::Inside(path) = from {
                let layer = root.open(path, Links::Inside, OFlags::PATH | OFlags::DIRECTORY);
                inside.push(layer.with_context(|| format!("opening the layer {}", named(from)))?);
            }
        }
        let mut inside_in_order = inside.iter();
        let mut layers = Vec::with_capacity(lower.len());
        for opened in &self.lower {
            let layer = opened.as_ref().or_else(|| inside_in_order.next());
            layers.push(layer.context("a bug in rspawn: a layer is missing")?.as_fd());
        }
        let inner = match upper {
            Some(from @ From::Inside(path)) => {
                let top = inside_top(path, root);
                Some(top.with_context(|| format!("opening the upper layer {}", named(from)))?)
            }
            _ => None,
        };
        let top = self.upper.as_ref().or(inner.as_ref());
        if let (Some(top), Some(highest)) = (top.filter(|top| top.fresh), layers.last()) {
            look_like(top.upper.as_fd(), *highest).context("making the new upper layer")?;
        }
        let pair = top.map(|top| (top.upper.as_fd(), top.work.as_fd()));
        overlay_of(&layers, pair, attrs).map_err(explain)
    }
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    if error.downcast_ref::<Errno>() != Some(&Errno::INVAL) {
        return error;
    }
    error.context(hinted(
        "combining the layers",
        "the upper layer must be on a writable file system that is no overlay itself, and no mount \
         point; an empty upper layer is a new directory below /var/tmp",
    ))
}

/// Opens a path that was canonical when it was looked up: a link in it now was put there meanwhile, maybe
/// to lead us elsewhere (flatpak CVE-2024-42472).
///
/// # Errors
/// ELOOP where there is a link.
pub(super) fn open_host(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::LOOP) => Err(Errno::LOOP).context(hinted(
            "it was exchanged for a link after it was looked up",
            "somebody else can write to a directory on the way to it",
        )),
        other => Ok(other?),
    }
}

fn host_directory(from: &From, scratch: Option<&Scratch>) -> Result<OwnedFd> {
    match (from, scratch) {
        (From::Host(path), _) => open_host(path, PATH_DIR),
        (From::Scratch(number), Some(scratch)) => Ok(child(scratch.open(*number)?, TREE)?),
        _ => bail!("a bug in rspawn: it is not the host's"),
    }
}

fn host_top(from: &From, scratch: Option<&Scratch>) -> Result<Top> {
    match (from, scratch) {
        (From::Host(path), _) => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                bail!("the root directory has no sibling to work in");
            };
            let parent = open_host(parent, PATH_DIR)?;
            top(parent, Path::new(name))
        }
        (From::Scratch(number), Some(scratch)) => {
            let holder = scratch.open(*number)?;
            let (upper, work) = (child(&holder, TREE)?, child(&holder, WORK)?);
            Ok(Top { fresh: is_fresh(&upper)?, upper, work })
        }
        _ => bail!("a bug in rspawn: it is not the host's"),
    }
}

fn inside_top(path: &Path, root: &InRoot) -> Result<Top> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("the root directory has no sibling to work in");
    };
    top(root.open(parent, Links::Inside, OFlags::PATH | OFlags::DIRECTORY)?, Path::new(name))
}

/// Both from one descriptor, since they must be on one mount.
fn top(parent: OwnedFd, name: &Path) -> Result<Top> {
    let upper = child(&parent, name)?;
    let work_name = work_name(&upper)?;
    match rustix::fs::mkdirat(&parent, &work_name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).context("making its working directory"),
    }
    let work = child(&parent, &work_name).context("opening its working directory")?;
    Ok(Top { upper, work, fresh: false })
}

fn child(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, PATH_DIR | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the directory of an empty bind source. The payload sees the mode that systemd-nspawn gives it; it belongs to
/// the root of `users`, if the container has others than the host.
pub(super) fn scratch_directory(
    number: usize,
    scratch: &Scratch,
    users: Option<&IdMap>,
) -> Result<OwnedFd> {
    let tree = child(scratch.open(number)?, TREE)?;
    if is_fresh(&tree)? {
        if let Some(map) = users {
            let (uid, gid) = map.root()?;
            let owner = (Uid::from_raw(uid.0), Gid::from_raw(gid.0));
            rustix::fs::chownat(&tree, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
        }
        set_mode(tree.as_fd(), 0o755)?;
    }
    Ok(tree)
}

/// The session makes it without permissions, so one that has some was used by a run before a reboot.
fn is_fresh(tree: &OwnedFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstat(tree)?.st_mode & 0o7777 == 0)
}

/// Else `--overlay=+/root::/root` would show everyone what only root can see. systemd-nspawn makes it 0755.
fn look_like(new: BorrowedFd<'_>, covered: BorrowedFd<'_>) -> Result<()> {
    let stat = rustix::fs::fstat(covered)?;
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match rustix::fs::chownat(new, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH) {
        // It is nobody here, where an ordinary user covers what is another one's.
        Err(Errno::INVAL) if userns::is_inside() => {}
        given => given?,
    }
    set_mode(new, stat.st_mode & 0o7777)
}

fn set_mode(dir: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
    Ok(rustix::fs::fchmod(opened, Mode::from_raw_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// security.md, section 2, flatpak CVE-2024-42472: an accomplice exchanges a source, or a directory on the
    /// way to it, between the decision and the act.
    #[test]
    fn a_source_that_became_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        fs::create_dir_all(place.join("way/source")).unwrap();
        let decided = place.join("way/source");
        open_host(&decided, OFlags::PATH).unwrap();
        fs::rename(place.join("way"), place.join("moved")).unwrap();
        symlink("moved", place.join("way")).unwrap();
        let error = open_host(&decided, OFlags::PATH).unwrap_err();
        assert!(error.to_string().contains("exchanged for a link"), "{error:#}");
        fs::remove_file(place.join("way")).unwrap();
        fs::create_dir(place.join("way")).unwrap();
        symlink("../moved/source", &decided).unwrap();
        assert!(open_host(&decided, OFlags::PATH).is_err());
    }
}
