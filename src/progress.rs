//! What does the user see of something that takes long? A line on stderr if that is a terminal, once it has taken a
//! moment. At the end it is taken away.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is done sooner is not worth a line.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(100);

/// The line, or that there is none.
#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    /// When it is shown next; `None` if never.
    next: Option<Instant>,
    style: &'static str,
    all: u64,
    line: Option<ProgressBar>,
}

impl Progress {
    /// Of something of which nobody knows how much it will be.
    pub(crate) fn of_unknown(shows: bool) -> Self {
        Self::new("{spinner} {msg}", 0, shows)
    }

    /// Of so much, with a bar.
    pub(crate) fn of(all: u64, shows: bool) -> Self {
        Self::new("{msg} [{wide_bar}]", all, shows)
    }

    fn new(style: &'static str, all: u64, shows: bool) -> Self {
        let begun = Instant::now();
        let next = (shows && std::io::stderr().is_terminal()).then(|| begun + PATIENCE);
        Self { begun, next, style, all, line: None }
    }

    /// Shows that so much is done, with words that are made of how much that is in a second.
    pub(crate) fn show(&mut self, done: u64, words: impl FnOnce(u64) -> String) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + PAUSE);
        let line = self.line.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(self.style).expect("templates are constants");
            let all = (self.all > 0).then_some(self.all);
            ProgressBar::with_draw_target(all, ProgressDrawTarget::stderr()).with_style(style)
        });
        line.set_position(done);
        line.set_message(words(per_second(done, now - self.begun)));
        line.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            line.finish_and_clear();
        }
    }
}

fn per_second(count: u64, time: Duration) -> u64 {
    let rate = u128::from(count) * 1000 / time.as_millis().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_a_second() {
        assert_eq!(per_second(300, Duration::from_secs(2)), 150);
        assert_eq!(per_second(7, Duration::ZERO), 7000);
        assert_eq!(per_second(u64::MAX, Duration::ZERO), u64::MAX);
    }

    #[test]
    fn without_a_terminal_no_words_are_made() {
        let mut progress = Progress::of(2, false);
        progress.show(1, |_| unreachable!("nobody sees it"));
    }
}
