//! How does a container with users of its own come by its process 1? What makes its tree has rights over the host, and
//! process 1 has none, so that they are two processes.
//!
//! | process   | user | mnt | pid, uts, ipc | net                   | does |
//! |-----------|------|-----|---------------|-----------------------|------|
//! | maker     | host | own | host          | host                  | [`outer`](super::outer), then [`run`] |
//! | process 1 | own  | own | own           | own, if it is private | [`inner`](super::inner) |
//!
//! Mounts that are copied into the mount namespace of a user namespace cannot be taken off there
//! (mount_namespaces(7)). So the maker leaves the host behind and stands in a root of its own that holds nothing but
//! the tree and what the kernel wants to be in sight; process 1 copies the tree out of that and leaves it, too.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::{Mode, OFlags};

use super::Parent;
use super::fork::fork_into;
use super::inner::{self, Inner};
use super::outer::{self, Made};
use super::protocol::{FromInner, ToInner};
use crate::inroot::{InRoot, Links};
use crate::mounts::{self, Attrs};
use crate::root;

/// Where the tree is in the maker's root.
const TREE: &str = "/tree";

/// File systems of which the kernel makes a new one in a user namespace only where one is in sight, whole, and their
/// places in the maker's root.
const IN_SIGHT: [(&str, &str); 2] = [("/proc", "proc"), ("/sys", "sysfs")];

/// Makes process 1, with `namespaces` and users of its own, in `cgroup`, and says which it is.
pub(super) fn run(
    inner: Inner<'_>,
    made: Made,
    cgroup: Option<BorrowedFd<'_>>,
    namespaces: libc::c_int,
) -> Result<()> {
    let link = inner.link;
    let Made { tree, custom, stand } = made;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("opening /proc")?;
    inner::limit(inner.spec, &proc)?;
    drop(proc);
    leave_the_host(&stand.context("a bug in rspawn: there is no place to stand")?, &tree)?;
    let child = fork_into(
        cgroup,
        namespaces | libc::CLONE_NEWUSER,
        Parent::OurParent,
        || {
            become_root(inner)?;
            let tree = copy_of_tree()?;
            inner::run(Inner { apart: true, ..inner }, Made { tree, custom, stand: None })
        },
        |error| inner::tell(link, &error),
    )
    .context("making the container's namespaces")?;
    link.send(&FromInner::First(child.pid), Some(child.pidfd.as_fd()))
}

/// Makes the maker's root, on top of the host's. The tree is made on top of that: below what is to hold it it could
/// not be moved there.
pub(super) fn stand() -> Result<InRoot> {
    let attrs = Attrs { nosuid: true, nodev: true, noexec: true, ..Attrs::default() };
    let options = [("mode", "755".to_owned()), ("size", "64k".to_owned())];
    let stand = mounts::instance("tmpfs", &options, attrs).context("mounting a tmpfs")?;
    let stand = root::on_top(stand.as_fd())?;
    for (path, fstype) in IN_SIGHT {
        let place = stand.make_dir(Path::new(path), Links::Refused)?;
        let made = mounts::instance::<&str>(fstype, &[], attrs);
        made.and_then(|made| mounts::attach(&made, place))
            .with_context(|| format!("mounting {fstype}"))?;
    }
    Ok(stand)
}

fn leave_the_host(stand: &InRoot, tree: &InRoot) -> Result<()> {
    let place = stand.make_dir(Path::new(TREE), Links::Refused)?;
    mounts::attach(tree, place).context("moving the tree")?;
    outer::switch_root(stand)
}

/// Waits until our ids are mapped, and becomes the root that they make us.
fn become_root(inner: Inner<'_>) -> Result<()> {
    inner::tie_to_supervisor(inner.link)?;
    match inner.link.recv()? {
        Some((ToInner::Mapped, _)) => {}
        Some(_) => bail!("the supervisor is out of turn: a bug in rspawn"),
        None => bail!("the supervisor is gone"),
    }
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).context("dropping the host's groups")?;
    setresgid(gid, gid, gid).context("becoming the container's root group")?;
    setresuid(uid, uid, uid).context("becoming the container's root")
}

/// A copy can be taken off from where it is; the tree itself is locked in its place.
fn copy_of_tree() -> Result<InRoot> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let tree = rustix::fs::open(TREE, flags, Mode::empty()).context("opening the tree")?;
    root::on_top(mounts::detached_copy(tree.as_fd())?.as_fd())
}
