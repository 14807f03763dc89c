//! Where does the tree come from? [`acquire`] finds it, once per session; [`Root::mounted`] makes a mount
//! of it for each run of the container.
//!
//! Invariant: the source is checked before anything is made or copied (DEF-14), and locked before anything
//! is written (SNP-50).

mod attach;
pub mod check;
pub mod discover;
pub mod filesystem;
pub mod gpt;
mod image;
mod layer;
pub(crate) mod lock;
mod loop_device;
mod pivot;
mod policy;
mod remove;
mod throwaway;
pub mod verity;
mod volatile;

pub use attach::Mounted;
pub(crate) use attach::{Attached, Owners};

pub(crate) use attach::on_top;
pub(crate) use layer::{hold, sweep as sweep_place};
pub(crate) use remove::tree as remove_tree;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;

use self::discover::{Programs, Role};
use self::image::{Image, Part, Request};
use self::throwaway::{Throwaway, Wanted};
use self::verity::Verity;
use crate::errors::{hinted, warn};
use crate::ids::{self, Id, OfTree};
use crate::inroot::{InRoot, Links};
use crate::mounts;
use crate::settings::value::{ImagePolicy, Volatile};
use crate::spec::{Knobs, Spec, Start};
use crate::tree::open_host_directory;
use crate::undo::Undo;

/// What is done to get a root directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSpec {
    /// The directory itself.
    Directory {
        /// Canonical.
        path: PathBuf,
        /// Whether the container may write to it.
        access: Access,
    },
    /// A throw-away layer over a directory (SNP-01).
    Ephemeral {
        /// Canonical.
        of: PathBuf,
        /// Whether the container may write to the layer.
        access: Access,
        /// The ways to try, in this order.
        rungs: Vec<Rung>,
        /// Where the layer is made if not next to the source, in this order.
        elsewhere: Vec<PathBuf>,
    },
    /// The file systems of a disk image (IMG-01).
    Image {
        /// Canonical.
        path: PathBuf,
        /// Whether the container may write to it.
        access: Access,
        /// Which partitions may be used (I-05).
        policy: Option<ImagePolicy>,
        /// What is said of dm-verity (I-10).
        verity: Verity,
        /// How it is kept from being changed, if it is.
        throw_away: Option<Ladder>,
    },
}

/// Ways to something that is thrown away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// The ways to try, in this order.
    pub rungs: Vec<Rung>,
    /// Where a layer is made if not next to the source, in this order.
    pub elsewhere: Vec<PathBuf>,
}

impl RootSpec {
    /// The directory or image that the user named.
    pub fn source(&self) -> &Path {
        match self {
            Self::Directory { path, .. } | Self::Image { path, .. } => path,
            Self::Ephemeral { of, .. } => of,
        }
    }

    /// Whether the container may write.
    pub fn access(&self) -> Access {
        match self {
            Self::Directory { access, .. }
            | Self::Ephemeral { access, .. }
            | Self::Image { access, .. } => *access,
        }
    }
}

/// Whether something may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// `--read-only`.
    Read,
    /// The default.
    Write,
}

/// A way to a throw-away layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// A snapshot of a btrfs subvolume (SNP-10).
    Snapshot,
    /// An overlay whose upper layer is a directory of ours.
    Overlay,
    /// A copy of an image that shares its blocks until they are written (SNP-20).
    Reflink,
    /// A copy of an image.
    Copy,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "subvolume snapshot",
            Self::Overlay => "overlay",
            Self::Reflink => "reflink copy",
            Self::Copy => "copy",
        })
    }
}

/// A root that was acquired. What must be taken back is in the session's `Undo`.
#[derive(Debug)]
pub struct Root {
    source: Source,
    /// Which rung was taken for a throw-away layer or copy.
    rung: Option<Rung>,
    machine_id: Option<Id>,
    /// Held as long as the session.
    _locks: Vec<lock::Lock>,
}

#[derive(Debug)]
enum Source {
    Directory(OwnedFd),
    Layer(OwnedFd, layer::Layer),
    Image {
        image: Image,
        holder: Option<Rc<layer::Holder>>,
        /// What was mounted to look at it, for the first run.
        first: Option<Vec<Part>>,
    },
}

impl Root {
    /// The machine id that the tree has.
    pub fn machine_id(&self) -> Option<&Id> {
        self.machine_id.as_ref()
    }

    /// User and group of the tree's top directory: of the source, where there is a throw-away layer over it.
    pub(crate) fn owner(&mut self) -> Result<(u32, u32)> {
        let stat = match &mut self.source {
            Source::Directory(tree) | Source::Layer(tree, _) => rustix::fs::fstat(tree),
            Source::Image { image, first, .. } => {
                let parts = first.take().map_or_else(|| image.mounted(None), Ok)?;
                let root = first.insert(parts).first().context("the image has no root")?;
                rustix::fs::fstat(&root.mount)
            }
        };
        let stat = stat.context("asking for the tree's owner")?;
        Ok((stat.st_uid, stat.st_gid))
    }

    /// How the tree was come by: as it is, or by the rung that was taken.
    pub fn way(&self) -> &'static str {
        match (self.rung, &self.source) {
            (None, Source::Image { .. }) => "image",
            (None, _) => "directory",
            (Some(Rung::Snapshot), _) => "snapshot",
            (Some(Rung::Overlay), _) => "overlay",
            (Some(Rung::Reflink), _) => "reflink",
            (Some(Rung::Copy), _) => "copy",
        }
    }

    /// The tree itself, where it is a directory without a throw-away layer over it.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Directory(tree) => Some(tree.as_fd()),
            Source::Layer(..) | Source::Image { .. } => None,
        }
    }

    /// New mounts of the root, attached nowhere yet, for one run of the container. `owner` is its root, user and group
    /// of the host, if its users are its own.
    pub fn mounted(&mut self, owner: Option<(u32, u32)>) -> Result<Mounted> {
        let mut holder = None;
        let tree = match &mut self.source {
            Source::Directory(tree) => mounts::detached_copy(tree.as_fd())?,
            Source::Layer(tree, layer) => match layer.holder().filter(|_| owner.is_some()) {
                // Whom its files belong to is decided before there is an overlay.
                Some(found) => {
                    holder = Some(found);
                    mounts::detached_directory(tree.as_fd())?
                }
                None => layer.mounted(tree.as_fd())?,
            },
            Source::Image { image, holder, first } => {
                let parts = match (first.take(), owner) {
                    (None, owner) => image.mounted(owner)?,
                    (Some(parts), None) => parts,
                    (Some(parts), Some(owner)) => image.given_to(owner, parts)?,
                };
                return Ok(Mounted { parts, holder: holder.clone(), programs: image.programs() });
            }
        };
        let (can_be_covered, is_owned_by_mount) = (true, false);
        let root = Part { role: Role::Root, mount: tree, can_be_covered, is_owned_by_mount };
        Ok(Mounted { parts: vec![root], holder, programs: Programs::Native })
    }
}

/// Finds, checks and locks the root, and makes the layer of an ephemeral one.
///
/// # Errors
/// When there is no directory, it holds no OS tree (CHK-01, CHK-02), it is in use (SNP-51), or an image
/// has no root (IMG-16).
pub fn acquire(spec: &Spec, undo: &mut Undo) -> Result<Root> {
    let Spec { verbosity, knobs, .. } = spec;
    let verbosity = *verbosity;
    let path = spec.root.source();
    match &spec.root {
        RootSpec::Directory { access, .. } => {
            let (source, machine_id) = tree(path, spec)?;
            let locks = match knobs.locks {
                true => lock::tree(path, source.as_fd(), *access)?,
                false => Vec::new(),
            };
            Ok(Root { source: Source::Directory(source), rung: None, machine_id, _locks: locks })
        }
        RootSpec::Ephemeral { of, rungs, elsewhere, .. } => {
            let (source, machine_id) = tree(path, spec)?;
            let layer = layer::make(of, source.as_fd(), rungs, elsewhere, verbosity, undo)?;
            let rung = Some(layer.rung());
            Ok(Root { source: Source::Layer(source, layer), rung, machine_id, _locks: Vec::new() })
        }
        RootSpec::Image { access, policy, verity, throw_away, .. } => {
            let request = Request { path, access: *access, policy: policy.as_ref(), verity };
            let Throwaway { image, rung, holder, locks } = match throw_away {
                None => {
                    let file = image::open(path, *access)?;
                    let locks = match knobs.locks {
                        true => lock::image(path, file.as_fd(), *access)?,
                        false => Vec::new(),
                    };
                    let image = Image::attach(file, request)?;
                    Throwaway { image, rung: None, holder: None, locks }
                }
                Some(Ladder { rungs, elsewhere }) => {
                    let locks = knobs.locks;
                    let wanted = Wanted { request, rungs, elsewhere, locks, verbosity };
                    throwaway::make(&wanted, undo)?
                }
            };
            // Unlike a directory it is not looked at whether it holds an OS tree (CHK-03).
            let parts = image.mounted(None).with_context(|| format!("\"{}\"", path.display()))?;
            let root = parts.first().context("the image has no root")?;
            let machine_id = machine_id(path, &new_root(root.mount.as_fd(), spec)?, spec);
            let source = Source::Image { image, holder: holder.map(Rc::new), first: Some(parts) };
            Ok(Root { source, rung, machine_id, _locks: locks })
        }
    }
}

/// A directory that holds an OS tree, and the id that it has. What becomes the root is what counts (I-11).
fn tree(path: &Path, spec: &Spec) -> Result<(OwnedFd, Option<Id>)> {
    let source = open_source(path)?;
    let root = new_root(source.as_fd(), spec)?;
    check(path, &root, &spec.start, &spec.knobs)?;
    let machine_id = machine_id(path, &root, spec);
    Ok((source, machine_id))
}

/// The directory that becomes the root, in a tree that is attached nowhere yet.
fn new_root(tree: BorrowedFd<'_>, spec: &Spec) -> Result<InRoot> {
    let root = InRoot::new(tree.try_clone_to_owned().context("keeping hold of the tree")?);
    match &spec.pivot {
        None => Ok(root),
        Some(pivot) => Ok(InRoot::new(pivot::new_root(&root, &pivot.new)?)),
    }
}

/// The id that the container will find, which is none in an empty /etc; what is no id is told of.
fn machine_id(path: &Path, root: &InRoot, spec: &Spec) -> Option<Id> {
    if spec.volatile == Volatile::Yes {
        return None;
    }
    match ids::of_tree(root) {
        OfTree::Id(id) => Some(id),
        OfTree::None => None,
        OfTree::Garbage => {
            let shown = path.display();
            warn(format_args!("/etc/machine-id of \"{shown}\" holds no machine id"));
            None
        }
    }
}

fn open_source(path: &Path) -> Result<OwnedFd> {
    open_host_directory(path).map_err(|errno| {
        let what = format!("opening the directory \"{}\"", path.display());
        let hint = match errno {
            Errno::NOTDIR => "-D takes a directory; a disk image is given with -i",
            Errno::NOENT => "is it spelled right? relative paths start at the working directory",
            _ => return anyhow::Error::new(errno).context(what),
        };
        anyhow::Error::new(errno).context(hinted(what, hint))
    })
}

/// Places of os-release (os-release(5)).
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// That there is an OS tree: with an init, one that says which OS it is; otherwise a /usr.
fn check(path: &Path, root: &InRoot, start: &Start, knobs: &Knobs) -> Result<()> {
    let shown = path.display();
    let (found, lacks) = match start {
        Start::Init { .. } if !knobs.checks_os_release => return Ok(()),
        Start::Init { .. } => {
            (OS_RELEASE.iter().any(|file| root.holds(Path::new(file))), "os-release file")
        }
        Start::Command { .. } | Start::Shell => {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            (root.open(Path::new("/usr"), Links::Inside, flags).is_ok(), "/usr directory")
        }
    };
    if found {
        return Ok(());
    }
    Err(hinted(
        format!("\"{shown}\" holds no OS tree: it has no {lacks}"),
        "point -D at the top directory of an installed system; mmdebstrap(1) makes one",
    )
    .into())
}

/// Collects what dead runs left of layers over a directory: next to it, in it, and `elsewhere`.
pub fn sweep(source: &Path, elsewhere: &[PathBuf]) {
    verity::sweep();
    let near = [Some(source), source.parent()].into_iter().flatten();
    for place in near.chain(elsewhere.iter().map(PathBuf::as_path)) {
        layer::sweep(place);
    }
}
