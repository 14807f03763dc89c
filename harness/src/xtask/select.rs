//! Which cases does a command line mean? By name, by what failed before, and by a share of the rest.
//!
//! Invariant: the shares of `--partition` are disjoint and together everything, whatever the filters leave.

use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::case::Listing;
use crate::guest::Subject;
use crate::matrix::Cell;
use crate::report::difference::Differences;
use crate::report::shard::Shard;
use crate::workspace::Workspace;

/// Which launchers a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Subjects {
    /// The launcher under test.
    Rspawn,
    /// The guest's systemd-nspawn.
    Nspawn,
    /// One after the other.
    Both,
}

impl Subjects {
    /// Them, in this order.
    #[must_use]
    pub fn subjects(self) -> &'static [Subject] {
        match self {
            Self::Rspawn => &[Subject::Rspawn],
            Self::Nspawn => &[Subject::Nspawn],
            Self::Both => &[Subject::Rspawn, Subject::Nspawn],
        }
    }
}

/// How to choose cases.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Selection {
    /// Run cases whose name contains one of these
    pub filters: Vec<String>,
    /// Compare whole names with the filters, with or without the leading `vm::`
    #[arg(long)]
    pub exact: bool,
    /// Leave out cases whose name contains this, or is this with --exact
    #[arg(long, value_name = "PART")]
    pub skip: Vec<String>,
    /// Only what did not pass in this run or report, or in the last run, in the cells in which it did not
    #[arg(long, value_name = "RUN", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub failed: Option<String>,
    /// Only this share of the cases: slice:M/N deals them out in order, hash:M/N by name
    #[arg(long, value_name = "slice:M/N|hash:M/N")]
    pub partition: Option<Partition>,
}

impl Selection {
    /// What did not pass in the run that is named; none where no run is.
    ///
    /// # Errors
    /// When there is no such run, or its results cannot be read.
    pub fn failed(
        &self,
        workspace: &Workspace,
        differences: &Differences,
    ) -> Result<Option<Failed>> {
        let Some(run) = &self.failed else { return Ok(None) };
        let results = Shard::find(workspace, run)?.results;
        let failed = results.into_iter().filter(|located| !located.is_fine(differences));
        Ok(Some(Failed(failed.map(|located| (located.cell, located.report.case)).collect())))
    }

    /// The cases that are meant, in the suite's order, before they are shared out.
    #[must_use]
    pub fn choose(&self, cases: &[Listing], failed: Option<&Failed>) -> Vec<Listing> {
        let failed = |case: &Listing| {
            failed.is_none_or(|failed| failed.0.iter().any(|(_, name)| *name == case.name))
        };
        let wanted = |case: &&Listing| self.names(&case.name) && failed(case);
        cases.iter().filter(wanted).cloned().collect()
    }

    /// The share of them that is asked for; all when none is.
    #[must_use]
    pub fn share(&self, cases: &[Listing]) -> Vec<Listing> {
        match self.partition {
            None => cases.to_vec(),
            Some(partition) => partition.share(cases.to_vec()),
        }
    }

    fn names(&self, name: &str) -> bool {
        let fits = |filter: &String| {
            if self.exact { short(name) == short(filter) } else { name.contains(filter.as_str()) }
        };
        (self.filters.is_empty() || self.filters.iter().any(fits)) && !self.skip.iter().any(fits)
    }
}

/// Cases that did not end as they should, each in its cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed(Vec<(Cell, String)>);

impl Failed {
    /// Whether this case is one of them in this cell.
    #[must_use]
    pub fn has(&self, cell: &Cell, case: &str) -> bool {
        self.0.iter().any(|(failed, name)| failed == cell && name == case)
    }

    /// The names of their kernels.
    #[must_use]
    pub fn kernels(&self) -> Vec<String> {
        self.0.iter().map(|(cell, _)| cell.kernel.clone()).collect()
    }

    /// Who started the containers.
    #[must_use]
    pub fn subjects(&self) -> &'static [Subject] {
        let has = |subject| self.0.iter().any(|(cell, _)| cell.subject == subject);
        let of = |rspawn, nspawn| match (rspawn, nspawn) {
            (true, true) => Subjects::Both,
            (false, true) => Subjects::Nspawn,
            (_, false) => Subjects::Rspawn,
        };
        of(has(Subject::Rspawn), has(Subject::Nspawn)).subjects()
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("vm::").unwrap_or(name)
}

/// A share of the cases, with the words and the meaning that cargo-nextest has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    by: By,
    /// From 1.
    share: usize,
    shares: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The first goes to the first share, the second to the second, ….
    Slice,
    /// A case stays in its share when others come and go.
    Hash,
}

impl Partition {
    fn share(self, cases: Vec<Listing>) -> Vec<Listing> {
        let mine = |(index, case): &(usize, Listing)| {
            let number = match self.by {
                By::Slice => *index,
                By::Hash => crc32fast::hash(case.name.as_bytes()) as usize,
            };
            number % self.shares == self.share - 1
        };
        cases.into_iter().enumerate().filter(mine).map(|(_, case)| case).collect()
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = match self.by {
            By::Slice => "slice",
            By::Hash => "hash",
        };
        write!(f, "{by}:{}/{}", self.share, self.shares)
    }
}

impl FromStr for Partition {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(':').and_then(|(by, rest)| Some((by, rest.split_once('/')?)));
        let Some((by, (share, shares))) = parts else {
            bail!("expected slice:M/N or hash:M/N");
        };
        let by = match by {
            "slice" => By::Slice,
            "hash" => By::Hash,
            other => bail!("\"{other}\" is no way to part cases: slice or hash"),
        };
        let number = |word: &str| {
            word.parse::<usize>().with_context(|| format!("reading the number \"{word}\""))
        };
        let (share, shares) = (number(share)?, number(shares)?);
        ensure!((1..=shares).contains(&share), "there is no share {share} of {shares}");
        Ok(Self { by, share, shares })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rstest::rstest;

    use super::*;
    use crate::report::shard::REPORT;
    use crate::shape::Shape;

    fn cases(names: &[&str]) -> Vec<Listing> {
        let case =
            |name: &&str| Listing { name: (*name).to_owned(), needs: Vec::new(), timeout_s: 1 };
        names.iter().map(case).collect()
    }

    fn chosen(selection: &Selection) -> Vec<String> {
        let all = cases(&["vm::bind::a", "vm::bind::ab", "vm::exit::c"]);
        selection.choose(&all, None).into_iter().map(|case| case.name).collect()
    }

    #[test]
    fn filters_are_parts_of_names_unless_exact() {
        let filters = vec!["bind::a".to_owned()];
        let part = Selection { filters, ..Selection::default() };
        assert_eq!(chosen(&part), ["vm::bind::a", "vm::bind::ab"]);
        assert_eq!(chosen(&Selection { exact: true, ..part.clone() }), ["vm::bind::a"]);
        let skip = vec!["b".to_owned()];
        assert_eq!(chosen(&Selection { skip, ..part }), Vec::<String>::new());
        let (exact, skip) = (true, vec!["bind::a".to_owned()]);
        let others = Selection { exact, skip, ..Selection::default() };
        assert_eq!(chosen(&others), ["vm::bind::ab", "vm::exit::c"]);
    }

    #[rstest]
    #[case("slice")]
    #[case("hash")]
    fn shares_are_disjoint_and_together_everything(#[case] by: &str) {
        let names: Vec<String> = (0..50).map(|n| format!("vm::c{n}")).collect();
        let all = cases(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let share = |m| Partition::from_str(&format!("{by}:{m}/3")).unwrap().share(all.clone());
        let mut together: Vec<String> = (1..=3).flat_map(share).map(|case| case.name).collect();
        together.sort();
        let mut expected = names.clone();
        expected.sort();
        assert_eq!(together, expected);
        assert!((1..=3).all(|m| !share(m).is_empty()));
    }

    #[test]
    fn a_slice_deals_the_cases_out() {
        let second = Partition::from_str("slice:2/2").unwrap().share(cases(&["a", "b", "c", "d"]));
        assert_eq!(second, cases(&["b", "d"]));
    }

    #[rstest]
    #[case("slice:0/2", "no share 0")]
    #[case("slice:3/2", "no share 3")]
    #[case("slice:1", "expected")]
    #[case("third:1/2", "no way to part")]
    #[case("hash:x/2", "\"x\"")]
    fn a_partition_of_another_form_is_refused(#[case] text: &str, #[case] complaint: &str) {
        let error = format!("{:#}", Partition::from_str(text).unwrap_err());
        assert!(error.contains(complaint), "{error}");
    }

    #[test]
    fn failed_cases_of_the_last_run_with_results_are_chosen_in_their_cells() {
        let target = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(Path::new("/"), target.path());
        let cell = r#"{"kernel":"k","version":[6,1],"fs":"ext4","subject":"rspawn"}"#;
        let result = |case: &str, verdict: &str| {
            format!(
                r#"{{"cell":{cell},"logs":"/","report":{{"case":"{case}","verdict":{verdict},"duration_ms":1,"output":"","console":[]}}}}"#
            )
        };
        let (passed, hung) = (r#""passed""#, r#"{"hung":{"why":""}}"#);
        let runs = [
            ("run-1", vec![result("vm::bind::a", hung)]),
            ("run-2", vec![result("vm::bind::a", passed), result("vm::exit::c", hung)]),
        ];
        for (name, results) in runs {
            let dir = workspace.vm_dir().join(name);
            fs::create_dir_all(&dir).unwrap();
            let results = results.join(",");
            let plan = r#"{"jobs":[],"skips":[],"unassigned":[]}"#;
            let text = format!(
                r#"{{"partition":null,"whole":[],"plan":{plan},"rounds":1,"results":[{results}],"infrastructure":[],"retries":0,"wrong_lists":[]}}"#
            );
            fs::write(dir.join(REPORT), text).unwrap();
        }
        fs::create_dir(workspace.vm_dir().join("run-3")).unwrap();
        let all = cases(&["vm::bind::a", "vm::exit::c"]);
        let choose = |run: &str| {
            let selection = Selection { failed: Some(run.to_owned()), ..Selection::default() };
            let failed = selection.failed(&workspace, &Differences::default())?;
            let chosen = selection.choose(&all, failed.as_ref());
            let (failed, name) = (failed.unwrap(), chosen[0].name.clone());
            let (kernel, fs, subject) = ("k".to_owned(), "ext4".to_owned(), Subject::Rspawn);
            let here = Cell { kernel, version: (6, 1), fs, subject, shape: Shape::Lean };
            let elsewhere = Cell { fs: "btrfs".to_owned(), ..here.clone() };
            assert!(failed.has(&here, &name) && !failed.has(&elsewhere, &name));
            assert_eq!(
                (failed.kernels(), failed.subjects()),
                (vec!["k".to_owned()], &[subject][..])
            );
            anyhow::Ok(name)
        };
        assert_eq!(choose("").unwrap(), "vm::exit::c");
        assert_eq!(choose("1").unwrap(), "vm::bind::a");
        assert!(choose("9").is_err());
    }
}
