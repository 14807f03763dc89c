//! Containers that boot: `-b` with Debian's own systemd as process 1.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Running;
use harness::fixture::manager::{Manager, leader_in};
use harness::fixture::os::{Os, inside};
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

const NSENTER: Need = Need::Tool("nsenter");

cases![
    debians_systemd_comes_up_without_a_failed_unit: [NSENTER] within 120,
    one_sigterm_halts_it: [NSENTER] within 120,
    it_is_ready_when_its_target_is_reached: [NSENTER] within 120,
    it_starts_again_when_it_reboots: [NSENTER] within 180,
    its_cgroup_is_its_own_to_divide: [NSENTER] within 120,
];

/// A container that has booted.
struct Booted {
    running: Running,
    manager: Manager,
    leader: u32,
}

impl Booted {
    fn start(t: &Guest, os: &Os, options: &[&str]) -> Result<Self> {
        let manager = Manager::listening(t)?;
        let mut container = t.container_at(os.path()).args(["-b", "--notify-ready=yes"]);
        for option in options {
            container = container.arg(option);
        }
        let mut running = manager.of(container).start_init()?;
        let leader = leader_in(&manager.await_from(&mut running, "READY=1")?)?;
        Ok(Self { running, manager, leader })
    }

    fn sh(&self, script: &str) -> Result<String> {
        inside(self.leader, &["/bin/sh", "-c", script])
    }

    /// One request, and nothing but an orderly end.
    fn halt(mut self) -> Result<()> {
        self.running.signal(Signal::TERM)?;
        self.running.end()?.exits(0)?;
        Ok(())
    }
}

/// E-02, E-07.
fn debians_systemd_comes_up_without_a_failed_unit(t: &Guest) -> Result<()> {
    let os = Os::make(t)?;
    let booted = Booted::start(t, &os, &[])?;
    let failed = booted.sh("systemctl --failed --no-legend --plain")?;
    ensure!(failed.trim().is_empty(), "failed inside:\n{failed}");
    let state = booted.sh("systemctl is-system-running --wait")?;
    ensure!(state.trim() == "running", "it is {state}");
    let virt = booted.sh("systemd-detect-virt --container")?;
    ensure!(virt.trim() == "systemd-nspawn", "it takes itself for {virt}");
    booted.halt()
}

/// E-06, RUN-06: the units get to stop in their order.
fn one_sigterm_halts_it(t: &Guest) -> Result<()> {
    let text = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=touch /root/started\n\
                ExecStop=touch /root/stopped\n";
    let os = Os::make(t)?.with_service("witness.service", text)?;
    let booted = Booted::start(t, &os, &[])?;
    ensure!(os.path().join("root/started").exists(), "it was ready before its service");
    ensure!(!os.path().join("root/stopped").exists(), "its service stopped by itself");
    booted.halt()?;
    ensure!(os.path().join("root/stopped").exists(), "it was killed before its service stopped");
    Ok(())
}

/// E-07: and what it says of itself is passed on.
fn it_is_ready_when_its_target_is_reached(t: &Guest) -> Result<()> {
    let text = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=sleep 2\n";
    let os = Os::make(t)?.with_service("slow.service", text)?;
    let booted = Booted::start(t, &os, &[])?;
    let state = booted.sh("systemctl is-active multi-user.target slow.service")?;
    ensure!(state == "active\nactive\n", "ready while {state:?}");
    booted.running.signal(Signal::TERM)?;
    let Booted { mut running, manager, .. } = booted;
    running.end()?.exits(0)?;
    let heard = manager.heard()?;
    ensure!(heard.iter().any(|line| line == "STOPPING=1"), "no word of the end: {heard:?}");
    Ok(())
}

/// RUN-12, RUN-14: the harness starts systemd-nspawn with --keep-unit, where a reboot is an end with 133.
fn it_starts_again_when_it_reboots(t: &Guest) -> Result<()> {
    let os = Os::make(t)?;
    let mut booted = Booted::start(t, &os, &[])?;
    let first = boot_id(&booted)?;
    // It is asked, and ends under our feet.
    booted.sh("systemctl --no-block reboot")?;
    if t.subject() == Subject::Nspawn {
        booted.running.end()?.exits(133)?;
        return Ok(());
    }
    // READY=1 is told once (RUN-05); systemd's own words come again.
    let Booted { running, manager, leader } = &mut booted;
    *leader = leader_in(&manager.await_from(running, "X_NSPAWN_LEADER_PID=")?)?;
    manager.await_from(running, "STATUS=Container running: Ready.")?;
    let second = boot_id(&booted)?;
    ensure!(first != second, "it did not start again");
    booted.halt()
}

/// When process 1 began, which no two of one machine's boots share.
fn boot_id(booted: &Booted) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", booted.leader))
        .context("looking at process 1 of the container")?;
    let begun = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19));
    Ok(format!("{} {}", booted.leader, begun.context("reading when it began")?))
}

/// P-04: systemd inside makes cgroups, moves processes and sets limits, and all of it lies below the cgroup that the
/// container was given.
fn its_cgroup_is_its_own_to_divide(t: &Guest) -> Result<()> {
    let enabled = Controllers::pass_on("+pids")?;
    let text = "[Service]\nExecStart=sleep infinity\nTasksMax=7\nSlice=deep-er.slice\n";
    let os = Os::make(t)?.with_service("limited.service", text)?;
    let booted = Booted::start(t, &os, &[])?;
    let group = booted.sh("systemctl show -P ControlGroup limited.service")?;
    ensure!(group.trim() == "/deep.slice/deep-er.slice/limited.service", "it is in {group}");
    let limit = booted.sh(&format!("cat /sys/fs/cgroup{}/pids.max", group.trim()))?;
    ensure!(limit.trim() == "7", "its limit is {limit}");
    let of =
        |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(anyhow::Error::from);
    let (init, ours) = (of(booted.leader)?, of(std::process::id())?);
    let below = init.trim().strip_suffix("/init.scope").context("its init has no scope")?;
    ensure!(below != ours.trim() && below.starts_with(ours.trim().trim_end_matches('/')), "{init}");
    booted.sh("mkdir /sys/fs/cgroup/more && rmdir /sys/fs/cgroup/more")?;
    booted.halt()?;
    drop(enabled);
    Ok(())
}

/// Controllers that our cgroup passes on while a case runs, as a service manager's delegation does.
struct Controllers(Option<PathBuf>);

impl Controllers {
    fn pass_on(what: &str) -> Result<Self> {
        let path = PathBuf::from("/sys/fs/cgroup/cgroup.subtree_control");
        let before = fs::read_to_string(&path).context("looking at the controllers")?;
        if before.split_whitespace().any(|name| what.trim_start_matches('+') == name) {
            return Ok(Self(None));
        }
        fs::write(&path, what).with_context(|| format!("passing on {what}"))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Another case would find a controller more; none depends on that.
            let _ = fs::write(path, "-pids");
        }
    }
}
