//! What becomes of the container's /etc/resolv.conf? (`--resolv-conf=`, T-01, HST-02.)

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::bind_file;
use super::files::{Found, Slot, read_of_host};
use crate::inroot::{InRoot, Links};
use rustix::fs::OFlags;

/// The file of the tree.
const PLACE: &str = "/etc/resolv.conf";

/// Which file tells the host's name servers (systemd-resolved.service(8), /ETC/RESOLV.CONF).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The host's own.
    Host,
    /// One that comes with systemd-resolved and names it.
    Static,
    /// What systemd-resolved itself asks.
    Uplink,
    /// systemd-resolved, with the host's search domains.
    Stub,
}

impl Source {
    /// Where it is.
    pub fn path(self) -> &'static Path {
        Path::new(match self {
            Self::Host => "/etc/resolv.conf",
            Self::Static => "/usr/lib/systemd/resolv.conf",
            Self::Uplink => "/run/systemd/resolve/resolv.conf",
            Self::Stub => "/run/systemd/resolve/stub-resolv.conf",
        })
    }
}

/// How it gets into the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// As a copy, unless something else than a file is there.
    Copy,
    /// As a copy in the place of whatever is there.
    Replace,
    /// As a read-only mount.
    Bind,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameServers {
    /// Nothing.
    Leave,
    /// The file is removed.
    Delete,
    /// This file is put there.
    Put(Way, Source),
    /// The stub if systemd-resolved runs, else the host's file. The stub is there just as long as it runs;
    /// where it does not listen, the file names its uplinks. A copy of nothing is nothing: like
    /// systemd-nspawn, it removes the container's file where the host has none.
    Auto(Way),
}

impl fmt::Display for NameServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = |way: Way| match way {
            Way::Copy => "copied unless there is something else than a file",
            Way::Replace => "copied over whatever is there",
            Way::Bind => "bound",
        };
        match self {
            Self::Leave => f.write_str("as the tree has them"),
            Self::Delete => write!(f, "{PLACE} is removed"),
            Self::Put(way, source) => write!(f, "{}, {}", source.path().display(), how(*way)),
            Self::Auto(way) => {
                write!(f, "systemd-resolved's if it runs, else the host's, {}", how(*way))
            }
        }
    }
}

/// Does it.
pub(super) fn apply(wanted: &NameServers, tree: &InRoot) -> Result<()> {
    match *wanted {
        NameServers::Leave => Ok(()),
        NameServers::Delete => Slot::open(tree, PLACE)?.remove(),
        NameServers::Put(Way::Bind, source) => bind_file(source.path(), Path::new(PLACE), tree),
        NameServers::Put(way, source) => copy(way, &[source], tree),
        // Without a place for it nothing was asked for.
        NameServers::Auto(Way::Bind) if !has_place(tree) => Ok(()),
        NameServers::Auto(Way::Bind) => {
            let present = |source: &&Source| source.path().exists();
            match [Source::Stub, Source::Host].iter().find(present) {
                Some(source) => bind_file(source.path(), Path::new(PLACE), tree),
                None => Ok(()),
            }
        }
        NameServers::Auto(way) => match copy(way, &[Source::Stub, Source::Host], tree) {
            Err(error) if is_missing(&error) => Slot::open(tree, PLACE)?.remove(),
            other => other,
        },
    }
}

fn has_place(tree: &InRoot) -> bool {
    tree.open(Path::new(PLACE), Links::Inside, OFlags::PATH).is_ok()
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Copies the first source that there is.
fn copy(way: Way, sources: &[Source], tree: &InRoot) -> Result<()> {
    let mut slot = Slot::open(tree, PLACE)?;
    let found = slot.found()?;
    let content = read_first(sources)?;
    if may_copy(way, found) { slot.put_file(found, &content) } else { Ok(()) }
}

fn read_first(sources: &[Source]) -> Result<Vec<u8>> {
    let (last, others) = sources.split_last().expect("the callers name one");
    match others.iter().find_map(|source| read_of_host(source.path()).ok()) {
        Some(content) => Ok(content),
        None => read_of_host(last.path())
            .with_context(|| format!("reading {} of the host", last.path().display())),
    }
}

/// Whether what is there may be replaced.
fn may_copy(way: Way, found: Found) -> bool {
    matches!((way, found), (Way::Replace, _) | (_, Found::Nothing | Found::File(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// HST-02, T-01: a copy never takes the place of a link, which says that the tree has its own idea.
    #[rstest]
    #[case(Way::Copy, Found::Nothing, true)]
    #[case(Way::Copy, Found::File(3), true)]
    #[case(Way::Copy, Found::Link, false)]
    #[case(Way::Copy, Found::Other, false)]
    #[case(Way::Replace, Found::Link, true)]
    #[case(Way::Replace, Found::Other, true)]
    fn only_replace_takes_the_place_of_what_is_no_file(
        #[case] way: Way,
        #[case] found: Found,
        #[case] expected: bool,
    ) {
        assert_eq!(may_copy(way, found), expected);
    }
}
