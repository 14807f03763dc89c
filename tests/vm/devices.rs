//! Which devices a container can open, and the cgroup that decides it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::guest::Guest;
use harness::guest::observe::entries;
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};

cases![
    a_made_node_of_a_disk_cannot_be_opened,
    made_nodes_of_what_is_the_hosts_cannot_be_opened,
    devices_that_are_there_can_be_opened: [Need::Module("fuse"), Need::Module("tun")],
    a_disk_that_is_bound_can_be_opened,
    a_container_has_a_cgroup_of_its_own,
    the_next_start_removes_a_killed_ones_cgroup,
    without_cgroups_no_nodes_are_made_unless_asked_for,
    without_a_device_program_no_nodes_are_made_unless_asked_for,
];

/// A disk of the guest: its name and numbers. Reading it needs a driver behind it, which an unused loop device lacks.
fn disk() -> Result<(String, String)> {
    let disks = entries(Path::new("/sys/block"))?;
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let disk = disks.iter().find(|disk| {
        name(disk).is_some_and(|name| name.starts_with("vd") || name.starts_with("sd"))
    });
    let disk = disk.context("the guest has no disk")?;
    let numbers = fs::read_to_string(disk.join("dev")).context("asking for its numbers")?;
    Ok((name(disk).context("a disk without a name")?, numbers.trim().replace(':', " ")))
}

/// R10, CAP-01: with CAP_MKNOD a node of any disk can be made; it must not open. systemd-nspawn without a scope fails
/// here (defect 9 of the security notes).
fn a_made_node_of_a_disk_cannot_be_opened(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let (_, numbers) = disk()?;
    t.container(&tree)
        .sh(&format!(
            "for dir in /dev /root /run; do
                 mknod $dir/disk b {numbers} || echo not made in $dir
                 (: < $dir/disk) 2>/dev/null && echo opened in $dir
             done
             mknod /dev/copy c 1 5 && head -c 1 /dev/copy | od -An -tx1 | tr -d ' '"
        ))?
        .prints("00")?;
    Ok(())
}

/// R10, CAP-01: the host's memory, ports, log, consoles and terminals, and a number that nobody has, as
/// Documentation/admin-guide/devices.txt numbers them. The driver is never asked, whatever else the container may do.
fn made_nodes_of_what_is_the_hosts_cannot_be_opened(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .arg("--capability=CAP_SYS_RAWIO,CAP_SYSLOG")
        .sh("for n in 1:1 1:2 1:4 1:11 1:12 4:0 4:1 4:64 5:1 5:3 10:237 10:250; do
                 mknod /dev/x c ${n%:*} ${n#*:} || echo $n was not made
                 for open in ': < /dev/x' ': > /dev/x'; do
                     said=$(sh -c \"$open\" 2>&1)
                     case $said in *'not permitted') ;; *) echo $n with $open: $said ;; esac
                 done
                 rm /dev/x
             done; echo done")?
        .prints("done")?;
    Ok(())
}

/// M-06, R10: what the container was given works.
fn devices_that_are_there_can_be_opened(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("for n in null zero full random urandom ptmx net/tun fuse; do
                 [ -c /dev/$n ] && (exec 3<>/dev/$n) && echo $n
             done")?
        .prints("null\nzero\nfull\nrandom\nurandom\nptmx\nnet/tun\nfuse")?;
    Ok(())
}

/// P-03: what the user hands over by name works, though nothing else of its kind does.
fn a_disk_that_is_bound_can_be_opened(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let (name, _) = disk()?;
    let run = t.container(&tree).arg(format!("--bind=/dev/{name}:/dev/disk"));
    run.sh("head -c 512 /dev/disk | wc -c | tr -d ' '")?.prints("512")?;
    Ok(())
}

/// P-04, ORD-03: the payload is in it from the start; the leftovers check of the suite sees whether it goes away.
fn a_container_has_a_cgroup_of_its_own(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t.container(&tree).start("cat /proc/self/cgroup; exec sleep 1000")?;
    ensure!(running.next_line()? == "0::/", "the payload sees more than its own cgroup");
    let payload = running.payload()?[0];
    let seen =
        fs::read_to_string(format!("/proc/{payload}/cgroup")).context("asking its cgroup")?;
    let launcher = fs::read_to_string("/proc/self/cgroup").context("asking our cgroup")?;
    ensure!(seen.contains("/rspawn.") && seen != launcher, "{seen}");
    running.signal(rustix::process::Signal::TERM)?;
    running.end()?.exits(1)?;
    Ok(())
}

/// R8: a cgroup of a killed run is empty and unlocked, and the next start takes it away.
fn the_next_start_removes_a_killed_ones_cgroup(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t.container(&tree).start("echo up; exec sleep 1000")?;
    running.next_line()?;
    let payload = running.payload()?[0];
    let text =
        fs::read_to_string(format!("/proc/{payload}/cgroup")).context("asking its cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup")?;
    let path = Path::new("/sys/fs/cgroup").join(path);
    ensure!(path.is_dir(), "{} is not there", path.display());
    let ended = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(i32::try_from(payload)?).context("no number")?,
        rustix::process::PidfdFlags::empty(),
    )?;
    running.signal(rustix::process::Signal::KILL)?;
    running.end()?;
    let mut wait = [rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut wait, None).context("waiting for the payload's end")?;
    ensure!(path.is_dir(), "nothing was left, so nothing is tested");
    t.container(&tree).sh("true")?.succeeds()?;
    ensure!(!path.exists(), "{} is still there", path.display());
    Ok(())
}

const MAKE: &str = "mknod /dev/copy c 1 5 2>/dev/null && echo made || echo refused";

/// R10: where no device program can be hung, CAP_MKNOD is not kept, unless the user asks for it (CLI-21).
fn without_cgroups_no_nodes_are_made_unless_asked_for(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let hide = "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"";
    let hidden = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    t.container(&tree).through(&hidden).sh(MAKE)?.prints("refused")?;
    let asked = t.container(&tree).through(&hidden).arg("--capability=CAP_MKNOD");
    asked.sh(MAKE)?.prints("made")?;
    Ok(())
}

/// R10: the cgroup alone guards nothing. A filter of ours refuses bpf(2), as a security module or another container may.
fn without_a_device_program_no_nodes_are_made_unless_asked_for(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).sh(MAKE)?.prints("made")?;
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).context("making a filter")?;
    filter.set_ctl_nnp(false).context("keeping privileges")?;
    filter
        .add_rule(ScmpAction::Errno(libc::EPERM), ScmpSyscall::from_name("bpf")?)
        .context("refusing bpf(2)")?;
    filter.load().context("loading the filter")?;
    t.container(&tree).sh(MAKE)?.prints("refused")?;
    t.container(&tree).arg("--capability=CAP_MKNOD").sh(MAKE)?.prints("made")?;
    Ok(())
}
