//! The file systems and device nodes that every container gets.

use std::path::Path;

use anyhow::{Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::guest::{Guest, Subject};
use rustix::fs::{CWD, FileType, Mode, makedev};

cases![
    api_file_systems_have_their_types_and_flags,
    memory_is_not_for_one_container_alone,
    nothing_runs_from_dev: [Need::Only(Subject::Rspawn)],
    the_kernels_settings_cannot_be_written,
    files_of_the_kernel_that_tell_too_much_are_masked,
    directories_of_the_kernel_can_only_be_looked_at,
    cgroups_cannot_be_written,
    nothing_is_shared_with_the_host,
    what_is_mounted_spreads_inside,
    device_nodes_are_these_and_work,
    devices_are_found_by_their_numbers,
    devices_that_cannot_be_made_are_the_hosts,
    devices_without_a_driver_are_left_out,
    standard_links_are_in_dev,
    terminals_can_be_opened,
    every_boot_has_an_id_of_its_own,
    a_private_network_shows_a_part_of_sysfs,
    a_private_network_can_be_set_up_inside,
    the_kernels_settings_can_be_made_writable,
    what_can_be_written_is_explained: [Need::Only(Subject::Rspawn)],
    tmp_can_be_the_trees_own,
    what_is_mounted_in_the_tree_is_mounted_over,
    a_covered_proc_of_the_host_is_explained: [Need::Only(Subject::Rspawn)],
];

/// MNT-01, 03…05, 07, 08 and DEV's devpts (MNT-06): place, type, flags that must be there.
const API: &[(&str, &str, &[&str])] = &[
    ("/proc", "proc", &["rw", "nosuid", "nodev", "noexec"]),
    ("/proc/sys", "proc", &["ro", "nosuid", "nodev", "noexec"]),
    ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
    ("/dev", "tmpfs", &["rw", "nosuid"]),
    ("/dev/pts", "devpts", &["rw", "nosuid", "noexec", "gid=5", "mode=620", "ptmxmode=666"]),
    ("/dev/mqueue", "mqueue", &["rw", "nosuid", "nodev", "noexec"]),
    ("/dev/shm", "tmpfs", &["rw", "nosuid", "nodev"]),
    ("/run", "tmpfs", &["rw", "nosuid", "nodev"]),
    ("/tmp", "tmpfs", &["rw", "nosuid", "nodev"]),
    ("/proc/fs", "proc", &["ro"]),
    ("/proc/irq", "proc", &["ro"]),
];

fn api_file_systems_have_their_types_and_flags(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t.container(&tree).observe()?;
    for (on, fs, flags) in API {
        let mount = seen.mount(on)?;
        ensure!(mount.fs == *fs, "{on} is a {}", mount.fs);
        for flag in *flags {
            // `ro` and `rw` of the file system as a whole say nothing of the mount.
            let there = match *flag {
                "ro" | "rw" => mount.options.contains(*flag),
                flag => mount.has(flag),
            };
            ensure!(there, "{on} lacks {flag}: {mount:?}");
        }
    }
    Ok(())
}

/// M-05: shares of the memory, but for /dev, in which there is no room for files.
fn memory_is_not_for_one_container_alone(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "all=$(busybox sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
                  for row in /tmp:10 /dev/shm:10 /run:20; do
                      kib=$(($(stat -f -c '%b * %S / 1024' ${row%:*})))
                      share=$((kib * 100 / all))
                      [ $share -ge $((${row#*:} - 1)) ] && [ $share -le ${row#*:} ] || echo ${row%:*}: $share
                  done; echo $(($(stat -f -c '%b * %S / 1024' /dev)))";
    t.container(&tree).sh(script)?.prints("4096")?;
    Ok(())
}

/// Newer than systemd-nspawn 252, which lets programs run there.
fn nothing_runs_from_dev(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "cp /bin/busybox /dev/sh; /dev/sh true 2>/dev/null && echo ran; echo done";
    t.container(&tree).sh(script)?.prints("done")?;
    Ok(())
}

/// MNT-02, MNT-03.
fn the_kernels_settings_cannot_be_written(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("for f in /proc/sys/kernel/panic /proc/sys/vm/swappiness /proc/sysrq-trigger /sys/power/state; do
                 [ ! -e $f ] || ! sh -c \"echo 0 > $f\" 2>/dev/null || echo writable $f
             done; echo done")?
        .prints("done")?;
    Ok(())
}

/// S-06. sysrq-trigger can only be written, and must not be.
fn files_of_the_kernel_that_tell_too_much_are_masked(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("for f in kallsyms kcore keys timer_list; do
                 [ ! -e /proc/$f ] || [ -z \"$(head -c 1 /proc/$f 2>/dev/null)\" ] || echo readable $f
             done
             (echo h > /proc/sysrq-trigger) 2>/dev/null && echo writable
             echo done")?
        .prints("done")?;
    Ok(())
}

/// S-06: with the devices of the host's buses among them. A machine has some of these.
fn directories_of_the_kernel_can_only_be_looked_at(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("for f in sys acpi apm asound bus fs irq scsi; do
                 [ ! -d /proc/$f ] || grep -q \"^proc /proc/$f proc ro,\" /proc/mounts || echo writable $f
             done
             [ -d /proc/bus ] && echo done")?
        .prints("done")?;
    Ok(())
}

/// runc CVE-2023-25809, kernel CVE-2022-0492.
fn cgroups_cannot_be_written(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("if [ -e /sys/fs/cgroup ] && mkdir /sys/fs/cgroup/new 2>/dev/null; then echo writable; fi; echo done")?
        .prints("done")?;
    Ok(())
}

/// NS-02: what the container mounts never shows on the host. The host's own mounts are shared in a guest.
fn nothing_is_shared_with_the_host(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let host: Vec<String> = harness::guest::observe::mounts_of("self")?
        .into_iter()
        .flat_map(|mount| mount.propagation)
        .filter_map(|word| word.strip_prefix("shared:").map(str::to_owned))
        .collect();
    for mount in t.container(&tree).observe()?.mounts {
        for word in &mount.propagation {
            let peer = word.strip_prefix("shared:");
            ensure!(
                !peer.is_some_and(|group| host.iter().any(|known| known == group)),
                "{} is a peer of a mount of the host",
                mount.on
            );
        }
    }
    Ok(())
}

/// As on a machine that systemd booted: a mount reaches the mount namespaces that were made before.
fn what_is_mounted_spreads_inside(t: &Guest) -> Result<()> {
    let tree = t.tree().dir("place").build()?;
    let script = "busybox mkfifo /tmp/up /tmp/mounted
                  busybox unshare -m --propagation slave sh -c \
                      'echo > /tmp/up; read line < /tmp/mounted; [ -e /place/file ] && echo seen' &
                  read line < /tmp/up
                  mount -t tmpfs none /place && touch /place/file
                  echo > /tmp/mounted; wait";
    t.container(&tree).sh(script)?.prints("seen")?;
    Ok(())
}

/// DEV-01, M-06: numbers of Documentation/admin-guide/devices.txt.
fn device_nodes_are_these_and_work(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("cd /dev; stat -c '%n %F %t,%T %a' null zero full random urandom tty")?
        .prints(
        "null character special file 1,3 666\n\
             zero character special file 1,5 666\n\
             full character special file 1,7 666\n\
             random character special file 1,8 666\n\
             urandom character special file 1,9 666\n\
             tty character special file 5,0 666",
    )?;
    t.container(&tree)
        .sh("echo x > /dev/null && head -c 2 /dev/zero | od -An -tx1 | tr -d ' ' && head -c 4 /dev/urandom | wc -c
             ! echo x 2>/dev/null > /dev/full && find /dev -type b && ls /dev | grep -x -e kmsg -e mem -e 'sd.*' -e 'vd.*'
             echo done")?
        .prints("0000\n4\ndone")?;
    Ok(())
}

/// M-06: by number too, as udev makes them on a machine.
fn devices_are_found_by_their_numbers(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("cd /dev/char; for n in 1:3 1:5 1:7 1:8 1:9 5:0; do echo $n $(readlink $n); [ -c $n ] || echo dangling; done")?
        .prints("1:3 ../null\n1:5 ../zero\n1:7 ../full\n1:8 ../random\n1:9 ../urandom\n5:0 ../tty")?;
    Ok(())
}

/// DEV-02, DEV-03.
fn standard_links_are_in_dev(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("cd /dev; for l in ptmx fd stdin stdout stderr; do echo $l $(readlink $l); done")?
        .prints(
            "ptmx pts/ptmx\nfd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2",
        )?;
    Ok(())
}

/// DEV-02, MNT-06: a new instance of devpts, whose first terminal is not the host's.
fn terminals_can_be_opened(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).sh("exec 3<>/dev/ptmx && ls /dev/pts")?.prints("0\nptmx")?;
    Ok(())
}

/// DEV-07.
fn every_boot_has_an_id_of_its_own(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let read = || -> Result<String> {
        let run = t.container(&tree).sh("cat /proc/sys/kernel/random/boot_id")?;
        run.succeeds()?;
        Ok(run.text())
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let (first, second) = (read()?, read()?);
    ensure!(first.trim().len() == 36, "a boot id of an odd form: {first}");
    ensure!(first != host && second != host && first != second, "{host}{first}{second}");
    Ok(())
}

/// S-06, M-05, MNT-04: a new sysfs that shows the container's own interfaces, without what is the host's business.
fn a_private_network_shows_a_part_of_sysfs(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let container = t.container(&tree).arg("--private-network");
    container
        .sh("ls /sys /sys/class/net /sys/fs; stat -c %a /sys; mkdir /sys/x 2>/dev/null || echo refused")?
        .prints("/sys:\nblock\nbus\nclass\ndev\ndevices\nfs\nkernel\n\n/sys/class/net:\nlo\n\n/sys/fs:\ncgroup\nselinux\n555\nrefused")?;
    let seen = container.observe()?;
    let (sys, part) = (seen.mount("/sys")?, seen.mount("/sys/class")?);
    ensure!(sys.fs == "tmpfs" && sys.options.contains("ro"), "{sys:?}");
    for flag in ["nosuid", "nodev", "noexec"] {
        ensure!(sys.has(flag) && part.has(flag), "no {flag}: {sys:?}, {part:?}");
    }
    ensure!(part.fs == "sysfs" && part.options.contains("ro"), "{part:?}");
    let whole = seen.mounts.iter().filter(|mount| mount.on == "/sys").count();
    ensure!(whole == 1, "the whole is still there, below the part");
    Ok(())
}

/// S-06: /proc/sys/net is the container's then, and nothing else is.
fn a_private_network_can_be_set_up_inside(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "(echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null && echo written
        (cat /proc/sys/vm/swappiness > /proc/sys/vm/swappiness) 2>/dev/null || echo refused";
    let host = std::fs::read("/proc/sys/net/ipv4/ip_forward")?;
    t.container(&tree).arg("--private-network").sh(script)?.prints("written\nrefused")?;
    t.container(&tree).sh(script)?.prints("refused")?;
    ensure!(std::fs::read("/proc/sys/net/ipv4/ip_forward")? == host, "the host's has changed");
    Ok(())
}

/// F-05, S-06: SYSTEMD_NSPAWN_API_VFS_WRITABLE. Writing what is there already changes nothing.
fn the_kernels_settings_can_be_made_writable(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "for f in /proc/sys/vm/swappiness /proc/sys/net/core/somaxconn; do
            (cat $f > $f) 2>/dev/null && echo $f; done
        grep -q ' /sys sysfs rw' /proc/mounts && echo /sys; true";
    for (value, network, expected) in [
        ("no", "", ""),
        ("0", "--private-network", "/proc/sys/net/core/somaxconn"),
        ("network", "", "/proc/sys/net/core/somaxconn"),
        ("yes", "", "/proc/sys/vm/swappiness\n/proc/sys/net/core/somaxconn\n/sys"),
    ] {
        let container = t.container(&tree).caller_env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", value);
        let container = if network.is_empty() { container } else { container.arg(network) };
        container.sh(script)?.prints(expected)?;
    }
    t.container(&tree)
        .caller_env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "maybe")
        .sh("true")?
        .fails_with("SYSTEMD_NSPAWN_API_VFS_WRITABLE")?;
    Ok(())
}

/// F-05: `--explain` shows it; systemd-nspawn has no such option.
fn what_can_be_written_is_explained(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t
        .container(&tree)
        .caller_env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
        .caller_env("SYSTEMD_NSPAWN_TMPFS_TMP", "0")
        .arg("--explain")
        .sh("true")?;
    run.succeeds()?;
    let text = run.text();
    ensure!(text.contains("/proc/sys/net") && !text.contains("/tmp  "), "{run}");
    Ok(())
}

/// F-05: SYSTEMD_NSPAWN_TMPFS_TMP.
fn tmp_can_be_the_trees_own(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = |value| t.container(&tree).caller_env("SYSTEMD_NSPAWN_TMPFS_TMP", value);
    container("0").sh("echo > /tmp/kept")?.succeeds()?;
    ensure!(tree.path().join("tmp/kept").exists(), "it went to a tmpfs");
    container("1").sh("ls /tmp")?.prints("")?;
    container("maybe").sh("true")?.fails_with("SYSTEMD_NSPAWN_TMPFS_TMP")?;
    Ok(())
}

/// MNT-20, systemd#5436: a tree prepared for chroot(8) has the host's /proc, /sys and /dev mounted in it. They are
/// covered, so the container has its own, and the host keeps what it mounted.
fn what_is_mounted_in_the_tree_is_mounted_over(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let place = |name: &str| tree.path().join(name).display().to_string();
    for (name, words) in [
        ("proc", vec!["-t", "proc", "proc"]),
        ("sys", vec!["-t", "sysfs", "sysfs"]),
        ("dev", vec!["--bind", "/dev"]),
        ("run", vec!["-t", "tmpfs", "tmpfs"]),
    ] {
        let done = std::process::Command::new("mount").args(words).arg(place(name)).status()?;
        ensure!(done.success(), "mounting {name} in the tree: {done}");
    }
    let check = || -> Result<()> {
        t.container(&tree)
            .sh("echo $$; ls /dev | grep -x -e kmsg -e mem -e vda; touch /run/x /dev/x; ls /run")?
            .prints("1\nhost\nx")?;
        ensure!(!std::path::Path::new("/dev/x").exists(), "the host's /dev was written to");
        Ok(())
    };
    let result = check();
    for name in ["proc", "sys", "dev", "run"] {
        let done = std::process::Command::new("umount").arg("-l").arg(place(name)).status()?;
        ensure!(done.success(), "unmounting {name} of the tree: {done}");
    }
    result
}

/// M-06: where nobody can make devices, as in most containers. The container's own right to make some is gone then.
fn devices_that_cannot_be_made_are_the_hosts(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .through(&["setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod", "--"])
        .arg("--drop-capability=CAP_MKNOD")
        .sh("cd /dev; stat -c '%n %F' null zero tty; grep -c ' /dev/null ' /proc/mounts
             echo x > null && head -c 2 zero | wc -c; readlink char/1:3")?
        .prints(
            "null character special file\nzero character special file\ntty character special file\n\
             1\n2\n../null",
        )?;
    Ok(())
}

/// M-06: net/tun and fuse are there only if they can be opened. A node without a driver behind it takes the place of one.
fn devices_without_a_driver_are_left_out(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let dead = t.scratch().join("dead");
    let mode = Mode::from_raw_mode(0o666);
    // 10,250 is nobody's (Linux, Documentation/admin-guide/devices.txt).
    rustix::fs::mknodat(CWD, &dead, FileType::CharacterDevice, mode, makedev(10, 250))?;
    let tun = Path::new("/dev/net/tun");
    if !tun.exists() {
        std::fs::create_dir_all("/dev/net")?;
        rustix::fs::mknodat(CWD, tun, FileType::CharacterDevice, mode, makedev(10, 200))?;
    }
    let cover = format!("mount --bind {} /dev/net/tun && exec \"$0\" \"$@\"", dead.display());
    t.container(&tree)
        .through(&["unshare", "--mount", "sh", "-c", &cover])
        .sh("ls -d /dev/null /dev/net/tun /dev/char/10:200 2>/dev/null; true")?
        .prints("/dev/null")?;
    Ok(std::fs::remove_file(dead)?)
}

/// Containers in containers: the kernel makes no new procfs for a user namespace that only sees a covered one, and
/// the error says so.
fn a_covered_proc_of_the_host_is_explained(t: &Guest) -> Result<()> {
    // What is mounted there already when the user namespace is made cannot be taken off in it.
    const COVERED: &str = "mount -t tmpfs cover /proc/tty
        exec unshare --user sh -c 'echo $$; read it; exec unshare --mount \"$@\"' sh \"$@\"";
    let tree = t.tree().build()?;
    let mut running = t
        .container(&tree)
        .through(&["unshare", "--mount", "sh", "-c", COVERED, "sh"])
        .start("echo ran")?;
    let pid = running.next_line()?;
    // All ids are the host's, so that only the procfs is in the way.
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{map}"), "0 0 65536")?;
    }
    let run = running.end()?;
    run.exits(1)?;
    for words in ["mounting proc on /proc", "hint: in a user namespace"] {
        ensure!(run.stderr.contains(words), "{run}");
    }
    Ok(())
}
