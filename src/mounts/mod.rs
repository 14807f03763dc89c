//! What is mounted where? Rows, and one interpreter.
//!
//! [`table()`] makes the rows that every container gets, [`custom()`] those that the user asked for; both are
//! pure. [`apply()`] and [`Opened::mount`] are the only functions of the program that mount something into
//! a container. A row carries what the interpreter needs and no condition: conditions are `if`s where rows
//! are made.

mod apply;
mod attributes;
mod custom;
mod disk;
mod home;
mod idmap;
mod label;
mod layers;
mod mapped;
mod opened;
mod partial;
mod scratch;
mod table;

pub use apply::{apply, overlay};
pub(crate) use apply::{
    attach, attach_on_host, bind_onto, detached_copy, detached_directory, instance, make_read_only,
    overlay_of_owners,
};
pub use custom::{Custom, CustomKind, custom};
pub(crate) use disk::disk;
pub(crate) use home::Home;
pub(crate) use idmap::{Mapping, Shown};
pub use label::labelled;
pub use mapped::mapped;
pub use opened::Opened;
pub(crate) use opened::bind;
pub use partial::Part;
pub use scratch::{Scratch, places_of_work};
pub use table::{Api, Sys, Writable, table};
pub(crate) use table::{BOOT_ID, EMPTY, KMSG, TTYS};

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::inroot::Links;
use crate::settings::value::IdMapMode;

/// Who mounts it: a file system that shows a namespace must be mounted by who lives in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the root is switched, in the host's namespaces but for the mounts.
    Outer,
    /// Inside.
    Inner,
}

/// What happens when it cannot be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The container does not start.
    Must,
    /// A warning.
    May,
}

/// What is made where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Nothing: the place must exist.
    Exists,
    /// A directory, mode 0755, with its parents.
    Directory,
    /// A directory or an empty file, as the source is.
    LikeSource,
}

/// Where the files of a bind, or of a layer, come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// An absolute path of the host.
    Host(PathBuf),
    /// A path inside the container's tree.
    Inside(PathBuf),
    /// A new directory of the host that goes with the session; they are counted from 0.
    Scratch(usize),
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(path) => write!(f, "{}", path.display()),
            Self::Inside(path) => write!(f, "{} inside", path.display()),
            Self::Scratch(_) => f.write_str("a new directory"),
        }
    }
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A new instance of a file system.
    Fs {
        /// Its type, which is also what mountinfo shows as its source.
        fstype: &'static str,
        /// Its own options.
        options: Vec<(Cow<'static, str>, String)>,
    },
    /// Something that exists, once more.
    Bind {
        /// What.
        from: From,
        /// With everything mounted below it.
        recursive: bool,
        /// Whom its files belong to inside (M-01).
        owners: IdMapMode,
    },
    /// What is in the place already, once more and with everything mounted below it, so that the place
    /// can have attributes of its own; what is below keeps its own.
    Again,
    /// Directories on top of each other (M-04).
    Overlay {
        /// From the lowest to the one below the top.
        lower: Vec<From>,
        /// What takes the writes, if anything does.
        upper: Option<From>,
    },
    /// Some directories of a new instance of a file system.
    Part(Part),
    /// A node without permissions, of the same type as what is in the place (M-03).
    Inaccessible,
}

/// Attributes of a mount, as `mount(8)` names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attrs {
    /// `ro`.
    pub read_only: bool,
    /// `nosuid`.
    pub nosuid: bool,
    /// `nodev`.
    pub nodev: bool,
    /// `noexec`.
    pub noexec: bool,
    /// `strictatime`.
    pub strictatime: bool,
}

impl Attrs {
    /// What a mount has when nothing is asked for; a constant, so that tables can start from it.
    const fn none() -> Self {
        Self { read_only: false, nosuid: false, nodev: false, noexec: false, strictatime: false }
    }

    fn words(self) -> impl Iterator<Item = &'static str> {
        [
            (self.read_only, "ro"),
            (self.nosuid, "nosuid"),
            (self.nodev, "nodev"),
            (self.noexec, "noexec"),
            (self.strictatime, "strictatime"),
        ]
        .into_iter()
        .filter_map(|(on, word)| on.then_some(word))
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Who mounts it.
    pub stage: Stage,
    /// Where, in the container.
    pub on: PathBuf,
    /// What.
    pub kind: Kind,
    /// How.
    pub attrs: Attrs,
    /// What if not.
    pub need: Need,
    /// What is made in its place.
    pub point: Point,
    /// Whether links of the tree are followed to the place.
    pub links: Links,
}

impl Mount {
    /// A new file system in a place that is never reached over a link, and without which nothing works.
    fn api(stage: Stage, on: &str, fstype: &'static str, attrs: Attrs) -> Self {
        Self {
            stage,
            on: Path::new(on).to_owned(),
            kind: Kind::Fs { fstype, options: Vec::new() },
            attrs,
            need: Need::Must,
            point: Point::Directory,
            links: Links::Refused,
        }
    }

    fn option(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Kind::Fs { options, .. } = &mut self.kind {
            options.push((Cow::Borrowed(name), value.into()));
        }
        self
    }

    fn may_fail(self) -> Self {
        Self { need: Need::May, ..self }
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Outer => "outer",
            Stage::Inner => "inner",
        };
        write!(f, "{stage} {:<16} ", self.on.display().to_string())?;
        match &self.kind {
            Kind::Fs { fstype, options } => {
                f.write_str(fstype)?;
                for (i, (name, value)) in options.iter().enumerate() {
                    f.write_str(if i == 0 { " " } else { "," })?;
                    f.write_str(name)?;
                    if !value.is_empty() {
                        write!(f, "={value}")?;
                    }
                }
            }
            Kind::Bind { from, recursive, owners } => {
                write!(f, "{} of {from}", if *recursive { "rbind" } else { "bind" })?;
                if *owners != IdMapMode::None {
                    write!(f, " {owners}")?;
                }
            }
            Kind::Again => f.write_str("itself")?,
            Kind::Overlay { lower, upper } => {
                let lower: Vec<_> = lower.iter().map(ToString::to_string).collect();
                write!(f, "overlay of {}", lower.join(", "))?;
                upper.iter().try_for_each(|upper| write!(f, " under {upper}"))?;
            }
            Kind::Part(part) => {
                write!(f, "{} with only {}", part.fstype, part.shown.join(", "))?;
            }
            Kind::Inaccessible => f.write_str("inaccessible")?,
        }
        for word in self.attrs.words() {
            write!(f, " {word}")?;
        }
        f.write_str(if self.need == Need::May { " (if possible)" } else { "" })
    }
}

impl Serialize for Mount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
