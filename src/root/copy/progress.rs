//! What does the user see of a copy, and who stops it? The thread that waits for the workers looks for signals, and draws
//! a line on a terminal. Signals are only looked at: the supervisor reads them once we are done.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::walk::Walk;

/// Between two looks at how far it is.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// A copy that is done sooner is not worth a line.
const PATIENCE: Duration = Duration::from_millis(500);

/// What ends a copy when it comes.
pub(super) fn terminating() -> Result<SignalFd> {
    let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).context("listening for signals")
}

/// Waits until so many workers have ended.
pub(super) fn watch(walk: &Walk<'_>, signals: &SignalFd, workers: usize, shows: bool) {
    let (begun, mut line) = (Instant::now(), None);
    let mut working = workers as u64;
    let mut stopped = false;
    while working > 0 {
        let mut fds =
            [PollFd::new(&walk.ended, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
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
        if shows && begun.elapsed() > PATIENCE {
            let line = line.get_or_insert_with(bar);
            line.set_message(text(walk, begun.elapsed()));
            line.tick();
        }
    }
    if let Some(line) = line {
        line.finish_and_clear();
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {msg}");
    bar.with_style(style.expect("the template is well formed"))
}

fn text(walk: &Walk<'_>, since: Duration) -> String {
    let (files, bytes) = (walk.files.load(Relaxed), walk.bytes.load(Relaxed));
    let per_second = u128::from(bytes) * 1000 / since.as_millis().max(1);
    let per_second = u64::try_from(per_second).unwrap_or(u64::MAX);
    let (files, bytes) = (HumanCount(files), HumanBytes(bytes));
    format!("copying: {files} files, {bytes}, {}/s", HumanBytes(per_second))
}
