//! What is done to get a root? Plain data, part of the `Spec`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::verity::Verity;
use crate::settings::value::{EphemeralReboot, ImagePolicy};

/// What is done to get a root directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSpec {
    /// The directory itself.
    Directory {
        /// Canonical.
        path: PathBuf,
        /// Whether the container may write to it.
        access: Access,
    },
    /// A throw-away layer over a directory (SNP-01).
    Ephemeral {
        /// Canonical.
        of: PathBuf,
        /// Whether the container may write to the layer.
        access: Access,
        /// How it is made, and what becomes of it.
        layer: LayerSpec,
    },
    /// A directory that is filled from a template if it does not exist (SNP-30).
    Template {
        /// Canonical but for its last component, if it does not exist.
        path: PathBuf,
        /// The template, canonical.
        from: PathBuf,
        /// Whether the container may write to the directory.
        access: Access,
    },
    /// The file systems of a disk image (IMG-01).
    Image {
        /// Canonical.
        path: PathBuf,
        /// Whether the container may write to it.
        access: Access,
        /// Which partitions may be used (I-05).
        policy: Option<ImagePolicy>,
        /// What is said of dm-verity (I-10).
        verity: Verity,
        /// How it is kept from being changed, if it is.
        throw_away: Option<Ladder>,
    },
}

/// A throw-away layer over a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The ways to try, and where.
    pub ladder: Ladder,
    /// Whether it is made next to the source if that is possible.
    pub beside: bool,
    /// What a reboot of the container leaves of it.
    pub on_reboot: EphemeralReboot,
    /// Whether it stays when the run fails, and where.
    pub on_failure: Keep,
    /// What /etc/hostname of a layer in memory says, if not what the source says (TMP-07).
    pub hostname: Option<String>,
}

/// What becomes of a layer when its run fails (`--keep-on-failure`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is thrown away.
    No,
    /// It stays where it is.
    There,
    /// It is moved to this directory, canonical.
    In(PathBuf),
}

/// Ways to something that is thrown away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// The ways to try, in this order.
    pub rungs: Vec<Rung>,
    /// Where a layer is made if not next to the source, in this order.
    pub elsewhere: Vec<PathBuf>,
}

impl RootSpec {
    /// The directory or image that the user named.
    pub fn source(&self) -> &Path {
        match self {
            Self::Directory { path, .. }
            | Self::Image { path, .. }
            | Self::Template { path, .. } => path,
            Self::Ephemeral { of, .. } => of,
        }
    }

    /// Whether the container may write.
    pub fn access(&self) -> Access {
        match self {
            Self::Directory { access, .. }
            | Self::Ephemeral { access, .. }
            | Self::Template { access, .. }
            | Self::Image { access, .. } => *access,
        }
    }
}

/// Whether something may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// `--read-only`.
    Read,
    /// The default.
    Write,
}

/// A way to a throw-away layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// A snapshot of a btrfs subvolume (SNP-10).
    Snapshot,
    /// An overlay whose upper layer is a directory of ours.
    Overlay,
    /// A copy that shares its blocks until they are written (SNP-11, SNP-20).
    Reflink,
    /// A copy.
    Copy,
    /// An overlay whose upper layer is in memory (TMP-01).
    Tmpfs,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "subvolume snapshot",
            Self::Overlay => "overlay",
            Self::Reflink => "reflink copy",
            Self::Copy => "copy",
            Self::Tmpfs => "tmpfs",
        })
    }
}
