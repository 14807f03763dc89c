//! Which rows do `--bind=` and its relatives make? Pure.
//!
//! They are sorted by destination, parents first, and keep their order otherwise, so that one mount never
//! hides another that was asked for (M-01).

use std::path::PathBuf;

use super::{Attrs, From, Kind, Mount, Need, Point, Stage};
use crate::inroot::Links;

/// A mount that the user asked for, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Custom {
    /// Where the files come from.
    pub from: From,
    /// Where they appear.
    pub on: PathBuf,
    /// With everything mounted below the source.
    pub recursive: bool,
    /// `--bind-ro=`.
    pub read_only: bool,
}

/// The rows of the user's mounts.
pub fn custom(mounts: &[Custom]) -> Vec<Mount> {
    let mut rows: Vec<Mount> = mounts.iter().map(row).collect();
    rows.sort_by_key(|row| row.on.components().count());
    rows
}

fn row(mount: &Custom) -> Mount {
    Mount {
        stage: Stage::Outer,
        on: mount.on.clone(),
        kind: Kind::Bind { from: mount.from.clone(), recursive: mount.recursive },
        attrs: Attrs { read_only: mount.read_only, ..Attrs::none() },
        need: Need::Must,
        point: Point::LikeSource,
        links: Links::Inside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_mounted_before_what_lies_below_it() {
        let bind = |on: &str| Custom {
            from: From::Host("/x".into()),
            on: on.into(),
            recursive: true,
            read_only: on == "/a",
        };
        let rows = custom(&[bind("/a/b"), bind("/a"), bind("/c")]);
        let rows: Vec<String> = rows.iter().map(ToString::to_string).collect();
        assert_eq!(
            rows,
            [
                "outer /a               rbind of /x ro",
                "outer /c               rbind of /x",
                "outer /a/b             rbind of /x",
            ]
        );
    }
}
