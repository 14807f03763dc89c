//! A run's report for other machines, and several of them as one run.
//!
//! Invariant: shares make a whole only if each case run of the whole plan was planned by exactly one of them, and what
//! each planned it also reported: a lost share, or one that ran twice, cannot look green.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::matrix::{Job, Plan};
use crate::report::summary::Blame;
use crate::rundir;
use crate::runner::{JobEnd, Located};
use crate::workspace::Workspace;

/// File in a run's directory.
pub const REPORT: &str = "report.json";

/// What a run was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shard {
    /// What was tested, as git names it.
    #[serde(default)]
    pub commit: String,
    /// What executed the guests.
    #[serde(default)]
    pub accel: String,
    /// Its share, as `--partition` names it; none for a whole run.
    pub partition: Option<String>,
    /// Everything that the run would have without its share: case runs and skips, by name.
    pub whole: Vec<String>,
    /// What it was to run.
    pub plan: Plan,
    /// How many times.
    pub rounds: usize,
    /// What came of it.
    pub results: Vec<Located>,
    /// What went wrong with the machine.
    pub infrastructure: Vec<String>,
    /// Guests that another one took the place of.
    pub retries: u32,
    /// What is wrong with the lists of skips and differences.
    pub wrong_lists: Vec<String>,
}

/// The names of all case runs and skips of a plan, in order.
#[must_use]
pub fn names(plan: &Plan) -> Vec<String> {
    let mut names: Vec<String> = planned(plan).collect();
    names.extend(plan.skips.iter().map(|skip| format!("skip {} {}", skip.cell, skip.case)));
    names.extend(plan.unassigned.iter().map(|case| format!("unassigned {case}")));
    names.sort();
    names
}

fn planned(plan: &Plan) -> impl Iterator<Item = String> + '_ {
    let of_job = |job: &Job| -> Vec<String> {
        job.cases.iter().map(|case| format!("{} {}", job.cell, case.name)).collect()
    };
    plan.jobs.iter().flat_map(of_job)
}

impl Shard {
    /// Reads the report of a run.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(file: &Path) -> Result<Self> {
        let what = || format!("reading {}", file.display());
        let text = std::fs::read(file).with_context(what)?;
        serde_json::from_slice(&text).with_context(what)
    }

    /// Reads the report at this path, or that of the last run whose name ends so and that has one.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn find(workspace: &Workspace, name: &str) -> Result<Self> {
        let path = Path::new(name);
        if !name.is_empty() && path.exists() {
            let report = if path.is_dir() { path.join(REPORT) } else { path.to_owned() };
            return Self::read(&report);
        }
        let runs = rundir::runs(workspace)?;
        let fits =
            |path: &&PathBuf| path.to_string_lossy().ends_with(name) && path.join(REPORT).is_file();
        let found = runs.iter().rev().find(fits);
        let dir = found.with_context(|| Blame::Usage(format!("no run \"{name}\" has results")))?;
        Self::read(&dir.join(REPORT))
    }

    /// Reads a report, or all that are in a directory at any depth.
    ///
    /// # Errors
    /// When one cannot be read, or there is none.
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let mut files = Vec::new();
        find(path, &mut files)?;
        ensure!(!files.is_empty(), "there is no {REPORT} in {}", path.display());
        files.iter().map(|file| Self::read(file)).collect()
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("encoding the report")?;
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// What the run came to, as [`crate::xtask`] tells it.
    #[must_use]
    pub fn end(&self) -> JobEnd {
        JobEnd {
            reports: self.results.clone(),
            infrastructure: self.infrastructure.clone(),
            retries: self.retries,
        }
    }

    /// See [`unaccounted`].
    fn unaccounted(&self) -> Vec<String> {
        unaccounted(&self.plan, self.rounds, &self.results.iter().collect::<Vec<_>>())
    }
}

/// What a run planned, so many times, and did not report as often, or the other way round, by name.
#[must_use]
pub fn unaccounted(plan: &Plan, rounds: usize, results: &[&Located]) -> Vec<String> {
    let mut balance: BTreeMap<String, isize> = BTreeMap::new();
    planned(plan).for_each(|name| *balance.entry(name).or_default() += rounds.cast_signed());
    for located in results {
        let name = format!("{} {}", located.cell, located.report.case);
        *balance.entry(name).or_default() -= 1;
    }
    balance.retain(|_, count| *count != 0);
    balance.into_keys().collect()
}

/// The shares as one run. Runs of other kernels have wholes of their own, each of which must be complete.
///
/// # Errors
/// When a share is missing or there twice, a case run is nobody's or two shares', or a share did not report all that it
/// had planned.
pub fn merge(shards: &[Shard]) -> Result<Shard> {
    let mut wholes: BTreeMap<(&[String], usize), Vec<&Shard>> = BTreeMap::new();
    for shard in shards {
        wholes.entry((&shard.whole, shard.rounds)).or_default().push(shard);
    }
    let mut parts = Vec::new();
    for shares in wholes.values() {
        parts.push(merge_whole(shares)?);
    }
    let first = parts.pop().context("there is no report to merge")?;
    let merged = parts.into_iter().try_fold(first, together)?;
    let mut names = merged.whole.clone();
    names.sort();
    let twice: Vec<String> =
        names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone()).collect();
    ensure!(twice.is_empty(), "more runs than one have {}", some_of(&twice));
    Ok(merged)
}

/// Kernels of a lane that a run has not been on.
#[must_use]
pub fn missing_kernels(whole: &Shard, lane: &[String]) -> Vec<String> {
    let runs_on = |kernel: &&String| {
        whole.plan.jobs.iter().any(|job| job.cell.kernel == **kernel)
            || whole.plan.skips.iter().any(|skip| skip.cell.kernel == **kernel)
    };
    lane.iter().filter(|kernel| !runs_on(kernel)).cloned().collect()
}

/// The shares of one whole.
fn merge_whole(shards: &[&Shard]) -> Result<Shard> {
    let (first, others) = shards.split_first().context("there is no report to merge")?;
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for shard in shards {
        *shares.entry(told(shard)).or_default() += 1;
        let unaccounted = shard.unaccounted();
        ensure!(
            unaccounted.is_empty(),
            "the share {} planned otherwise than it reports: {}",
            told(shard),
            some_of(&unaccounted)
        );
    }
    if let Some((share, _)) = shares.iter().find(|(_, count)| **count > 1) {
        bail!("the share {share} is there twice");
    }
    if let Some((way, total)) = first.partition.as_deref().and_then(way_and_total) {
        let missing: Vec<String> = (1..=total)
            .map(|share| format!("{way}:{share}/{total}"))
            .filter(|share| !shares.contains_key(share))
            .collect();
        ensure!(missing.is_empty(), "the share {} is missing", missing.join(", "));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    shards.iter().flat_map(|shard| names(&shard.plan)).for_each(|name| {
        *counts.entry(name).or_default() += 1;
    });
    let nobodys: Vec<String> =
        first.whole.iter().filter(|name| !counts.contains_key(*name)).cloned().collect();
    ensure!(nobodys.is_empty(), "no share has {}", some_of(&nobodys));
    let wrong = |(name, count): (String, usize)| {
        (count > 1 || first.whole.binary_search(&name).is_err()).then_some(name)
    };
    let twice: Vec<String> = counts.into_iter().filter_map(wrong).collect();
    ensure!(twice.is_empty(), "more shares than one have {}", some_of(&twice));
    let merged = Shard { partition: None, ..(*first).clone() };
    let mut merged =
        others.iter().try_fold(merged, |merged, other| together(merged, (*other).clone()))?;
    merged.whole.clone_from(&first.whole);
    Ok(merged)
}

fn together(mut one: Shard, other: Shard) -> Result<Shard> {
    let (ours, theirs) = (&one.commit, &other.commit);
    ensure!(ours == theirs, "one share tested {ours}, another {theirs}");
    ensure!(one.rounds == other.rounds, "the runs were not repeated equally often");
    one.whole.extend(other.whole);
    one.plan.jobs.extend(other.plan.jobs);
    one.plan.skips.extend(other.plan.skips);
    one.plan.unassigned.extend(other.plan.unassigned);
    one.results.extend(other.results);
    one.infrastructure.extend(other.infrastructure);
    one.retries += other.retries;
    one.wrong_lists.extend(other.wrong_lists);
    // Each share knows the lists: what is wrong with them is wrong once.
    one.wrong_lists.sort();
    one.wrong_lists.dedup();
    Ok(one)
}

fn find(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let what = || format!("reading {}", path.display());
    for entry in std::fs::read_dir(path).with_context(what)? {
        let entry = entry.with_context(what)?.path();
        if entry.is_dir() || entry.file_name().is_some_and(|name| name == REPORT) {
            find(&entry, files)?;
        }
    }
    Ok(())
}

fn told(shard: &Shard) -> String {
    shard.partition.clone().unwrap_or_else(|| "of everything".to_owned())
}

fn way_and_total(partition: &str) -> Option<(&str, usize)> {
    let (way, rest) = partition.split_once(':')?;
    Some((way, rest.split_once('/')?.1.parse().ok()?))
}

pub(crate) fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(3);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// One line per case run whose verdict differs between two runs, or that only one of them has.
#[must_use]
pub fn changes(before: &Shard, after: &Shard) -> Vec<String> {
    let words = |shard: &Shard| -> BTreeMap<String, &'static str> {
        let word = |located: &Located| {
            let name = format!("{} {}", located.cell, located.report.case);
            (name, located.report.verdict.word())
        };
        shard.results.iter().map(word).collect()
    };
    let (old, new) = (words(before), words(after));
    let mut all: Vec<&String> = old.keys().chain(new.keys()).collect();
    all.sort();
    all.dedup();
    let word =
        |of: &BTreeMap<String, &'static str>, name: &str| of.get(name).copied().unwrap_or("-");
    all.into_iter()
        .filter(|name| word(&old, name) != word(&new, name))
        .map(|name| format!("{:<8} → {:<8} {name}", word(&old, name), word(&new, name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{ListedNeed, Listing};
    use crate::guest::Subject;
    use crate::matrix::{self, Axes, Cell};
    use crate::report::{CaseReport, Verdict};
    use crate::shape::Shape;

    fn cell() -> Cell {
        let (kernel, fs) = ("k".to_owned(), "ext4".to_owned());
        Cell { kernel, version: (6, 1), fs, subject: Subject::Rspawn, shape: Shape::Lean }
    }

    fn plan(cases: &[&str]) -> Plan {
        let case =
            |name: &&str| Listing { name: (*name).to_owned(), needs: Vec::new(), timeout_s: 1 };
        let cases = cases.iter().map(case).collect();
        Plan { jobs: vec![Job { cell: cell(), cases }], ..Plan::default() }
    }

    fn shard(partition: &str, whole: &[&str], cases: &[&str]) -> Shard {
        let result = |name: &&str| Located {
            cell: cell(),
            report: CaseReport {
                case: (*name).to_owned(),
                verdict: Verdict::Passed,
                duration_ms: 1,
                output: String::new(),
                console: Vec::new(),
            },
            logs: "".into(),
            reopen: None,
        };
        Shard {
            commit: "c1".to_owned(),
            accel: "tcg".to_owned(),
            partition: Some(partition.to_owned()),
            whole: names(&plan(whole)),
            plan: plan(cases),
            rounds: 1,
            results: cases.iter().map(result).collect(),
            infrastructure: Vec::new(),
            retries: 0,
            wrong_lists: Vec::new(),
        }
    }

    const ALL: &[&str] = &["a", "b", "c"];

    fn refusal(shards: &[Shard]) -> String {
        merge(shards).unwrap_err().to_string()
    }

    #[test]
    fn shares_of_one_run_make_it_whole() {
        let shards = [shard("slice:1/2", ALL, &["a", "c"]), shard("slice:2/2", ALL, &["b"])];
        let merged = merge(&shards).unwrap();
        assert_eq!((merged.plan.size(), merged.results.len()), (3, 3));
    }

    #[test]
    fn shares_of_two_commits_are_no_run() {
        let one = shard("slice:1/2", ALL, &["a", "c"]);
        let commit = "c2".to_owned();
        let two = Shard { commit, ..shard("slice:2/2", ALL, &["b"]) };
        assert!(refusal(&[one, two]).contains("one share tested c1, another c2"));
    }

    /// A case that names no file system runs, or is skipped, on each.
    #[test]
    fn shares_of_a_lane_with_every_file_system_make_it_whole() {
        let needs = vec![ListedNeed::Kernel(6, 1)];
        let case =
            |name: &str| Listing { name: name.to_owned(), needs: needs.clone(), timeout_s: 1 };
        let kernels = [("old".to_owned(), (5, 10))];
        let lane_fs = ["ext4".to_owned(), "btrfs".to_owned()];
        let subjects = &[Subject::Rspawn];
        let axes = Axes { kernels: &kernels, lane_fs: &lane_fs, every_fs: true, fs: &[], subjects };
        let of = |cases: &[Listing]| matrix::plan(cases, &axes);
        let share = |partition: &str, only: Listing| Shard {
            whole: names(&of(&[case("a"), case("b")])),
            plan: of(&[only]),
            results: Vec::new(),
            ..shard(partition, ALL, &[])
        };
        let shards = [share("slice:1/2", case("a")), share("slice:2/2", case("b"))];
        assert_eq!(merge(&shards).unwrap().plan.skips.len(), 4);
    }

    #[test]
    fn a_missing_or_doubled_share_is_named() {
        let [one, two] = [shard("slice:1/2", ALL, &["a", "c"]), shard("slice:2/2", ALL, &["b"])];
        assert!(refusal(std::slice::from_ref(&one)).contains("slice:2/2 is missing"));
        assert!(
            refusal(&[one.clone(), two.clone(), two.clone()]).contains("slice:2/2 is there twice")
        );
        assert!(refusal(&[]).contains("no report"));
        let foreign = shard("slice:2/2", &["a", "b"], &["b"]);
        assert!(refusal(&[one, foreign]).contains("is missing"));
    }

    #[test]
    fn runs_of_other_kernels_are_wholes_of_their_own_and_a_missing_kernel_is_named() {
        let on = |kernel: &str| {
            let mut shard = shard("slice:1/1", ALL, ALL);
            shard.plan.jobs[0].cell.kernel = kernel.to_owned();
            shard.whole = names(&shard.plan);
            shard.results.iter_mut().for_each(|located| located.cell.kernel = kernel.to_owned());
            shard
        };
        let merged = merge(&[on("k"), on("l")]).unwrap();
        assert_eq!(merged.plan.size(), 6);
        let lane = ["k", "l", "m"].map(str::to_owned);
        assert_eq!(missing_kernels(&merged, &lane), ["m"]);
    }

    #[test]
    fn reports_are_found_wherever_they_were_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("job/target/vm/run-1");
        std::fs::create_dir_all(deep.join("00-k-ext4")).unwrap();
        std::fs::write(deep.join("00-k-ext4/kept.json"), "{}").unwrap();
        assert!(Shard::read_all(dir.path()).is_err());
        shard("slice:1/1", ALL, ALL).write(&deep.join(REPORT)).unwrap();
        assert_eq!(Shard::read_all(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_case_of_two_shares_or_of_none_is_named() {
        let one = shard("hash:1/2", ALL, &["a", "b"]);
        let overlap = refusal(&[one.clone(), shard("hash:2/2", ALL, &["b", "c"])]);
        assert!(overlap.contains("more shares than one have k ext4 b"), "{overlap}");
        let hole = refusal(&[one, shard("hash:2/2", ALL, &[])]);
        assert!(hole.contains("no share has k ext4 c"), "{hole}");
    }

    #[test]
    fn a_share_that_reports_less_than_it_planned_is_refused() {
        let mut one = shard("slice:1/1", ALL, ALL);
        one.results.pop();
        assert!(refusal(&[one]).contains("planned otherwise than it reports: k ext4 c"));
    }

    #[test]
    fn what_changed_between_two_runs_is_listed_once() {
        let before = shard("slice:1/1", ALL, &["a", "b"]);
        let mut after = shard("slice:1/1", ALL, &["a", "c"]);
        after.results[0].report.verdict = Verdict::Hung { why: String::new() };
        let found = changes(&before, &after);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("PASS     → HUNG     k ext4 a"), "{found:?}");
    }
}
