//! Where is the container's journal, and how does the host see it? (`--link-journal=`, HST-03, HST-04,
//! systemd-nspawn(1).)
//!
//! Invariant: nothing of the host is removed because of what the tree says of itself. `auto`, the default, uses a
//! directory that is there and nothing else; a link to another place is replaced only if a mode was asked for.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use serde::Serialize;

use super::files::{open_of_host, read_of_host};
use super::{HARMLESS, bind};
use crate::errors::{hinted, warn};
use crate::ids::{self, Ids, OfTree};
use crate::inroot::{InRoot, Links};

/// Where journals are, on the host and in the tree (systemd-journald.service(8)).
const JOURNALS: &str = "/var/log/journal";

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Journal {
    /// Nothing: `no`, and whatever is thrown away.
    Leave,
    /// The host's directory is mounted if there is one.
    Auto {
        /// The tree, as the host names it.
        tree: PathBuf,
    },
    /// The journal is in the tree, and the host has a link to it.
    Guest {
        /// The tree, as the host names it.
        tree: PathBuf,
        /// A host without journals, or a tree that is only read, is fine.
        lenient: bool,
    },
    /// The journal is on the host, and mounted in the container.
    Host {
        /// The tree, as the host names it.
        tree: PathBuf,
        /// A host without journals, or a tree that is only read, is fine.
        lenient: bool,
    },
}

impl Journal {
    /// Whether it was only tried.
    fn is_lenient(&self) -> bool {
        matches!(self, Self::Guest { lenient: true, .. } | Self::Host { lenient: true, .. })
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, lenient) = match self {
            Self::Leave => return f.write_str("not linked"),
            Self::Auto { .. } => return f.write_str("on the host if it has a place for it"),
            Self::Guest { lenient, .. } => ("in the tree, linked from the host", lenient),
            Self::Host { lenient, .. } => ("on the host", lenient),
        };
        write!(f, "{place}{}", if *lenient { " if it keeps journals" } else { "" })
    }
}

/// What the host has for this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Directory,
    /// A directory with something mounted on it.
    Mounted,
    /// A link to the journal in the tree.
    LinkToTree,
    OtherLink,
    Other,
}

/// How the way is cleared for what is to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clear {
    Nothing,
    Unlink,
    RemoveDirectory,
}

/// What follows from a mode and what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Leave,
    /// The link is right; only its target may be missing.
    MakeInTree,
    Link(Clear),
    Mount(Clear),
    /// There is something else.
    RefuseMounted,
    RefuseOther,
}

/// The table of HST-03 (d to i).
fn plan(wanted: &Journal, found: Found) -> Plan {
    match (wanted, found) {
        (Journal::Leave, _) => Plan::Leave,
        (Journal::Auto { .. }, Found::Directory) => Plan::Mount(Clear::Nothing),
        (Journal::Auto { .. } | Journal::Guest { .. }, Found::LinkToTree) => Plan::MakeInTree,
        (Journal::Auto { .. }, _) => Plan::Leave,
        (_, Found::Mounted) => Plan::RefuseMounted,
        (_, Found::Other) => Plan::RefuseOther,
        (Journal::Guest { .. }, Found::Nothing) => Plan::Link(Clear::Nothing),
        (Journal::Guest { .. }, Found::Directory) => Plan::Link(Clear::RemoveDirectory),
        (Journal::Guest { .. }, Found::OtherLink) => Plan::Link(Clear::Unlink),
        (Journal::Host { .. }, Found::Nothing | Found::Directory) => Plan::Mount(Clear::Nothing),
        (Journal::Host { .. }, Found::LinkToTree | Found::OtherLink) => Plan::Mount(Clear::Unlink),
    }
}

/// Does it.
///
/// # Errors
/// When a mode was asked for and cannot be had; what fails of `auto` is told.
pub(super) fn apply(wanted: &Journal, ids: &Ids, tree: &InRoot) -> Result<()> {
    match wanted {
        Journal::Leave => Ok(()),
        // A new id has no journal yet (HST-03 a, i).
        Journal::Auto { .. } if !ids.machine_stays => Ok(()),
        Journal::Auto { tree: name } => {
            if let Err(error) = link(wanted, name, &ids.machine, tree) {
                warn(format_args!("--link-journal=auto: {error:#}"));
            }
            Ok(())
        }
        Journal::Guest { tree: name, .. } | Journal::Host { tree: name, .. } => {
            let linked = match ids::of_tree(tree) {
                OfTree::Garbage => Err(garbage()),
                OfTree::Id(_) | OfTree::None => link(wanted, name, &ids.machine, tree),
            };
            match linked {
                // What systemd-nspawn@.service asks for is for trees that are only read, too.
                Err(error) if wanted.is_lenient() && is_read_only(&error) => {
                    warn(format_args!("--link-journal=: {error:#}"));
                    Ok(())
                }
                other => other.context("--link-journal="),
            }
        }
    }
}

fn is_read_only(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Errno>() == Some(&Errno::ROFS)
}

fn garbage() -> anyhow::Error {
    hinted(
        "/etc/machine-id of the container holds no machine id",
        "a journal is named by that; empty the file to have an id made",
    )
    .into()
}

fn link(wanted: &Journal, name: &Path, machine: &str, tree: &InRoot) -> Result<()> {
    let id = machine.replace('-', "");
    let path = format!("{JOURNALS}/{id}");
    let path = Path::new(&path);
    let journals = journals()?;
    let host = journals.as_ref().map(|dir| OnHost { dir: dir.as_fd(), id: &id, path });
    // The name of the place, for a link; the place itself is reached through `tree`.
    let mut in_tree = name.as_os_str().to_owned();
    in_tree.push(path);
    let in_tree = Path::new(&in_tree);
    let found = host.map_or(Ok(Found::Nothing), |host| host.found(in_tree, tree))?;
    let plan = plan(wanted, found);
    if plan == Plan::Leave {
        return Ok(());
    }
    let lenient = wanted.is_lenient();
    if is_of_host(&id) {
        let same = hinted(
            format!("the container has the host's own machine id, {id}"),
            "give it another: empty its /etc/machine-id",
        );
        if !lenient {
            return Err(same.into());
        }
        warn(format_args!("--link-journal=: {same}"));
        return Ok(());
    }
    match plan {
        Plan::Leave => Ok(()),
        Plan::RefuseMounted => {
            ensure!(lenient, "{} of the host is a mount point", path.display());
            Ok(())
        }
        Plan::RefuseOther => {
            bail!("{} of the host is neither a directory nor a link", path.display())
        }
        Plan::MakeInTree => make_in_tree(path, tree).map(drop),
        Plan::Link(_) | Plan::Mount(_) if host.is_none() && lenient => Ok(()),
        Plan::Link(way) => link_to_tree(way, kept(host, wanted)?, in_tree, tree),
        Plan::Mount(way) => mount_from_host(way, kept(host, wanted)?, tree),
    }
}

/// A host that keeps no journals has no place for one.
fn kept<'a>(host: Option<OnHost<'a>>, wanted: &Journal) -> Result<OnHost<'a>> {
    host.with_context(|| {
        hinted(
            format!("the host keeps no journal: it has no {JOURNALS}"),
            format!("make that directory, or say try-{}", word(wanted)),
        )
    })
}

/// The place of a machine's journal on the host, whatever is there.
#[derive(Clone, Copy, Debug)]
struct OnHost<'a> {
    /// [`JOURNALS`]. It is opened once: the container's tree lies on top of / by now, and there the kernel would end up
    /// by a link that leads over `..`.
    dir: BorrowedFd<'a>,
    id: &'a str,
    path: &'a Path,
}

/// The host's journals, if it keeps any.
fn journals() -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match open_of_host(Path::new(JOURNALS), flags) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("opening {JOURNALS} of the host")),
    }
}

/// The place in the tree comes first: where that cannot be made, the host stays as it is.
fn link_to_tree(way: Clear, host: OnHost<'_>, in_tree: &Path, tree: &InRoot) -> Result<()> {
    make_in_tree(host.path, tree)?;
    host.clear(way)?;
    let linked = rustix::fs::symlinkat(in_tree, host.dir, host.id);
    linked
        .with_context(|| format!("linking {} of the host to the container's", host.path.display()))
}

fn mount_from_host(way: Clear, host: OnHost<'_>, tree: &InRoot) -> Result<()> {
    let path = host.path.display();
    let place = make_in_tree(host.path, tree)?;
    let mounted = is_mount_point(&place, Path::new(""), AtFlags::EMPTY_PATH)?;
    ensure!(!mounted, "{path} of the container is a mount point");
    host.clear(way)?;
    match rustix::fs::mkdirat(host.dir, host.id, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).with_context(|| format!("making {path} of the host")),
    }
    if !is_empty(host.path, tree)? {
        warn(format_args!(
            "--link-journal=: {path} of the container has files that the mount hides"
        ));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let journal = rustix::fs::openat(host.dir, host.id, flags, Mode::empty())
        .with_context(|| format!("opening {path} of the host"))?;
    bind(host.path, journal, host.path, HARMLESS, tree)
}

fn word(wanted: &Journal) -> &'static str {
    match wanted {
        Journal::Guest { .. } => "guest",
        _ => "host",
    }
}

impl OnHost<'_> {
    /// Looks at it, and at whether a link there is to the tree's: by its text, as it was written, or else by where it
    /// leads.
    fn found(self, in_tree: &Path, tree: &InRoot) -> Result<Found> {
        let Self { dir, id, path } = self;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let stat = match rustix::fs::statat(dir, id, nofollow) {
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            other => other.with_context(|| format!("looking at {} of the host", path.display()))?,
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if is_mount_point(dir, Path::new(id), nofollow)? => Found::Mounted,
            FileType::Directory => Found::Directory,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, id, Vec::new());
                let target =
                    target.with_context(|| format!("reading the link {}", path.display()))?;
                let by_text = in_tree.as_os_str().as_encoded_bytes() == target.as_bytes();
                if by_text || leads_into(path, tree) { Found::LinkToTree } else { Found::OtherLink }
            }
            _ => Found::Other,
        })
    }

    fn clear(self, way: Clear) -> Result<()> {
        let (flags, hint) = match way {
            Clear::Nothing => return Ok(()),
            Clear::Unlink => (AtFlags::empty(), "it is a link that is in the way"),
            Clear::RemoveDirectory => {
                (AtFlags::REMOVEDIR, "with --link-journal=host the container uses what is in there")
            }
        };
        let what = || hinted(format!("removing {} of the host", self.path.display()), hint);
        rustix::fs::unlinkat(self.dir, self.id, flags).with_context(what)
    }
}

/// Whether the host's link and the tree's own path lead to one directory.
fn leads_into(path: &Path, tree: &InRoot) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let inode = |fd: OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let there = open_of_host(path, flags | OFlags::CLOEXEC);
    match (there.and_then(inode), tree.open(path, Links::Inside, flags).and_then(inode)) {
        (Ok(there), Ok(here)) => there == here,
        _ => false,
    }
}

fn is_of_host(id: &str) -> bool {
    // A host without an id shares it with nobody.
    read_of_host(Path::new("/etc/machine-id")).is_ok_and(|text| text.trim_ascii() == id.as_bytes())
}

/// The place in the tree has the same path as that on the host.
fn make_in_tree(path: &Path, tree: &InRoot) -> Result<OwnedFd> {
    tree.make_dir(path, Links::Inside)
}

fn is_mount_point(dir: impl AsFd, path: &Path, flags: AtFlags) -> Result<bool> {
    let stat = statx(dir, path, flags, StatxFlags::TYPE).context("looking for a mount point")?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn is_empty(path: &Path, tree: &InRoot) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let entries = tree.open(path, Links::Inside, flags).and_then(Dir::new);
    let mut names =
        entries.with_context(|| format!("looking into {} of the container", path.display()))?;
    Ok(!names.any(|entry| {
        entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const FOUND: [Found; 6] = [
        Found::Nothing,
        Found::Directory,
        Found::Mounted,
        Found::LinkToTree,
        Found::OtherLink,
        Found::Other,
    ];

    /// HST-03 c to i, a column for each of [`FOUND`].
    #[rstest]
    #[case(Journal::Leave, [Plan::Leave; 6])]
    #[case(Journal::Auto { tree: "/t".into() }, [
        Plan::Leave,
        Plan::Mount(Clear::Nothing),
        Plan::Leave,
        Plan::MakeInTree,
        Plan::Leave,
        Plan::Leave,
    ])]
    #[case(Journal::Guest { tree: "/t".into(), lenient: false }, [
        Plan::Link(Clear::Nothing),
        Plan::Link(Clear::RemoveDirectory),
        Plan::RefuseMounted,
        Plan::MakeInTree,
        Plan::Link(Clear::Unlink),
        Plan::RefuseOther,
    ])]
    #[case(Journal::Host { tree: "/t".into(), lenient: true }, [
        Plan::Mount(Clear::Nothing),
        Plan::Mount(Clear::Nothing),
        Plan::RefuseMounted,
        Plan::Mount(Clear::Unlink),
        Plan::Mount(Clear::Unlink),
        Plan::RefuseOther,
    ])]
    fn what_is_done_follows_from_the_mode_and_what_is_there(
        #[case] wanted: Journal,
        #[case] expected: [Plan; 6],
    ) {
        assert_eq!(FOUND.map(|found| plan(&wanted, found)), expected);
    }
}
