//! What becomes of quota groups when a subvolume of btrfs is copied and when the copy goes (SNP-10, SNP-15)?
//!
//! * What may be in a subvolume may be in its copy.
//! * The copy is in the groups that the subvolume is in. One that has the number of the subvolume, as `255/257` has by
//!   custom, is its own, with what is in it; there the copy gets an equal, with the same limit and the copies in it.
//! * With the copy its own groups go, of every level; others never do, but for those of subvolumes that are gone.
//!
//! Without quotas, and for those who may not look at them, nothing of it happens. Blocks that a copy shares are counted
//! for a group by going through the file system, which the kernel does in the background when it is told to; that is
//! so only where groups of a higher level are used.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};

use crate::sys::qgroup::{self, Group};

/// The least id of a subvolume that somebody has made (btrfs(5)).
const FIRST_ID: u64 = 256;

/// A subvolume and its copy, by their ids.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copied {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Does for copies, which are a tree together, what is done for what they are copies of. `fs` is a directory on a mount
/// that can be written.
///
/// # Errors
/// When groups cannot be read or made; the copies are to be removed then, and their groups with them.
pub(super) fn copy(fs: BorrowedFd<'_>, copies: &[Copied]) -> Result<()> {
    if !are_on(fs)? {
        return Ok(());
    }
    let equal = |group: Group| {
        let own = copies.iter().find(|copied| copied.from == group.number());
        own.map(|copied| Group::new(group.level(), copied.to))
    };
    let mut recount = false;
    let mut waiting: Vec<_> = copies.iter().map(|copied| Group::new(0, copied.from)).collect();
    let mut made = BTreeSet::new();
    while let Some(group) = waiting.pop() {
        let Some(copy) = equal(group) else { continue };
        if let Some(limit) = qgroup::limit(fs, group).context("reading a quota group's limit")? {
            qgroup::set_limit(fs, copy, limit).with_context(|| format!("limiting {copy}"))?;
        }
        for holder in holders(fs, group)? {
            let to = equal(holder).unwrap_or(holder);
            if to != holder && made.insert(to) {
                // Somebody else's of that number is an error: it may hold anything.
                qgroup::create(fs, to).with_context(|| format!("making the quota group {to}"))?;
                waiting.push(holder);
            }
            let into = || format!("putting {copy} into the quota group {to}");
            recount |= qgroup::assign(fs, copy, to).with_context(into)?;
        }
    }
    if recount { count_again(fs) } else { Ok(()) }
}

/// A subvolume's own groups, from below.
#[derive(Debug)]
pub(super) struct Own {
    subvolume: u64,
    groups: BTreeSet<Group>,
}

impl Own {
    /// Those of a subvolume that is about to go. `None` without quotas.
    ///
    /// # Errors
    /// When groups cannot be read.
    pub(super) fn of(fs: BorrowedFd<'_>, subvolume: u64) -> Result<Option<Self>> {
        if !are_on(fs)? {
            return Ok(None);
        }
        let mut waiting = vec![Group::new(0, subvolume)];
        let mut groups = BTreeSet::new();
        while let Some(group) = waiting.pop() {
            groups.insert(group);
            waiting.extend(holders(fs, group)?.iter().filter(|over| over.number() == subvolume));
        }
        Ok(Some(Self { subvolume, groups }))
    }

    /// Removes them once it is gone. Returns whether the others must be counted again.
    ///
    /// # Errors
    /// When they cannot be taken apart.
    pub(super) fn remove(&self, fs: BorrowedFd<'_>) -> Result<bool> {
        // Another one may have taken the name of this one before it went.
        let stays = qgroup::is_linked(fs, self.subvolume);
        if stays.context("looking whether a subvolume is gone")? {
            return Ok(false);
        }
        let mut recount = false;
        for &group in &self.groups {
            for holder in holders(fs, group)? {
                recount |= match qgroup::unassign(fs, group, holder) {
                    Err(error) if error.kind() == ErrorKind::NotFound => false,
                    done => done.with_context(|| {
                        format!("taking {group} out of the quota group {holder}")
                    })?,
                };
            }
        }
        for &group in &self.groups {
            destroy(fs, group)?;
        }
        destroy_stale(fs, self.subvolume)?;
        Ok(recount)
    }
}

/// Removes groups of subvolumes that are gone, as Linux 6.10 does by itself: 6.1 refuses it until all of the subvolume
/// was given back, which takes until the next run. No subvolume will ever have the id of one that was; one that is being
/// made has a higher one than `newest`, and may have a group before it is there.
fn destroy_stale(fs: BorrowedFd<'_>, newest: u64) -> Result<()> {
    let all = qgroup::all(fs).context("reading the quota groups")?;
    let subvolumes = all.into_iter().filter(|group| group.level() == 0);
    for group in subvolumes.filter(|group| (FIRST_ID..=newest).contains(&group.number())) {
        let is_there = qgroup::has_root(fs, group.number());
        if !is_there.context("looking for the subvolume of a quota group")? {
            destroy(fs, group)?;
        }
    }
    Ok(())
}

/// Removes a group unless something is in it still.
fn destroy(fs: BorrowedFd<'_>, group: Group) -> Result<()> {
    match qgroup::destroy(fs, group) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ResourceBusy) => {
            Ok(())
        }
        done => done.with_context(|| format!("removing the quota group {group}")),
    }
}

/// Lets the kernel count what the groups hold.
pub(super) fn count_again(fs: BorrowedFd<'_>) -> Result<()> {
    match qgroup::count_again(fs).map_err(|error| error.raw_os_error()) {
        // It does.
        Ok(()) | Err(Some(libc::EINPROGRESS)) => Ok(()),
        Err(code) => Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EIO)))
            .context("counting what is in the quota groups"),
    }
}

fn are_on(fs: BorrowedFd<'_>) -> Result<bool> {
    match qgroup::are_on(fs) {
        // Who may not look at them may not change them either.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        other => other.context("looking for quotas"),
    }
}

/// The groups that a group is in.
fn holders(fs: BorrowedFd<'_>, group: Group) -> Result<Vec<Group>> {
    let found = qgroup::relatives(fs, group).context("reading a quota group's relations")?;
    Ok(found.into_iter().filter(|other| other.level() > group.level()).collect())
}
