//! How do the mounts of a root become one tree? Called in outer, whose mount namespace is its own; only there
//! can mounts be put on each other, and only there an overlay takes them as layers.
//!
//! Everything goes on top of the host's root: that needs no directory of the host, and hides nothing of it from
//! us, since paths start at our root directory and not at what is mounted on it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};
use rustix::fs::{Dir, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::fchdir;

use super::discover::{Programs, Role};
use super::image::Part;
use super::layer::{Holder, Uppers};
use super::volatile::{self, Changed};
use super::{Access, pivot};
use crate::errors::hinted;
use crate::inroot::{InRoot, Links};
use crate::mounts;
use crate::settings::value::{Ownership, PivotRoot, Volatile};
use crate::userns::map::IdMap;
use crate::userns::own::{self, Mapped, OnlyRead, Settled};

/// Whose the files of a root are to be (U-02).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owners<'a> {
    pub(crate) map: &'a IdMap,
    pub(crate) ownership: Ownership,
    /// Whether files that stay may be changed for it.
    pub(crate) access: Access,
    /// Whether the user sees how far that is.
    pub(crate) shows: bool,
}

/// A root in its place.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) root: InRoot,
    /// How its root file system came to belong to the container, if it was to.
    pub(crate) settled: Option<Settled>,
}

/// The mounts of a root for one run, attached nowhere yet.
#[derive(Debug)]
pub struct Mounted {
    /// The first is the root.
    pub(super) parts: Vec<Part>,
    /// Where the upper layers are, if the parts are not to be changed.
    pub(super) holder: Option<Rc<Holder>>,
    pub(super) programs: Programs,
}

impl Mounted {
    /// The descriptors that [`Mounted::attach`] needs.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let holder = self.holder.as_ref().map(|holder| holder.fd());
        self.parts.iter().map(|part| part.mount.as_fd()).chain(holder)
    }

    /// Whether its programs are those of this machine's 32-bit sibling (IMG-15).
    pub(crate) fn is_secondary(&self) -> bool {
        self.programs == Programs::Secondary
    }

    /// Attaches all of it, so that nothing that is mounted there spreads (PIV-07), and makes of it what was asked
    /// for: first its files come to belong to `owners`, then the root is changed, then it is decided what of it is kept
    /// (VOL-04, VOL-06). `/proc` must be there.
    ///
    /// # Errors
    /// When the tree has no place for a partition of the image, lacks what was asked for, or cannot belong to the
    /// container.
    pub(crate) fn attach(
        &self,
        pivot: Option<&PivotRoot>,
        volatile: Volatile,
        owners: Option<Owners<'_>>,
    ) -> Result<Attached> {
        let Assembled { tree, placed, settled } = self.assemble(owners)?;
        let root = self.changed(tree, placed, pivot, volatile)?;
        Ok(Attached { root, settled })
    }

    fn changed(
        &self,
        tree: InRoot,
        placed: Vec<&Part>,
        pivot: Option<&PivotRoot>,
        volatile: Volatile,
    ) -> Result<InRoot> {
        let Some(pivot) = pivot else {
            let Changed { root, holder } = volatile::apply(tree, volatile)?;
            // An overlay shows one file system: each of the others gets its own.
            for part in placed.into_iter().filter(|_| holder.is_some()) {
                let mount = mounts::detached_directory(part.mount.as_fd())?;
                put(&Part { mount, ..*part }, self.has_boot(), holder.as_ref(), None, &root)
                    .with_context(|| format!("covering the {} partition", part.role))?;
            }
            return Ok(root);
        };
        let (tree, former) = pivot::apply(&tree, pivot)?;
        let Changed { root, holder } = volatile::apply(tree, volatile)?;
        if holder.is_some() {
            former.put_again(pivot, &root)?;
        }
        Ok(root)
    }

    fn has_boot(&self) -> bool {
        self.parts.iter().any(|part| part.role == Role::Xbootldr)
    }

    fn assemble(&self, owners: Option<Owners<'_>>) -> Result<Assembled<'_>> {
        let (root, others) = self.parts.split_first().context("the root has no mount")?;
        let holder = self.holder.as_ref().map(|holder| holder.here()).transpose()?;
        let (tree, settled) = match &holder {
            None => {
                let settled = owners.map(|owners| settle(root, owners)).transpose()?;
                (on_top(root.mount.as_fd())?, settled)
            }
            Some(holder) => {
                on_top(root.mount.as_fd())?;
                let Covered { cover, settled } = cover(holder, root, owners)?;
                (on_top(cover.as_fd())?, settled)
            }
        };
        let mut placed = Vec::new();
        for part in others {
            let put = put(part, self.has_boot(), holder.as_ref(), owners, &tree);
            if put.with_context(|| format!("attaching the {} partition", part.role))? {
                placed.push(part);
            }
        }
        Ok(Assembled { tree, placed, settled })
    }
}

struct Assembled<'a> {
    tree: InRoot,
    /// The parts that have a place in it.
    placed: Vec<&'a Part>,
    settled: Option<Settled>,
}

/// Lets a part that nothing covers belong to the container, before it is attached.
fn settle(part: &Part, owners: Owners<'_>) -> Result<Settled> {
    let Owners { map, ownership, access, shows } = owners;
    // It has no owners but the one of its mount options.
    if part.is_owned_by_mount {
        return Ok(Settled::as_it_is());
    }
    match own::settle(part.mount.as_fd(), map, ownership, access, shows) {
        // What can only be read stays as it is, but for the root.
        Err(error) if part.role != Role::Root && error.is::<OnlyRead>() => Ok(Settled::as_it_is()),
        other => {
            other.with_context(|| format!("giving the {} file system to the container", part.role))
        }
    }
}

/// Puts a mount, with what is mounted below it, on top of all others, and makes it private.
pub(crate) fn on_top(mount: BorrowedFd<'_>) -> Result<InRoot> {
    mounts::attach_on_host(mount, Path::new("/"))?;
    fchdir(mount).context("entering the container's root")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(".", private).context("keeping the container's mounts from the host")?;
    let kept = mount.try_clone_to_owned().context("keeping hold of the container's root")?;
    Ok(InRoot::new(kept))
}

/// An overlay, and how it came to belong to the container.
struct Covered {
    cover: OwnedFd,
    settled: Option<Settled>,
}

/// An overlay on a part that is attached. The kernel maps the owners of a layer, but not of an overlay, so the part is
/// mapped before it becomes a layer; where that cannot be, files of the overlay are given away, and what is below
/// stays what it is.
fn cover(holder: &Uppers, part: &Part, owners: Option<Owners<'_>>) -> Result<Covered> {
    let making = || format!("making an overlay on the {} partition", part.role);
    let name = part.role.name();
    let over = |lower: BorrowedFd<'_>| {
        let (upper, work) = holder.upper(name, lower)?;
        mounts::overlay(lower, upper.as_fd(), work.as_fd())
    };
    let Some(Owners { map, ownership, shows, .. }) = owners else {
        let cover = over(part.mount.as_fd()).with_context(making)?;
        return Ok(Covered { cover, settled: None });
    };
    let mapped = own::mapped_copy(part.mount.as_fd(), map, ownership)
        .with_context(|| format!("giving the {} file system to the container", part.role))?;
    let why = match mapped {
        Mapped::Copy(lower) => {
            // An overlay takes only what is attached.
            mounts::attach(&lower, &part.mount)?;
            match over(lower.as_fd()) {
                Ok(cover) => return Ok(Covered { cover, settled: Some(Settled::mapped()) }),
                Err(_) if ownership == Ownership::Auto => {
                    Some("overlays take no mapped layer on this kernel".to_owned())
                }
                Err(error) => return Err(error).with_context(making),
            }
        }
        Mapped::AsItIs => {
            let cover = over(part.mount.as_fd()).with_context(making)?;
            return Ok(Covered { cover, settled: Some(Settled::as_it_is()) });
        }
        Mapped::ToBeChowned(why) => why,
    };
    // Not the upper layer that was tried with a mapped one: its owner would tell of files that were given away.
    let name = format!("{name}.given");
    let (upper, work) = holder.upper(&name, part.mount.as_fd()).with_context(making)?;
    let cover = mounts::overlay_of_owners(part.mount.as_fd(), upper.as_fd(), work.as_fd())
        .with_context(making)?;
    let settled = own::settle(cover.as_fd(), map, Ownership::Chown, Access::Write, shows)
        .with_context(|| format!("giving the {} file system to the container", part.role))?;
    Ok(Covered { cover, settled: Some(Settled { not_mapped: why, ..settled }) })
}

/// Attaches a part where it belongs, if there is such a place; returns whether there is.
fn put(
    part: &Part,
    has_boot: bool,
    holder: Option<&Uppers>,
    owners: Option<Owners<'_>>,
    tree: &InRoot,
) -> Result<bool> {
    let place = match part.role {
        Role::Root => None,
        Role::Usr => Some(made(tree, "/usr")?),
        Role::Home => Some(made(tree, "/home")?),
        Role::Srv => Some(made(tree, "/srv")?),
        Role::Var => Some(made(tree, "/var")?),
        Role::Tmp => Some(made(tree, "/var/tmp")?),
        Role::Xbootldr => empty(tree, "/boot")?,
        Role::Esp => match empty(tree, "/efi")? {
            None if !has_boot => empty(tree, "/boot")?,
            found => found,
        },
    };
    let Some(place) = place else { return Ok(false) };
    let holder = holder.filter(|_| part.can_be_covered);
    if let Some(owners) = owners.filter(|_| holder.is_none()) {
        settle(part, owners)?;
    }
    mounts::attach(&part.mount, &place)?;
    if let Some(holder) = holder {
        let Covered { cover, .. } = cover(holder, part, owners)?;
        // The part is on top of the place now.
        mounts::attach(&cover, &part.mount)?;
    }
    Ok(true)
}

/// The directory at `path`, made if it is missing and the tree can be written to.
fn made(tree: &InRoot, path: &str) -> Result<OwnedFd> {
    tree.make_dir(Path::new(path), Links::Inside).with_context(|| {
        hinted(
            format!("looking for {path}"),
            format!("the root file system must have a directory {path} for it"),
        )
    })
}

/// The directory at `path`, if there is one with nothing in it (IMG-20).
fn empty(tree: &InRoot, path: &str) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
    let dir = match tree.open(Path::new(path), Links::Inside, flags) {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(errno).with_context(|| format!("looking for {path}")),
    };
    for entry in Dir::read_from(&dir).with_context(|| format!("looking into {path}"))? {
        let entry = entry.with_context(|| format!("looking into {path}"))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(None);
        }
    }
    Ok(Some(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IMG-20.
    #[test]
    fn only_an_empty_directory_takes_the_boot_partition() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("full/x")).unwrap();
        std::fs::create_dir(tree.path().join("empty")).unwrap();
        std::fs::write(tree.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("loop", tree.path().join("loop")).unwrap();
        let root = InRoot::new(std::fs::File::open(tree.path()).unwrap().into());
        let taken = |path| empty(&root, path).unwrap().is_some();
        assert!(taken("/empty"));
        for path in ["/full", "/file", "/loop", "/missing"] {
            assert!(!taken(path), "{path}");
        }
    }
}
