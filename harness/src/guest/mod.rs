//! The side of the harness that runs inside the guest.
//!
//! One static binary is all of it: [`init`] when it is process 1, [`agent`] that takes orders from the host,
//! [`runner`] that gives each case a process of its own, and the case itself, which works with a [`Guest`].
//!
//! Invariants: only [`init`] and [`fault`] do things that would harm a machine that is no guest, and both ask first;
//! a case that says nothing has failed.

pub mod agent;
mod command;
pub mod fault;
pub mod init;
pub mod leftover;
pub mod observe;
mod port;
pub mod probe;
pub mod runner;
pub mod suite;
mod sys;
mod systemd;
mod terminal;
mod unit;
mod unpack;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::fixture::container::Container;
use crate::fixture::tree::{Builder, Tree};

/// Where the program under test comes with the first file system.
pub(crate) const PROGRAM_IN_INITRAMFS: &str = "/program";
/// Where it lies in a guest then, with its own name.
const PROGRAMS: &str = "/usr/local/bin";

/// Which program the containers of a case are started with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The launcher under test.
    #[default]
    Rspawn,
    /// The distribution's own systemd-nspawn: a case that fails there is wrong, or a declared difference.
    Nspawn,
}

impl Subject {
    /// By name, as `--subject` takes it.
    ///
    /// # Errors
    /// When the name is neither.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "rspawn" => Ok(Self::Rspawn),
            "nspawn" => Ok(Self::Nspawn),
            _ => bail!("\"{name}\" is no subject\nhint: rspawn or nspawn"),
        }
    }

    /// The name that [`Subject::parse`] takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rspawn => "rspawn",
            Self::Nspawn => "nspawn",
        }
    }
}

/// What a case works with.
#[derive(Debug, Clone)]
pub struct Guest {
    scratch: PathBuf,
    fs: String,
    subject: Subject,
    launcher: PathBuf,
    boot: u32,
}

impl Guest {
    /// A directory of this case alone, on the cell's file system. What is in it when the case ends was left behind.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The type of the file system under the scratch directory.
    #[must_use]
    pub fn fs(&self) -> &str {
        &self.fs
    }

    /// Who starts the containers.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// How many times the case has ended its guest already ([`crate::case::Need::Restart`]): 0 when it is called first.
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.boot
    }

    /// The file of the program under test, a launcher here, whoever the subject is.
    #[must_use]
    pub fn launcher(&self) -> &Path {
        &self.launcher
    }

    /// A minimal root to build on: busybox, os-release and nothing else.
    #[must_use]
    pub fn tree(&self) -> Builder {
        Builder::minimal(&self.scratch)
    }

    /// A container on a tree.
    #[must_use]
    pub fn container(&self, tree: &Tree) -> Container {
        self.container_at(tree.path())
    }

    /// A container on a directory that is no fixture.
    #[must_use]
    pub fn container_at(&self, directory: &Path) -> Container {
        self.command().arg("-D").arg(directory)
    }

    /// The launcher with no argument yet but those that keep it quiet and off the bus.
    #[must_use]
    pub fn command(&self) -> Container {
        Container::new(self.subject, &self.launcher)
    }
}
