//! Containers of an ordinary user: what works, what is refused and how, and that nothing is left.
//!
//! The user is www-data, who has no right on the host but its own files. Subordinate ids are given by the case, in a
//! mount namespace of its own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

use crate::cleanup::kill_with_payload;

const OURS: Need = Need::Only(Subject::Rspawn);
/// Overlays in user namespaces.
const OVERLAYS: Need = Need::Kernel(5, 11);

cases![
    a_user_gets_a_shell_in_a_debian_tree: [OURS],
    a_user_runs_a_debian_tree_without_changing_it: [OURS, OVERLAYS],
    a_users_tree_can_be_thrown_away_on_every_kernel: [OURS],
    what_a_user_writes_is_the_users: [OURS],
    a_users_own_settings_are_trusted: [OURS],
    a_user_with_subordinate_ids_has_other_users_inside: [OURS, Need::Tool("newuidmap")],
    without_subordinate_ids_root_is_alone: [OURS, Need::Tool("newuidmap")],
    what_takes_root_is_refused_with_what_to_do: [OURS],
    a_machine_without_user_namespaces_for_users_is_explained: [OURS],
    devices_and_file_systems_of_a_user_work: [OURS],
    a_user_has_no_rights_over_the_host: [OURS],
    nothing_of_a_users_run_is_left: [OURS, OVERLAYS],
    kill_9_of_a_users_launcher_kills_the_payload: [OURS],
    a_tree_in_use_by_the_user_is_refused: [OURS],
];

/// www-data of base-passwd.
const USER: u32 = 33;
/// The first subordinate id that a case gives it.
const SUBORDINATE: u32 = 300_000;

/// Runs a container as the user, with what `script` does before as root in a mount namespace of its own.
fn as_user_after(container: &Container, script: &str) -> Container {
    let user = format!("exec setpriv --reuid={USER} --regid={USER} --clear-groups \"$@\"");
    let script = format!("{script} {user}");
    container.clone().through(&["unshare", "--mount", "sh", "-c", &script, "sh"])
}

fn as_user(container: &Container) -> Container {
    as_user_after(container, "")
}

/// As [`as_user`], with subordinate ids; `file` holds what /etc/subuid and /etc/subgid say.
fn with_subordinate_ids(container: &Container, file: &Path) -> Result<Container> {
    let text = format!("www-data:{SUBORDINATE}:65536\n");
    std::fs::write(file, text).context("giving subordinate ids")?;
    let bind = |to: &str| format!("mount --bind {} {to} &&", file.display());
    Ok(as_user_after(container, &format!("{} {}", bind("/etc/subuid"), bind("/etc/subgid"))))
}

/// A tree that belongs to the user, in a place where the user can make things.
fn of_user(t: &Guest, builder: Builder) -> Result<Tree> {
    let tree = builder.build()?;
    std::os::unix::fs::chown(t.scratch(), Some(USER), Some(USER)).context("giving the place")?;
    let done = std::process::Command::new("chown")
        .args(["-R", "-h", &format!("{USER}:{USER}")])
        .arg(tree.path())
        .status()
        .context("giving the tree to the user")?;
    ensure!(done.success(), "chown ended with {done}");
    Ok(tree)
}

/// A directory that shows the guest's own root, which is a Debian system of root's.
fn debian(t: &Guest, options: &[&str]) -> Result<Container> {
    let at = t.scratch().join("debian");
    std::fs::create_dir_all(&at).context("making a place for the tree")?;
    let container = options.iter().fold(t.container_at(&at), Container::arg);
    Ok(as_user_after(&container, &format!("mount --bind / {} &&", at.display())))
}

/// Issue 5, without root.
fn a_user_gets_a_shell_in_a_debian_tree(t: &Guest) -> Result<()> {
    let shell = debian(t, &["--read-only"])?;
    let script = "id -u; test -e /etc/debian_version && echo debian; apt-get --version | head -1 | cut -d' ' -f1
        cat /proc/self/uid_map | tr -s ' '; touch /usr/x 2>/dev/null || echo kept";
    let run = shell.run(&["/bin/bash", "-c", script])?;
    run.prints(&format!("0\ndebian\napt\n 0 {USER} 1\nkept"))?;
    std::fs::remove_dir(t.scratch().join("debian")).context("tidying")
}

/// G-10, issue 5, SNP-01: another one's tree, over which the user has no right but to read it.
fn a_user_runs_a_debian_tree_without_changing_it(t: &Guest) -> Result<()> {
    let layer = debian(t, &["--ephemeral", "--ephemeral-dir=/tmp"])?;
    let script = "echo new > /new && cat /new; apt-get --version | head -1 | cut -d' ' -f1; rm -f /new; ls /new 2>/dev/null; true";
    layer.sh(script)?.prints("new\napt")?;
    ensure!(!Path::new("/new").exists(), "the tree was changed");
    std::fs::remove_dir(t.scratch().join("debian")).context("tidying")
}

/// Issue 5, SNP-01: before Linux 5.11 no user namespace has overlays, and a copy takes their place.
fn a_users_tree_can_be_thrown_away_on_every_kernel(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree())?;
    let before = tree.listing()?;
    as_user(&t.container(&tree).arg("-x")).sh("touch /new && echo ran")?.prints("ran")?;
    tree.listing()?.same_as(&before)
}

fn what_a_user_writes_is_the_users(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree())?;
    let run = as_user(&t.container(&tree)).sh("touch /mine && stat -c %u:%g /mine /")?;
    run.prints("0:0\n0:0")?;
    let meta = tree.path().join("mine").metadata().context("looking for the file")?;
    ensure!((meta.uid(), meta.gid()) == (USER, USER), "it is {}:{}'s", meta.uid(), meta.gid());
    Ok(())
}

/// G-03: below the user's configuration first, then below what goes with the session.
fn a_users_own_settings_are_trusted(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree().name("mine"))?;
    let place = |name: &str, limit: u32| -> Result<(Tree, String)> {
        let text = format!("[Exec]\nEnvironment=A={name}\nLimitNOFILE={limit}\n");
        let place =
            Builder::empty(t.scratch()).name(name).file("systemd/nspawn/mine.nspawn", &text);
        let place = of_user(t, place)?;
        let path = place.path().display().to_string();
        Ok((place, path))
    };
    let ((_config, config), (_runtime, runtime)) = (place("config", 77)?, place("runtime", 78)?);
    let container = as_user(&t.container(&tree));
    let script = "echo $A; ulimit -n";
    let second = container.clone().caller_env("XDG_RUNTIME_DIR", &runtime);
    second.sh(script)?.prints("runtime\n78")?;
    let both = second.caller_env("XDG_CONFIG_HOME", &config);
    both.sh(script)?.prints("config\n77")?;
    Ok(())
}

/// subuid(5), newuidmap(1).
fn a_user_with_subordinate_ids_has_other_users_inside(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree())?;
    let file = t.scratch().join("ids");
    let container = with_subordinate_ids(&t.container(&tree), &file)?;
    let script = "tr -s ' ' < /proc/self/uid_map; touch /other; busybox chown 700:701 /other; stat -c %u:%g /other
        cat /proc/self/setgroups";
    container.sh(script)?.prints(&format!("0 {USER} 1\n 1 {SUBORDINATE} 65536\n700:701\nallow"))?;
    let meta = tree.path().join("other").metadata().context("looking for the file")?;
    let expected = (SUBORDINATE + 699, SUBORDINATE + 700);
    ensure!((meta.uid(), meta.gid()) == expected, "it is {}:{}'s", meta.uid(), meta.gid());
    // Ids that the files promise and the helper does not grant.
    std::fs::write(&file, "www-data:0:65536\n").context("changing the ids")?;
    let bind = format!("mount --bind {} /etc/subuid &&", file.display());
    let other = as_user_after(&t.container(&tree), &bind);
    other.sh("tr -s ' ' < /proc/self/uid_map")?.prints(&format!("0 {USER} 1"))?;
    std::fs::remove_file(&file).context("tidying")
}

/// NS-07.
fn without_subordinate_ids_root_is_alone(t: &Guest) -> Result<()> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nu:x:700:701::/tmp:/bin/sh\n";
    let getent = "case $1 in passwd) grep \"^$2:\" /etc/passwd ;; *) echo \"$2\" ;; esac";
    let builder = t.tree().file("etc/passwd", passwd).script("usr/bin/getent", getent);
    let tree = of_user(t, builder)?;
    let run = as_user(&t.container(&tree).arg("--user=u")).sh("echo ran")?;
    run.fails_with("becoming group 701: the container has no such id")?;
    run.fails_with("/etc/subuid")?;
    let file = t.scratch().join("ids");
    let container = with_subordinate_ids(&t.container(&tree).arg("--user=u"), &file)?;
    container.sh("id -u; id -g")?.prints("700\n701")?;
    std::fs::remove_file(&file).context("tidying")
}

/// CON-10, issue 5: five and more, before anything is touched.
fn what_takes_root_is_refused_with_what_to_do(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree())?;
    let before = tree.listing()?;
    for (option, told) in [
        ("--private-users=pick", "--private-users= needs root"),
        ("--private-users-map=0:0:1", "--private-users-map= needs root"),
        ("--private-users-ownership=chown", "--private-users-ownership= needs root"),
        ("--network-veth", "--network-veth needs root"),
        ("--network-bridge=b", "--network-bridge= needs root"),
        ("--port=80", "--port= needs root"),
        ("--bind-user=root", "--bind-user= needs root"),
    ] {
        let run = as_user(&t.container(&tree).arg(option)).sh("echo ran")?;
        run.fails_with(told)?.fails_with("hint: ")?.fails_with("sudo")?;
    }
    let image = as_user(&t.command().arg("--image=/dev/null")).sh("echo ran")?;
    image.fails_with("--image= needs root")?.fails_with("unpack it into a directory")?;
    tree.listing()?.same_as(&before)
}

/// A machine's own settings, which are put back.
fn a_machine_without_user_namespaces_for_users_is_explained(t: &Guest) -> Result<()> {
    const KNOB: &str = "/proc/sys/user/max_user_namespaces";
    let tree = of_user(t, t.tree())?;
    let usual = std::fs::read_to_string(KNOB).context("reading the setting")?;
    std::fs::write(KNOB, "0").context("changing the setting")?;
    let run = as_user(&t.container(&tree)).sh("echo ran");
    std::fs::write(KNOB, usual).context("putting the setting back")?;
    let run = run?;
    run.fails_with("making a user namespace")?;
    run.fails_with("hint: user.max_user_namespaces is 0 on this machine")?;
    Ok(())
}

/// DEV-01: the host's nodes, since a user can make none.
fn devices_and_file_systems_of_a_user_work(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree().dir("mnt"))?;
    let script = "echo x > /dev/null && head -c 3 /dev/zero | od -An -tx1 | tr -d ' '
        mknod /mnt/null c 1 3 2>/dev/null || echo none
        touch /sys/x 2>/dev/null || echo sys
        (echo 1 > /proc/sys/kernel/printk) 2>/dev/null || echo proc
        cat /proc/1/comm; test -d /sys/class && echo class";
    as_user(&t.container(&tree)).sh(script)?.prints("000000\nnone\nsys\nproc\nsh\nclass")?;
    let own = as_user(&t.container(&tree).arg("--private-network"));
    own.sh("grep -c : /proc/net/dev; test -d /sys/class && echo class")?.prints("1\nclass")?;
    for mode in ["yes", "state"] {
        let container = as_user(&t.container(&tree).arg(format!("--volatile={mode}")));
        container.sh("touch /var/x && echo ok")?.prints("ok")?;
    }
    Ok(())
}

/// R1: what the user could not do before, its container cannot either.
fn a_user_has_no_rights_over_the_host(t: &Guest) -> Result<()> {
    let secret = t.scratch().join("secret");
    std::fs::write(&secret, "secret").context("writing what is root's")?;
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let tree = of_user(t, t.tree())?;
    let bind = format!("--bind={}:/root", t.scratch().display());
    let run = as_user(&t.container(&tree).arg(bind)).sh("cat /root/secret && echo read")?;
    ensure!(!run.status.success() && run.stdout.is_empty(), "it was read\n{run}");
    let absent = as_user(&t.container(&tree).arg("--oom-score-adjust=-900")).sh("echo ran")?;
    absent.fails_with("--oom-score-adjust=")?;
    std::fs::remove_file(&secret).context("tidying")
}

/// SNP-40: the leftovers check of the suite looks as well, but as root.
fn nothing_of_a_users_run_is_left(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree())?;
    let before = tree.listing()?;
    let file = t.scratch().join("ids");
    let container = with_subordinate_ids(&t.container(&tree).arg("-x"), &file)?;
    container
        .sh("mkdir /d && touch /d/f && busybox chown 5:5 /d /d/f && rm /etc/passwd")?
        .succeeds()?;
    tree.listing()?.same_as(&before)?;
    std::fs::remove_file(&file).context("tidying")
}

/// R7.
fn kill_9_of_a_users_launcher_kills_the_payload(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree())?;
    let mut running =
        as_user(&t.container(&tree)).start("sleep 1000 & echo up; exec sleep 1000")?;
    running.next_line()?;
    kill_with_payload(running)?;
    as_user(&t.container(&tree)).sh("true")?.succeeds()?;
    Ok(())
}

/// SNP-50: by the lock next to the tree.
fn a_tree_in_use_by_the_user_is_refused(t: &Guest) -> Result<()> {
    let tree = of_user(t, t.tree())?;
    let mut running = as_user(&t.container(&tree)).start("echo up; exec sleep 1000")?;
    running.next_line()?;
    as_user(&t.container(&tree)).sh("echo ran")?.fails_with("is in use by another container")?;
    running.signal(Signal::TERM)?;
    running.end()?;
    Ok(())
}
