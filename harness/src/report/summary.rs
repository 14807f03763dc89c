//! What a run's results add up to: the closing line and the exit code. Pure.

use std::fmt;

use super::Verdict;

/// The closing figures. What was not run, lost or hung counts as failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// By positive proof.
    pub passed: usize,
    /// Everything else that was to run.
    pub failed: usize,
    /// Decided before anything ran.
    pub skipped: usize,
}

impl Summary {
    /// Counts a verdict.
    pub fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            _ => self.failed += 1,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }

    /// Reads the figures of a `test result:` line of a Rust test binary. None for any other line.
    #[must_use]
    pub fn of_libtest_line(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix("test result: ")?;
        let figure = |word: &str| -> Option<usize> {
            let part = rest.split([';', '.']).map(str::trim).find(|part| part.ends_with(word))?;
            part.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            passed: figure("passed")?,
            failed: figure("failed")?,
            skipped: figure("ignored")?,
        })
    }

    /// Reads a line that ends in the form of this type's [`fmt::Display`].
    #[must_use]
    pub fn of_closing_line(line: &str) -> Option<Self> {
        let figures = line.trim().rsplit(": ").next()?;
        let mut parts = figures.split(", ");
        let mut figure =
            |word: &str| -> Option<usize> { parts.next()?.strip_suffix(word)?.trim().parse().ok() };
        Some(Self {
            passed: figure("passed")?,
            failed: figure("failed")?,
            skipped: figure("skipped")?,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// What an error is about when it is not the machine: a context, or the error itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blame {
    /// The command line, with what is wrong with it.
    Usage(String),
    /// The compiler, with what was built.
    Build(&'static str),
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(what) => f.write_str(what),
            Self::Build(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Blame {}

/// Exit codes of `vm-test`; 4, 100 and 101 mean what they mean with nextest.
pub mod exit {
    use super::Blame;

    /// The command line makes no sense.
    pub const USAGE: u8 = 2;
    /// A person, or the machine, ended it by a signal.
    pub const INTERRUPTED: u8 = 130;

    /// That of a command that ends with this error.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> u8 {
        match error.downcast_ref::<Blame>() {
            Some(Blame::Usage(_)) => USAGE,
            Some(Blame::Build(_)) => BUILD,
            None => INFRASTRUCTURE,
        }
    }

    /// All planned ran and passed.
    pub const PASSED: u8 = 0;
    /// The filter selected nothing.
    pub const NOTHING_SELECTED: u8 = 4;
    /// At least one case failed.
    pub const FAILED: u8 = 100;
    /// Building failed.
    pub const BUILD: u8 = 101;
    /// The machine failed, no case did.
    pub const INFRASTRUCTURE: u8 = 110;
    /// A case that nothing can run.
    pub const UNASSIGNED: u8 = 111;
    /// Planned and reported differ: a defect of the harness.
    pub const ACCOUNTING: u8 = 112;
}

/// The exit code of a run: how many names were planned and not reported or the other way round, and the verdicts.
#[must_use]
pub fn exit_code(unaccounted: usize, verdicts: &[&Verdict], infrastructure: usize) -> u8 {
    if unaccounted > 0 {
        return exit::ACCOUNTING;
    }
    let ours = |verdict: &&&Verdict| !matches!(verdict, Verdict::Passed | Verdict::NotRun { .. });
    if verdicts.iter().any(|verdict| ours(&verdict)) {
        exit::FAILED
    } else if infrastructure > 0 || verdicts.iter().any(|verdict| **verdict != Verdict::Passed) {
        exit::INFRASTRUCTURE
    } else if verdicts.is_empty() {
        exit::NOTHING_SELECTED
    } else {
        exit::PASSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn not_run() -> Verdict {
        Verdict::NotRun { why: String::new() }
    }

    #[test]
    fn libtest_lines_are_counted_and_others_are_not() {
        let line = "test result: ok. 20 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(
            Summary::of_libtest_line(line),
            Some(Summary { passed: 20, failed: 1, skipped: 3 })
        );
        assert_eq!(Summary::of_libtest_line("running 3 tests"), None);
    }

    #[test]
    fn a_closing_line_reads_back_as_what_it_was_written_from() {
        let summary = Summary { passed: 3, failed: 1, skipped: 2 };
        assert_eq!(Summary::of_closing_line(&format!("vm-test: {summary}")), Some(summary));
        assert_eq!(Summary::of_closing_line("vm-test: boom"), None);
    }

    #[test]
    fn an_error_ends_with_the_code_of_what_it_is_about() {
        let usage = anyhow::anyhow!(Blame::Usage("no kernel".to_owned()));
        let build = anyhow::anyhow!("no libseccomp.a").context(Blame::Build("building"));
        assert_eq!(exit::of(&usage.context("choosing")), exit::USAGE);
        assert_eq!(exit::of(&build), exit::BUILD);
        assert_eq!(exit::of(&anyhow::anyhow!("no disk")), exit::INFRASTRUCTURE);
    }

    #[rstest]
    #[case::good(0, vec![Verdict::Passed], 0, 0)]
    #[case::nothing_is_not_success(0, vec![], 0, 4)]
    #[case::missing_report(1, vec![Verdict::Passed], 0, 112)]
    #[case::not_run(0, vec![not_run()], 1, 110)]
    #[case::a_failure_outweighs_the_machine(0, vec![not_run(), Verdict::Failed { chain: vec![] }], 1, 100)]
    #[case::lost(0, vec![Verdict::Lost { how: String::new() }], 0, 100)]
    fn exit_codes(
        #[case] unaccounted: usize,
        #[case] verdicts: Vec<Verdict>,
        #[case] broken: usize,
        #[case] code: u8,
    ) {
        assert_eq!(exit_code(unaccounted, &verdicts.iter().collect::<Vec<_>>(), broken), code);
    }
}
