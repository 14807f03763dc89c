//! How is something done that needs other namespaces than the supervisor's? A process does it and hands over what it has
//! opened.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::children::{how, wait_for};
use super::link::{self, Link};
use super::{Parent, fork, told};
use crate::errors::Report;

#[derive(Debug, Serialize, Deserialize)]
enum Brought {
    Descriptor,
    All,
    Failed(Report),
}

/// Runs `body` in a process with the namespaces of `flags` (`CLONE_NEW*`) of its own, and returns what it has opened.
///
/// # Errors
/// What `body` says, or how the process ended that said nothing.
pub(crate) fn errand(
    flags: libc::c_int,
    body: impl FnOnce() -> Result<Vec<OwnedFd>>,
) -> Result<Vec<OwnedFd>> {
    let (ours, theirs) = link::pair::<(), Brought>()?;
    let send = |link: &Link<Brought, ()>| -> Result<()> {
        for fd in body()? {
            link.send(&Brought::Descriptor, Some(fd.as_fd()))?;
        }
        link.send(&Brought::All, None)
    };
    // Whoever does not hear why has died.
    let tell = |error: anyhow::Error| {
        let _ = theirs.send(&Brought::Failed(Report::of(&error)), None);
    };
    let child = fork(flags, Parent::Us, || send(&theirs), tell)?;
    drop(theirs);
    let mut brought = Vec::new();
    let heard = loop {
        match ours.recv()? {
            Some((Brought::Descriptor, fd)) => brought.extend(fd),
            Some((Brought::All, _)) => break Some(Ok(())),
            Some((Brought::Failed(report), _)) => break Some(Err(told(report))),
            None => break None,
        }
    };
    let status = wait_for(&child.pidfd)?;
    match heard {
        Some(result) => result.map(|()| brought),
        None => bail!("a process of rspawn {}", how(&status)),
    }
}
