//! A run, told to a person: a line per finished case, what is being waited for, and at the end what failed and why.
//!
//! On a terminal the guests' present cases stand in one line that moves along; elsewhere a line every half minute says
//! what is awaited.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::difference::Differences;
use super::{CaseReport, Verdict, seconds};
use crate::guest::Subject;
use crate::matrix::Cell;

/// Pause between lines about what is awaited, when there is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Lines of a failed case's output that the report repeats.
const OUTPUT_LINES: usize = 40;

#[derive(Debug, Default)]
struct State {
    awaited: BTreeMap<usize, String>,
    first_verdict: Option<Instant>,
    ended: bool,
}

/// Tells a run, from any thread.
#[derive(Debug)]
pub struct Human {
    shared: Arc<(Mutex<State>, Condvar)>,
    bar: Option<ProgressBar>,
    differences: Differences,
    format: Format,
}

/// What stdout holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text for people.
    #[default]
    Human,
    /// A JSON object per line; the text goes to stderr.
    Json,
}

impl Human {
    /// Begins to tell; on a terminal when stdout is one. Of the reference's failures, those declared are told as such.
    #[must_use]
    pub fn new(differences: Differences, format: Format) -> Self {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let bar = (format == Format::Human && std::io::stdout().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_draw_target(ProgressDrawTarget::stdout());
            bar.set_style(
                ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || heartbeat(&shared, format));
        }
        Self { shared, bar, differences, format }
    }

    /// A line for good.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_finished() => bar.println(text),
            _ => print_line(text, self.format),
        }
    }

    /// An object for machines, when they read along.
    pub fn value(&self, value: &serde_json::Value) {
        if self.format == Format::Json {
            // As for lines: the exit code still tells.
            let _ = writeln!(std::io::stdout(), "{value}");
        }
    }

    /// A case's end.
    pub fn case(&self, cell: &Cell, report: &CaseReport) {
        lock(&self.shared).first_verdict.get_or_insert_with(Instant::now);
        let expected = cell.subject == Subject::Nspawn
            && self.differences.explain(&report.case, &report.verdict);
        let word = if expected { "DIFFERS" } else { report.verdict.word() };
        self.line(&case_line(word, cell, report));
        self.value(
            &serde_json::json!({ "event": "result", "cell": cell, "word": word, "report": report }),
        );
    }

    /// When the first case ended, if one did.
    #[must_use]
    pub fn first_verdict(&self) -> Option<Instant> {
        lock(&self.shared).first_verdict
    }

    /// What a guest is waited for; none when it is gone.
    pub fn awaits(&self, guest: usize, what: Option<String>) {
        let mut state = lock(&self.shared);
        match what {
            Some(what) => state.awaited.insert(guest, what),
            None => state.awaited.remove(&guest),
        };
        if let Some(bar) = &self.bar {
            bar.set_message(awaited(&state));
        }
    }

    /// Ends the moving line.
    pub fn finish(&self) {
        lock(&self.shared).ended = true;
        self.shared.1.notify_all();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn lock(shared: &(Mutex<State>, Condvar)) -> MutexGuard<'_, State> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn heartbeat(shared: &(Mutex<State>, Condvar), format: Format) {
    let mut state = lock(shared);
    loop {
        let (next, timeout) =
            shared.1.wait_timeout(state, HEARTBEAT).unwrap_or_else(PoisonError::into_inner);
        state = next;
        if state.ended {
            return;
        }
        if timeout.timed_out() && !state.awaited.is_empty() {
            print_line(&format!("waiting  {}", awaited(&state)), format);
        }
    }
}

fn awaited(state: &State) -> String {
    state.awaited.values().cloned().collect::<Vec<_>>().join(" | ")
}

fn print_line(text: &str, format: Format) {
    // A reader that went away ends the output, not the run: its exit code still tells.
    let _ = match format {
        Format::Human => writeln!(std::io::stdout(), "{text}"),
        Format::Json => writeln!(std::io::stderr(), "{text}"),
    };
}

/// One line for a finished case.
#[must_use]
pub fn case_line(word: &str, cell: &Cell, report: &CaseReport) -> String {
    let mut line = format!("{word:<8} {:<11} {:<6} {}", cell.kernel, cell.fs, report.case);
    if cell.subject == Subject::Nspawn {
        line.push_str(" (nspawn)");
    }
    if report.duration_ms > 0 {
        line.push_str(&format!("  {:.2}s", seconds(report.duration_ms)));
    }
    if let Some(reason) = report.verdict.reasons().first() {
        line.push_str(&format!("  {reason}"));
    }
    line
}

/// All there is to say about a case that did not pass, with the commands that open its guest (named as `vm-shell --at`
/// does) and run it again.
#[must_use]
pub fn failure_text(cell: &Cell, report: &CaseReport, logs: &str, reopen: Option<&str>) -> String {
    let mut text = format!("---- {} ({cell}): {}\n", report.case, report.verdict.word());
    for reason in report.verdict.reasons() {
        text.push_str(&format!("  {reason}\n"));
    }
    let output = crate::vm::console::tail(&report.output, OUTPUT_LINES);
    for (title, lines) in [("output", &output), ("console", &report.console)] {
        if !lines.is_empty() && lines.iter().any(|line| !line.is_empty()) {
            text.push_str(&format!("  {title}:\n"));
            for line in lines {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }
    text.push_str(&format!("  logs:      {logs}\n"));
    if let Some(at) = reopen {
        text.push_str(&format!("  reopen:    cargo xtask vm-shell --at {at}\n"));
    }
    let subject = if cell.subject == Subject::Nspawn { " --subject nspawn" } else { "" };
    if !matches!(report.verdict, Verdict::NotRun { .. }) {
        text.push_str(&format!(
            "  reproduce: cargo xtask vm-test --kernel {} --fs {}{subject} --exact {}\n",
            cell.kernel, cell.fs, report.case
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;

    #[test]
    fn a_failure_shows_its_chain_its_output_and_how_to_repeat_it() {
        let cell = Cell {
            kernel: "k".to_owned(),
            version: (6, 1),
            fs: "ext4".to_owned(),
            subject: Subject::Rspawn,
            shape: Shape::Lean,
        };
        let report = CaseReport {
            case: "vm::exit::x".to_owned(),
            verdict: Verdict::Failed {
                chain: vec!["running the container".to_owned(), "status 7".to_owned()],
            },
            duration_ms: 1234,
            output: "hello\n".to_owned(),
            console: Vec::new(),
        };
        assert_eq!(
            case_line("FAIL", &cell, &report),
            "FAIL     k           ext4   vm::exit::x  1.23s  running the container"
        );
        let text = failure_text(&cell, &report, "/l", Some("r/3"));
        assert!(text.contains("cargo xtask vm-shell --at r/3\n"), "{text}");
        assert!(text.contains("  status 7\n") && text.contains("    hello\n"), "{text}");
        assert!(
            text.contains("cargo xtask vm-test --kernel k --fs ext4 --exact vm::exit::x"),
            "{text}"
        );
        assert!(!text.contains("console:"), "{text}");
    }
}
