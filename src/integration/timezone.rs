//! What becomes of the container's /etc/localtime? (`--timezone=`, T-02, HST-01, localtime(5).)

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::bind_file;
use super::files::{Slot, read_of_host};
use crate::errors::hinted;
use crate::inroot::{InRoot, Links};

/// The file of the tree, and of the host.
const PLACE: &str = "/etc/localtime";

/// Where zones are, as a link of /etc may spell it; the first is how ours do.
const ZONES: [&str; 2] = ["../usr/share/zoneinfo/", "/usr/share/zoneinfo/"];

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeZone {
    /// Nothing.
    Leave,
    /// The file is removed.
    Delete,
    /// The host's file is copied.
    Copy,
    /// The host's file is bound.
    Bind,
    /// A link to the zone that the host's link names.
    Link,
    /// The same; a copy if the host has a file that is no such link. A host without one is in UTC, and so is
    /// then the container, without its file.
    AutoLink,
    /// A mount, where there is a place for it and the host has a zone.
    AutoBind,
}

impl fmt::Display for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leave => "as the tree has it",
            Self::Delete => "/etc/localtime is removed",
            Self::Copy => "the host's, copied",
            Self::Bind => "the host's, bound",
            Self::Link => "the host's, as a link",
            Self::AutoLink => "the host's, as a link if it is one there",
            Self::AutoBind => "the host's, bound if there is a place",
        })
    }
}

/// Does it.
pub(super) fn apply(wanted: &TimeZone, tree: &InRoot) -> Result<()> {
    match wanted {
        TimeZone::Leave => Ok(()),
        TimeZone::Delete => Slot::open(tree, PLACE)?.remove(),
        TimeZone::Copy => copy(tree),
        TimeZone::Bind => bind_file(Path::new(PLACE), Path::new(PLACE), tree),
        TimeZone::Link => match host_zone()? {
            HostZone::Named(zone) => link(&zone, tree),
            HostZone::None | HostZone::Other => Err(hinted(
                format!("{PLACE} of the host is no link to a time zone"),
                "--timezone=copy copies whatever it is",
            )
            .into()),
        },
        TimeZone::AutoLink => match host_zone()? {
            HostZone::Named(zone) => link(&zone, tree),
            HostZone::Other => copy(tree),
            HostZone::None => Slot::open(tree, PLACE)?.remove(),
        },
        TimeZone::AutoBind => {
            let here = Path::new(PLACE);
            let place = tree.open(here, Links::Inside, OFlags::PATH).is_ok();
            match host_zone()? {
                HostZone::Named(zone) if has_zone(&Slot::open(tree, PLACE)?, &zone) => Ok(()),
                HostZone::Named(_) | HostZone::Other if place => bind_file(here, here, tree),
                _ => Ok(()),
            }
        }
    }
}

fn copy(tree: &InRoot) -> Result<()> {
    let content =
        read_of_host(Path::new(PLACE)).with_context(|| format!("reading {PLACE} of the host"))?;
    let mut slot = Slot::open(tree, PLACE)?;
    let found = slot.found()?;
    slot.put_file(found, &content)
}

/// Makes the link, where the tree has the zone; otherwise binds the host's file, which tells the same time.
fn link(zone: &str, tree: &InRoot) -> Result<()> {
    let mut slot = Slot::open(tree, PLACE)?;
    if has_zone(&slot, zone) {
        return Ok(());
    }
    if !tree.holds(Path::new(&format!("{}{zone}", ZONES[1]))) {
        return bind_file(Path::new(PLACE), Path::new(PLACE), tree);
    }
    slot.put_link(&format!("{}{zone}", ZONES[0]))
}

fn has_zone(slot: &Slot<'_>, zone: &str) -> bool {
    slot.link_target().is_some_and(|target| named(&target) == Some(zone))
}

/// What the host says of its zone.
enum HostZone {
    None,
    Named(String),
    Other,
}

fn host_zone() -> Result<HostZone> {
    match rustix::fs::readlinkat(CWD, PLACE, Vec::new()) {
        Ok(target) => Ok(named(target.as_bytes())
            .map_or(HostZone::Other, |zone| HostZone::Named(zone.to_owned()))),
        Err(Errno::INVAL) => Ok(HostZone::Other),
        Err(errno) if errno.kind() == ErrorKind::NotFound => Ok(HostZone::None),
        Err(errno) => Err(errno).with_context(|| format!("reading the link {PLACE} of the host")),
    }
}

/// The zone that a link names, if it is one: names of letters, digits and `+-_.`, and no way out (tzfile(5)).
fn named(target: &[u8]) -> Option<&str> {
    let target = std::str::from_utf8(target).ok()?;
    let zone = ZONES.iter().find_map(|zones| target.strip_prefix(zones))?;
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-_.".contains(&byte))
    };
    zone.split('/').all(plain).then_some(zone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// HST-01.
    #[rstest]
    #[case("/usr/share/zoneinfo/Europe/Berlin", Some("Europe/Berlin"))]
    #[case("../usr/share/zoneinfo/Etc/GMT+1", Some("Etc/GMT+1"))]
    #[case("/usr/share/zoneinfo/", None)]
    #[case("/usr/share/zoneinfo/../../../etc/shadow", None)]
    #[case("/usr/share/zoneinfo/Europe//Berlin", None)]
    #[case("/usr/share/zoneinfo/a b", None)]
    #[case("/etc/zone", None)]
    #[case("usr/share/zoneinfo/UTC", None)]
    fn a_link_names_a_zone_or_none(#[case] target: &str, #[case] zone: Option<&str>) {
        assert_eq!(named(target.as_bytes()), zone);
    }
}
