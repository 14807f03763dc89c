//! How does a directory of a user of the host appear as that of a user of the container? It is taken hold of once, while
//! the host is in sight, and is mounted when it is known who the user is inside.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::OFlags;

use super::apply::{self, Detached};
use super::idmap::{Mapping, Reach, Refused, Shown};
use super::layers::open_host;
use super::{Attrs, attach};
use crate::errors::warn;
use crate::inroot::{InRoot, Links};

/// What a user may have at home is files: a node or a set-id program of it has no power over the container.
const ATTRS: Attrs = Attrs { nosuid: true, nodev: true, ..Attrs::none() };

/// A directory of the host with all that is mounted below it, attached nowhere yet.
#[derive(Debug)]
pub(crate) struct Home(Detached);

impl Home {
    /// Opens a path without links.
    ///
    /// # Errors
    /// When it is no directory, or leads over a link by now.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let source = open_host(path, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Self(apply::copy(source.as_fd(), true, ATTRS)?))
    }

    /// Mounts it, with its files shown so.
    ///
    /// # Errors
    /// When something else keeps it from that than the kernel or the file system.
    pub(crate) fn mount(
        &self,
        shown: &Shown,
        on: &Path,
        tree: &InRoot,
    ) -> Result<Result<(), Refused>> {
        let mount = self.0.mount.as_fd();
        match Mapping::new(shown)?.put_on_as_much_as_can_be(mount)? {
            Ok(Reach::All) => {}
            Ok(Reach::Alone) => warn(format_args!(
                "what is mounted in {} belongs to nobody there, since one of those file systems maps no owners",
                on.display()
            )),
            Err(refused) => return Ok(Err(refused)),
        }
        let place = tree.make_dir(on, Links::Refused).context("making its place")?;
        // The attributes are set: a kernel that leaves them for now maps nothing.
        attach(mount, place).map(Ok)
    }
}
