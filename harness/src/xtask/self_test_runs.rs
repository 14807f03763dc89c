//! The part of the self-test that looks at whole runs, as a person starts them: what they choose, what they print, and
//! how they end.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::artifact::Store;
use crate::report::summary::exit;
use crate::rundir;
use crate::tool;
use crate::workspace::Workspace;

/// Cases that always pass, quickly.
const GOOD: [&str; 2] =
    ["exit::a_payload_that_crashes_gives_1", "exit::a_command_that_is_not_there_gives_1"];
/// One that never does.
const BAD: &str = "fault::fails";

/// How a run ended.
struct Ran {
    code: Option<i32>,
    said: String,
    /// Its directory, if it made one.
    dir: Option<PathBuf>,
}

/// A check, and what it is called.
type Check = (&'static str, fn(&Workspace, &Path) -> Result<()>);

const CHECKS: &[Check] = &[
    ("a failure is told with what reopens it, and --failed runs it alone", failed_alone),
    ("--fresh-vm gives each case a restored guest of its own", fresh_guests),
    ("the shares of hash:m/n merge to the whole, and nothing less does", shares),
    ("a template that cannot be restored is told and made anew", broken_template),
    ("a filter that fits nothing is no success", nothing_selected),
    ("--fail-fast starts nothing after a failure, and tells what was not run", fail_fast),
    ("vm-run takes files and input along, and ends as its command does", one_command),
];

/// Makes all checks; each with what is wrong, if anything is.
pub(super) fn all(workspace: &Workspace) -> Result<Vec<(&'static str, Option<String>)>> {
    let scratch = tempfile::tempdir().context("making a directory for reports")?;
    let outcome = |(name, check): &Check| {
        let wrong = check(workspace, scratch.path()).err().map(|error| format!("{error:#}"));
        (*name, wrong)
    };
    Ok(CHECKS.iter().map(outcome).collect())
}

fn failed_alone(workspace: &Workspace, _: &Path) -> Result<()> {
    let ran = vm_test(workspace, &["--with-faults", "--exact", BAD, GOOD[0]])?;
    ran.ends(exit::FAILED, "vm-test: 1 passed, 1 failed, 0 skipped")?;
    let dir = ran.dir.as_ref().context("the run has no directory")?;
    let name = rundir::name_of(&dir.file_name().unwrap_or_default().to_string_lossy());
    ran.says(&format!("reopen:    cargo xtask vm-shell --at {name}/"))?;
    let again = vm_test(workspace, &["--with-faults", "--failed"])?;
    again.ends(exit::FAILED, "vm-test: 0 passed, 1 failed, 0 skipped")?;
    again.says(BAD)
}

fn fresh_guests(workspace: &Workspace, _: &Path) -> Result<()> {
    let ran = vm_test(workspace, &["--fresh-vm", "--exact", GOOD[0], GOOD[1]])?;
    ran.ends(exit::PASSED, "vm-test: 2 passed, 0 failed, 0 skipped")?;
    let guests = ran.guests()?;
    ensure!(guests.len() == 2, "two cases ran in {} guests", guests.len());
    for arguments in guests {
        ensure!(arguments.contains("-incoming defer"), "a guest was not restored: {arguments}");
    }
    Ok(())
}

fn shares(workspace: &Workspace, scratch: &Path) -> Result<()> {
    // By their names, one is in each share.
    let names = ["exit::a_payload", "exit::a_command"];
    let mut reports = Vec::new();
    for share in ["hash:1/2", "hash:2/2"] {
        let file = scratch.join(share.replace(['/', ':'], "-"));
        let report = file.to_string_lossy().into_owned();
        let ran =
            vm_test(workspace, &["--partition", share, "--report", &report, names[0], names[1]])?;
        ensure!(ran.code == Some(0), "the share {share} ended with {:?}", ran.code);
        reports.push(report);
    }
    let merge = |reports: &[&String]| {
        let mut arguments = vec!["vm-report", "merge"];
        arguments.extend(reports.iter().map(|report| report.as_str()));
        xtask(&arguments)
    };
    let [one, two] = reports.as_slice() else { unreachable!("two shares were run") };
    merge(&[one, two])?.ends(exit::PASSED, " passed, 0 failed, 0 skipped")?;
    let missing = merge(&[one])?;
    ensure!(missing.code == Some(exit::ACCOUNTING.into()), "a missing share was not noticed");
    missing.says("hash:2/2 is missing")?;
    merge(&[one, two, two])?.says("is there twice")
}

fn broken_template(workspace: &Workspace, _: &Path) -> Result<()> {
    let store = Store::of(workspace);
    let mut broken = Vec::new();
    for stored in store.list()?.into_iter().filter(|stored| stored.name.starts_with("template-")) {
        fs::write(stored.path.join("state"), "not a state").context("breaking a template")?;
        broken.push(stored.path);
    }
    ensure!(!broken.is_empty(), "there is no template to break");
    let ran = vm_test(workspace, &["--exact", GOOD[0]])?;
    ran.ends(exit::PASSED, "vm-test: 1 passed, 0 failed, 0 skipped")?;
    ran.says("it is booted instead")?;
    let ran = vm_test(workspace, &["--exact", GOOD[0]])?;
    ran.ends(exit::PASSED, "vm-test: 1 passed, 0 failed, 0 skipped")?;
    ensure!(!ran.said.contains("it is booted instead"), "the template stays broken");
    // Those of other kernels are not made by this run.
    broken.iter().try_for_each(|path| {
        let state = fs::read(path.join("state")).unwrap_or_default();
        if state == b"not a state" {
            fs::remove_dir_all(path).context("removing a template")
        } else {
            Ok(())
        }
    })
}

fn nothing_selected(workspace: &Workspace, _: &Path) -> Result<()> {
    let ran = vm_test(workspace, &["--exact", "no::such_case"])?;
    ensure!(ran.code == Some(exit::NOTHING_SELECTED.into()), "it ended with {:?}", ran.code);
    Ok(())
}

fn fail_fast(workspace: &Workspace, _: &Path) -> Result<()> {
    let rounds = ["--with-faults", "--fail-fast", "--stress", "3", "-j", "1", "--exact"];
    let ran = vm_test(workspace, &[&rounds[..], &[BAD, GOOD[0]]].concat())?;
    ran.ends(exit::FAILED, "vm-test: 1 passed, 5 failed, 0 skipped")?;
    ran.says("4 were not run: another case failed before")
}

fn one_command(_: &Workspace, scratch: &Path) -> Result<()> {
    let dir = scratch.join("a directory");
    fs::create_dir(&dir).context("making a directory to copy")?;
    let (named, other) = (dir.join("named"), dir.join("other"));
    fs::write(&named, "from a file\n").context("writing a file to copy")?;
    fs::write(&other, "from a directory\n").context("writing a file to copy")?;
    fs::set_permissions(&other, fs::Permissions::from_mode(0o640))
        .context("changing the mode of a file to copy")?;
    let script = "cat named /mnt/there/other -; stat -c %a /mnt/there/other; exit 7";
    let (named, there) = (named.display().to_string(), format!("{}:/mnt/there", dir.display()));
    let arguments = ["vm-run", "--copy", &named, "--copy", &there, "--", "sh", "-c", script];
    let input = fs::read("/etc/os-release").context("reading input")?;
    let ran = xtask_with(&arguments, &input)?;
    ensure!(ran.code == Some(7), "it ended with {:?}:\n{}", ran.code, ran.said);
    let input = String::from_utf8_lossy(&input);
    ran.says(&format!("from a file\nfrom a directory\n{input}640\n"))
}

/// `cargo xtask vm-test` with these arguments.
fn vm_test(workspace: &Workspace, arguments: &[&str]) -> Result<Ran> {
    let before = rundir::runs(workspace)?;
    let mut ran = xtask(&[&["vm-test"], arguments].concat())?;
    ran.dir = rundir::runs(workspace)?.into_iter().find(|dir| !before.contains(dir));
    Ok(ran)
}

/// This program with these arguments; both streams.
fn xtask(arguments: &[&str]) -> Result<Ran> {
    xtask_with(arguments, b"")
}

/// The same with this input, which is shorter than a pipe is.
fn xtask_with(arguments: &[&str], input: &[u8]) -> Result<Ran> {
    let program = std::env::current_exe().context("looking for this program")?;
    let mut command = Command::new(program);
    let (reader, mut writer) = std::io::pipe().context("making a pipe")?;
    writer.write_all(input).context("writing the program's input")?;
    drop(writer);
    // Neither a person's CI nor terminal is there.
    command.args(arguments).env_remove("CI").stdin(reader);
    let shown = tool::display(&command);
    let output = command.output().with_context(|| format!("running {shown}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    Ok(Ran { code: output.status.code(), said, dir: None })
}

impl Ran {
    fn ends(&self, code: u8, closing: &str) -> Result<()> {
        ensure!(self.code == Some(code.into()), "it ended with {:?}:\n{}", self.code, self.said);
        self.says(closing)
    }

    fn says(&self, part: &str) -> Result<()> {
        ensure!(self.said.contains(part), "it does not say \"{part}\":\n{}", self.said);
        Ok(())
    }

    /// QEMU's arguments of each guest.
    fn guests(&self) -> Result<Vec<String>> {
        let dir = self.dir.as_ref().context("the run has no directory")?;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).context("listing the run's guests")? {
            let file = entry.context("listing the run's guests")?.path().join("qemu.args");
            if file.exists() {
                found.push(fs::read_to_string(&file).context("reading QEMU's arguments")?);
            }
        }
        Ok(found)
    }
}
