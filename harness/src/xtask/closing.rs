//! The end of `cargo xtask vm-test`: skips, failures, differences, figures, and the closing line.
//!
//! Invariant: the figures and the exit code come from the same verdicts, as the declared differences leave them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::guest::Subject;
use crate::matrix::{Plan, Skip};
use crate::report::Verdict;
use crate::report::difference::{Differences, Finding, Row, compare};
use crate::report::human::{Human, failure_text};
use crate::report::junit::junit;
use crate::report::shard;
use crate::report::summary::{Summary, exit, exit_code};
use crate::runner::{INTERRUPTED, JobEnd, Located, STOPPED};

/// What a run was, when all its guests have ended.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    /// What was to run.
    pub(super) plan: &'a Plan,
    /// What came of it.
    pub(super) ends: &'a [JobEnd],
    /// What is expected of the reference.
    pub(super) differences: &'a Differences,
    /// What is wrong with the lists of expected skips and differences.
    pub(super) wrong_lists: Vec<String>,
    /// How many times everything was to run.
    pub(super) rounds: usize,
    /// Who is told.
    pub(super) human: &'a Human,
    /// Who tells.
    pub(super) verb: &'a str,
}

/// What a run comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    summary: Summary,
    code: u8,
}

impl Ended<'_> {
    /// Tells the end, to JUnit's readers too; the exit code.
    ///
    /// # Errors
    /// When the results cannot be written.
    pub(super) fn tell(&self, verbose: bool, junit_file: Option<&Path>) -> Result<u8> {
        let results: Vec<&Located> = self.ends.iter().flat_map(|end| &end.reports).collect();
        let infrastructure: Vec<&String> =
            self.ends.iter().flat_map(|end| &end.infrastructure).collect();
        self.tell_skips();
        if verbose {
            for located in results.iter().filter(|at| at.report.verdict == Verdict::Passed) {
                self.line(&format!("---- {}\n{}", located.report.case, located.report.output));
            }
        }
        self.line("");
        let ended_early = [STOPPED, INTERRUPTED].map(|why| {
            let verdict = Verdict::NotRun { why: why.to_owned() };
            let count = results.iter().filter(|located| located.report.verdict == verdict).count();
            (verdict, count)
        });
        let was_due = |located: &Located| {
            ended_early.iter().all(|(verdict, _)| *verdict != located.report.verdict)
        };
        let told = |located: &&&Located| !self.is_fine(located) && was_due(located);
        for located in results.iter().filter(told) {
            let logs = located.logs.display().to_string();
            let reopen = located.reopen.as_deref();
            self.line(&failure_text(&located.cell, &located.report, &logs, reopen));
        }
        for (verdict, count) in ended_early.iter().filter(|(_, count)| *count > 0) {
            self.line(&format!("{count} were not run: {}\n", verdict.told()));
        }
        for why in &infrastructure {
            self.line(&format!("---- the machine: {why}\n"));
        }
        for case in &self.plan.unassigned {
            self.line(&format!("---- {case}: no cell of the lane has what it needs\n"));
        }
        for complaint in &self.wrong_lists {
            self.line(&format!("---- {complaint}\n"));
        }
        let rows = compare(&results, self.differences);
        self.tell_differences(&rows);
        self.tell_rates(&results);
        let retries: u32 = self.ends.iter().map(|end| end.retries).sum();
        if retries > 0 {
            self.line(&format!(
                "{retries} guests failed without a case's being to blame, and were replaced"
            ));
        }
        let Outcome { summary, code } = self.outcome(&results, &rows, infrastructure.len());
        if code == exit::ACCOUNTING {
            self.line(&format!(
                "planned otherwise than reported, a defect of the harness: {}",
                shard::some_of(&self.unaccounted(&results))
            ));
        }
        self.line(&format!("{}: {summary}", self.verb));
        self.human.value(&serde_json::json!({
            "event": "end",
            "passed": summary.passed,
            "failed": summary.failed,
            "skipped": summary.skipped,
            "code": code,
        }));
        if let Some(path) = junit_file {
            let complaints = self.complaints(&results, &rows, &infrastructure);
            let text = junit(self.plan, &results, &complaints, |located| self.is_fine(located));
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(code)
    }

    /// What makes the run fail beside its results.
    fn complaints(&self, results: &[&Located], rows: &[Row], broken: &[&String]) -> Vec<String> {
        let unassigned = self.plan.unassigned.iter();
        let unassigned =
            unassigned.map(|case| format!("{case}: no cell of the lane has what it needs"));
        let stale = rows.iter().filter(|row| row.finding == Finding::Stale);
        let stale = stale.map(|row| format!("{}: the declared difference is gone", row.case));
        let unaccounted = self.unaccounted(results).into_iter();
        let unaccounted =
            unaccounted.map(|name| format!("{name}: planned otherwise than reported"));
        let broken = broken.iter().map(|why| format!("the machine: {why}"));
        let lists = self.wrong_lists.iter().cloned();
        broken.chain(unassigned).chain(lists).chain(stale).chain(unaccounted).collect()
    }

    /// Whether nothing needs to be said of a result.
    fn is_fine(&self, located: &Located) -> bool {
        located.is_fine(self.differences)
    }

    fn unaccounted(&self, results: &[&Located]) -> Vec<String> {
        shard::unaccounted(self.plan, self.rounds, results)
    }

    fn planned(&self) -> usize {
        self.plan.size() * self.rounds
    }

    fn outcome(&self, results: &[&Located], rows: &[Row], broken: usize) -> Outcome {
        let as_expected = |located: &&Located| {
            if self.is_fine(located) { Verdict::Passed } else { located.report.verdict.clone() }
        };
        let verdicts: Vec<Verdict> = results.iter().map(as_expected).collect();
        let verdicts: Vec<&Verdict> = verdicts.iter().collect();
        let stale = rows.iter().filter(|row| row.finding == Finding::Stale).count();
        let mut summary = Summary { skipped: self.plan.skips.len(), ..Summary::default() };
        verdicts.iter().for_each(|verdict| summary.count(verdict));
        summary.failed += self.plan.unassigned.len() + stale + self.wrong_lists.len();
        let unaccounted = self.unaccounted(results).len();
        let mut code = exit_code(unaccounted, &verdicts, broken);
        let outdated =
            !self.plan.unassigned.is_empty() || stale > 0 || !self.wrong_lists.is_empty();
        if code == exit::PASSED && outdated || self.planned() == 0 {
            code = exit::UNASSIGNED;
        }
        summary.failed += unaccounted;
        Outcome { summary, code }
    }

    fn tell_skips(&self) {
        for skip in &self.plan.skips {
            let Skip { case, cell, why, .. } = skip;
            let subject = if cell.subject == Subject::Nspawn { " (nspawn)" } else { "" };
            let (kernel, fs) = (&cell.kernel, &cell.fs);
            self.line(&format!("SKIP     {kernel:<11} {fs:<6} {case}{subject}  {why}"));
        }
    }

    fn tell_differences(&self, rows: &[Row]) {
        if rows.is_empty() {
            return;
        }
        self.line("differences from systemd-nspawn:");
        for Row { case, finding, why } in rows {
            let why = why.replace('\n', " ");
            let why: String = why.chars().take(200).collect();
            self.line(&format!("  {:<8} {case}  {why}", finding.word()));
        }
        self.line("");
    }

    /// With several rounds: how often each case that failed did.
    fn tell_rates(&self, results: &[&Located]) {
        for (name, failed, runs) in rates(results, |located| self.is_fine(located)) {
            if self.rounds > 1 && failed > 0 {
                self.line(&format!("failed {failed} of {runs}: {name}"));
            }
        }
    }

    fn line(&self, text: &str) {
        self.human.line(text);
    }
}

/// Each case in its cell, with how many of its runs failed.
fn rates(results: &[&Located], passes: impl Fn(&Located) -> bool) -> Vec<(String, usize, usize)> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for located in results {
        let name = format!("{} ({})", located.report.case, located.cell);
        let (failed, runs) = counts.entry(name).or_default();
        *failed += usize::from(!passes(located));
        *runs += 1;
    }
    counts.into_iter().map(|(name, (failed, runs))| (name, failed, runs)).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::case::Listing;
    use crate::matrix::{Cell, Job};
    use crate::report::CaseReport;
    use crate::report::human::Format;
    use crate::shape::Shape;

    fn failed() -> Verdict {
        Verdict::Failed { chain: Vec::new() }
    }

    fn cell(subject: Subject) -> Cell {
        let (kernel, fs) = ("k".to_owned(), "ext4".to_owned());
        Cell { kernel, version: (6, 1), fs, subject, shape: Shape::Lean }
    }

    fn job(subject: Subject, cases: &[&str]) -> Job {
        let case = |name: &&str| Listing { name: (*name).to_owned(), needs: vec![], timeout_s: 1 };
        Job { cell: cell(subject), cases: cases.iter().map(case).collect() }
    }

    fn at(subject: Subject, case: &str, verdict: Verdict) -> Located {
        let (case, output, console) = (case.to_owned(), String::new(), Vec::new());
        let report = CaseReport { case, verdict, duration_ms: 1, output, console };
        Located { cell: cell(subject), report, logs: "".into(), reopen: None }
    }

    /// The outcome of a run that came to these reports, under declarations or none.
    fn outcome(jobs: Vec<Job>, reports: Vec<Located>, list: &str) -> Outcome {
        let differences = Differences::parse(list).unwrap();
        let ended = Ended {
            plan: &Plan { jobs, ..Plan::default() },
            ends: &[JobEnd { reports, ..JobEnd::default() }],
            differences: &differences,
            rounds: 1,
            wrong_lists: Vec::new(),
            human: &Human::new(Differences::default(), Format::Human),
            verb: "vm-test",
        };
        let results: Vec<&Located> = ended.ends[0].reports.iter().collect();
        ended.outcome(&results, &compare(&results, &differences), 0)
    }

    /// As many were reported as were planned, and yet one is lost.
    #[test]
    fn a_case_that_is_reported_twice_does_not_stand_for_another() {
        let twice = [(); 2].map(|()| at(Subject::Rspawn, "a", Verdict::Passed));
        let found = outcome(vec![job(Subject::Rspawn, &["a", "b"])], twice.to_vec(), "");
        assert_eq!(found.code, exit::ACCOUNTING);
    }

    const DECLARED: &str = "\"a::x\" = \"so it is\"";

    #[rstest]
    #[case::same(Verdict::Passed, Verdict::Passed, "", (2, 0), exit::PASSED)]
    #[case::declared(Verdict::Passed, failed(), DECLARED, (2, 0), exit::PASSED)]
    #[case::undeclared(Verdict::Passed, failed(), "", (1, 1), exit::FAILED)]
    #[case::stale(Verdict::Passed, Verdict::Passed, DECLARED, (2, 1), exit::UNASSIGNED)]
    #[case::ours_fails(failed(), failed(), DECLARED, (1, 1), exit::FAILED)]
    fn differences_change_figures_and_exit_code_alike(
        #[case] ours: Verdict,
        #[case] theirs: Verdict,
        #[case] list: &str,
        #[case] (passed, failed): (usize, usize),
        #[case] code: u8,
    ) {
        let jobs = [Subject::Rspawn, Subject::Nspawn].map(|subject| job(subject, &["vm::a::x"]));
        let reports =
            vec![at(Subject::Rspawn, "vm::a::x", ours), at(Subject::Nspawn, "vm::a::x", theirs)];
        let found = outcome(jobs.to_vec(), reports, list);
        assert_eq!((found.summary.passed, found.summary.failed), (passed, failed));
        assert_eq!(found.code, code);
    }

    #[test]
    fn a_case_that_fails_now_and_then_is_told_with_its_rate() {
        let results = [Verdict::Passed, failed(), Verdict::Passed]
            .map(|verdict| at(Subject::Rspawn, "a", verdict));
        let results: Vec<&Located> = results.iter().collect();
        let rates = rates(&results, |located| located.report.verdict == Verdict::Passed);
        assert_eq!(rates, [("a (k ext4)".to_owned(), 1, 3)]);
    }
}
