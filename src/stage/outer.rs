//! The first part of a start: it makes the tree.
//!
//! What it makes is owned by the host, and so out of the container's reach.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::link::Link;
use super::protocol::{FromInner, ToInner};
use super::{apart, inner};
use crate::bind_user;
use crate::credentials::{self, Credential};
use crate::errors::Verbosity;
use crate::ids::Ids;
use crate::inroot::InRoot;
use crate::integration;
use crate::mounts::{self, Opened, Scratch, Stage};
use crate::notify::Inbox;
use crate::root::{Access, Attached, Mounted, Owners};
use crate::security::limits::{self, Personality};
use crate::settings::value::Volatile;
use crate::spec::{Spec, Users};
use crate::sys::process::keep_only;
use crate::tell;
use crate::tree;
use crate::userns::{self, map::IdMap};

/// What the tree is made of, by inheritance.
pub(super) struct Outer<'a> {
    pub(super) spec: &'a Spec,
    pub(super) ids: &'a Ids,
    pub(super) root: Mounted,
    pub(super) scratch: &'a Scratch,
    /// To be named in the container; the supervisor reads it.
    pub(super) inbox: &'a Inbox,
    pub(super) credentials: &'a [Credential],
    pub(super) link: &'a Link<FromInner, ToInner>,
}

/// What [`run`] has made.
pub(super) struct Made {
    /// The container's root, in the mount namespace of who made it.
    pub(super) tree: InRoot,
    /// What inner mounts.
    pub(super) custom: Opened,
    /// Where who has made it goes on, if that is not who becomes the payload.
    pub(super) stand: Option<InRoot>,
}

impl Made {
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.tree.as_fd()].into_iter().chain(self.custom.fds())
    }
}

/// Makes the tree. `users` are those of the container, if it has others than the host, and `kept` is all that is
/// left open but what is returned.
pub(super) fn run(
    outer: &Outer<'_>,
    users: Option<&IdMap>,
    kept: &[BorrowedFd<'_>],
) -> Result<Made> {
    let Outer { spec, ids, root, scratch, credentials, inbox, link } = outer;
    let ours = [inbox.as_fd()].into_iter().chain(root.fds()).chain(scratch.fds());
    let kept: Vec<_> = kept.iter().copied().chain(ours).collect();
    keep_only(spec.handover.end(), &kept).context("closing what this stage does not need")?;
    inner::tie_to_supervisor(link)?;
    // Files of the tree get the modes that are asked for, whatever the caller's umask (G-09).
    rustix::process::umask(rustix::fs::Mode::empty());
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).context("keeping our mounts from the host")?;
    let rows = mounts::mapped(mounts::custom(&spec.mounts), users)?;
    let mut custom = Opened::open(rows, scratch, users)?;
    let bound_users = bind_user::open(&spec.bound_users)?;
    let stand = users.map(|_| apart::stand()).transpose()?;
    if let Some(map) = users {
        userns::make_files_as_root_of(map)?;
        inner::tie_to_supervisor(link)?;
    }
    let owners = owners(spec, users);
    let Attached { root: tree, settled } =
        root.attach(spec.pivot.as_ref(), spec.volatile, owners)?;
    if let Some(settled) = settled.filter(|_| spec.verbosity == Verbosity::Verbose) {
        tell!("rspawn: owners of the tree: {settled}");
    }
    if root.is_secondary() && spec.limits.personality.is_none() {
        limits::set_personality(Personality::Secondary).context("becoming a 32-bit machine")?;
    }
    tree::skeleton(&tree)?;
    // Otherwise it is decided by the mode what can be written (CON-09).
    if spec.volatile == Volatile::No && spec.root.access() == Access::Read {
        mounts::make_read_only(tree.as_fd()).context("making the tree read-only")?;
    }
    let rows = mounts::labelled(mounts::table(&spec.api), spec.labels.files.as_deref());
    mounts::apply(&rows, Stage::Outer, &tree)?;
    tree::devices(&tree, users)?;
    tree::host_files(&tree, ids, &spec.knobs.service)?;
    inbox.appear(&tree)?;
    if !credentials.is_empty() {
        credentials::make_place(&tree)?;
    }
    if let Some(map) = users {
        bind_user::appear(&bound_users, map, &tree)?;
    }
    tree::covers(&tree)?;
    integration::apply(&spec.integration, ids, &tree)?;
    custom.mount(Stage::Outer, &tree, users)?;
    Ok(Made { tree, custom, stand })
}

/// Whose the files of the tree are to be. What is not kept, or only read, is not changed for it.
fn owners<'a>(spec: &Spec, users: Option<&'a IdMap>) -> Option<Owners<'a>> {
    let (Users::Private { ownership, .. }, Some(map)) = (&spec.users, users) else { return None };
    let access = match spec.volatile {
        Volatile::No => spec.root.access(),
        _ => Access::Read,
    };
    let shows = spec.verbosity >= Verbosity::Normal;
    Some(Owners { map, ownership: *ownership, access, shows })
}

/// Makes the tree our root and lets go of the host's (R5). With both arguments the same, the old root ends
/// up on top of the new one and is taken off there (pivot_root(2), NOTES), after all that was made on top of
/// the old one on the way to the tree: what stayed there would be reached over `/..`.
pub(super) fn switch_root(tree: &InRoot) -> Result<()> {
    fchdir(tree).context("entering the container's root")?;
    pivot_root(".", ".").context("switching the root")?;
    let ours = mount_id(tree.as_fd(), "")?;
    while mount_id(CWD, "..")? != ours {
        unmount(".", UnmountFlags::DETACH).context("letting go of the host's root")?;
    }
    chdir("/").context("entering the container's root")
}

/// Which mount a path leads to; `..` of the root leads to the topmost one on it.
fn mount_id(dir: BorrowedFd<'_>, path: &str) -> Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(dir, path, flags, StatxFlags::MNT_ID).context("looking at the root")?;
    ensure!(
        StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID),
        "no mount id"
    );
    Ok(stat.stx_mnt_id)
}
