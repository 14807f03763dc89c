//! How is a directory run without being changed, and how is it copied? By a ladder of ways, each a function that does
//! it, says why it cannot, or fails.
//!
//! | rung                | what it makes, in a holder ([`layer`])                                       |
//! |---------------------|------------------------------------------------------------------------------|
//! | subvolume snapshot  | of a btrfs subvolume, with those in it                                       |
//! | overlay             | an upper layer                                                               |
//! | reflink copy        | a tree that shares the blocks of the source, in a new subvolume if possible  |
//! | copy                | the same, sharing only what can be shared                                    |
//! | tmpfs               | an upper layer in memory, which nobody else sees ([`memory`])                |

use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Error, Result, bail};
use rustix::fs::{AtFlags, Mode, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::copy::{self, NotShared, Order, Sharing};
use super::layer::{self, Holder, Refused, TREE};
use super::memory::{self, Memory};
use super::one_mount::{self, Directory};
use super::{Access, LayerSpec, Rung, subvolume};
use crate::checkpoint;
use crate::errors::{Verbosity, hinted};
use crate::mounts;
use crate::sys::btrfs;
use crate::tell;
use crate::undo::Undo;

/// What a layer is made over, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) path: &'a Path,
    pub(super) source: BorrowedFd<'a>,
    pub(super) access: Access,
    pub(super) layer: &'a LayerSpec,
    pub(super) verbosity: Verbosity,
}

/// A layer that was made. Fields go in this order: it is removed while its holder is still locked.
#[derive(Debug)]
pub(super) struct Layer {
    made: Undo,
    kind: Kind,
    rung: Rung,
    /// Why the rungs above were not taken.
    refused: Vec<String>,
    holder: Option<Rc<Holder>>,
}

#[derive(Debug)]
enum Kind {
    /// A tree of its own.
    Tree(OwnedFd),
    /// An upper layer.
    Overlay { upper: OwnedFd, work: OwnedFd, first: Option<OwnedFd> },
    /// The same in memory.
    Memory(Memory),
}

impl Layer {
    /// The rung that it is.
    pub(super) fn rung(&self) -> Rung {
        self.rung
    }

    /// Which rungs were tried before, each with the reason why it did not bear.
    pub(super) fn refused(&self) -> &[String] {
        &self.refused
    }

    /// A new mount of the source with the layer, attached nowhere yet.
    pub(super) fn mounted(&mut self, path: &Path, source: BorrowedFd<'_>) -> Result<OwnedFd> {
        match &mut self.kind {
            Kind::Tree(tree) => mounts::detached_copy(tree.as_fd()),
            // That it can be mounted was found out by mounting it.
            Kind::Overlay { upper, work, first } => match first.take() {
                Some(mounted) => Ok(mounted),
                None => mounts::overlay(source, upper.as_fd(), work.as_fd()),
            },
            Kind::Memory(memory) => memory.mounted(path, source),
        }
    }

    /// Where the upper layer of an overlay is, if it is one.
    pub(super) fn holder(&self) -> Option<Rc<Holder>> {
        self.holder.clone().filter(|_| matches!(self.kind, Kind::Overlay { .. }))
    }

    /// What holds it, for whoever keeps it: then it is not removed any more. `None` if nothing of it can be kept.
    pub(super) fn into_holder(self) -> Option<Holder> {
        let holder = Rc::into_inner(self.holder?)?;
        self.made.abandon();
        Some(holder)
    }

    /// Removes it.
    pub(super) fn close(self) {
        self.made.finish();
    }
}

/// Walks the rungs until one bears.
///
/// # Errors
/// When none does, with why, or one fails.
pub(super) fn make(wanted: &Wanted<'_>) -> Result<Layer> {
    let Wanted { path, source, layer: spec, .. } = *wanted;
    let beside = place_beside(path, source)
        .with_context(|| format!("asking whether \"{}\" is a mount point", path.display()))?;
    let beside = spec.beside.then_some(&beside);
    let mut refused = Vec::new();
    for rung in &spec.ladder.rungs {
        for place in beside.into_iter().chain(&spec.ladder.elsewhere) {
            match try_rung(*rung, wanted, place)? {
                Ok(layer) => {
                    if wanted.verbosity == Verbosity::Verbose {
                        let told = refused.iter().fold(String::new(), |mut told, why| {
                            // Writing to a string cannot fail.
                            let _ = write!(told, "{why}; ");
                            told
                        });
                        tell!("rspawn: {told}{rung} in {}: ok", place.display());
                    }
                    return Ok(Layer { refused, ..layer });
                }
                Err(Refused(why)) => refused.push(format!("{rung} in {}: {why}", place.display())),
            }
            // Its place is not on disk, and blocks are only shared within a file system.
            if *rung == Rung::Tmpfs || (spec.beside && shares(*rung)) {
                break;
            }
        }
    }
    let what = format!("no throw-away layer of \"{}\" can be made", path.display());
    bail!(hinted(what, format!("tried {}", refused.join("; "))))
}

fn shares(rung: Rung) -> bool {
    matches!(rung, Rung::Snapshot | Rung::Reflink)
}

/// In the source if it is a mount point, else in its parent (SNP-01).
fn place_beside(path: &Path, source: BorrowedFd<'_>) -> Result<PathBuf> {
    let flags = AtFlags::EMPTY_PATH;
    let stat = rustix::fs::statx(source, "", flags, StatxFlags::BASIC_STATS)?;
    let mounted = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(match path.parent() {
        Some(parent) if !mounted => parent.to_owned(),
        _ => path.to_owned(),
    })
}

fn try_rung(rung: Rung, wanted: &Wanted<'_>, place: &Path) -> Result<Result<Layer, Refused>> {
    let Wanted { path, source, access, .. } = *wanted;
    if rung == Rung::Snapshot && !subvolume::is_one(source)? {
        return Ok(Err(Refused("not a subvolume of btrfs".to_owned())));
    }
    let layer = |made, kind, holder| Layer { made, kind, rung, refused: Vec::new(), holder };
    if rung == Rung::Tmpfs {
        let made = memory::make(path, source);
        return Ok(match made {
            Ok(memory) => Ok(layer(Undo::default(), Kind::Memory(memory), None)),
            Err(error) => Err(Refused(format!("{error:#}"))),
        });
    }
    let mut made = Undo::default();
    let holder = match layer::hold_in(place, path, &mut made)? {
        Ok(holder) => holder,
        Err(refused) => return Ok(Err(refused)),
    };
    let shows = wanted.verbosity >= Verbosity::Normal;
    let tree = Directory { path, fd: source };
    let kind = match rung {
        Rung::Snapshot => snapshot(&holder, source, access),
        Rung::Overlay => overlay(&holder, source),
        Rung::Reflink => copied(&holder, tree, Sharing::Required, shows)?,
        Rung::Copy => copied(&holder, tree, Sharing::IfPossible, shows)?,
        Rung::Tmpfs => bail!("a bug in rspawn: a tmpfs has no holder"),
    };
    checkpoint::reach("layer-made");
    Ok(kind.map(|kind| layer(made, kind, Some(Rc::new(holder)))))
}

fn snapshot(holder: &Holder, source: BorrowedFd<'_>, access: Access) -> Result<Kind, Refused> {
    let made = subvolume::snapshot(source, holder.fd(), TREE, access);
    made.map(Kind::Tree).map_err(|error| Refused(format!("{error:#}")))
}

fn overlay(holder: &Holder, source: BorrowedFd<'_>) -> Result<Kind, Refused> {
    let make = || {
        let (upper, work) = layer::upper(holder.fd(), "tree", source)?;
        layer::hide_holders(source, &upper)?;
        let mounted = mounts::overlay(source, upper.as_fd(), work.as_fd())?;
        Ok(Kind::Overlay { upper, work, first: Some(mounted) })
    };
    make().map_err(|error: Error| Refused(format!("{error:#}")))
}

fn copied(
    holder: &Holder,
    source: Directory<'_>,
    sharing: Sharing,
    shows: bool,
) -> Result<Result<Kind, Refused>> {
    match copy_into(holder, source, sharing, shows) {
        Ok(tree) => Ok(Ok(Kind::Tree(tree))),
        Err(error) if is_refusal(&error) => Ok(Err(Refused(format!("{error:#}")))),
        Err(error) => Err(error),
    }
}

/// Whether another place or another way may serve.
fn is_refusal(error: &Error) -> bool {
    let of_the_place = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS];
    let errno = error.downcast_ref::<Errno>();
    error.is::<NotShared>() || errno.is_some_and(|errno| of_the_place.contains(errno))
}

/// Copies a tree into a holder: into a new subvolume where there are some (SNP-11), else into a directory (SNP-12).
pub(super) fn copy_into(
    holder: &Holder,
    source: Directory<'_>,
    sharing: Sharing,
    shows: bool,
) -> Result<OwnedFd> {
    match btrfs::create(holder.fd(), TREE).map_err(|error| error.raw_os_error()) {
        Ok(()) => {}
        // What file systems without subvolumes say.
        Err(Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) => {
            rustix::fs::mkdirat(holder.fd(), TREE, Mode::from_raw_mode(0o755))
                .context("making the copy's directory")?;
        }
        Err(code) => {
            let errno = Errno::from_raw_os_error(code.unwrap_or(libc::EIO));
            return Err(errno).context("making a subvolume for the copy");
        }
    }
    checkpoint::reach("copy-begun");
    let to = layer::subdirectory(holder.fd(), TREE).context("opening the copy's directory")?;
    let ends = one_mount::open(source, Directory { path: &holder.tree_path(), fd: to.as_fd() })?;
    let stat = rustix::fs::fstat(holder.fd()).context("asking for the copy's inode")?;
    copy::tree(&Order {
        from: ends.from.as_fd(),
        to: ends.to.as_fd(),
        sharing,
        without: &[copy::identity(&stat)],
        without_prefix: layer::PREFIX,
        shows,
    })
    .map_err(explain)?;
    // Only now, or what is in subvolumes of the tree could be too much for what the tree itself may hold.
    subvolume::copy_quota(ends.from.as_fd(), ends.to.as_fd()).context("limiting the copy")?;
    checkpoint::reach("copied");
    Ok(to)
}

fn explain(error: Error) -> Error {
    match error.downcast_ref::<Errno>() {
        Some(&(Errno::NOSPC | Errno::DQUOT)) => error
            .context(hinted("the place of the copy is full", "make room, or name another place")),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::{Keep, Ladder};
    use crate::settings::value::EphemeralReboot;

    /// SNP-04.
    #[test]
    fn a_tree_that_cannot_be_asked_whether_it_is_a_mount_point_is_named() {
        let ladder = Ladder { rungs: vec![Rung::Overlay], elsewhere: Vec::new() };
        let layer = LayerSpec {
            ladder,
            beside: true,
            on_reboot: EphemeralReboot::Keep,
            on_failure: Keep::No,
            hostname: None,
        };
        let wanted = Wanted {
            path: Path::new("/srv/tree"),
            // No descriptor at all.
            source: rustix::fs::ABS,
            access: Access::Write,
            layer: &layer,
            verbosity: Verbosity::Normal,
        };
        let error = format!("{:#}", make(&wanted).unwrap_err());
        assert!(error.starts_with("asking whether \"/srv/tree\" is a mount point: "), "{error}");
    }
}
