//! `--template=`: a directory is filled from another once, and is complete or not there at all.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::scratch::Mounted;
use harness::fixture::tree::{Builder, Listing, Tree};
use harness::guest::observe::entries;
use harness::guest::{Guest, Subject};
use harness::report::event::Restart;
use rustix::fs::IFlags;
use rustix::process::Signal;

use crate::halted;

const OURS: Need = Need::Only(Subject::Rspawn);
const BTRFS: Need = Need::Fs("btrfs");
const FILEFRAG: Need = Need::Tool("filefrag");

cases![
    a_missing_directory_is_filled_and_an_existing_one_is_used,
    what_exists_on_btrfs_is_used: [BTRFS],
    what_exists_on_xfs_is_used: [Need::Fs("xfs")],
    it_is_told_what_was_done: [OURS],
    a_subvolume_gives_a_snapshot_with_those_in_it: [BTRFS],
    a_directory_on_btrfs_gives_a_subvolume: [BTRFS],
    no_block_is_copied_on_btrfs: [BTRFS, FILEFRAG],
    no_block_is_copied_on_xfs: [Need::Fs("xfs"), FILEFRAG],
    a_read_only_copy_on_btrfs_is_a_read_only_subvolume: [OURS, BTRFS],
    a_read_only_copy_on_ext4_is_immutable: [OURS, Need::Fs("ext4")],
    a_template_alone_is_what_a_throw_away_run_is_of: [OURS],
    a_machine_that_does_not_exist_is_made_from_a_template: [OURS],
    a_wrong_template_is_refused_before_it_is_copied,
    a_place_that_cannot_be_written_is_named: [OURS],
    what_is_no_place_for_a_copy_is_refused: [OURS],
    kill_9_at_any_step_leaves_nothing_or_all: [OURS] within 120,
    kill_9_at_any_step_on_btrfs_leaves_nothing_or_all: [OURS, BTRFS] within 120,
    a_power_cut_leaves_nothing_or_all: [OURS, Need::Restart, Need::Fs("ext4")],
    a_request_to_end_at_any_step_leaves_no_copy: [OURS] within 120,
    of_two_that_fill_one_directory_the_first_counts: [OURS] within 60,
    links_are_not_filled: [OURS],
];

/// A copy on disk; removed when dropped.
struct Copy(PathBuf);

impl Copy {
    fn new(t: &Guest) -> Self {
        Self(t.scratch().join("copy"))
    }

    fn from(&self, t: &Guest, template: &Path) -> Container {
        t.container_at(&self.0).arg("--template").arg(template)
    }

    fn exists(&self) -> bool {
        self.0.symlink_metadata().is_ok()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What stays is found by the leftovers check of the case, with its name.
        if let Ok(dir) = fs::File::open(&self.0)
            && let Ok(flags) = rustix::fs::ioctl_getflags(&dir)
        {
            let _ = rustix::fs::ioctl_setflags(&dir, flags - IFlags::IMMUTABLE);
        }
        let _ = Command::new("btrfs")
            .args(["property", "set", "-ts"])
            .arg(&self.0)
            .args(["ro", "false"])
            .output();
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn filled_once(t: &Guest, template: &Tree) -> Result<Copy> {
    let copy = Copy::new(t);
    let before = template.listing()?;
    let container = copy.from(t, template.path());
    container.sh("echo one >> /written; cat /written")?.prints("one")?;
    container.sh("echo two >> /written; cat /written")?.prints("one\ntwo")?;
    template.listing()?.same_as(&before)?;
    Ok(copy)
}

/// SNP-30, SNP-18, CLI-06, CON-05: what is written stays, and the template is as it was.
fn a_missing_directory_is_filled_and_an_existing_one_is_used(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").file("etc/hostname", "kept\n").build()?;
    let copy = filled_once(t, &template)?;
    let name = fs::read_to_string(copy.0.join("etc/hostname")).context("reading the copy")?;
    ensure!(name == "kept\n", "the copy's name is {name:?}");
    Ok(())
}

/// DEF-01, SNP-17: on every file system.
fn what_exists_on_btrfs_is_used(t: &Guest) -> Result<()> {
    filled_once(t, &t.tree().name("template").build()?).map(drop)
}

fn what_exists_on_xfs_is_used(t: &Guest) -> Result<()> {
    filled_once(t, &t.tree().name("template").build()?).map(drop)
}

/// SNP-31, DEF-15: both paths; nothing with `-q`; with `-v` also how, and why not otherwise.
fn it_is_told_what_was_done(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    let copy = Copy::new(t);
    let says = |run: &harness::fixture::container::Run, words: &[&str]| -> Result<()> {
        for word in words {
            ensure!(run.stderr.contains(word), "it does not say {word:?}\n{run}");
        }
        Ok(())
    };
    let run = copy.from(t, template.path()).arg("-v").sh("true")?;
    let path = copy.0.display().to_string();
    says(&run, &[&path, "template ", "subvolume snapshot: not a subvolume", "copy: ok"])?;
    let run = copy.from(t, template.path()).arg("-v").sh("true")?;
    says(&run, &[&format!("{path} exists")])?;
    let run = copy.from(t, template.path()).sh("true")?;
    ensure!(run.succeeds()?.stderr.is_empty(), "it says something\n{run}");
    Ok(())
}

fn is_subvolume(path: &Path) -> Result<bool> {
    Ok(fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?.ino() == 256)
}

fn subvolume(path: &Path) -> Result<()> {
    let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(path).output();
    let made = made.context("running btrfs")?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// SNP-10.
fn a_subvolume_gives_a_snapshot_with_those_in_it(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").subvolume().build()?;
    for path in ["home", "home/user", "var/lib"] {
        subvolume(&template.path().join(path))?;
        fs::write(template.path().join(path).join("file"), path).context("making a file")?;
    }
    let copy = filled_once(t, &template)?;
    for path in ["", "home", "home/user", "var/lib"] {
        let inside = copy.0.join(path);
        ensure!(is_subvolume(&inside)?, "{} is no subvolume", inside.display());
        if !path.is_empty() {
            let text = fs::read_to_string(inside.join("file")).context("reading the copy")?;
            ensure!(text == path, "{path} holds {text:?}");
        }
    }
    Ok(())
}

/// SNP-11.
fn a_directory_on_btrfs_gives_a_subvolume(t: &Guest) -> Result<()> {
    let copy = filled_once(t, &t.tree().name("template").build()?)?;
    ensure!(is_subvolume(&copy.0)?, "the copy is no subvolume");
    Ok(())
}

/// SNP-19: what is shared is there at once.
fn shares(t: &Guest, template: &Tree) -> Result<()> {
    let big = template.path().join("big");
    fs::write(&big, vec![7; 4 << 20]).context("making a big file")?;
    fs::File::open(&big).and_then(|file| file.sync_all()).context("writing it to its disk")?;
    let place = t.scratch().join("place");
    fs::create_dir(&place).context("making a place")?;
    // Next to it, and in another directory.
    for path in [t.scratch().join("copy"), place.join("copy")] {
        let copy = Copy(path);
        copy.from(t, template.path()).sh("true")?.succeeds()?;
        let run = Command::new("filefrag").arg("-v").arg(copy.0.join("big")).output();
        let shown = String::from_utf8(run.context("running filefrag")?.stdout)?;
        // "   0:        0..    1023:      34816..     35839:   1024:             last,shared,eof"
        let extents: Vec<_> = shown.lines().filter(|line| line.contains("..")).collect();
        let shared = extents.iter().all(|line| line.contains("shared"));
        ensure!(!extents.is_empty() && shared, "{} has its own blocks:\n{shown}", copy.0.display());
    }
    fs::remove_dir(&place).context("removing the place")
}

fn no_block_is_copied_on_btrfs(t: &Guest) -> Result<()> {
    shares(t, &t.tree().name("template").subvolume().build()?)?;
    shares(t, &t.tree().name("directory").build()?)
}

fn no_block_is_copied_on_xfs(t: &Guest) -> Result<()> {
    shares(t, &t.tree().name("template").build()?)
}

/// SNP-13, SNP-32: and those in it.
fn a_read_only_copy_on_btrfs_is_a_read_only_subvolume(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").subvolume().build()?;
    let copy = Copy::new(t);
    copy.from(t, template.path())
        .arg("--read-only")
        .sh("! touch /x && echo done")?
        .prints("done")?;
    let made =
        Command::new("btrfs").args(["property", "get", "-ts"]).arg(&copy.0).arg("ro").output();
    let made = made.context("running btrfs")?;
    ensure!(made.stdout == b"ro=true\n", "{}", String::from_utf8_lossy(&made.stdout));
    Ok(())
}

/// SNP-13, SNP-15.
fn a_read_only_copy_on_ext4_is_immutable(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    let copy = Copy::new(t);
    copy.from(t, template.path())
        .arg("--read-only")
        .sh("! touch /x && echo done")?
        .prints("done")?;
    let dir = fs::File::open(&copy.0).context("opening the copy")?;
    let flags = rustix::fs::ioctl_getflags(&dir).context("asking for its flags")?;
    ensure!(flags.contains(IFlags::IMMUTABLE), "its flags are {flags:?}");
    Ok(())
}

/// I-03, CON-06.
fn a_template_alone_is_what_a_throw_away_run_is_of(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    let before = template.listing()?;
    let container = t.command().arg("-x").arg("--template").arg(template.path());
    let run = container.sh("touch /x; cat /proc/sys/kernel/hostname")?;
    ensure!(run.succeeds()?.text().starts_with("template-"), "it has another name\n{run}");
    template.listing()?.same_as(&before)
}

/// CON-05: -M is the place among the machines.
fn a_machine_that_does_not_exist_is_made_from_a_template(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    let machines = Path::new("/var/lib/machines");
    fs::create_dir_all(machines).context("making the directory of machines")?;
    let made = machines.join("of-a-template");
    let container =
        t.command().args(["-M", "of-a-template"]).arg("--template").arg(template.path());
    container.sh("echo > /x")?.succeeds()?;
    ensure!(made.join("x").exists(), "{} was not made", made.display());
    fs::remove_dir_all(&made).context("removing the machine")
}

/// DEF-14.
fn a_wrong_template_is_refused_before_it_is_copied(t: &Guest) -> Result<()> {
    let template = Builder::empty(t.scratch()).name("template").dir("etc").build()?;
    let copy = Copy::new(t);
    let run = copy.from(t, template.path()).sh("true")?;
    run.exits(1)?;
    ensure!(!copy.exists(), "it was copied");
    if t.subject() == Subject::Rspawn {
        run.fails_with("no /usr")?;
        copy.from(t, &t.scratch().join("gone")).sh("true")?.fails_with("--template=")?;
        copy.from(t, Path::new("/etc/passwd")).sh("true")?.fails_with("/etc/passwd")?;
    }
    Ok(())
}

/// R14.
fn a_place_that_cannot_be_written_is_named(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    let place = Mounted::with_options("tmpfs", &t.scratch().join("place"), "ro")?;
    let copy = Copy(place.path().join("copy"));
    let run = copy.from(t, template.path()).sh("true")?;
    run.fails_with(&place.path().display().to_string())?.fails_with("Read-only file system")?;
    let gone = Copy(t.scratch().join("gone/copy"));
    gone.from(t, template.path()).sh("true")?.fails_with("those above it must exist")?;
    drop(place);
    Ok(())
}

fn what_is_no_place_for_a_copy_is_refused(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    let file = Copy(t.scratch().join("file"));
    fs::write(&file.0, "").context("making a file")?;
    file.from(t, template.path()).sh("true")?.fails_with("file")?;
    fs::remove_file(&file.0).context("removing it")
}

const STEPS: [&str; 6] =
    ["holder-made", "copy-begun", "copy-listed", "copied", "template-made", "template-synced"];

/// SNP-14, 3 of security.md's defects: the next start completes it, and collects what was left.
fn kill_9_at_any_step_leaves_nothing_or_all(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    killed_at_each(t, &template, &STEPS)
}

fn kill_9_at_any_step_on_btrfs_leaves_nothing_or_all(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    killed_at_each(t, &template, &STEPS)?;
    drop(template);
    let template = t.tree().name("template").subvolume().build()?;
    subvolume(&template.path().join("home"))?;
    killed_at_each(t, &template, &["holder-made", "template-made", "template-synced"])
}

fn killed_at_each(t: &Guest, template: &Tree, steps: &[&str]) -> Result<()> {
    let before = template.listing()?;
    for step in steps {
        let copy = Copy::new(t);
        halted::killed_at(step, &copy.from(t, template.path()))?;
        ensure!(!copy.exists(), "killed at {step}, it has its name already");
        copy.from(t, template.path()).sh("echo done")?.prints("done")?;
        let left = halted::hidden(t)?;
        ensure!(left.is_empty(), "killed at {step}, it leaves {left:?}");
    }
    let copy = Copy::new(t);
    halted::killed_at("template-named", &copy.from(t, template.path()))?;
    Listing::of(&copy.0)?.same_as(&before)?;
    copy.from(t, template.path()).sh("echo done")?.prints("done")?;
    // Whoever finds it complete has nothing to fill, and so nothing to look for beside it.
    drop(copy);
    let copy = Copy::new(t);
    copy.from(t, template.path()).sh("true")?.succeeds()?;
    let left = halted::hidden(t)?;
    ensure!(left.is_empty(), "there is {left:?}");
    Ok(())
}

/// SNP-14: the name of the copy is on disk, and ext4 keeps what was written last in memory for longer than that.
fn a_power_cut_leaves_nothing_or_all(t: &Guest) -> Result<()> {
    let copy = Copy::new(t);
    if t.boot() == 0 {
        let template = t.tree().name("template").build()?;
        let scratch = fs::File::open(t.scratch()).context("opening the scratch directory")?;
        rustix::fs::syncfs(&scratch).context("writing the scratch disk")?;
        let container = copy.from(t, template.path());
        let stopped = halted::at("template-named", &container, "true")?;
        scratch.sync_all().context("writing the copy's name")?;
        // Their guards would clean up, which a power cut does not.
        std::mem::forget((template, copy, stopped));
        return Err(Restart::PowerCut.into());
    }
    let template = t.scratch().join("template");
    Listing::of(&copy.0)?.same_as(&Listing::of(&template)?)?;
    drop(copy);
    let copy = Copy::new(t);
    copy.from(t, &template).sh("true")?.succeeds()?;
    fs::remove_dir_all(&template).context("removing the template")
}

/// I-02, R9, defect 2 of systemd-nspawn 252.
fn a_request_to_end_at_any_step_leaves_no_copy(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for step in ["holder-made", "copy-begun"] {
            let copy = Copy::new(t);
            halted::ended_at(step, &copy.from(t, template.path()), signal)?;
            ensure!(!copy.exists(), "{signal:?} at {step} leaves the copy");
            let left = halted::hidden(t)?;
            ensure!(left.is_empty(), "{signal:?} at {step} leaves {left:?}");
        }
        // It is complete then, and stays.
        let copy = Copy::new(t);
        halted::ended_at("template-made", &copy.from(t, template.path()), signal)?;
        let left = halted::hidden(t)?;
        ensure!(left.is_empty(), "{signal:?} leaves {left:?}");
    }
    Ok(())
}

fn of_two_that_fill_one_directory_the_first_counts(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    let copy = Copy::new(t);
    let container = copy.from(t, template.path());
    let mut late = halted::at("template-synced", &container, "cat /first")?;
    container.sh("echo first > /first")?.succeeds()?;
    late.signal(Signal::CONT)?;
    late.end()?.prints("first")?;
    let left = halted::hidden(t)?;
    ensure!(left.is_empty(), "there is {left:?}");
    Ok(())
}

fn links_are_not_filled(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").build()?;
    let copy = Copy::new(t);
    let outside = t.scratch().join("outside");
    std::os::unix::fs::symlink(&outside, &copy.0).context("making a link")?;
    copy.from(t, template.path()).sh("true")?.fails_with("link that leads nowhere")?;
    ensure!(!outside.exists(), "the link was filled");
    fs::remove_file(&copy.0).context("removing the link")?;
    ensure!(entries(t.scratch())?.iter().all(|path| !path.ends_with("outside")), "it is there");
    Ok(())
}
