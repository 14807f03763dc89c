//! Which behaviours does no test name? Pure but for [`Coverage::of`], which reads a checkout.
//!
//! `tests/spec.toml` has the ids by area; a test names one by writing it (`MNT-01`, or several as `MNT-01, 03…05`) in
//! a comment, a name (`mnt_01`) or a table. Only tests count: what is below `tests/`, and the test modules of `src/`.
//!
//! Invariants: an id belongs to one area; a test that names an id of a known kind which is not listed is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The list of ids, from the top of the repository.
pub const LIST: &str = "tests/spec.toml";

/// Test code that speaks of ids without checking them: it has samples.
const NO_WITNESS: &[&str] = &["tests/tidy.rs"];

/// [`LIST`] as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Spec {
    /// Areas in which every id must be named by a test.
    pub finished: Vec<String>,
    /// Ids with a few words each, by area.
    #[serde(flatten)]
    pub areas: BTreeMap<String, BTreeMap<String, String>>,
}

impl Spec {
    /// Reads the list.
    ///
    /// # Errors
    /// When the text is no such list, an id stands in two areas or looks unlike one, or a finished area is none.
    pub fn parse(text: &str) -> Result<Self> {
        let spec: Self = toml::from_str(text).with_context(|| format!("reading {LIST}"))?;
        let mut seen = BTreeSet::new();
        for id in spec.areas.values().flat_map(BTreeMap::keys) {
            ensure!(split_id(id).is_some(), "\"{id}\" in {LIST} is no id");
            ensure!(seen.insert(id), "{id} stands twice in {LIST}");
        }
        for area in &spec.finished {
            ensure!(spec.areas.contains_key(area), "{LIST} finishes \"{area}\", which it lacks");
        }
        Ok(spec)
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        self.areas.values().flat_map(BTreeMap::keys).map(String::as_str)
    }
}

/// What the tests of a checkout name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// What there is to name.
    pub spec: Spec,
    /// For each id that is named, the files that do.
    pub named: BTreeMap<String, BTreeSet<String>>,
    /// Ids that tests name and the list lacks, as `path: id`.
    pub unknown: BTreeSet<String>,
}

impl Coverage {
    /// Looks through the checkout at `top`.
    ///
    /// # Errors
    /// When a file cannot be read, or the list is wrong ([`Spec::parse`]).
    pub fn of(top: &Path) -> Result<Self> {
        let list = fs::read_to_string(top.join(LIST)).with_context(|| format!("reading {LIST}"))?;
        let mut coverage =
            Self { spec: Spec::parse(&list)?, named: BTreeMap::new(), unknown: BTreeSet::new() };
        for path in rust_files(top, &["tests", "src"])? {
            if NO_WITNESS.contains(&path.as_str()) {
                continue;
            }
            let text =
                fs::read_to_string(top.join(&path)).with_context(|| format!("reading {path}"))?;
            coverage.add(&path, &text);
        }
        ensure!(!coverage.named.is_empty(), "no test names any id: this is the wrong directory");
        Ok(coverage)
    }

    fn add(&mut self, path: &str, text: &str) {
        let kinds: BTreeSet<&str> = self.spec.ids().filter_map(split_id).map(|id| id.0).collect();
        for id in ids_in(&test_text(path, text), &kinds) {
            if self.spec.areas.values().any(|area| area.contains_key(&id)) {
                self.named.entry(id).or_default().insert(path.to_owned());
            } else {
                self.unknown.insert(format!("{path}: {id}"));
            }
        }
    }

    /// The ids of an area that no test names, with their words.
    pub fn missing(&self, area: &str) -> Vec<(&str, &str)> {
        let ids = self.spec.areas.get(area).into_iter().flatten();
        ids.filter(|(id, _)| !self.named.contains_key(*id))
            .map(|(id, words)| (id.as_str(), words.as_str()))
            .collect()
    }

    /// What must not be: an id of a finished area that no test names, and one that tests name and the list lacks.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let missing = self.spec.finished.iter().flat_map(|area| {
            let told = |(id, words)| format!("{id} ({words}) is named by no test");
            self.missing(area).into_iter().map(told)
        });
        let unknown = self.unknown.iter().map(|place| format!("{place}, which {LIST} lacks"));
        missing.chain(unknown).collect()
    }
}

/// The Rust files below `dirs` of `top`, with slashes.
fn rust_files(top: &Path, dirs: &[&str]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut open: Vec<_> = dirs.iter().map(|dir| top.join(dir)).collect();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let below = path.strip_prefix(top).context("reading a directory's names")?;
                let Some(name) = below.to_str() else { bail!("{} is not UTF-8", path.display()) };
                found.insert(name.to_owned());
            }
        }
    }
    Ok(found)
}

/// The part of a file that is test code: all of it below `tests/` and in files of test modules, otherwise the modules
/// marked as such. rustfmt closes a module at its own indentation, which is how its end is found.
fn test_text(path: &str, text: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    if path.starts_with("tests/") || path.contains("/tests/") || file.ends_with("tests.rs") {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut marked = false;
    let mut end: Option<String> = None;
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if end.is_some() {
            kept.push_str(line);
            kept.push('\n');
            if end.as_deref() == Some(line) {
                end = None;
            }
        } else if marked && line.split(' ').any(|word| word == "mod") && line.ends_with('{') {
            end = Some(format!("{indent}}}"));
        }
        // Other attributes and comments may stand between the mark and its module.
        let between = line.trim_start().starts_with(['#', '/']);
        marked = line.trim() == "#[cfg(test)]" || marked && between;
    }
    kept
}

/// `("MNT", 1)` of `MNT-01`.
fn split_id(id: &str) -> Option<(&str, u32)> {
    let (kind, number) = id.rsplit_once('-')?;
    let letters = !kind.is_empty() && kind.chars().all(|c| c.is_ascii_uppercase() || c == '-');
    let digits = number.len() == 2 && number.chars().all(|c| c.is_ascii_digit());
    (letters && digits).then(|| Some((kind, number.parse().ok()?)))?
}

/// The ids of `kinds` that `text` names: `MNT-01`, ranges and lists that go on with numbers alone (`MNT-01, 03…05`,
/// `MNT-24/25`), and `mnt_01` in names.
fn ids_in(text: &str, kinds: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for kind in kinds {
        for (at, _) in text.match_indices(&format!("{kind}-")) {
            let before = text[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
                found.extend(numbers(&text[at + kind.len() + 1..], kind).map(|n| id(kind, n)));
            }
        }
        let name = format!("{}_", kind.to_lowercase().replace('-', "_"));
        for (at, _) in text.match_indices(&name) {
            let before = text[..at].chars().next_back();
            // One letter before a number is too common in names.
            if kind.len() > 1 && !before.is_some_and(|c| c.is_ascii_alphanumeric()) {
                found.extend(two_digits(&text[at + name.len()..]).map(|n| id(kind, n)));
            }
        }
    }
    found
}

fn id(kind: &str, number: u32) -> String {
    format!("{kind}-{number:02}")
}

/// The number of two digits that `text` starts with, unless it goes on as something else.
fn two_digits(text: &str) -> Option<u32> {
    let number = text.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    let after = text[2..].chars().next();
    if after.is_some_and(|c| c.is_ascii_alphanumeric()) { None } else { number.parse().ok() }
}

/// The numbers that a list starts with: `01`, `01…05`, `01, 03…05`, `24/25`, `01…MNT-05`.
fn numbers(text: &str, kind: &str) -> impl Iterator<Item = u32> {
    let mut found = BTreeSet::new();
    let mut rest = text;
    let mut from: Option<u32> = None;
    while let Some(number) = two_digits(rest) {
        found.extend(from.unwrap_or(number)..=number);
        rest = &rest[2..];
        let separators = ["…", "...", "..", "–", " to ", ", ", "/", " and "];
        let Some(mark) = separators.iter().find(|mark| rest.starts_with(**mark)) else { break };
        from = ["…", "...", "..", "–", " to "].contains(mark).then_some(number);
        rest = &rest[mark.len()..];
        // The kind may be said again, which for a list is a match of its own.
        let again = rest.strip_prefix(kind).and_then(|rest| rest.strip_prefix('-'));
        rest = if from.is_some() { again.unwrap_or(rest) } else { rest };
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn named(text: &str) -> Vec<String> {
        ids_in(text, &["E", "MNT", "X-BW", "BW"].into_iter().collect()).into_iter().collect()
    }

    #[rstest]
    #[case::one("/// MNT-01.", &["MNT-01"])]
    #[case::two("MNT-01, MNT-03", &["MNT-01", "MNT-03"])]
    #[case::range("MNT-01…03", &["MNT-01", "MNT-02", "MNT-03"])]
    #[case::range_said_twice("MNT-01…MNT-03", &["MNT-01", "MNT-02", "MNT-03"])]
    #[case::list("MNT-01, 03…04, 07 and 09", &["MNT-01", "MNT-03", "MNT-04", "MNT-07", "MNT-09"])]
    #[case::pair("MNT-24/25", &["MNT-24", "MNT-25"])]
    #[case::open_end("MNT-11…: more", &["MNT-11"])]
    #[case::amount("E-09, 10s later", &["E-09"])]
    #[case::name("fn mnt_01_holds()", &["MNT-01"])]
    #[case::case_name("#[case::mnt_01(1)]", &["MNT-01"])]
    #[case::long_kind("X-BW-02", &["X-BW-02"])]
    #[case::part_of_a_word("CVE-2019 UE-01 amnt_01 e_01 MNT-012 MNT-1", &[])]
    fn ids_are_found_in_text(#[case] text: &str, #[case] ids: &[&str]) {
        assert_eq!(named(text), ids);
    }

    #[test]
    fn only_test_code_of_a_source_counts() {
        let text = "// MNT-01\nfn f() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    // MNT-02\n}\n// MNT-03\n\
                    #[cfg(test)]\npub(super) mod some {\n    // MNT-05\n}\n\
                    #[cfg(test)]\nmod more;\nmod other {\n    // MNT-04\n}\n";
        assert_eq!(named(&test_text("src/a.rs", text)), ["MNT-02", "MNT-05"]);
        assert_eq!(named(&test_text("src/a/tests.rs", text)).len(), 5);
        assert_eq!(named(&test_text("tests/a.rs", text)).len(), 5);
    }

    fn coverage(finished: &str) -> Coverage {
        let list = format!(
            "finished = [{finished}]\n[trees]\nMNT-01 = \"a\"\nMNT-02 = \"b\"\n[later]\nE-01 = \"c\"\n"
        );
        let spec = Spec::parse(&list).unwrap();
        let mut coverage = Coverage { spec, named: BTreeMap::new(), unknown: BTreeSet::new() };
        coverage.add("tests/a.rs", "MNT-02");
        coverage
    }

    #[test]
    fn an_id_without_a_test_is_missing_and_wrong_only_in_a_finished_area() {
        let open = coverage("");
        assert_eq!(open.missing("trees"), [("MNT-01", "a")]);
        assert_eq!(open.complaints(), Vec::<String>::new());
        assert_eq!(coverage("\"trees\"").complaints(), ["MNT-01 (a) is named by no test"]);
    }

    #[test]
    fn an_id_that_the_list_lacks_is_wrong_everywhere() {
        let mut coverage = coverage("");
        coverage.add("tests/b.rs", "MNT-77 and UTF-16");
        assert_eq!(coverage.complaints(), ["tests/b.rs: MNT-77, which tests/spec.toml lacks"]);
    }

    #[rstest]
    #[case::twice("finished = []\n[a]\nE-01 = \"x\"\n[b]\nE-01 = \"x\"\n", "twice")]
    #[case::no_id("finished = []\n[a]\nE-1 = \"x\"\n", "is no id")]
    #[case::no_area("finished = [\"c\"]\n[a]\nE-01 = \"x\"\n", "which it lacks")]
    fn a_wrong_list_is_refused(#[case] text: &str, #[case] complaint: &str) {
        let error = format!("{:#}", Spec::parse(text).unwrap_err());
        assert!(error.contains(complaint), "{error}");
    }
}
