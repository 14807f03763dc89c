//! Who walks the tree, and when is a directory done? A few workers take directories, partly read, from a stack.
//!
//! The stack holds the directories on the way to where the workers are, and of each as many names as one call gives, so
//! it does not grow with the tree. A directory is finished, with its times and all that making entries in it would
//! change, by whoever lets go of it last.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Error, Result, anyhow, bail};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, Gid, Mode, OFlags, RawDir, Stat, Uid};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::attributes::{self, Owner};
use super::links::Links;
use super::{Identity, Order, Sharing};
use crate::checkpoint;

/// Names of about five hundred entries.
const LISTING_BYTES: usize = 16 << 10;
/// What is read at once where the kernel does not copy.
const CONTENT_BYTES: usize = 128 << 10;
/// A longer path than the kernel takes at once (PATH_MAX) allows; more is somebody's joke.
const MOST_LEVELS: usize = 4096;

/// A copy that is being made; shared by its workers.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) order: &'a Order<'a>,
    stack: Mutex<Stack>,
    changed: Condvar,
    top: Mutex<Option<Arc<Dir>>>,
    /// Counts workers that have ended.
    pub(super) ended: OwnedFd,
    pub(super) stopped: AtomicBool,
    pub(super) files: AtomicU64,
    pub(super) bytes: AtomicU64,
    vanished: AtomicU64,
    pub(super) lost_attributes: AtomicU64,
    /// Blocks were shared so far, or it was not tried.
    pub(super) shares: AtomicBool,
    /// The kernel copied between the two file systems so far, or it was not tried.
    pub(super) ranges: AtomicBool,
    /// Whose a file is that we make.
    pub(super) us: Owner,
    pub(super) links: Links,
}

#[derive(Debug, Default)]
struct Stack {
    jobs: Vec<Job>,
    working: usize,
    error: Option<Error>,
}

/// A directory that is not read to its end, or not all of whose directories were entered.
#[derive(Debug)]
struct Job {
    dir: Arc<Dir>,
    waiting: Vec<CString>,
    ended: bool,
}

/// A directory and its copy.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) from: OwnedFd,
    pub(super) to: OwnedFd,
    name: CString,
    stat: Stat,
    parent: Option<Arc<Dir>>,
    level: usize,
}

impl Dir {
    /// Where it is in the tree.
    pub(super) fn path(&self, name: &CStr) -> PathBuf {
        let mut names = vec![name];
        let mut next = Some(self);
        while let Some(dir) = next {
            names.push(&dir.name);
            next = dir.parent.as_deref();
        }
        let names = names.into_iter().rev().map(|name| OsStr::from_bytes(name.to_bytes()));
        PathBuf::from("/").join(names.filter(|name| !name.is_empty()).collect::<PathBuf>())
    }
}

/// What a worker needs for itself.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) content: Vec<u8>,
    pub(super) names: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// What was not copied, and is no error.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) vanished: u64,
    pub(super) attributes: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(order: &'a Order<'a>) -> Result<Self> {
        let us = Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        make_plain(order, us).context("preparing the copy's directory")?;
        let stat = rustix::fs::fstat(order.from).context("looking at the tree")?;
        let from = open(order.from, c".", OFlags::DIRECTORY).context("opening the tree")?;
        let to = order.to.try_clone_to_owned().context("opening the copy's directory")?;
        let top = Dir { from, to, name: CString::default(), stat, parent: None, level: 0 };
        let top = Arc::new(top);
        let job = Job { dir: Arc::clone(&top), waiting: Vec::new(), ended: false };
        Ok(Self {
            order,
            stack: Mutex::new(Stack { jobs: vec![job], ..Stack::default() }),
            changed: Condvar::new(),
            top: Mutex::new(Some(top)),
            ended: eventfd(0, EventfdFlags::CLOEXEC).context("making an eventfd")?,
            stopped: AtomicBool::new(false),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            vanished: AtomicU64::new(0),
            lost_attributes: AtomicU64::new(0),
            shares: AtomicBool::new(true),
            ranges: AtomicBool::new(true),
            us,
            links: Links::default(),
        })
    }

    /// A worker's life.
    pub(super) fn work(&self) {
        let mut listing = vec![MaybeUninit::uninit(); LISTING_BYTES];
        let mut desk = Desk {
            content: vec![0; CONTENT_BYTES],
            names: vec![0; attributes::MOST_BYTES],
            value: vec![0; attributes::MOST_BYTES],
        };
        while let Some(job) = self.take() {
            let done = catch_unwind(AssertUnwindSafe(|| self.step(job, &mut listing, &mut desk)));
            let done = done.unwrap_or_else(|_| Err(anyhow!("a bug in rspawn: copying panicked")));
            let mut stack = self.stack();
            stack.working -= 1;
            if let Err(error) = done {
                self.stopped.store(true, Relaxed);
                stack.error.get_or_insert(error);
            }
            drop(stack);
            self.changed.notify_all();
        }
        // It counts further than there can be threads.
        let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
    }

    /// Ends it from outside.
    pub(super) fn stop(&self, why: Error) {
        self.stopped.store(true, Relaxed);
        self.stack().error.get_or_insert(why);
        self.changed.notify_all();
    }

    /// A lock that a panic has left is as good: what it guards is only ever replaced whole.
    fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job that was put aside last; `None` once there is nothing more to do.
    fn take(&self) -> Option<Job> {
        let mut stack = self.stack();
        loop {
            if self.stopped.load(Relaxed) {
                return None;
            }
            if let Some(job) = stack.jobs.pop() {
                stack.working += 1;
                return Some(job);
            }
            if stack.working == 0 {
                return None;
            }
            stack = self.changed.wait(stack).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put_back(&self, job: Job) {
        self.stack().jobs.push(job);
        self.changed.notify_one();
    }

    /// Enters one directory of the job's, or else copies the files of one more part of its listing.
    fn step(&self, mut job: Job, listing: &mut [MaybeUninit<u8>], desk: &mut Desk) -> Result<()> {
        if let Some(name) = job.waiting.pop() {
            let dir = Arc::clone(&job.dir);
            self.go_on(job, desk)?;
            let entered = self.enter(&dir, &name);
            let entered = entered.with_context(|| self.copying(&dir, &name))?;
            if let Some(child) = entered {
                self.put_back(Job { dir: Arc::new(child), waiting: Vec::new(), ended: false });
            }
            return self.let_go(dir, desk);
        }
        let dir = Arc::clone(&job.dir);
        let mut files = Vec::new();
        let mut entries = RawDir::new(&dir.from, listing);
        job.ended = true;
        while let Some(entry) = entries.next() {
            let entry = entry.with_context(|| self.copying(&dir, c""))?;
            let (name, kind) = (entry.file_name(), entry.file_type());
            if !matches!(name.to_bytes(), b"." | b"..") && !self.is_left_out(&dir, name) {
                match self.kind(&dir, name, kind)? {
                    Some(FileType::Directory) => job.waiting.push(name.to_owned()),
                    Some(kind) => files.push((name.to_owned(), kind)),
                    None => self.missed(),
                }
            }
            if entries.is_buffer_empty() {
                job.ended = false;
                break;
            }
        }
        if dir.parent.is_none() && !job.ended {
            checkpoint::reach("copy-listed");
        }
        self.go_on(job, desk)?;
        for (name, kind) in files {
            if self.stopped.load(Relaxed) {
                break;
            }
            let copied = self.entry(&dir, &name, kind, desk);
            if !copied.with_context(|| self.copying(&dir, &name))? {
                self.missed();
            }
        }
        self.let_go(dir, desk)
    }

    /// Leaves what is not done of a job to others.
    fn go_on(&self, job: Job, desk: &mut Desk) -> Result<()> {
        if job.ended && job.waiting.is_empty() {
            return self.let_go(job.dir, desk);
        }
        self.put_back(job);
        Ok(())
    }

    fn copying(&self, dir: &Dir, name: &CStr) -> String {
        format!("copying \"{}\"", dir.path(name).display())
    }

    fn missed(&self) {
        self.vanished.fetch_add(1, Relaxed);
    }

    fn is_left_out(&self, dir: &Dir, name: &CStr) -> bool {
        dir.parent.is_none() && name.to_bytes().starts_with(self.order.without_prefix.as_bytes())
    }

    /// What it is, asked where the directory does not say (readdir(3)). `None` if it is gone.
    fn kind(&self, dir: &Dir, name: &CStr, said: FileType) -> Result<Option<FileType>> {
        if said != FileType::Unknown {
            return Ok(Some(said));
        }
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statat(&dir.from, name, flags) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| self.copying(dir, name)),
        }
    }

    /// Opens a directory and makes its copy. `None` if it is gone, or no part of the tree.
    fn enter(&self, parent: &Arc<Dir>, name: &CString) -> Result<Option<Dir>> {
        let level = parent.level + 1;
        if level > MOST_LEVELS {
            bail!("the tree is more than {MOST_LEVELS} directories deep");
        }
        let from = match open(&parent.from, name, OFlags::DIRECTORY) {
            Ok(from) => from,
            // It went, or something else took its place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.missed();
                return Ok(None);
            }
            Err(errno) => return Err(errno.into()),
        };
        let stat = rustix::fs::fstat(&from)?;
        if self.order.without.contains(&identity(&stat)) {
            return Ok(None);
        }
        rustix::fs::mkdirat(&parent.to, name, Mode::RWXU).context("making the directory")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(&parent.to, name, flags, Mode::empty())?;
        self.files.fetch_add(1, Relaxed);
        let (name, parent) = (name.clone(), Some(Arc::clone(parent)));
        Ok(Some(Dir { from, to, name, stat, parent, level }))
    }

    /// Finishes a directory that nobody holds any more, and those above it that were waiting only for it.
    fn let_go(&self, dir: Arc<Dir>, desk: &mut Desk) -> Result<()> {
        let mut next = Some(dir);
        while let Some(dir) = next.take().and_then(Arc::into_inner) {
            if self.stopped.load(Relaxed) {
                // Nobody looks at it any more.
                break;
            }
            let Dir { from, to, stat, parent, .. } = &dir;
            let dressed = self.dress(to.as_fd(), from.as_fd(), stat, desk);
            dressed.with_context(|| self.copying(&dir, c""))?;
            next.clone_from(parent);
        }
        Ok(())
    }

    /// The end of it, when no worker is left.
    ///
    /// # Errors
    /// What stopped it.
    pub(super) fn finish(self) -> Result<Left> {
        if let Some(error) = self.stack().error.take() {
            return Err(error);
        }
        let top = self.top.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(top) = top {
            self.links.close(top.to.as_fd())?;
            let mut desk = Desk {
                content: Vec::new(),
                names: vec![0; attributes::MOST_BYTES],
                value: vec![0; attributes::MOST_BYTES],
            };
            self.let_go(top, &mut desk)?;
        }
        Ok(Left {
            vanished: self.vanished.load(Relaxed),
            attributes: self.lost_attributes.load(Relaxed),
        })
    }

    /// What of the order concerns each file.
    pub(super) fn must_share(&self) -> bool {
        self.order.sharing == Sharing::Required
    }
}

/// Opens what is read of the source: without waiting for anybody, and without leaving a trace where that can be helped.
pub(super) fn open(dir: impl AsFd, name: &CStr, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = flags | OFlags::CLOEXEC | more;
    match rustix::fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only its owner may (open(2)).
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        other => other,
    }
}

/// Device and inode.
#[allow(clippy::unnecessary_cast, reason = "the types differ between architectures")]
pub(in crate::root) fn identity(stat: &Stat) -> Identity {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// Takes from the copy's directory whatever its parent has passed on to it, or what is made in it would have it too: a
/// group (mkdir(2)), and entries of an ACL (acl(5)).
fn make_plain(order: &Order<'_>, us: Owner) -> Result<()> {
    let owner = (Uid::from_raw(us.uid), Gid::from_raw(us.gid));
    rustix::fs::fchown(order.to, Some(owner.0), Some(owner.1))?;
    rustix::fs::fchmod(order.to, Mode::RWXU)?;
    for name in [c"system.posix_acl_access", c"system.posix_acl_default"] {
        match rustix::fs::fremovexattr(order.to, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
