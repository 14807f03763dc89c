//! What does the user see while the owners of a big tree are being changed?

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A tree that is done by then is not worth a line.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many files lie between two looks at the clock.
const STRIDE: u64 = 512;

/// Files that were changed so far: shown on stderr if that is a terminal, and taken away at the end. How many there
/// will be is not known.
pub(super) struct Progress {
    count: u64,
    started: Instant,
    is_shown: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn start() -> Self {
        let is_shown = std::io::stderr().is_terminal();
        Self { count: 0, started: Instant::now(), is_shown, bar: None }
    }

    /// One more.
    pub(super) fn step(&mut self) {
        self.count += 1;
        if !self.is_shown || !self.count.is_multiple_of(STRIDE) || self.started.elapsed() < PATIENCE
        {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style =
                ProgressStyle::with_template("rspawn: changing owners: {pos} files, {per_sec}")
                    .expect("the template is a constant");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
        });
        bar.set_position(self.count);
    }

    /// There are no more.
    pub(super) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
