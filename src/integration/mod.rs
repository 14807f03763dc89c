//! What of the host does the tree get to see: its name servers, its time zone, and where the journal goes?
//!
//! What is to be done is decided in `spec/resolve/integration.rs`; what is found decides the rest, by a table
//! in each file. All of it is a convenience: what fails is told and does not keep a container from starting
//! (HST-01, HST-02), but for a journal that was asked for (HST-03).

pub(crate) mod files;
mod journal;
mod resolv_conf;
mod timezone;

pub use journal::Journal;
pub use resolv_conf::{NameServers, Source, Way};
pub use timezone::TimeZone;

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use crate::errors::warn;
use crate::ids::Ids;
use crate::inroot::{InRoot, Links};
use crate::mounts::{self, Attrs, From, Kind, Mount, Need, Point, Stage};
use crate::settings::value::IdMapMode;

/// What is decided of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Integration {
    /// `--resolv-conf=`.
    pub name_servers: NameServers,
    /// `--timezone=`.
    pub time_zone: TimeZone,
    /// `--link-journal=`.
    pub journal: Journal,
}

/// Does it, to a tree that has its /run already: what is asked for may lie there (ORD-01, steps 23 to 25).
/// The umask must be empty.
///
/// # Errors
/// When the journal must be linked and cannot be.
pub fn apply(wanted: &Integration, ids: &Ids, tree: &InRoot) -> Result<()> {
    if let Err(error) = timezone::apply(&wanted.time_zone, tree) {
        warn(format_args!("--timezone=: {error:#}"));
    }
    if let Err(error) = resolv_conf::apply(&wanted.name_servers, tree) {
        warn(format_args!("--resolv-conf=: {error:#}"));
    }
    journal::apply(&wanted.journal, ids, tree)
}

/// Writes the name that a copy goes by into its /etc/hostname (TMP-07), if it has an /etc.
///
/// # Errors
/// When the file cannot be replaced.
pub(crate) fn put_host_name(tree: &InRoot, name: &str) -> Result<()> {
    let mut slot = files::Slot::open(tree, "/etc/hostname")?;
    if !slot.has_directory() {
        return Ok(());
    }
    // The mode of the file is that which the tree's own has, whatever our caller's mask is.
    let mask = rustix::process::umask(Mode::empty());
    let found = slot.found();
    let put = found.and_then(|found| slot.put_file(found, format!("{name}\n").as_bytes()));
    rustix::process::umask(mask);
    put
}

/// Binds a file of the host over one of the tree, or into the gap where none is.
fn bind_file(from: &Path, on: &Path, tree: &InRoot) -> Result<()> {
    let file = files::open_of_host(from, OFlags::PATH | OFlags::CLOEXEC)
        .with_context(|| format!("opening {} of the host", from.display()))?;
    let attrs = Attrs { read_only: true, ..HARMLESS };
    bind(from, &file, on, attrs, tree)
}

/// What no file that holds settings or messages needs.
const HARMLESS: Attrs =
    Attrs { read_only: false, nosuid: true, nodev: true, noexec: true, strictatime: false };

/// Binds what is open as `source`, and named `from`.
fn bind(from: &Path, source: impl AsFd, on: &Path, attrs: Attrs, tree: &InRoot) -> Result<()> {
    let row = Mount {
        stage: Stage::Outer,
        on: on.into(),
        kind: Kind::Bind {
            from: From::Host(from.to_owned()),
            recursive: false,
            owners: IdMapMode::None,
        },
        attrs,
        need: Need::Must,
        point: Point::LikeSource,
        links: Links::Inside,
    };
    mounts::bind(source.as_fd(), &row, tree)
}
