//! Which entries are the same file? Each file with several names gets one more in a directory of ours at the top of the
//! copy, named after the source's device and inode, and its other names are links to that: so nothing of them is kept in
//! memory. The directory goes when all is copied. It is in the copy itself since a link cannot leave a subvolume.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::walk::{Dir, identity};
use super::{Identity, Order};
use crate::root::remove;

/// What the directory's name ends in; it begins like all that is left out of a copy.
const NAME: &str = "links";

#[derive(Debug, Default)]
pub(super) struct Links {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    dir: Option<OwnedFd>,
    name: CString,
    busy: HashSet<Identity>,
}

/// The right to make the first name of a file.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    links: &'a Links,
    file: Identity,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.links.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.busy.remove(&self.file);
        drop(state);
        self.links.freed.notify_all();
    }
}

impl Links {
    /// Makes the name a link to the copy that is there already. `Some` if there is none: then the holder of the claim
    /// makes it, while others wait.
    pub(super) fn link(
        &self,
        order: &Order<'_>,
        dir: &Dir,
        name: &CStr,
        stat: &Stat,
    ) -> Result<Option<Claim<'_>>> {
        let file = identity(stat);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.busy.contains(&file) {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.dir.is_none() {
            let name = format!("{}{NAME}", order.without_prefix);
            state.name = CString::new(name).expect("it has no NUL");
            let made = make(order.to, &state.name);
            state.dir = Some(made.context("making a directory for hard links")?);
        }
        state.busy.insert(file);
        let claim = Claim { links: self, file };
        let known = state.dir.as_ref().expect("it was just made").try_clone();
        drop(state);
        let known = known.context("opening the directory for hard links")?;
        match rustix::fs::linkat(&known, name_of(file), &dir.to, name, AtFlags::empty()) {
            Ok(()) => Ok(None),
            Err(Errno::NOENT) => Ok(Some(claim)),
            Err(errno) => Err(errno).context("making a hard link"),
        }
    }

    /// The first name was made: others may be linked to it.
    pub(super) fn made(&self, dir: &Dir, name: &CStr, claim: Claim<'_>) -> Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.dir.as_ref().context("a bug in rspawn: a claim without links")?;
        let linked =
            rustix::fs::linkat(&dir.to, name, known, name_of(claim.file), AtFlags::empty());
        drop(state);
        linked.context("remembering a hard link")
    }

    /// Removes the directory.
    pub(super) fn close(&self, top: BorrowedFd<'_>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.dir.take() {
            Some(_) => remove::tree(top, &state.name).context("removing a directory of links"),
            None => Ok(()),
        }
    }
}

fn make(top: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(top, name, Mode::RWXU)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(top.as_fd(), name, flags, Mode::empty())
}

fn name_of((device, inode): Identity) -> String {
    format!("{device:x}-{inode:x}")
}
