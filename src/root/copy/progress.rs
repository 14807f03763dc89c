//! What does the user see of a copy, and who stops it? The thread that waits for the workers looks for signals, and shows
//! how far they are.

use std::sync::atomic::Ordering::Relaxed;

use anyhow::anyhow;
use indicatif::{HumanBytes, HumanCount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::walk::Walk;
use crate::progress::Progress;
use crate::root::interrupt::Interrupt;

/// Between two looks at how far it is.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Waits until so many workers have ended.
pub(super) fn watch(
    walk: &Walk<'_>,
    interrupt: &Interrupt,
    workers: usize,
    mut progress: Progress,
) {
    let mut working = workers as u64;
    let mut stopped = false;
    while working > 0 {
        let mut fds =
            [PollFd::new(&walk.ended, PollFlags::IN), PollFd::new(interrupt, PollFlags::IN)];
        // A signal that stays pending would wake us all the time.
        let watched = if stopped { &mut fds[..1] } else { &mut fds[..] };
        // What cannot be waited for now is asked again.
        let _ = poll(watched, Some(&PAUSE));
        let [ended, signal] = fds.map(|fd| !fd.revents().is_empty());
        if signal && !stopped {
            stopped = true;
            walk.stop(anyhow!("copying the tree: interrupted by a signal"));
        }
        let mut count = [0; 8];
        if ended && rustix::io::read(&walk.ended, &mut count).is_ok() {
            working = working.saturating_sub(u64::from_ne_bytes(count));
        }
        let (files, bytes) = (walk.files.load(Relaxed), walk.bytes.load(Relaxed));
        progress.show(bytes, |per_second| {
            let (files, rate) = (HumanCount(files), HumanBytes(per_second));
            format!("copying: {files} files, {}, {rate}/s", HumanBytes(bytes))
        });
    }
}
