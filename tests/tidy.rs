//! Does the repository keep the rules of its style that a program can check?
//!
//! A rule is a function from a file to what is wrong in it, so that each is also shown a bad sample: a rule that
//! cannot fail checks nothing. Forbidden words are put together at run time, or this file would break its own rules.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rspawn::options::options;

/// Rust files over [`LONG`] lines, each with why it is not two files.
const LONG_FILES: &[(&str, &str)] = &[
    ("tests/settings.rs", "one table of the grammar of every key, read from top to bottom"),
    (
        "harness/src/xtask/vm_test.rs",
        "a third of it is a table: the options, with what each says to its user",
    ),
    (
        "tests/vm/own.rs",
        "one set of eyes for owners, lists and capabilities, and every case that looks with them",
    ),
];

/// Lines above which a file wants a reason.
const LONG: usize = 500;

/// What may be at the top, besides files whose name starts with a dot.
const TOP: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "build.rs",
    "ci",
    "clippy.toml",
    "harness",
    "images",
    "qemu",
    "rustfmt.toml",
    "src",
    "target",
    "tests",
];

/// A file of the repository.
struct Source {
    /// From the top, with slashes.
    path: String,
    text: String,
}

impl Source {
    fn sample(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The lines that `wrong` finds fault with, as `path:line: text`.
    fn lines(&self, wrong: impl Fn(&str) -> bool) -> Vec<String> {
        let numbered = self.text.lines().enumerate().filter(|(_, line)| wrong(line));
        numbered
            .map(|(at, line)| format!("{}:{}: {}", self.path, at + 1, line.trim_start()))
            .collect()
    }

    /// The lines with one of `words` in them.
    fn lines_with(&self, words: &[String]) -> Vec<String> {
        self.lines(|line| words.iter().any(|word| line.contains(word.as_str())))
    }
}

/// What is wrong with one file.
type Rule = fn(&Source) -> Vec<String>;

fn unsafe_only_in_sys(source: &Source) -> Vec<String> {
    let allowed = ["src/sys/", "harness/src/sys/"].iter().any(|dir| source.path.starts_with(dir))
        || ["src/stage/fork.rs", "harness/src/sys.rs", "harness/src/guest/sys.rs"]
            .contains(&source.path.as_str());
    if allowed || !source.is_rust() {
        return Vec::new();
    }
    let forms = ["{", "fn", "impl", "extern", "trait"].map(|next| ["unsafe", next].join(" "));
    let lint = ["allow(", "unsafe_code"].concat();
    source.lines_with(&[forms.as_slice(), &[lint]].concat())
}

fn starts_with_its_question(source: &Source) -> Vec<String> {
    if source.is_rust() && !source.text.starts_with("//! ") {
        return vec![format!("{}: no //! on the first line", source.path)];
    }
    Vec::new()
}

fn contexts_say_what_was_being_done(source: &Source) -> Vec<String> {
    if !source.is_rust() {
        return Vec::new();
    }
    let starts = ["Failed", "failed", "Could not", "could not", "Unable", "unable"];
    let mut words = starts.map(|start| format!("context(\"{start}")).to_vec();
    words.extend(["Failed", "failed"].map(|start| format!("\"{start} to")));
    source.lines_with(&words)
}

fn only_main_exits(source: &Source) -> Vec<String> {
    let program = source.path.ends_with("/main.rs") || source.path.contains("/bin/");
    if program || !source.is_rust() {
        return Vec::new();
    }
    source.lines_with(&[["process", "::exit("].concat()])
}

/// A path joined to the container's root follows the container's symlinks on the host (security.md, R4).
fn nothing_is_joined_to_the_root(source: &Source) -> Vec<String> {
    if !source.path.starts_with("src/") || source.path == "src/inroot.rs" {
        return Vec::new();
    }
    let roots = ["root", "tree", "top", "merged", "MOUNT_POINT"];
    let joined = |(at, _): (usize, &str)| {
        let receiver = source.text[..at].trim_end().trim_end_matches(['(', ')', '?', '&']);
        let name = receiver.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
        let line = source.text[..at].matches('\n').count() + 1;
        name.filter(|name| roots.contains(name))
            .map(|name| format!("{}:{line}: {name} is joined to", source.path))
    };
    let formatted = source.lines_with(&[["MOUNT_POINT", "}/"].concat()]);
    source.text.match_indices(".join(").filter_map(joined).chain(formatted).collect()
}

fn no_trailing_blanks(source: &Source) -> Vec<String> {
    let mut wrong = source.lines(|line| line.ends_with([' ', '\t', '\r']));
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        wrong.push(format!("{}: no newline at the end", source.path));
    }
    wrong
}

/// Where packages come from is a matter of the machine that builds; Cargo.lock is cargo's own.
fn no_host_of_a_registry(source: &Source) -> Vec<String> {
    if source.path == "Cargo.lock" {
        return Vec::new();
    }
    let hosts: [&[&str]; 10] = [
        &["debian", "org"],
        &["debian", "net"],
        &["ubuntu", "com"],
        &["crates", "io"],
        &["static", "rust-lang", "org"],
        &["pypi", "org"],
        &["pythonhosted", "org"],
        &["npmjs", "org"],
        &["docker", "io"],
        &["quay", "io"],
    ];
    source.lines_with(&hosts.map(|labels| labels.join(".")))
}

fn no_path_of_a_developers_machine(source: &Source) -> Vec<String> {
    let tops = ["work", "workspace", "Users"].map(|top| format!("/{top}/"));
    let registry = ["cargo", "registry"].join("/");
    source.lines(|line| {
        let starts = |top: &String| {
            // In the middle of a path such a name is nobody's machine: an overlay has a work directory.
            let mut found = line.match_indices(top.as_str());
            found.any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '}'))
        };
        tops.iter().any(starts) || line.contains(&registry)
    })
}

fn nothing_is_put_off(source: &Source) -> Vec<String> {
    let words =
        [["#[ig", "nore"], ["to", "do!("], ["unimple", "mented!("], ["FIX", "ME"], ["X", "XX"]];
    let [ignore, later, never, fix, marks] = words.map(|halves| halves.concat());
    source.lines(|line| {
        // Six of them are the template of mktemp(3).
        let template = ["X"; 6].concat();
        [&ignore, &later, &never, &fix].iter().any(|word| line.contains(word.as_str()))
            || line.replace(&template, "").contains(&marks)
    })
}

/// Each rule with the path and the text of a sample that breaks it.
fn rules() -> Vec<(&'static str, Rule, &'static str, String)> {
    let glue = |halves: &[&str]| halves.concat();
    vec![
        ("unsafe", unsafe_only_in_sys, "src/tree.rs", glue(&["let x = unsafe", " { f() };"])),
        ("//!", starts_with_its_question, "src/tree.rs", glue(&["use std::fs;\n"])),
        (
            "contexts",
            contexts_say_what_was_being_done,
            "src/tree.rs",
            glue(&["x.context(\"Fail", "ed to open\")?;"]),
        ),
        ("exit", only_main_exits, "src/session.rs", glue(&["std::process", "::exit(1);"])),
        ("root", nothing_is_joined_to_the_root, "src/tree.rs", glue(&["tree\n    ", ".join(x)"])),
        ("blanks", no_trailing_blanks, "README.md", glue(&["a line", " \n"])),
        ("hosts", no_host_of_a_registry, "images/x.toml", ["http://deb.debian", "org"].join(".")),
        ("paths", no_path_of_a_developers_machine, "ci/x", glue(&["cd /wo", "rk/main"])),
        ("later", nothing_is_put_off, "src/tree.rs", glue(&["// FIX", "ME: later"])),
    ]
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What git knows, or everything where there is no git or no repository.
fn paths() -> Vec<String> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").current_dir(top()).args(arguments).output();
    let paths = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let names = String::from_utf8(output.stdout).expect("the names are UTF-8");
            names.split_terminator('\0').map(str::to_owned).collect()
        }
        _ => walked(),
    };
    // What was removed and is not committed yet is still listed.
    paths.into_iter().filter(|path| top().join(path).is_file()).collect()
}

fn walked() -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![top().to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = path.strip_prefix(top()).unwrap().to_str().unwrap().to_owned();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() && !["target", ".git"].contains(&name.as_str()) => {
                    open.push(path);
                }
                kind if kind.is_file() && name != ".git" => found.push(name),
                _ => {}
            }
        }
    }
    found
}

fn sources() -> Vec<Source> {
    let read = |path: String| {
        let text = fs::read_to_string(top().join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        Source { path, text }
    };
    let sources: Vec<_> = paths().into_iter().map(read).collect();
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "the listing is empty");
    sources
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_file_keeps_every_rule() {
    let sources = sources();
    let broken = |(name, rule, ..): (&str, Rule, &str, String)| {
        sources.iter().flat_map(rule).map(|line| format!("[{name}] {line}")).collect::<Vec<_>>()
    };
    none(&rules().into_iter().flat_map(broken).collect::<Vec<_>>());
}

#[test]
fn every_rule_finds_its_bad_sample() {
    for (name, rule, path, text) in rules() {
        assert_eq!(rule(&Source::sample(path, &text)).len(), 1, "{name} passes {text:?}");
    }
}

#[test]
fn rules_pass_what_is_allowed() {
    let code = ["unsafe", " { f() }"].concat();
    none(&unsafe_only_in_sys(&Source::sample("src/sys/mount.rs", &code)));
    none(&unsafe_only_in_sys(&Source::sample("src/a.rs", "\"cache=unsafe,discard=unmap\"")));
    none(&nothing_is_joined_to_the_root(&Source::sample("src/a.rs", "words.join(\", \")")));
    none(&only_main_exits(&Source::sample("src/main.rs", &["process", "::exit(1)"].concat())));
}

/// Long files that lack a reason, and reasons whose file is not long any more.
fn unexplained(sources: &[Source], reasons: &[(&str, &str)]) -> Vec<String> {
    let lines = |source: &Source| source.text.lines().count();
    let long = |source: &&Source| source.is_rust() && lines(source) > LONG;
    let known = |path: &str| reasons.iter().any(|(known, why)| *known == path && !why.is_empty());
    let new = sources.iter().filter(long).filter(|source| !known(&source.path));
    let stale = reasons.iter().filter(|(path, _)| {
        !sources.iter().filter(long).any(|source| source.path.as_str() == *path)
    });
    new.map(|source| format!("{} has {} lines and no reason", source.path, lines(source)))
        .chain(stale.map(|(path, _)| format!("{path} is not long: remove its reason")))
        .collect()
}

#[test]
fn long_files_have_a_reason() {
    none(&unexplained(&sources(), LONG_FILES));
    let long = Source::sample("src/a.rs", &"x\n".repeat(LONG + 1));
    assert_eq!(unexplained(&[long], &[("src/b.rs", "it was long")]).len(), 2);
}

fn strangers<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let first = paths.map(|path| path.split('/').next().unwrap_or(path));
    first.filter(|name| !name.starts_with('.') && !TOP.contains(name)).map(str::to_owned).collect()
}

#[test]
fn the_top_has_only_what_belongs_there() {
    let paths = paths();
    none(&strangers(paths.iter().map(String::as_str)));
    assert_eq!(strangers(["src/lib.rs", "notes.txt", ".ci/run"].into_iter()), ["notes.txt"]);
}

/// Names in the `cases!` tables of `text`. Needs and limits follow a colon, and rows end with a comma outside
/// brackets.
fn cases(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, start) in text.match_indices(&["\ncases!", "["].concat()) {
        let (mut depth, mut row) = (0_i32, String::new());
        for c in text[at + start.len()..].chars() {
            match c {
                '[' | '(' => depth += 1,
                ']' | ')' => depth -= 1,
                _ => {}
            }
            if depth < 0 || (depth == 0 && c == ',') {
                let name = row.split(':').next().unwrap_or_default().trim().to_owned();
                names.extend(Some(name).filter(|name| !name.is_empty()));
                row.clear();
            } else {
                row.push(c);
            }
            if depth < 0 {
                break;
            }
        }
    }
    names
}

fn twice(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeMap::new();
    for name in names {
        *seen.entry(name).or_insert(0) += 1;
    }
    seen.into_iter().filter(|(_, times)| *times > 1).map(|(name, _)| name).collect()
}

#[test]
fn no_two_cases_have_one_name() {
    let sources = sources();
    let suite = sources.iter().filter(|source| source.path.starts_with("tests/vm/"));
    let names: Vec<_> = suite.flat_map(|source| cases(&source.text)).collect();
    assert!(!names.is_empty(), "no case was found");
    none(&twice(names.into_iter()));
    let table = ["\ncases!", "[\n  a: [Need::Kernel(5, 15)] within 120,\n  b,\n  a\n];"].concat();
    assert_eq!(cases(&table), ["a", "b", "a"]);
    assert_eq!(twice(cases(&table).into_iter()), ["a"]);
}

/// The rows of README's tables of options: the option as users write it, and whether it is marked as missing.
fn rows(readme: &str) -> BTreeMap<String, bool> {
    let section = readme.split("\n## Options\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let words = section.lines().filter(|line| line.starts_with('|')).flat_map(|line| {
        // Only the first cell names options; the others may mention some.
        line.split('|').nth(1).unwrap_or_default().split(", ")
    });
    let named = words.filter_map(|word| {
        let name = word.trim().trim_start_matches(['†', '‡']).strip_prefix('`')?;
        let end = name.find(|c: char| !c.is_alphanumeric() && c != '-')?;
        Some((name[..end].to_owned(), word.contains('†')))
    });
    named.collect()
}

#[test]
fn readme_lists_every_option() {
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    let listed = rows(&readme);
    let names: Vec<_> = options().map(rspawn::options::Opt::name).collect();
    let missing = names.iter().filter(|name| !listed.contains_key(*name));
    none(&missing.map(|name| format!("README.md lacks {name}")).collect::<Vec<_>>());
    // Those two are clap's own.
    let names = [names, vec!["--help".to_owned(), "--version".to_owned()]].concat();
    let gone = listed.keys().filter(|name| name.starts_with("--") && !names.contains(name));
    none(&gone.map(|name| format!("README.md has {name}, the table not")).collect::<Vec<_>>());
    let sample = rows("\n## Options\n| †`--a=N`, `-b` | `--c` |\n## Next\n| `--d` |\n");
    assert_eq!(
        sample.into_iter().collect::<Vec<_>>(),
        [("--a".into(), true), ("-b".into(), false)]
    );
}

/// The options that resolve/mod.rs refuses as not implemented: the words of its list that start with `--`.
fn refused(resolve: &str) -> Vec<String> {
    let list = resolve.split("fn refuse_what_is_missing").nth(1).unwrap_or_default();
    let list = list.split("\n}").next().unwrap_or_default();
    // `--register=yes` is a value that is refused; the option's other values work.
    let words = list.split(['"', ' ']).filter(|word| word.starts_with("--"));
    words
        .filter(|word| word.split_once('=').is_none_or(|(_, value)| value.is_empty()))
        .map(|word| word.trim_end_matches('=').to_owned())
        .collect()
}

#[test]
fn readme_marks_what_is_refused() {
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    let resolve = fs::read_to_string(top().join("src/spec/resolve/mod.rs")).unwrap();
    let listed = rows(&readme);
    let unmarked = refused(&resolve).into_iter().filter(|name| listed.get(name) != Some(&true));
    none(&unmarked.map(|name| format!("README.md does not mark {name}")).collect::<Vec<_>>());
    // Other names of what is refused, or short for it.
    let others = ["--overlay-ro", "--private-users-chown", "-U", "-j"].map(str::to_owned);
    let known = [refused(&resolve), others.to_vec()].concat();
    let stale = listed.iter().filter(|(name, marked)| **marked && !known.contains(name));
    none(
        &stale.map(|(name, _)| format!("README.md marks {name}, which works")).collect::<Vec<_>>(),
    );
    let sample = "fn refuse_what_is_missing() { \"--a=\", \"--b\", \"--c=yes\"\n}\n\"--d=\"";
    assert_eq!(refused(sample), ["--a", "--b"]);
}

#[test]
fn every_behaviour_of_a_finished_area_is_named_by_a_test() {
    let coverage = harness::coverage::Coverage::of(top()).unwrap();
    none(&coverage.complaints());
}
