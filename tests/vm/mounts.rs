//! The file systems and device nodes that every container gets.

use anyhow::{Result, ensure};
use harness::cases;
use harness::guest::Guest;

cases![
    api_file_systems_have_their_types_and_flags,
    the_kernels_settings_cannot_be_written,
    files_of_the_kernel_that_tell_too_much_are_masked,
    cgroups_cannot_be_written,
    nothing_is_shared_with_the_host,
    device_nodes_are_these_and_work,
    standard_links_are_in_dev,
    terminals_can_be_opened,
    every_boot_has_an_id_of_its_own,
];

/// MNT-01, 03…05, 07, 08 and DEV's devpts (MNT-06): place, type, flags that must be there.
const API: &[(&str, &str, &[&str])] = &[
    ("/proc", "proc", &["rw", "nosuid", "nodev", "noexec"]),
    ("/proc/sys", "proc", &["ro", "nosuid", "nodev", "noexec"]),
    ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
    ("/dev", "tmpfs", &["rw", "nosuid"]),
    ("/dev/pts", "devpts", &["rw", "nosuid", "noexec", "gid=5", "mode=620", "ptmxmode=666"]),
    ("/dev/shm", "tmpfs", &["rw", "nosuid", "nodev"]),
    ("/run", "tmpfs", &["rw", "nosuid", "nodev"]),
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
