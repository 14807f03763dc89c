//! What the reference run says: the same case with systemd-nspawn starting the containers. Pure.
//!
//! A case is right when it holds for the reference too, or when `ci/differences.toml` says why it does not. Invariants:
//! a declaration explains only what the case itself found (a lost guest is never a difference), and a declared
//! difference that is not there any more is an error, so that the list stays true.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Verdict;
use crate::guest::Subject;
use crate::matrix::{Job, Plan};
use crate::runner::Located;

/// The list, from the top of the repository.
pub const LIST: &str = "ci/differences.toml";

/// What the list says of a case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Declaration {
    Reason(String),
    Detailed(Detail),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Detail {
    reason: String,
    /// For a case that systemd-nspawn is waiting in until it is killed, in seconds on real hardware.
    limit_s: Option<u32>,
    /// The difference shows by chance: a race, or a lack of room.
    #[serde(default)]
    sometimes: bool,
}

impl Declaration {
    fn reason(&self) -> &str {
        match self {
            Self::Reason(reason) => reason,
            Self::Detailed(detail) => &detail.reason,
        }
    }

    fn limit_s(&self) -> Option<u32> {
        match self {
            Self::Reason(_) => None,
            Self::Detailed(detail) => detail.limit_s,
        }
    }

    fn shows_always(&self) -> bool {
        !matches!(self, Self::Detailed(Detail { sometimes: true, .. }))
    }
}

/// Cases in which systemd-nspawn is expected to fail, each with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences(BTreeMap<String, Declaration>);

impl Differences {
    /// Reads the list of a checkout.
    ///
    /// # Errors
    /// When it cannot be read or is no such list.
    pub fn of(top: &Path) -> Result<Self> {
        match std::fs::read_to_string(top.join(LIST)) {
            Ok(text) => Self::parse(&text),
            // A project without the list has nothing to declare.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("reading {LIST}")),
        }
    }

    /// Reads lines of the form `"topic::case" = "reason"` or `"topic::case" = { reason = "…", limit_s = 4 }`.
    ///
    /// # Errors
    /// When the text has another form, or a reason says nothing.
    pub fn parse(text: &str) -> Result<Self> {
        let rows: BTreeMap<String, Declaration> =
            toml::from_str(text).with_context(|| format!("reading {LIST}"))?;
        for (case, declared) in &rows {
            ensure!(!declared.reason().trim().is_empty(), "{LIST} gives no reason for \"{case}\"");
        }
        Ok(Self(rows))
    }

    /// Why systemd-nspawn fails in this case, if that is expected; `case` is named as the suite does.
    #[must_use]
    pub fn reason(&self, case: &str) -> Option<&str> {
        self.0.get(short(case)).map(Declaration::reason)
    }

    fn shows_always(&self, case: &str) -> bool {
        self.0.get(short(case)).is_none_or(Declaration::shows_always)
    }

    /// Gives the reference's runs the limits that are declared for them.
    pub fn limit(&self, plan: &mut Plan) {
        let theirs = |job: &&mut Job| job.cell.subject == Subject::Nspawn;
        for case in plan.jobs.iter_mut().filter(theirs).flat_map(|job| &mut job.cases) {
            let declared = self.0.get(short(&case.name));
            if let Some(limit_s) = declared.and_then(Declaration::limit_s) {
                case.timeout_s = case.timeout_s.min(limit_s);
            }
        }
    }

    /// Declared names that are no case of the suite.
    #[must_use]
    pub fn strangers(&self, cases: &[String]) -> Vec<String> {
        let known = |name: &&String| cases.iter().any(|case| short(case) == name.as_str());
        self.0.keys().filter(|name| !known(name)).cloned().collect()
    }

    /// Whether a verdict of the reference is explained by a declaration.
    #[must_use]
    pub fn explain(&self, case: &str, verdict: &Verdict) -> bool {
        self.reason(case).is_some() && is_of_the_case(verdict) && *verdict != Verdict::Passed
    }
}

/// A case's name without the suite's.
fn short(case: &str) -> &str {
    case.strip_prefix("vm::").unwrap_or(case)
}

/// Whether the case itself came to this verdict; otherwise the guest or the harness did.
fn is_of_the_case(verdict: &Verdict) -> bool {
    matches!(
        verdict,
        Verdict::Passed
            | Verdict::Failed { .. }
            | Verdict::LeftBehind { .. }
            | Verdict::TimedOut { .. }
    )
}

/// What the reference's runs of a case say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It fails, as declared.
    Declared,
    /// It fails, which nobody declared.
    New,
    /// It fails as the launcher under test does: the case may be wrong.
    Suspect,
    /// It does not fail any more, though it is declared to.
    Stale,
}

impl Finding {
    /// One word for a table.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::New => "NEW",
            Self::Suspect => "SUSPECT",
            Self::Stale => "STALE",
        }
    }
}

/// A row of the table of differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Name as listed.
    pub case: String,
    /// What was found.
    pub finding: Finding,
    /// The declared reason, or what the case complained of.
    pub why: String,
}

/// Compares the reference's results with what is declared: a row per case that differs or should.
#[must_use]
pub fn compare(results: &[&Located], differences: &Differences) -> Vec<Row> {
    let mut by_case: BTreeMap<&str, Vec<&Located>> = BTreeMap::new();
    for located in results {
        by_case.entry(&located.report.case).or_default().push(located);
    }
    let row = |(case, trials): (&str, Vec<&Located>)| {
        let of = |subject: Subject| {
            let fits = move |located: &&&Located| located.cell.subject == subject;
            trials.iter().filter(fits).map(|located| &located.report.verdict)
        };
        let declared = differences.reason(case);
        let failed = of(Subject::Nspawn).find(|verdict| **verdict != Verdict::Passed);
        let (finding, why) = match (failed, declared) {
            (Some(verdict), _) if !is_of_the_case(verdict) => return None,
            (Some(_), Some(reason)) => (Finding::Declared, reason.to_owned()),
            (Some(verdict), None) => {
                let ours_too = of(Subject::Rspawn).any(|verdict| *verdict != Verdict::Passed);
                let finding = if ours_too { Finding::Suspect } else { Finding::New };
                (finding, verdict.told())
            }
            (None, Some(reason))
                if differences.shows_always(case) && of(Subject::Nspawn).next().is_some() =>
            {
                (Finding::Stale, reason.to_owned())
            }
            (None, _) => return None,
        };
        Some(Row { case: case.to_owned(), finding, why })
    };
    by_case.into_iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rstest::rstest;

    use super::*;
    use crate::case::Listing;
    use crate::matrix::Cell;
    use crate::report::CaseReport;
    use crate::shape::Shape;

    fn located(subject: Subject, verdict: Verdict) -> Located {
        let (kernel, fs) = ("k".to_owned(), "ext4".to_owned());
        Located {
            cell: Cell { kernel, version: (6, 1), fs, subject, shape: Shape::Lean },
            report: CaseReport {
                case: "vm::a::x".to_owned(),
                verdict,
                duration_ms: 1,
                output: String::new(),
                console: Vec::new(),
            },
            logs: PathBuf::new(),
            reopen: None,
        }
    }

    fn failed() -> Verdict {
        Verdict::Failed { chain: vec!["it differs".to_owned()] }
    }

    fn lost() -> Verdict {
        Verdict::Lost { how: String::new() }
    }

    const BY_CHANCE: &str = "\"a::x\" = { reason = \"a race\", sometimes = true }";
    const DECLARED: &str = "\"a::x\" = \"it is so\"";

    #[rstest]
    #[case::both_pass(Verdict::Passed, Verdict::Passed, "", None)]
    #[case::new(Verdict::Passed, failed(), "", Some((Finding::New, "it differs")))]
    #[case::declared(Verdict::Passed, failed(), DECLARED, Some((Finding::Declared, "it is so")))]
    #[case::stale(Verdict::Passed, Verdict::Passed, DECLARED, Some((Finding::Stale, "it is so")))]
    #[case::by_chance(Verdict::Passed, Verdict::Passed, BY_CHANCE, None)]
    #[case::suspect(failed(), failed(), "", Some((Finding::Suspect, "it differs")))]
    #[case::a_lost_guest_is_no_difference(Verdict::Passed, lost(), DECLARED, None)]
    fn the_reference_is_compared_with_what_is_declared(
        #[case] ours: Verdict,
        #[case] theirs: Verdict,
        #[case] list: &str,
        #[case] expected: Option<(Finding, &str)>,
    ) {
        let (ours, theirs) = (located(Subject::Rspawn, ours), located(Subject::Nspawn, theirs));
        let rows = compare(&[&ours, &theirs], &Differences::parse(list).unwrap());
        let found = rows.first().map(|row| (row.finding.clone(), row.why.as_str()));
        assert_eq!(found, expected);
    }

    #[test]
    fn without_a_run_of_the_reference_nothing_is_stale() {
        let ours = located(Subject::Rspawn, Verdict::Passed);
        assert_eq!(compare(&[&ours], &Differences::parse(DECLARED).unwrap()), []);
    }

    #[test]
    fn a_declaration_explains_failures_of_the_case_only() {
        let differences = Differences::parse(DECLARED).unwrap();
        assert!(differences.explain("vm::a::x", &failed()));
        assert!(!differences.explain("vm::a::x", &lost()));
        assert!(!differences.explain("vm::a::x", &Verdict::Passed));
        assert!(!differences.explain("vm::a::y", &failed()));
    }

    #[test]
    fn a_declared_name_must_be_a_case_and_have_a_reason() {
        let differences = Differences::parse("\"a::x\" = \"r\"\n\"a::gone\" = \"r\"").unwrap();
        assert_eq!(differences.strangers(&["vm::a::x".to_owned()]), ["a::gone"]);
        assert!(Differences::parse("\"a::x\" = \" \"").is_err());
    }

    #[test]
    fn only_the_references_run_is_cut_short() {
        let list = "\"a::x\" = { reason = \"it waits\", limit_s = 4 }";
        let listing = |timeout_s| Listing { name: "vm::a::x".to_owned(), needs: vec![], timeout_s };
        let job = |subject| Job {
            cell: located(subject, Verdict::Passed).cell,
            cases: vec![listing(20), listing(3)],
        };
        let jobs = vec![job(Subject::Rspawn), job(Subject::Nspawn)];
        let mut plan = Plan { jobs, ..Plan::default() };
        Differences::parse(list).unwrap().limit(&mut plan);
        let limits: Vec<_> =
            plan.jobs.iter().flat_map(|job| &job.cases).map(|case| case.timeout_s).collect();
        assert_eq!(limits, [20, 3, 4, 3]);
    }
}
