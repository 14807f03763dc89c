//! How does a directory of the tree become the root (`--pivot-root=`)? As a mount of its own on top of the tree,
//! which is where the trees of OSTree want to be run from (PIV-10).
//!
//! Both paths are walked inside: the first in the tree, the second in the new root. Moving mounts through a
//! directory of the host, as systemd-nspawn does, is not needed: a second mount of the tree takes the
//! place of the former root (PIV-05…06).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::OFlags;

use super::attach::on_top;
use crate::errors::hinted;
use crate::inroot::{InRoot, Links};
use crate::mounts;
use crate::settings::value::PivotRoot;

/// The directory that becomes the root.
///
/// # Errors
/// When the tree has no such directory.
pub(super) fn new_root(tree: &InRoot, path: &Path) -> Result<OwnedFd> {
    directory(tree, path, "--pivot-root= names a directory of the tree")
}

fn directory(tree: &InRoot, path: &Path, hint: &str) -> Result<OwnedFd> {
    tree.open(path, Links::Inside, OFlags::PATH | OFlags::DIRECTORY).with_context(|| {
        hinted(format!("--pivot-root=: looking for the directory \"{}\"", path.display()), hint)
    })
}

/// The former root, if it is kept.
#[derive(Debug)]
pub(super) struct Former(Option<OwnedFd>);

/// Makes it so. What is mounted below the new root is not taken along (PIV-03).
///
/// # Errors
/// When one of the directories is missing, with its name.
pub(super) fn apply(tree: &InRoot, pivot: &PivotRoot) -> Result<(InRoot, Former)> {
    let new = mounts::detached_directory(new_root(tree, &pivot.new)?.as_fd())?;
    // Copied before it is covered.
    let old = pivot.old.is_some().then(|| mounts::detached_copy(tree.as_fd())).transpose()?;
    let root = on_top(new.as_fd())?;
    if let Some(old) = &old {
        put(old, pivot, &root)?;
    }
    Ok((root, Former(old)))
}

impl Former {
    /// Puts it into what covers the new root, too.
    pub(super) fn put_again(&self, pivot: &PivotRoot, cover: &InRoot) -> Result<()> {
        match &self.0 {
            Some(old) => put(&mounts::detached_copy(old.as_fd())?, pivot, cover),
            None => Ok(()),
        }
    }
}

fn put(old: &OwnedFd, pivot: &PivotRoot, root: &InRoot) -> Result<()> {
    let Some(path) = &pivot.old else { return Ok(()) };
    let hint = "the place of the former root is a directory of the new one";
    let place = directory(root, path, hint)?;
    mounts::attach(old, &place).context("--pivot-root=: keeping the former root")
}
