//! Which skips were expected? `ci/expected-skips.toml` says so, with reasons. Pure but for [`Expected::of`].
//!
//! What the user's own flags or a case's table decide needs no row; what a cell lacks does. Invariant: a row whose case
//! runs in the cell it speaks of is stale, so that the list cannot hide a case for longer than needed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::matrix::{Plan, SkipCode};

/// The list, from the top of the repository.
pub const LIST: &str = "ci/expected-skips.toml";

/// What makes a run fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Deny {
    /// Skips that the list lacks, and rows of it that are stale.
    Unexpected,
    /// Every skip that was not asked for.
    All,
    /// Nothing.
    None,
}

/// The rows of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    #[serde(default)]
    skip: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Part of the name of the cases.
    case: String,
    /// Name of a kernel's row.
    kernel: String,
    reason: String,
}

impl Expected {
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

    /// Reads rows of `[[skip]]` with case, kernel and reason.
    ///
    /// # Errors
    /// When the text has another form, or a reason says nothing.
    pub fn parse(text: &str) -> Result<Self> {
        let expected: Self = toml::from_str(text).with_context(|| format!("reading {LIST}"))?;
        for row in &expected.skip {
            ensure!(!row.reason.trim().is_empty(), "{LIST} gives no reason for \"{}\"", row.case);
        }
        Ok(expected)
    }

    /// Rows that speak of no case of the suite, or of no kernel of the table.
    #[must_use]
    pub fn strangers(&self, cases: &[String], kernels: &[String]) -> Vec<String> {
        let known = |row: &&Row| {
            kernels.contains(&row.kernel)
                && cases.iter().any(|case| case.contains(row.case.as_str()))
        };
        let strange = self.skip.iter().filter(|row| !known(row));
        strange.map(|row| format!("{} on {}", row.case, row.kernel)).collect()
    }

    /// What is wrong with the skips of a plan.
    #[must_use]
    pub fn complaints(&self, plan: &Plan, deny: Deny) -> Vec<String> {
        let lacks = plan.skips.iter().filter(|skip| skip.code == SkipCode::KernelTooOld);
        let fits = |row: &Row, case: &str, kernel: &str| {
            row.kernel == kernel && case.contains(row.case.as_str())
        };
        let told = |case: &str, kernel: &str, why: &str| {
            format!("{case} is skipped on {kernel}, unexpectedly: {why}")
        };
        let expected =
            |case: &str, kernel: &str| self.skip.iter().any(|row| fits(row, case, kernel));
        match deny {
            Deny::None => Vec::new(),
            Deny::All => lacks.map(|skip| told(&skip.case, &skip.cell.kernel, &skip.why)).collect(),
            Deny::Unexpected => {
                let unexpected = lacks
                    .filter(|skip| !expected(&skip.case, &skip.cell.kernel))
                    .map(|skip| told(&skip.case, &skip.cell.kernel, &skip.why));
                let runs = |row: &&Row| {
                    plan.jobs.iter().any(|job| {
                        job.cases.iter().any(|case| fits(row, &case.name, &job.cell.kernel))
                    })
                };
                let stale = self.skip.iter().filter(runs).map(|row| {
                    format!("{LIST}: \"{}\" is not skipped on {} any more", row.case, row.kernel)
                });
                unexpected.chain(stale).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::case::{ListedNeed, Listing};
    use crate::guest::Subject;
    use crate::matrix::{Axes, plan};

    fn planned(least: (u32, u32)) -> Plan {
        let needs = vec![ListedNeed::Kernel(least.0, least.1)];
        let cases = [Listing { name: "vm::a::x".to_owned(), needs, timeout_s: 1 }];
        let kernels = [("old".to_owned(), (5, 10))];
        let subjects = &[Subject::Rspawn];
        let lane_fs = &["ext4".to_owned()];
        plan(&cases, &Axes { kernels: &kernels, lane_fs, every_fs: false, fs: &[], subjects })
    }

    const ROW: &str = "[[skip]]\ncase = \"a::x\"\nkernel = \"old\"\nreason = \"too old\"\n";

    #[rstest]
    #[case::unexpected((6, 1), "", Deny::Unexpected, 1)]
    #[case::expected((6, 1), ROW, Deny::Unexpected, 0)]
    #[case::stale((5, 10), ROW, Deny::Unexpected, 1)]
    #[case::all((6, 1), ROW, Deny::All, 1)]
    #[case::none((6, 1), "", Deny::None, 0)]
    fn skips_are_compared_with_the_list(
        #[case] least: (u32, u32),
        #[case] list: &str,
        #[case] deny: Deny,
        #[case] count: usize,
    ) {
        let found = Expected::parse(list).unwrap().complaints(&planned(least), deny);
        assert_eq!(found.len(), count, "{found:?}");
    }

    #[test]
    fn a_row_must_speak_of_something() {
        let list = Expected::parse(ROW).unwrap();
        let (cases, kernels) = (["vm::a::x".to_owned()], ["old".to_owned()]);
        assert!(list.strangers(&cases, &kernels).is_empty());
        assert_eq!(list.strangers(&cases, &[]), ["a::x on old"]);
        assert_eq!(list.strangers(&[], &kernels), ["a::x on old"]);
    }

    #[test]
    fn a_row_needs_a_reason() {
        assert!(Expected::parse(&ROW.replace("too old", " ")).is_err());
    }
}
