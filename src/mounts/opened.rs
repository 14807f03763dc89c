//! What of the host do the user's mounts take? It is opened once, by who still sees the host, before
//! anything of the container's tree is touched; later the rows are mounted by what was opened.
//!
//! A file system of the container shows up in a stage after the host is gone (`/proc`, `/sys`), so what is
//! mounted below one crosses to that stage as a mount that is attached nowhere yet.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;

use super::apply::{self, Detached, describe, place};
use super::layers::{self, Layers, open_host};
use super::{From, Kind, Mount, Scratch, Stage};
use crate::inroot::InRoot;
use crate::userns::map::IdMap;

/// The user's rows with what they take of the host.
#[derive(Debug)]
pub struct Opened(Vec<(Mount, Source)>);

#[derive(Debug)]
enum Source {
    /// All it needs is inside.
    Inside,
    Mount(Detached),
    Layers(Layers),
}

impl Opened {
    /// Opens everything, in the mount namespace in which the rows are mounted. New directories become those of `users`,
    /// if the container has others than the host.
    ///
    /// # Errors
    /// When a source is not there any more, or is something else than it was.
    pub fn open(rows: Vec<Mount>, scratch: &Scratch, users: Option<&IdMap>) -> Result<Self> {
        let opened = rows.into_iter().map(|row| {
            let source = source(&row, scratch, users).with_context(|| describe(&row))?;
            Ok((row, source))
        });
        Ok(Self(opened.collect::<Result<_>>()?))
    }

    /// Mounts the rows of one stage, in order. `users` are the container's, if it has its own; they are for the first
    /// stage, which sees the host's `/proc`, and which maps the owners of what is mounted by the next one too.
    ///
    /// # Errors
    /// At the first one that cannot be mounted.
    pub fn mount(&mut self, stage: Stage, root: &InRoot, users: Option<&IdMap>) -> Result<()> {
        for (row, source) in &mut self.0 {
            // The layers of an overlay must be mounts of the namespace in which it is made, so it is made here
            // for the next stage too (clone_private_mount in Linux, fs/namespace.c).
            if let Source::Layers(layers) = source {
                let made = apply::combined(row, layers, root).with_context(|| describe(row))?;
                *source = Source::Mount(made);
            }
            if let (Source::Mount(made), Some(users)) = (&*source, users) {
                apply::map_owners(row, made, users, root).with_context(|| describe(row))?;
            }
            if row.stage != stage {
                continue;
            }
            match source {
                Source::Inside => apply::apply(std::slice::from_ref(row), stage, root)?,
                Source::Mount(made) => place(row, made, root).with_context(|| describe(row))?,
                Source::Layers(_) => bail!("a bug in rspawn: layers that were not combined"),
            }
            // What is attached needs no descriptor, and the next stage keeps only what it is told to.
            *source = Source::Inside;
        }
        Ok(())
    }

    /// What must stay open for the next stage.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().filter_map(|(row, source)| match source {
            Source::Mount(made) if row.stage == Stage::Inner => Some(made.mount.as_fd()),
            _ => None,
        })
    }
}

/// Mounts one row at once: what is open as `source`, without what is mounted below it.
///
/// # Errors
/// When it cannot be mounted.
pub(crate) fn bind(source: BorrowedFd<'_>, row: &Mount, root: &InRoot) -> Result<()> {
    let made = apply::copy(source, false, row.attrs).with_context(|| describe(row))?;
    place(row, &made, root)
}

fn source(row: &Mount, scratch: &Scratch, users: Option<&IdMap>) -> Result<Source> {
    Ok(match &row.kind {
        Kind::Bind { from: From::Host(path), recursive, .. } => {
            let source = open_host(path, OFlags::PATH)?;
            Source::Mount(apply::copy(source.as_fd(), *recursive, row.attrs)?)
        }
        Kind::Bind { from: From::Scratch(number), recursive, .. } => {
            let source = layers::scratch_directory(*number, scratch, users)?;
            Source::Mount(apply::copy(source.as_fd(), *recursive, row.attrs)?)
        }
        Kind::Overlay { lower, upper } => {
            Source::Layers(Layers::open(lower, upper.as_ref(), Some(scratch))?)
        }
        _ => Source::Inside,
    })
}
