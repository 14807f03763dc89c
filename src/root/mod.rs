//! Where does the tree come from? [`acquire`] finds it, once per session; [`Root::mounted`] makes a mount
//! of it for each run of the container.
//!
//! Invariant: the source is checked before anything is made or copied (DEF-14), and locked before anything
//! is written (SNP-50).

pub mod discover;
pub mod gpt;
mod layer;
mod lock;
mod remove;

pub(crate) use layer::{hold, sweep as sweep_place};
pub(crate) use remove::tree as remove_tree;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;

use crate::errors::{Verbosity, hinted, warn};
use crate::ids::{self, Id, OfTree};
use crate::inroot::{InRoot, Links};
use crate::mounts;
use crate::spec::{Knobs, Start};
use crate::tree::open_host_directory;
use crate::undo::Undo;

/// What is done to get a root directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
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
}

impl RootSpec {
    /// The directory that the user named.
    pub fn source(&self) -> &Path {
        match self {
            Self::Directory { path, .. } => path,
            Self::Ephemeral { of, .. } => of,
        }
    }

    /// Whether the container may write.
    pub fn access(&self) -> Access {
        match self {
            Self::Directory { access, .. } | Self::Ephemeral { access, .. } => *access,
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
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "subvolume snapshot",
            Self::Overlay => "overlay",
        })
    }
}

/// A root that was acquired. What must be taken back is in the session's `Undo`.
#[derive(Debug)]
pub struct Root {
    source: OwnedFd,
    machine_id: Option<Id>,
    layer: Option<layer::Layer>,
    /// Held as long as the session.
    _locks: Vec<lock::Lock>,
}

impl Root {
    /// The machine id that the tree has.
    pub fn machine_id(&self) -> Option<&Id> {
        self.machine_id.as_ref()
    }

    /// The tree itself, where there is no throw-away layer over it.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        match self.layer {
            None => Some(self.source.as_fd()),
            Some(_) => None,
        }
    }

    /// A new mount of the root, attached nowhere yet, for one run of the container.
    pub fn mounted(&mut self) -> Result<OwnedFd> {
        match &mut self.layer {
            None => mounts::detached_copy(self.source.as_fd()),
            Some(layer) => layer.mounted(self.source.as_fd()),
        }
    }
}

/// Finds, checks and locks the root, and makes the layer of an ephemeral one.
///
/// # Errors
/// When there is no directory, it holds no OS tree (CHK-01, CHK-02), or it is in use (SNP-51).
pub fn acquire(
    spec: &RootSpec,
    start: &Start,
    verbosity: Verbosity,
    knobs: &Knobs,
    undo: &mut Undo,
) -> Result<Root> {
    let path = spec.source();
    let source = open_source(path)?;
    let root = InRoot::new(source.try_clone().context("keeping hold of the tree")?);
    check(path, &root, start, knobs)?;
    let machine_id = match ids::of_tree(&root) {
        OfTree::Id(id) => Some(id),
        OfTree::None => None,
        OfTree::Garbage => {
            let shown = path.display();
            warn(format_args!("/etc/machine-id of \"{shown}\" holds no machine id"));
            None
        }
    };
    match spec {
        RootSpec::Directory { access, .. } => {
            let locks = match knobs.locks {
                true => lock::tree(path, source.as_fd(), *access)?,
                false => Vec::new(),
            };
            Ok(Root { source, machine_id, layer: None, _locks: locks })
        }
        RootSpec::Ephemeral { of, rungs, elsewhere, .. } => {
            let layer = layer::make(of, source.as_fd(), rungs, elsewhere, verbosity, undo)?;
            Ok(Root { source, machine_id, layer: Some(layer), _locks: Vec::new() })
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
    let near = [Some(source), source.parent()].into_iter().flatten();
    for place in near.chain(elsewhere.iter().map(PathBuf::as_path)) {
        layer::sweep(place);
    }
}
