//! What a payload may use up, and what it is told of the machine.

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::guest::{Guest, Subject};
use rustix::process::{Resource, getrlimit};

cases![
    limits_that_were_asked_for_are_set_exactly,
    a_limit_that_cannot_be_set_stops_the_start,
    more_than_is_permitted_is_as_much_as_can_be,
    times_can_have_units,
    the_oom_score_and_the_processors_can_be_chosen,
    a_processor_that_is_not_there_stops_the_start,
    the_personality_can_be_that_of_32_bits,
    a_personality_of_another_machine_is_named,
    a_private_network_has_lo_and_its_administrator,
    the_callers_own_limits_stay,
];

/// R-01; the last of two words about a resource counts.
fn limits_that_were_asked_for_are_set_exactly(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .args(["--rlimit=NOFILE=100:200", "--rlimit=CORE=1", "--rlimit=RLIMIT_CORE=4096:infinity"])
        .sh("ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc")?
        .prints("100\n200\n8\nunlimited")?;
    Ok(())
}

///
fn a_limit_that_cannot_be_set_stops_the_start(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for (limit, wrong) in [("NOSUCH=1", "NOSUCH"), ("NOFILE=2:1", "2:1"), ("NOFILE=x", "x")] {
        t.container(&tree).arg(format!("--rlimit={limit}")).sh("echo ran")?.fails_with(wrong)?;
    }
    Ok(())
}

/// no process may have so many descriptors (proc_sys_fs(5), nr_open).
fn more_than_is_permitted_is_as_much_as_can_be(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).arg("--rlimit=NOFILE=infinity").sh("ulimit -Hn")?;
    let most: u64 = run.succeeds()?.text().trim().parse().context("reading the limit")?;
    ensure!(most > 0, "it is {most}");
    let told = run.stderr.contains("RLIMIT_NOFILE") && run.stderr.contains(&most.to_string());
    ensure!(t.subject() == Subject::Nspawn || told, "it is not told\n{run}");
    Ok(())
}

/// R-01, systemd.time(7).
fn times_can_have_units(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .arg("--rlimit=CPU=1min:1h 30s")
        .sh("ulimit -St; ulimit -Ht")?
        .prints("60\n3630")?;
    Ok(())
}

///
fn the_oom_score_and_the_processors_can_be_chosen(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .args(["--oom-score-adjust=123", "--cpu-affinity=0"])
        .sh("cat /proc/self/oom_score_adj; grep Cpus_allowed_list /proc/self/status | tr -d '\\t'")?
        .prints("123\nCpus_allowed_list:0")?;
    for score in ["1001", "-1001", "x"] {
        let option = format!("--oom-score-adjust={score}");
        t.container(&tree).arg(option).sh("echo ran")?.fails_with(score)?;
    }
    Ok(())
}

///
fn a_processor_that_is_not_there_stops_the_start(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).arg("--cpu-affinity=1000").sh("echo ran")?.exits(1)?;
    Ok(())
}

/// NS-09.
fn the_personality_can_be_that_of_32_bits(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let native = t.container(&tree).arg("--personality=x86-64").sh("uname -m")?;
    native.prints("x86_64")?;
    t.container(&tree).arg("--personality=x86").sh("uname -m")?.prints("i686")?;
    Ok(())
}

/// NS-09, CLI-31.
fn a_personality_of_another_machine_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for name in ["sparc", "nonsense"] {
        let option = format!("--personality={name}");
        t.container(&tree).arg(option).sh("echo ran")?.fails_with(name)?;
    }
    Ok(())
}

/// NS-05, CAP-02, CLI-14. CAP_NET_ADMIN is 12 (capabilities(7)).
fn a_private_network_has_lo_and_its_administrator(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let container = t.container(&tree).arg("--private-network");
    let seen = container.observe()?;
    ensure!(seen.capabilities("CapBnd")? & 1 << 12 != 0, "no CAP_NET_ADMIN");
    // UP and LOOPBACK and RUNNING of netdevice(7), as sysfs shows them.
    container.sh("ls /sys/class/net; cat /sys/class/net/lo/flags")?.prints("lo\n0x9")?;
    let shared = t.container(&tree).observe()?;
    let never = [12, 14, 16, 17, 20, 25, 32, 33, 34, 35, 36];
    for number in never {
        let held = shared.capabilities("CapBnd")? & 1 << number != 0;
        ensure!(!held, "capability {number} with the host's network");
    }
    let dropped = container.arg("--drop-capability=CAP_NET_ADMIN").observe()?;
    ensure!(dropped.capabilities("CapBnd")? & 1 << 12 == 0, "CLI-21: dropping does not win");
    Ok(())
}

/// they are the payload's, not the launcher's.
fn the_callers_own_limits_stay(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t.container(&tree).arg("--rlimit=NOFILE=77:77").start("echo up; exec cat")?;
    running.next_line()?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", running.pid()))
        .context("reading the launcher's limits")?;
    let open = limits.lines().find(|line| line.starts_with("Max open files"));
    let ours =
        getrlimit(Resource::Nofile).current.map_or("unlimited".to_owned(), |n| n.to_string());
    let soft = open.and_then(|line| line.split_whitespace().nth(3));
    ensure!(soft == Some(ours.as_str()), "{open:?}, not {ours}");
    running.end()?.exits(0)?;
    Ok(())
}
