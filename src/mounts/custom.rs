//! Which rows do `--bind=` and its relatives make? Pure.
//!
//! They are sorted by destination, parents first, and keep their order otherwise, so that one mount never
//! hides another that was asked for (M-01).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::{Attrs, From, Kind, Mount, Need, Point, Stage};
use crate::inroot::Links;
use crate::settings::value::IdMapMode;

/// A mount that the user asked for, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Custom {
    /// Where it appears.
    pub on: PathBuf,
    /// What it is.
    pub kind: CustomKind,
}

/// What the user asked to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustomKind {
    /// `--bind=`, `--bind-ro=`.
    Bind {
        /// Where the files come from.
        from: From,
        /// With everything mounted below the source.
        recursive: bool,
        /// `--bind-ro=`.
        read_only: bool,
        /// Whom its files belong to inside.
        owners: IdMapMode,
    },
    /// `--tmpfs=`.
    Tmpfs {
        /// As mount(8) takes them.
        options: String,
    },
    /// `--overlay=`, `--overlay-ro=`.
    Overlay {
        /// From the lowest to the one below the top; at least one.
        lower: Vec<From>,
        /// The top, which takes the writes.
        upper: From,
        /// `--overlay-ro=`: the top is only looked at.
        read_only: bool,
    },
    /// `--inaccessible=`.
    Inaccessible,
}

/// The rows of the user's mounts.
pub fn custom(mounts: &[Custom]) -> Vec<Mount> {
    let mut rows: Vec<Mount> = mounts.iter().map(row).collect();
    rows.sort_by_key(|row| row.on.components().count());
    rows
}

fn row(mount: &Custom) -> Mount {
    let (kind, attrs, point) = match &mount.kind {
        CustomKind::Bind { from, recursive, read_only, owners } => {
            let kind = Kind::Bind { from: from.clone(), recursive: *recursive, owners: *owners };
            (kind, Attrs { read_only: *read_only, ..Attrs::none() }, Point::LikeSource)
        }
        CustomKind::Tmpfs { options } => {
            let (options, attrs) = tmpfs(options);
            (Kind::Fs { fstype: "tmpfs", options }, attrs, Point::Directory)
        }
        CustomKind::Overlay { lower, upper, read_only } => {
            let attrs = Attrs { read_only: *read_only, ..Attrs::none() };
            let kind = match read_only {
                false => Kind::Overlay { lower: lower.clone(), upper: Some(upper.clone()) },
                true => {
                    let lower = lower.iter().chain([upper]).cloned().collect();
                    Kind::Overlay { lower, upper: None }
                }
            };
            (kind, attrs, Point::Directory)
        }
        CustomKind::Inaccessible => {
            // Root may write to what has no permissions, so the mount is what forbids it.
            let attrs = Attrs { read_only: true, ..HARMLESS };
            (Kind::Inaccessible, attrs, Point::Exists)
        }
    };
    let (stage, need) = (stage_of(&mount.on), Need::Must);
    Mount { stage, on: mount.on.clone(), kind, attrs, need, point, links: Links::Inside }
}

const HARMLESS: Attrs = Attrs { nosuid: true, nodev: true, noexec: true, ..Attrs::none() };

/// Places where only the inner stage mounts the file system that holds them.
const OF_INNER: [&str; 3] = ["/proc", "/sys", "/dev/mqueue"];

fn stage_of(on: &Path) -> Stage {
    if OF_INNER.iter().any(|place| on.starts_with(place)) { Stage::Inner } else { Stage::Outer }
}

/// Parts what the file system understands from what every mount has. nodev and strictatime unless the
/// opposite is asked for (MNT-34).
fn tmpfs(text: &str) -> (Vec<(Cow<'static, str>, String)>, Attrs) {
    let mut attrs = Attrs { nodev: true, strictatime: true, ..Attrs::none() };
    let mut options = Vec::new();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => attrs.read_only = true,
            "rw" => attrs.read_only = false,
            "nosuid" => attrs.nosuid = true,
            "suid" => attrs.nosuid = false,
            "nodev" => attrs.nodev = true,
            "dev" => attrs.nodev = false,
            "noexec" => attrs.noexec = true,
            "exec" => attrs.noexec = false,
            "strictatime" => attrs.strictatime = true,
            "relatime" => attrs.strictatime = false,
            option => {
                let (name, value) = option.split_once('=').unwrap_or((option, ""));
                options.push((Cow::Owned(name.to_owned()), value.to_owned()));
            }
        }
    }
    (options, attrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(mounts: &[Custom]) -> Vec<String> {
        custom(mounts).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_parent_is_mounted_before_what_lies_below_it() {
        let bind = |on: &str| Custom {
            on: on.into(),
            kind: CustomKind::Bind {
                from: From::Host("/x".into()),
                recursive: true,
                read_only: on == "/a",
                owners: IdMapMode::None,
            },
        };
        assert_eq!(
            shown(&[bind("/a/b"), bind("/a"), bind("/c")]),
            [
                "outer /a               rbind of /x ro",
                "outer /c               rbind of /x",
                "outer /a/b             rbind of /x",
            ]
        );
    }

    /// M-03, M-04.
    #[test]
    fn overlays_and_covers_are_rows_like_the_others() {
        let overlay = |read_only| {
            let lower = vec![From::Host("/low".into()), From::Inside("/etc".into())];
            let kind = CustomKind::Overlay { lower, upper: From::Scratch(0), read_only };
            Custom { on: "/o".into(), kind }
        };
        let cover = Custom { on: "/proc/cpuinfo".into(), kind: CustomKind::Inaccessible };
        assert_eq!(
            shown(&[overlay(false), overlay(true), cover]),
            [
                "outer /o               overlay of /low, /etc inside under a new directory",
                "outer /o               overlay of /low, /etc inside, a new directory ro",
                "inner /proc/cpuinfo    inaccessible ro nosuid nodev noexec",
            ]
        );
    }

    /// MNT-01, MNT-04: what is below a file system that comes later must come later still.
    #[test]
    fn what_lies_below_proc_and_sys_is_mounted_inside() {
        let stage = |on: &str| stage_of(Path::new(on));
        assert_eq!(["/proc/x", "/sys", "/dev/mqueue/q"].map(stage), [Stage::Inner; 3]);
        assert_eq!(["/procession", "/dev/x", "/tmp"].map(stage), [Stage::Outer; 3]);
    }

    #[test]
    fn options_of_a_tmpfs_are_parted_from_those_of_its_mount() {
        let options = "mode=1777,noexec,dev,size=1m".to_owned();
        let mount = Custom { on: "/t".into(), kind: CustomKind::Tmpfs { options } };
        assert_eq!(
            shown(&[mount]),
            ["outer /t               tmpfs mode=1777,size=1m noexec strictatime"]
        );
    }
}
