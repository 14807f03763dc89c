//! On a machine with systemd: a complete Debian, where the launcher is run by units and meets resolved and journald.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::manager::{Manager, leader_in};
use harness::fixture::os::{self, Os, inside};
use harness::guest::{Guest, Subject};
use harness::shape::Shape;
use rustix::process::Signal;

const SYSTEMD: Need = Need::Shape(Shape::Systemd);
/// Units name the launcher itself.
const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    the_machine_is_a_complete_debian: [SYSTEMD] within 60,
    a_container_runs_beside_the_services: [SYSTEMD] within 60,
    name_servers_are_those_of_resolved: [SYSTEMD] within 60,
    its_cgroup_lies_below_its_unit: [SYSTEMD, OURS] within 60,
    a_unit_is_started_when_its_container_is_ready: [SYSTEMD, OURS] within 60,
    stopping_a_unit_halts_what_it_booted: [SYSTEMD, OURS] within 180,
    the_host_reads_a_linked_journal: [SYSTEMD] within 240,
];

/// Runs a program of the host, and returns what it prints.
fn tool(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("running {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let line = words.join(" ");
    ensure!(output.status.success(), "{program} {line}: {}\n{text}{complaint}", output.status);
    Ok(text)
}

/// A service of the host; stopped and removed when dropped.
struct Unit {
    name: &'static str,
    path: PathBuf,
}

impl Unit {
    /// As the template unit of systemd-nspawn has it, with these words after the launcher's name.
    fn make(t: &Guest, name: &'static str, words: &str) -> Result<Self> {
        let path = Path::new("/run/systemd/system").join(name);
        let text = format!(
            "[Service]\nType=notify\nKillMode=mixed\nDelegate=yes\nRestartForceExitStatus=133\nSuccessExitStatus=133\n\
             ExecStart={} -q --keep-unit --register=no {words}\n",
            t.launcher().display()
        );
        fs::write(&path, text).context("writing a unit")?;
        let unit = Self { name, path };
        tool("systemctl", &["daemon-reload"])?;
        Ok(unit)
    }

    fn start(&self) -> Result<()> {
        tool("systemctl", &["start", self.name]).map(drop)
    }

    fn stop(&self) -> Result<()> {
        tool("systemctl", &["stop", self.name]).map(drop)
    }

    fn shows(&self, property: &str, expected: &str) -> Result<()> {
        let found = self.property(property)?;
        ensure!(found == expected, "{property} of {} is {found:?}", self.name);
        Ok(())
    }

    fn property(&self, property: &str) -> Result<String> {
        let found = tool("systemctl", &["show", "-P", property, self.name])?;
        Ok(found.trim().to_owned())
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // What stays of it is found by the leftovers check, as a cgroup or as a failed unit of the next case.
        let _ = tool("systemctl", &["kill", "--signal=KILL", self.name]);
        let _ = self.stop();
        let _ = tool("systemctl", &["reset-failed", self.name]);
        let _ = fs::remove_file(&self.path);
        let _ = tool("systemctl", &["daemon-reload"]);
    }
}

/// What the other cases build on: without it they would test a guest that looks like one.
fn the_machine_is_a_complete_debian(_: &Guest) -> Result<()> {
    let init = fs::read_to_string("/proc/1/comm").context("looking at process 1")?;
    ensure!(init == "systemd\n", "process 1 is {init}");
    let failed = tool("systemctl", &["--failed", "--no-legend", "--plain"])?;
    ensure!(failed.trim().is_empty(), "failed:\n{failed}");
    for unit in ["dbus.service", "systemd-journald.service", "systemd-resolved.service"] {
        let state = tool("systemctl", &["is-active", unit])?;
        ensure!(state == "active\n", "{unit} is {state}");
    }
    // It is started by the bus, and asked over it.
    let listed = tool("machinectl", &["--no-legend", "list"]);
    tool("systemctl", &["stop", "systemd-machined.service", "machine.slice"])?;
    listed.map(drop)
}

/// CLI-05, RUN-15.
fn a_container_runs_beside_the_services(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).sh("exit 7")?.exits(7)?;
    t.container(&tree).arg("-x").sh("touch /new; echo done")?.prints("done")?;
    tree.lacks("new")
}

/// T-01, HST-02: each mode names a file of the host that resolved looks after.
fn name_servers_are_those_of_resolved(t: &Guest) -> Result<()> {
    let modes = [
        ("auto", "/run/systemd/resolve/stub-resolv.conf"),
        ("copy-host", "/etc/resolv.conf"),
        ("replace-stub", "/run/systemd/resolve/stub-resolv.conf"),
        ("replace-uplink", "/run/systemd/resolve/resolv.conf"),
        ("bind-static", "/usr/lib/systemd/resolv.conf"),
    ];
    for (mode, file) in modes {
        let tree = t.tree().file("etc/resolv.conf", "").name(mode).build()?;
        let host = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        let run = t.container(&tree).arg(format!("--resolv-conf={mode}"));
        run.sh("cat /etc/resolv.conf")?.prints(host.trim()).context(mode)?;
    }
    Ok(())
}

/// P-04, G-05: and it is gone when the unit has ended.
fn its_cgroup_lies_below_its_unit(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let words = format!("-D {} /bin/sh -c 'sleep 1000'", tree.path().display());
    let unit = Unit::make(t, "rspawn-case.service", &words)?;
    unit.start()?;
    let status = unit.property("StatusText")?;
    ensure!(status == "Container running.", "its status is {status:?}");
    let group = unit.property("ControlGroup")?;
    let main = unit.property("MainPID")?;
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    ensure!(of(&main)?.trim() == format!("0::{group}"), "the launcher left its unit");
    let processes = tool("systemctl", &["status", "--no-pager", "-l", unit.name])?;
    let payload = fs::read_to_string(format!("/proc/{main}/task/{main}/children"))?;
    let payload = payload.split_whitespace().next().context("the launcher has no child")?;
    let below = of(payload)?;
    let name = below.trim().strip_prefix(&format!("0::{group}/"));
    let name = name.with_context(|| format!("the payload is in {below}\n{processes}"))?;
    ensure!(name.starts_with("rspawn."), "its cgroup is {name}");
    unit.stop()?;
    let left = Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/'));
    ensure!(!left.exists(), "{} is still there", left.display());
    Ok(())
}

/// E-07, RUN-05.
fn a_unit_is_started_when_its_container_is_ready(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let script = "sleep 2; touch /began; exec /probe --notify STATUS=up READY=1";
    let words = format!("-D {} --notify-ready=yes /bin/sh -c '{script}'", tree.path().display());
    let unit = Unit::make(t, "rspawn-case.service", &words)?;
    unit.start()?;
    tree.has("began").context("it was said to be started before its container was ready")?;
    // It has ended by now or is about to.
    unit.stop()?;
    unit.shows("Result", "success")
}

/// E-02, E-06, F-03: `systemctl stop` is one SIGTERM, and the services inside get to stop.
fn stopping_a_unit_halts_what_it_booted(t: &Guest) -> Result<()> {
    let text = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\nExecStop=touch /root/stopped\n";
    let os = Os::make(t)?.with_service("witness.service", text)?;
    let words = format!("-b -D {} --notify-ready=yes", os.path().display());
    let unit = Unit::make(t, "rspawn-case.service", &words)?;
    unit.start()?;
    unit.shows("ActiveState", "active")?;
    unit.stop()?;
    unit.shows("Result", "success")?;
    unit.shows("ExecMainStatus", "0")?;
    ensure!(os.path().join("root/stopped").exists(), "it was killed before its service stopped");
    Ok(())
}

/// HST-03, T-03: journald inside writes, journalctl outside reads.
fn the_host_reads_a_linked_journal(t: &Guest) -> Result<()> {
    let journals = Path::new("/var/log/journal");
    fs::create_dir_all(journals).context("making the host's directory of journals")?;
    for mode in ["host", "guest"] {
        let os = Os::make(t)?;
        let manager = Manager::listening(t)?;
        let container = t.container_at(os.path()).args(["-b", "--notify-ready=yes"]);
        let container = container.arg(format!("--link-journal={mode}"));
        let mut running = manager.of(container).start_init()?;
        let leader = leader_in(&manager.await_from(&mut running, "READY=1")?)?;
        let script =
            format!("echo word-of-{mode} | systemd-cat && journalctl --flush && journalctl --sync");
        inside(leader, &["/bin/sh", "-c", &script])?;
        let machine = format!("_MACHINE_ID={}", os::MACHINE_ID);
        let read = tool("journalctl", &["-q", "--merge", "-o", "cat", &machine]);
        running.signal(Signal::TERM)?;
        running.end()?.exits(0)?;
        let place = journals.join(os::MACHINE_ID);
        match mode {
            "host" => fs::remove_dir_all(&place),
            _ => fs::remove_file(&place),
        }
        .with_context(|| format!("removing {}", place.display()))?;
        ensure!(read?.contains(&format!("word-of-{mode}\n")), "the host does not see it: {mode}");
    }
    Ok(())
}
