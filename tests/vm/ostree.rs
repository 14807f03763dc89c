//! A sysroot as the `ostree` tool makes it, and the example of the README, typed as it stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::Guest;

use crate::image::OURS;

const OSTREE: Need = Need::Tool("ostree");

cases![
    a_deployment_runs_with_the_shared_var: [OSTREE] within 120,
    two_deployments_share_a_var: [OSTREE] within 120,
    a_deployment_is_read_only_or_volatile: [OSTREE] within 120,
    a_throw_away_run_changes_nothing_of_the_sysroot: [OSTREE, Need::Fs("ext4")] within 120,
    the_example_of_the_readme_works: [OURS, OSTREE] within 120,
];

/// A sysroot with two deployments of one system. They are immutable until it is dropped.
struct Sysroot {
    path: PathBuf,
    deployments: Vec<String>,
}

fn ostree(words: &[&str]) -> Result<String> {
    let done = Command::new("ostree").args(words).output().context("running ostree")?;
    let text = || String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "ostree {words:?}: {}", text());
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// What is committed: /etc is in /usr, /var is empty, and there is a kernel.
fn system(t: &Guest, name: &str) -> Result<Tree> {
    let tree = Builder::minimal(t.scratch()).name(name).dir("sysroot").dir("etc");
    let tree = tree.file("usr/who", name).file("usr/lib/modules/none/vmlinuz", "").build()?;
    fs::rename(tree.path().join("etc"), tree.path().join("usr/etc"))?;
    fs::copy(tree.path().join("usr/etc/os-release"), tree.path().join("usr/lib/os-release"))?;
    Ok(tree)
}

impl Sysroot {
    fn new(t: &Guest) -> Result<Self> {
        let path = t.scratch().join("sysroot");
        fs::create_dir(&path)?;
        let mut made = Self { path, deployments: Vec::new() };
        let root = made.path.display().to_string();
        let (at, repo) = (format!("--sysroot={root}"), format!("--repo={root}/ostree/repo"));
        ostree(&["admin", "init-fs", "--modern", &root])?;
        ostree(&["admin", "os-init", &at, "fixture"])?;
        for name in ["first", "second"] {
            let tree = system(t, name)?;
            let from = format!("--tree=dir={}", tree.path().display());
            let commit = ostree(&[&repo, "commit", "--branch=fixture", &from])?;
            ostree(&["admin", "deploy", &at, "--os=fixture", "fixture"])?;
            made.deployments.push(format!("/ostree/deploy/fixture/deploy/{commit}.0"));
        }
        fs::write(made.path.join("ostree/deploy/fixture/var/shared"), "shared")?;
        Ok(made)
    }

    fn container(&self, t: &Guest, which: usize) -> Container {
        t.container_at(&self.path)
            .args(["-M", "fixture"])
            .arg(format!("--pivot-root={}:/sysroot", self.deployments[which]))
            .arg("--bind=+/sysroot/ostree/deploy/fixture/var:/var")
    }

    fn var(&self) -> PathBuf {
        self.path.join("ostree/deploy/fixture/var")
    }
}

impl Drop for Sysroot {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(sysroot: &Path) {
    // What stays is found by the leftovers check, with its name. Not every file system has the attribute.
    let mut change = Command::new("chattr");
    let _ = change.args(["-R", "-i"]).arg(sysroot.join("ostree/deploy")).output();
    let _ = fs::remove_dir_all(sysroot);
}

/// PIV-10: of a real sysroot, what is written to /var is the system's.
fn a_deployment_runs_with_the_shared_var(t: &Guest) -> Result<()> {
    let sysroot = Sysroot::new(t)?;
    sysroot
        .container(t, 0)
        .sh(
            "cat /usr/who /var/shared && test -e /sysroot/ostree/repo/config && echo > /var/new && \
             test -e /etc/passwd && echo :done",
        )?
        .prints("firstshared:done")?;
    ensure!(sysroot.var().join("new").exists(), "what was written to /var is not there");
    Ok(())
}

/// PIV-10, SNP-51: one after the other, and at once where both only read.
fn two_deployments_share_a_var(t: &Guest) -> Result<()> {
    let sysroot = Sysroot::new(t)?;
    for (which, name) in ["first", "second"].into_iter().enumerate() {
        let script =
            format!("cat /usr/who; echo {name} >> /var/log-of-both; wc -l < /var/log-of-both");
        sysroot.container(t, which).sh(&script)?.prints(&format!("{name}{}", which + 1))?;
    }
    let mut first = sysroot.container(t, 0).arg("--read-only").start("echo up; cat > /dev/null")?;
    first.next_line()?;
    let second = sysroot.container(t, 1).arg("--read-only").sh("cat /usr/who")?;
    second.prints("second")?;
    first.end()?.succeeds()?;
    Ok(())
}

/// PIV-08, VOL-06: what is bound from the former root is read as that is.
fn a_deployment_is_read_only_or_volatile(t: &Guest) -> Result<()> {
    const LOOK: &str = "cat /usr/who /var/shared; touch /new 2> /dev/null && echo :new; \
                        touch /var/new 2> /dev/null && echo :var; :";
    let sysroot = Sysroot::new(t)?;
    for (option, seen) in [
        ("--read-only", "secondshared"),
        ("--volatile=state", "secondshared"),
        ("--volatile=overlay", "secondshared:new"),
    ] {
        sysroot.container(t, 1).arg(option).sh(LOOK)?.prints(seen)?;
    }
    ensure!(!sysroot.var().join("new").exists(), "the shared /var was changed");
    let deployment = sysroot.path.join(&sysroot.deployments[1][1..]);
    ensure!(!deployment.join("new").exists(), "the deployment was changed");
    Ok(())
}

/// SNP-10, PIV-08: the deployment cannot be written to, its layer can.
fn a_throw_away_run_changes_nothing_of_the_sysroot(t: &Guest) -> Result<()> {
    let sysroot = Sysroot::new(t)?;
    sysroot
        .container(t, 0)
        .arg("-x")
        .sh("echo > /var/gone && echo > /usr/gone && echo done")?
        .prints("done")?;
    ensure!(!sysroot.var().join("gone").exists(), "the shared /var was changed");
    Ok(())
}

/// PIV-10: the block of the README that makes a sysroot, line by line as a user would type it, with a tree of ours in
/// the place of the one that `cargo xtask images tree` makes.
fn the_example_of_the_readme_works(t: &Guest) -> Result<()> {
    const README: &str = include_str!("../../README.md");
    let block = README.split("```sh\n").find(|block| block.contains("ostree admin"));
    let block = block.and_then(|block| block.split("```").next()).context("there is no example")?;
    let tree = Builder::minimal(t.scratch()).name("debian").build()?;
    let place = Path::new("/var/tmp/debian");
    ensure!(!place.exists(), "{} is there already", place.display());
    std::os::unix::fs::symlink(tree.path(), place)?;
    let bin = t.scratch().join("bin");
    fs::create_dir(&bin)?;
    std::os::unix::fs::symlink(t.launcher(), bin.join("rspawn"))?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let script = format!("set -e\n{block}");
    let run =
        Command::new("sh").args(["-c", &script]).env("PATH", path).stdin(Stdio::null()).output();
    for path in ["/var/tmp/sysroot", "/var/tmp/commit"] {
        remove(Path::new(path));
    }
    fs::remove_file(place)?;
    fs::remove_dir_all(&bin)?;
    let run = run.context("running the example")?;
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    ensure!(run.status.success() && out.contains("ID=fixture"), "{}\n{out}\n{err}", run.status);
    Ok(())
}
