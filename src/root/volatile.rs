//! What of a root is kept (`--volatile=`)? Mounts over the tree, which is itself only read: nothing of it changes.
//!
//! They are put in place by descriptor, without a directory of the host, so nothing must be undone when one of
//! them fails: they go with outer's mount namespace (VOL-02).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::attach::on_top;
use super::layer::Uppers;
use crate::errors::hinted;
use crate::inroot::{InRoot, Links};
use crate::mounts::{self, Attrs};
use crate::settings::value::Volatile;

/// What the root is then.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) root: InRoot,
    /// Where upper layers can be made, if the root is an overlay.
    pub(super) holder: Option<Uppers>,
}

/// Makes it so.
///
/// # Errors
/// When the tree has not what the mode keeps of it.
pub(super) fn apply(tree: InRoot, mode: Volatile) -> Result<Changed> {
    let root = match mode {
        Volatile::No => tree,
        Volatile::Yes => only_usr(&tree).context("--volatile=yes")?,
        Volatile::State => new_state(tree).context("--volatile=state")?,
        Volatile::Overlay => return covered(&tree).context("--volatile=overlay"),
    };
    Ok(Changed { root, holder: None })
}

/// A tmpfs with the tree's /usr, read-only (VOL-01).
fn only_usr(tree: &InRoot) -> Result<InRoot> {
    let bin = rustix::fs::statat(tree, "bin", AtFlags::SYMLINK_NOFOLLOW);
    if bin.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
        bail!(hinted(
            "/bin of the tree is a directory",
            "only /usr is kept, so all programs must be there: try --volatile=overlay",
        ));
    }
    let usr = directory(tree, "/usr", "only /usr is kept, and the tree has none")?;
    let usr = mounts::detached_copy(usr.as_fd())?;
    let fresh = memory()?;
    rustix::fs::mkdirat(&fresh, "usr", Mode::from_raw_mode(0o755)).context("making /usr")?;
    let root = on_top(fresh.as_fd())?;
    mounts::attach(&usr, directory(&root, "/usr", "")?)?;
    mounts::make_read_only(usr.as_fd()).context("making /usr read-only")?;
    Ok(root)
}

/// The tree, read-only, with a tmpfs on /var (VOL-03). A missing /var is not made: the tree is not changed.
fn new_state(tree: InRoot) -> Result<InRoot> {
    mounts::make_read_only(tree.as_fd()).context("making the tree read-only")?;
    let hint = "the tree must have a directory /var, since nothing in it is changed";
    mounts::attach(&memory()?, directory(&tree, "/var", hint)?)?;
    Ok(tree)
}

/// An overlay over the tree, whose upper layer is in memory (I-09).
fn covered(tree: &InRoot) -> Result<Changed> {
    mounts::make_read_only(tree.as_fd()).context("making the tree read-only")?;
    let holder = memory()?;
    // An overlay takes only layers that are in our mount namespace. It is covered by the next mount.
    on_top(holder.as_fd())?;
    let holder = Uppers::in_dir(holder);
    let (upper, work) = holder.upper("root", tree.as_fd())?;
    let cover = mounts::overlay(tree.as_fd(), upper.as_fd(), work.as_fd())?;
    Ok(Changed { root: on_top(cover.as_fd())?, holder: Some(holder) })
}

/// A tmpfs that cannot take all of the memory (I-09).
pub(super) fn memory() -> Result<OwnedFd> {
    let options = [("mode", "755"), ("size", "25%"), ("nr_inodes", "1m")];
    let options = options.map(|(name, value)| (name, value.to_owned()));
    // With devices, as any root: who makes systems inside makes nodes, and the container's cgroup decides which open.
    let attrs = Attrs { strictatime: true, ..Attrs::default() };
    mounts::instance("tmpfs", &options, attrs).context("mounting a tmpfs")
}

fn directory(tree: &InRoot, path: &str, hint: &str) -> Result<OwnedFd> {
    tree.open(Path::new(path), Links::Inside, OFlags::PATH | OFlags::DIRECTORY)
        .with_context(|| hinted(format!("looking for {path}"), hint))
}
