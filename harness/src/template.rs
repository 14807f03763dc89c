//! Templates of guests in the store: which one fits, and making it when there is none.
//!
//! Invariants: a template's name holds the hash of all that decides whether a guest can be restored from it, so none
//! is used for another kind; one that could not be made or restored is not tried again by the same run, whose guests boot
//! instead.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::accel;
use crate::artifact::{Key, Store};
use crate::suite::Suite;
use crate::vm::args::{Sockets, qemu_arguments};
use crate::vm::config::VmConfig;
use crate::vm::launch;
use crate::workspace::Workspace;

/// Templates of one kind that stay in the store: the last, and the one before for a run that still uses it.
const KEPT: usize = 2;

/// The templates that a run can have.
#[derive(Debug)]
pub struct Templates {
    store: Store,
    given_up: Mutex<BTreeSet<String>>,
}

/// What a guest would be.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// Kernel and shape, for people.
    pub name: &'a str,
    /// Its machine, but for the paths of its initial file system and scratch disk.
    pub config: &'a VmConfig,
    /// What the initial file system is made from, beside the kernel.
    pub suite: &'a Suite,
    /// Size of the scratch disk, which the kernel has read.
    pub scratch_bytes: u64,
}

impl Kind<'_> {
    /// The guest's disks and its initial file system are read at boot: by content, or by a path that tells it.
    fn key(&self) -> Key {
        let mut config = self.config.clone();
        config.initramfs = PathBuf::new();
        for disk in config.disks.iter_mut().filter(|disk| disk.path.starts_with("/proc/self/fd")) {
            disk.path = PathBuf::new();
        }
        let sockets = Sockets { agent: 0, monitor: 0, console: None };
        let mut key = Key::of("template").with(accel::machine_id()).with(self.suite.stamp());
        for word in qemu_arguments(&config, sockets, "console.log".as_ref()) {
            key = key.with(word.as_encoded_bytes());
        }
        key.with(self.scratch_bytes.to_le_bytes())
    }

    fn entry(&self) -> String {
        format!("template-{}", self.name)
    }
}

impl Templates {
    /// Those of a checkout.
    #[must_use]
    pub fn of(workspace: &Workspace) -> Self {
        Self { store: Store::of(workspace), given_up: Mutex::default() }
    }

    /// The directory of the template; made within `limit` if there is none, for which `begin` is called first and what it
    /// returns is held. None when this run has given it up.
    ///
    /// # Errors
    /// When it cannot be made, which gives it up.
    pub fn find<T>(
        &self,
        kind: &Kind<'_>,
        scratch: &File,
        limit: Duration,
        begin: impl FnOnce() -> T,
    ) -> Result<Option<PathBuf>> {
        let id = kind.key().hex();
        if self.given_up.lock().unwrap_or_else(PoisonError::into_inner).contains(&id) {
            return Ok(None);
        }
        let mut made = false;
        let found = self.store.entry(&kind.entry(), kind.key(), |at| {
            let _held = begin();
            made = true;
            let save = || launch::save(kind.config, &[scratch.as_fd()], at, limit);
            // On a busy machine a kernel may find no timer that ticks as it should: what fails twice is told.
            save().or_else(|_| save())
        });
        if found.is_err() {
            self.given_up.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        } else if made {
            self.store.keep_newest(&format!("{}-", kind.entry()), KEPT)?;
        }
        found.map(Some)
    }

    /// Does without the template in this run, and removes it: the next run makes another one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn give_up(&self, kind: &Kind<'_>) -> Result<()> {
        let id = kind.key().hex();
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        self.store.discard(&kind.entry(), kind.key())
    }
}
