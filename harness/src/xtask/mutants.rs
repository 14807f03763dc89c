//! `cargo xtask mutants`: bugs planted in the launcher, one at a time, each of which the cases must catch.
//!
//! A bug is a patch of `tests/mutants/`. What stands above its first `---` line says what is broken and which cases are
//! run to see it:
//!
//! ```text
//! Bug: the ESP is mounted over a directory that is not empty
//! Cases: image_boot::
//! ```
//!
//! A third line, `Kernel: debian-5.10`, names the kernel where it shows if that is not the default one.
//!
//! Each is applied to a copy of the checkout, the launcher is built there, and `vm-test` runs the cases with it. A
//! patch that does not apply any more, does not build, or is not caught by any case fails the run. In the end the cases
//! that caught something run without any bug: one that fails then, too, has caught nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::report::summary::exit;
use crate::static_build;
use crate::tool;
use crate::workspace::Workspace;

use super::say;

/// Where the patches are.
const DIR: &str = "tests/mutants";

/// Which bugs to plant, and how much to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Names of patches, or parts of them; all when none is given
    pub names: Vec<String>,
    /// Run all cases with each bug, not only those that its patch names
    #[arg(long)]
    pub full: bool,
    /// List the bugs and check that their patches apply, and run nothing
    #[arg(long)]
    pub list: bool,
}

/// A planted bug.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mutant {
    /// Name of its file without the extension.
    name: String,
    /// What is broken, as a sentence.
    bug: String,
    /// Filters of the cases that see it.
    cases: Vec<String>,
    /// Where it shows, if not on the default kernel.
    kernel: Option<String>,
    patch: PathBuf,
}

/// What became of one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// By these cases.
    Caught(Vec<String>),
    /// All cases passed.
    Survived,
    /// Nothing can be said of it.
    Broken(String),
}

/// Plants them.
///
/// # Errors
/// When a patch cannot be read, the copy cannot be made, or the launcher does not build without any bug.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    let mutants = chosen(workspace, &options.names)?;
    let copy = Copy::make(workspace)?;
    if options.list {
        let mut stale = 0;
        for mutant in &mutants {
            let applies = copy.plant(mutant);
            stale += usize::from(applies.is_err());
            let remark =
                applies.map_or_else(|error| format!("\n    {error:#}"), |()| String::new());
            println!("{:<36} {}{remark}", mutant.name, mutant.bug);
            copy.restore()?;
        }
        return Ok(if stale == 0 { ExitCode::SUCCESS } else { exit::FAILED.into() });
    }
    let mut fates = Vec::new();
    for mutant in mutants {
        let fate = fate_of(mirror, &copy, &mutant, options.full);
        copy.restore()?;
        let fate = fate.unwrap_or_else(|error| Fate::Broken(format!("{error:#}")));
        say(&row(&mutant, &fate));
        fates.push((mutant, fate));
    }
    say("mutants: the cases that caught something, without any bug");
    let clean = copy.build()?;
    discard_false_alarms(mirror, &clean, &mut fates)?;
    println!();
    fates.iter().for_each(|(mutant, fate)| println!("{}", row(mutant, fate)));
    let caught = fates.iter().filter(|(_, fate)| matches!(fate, Fate::Caught(_))).count();
    println!("mutants: {} planted, {caught} caught", fates.len());
    Ok(if caught == fates.len() { ExitCode::SUCCESS } else { exit::FAILED.into() })
}

fn fate_of(mirror: Option<&str>, copy: &Copy, mutant: &Mutant, full: bool) -> Result<Fate> {
    copy.plant(mutant)?;
    let launcher = copy.build().context("building the launcher with the bug in it")?;
    let filters = if full { Vec::new() } else { mutant.cases.iter().map(String::as_str).collect() };
    let kernel = mutant.kernel.as_deref();
    let seen = Run { mirror, kernel, launcher: &launcher, filters }.all()?;
    Ok(if seen.failed.is_empty() { Fate::Survived } else { Fate::Caught(seen.failed) })
}

/// Runs what caught something with the launcher as it is; a case that fails then, too, has caught nothing.
fn discard_false_alarms(
    mirror: Option<&str>,
    clean: &Path,
    fates: &mut [(Mutant, Fate)],
) -> Result<()> {
    let kernels: BTreeSet<Option<String>> =
        fates.iter().map(|(mutant, _)| mutant.kernel.clone()).collect();
    for kernel in &kernels {
        let here = || fates.iter().filter(|(mutant, _)| mutant.kernel == *kernel);
        let caught: BTreeSet<String> = here()
            .filter_map(|(_, fate)| match fate {
                Fate::Caught(cases) => Some(cases.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        if caught.is_empty() {
            continue;
        }
        let filters = ["--exact"].into_iter().chain(caught.iter().map(String::as_str)).collect();
        let kernel = kernel.as_deref();
        let seen = Run { mirror, kernel, launcher: clean, filters }.all()?;
        for (_, fate) in fates.iter_mut().filter(|(mutant, _)| mutant.kernel.as_deref() == kernel) {
            let Fate::Caught(cases) = fate else { continue };
            cases.retain(|case| !seen.failed.contains(case));
            if cases.is_empty() {
                *fate = Fate::Broken("its cases fail without any bug, too".to_owned());
            }
        }
    }
    Ok(())
}

/// One line of the table; the cases below each other would make it longer than a screen.
fn row(mutant: &Mutant, fate: &Fate) -> String {
    let (word, by) = match fate {
        Fate::Caught(cases) => {
            let rest = cases.len().saturating_sub(3);
            let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
            ("CAUGHT", format!("{}{more}", cases[..cases.len().min(3)].join(", ")))
        }
        Fate::Survived => ("SURVIVED", format!("no case of {} fails", mutant.cases.join(" "))),
        Fate::Broken(why) => ("BROKEN", why.clone()),
    };
    format!("{word:<8} {:<36} {}\n         {by}", mutant.name, mutant.bug)
}

fn chosen(workspace: &Workspace, names: &[String]) -> Result<Vec<Mutant>> {
    let dir = workspace.file(DIR);
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("listing {DIR}"))? {
        let path = entry.with_context(|| format!("listing {DIR}"))?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let text = fs::read_to_string(&path);
            let text = text.with_context(|| format!("reading {}", path.display()))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let read = Mutant::read(&name, &text, &path);
            all.push(read.with_context(|| format!("reading {DIR}/{name}.patch"))?);
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(stranger) =
        names.iter().find(|part| !all.iter().any(|one| one.name.contains(*part)))
    {
        bail!("no patch of {DIR} is named \"{stranger}\"\nhint: cargo xtask mutants --list");
    }
    all.retain(|one| names.is_empty() || names.iter().any(|part| one.name.contains(part)));
    Ok(all)
}

impl Mutant {
    fn read(name: &str, text: &str, patch: &Path) -> Result<Self> {
        let header = text.lines().take_while(|line| !line.starts_with("---"));
        let header: Vec<&str> = header.collect();
        let field = |key: &str| {
            let found = header.iter().find_map(|line| line.strip_prefix(key));
            found.map(str::trim).filter(|value| !value.is_empty())
        };
        let needed = |key: &str| {
            field(key).with_context(|| format!("there is no line \"{key} …\" above its first ---"))
        };
        Ok(Self {
            name: name.to_owned(),
            bug: needed("Bug:")?.to_owned(),
            cases: needed("Cases:")?.split_whitespace().map(str::to_owned).collect(),
            kernel: field("Kernel:").map(str::to_owned),
            patch: patch.to_owned(),
        })
    }
}

/// A copy of the checkout, in which bugs are planted.
#[derive(Debug)]
struct Copy<'a> {
    workspace: &'a Workspace,
    tree: PathBuf,
}

impl<'a> Copy<'a> {
    /// Of every file that git knows, as it is now; what is there already and the same is left alone, for cargo's sake.
    fn make(workspace: &'a Workspace) -> Result<Self> {
        let copy = Self { workspace, tree: workspace.vm_dir().join("mutants/tree") };
        fs::create_dir_all(&copy.tree).context("making the copy's directory")?;
        let known = copy.files()?;
        for path in existing(&copy.tree, &copy.tree)? {
            if !known.contains(&path) {
                fs::remove_file(copy.tree.join(&path))
                    .with_context(|| format!("removing {} from the copy", path.display()))?;
            }
        }
        copy.restore()?;
        Ok(copy)
    }

    fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let listed = tool::text(
            tool::command("git")
                .args(["ls-files", "--cached", "--others", "--exclude-standard"])
                .current_dir(self.workspace.root()),
        )
        .context("listing the files of the checkout")?;
        // A file that was removed and not yet committed is still listed.
        let there = |path: &PathBuf| self.workspace.root().join(path).is_file();
        Ok(listed.lines().map(PathBuf::from).filter(there).collect())
    }

    /// Takes any bug out again.
    fn restore(&self) -> Result<()> {
        for path in self.files()? {
            let (from, to) = (self.workspace.root().join(&path), self.tree.join(&path));
            let what = || format!("copying {}", path.display());
            let wanted = fs::read(&from).with_context(what)?;
            // Not there, or not readable: it is written.
            if fs::read(&to).is_ok_and(|found| found == wanted) {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).with_context(what)?;
            }
            fs::write(&to, wanted).with_context(what)?;
        }
        Ok(())
    }

    fn plant(&self, mutant: &Mutant) -> Result<()> {
        // Inside another checkout git takes paths from that one's top.
        let above = self.tree.parent().unwrap_or(&self.tree);
        let mut apply = tool::command("git");
        apply.env("GIT_CEILING_DIRECTORIES", above).current_dir(&self.tree);
        apply.args(["apply", "-C1", "--recount"]).arg(&mutant.patch);
        tool::output(&mut apply).map(drop).context("applying the patch")
    }

    /// The launcher as the copy makes it, without optimisation: what is looked at is what it does.
    fn build(&self) -> Result<PathBuf> {
        let target = self.workspace.vm_dir().join("mutants/build");
        let copy = Workspace::at(&self.tree, &target);
        let mut cargo = static_build::cargo(&copy, &target, &["--quiet", "--bin", "rspawn"])?;
        for (key, value) in [
            ("CARGO_PROFILE_RELEASE_LTO", "false"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
            ("CARGO_PROFILE_RELEASE_INCREMENTAL", "true"),
        ] {
            cargo.env(key, value);
        }
        // A bug may leave something unused behind; that it does not build for that would not be a catch.
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static --cap-lints warn");
        static_build::executable(&tool::text(&mut cargo)?, "rspawn")
    }
}

/// The files below `dir`, by their paths from `top`.
fn existing(dir: &Path, top: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry.with_context(|| format!("listing {}", dir.display()))?.path();
        if path.is_dir() {
            found.extend(existing(&path, top)?);
        } else {
            found.push(path.strip_prefix(top).unwrap_or(&path).to_owned());
        }
    }
    Ok(found)
}

/// What a run of cases came to.
#[derive(Debug, Default)]
struct Seen {
    ran: usize,
    failed: Vec<String>,
}

/// An object on the standard output of `vm-test --format json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Line {
    event: String,
    word: Option<String>,
    report: Option<Report>,
}

#[derive(Debug, Deserialize)]
struct Report {
    case: String,
}

impl Seen {
    fn add(&mut self, line: &str) {
        // Later objects have other forms.
        let Ok(Line { event, word: Some(word), report: Some(report) }) = serde_json::from_str(line)
        else {
            return;
        };
        // A machine that did not come up has seen nothing.
        if event == "result" && word != "NOT RUN" {
            self.ran += 1;
            if word != "PASS" {
                self.failed.push(report.case);
            }
        }
    }
}

/// Cases to be run with a launcher, by this program's own `vm-test`.
struct Run<'a> {
    mirror: Option<&'a str>,
    kernel: Option<&'a str>,
    launcher: &'a Path,
    filters: Vec<&'a str>,
}

impl Run<'_> {
    fn all(&self) -> Result<Seen> {
        let mut command =
            Command::new(std::env::current_exe().context("looking for this program")?);
        // A template would serve this launcher alone, and is made by booting, too.
        command.args(["vm-test", "--cold", "--format", "json", "--deny-skips", "none"]);
        command.arg("--launcher");
        command.arg(self.launcher).args(&self.filters).stdin(Stdio::null());
        for (option, value) in [("--mirror", self.mirror), ("--kernel", self.kernel)] {
            command.args(value.map(|value| [option, value]).into_iter().flatten());
        }
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting vm-test")?;
        let stdout = child.stdout.take().context("reading what vm-test prints")?;
        let mut seen = Seen::default();
        for line in BufReader::new(stdout).lines() {
            seen.add(&line.context("reading what vm-test prints")?);
        }
        let status = child.wait().context("waiting for vm-test")?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        ensure!(matches!(code, Some(0 | exit::FAILED)), "vm-test: {status}");
        ensure!(seen.ran > 0, "no case is run by {}", self.filters.join(" "));
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_says_what_it_breaks_and_who_sees_it() {
        let text = "Bug: it is wrong\nCases: a:: b::c\n\n--- a/x\n+++ b/x\n";
        let read = Mutant::read("n", text, Path::new("/n.patch")).unwrap();
        assert_eq!(
            (read.bug.as_str(), read.cases),
            ("it is wrong", vec!["a::".into(), "b::c".into()])
        );
        let error =
            Mutant::read("n", "Bug: x\n--- a/x\nCases: late\n", Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("Cases:"), "{error}");
    }

    #[test]
    fn what_vm_test_prints_is_counted_by_verdict() {
        let mut seen = Seen::default();
        seen.add(r#"{"event":"result","word":"PASS","report":{"case":"a"}}"#);
        seen.add(r#"{"event":"result","word":"FAIL","report":{"case":"b"}}"#);
        seen.add(r#"{"event":"summary","passed":1}"#);
        seen.add("no object at all");
        assert_eq!((seen.ran, seen.failed), (2, vec!["b".to_owned()]));
    }

    #[test]
    fn the_patches_of_this_checkout_name_their_cases() {
        let all = chosen(&Workspace::find(), &[]).unwrap();
        assert!(all.len() >= 20, "there are {}", all.len());
    }
}
