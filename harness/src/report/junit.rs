//! A run as a JUnit file, which CI systems show. Pure.
//!
//! A suite per cell; a skip carries its code and reason; what the machine did to a case is an error, what the case
//! found is a failure. A difference that is declared is a pass, as in the closing line.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Verdict, seconds};
use crate::matrix::Plan;
use crate::runner::Located;

/// The file's text. `passes` says which results count as passed; `complaints` are what else makes the run fail.
#[must_use]
pub fn junit(
    plan: &Plan,
    results: &[&Located],
    complaints: &[String],
    passes: impl Fn(&Located) -> bool,
) -> String {
    let mut suites: BTreeMap<String, Suite> = BTreeMap::new();
    for located in results {
        let suite = suites.entry(located.cell.to_string()).or_default();
        suite.add(located, passes(located));
    }
    for skip in &plan.skips {
        let suite = suites.entry(skip.cell.to_string()).or_default();
        let (class, name) = split(&skip.case);
        let why = format!("{}: {}", skip.code, skip.why);
        suite.skipped += 1;
        suite.push(&class, &name, 0, &format!("<skipped message=\"{}\"/>", escaped(&why)));
    }
    for complaint in complaints {
        let suite = suites.entry("the run itself".to_owned()).or_default();
        suite.errors += 1;
        let (name, text) = (complaint.lines().next().unwrap_or_default(), escaped(complaint));
        let error = format!("<error type=\"RUN\" message=\"{text}\">{text}</error>");
        suite.push("run", name, 0, &error);
    }
    let mut text =
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"vm\">\n".to_owned();
    for (name, suite) in &suites {
        text.push_str(&suite.text(name));
    }
    text.push_str("</testsuites>\n");
    text
}

#[derive(Debug, Default)]
struct Suite {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
    cases: String,
    /// How often each name was there before.
    names: BTreeMap<String, usize>,
}

impl Suite {
    fn add(&mut self, located: &Located, passes: bool) {
        let report = &located.report;
        let (class, name) = split(&report.case);
        let mut body = String::new();
        if !passes {
            let of_the_case = matches!(
                report.verdict,
                Verdict::Failed { .. } | Verdict::LeftBehind { .. } | Verdict::Splat { .. }
            );
            let element = if of_the_case { "failure" } else { "error" };
            *(if of_the_case { &mut self.failures } else { &mut self.errors }) += 1;
            let reasons = report.verdict.reasons();
            let first = escaped(reasons.first().map_or("", String::as_str));
            let (word, all) = (report.verdict.word(), escaped(&reasons.join("\n")));
            body = format!("<{element} type=\"{word}\" message=\"{first}\">{all}</{element}>");
        }
        if !report.output.is_empty() {
            let _infallible = write!(body, "<system-out>{}</system-out>", escaped(&report.output));
        }
        self.push(&class, &name, report.duration_ms, &body);
    }

    fn push(&mut self, class: &str, name: &str, duration_ms: u64, body: &str) {
        self.tests += 1;
        let (class, mut name) = (escaped(class), escaped(name));
        let before = self.names.entry(format!("{class}::{name}")).or_default();
        *before += 1;
        // Who reads the file goes by the name: of several rounds, the last would hide the others.
        if *before > 1 {
            name.push_str(&format!(" [round {before}]"));
        }
        let time = seconds(duration_ms);
        let _infallible = writeln!(
            self.cases,
            "<testcase classname=\"{class}\" name=\"{name}\" time=\"{time:.3}\">{body}</testcase>"
        );
    }

    fn text(&self, name: &str) -> String {
        let Self { tests, failures, errors, skipped, cases, .. } = self;
        let name = escaped(name);
        format!(
            "<testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" \
             errors=\"{errors}\" skipped=\"{skipped}\">\n{cases}</testsuite>\n"
        )
    }
}

fn split(case: &str) -> (String, String) {
    let (class, name) = case.rsplit_once("::").unwrap_or(("", case));
    (class.to_owned(), name.to_owned())
}

/// Text for an element or an attribute. XML 1.0 has no way to write most control characters (section 2.2).
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Subject;
    use crate::matrix::{Cell, Skip, SkipCode};
    use crate::report::CaseReport;
    use crate::shape::Shape;

    fn located(case: &str, verdict: Verdict, output: &str) -> Located {
        let (kernel, fs) = ("k".to_owned(), "ext4".to_owned());
        Located {
            cell: Cell {
                kernel,
                version: (6, 1),
                fs,
                subject: Subject::Rspawn,
                shape: Shape::Lean,
            },
            report: CaseReport {
                case: case.to_owned(),
                verdict,
                duration_ms: 1500,
                output: output.to_owned(),
                console: Vec::new(),
            },
            logs: "".into(),
            reopen: None,
        }
    }

    #[test]
    fn failures_errors_and_skips_are_told_apart() {
        let results = [
            located("vm::a::good", Verdict::Passed, ""),
            located(
                "vm::a::bad",
                Verdict::Failed { chain: vec!["x < \"y\"".to_owned()] },
                "\u{7}&",
            ),
            located("vm::a::gone", Verdict::Lost { how: "it ended".to_owned() }, ""),
        ];
        let skip = Skip {
            case: "vm::a::new".to_owned(),
            cell: results[0].cell.clone(),
            code: SkipCode::KernelTooOld,
            why: "needs kernel >= 6.2".to_owned(),
        };
        let plan = Plan { skips: vec![skip], ..Plan::default() };
        let results: Vec<&Located> = results.iter().collect();
        let text = junit(&plan, &results, &[], |located| located.report.verdict == Verdict::Passed);
        for part in [
            "<testsuite name=\"k ext4\" tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\">",
            "<testcase classname=\"vm::a\" name=\"good\" time=\"1.500\"></testcase>",
            "<failure type=\"FAIL\" message=\"x &lt; &quot;y&quot;\">",
            "<system-out>\u{fffd}&amp;</system-out>",
            "<error type=\"LOST\" message=\"it ended\">",
            "<skipped message=\"KERNEL_TOO_OLD: needs kernel &gt;= 6.2\"/>",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn what_counts_as_a_pass_is_the_callers_to_say() {
        let failed = located("vm::a::x", Verdict::Failed { chain: Vec::new() }, "");
        let text = junit(&Plan::default(), &[&failed], &[], |_| true);
        assert!(text.contains("failures=\"0\"") && !text.contains("<failure"), "{text}");
    }

    #[test]
    fn a_file_is_not_green_where_the_run_is_red_and_no_round_hides_another() {
        let (failed, passed) = (Verdict::Failed { chain: Vec::new() }, Verdict::Passed);
        let rounds = [located("vm::a::x", failed, ""), located("vm::a::x", passed, "")];
        let results: Vec<&Located> = rounds.iter().collect();
        let complaints = ["the disk is full".to_owned()];
        let text = junit(&Plan::default(), &results, &complaints, |located| {
            located.report.verdict == Verdict::Passed
        });
        assert!(text.contains("name=\"x\"") && text.contains("name=\"x [round 2]\""), "{text}");
        assert!(text.contains("<error type=\"RUN\" message=\"the disk is full\">"), "{text}");
    }
}
