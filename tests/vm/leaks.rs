//! Nothing of whoever calls the launcher reaches the payload: everything that a process inherits is set to something
//! odd first, and looked at as a whole afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::tree::Tree;
use harness::guest::observe::{mounts_of, namespaces_of};
use harness::guest::{Guest, Subject};
use nix::unistd::{Gid, setgroups};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

cases![
    the_callers_descriptors_are_closed,
    the_callers_credentials_and_signals_are_not_inherited,
    the_callers_secure_bits_are_not_inherited: [Need::Only(Subject::Rspawn)],
    the_callers_limits_are_not_inherited,
    the_callers_session_is_not_shared,
    the_callers_keys_are_out_of_reach,
    no_mount_of_the_host_is_seen,
    nobody_looks_into_the_launcher_before_it_has_executed,
    a_descriptor_of_the_caller_is_no_way_to_a_directory,
    all_is_set_up_when_the_payload_starts,
];

/// Makes this process, which calls the launcher, an odd one.
fn become_odd() -> Result<()> {
    let groups: Vec<Gid> = (4000..4100).map(Gid::from_raw).collect();
    setgroups(&groups).context("joining groups")?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    for (resource, soft) in
        [(Resource::Core, 4096), (Resource::Nofile, 512), (Resource::Stack, 4 << 20)]
    {
        let limit = Rlimit { current: Some(soft), ..getrlimit(resource) };
        setrlimit(resource, limit).with_context(|| format!("limiting {resource:?}"))?;
    }
    let now = capabilities(None).context("asking for capabilities")?;
    // CAP_NET_RAW and CAP_SYS_TIME, inheritable and ambient.
    let inherited = CapabilitySet::NET_RAW | CapabilitySet::SYS_TIME;
    let inheritable = inherited & now.permitted;
    set_capabilities(None, CapabilitySets { inheritable, ..now })
        .context("making them inheritable")?;
    for capability in inheritable.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .context("making them ambient")?;
    }
    // A kernel without audit has no such file, and some do not let it be set twice.
    let _ = fs::write("/proc/self/loginuid", "1000");
    Ok(())
}

/// The launcher, called by such a process that has files open, and signals ignored and blocked.
fn odd_caller(t: &Guest, tree: &Tree) -> Result<Container> {
    become_odd()?;
    Ok(t.container(tree).caller_env("SECRET", "of the caller").through(&[
        "/bin/bash",
        "-c",
        "exec 3</etc/passwd 4</ 9</etc 30<>/dev/null; exec \"$@\"",
        "bash",
        "/usr/bin/env",
        "--ignore-signal=HUP",
        "--ignore-signal=USR1",
        "--ignore-signal=RTMIN",
        "--block-signal=USR2",
        "--block-signal=TERM",
    ]))
}

/// FDS-01, R6, CVE-2024-21626.
fn the_callers_descriptors_are_closed(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = odd_caller(t, &tree)?.observe()?;
    let numbers: Vec<u32> = seen.fds.keys().copied().collect();
    ensure!(numbers == [0, 1, 2], "descriptors {:?}", seen.fds);
    ensure!(seen.fds[&0] == "/dev/null", "{:?}", seen.fds);
    for number in [1, 2] {
        ensure!(seen.fds[&number].starts_with("pipe:"), "{:?}", seen.fds);
    }
    ensure!(seen.directory == "/", "it starts in {}", seen.directory);
    Ok(())
}

/// ENV-01, NS-04, NS-06, NS-07, R10, G-09, CVE-2014-8989, CVE-2022-24769. Needs a difference: with systemd-nspawn 252 the
/// inheritable set is the bounding set, and ambient capabilities of the caller stay.
fn the_callers_credentials_and_signals_are_not_inherited(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = odd_caller(t, &tree)?.observe()?;
    let none = "0000000000000000";
    let bounding = seen.status.get("CapBnd").context("no CapBnd")?.clone();
    for (field, expected) in [
        ("Uid", "0\t0\t0\t0"),
        ("Gid", "0\t0\t0\t0"),
        ("Groups", ""),
        ("Umask", "0022"),
        ("SigPnd", none),
        ("ShdPnd", none),
        ("SigBlk", none),
        ("SigIgn", none),
        ("CapInh", none),
        ("CapAmb", none),
        ("CapPrm", &bounding),
        ("CapEff", &bounding),
        ("NoNewPrivs", "0"),
        ("Seccomp", "2"),
        ("TracerPid", "0"),
        ("PPid", "0"),
    ] {
        let found = seen.status.get(field);
        // The suite's own binary lets a broken pipe be an error; a shell below tells what it was before.
        let found = if field == "SigIgn" { without_pipe(found) } else { found.cloned() };
        ensure!(found.as_deref() == Some(expected), "{field} is {found:?}, expected {expected:?}");
    }
    // CAP_SYS_TIME is 25 (capabilities(7)).
    ensure!(seen.capabilities("CapBnd")? & 1 << 25 == 0, "the bounding set is {bounding}");
    ensure!(!seen.environment.contains_key("SECRET"), "{:?}", seen.environment);
    Ok(())
}

/// Without SIGPIPE, which is 13: Rust's runtime ignores it in the probe itself.
fn without_pipe(mask: Option<&String>) -> Option<String> {
    let mask = u64::from_str_radix(mask?, 16).ok()?;
    Some(format!("{:016x}", mask & !(1 << 12)))
}

/// E-10: the kernel's boot defaults, all of them.
fn the_callers_limits_are_not_inherited(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = odd_caller(t, &tree)?.run(&["/bin/cat", "/proc/self/limits"])?;
    run.succeeds()?;
    let host = fs::read_to_string("/proc/1/limits").context("reading the limits of process 1")?;
    let of = |text: &str| -> BTreeMap<String, (String, String)> {
        // Fields are columns: 26 wide, then twice 21 (fs/proc/base.c of the kernel has those widths).
        let column =
            |line: &str, from, to| line.get(from..to).unwrap_or_default().trim().to_owned();
        let lines = text.lines().skip(1);
        lines
            .map(|line| (column(line, 0, 26), (column(line, 26, 47), column(line, 47, 68))))
            .collect()
    };
    let mut found = of(&run.text());
    let host = of(&host);
    // Scaled to the machine's memory; that of descriptors is capped by a sysctl.
    for name in ["Max processes", "Max pending signals"] {
        ensure!(found.remove(name).as_ref() == host.get(name), "{name}: {run}");
    }
    let open = found.remove("Max open files").context("no limit of descriptors")?;
    ensure!(open.0 == "1024", "descriptors: {open:?}");
    let unlimited = "unlimited";
    let expected: BTreeMap<String, (String, String)> = [
        ("Max cpu time", unlimited, unlimited),
        ("Max file size", unlimited, unlimited),
        ("Max data size", unlimited, unlimited),
        ("Max stack size", "8388608", unlimited),
        ("Max core file size", "0", unlimited),
        ("Max resident set", unlimited, unlimited),
        ("Max locked memory", "8388608", "8388608"),
        ("Max address space", unlimited, unlimited),
        ("Max file locks", unlimited, unlimited),
        ("Max msgqueue size", "819200", "819200"),
        ("Max nice priority", "0", "0"),
        ("Max realtime priority", "0", "0"),
        ("Max realtime timeout", unlimited, unlimited),
    ]
    .into_iter()
    .map(|(name, soft, hard)| (name.to_owned(), (soft.to_owned(), hard.to_owned())))
    .collect();
    ensure!(found == expected, "{run}");
    Ok(())
}

/// NS-06, capabilities(7): with noroot, root is nobody in particular.
fn the_callers_secure_bits_are_not_inherited(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let words = ["setpriv", "--securebits=+noroot", "--inh-caps=+all", "--ambient-caps=+all"];
    let seen = t.container(&tree).through(&words).observe()?;
    let (effective, bounding) = (seen.capabilities("CapEff")?, seen.capabilities("CapBnd")?);
    ensure!(effective == bounding && bounding != 0, "{effective:016x} of {bounding:016x}");
    Ok(())
}

/// NS-02, NS-03: a session of its own without a terminal, and no login.
fn the_callers_session_is_not_shared(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "read -r pid name state parent group session tty rest < /proc/1/stat
         echo $pid $parent $group $session $tty; cat /proc/self/loginuid 2>/dev/null; echo
         echo > /dev/tty";
    let run = odd_caller(t, &tree)?.sh(script)?;
    run.exits(1)?;
    let text = run.text();
    let mut lines = text.lines();
    ensure!(lines.next() == Some("1 0 1 1 0"), "another session, or a terminal\n{run}");
    let login = lines.next().unwrap_or_default();
    ensure!(["", "4294967295"].contains(&login), "a login\n{run}");
    Ok(())
}

/// E-10: a keyring of its own. Who may unmount what covers /proc/keys sees it.
fn the_callers_keys_are_out_of_reach(t: &Guest) -> Result<()> {
    let Ok(before) = fs::read_to_string("/proc/keys") else {
        // A kernel without keys has none that could be reached.
        return Ok(());
    };
    let tree = t.tree().build()?;
    let run = t.container(&tree).sh("umount /proc/keys; cat /proc/keys")?;
    run.succeeds()?;
    let sessions = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| line.contains("keyring") && line.contains("_ses: "));
        lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
    };
    let new: Vec<String> = sessions(&run.text()).difference(&sessions(&before)).cloned().collect();
    ensure!(!new.is_empty(), "no session keyring of its own\n{run}\nbefore:\n{before}");
    Ok(())
}

/// PIV-07, R4, R5: all of them, by place and kind; none is of the host's peer groups, so nothing that the host mounts
/// later shows up either. Needs a difference: with systemd-nspawn 252 /run/host/os-release can be written to.
fn no_mount_of_the_host_is_seen(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let host = mounts_of("self")?;
    let groups: BTreeSet<&String> = host
        .iter()
        .flat_map(|mount| &mount.propagation)
        .filter(|word| word.starts_with("shared:"))
        .collect();
    let seen = odd_caller(t, &tree)?.observe()?;
    let roots = seen.mounts.iter().filter(|mount| mount.on == "/").count();
    ensure!(roots == 1, "{roots} mounts on /");
    // Files of the host that a container is meant to read, and the tunnel of `machinectl bind` (T-01, T-02, T-06).
    let meant =
        ["/run/host/os-release", "/etc/localtime", "/etc/resolv.conf", "/run/host/incoming"];
    for mount in seen.mounts.iter().filter(|mount| !meant.contains(&mount.on.as_str())) {
        let kinds: &[&str] = match mount.on.split('/').nth(1).unwrap_or_default() {
            "proc" => &["proc", "tmpfs"],
            "sys" => &["sysfs", "cgroup2", "tmpfs", "selinuxfs", "cgroup"],
            "dev" => &["tmpfs", "devpts", "mqueue", "hugetlbfs"],
            "run" => &["tmpfs", "ramfs", "proc"],
            "tmp" => &["tmpfs"],
            _ => &[],
        };
        let known = mount.on == "/" || kinds.contains(&mount.fs.as_str());
        ensure!(known, "{} on {}", mount.fs, mount.on);
        for word in &mount.propagation {
            let group = word.replace("master:", "shared:");
            ensure!(!groups.contains(&group), "{} hears of {group} of the host", mount.on);
        }
    }
    for mount in seen.mounts.iter().filter(|mount| meant.contains(&mount.on.as_str())) {
        ensure!(mount.has("ro"), "{} can be written to", mount.on);
    }
    Ok(())
}

/// CVE-2016-9962: the tree's getent runs while process 1 is still the launcher, as root, in the same namespaces.
fn nobody_looks_into_the_launcher_before_it_has_executed(t: &Guest) -> Result<()> {
    if t.subject() == Subject::Nspawn {
        // Its getent has all capabilities of the host.
        return Ok(());
    }
    let getent = "case $1 in passwd) echo u:x:7:7::/: ;; *) echo u; exec > /tmp/seen 2>&1
         for name in exe cwd root fd/0 fd/1 fd/3 fd/4 fd/5; do readlink /proc/1/$name && echo \"$name is seen\"; done
         for name in environ maps mem; do cat /proc/1/$name && echo \"$name is seen\"; done
         echo looked ;; esac";
    let tree = t.tree().script("usr/bin/getent", getent).build()?;
    let run = odd_caller(t, &tree)?.arg("-uu").sh("cat /tmp/seen")?;
    run.succeeds()?;
    let text = run.text();
    ensure!(text.contains("looked") && !text.contains("seen"), "{run}");
    Ok(())
}

/// CVE-2024-21626: /proc/self/fd/N of a directory that the caller has open. Needs a difference: systemd-nspawn 252 takes
/// it (defect 6).
fn a_descriptor_of_the_caller_is_no_way_to_a_directory(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    become_odd()?;
    for number in 3..=12 {
        let run = t
            .container(&tree)
            .through(&["/bin/bash", "-c", "exec 3</ 4</ 5</ 9</ 12</; exec \"$@\"", "bash"])
            .arg(format!("--chdir=/proc/self/fd/{number}"))
            .sh("echo in $(pwd)")?;
        run.fails_with("--chdir")?;
    }
    // What is handed over to the container is open there.
    let hand_over = "export LISTEN_FDS=1 LISTEN_PID=$$; exec 3</etc; exec \"$@\"";
    let container = t.container(&tree).through(&["/bin/bash", "-c", hand_over, "bash"]);
    let run = container.arg("--chdir=/proc/self/fd/3").sh("echo in $(pwd)")?;
    run.fails_with("the working directory is not in the container")?;
    Ok(())
}

/// ORD-01, F-06, NS-01: the namespaces of both children, and the last steps of each, seen by the first thing that runs.
fn all_is_set_up_when_the_payload_starts(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let ours = namespaces_of("self")?;
    let container = t.container(&tree).args(["-Mready", "--private-network"]);
    let seen = container.observe()?;
    for (kind, namespace) in &seen.namespaces {
        let shared = ["user", "time", "time_for_children"].contains(&kind.as_str());
        let same = ours.get(kind) == Some(namespace);
        ensure!(shared == same, "{kind}: {namespace}, the launcher's is {:?}", ours.get(kind));
    }
    ensure!(seen.hostname == "ready" && seen.pid == 1 && seen.directory == "/", "{seen:?}");
    for (place, kind) in
        [("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/proc", "proc"), ("/run", "tmpfs")]
    {
        ensure!(seen.mount(place)?.fs == kind, "{place}: {:?}", seen.mount(place)?);
    }
    let script =
        "cat /sys/class/net/lo/flags; [ -c /dev/null ] && [ -s /run/host/container-uuid ] && umask";
    container.sh(script)?.prints("0x9\n0022")?;
    Ok(())
}
