//! Where does the tree come from? [`acquire`] finds it, once per session; [`Root::mounted`] makes a mount
//! of it for each run of the container.
//!
//! Invariant: the source is checked before anything is made or copied (DEF-14), and locked before anything
//! is written (SNP-50).

mod attach;
pub mod check;
mod copy;
pub mod discover;
pub mod filesystem;
pub mod gpt;
mod image;
mod interrupt;
mod kept;
mod ladder;
mod layer;
pub(crate) mod lock;
mod loop_device;
mod memory;
mod one_mount;
mod pivot;
mod plan;
mod policy;
mod quota;
mod remove;
mod subvolume;
mod template;
mod throwaway;
pub mod verity;
mod volatile;

pub use attach::Mounted;
pub(crate) use attach::{Attached, Owners};
pub use plan::{Access, Keep, Ladder, LayerSpec, RootSpec, Rung};

pub(crate) use attach::on_top;
pub(crate) use layer::{hold, sweep as sweep_place};
pub(crate) use remove::tree as remove_tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use rustix::io::Errno;

use self::discover::{Programs, Role};
use self::image::{Image, Part, Request};
use self::ladder::Layer;
use self::throwaway::{Throwaway, Wanted};
use crate::errors::{Verbosity, hinted, warn};
use crate::ids::{self, Id, OfTree};
use crate::inroot::{InRoot, Links};
use crate::integration;
use crate::mounts;
use crate::settings::value::{EphemeralReboot, Volatile};
use crate::spec::{Knobs, Spec, Start};
use crate::tree::open_host_directory;
use crate::undo::Undo;

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
    Layer {
        /// Canonical.
        path: PathBuf,
        of: OwnedFd,
        layer: Option<Layer>,
        /// The mount for the first run.
        first: Option<OwnedFd>,
    },
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
            Source::Directory(tree) | Source::Layer { of: tree, .. } => rustix::fs::fstat(tree),
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
            (Some(Rung::Tmpfs), _) => "tmpfs",
        }
    }

    /// Which rungs of a throw-away layer were tried before, each with the reason why it did not bear.
    pub fn refused(&self) -> &[String] {
        match &self.source {
            Source::Layer { layer: Some(layer), .. } => layer.refused(),
            _ => &[],
        }
    }

    /// The tree itself, where it is a directory without a throw-away layer over it.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Directory(tree) => Some(tree.as_fd()),
            Source::Layer { .. } | Source::Image { .. } => None,
        }
    }

    /// New mounts of the root, attached nowhere yet, for one run of the container. `owner` is its root, user and group
    /// of the host, if its users are its own.
    ///
    /// # Errors
    /// When the kernel makes none, or a layer that a reboot throws away cannot be made anew.
    pub fn mounted(&mut self, owner: Option<(u32, u32)>, spec: &Spec) -> Result<Mounted> {
        let mut holder = None;
        let tree = match &mut self.source {
            Source::Directory(tree) => mounts::detached_copy(tree.as_fd())?,
            Source::Layer { path, of, layer, first } => {
                let mount =
                    first.take().map_or_else(|| again(path, of.as_fd(), layer, spec), Ok)?;
                match layer.as_ref().and_then(Layer::holder).filter(|_| owner.is_some()) {
                    // Whom its files belong to is decided before there is an overlay.
                    Some(found) => {
                        holder = Some(found);
                        mounts::detached_directory(of.as_fd())?
                    }
                    None => mount,
                }
            }
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

    /// Lets go of it after the last run. A layer whose run has failed stays if that was asked for; returns where.
    ///
    /// # Errors
    /// When it should stay and cannot.
    pub fn close(mut self, spec: &Spec, failed: bool) -> Result<Option<PathBuf>> {
        let Source::Layer { path, layer, .. } = &mut self.source else { return Ok(None) };
        let (Some(layer), RootSpec::Ephemeral { layer: asked, .. }) = (layer.take(), &spec.root)
        else {
            return Ok(None);
        };
        if !failed || asked.on_failure == Keep::No {
            layer.close();
            return Ok(None);
        }
        let Some(holder) = layer.into_holder() else { return Ok(None) };
        let there = holder.path().parent().unwrap_or(Path::new("/")).to_owned();
        let place = match (&asked.on_failure, asked.ladder.elsewhere.first()) {
            (Keep::In(place), _) => place.clone(),
            // In its own source it would be a part of that from now on.
            (_, Some(elsewhere)) if there == *path => elsewhere.clone(),
            _ => there,
        };
        let kept = kept::keep(holder, &place, &spec.machine);
        kept.map(Some).with_context(|| format!("keeping what was written, in {}", place.display()))
    }
}

/// The mount for another run, of the same layer or of a new one.
fn again(
    path: &Path,
    source: BorrowedFd<'_>,
    layer: &mut Option<Layer>,
    spec: &Spec,
) -> Result<OwnedFd> {
    let RootSpec::Ephemeral { access, layer: asked, .. } = &spec.root else {
        bail!("a bug in rspawn: a layer that nobody asked for");
    };
    match layer {
        Some(layer) if asked.on_reboot == EphemeralReboot::Keep => layer.mounted(path, source),
        _ => {
            if let Some(layer) = layer.take() {
                layer.close();
            }
            let (made, mount) = new_layer(path, source, *access, asked, spec)?;
            *layer = Some(made);
            Ok(mount)
        }
    }
}

/// A layer and its first mount.
fn new_layer(
    path: &Path,
    source: BorrowedFd<'_>,
    access: Access,
    layer: &LayerSpec,
    spec: &Spec,
) -> Result<(Layer, OwnedFd)> {
    let wanted = ladder::Wanted { path, source, access, layer, verbosity: spec.verbosity };
    let mut made = ladder::make(&wanted)?;
    let mount = made.mounted(path, source)?;
    if let Some(name) = layer.hostname.as_ref().filter(|_| made.rung() == Rung::Tmpfs) {
        let root = mount.try_clone().context("keeping hold of the layer")?;
        integration::put_host_name(&InRoot::new(root), name)?;
    }
    Ok((made, mount))
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
        RootSpec::Directory { access, .. } => directory(path, *access, spec),
        RootSpec::Template { from, access, .. } => {
            if template::exists(path)? {
                if verbosity >= Verbosity::Normal {
                    template::tell_that_it_exists(path, from);
                }
            } else {
                // Before it is copied (DEF-14).
                let (source, _) = tree(from, spec)?;
                let wanted = template::Wanted { path, template: from, access: *access, verbosity };
                template::fill(&wanted, source.as_fd()).with_context(|| {
                    format!(
                        "filling \"{}\" from the template \"{}\"",
                        path.display(),
                        from.display()
                    )
                })?;
            }
            directory(path, *access, spec)
        }
        RootSpec::Ephemeral { access, layer, .. } => {
            let (of, machine_id) = tree(path, spec)?;
            let (made, first) = new_layer(path, of.as_fd(), *access, layer, spec)?;
            let (rung, path) = (Some(made.rung()), path.to_owned());
            let source = Source::Layer { path, of, layer: Some(made), first: Some(first) };
            Ok(Root { source, rung, machine_id, _locks: Vec::new() })
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

/// A directory as it is.
fn directory(path: &Path, access: Access, spec: &Spec) -> Result<Root> {
    let (source, machine_id) = tree(path, spec)?;
    let locks = match spec.knobs.locks {
        true => lock::tree(path, source.as_fd(), access)?,
        false => Vec::new(),
    };
    Ok(Root { source: Source::Directory(source), rung: None, machine_id, _locks: locks })
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
