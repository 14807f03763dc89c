//! How is a tree copied? Whole: contents with their holes, owners, modes, times, extended attributes with ACLs and
//! capabilities, hard links, device nodes and pipes. Sockets are left out: without their process they are nothing.
//!
//! | question                                        | file           |
//! |-------------------------------------------------|----------------|
//! | who walks the tree, and when is it done?        | [`walk`]       |
//! | how is one entry of a directory copied?         | [`entry`]      |
//! | which entries are the same file?                | [`links`]      |
//! | how do the bytes get over?                      | [`content`]    |
//! | what else belongs to a file?                    | [`attributes`] |
//! | what does the user see of it, and who stops it? | [`progress`]   |
//!
//! Invariants: everything is reached by descriptor from the two directories, and no link is followed, so that
//! whoever writes to the source meanwhile cannot lead us elsewhere; what vanishes meanwhile is not copied; the
//! threads are gone when [`tree`] returns; memory does not grow with the tree.

mod attributes;
mod content;
mod entry;
mod links;
mod progress;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::walk::Walk;
pub(super) use self::walk::identity;
use super::interrupt::Interrupt;
use crate::errors::warn;
use crate::progress::Progress;

/// More do not make a disk faster.
const MOST_WORKERS: usize = 8;

/// Device and inode of a directory.
pub(super) type Identity = (u64, u64);

/// What is to be copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    /// The tree's directory. Other file systems that are mounted below it are copied too, so it is to be one of a mount
    /// that nothing else is attached to.
    pub(super) from: BorrowedFd<'a>,
    /// An empty directory of ours, really opened.
    pub(super) to: BorrowedFd<'a>,
    /// Whether blocks must be shared.
    pub(super) sharing: Sharing,
    /// Directories that are no part of the tree.
    pub(super) without: &'a [Identity],
    /// Names at the top that are no part of the tree begin with this.
    pub(super) without_prefix: &'a str,
    /// Whether the user sees how it goes on.
    pub(super) shows: bool,
}

/// Whether a copy shares the blocks of its source until one of both is written to (ioctl_ficlone(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Where the file system can.
    IfPossible,
    /// Or there is no copy.
    Required,
}

/// The file system shares no blocks, and that was required.
#[derive(Debug)]
pub(super) struct NotShared(Errno);

impl fmt::Display for NotShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the file system shares no blocks with the source: {}", self.0)
    }
}

impl std::error::Error for NotShared {}

/// Copies a tree. What could not be done leaves a half copy, which is the caller's to remove.
///
/// # Errors
/// At the first thing that cannot be copied, with its path; [`NotShared`]; and when one of SIGINT, SIGTERM, SIGHUP and
/// SIGQUIT, which the caller must have blocked, is pending.
pub(super) fn tree(order: &Order<'_>) -> Result<()> {
    let _room = ManyFiles::allow();
    let interrupt = Interrupt::listen()?;
    let progress = Progress::of_unknown(order.shows);
    let walk = Walk::new(order)?;
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS) {
            let spawned = thread::Builder::new().spawn_scoped(scope, || walk.work());
            match spawned {
                Ok(worker) => workers.push(worker),
                // Fewer do as well.
                Err(_) if !workers.is_empty() => break,
                Err(error) => return Err(error).context("starting a thread that copies"),
            }
        }
        progress::watch(&walk, &interrupt, workers.len(), progress);
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a bug in rspawn: a copying thread panicked"))?;
        }
        Ok(())
    })?;
    settle();
    let left = walk.finish()?;
    if left.vanished > 0 {
        warn(format_args!("{} files vanished while the tree was copied", left.vanished));
    }
    if left.attributes > 0 {
        warn(format_args!(
            "{} extended attributes have no place on the copy's file system",
            left.attributes
        ));
    }
    Ok(())
}

/// Waits until the kernel has let go of threads that were joined: pthread_join(3) returns a moment before, and whoever
/// forks next counts them.
fn settle() {
    use std::os::unix::fs::MetadataExt;
    let threads = || std::fs::metadata("/proc/self/task").map_or(1, |tasks| tasks.nlink() - 2);
    // Tests have threads of their own, so it must end.
    for _ in 0..10_000 {
        if threads() <= 1 {
            break;
        }
        thread::yield_now();
    }
}

/// Allows more open files for a while: two for each directory on the way to where we are.
struct ManyFiles(Option<Rlimit>);

impl ManyFiles {
    const MANY: u64 = 1 << 16;

    fn allow() -> Self {
        let before = getrlimit(Resource::Nofile);
        let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= Self::MANY);
        if enough(before.current) {
            return Self(None);
        }
        let maximum = if enough(before.maximum) { before.maximum } else { Some(Self::MANY) };
        let more = Rlimit { current: Some(Self::MANY), maximum };
        let most = Rlimit { current: before.maximum, maximum: before.maximum };
        let raised =
            setrlimit(Resource::Nofile, more).or_else(|_| setrlimit(Resource::Nofile, most));
        Self(raised.is_ok().then_some(before))
    }
}

impl Drop for ManyFiles {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            // Lowering a limit is always allowed (setrlimit(2)).
            let _ = setrlimit(Resource::Nofile, before);
        }
    }
}
