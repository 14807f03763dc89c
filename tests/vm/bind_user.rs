//! Users of the host that a container has, too: their homes, what it is told of them, and whom it cannot have.
//!
//! The host is one of the case's own, with a user `u` whose home lies in the scratch directory.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::scratch::Mounted;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::{Guest, Subject};
use rustix::fs::{CWD, FileType, Mode};

use crate::integration::{host, on};
use crate::own::with_users;
use crate::refused::Refused;

const RSPAWN: Need = Need::Only(Subject::Rspawn);
/// What the home lies on can show other owners.
const MAPS: [Need; 2] = [Need::Fs("ext4"), Need::Kernel(5, 12)];

cases![
    a_user_of_the_host_is_at_home: [MAPS[0], MAPS[1]],
    a_user_of_the_host_runs_the_payload: [MAPS[0], MAPS[1]],
    no_program_of_a_home_has_rights_of_its_own: [MAPS[0], MAPS[1], RSPAWN],
    its_records_are_those_of_a_user_database: [MAPS[0], MAPS[1]],
    its_ids_are_nobody_elses: [MAPS[0], MAPS[1]],
    its_shell_and_groups_are_those_that_are_asked_for: [MAPS[0], MAPS[1], RSPAWN],
    a_user_without_a_group_of_its_own_gets_one: [MAPS[0], MAPS[1], RSPAWN],
    nothing_else_of_the_hosts_user_is_the_containers: [MAPS[0], MAPS[1], RSPAWN],
    whoever_cannot_be_bound_is_refused: [] within 60,
    a_home_that_cannot_be_mapped_is_refused: [RSPAWN],
    what_is_mounted_in_a_home_may_keep_its_owners: [MAPS[0], MAPS[1], RSPAWN],
    a_pipe_or_device_for_a_user_database_is_not_opened: [RSPAWN],
];

const BASE: u32 = 41 << 16;
/// Outside.
const UID: u32 = 1234;
/// Inside: the first that is set aside for it.
const INSIDE: u32 = 60514;

/// A getent that knows what nss-systemd(8) reads, of passwd alone.
const GETENT: &str = r#"
record=/run/host/userdb/$2.user
[ -e "$record" ] || exit 2
[ "$1" = passwd ] || exec echo "$2"
field() { sed 's/.*"'$1'":"\{0,1\}\([^",}]*\).*/\1/' "$record"; }
echo "$2:x:$(field uid):$(field gid)::$(field homeDirectory):/bin/sh""#;

/// A tree, a host, and the home of a user of that.
struct Scene {
    tree: Tree,
    host: Tree,
    home: PathBuf,
}

impl Scene {
    fn with(t: &Guest, tree: Builder, passwd: &str) -> Result<Self> {
        let home = t.scratch().join("home-of-u");
        fs::create_dir(&home).context("making the home")?;
        for name in ["mine", "private"] {
            fs::write(home.join(name), "of the host\n").context("filling the home")?;
        }
        fs::set_permissions(home.join("private"), fs::Permissions::from_mode(0o600))?;
        for name in ["", "mine", "private"] {
            chown(home.join(name), Some(UID), Some(UID)).context("giving the home away")?;
        }
        let shown = home.display();
        let host = host(t)
            .file(
                "etc/passwd",
                &format!(
                    "root:x:0:0::/root:/bin/sh\n{}",
                    passwd.replace("HOME", &shown.to_string())
                ),
            )
            .file("etc/group", &format!("root:x:0:\nusers:x:100:\nnogroup:x:65534:\nu:x:{UID}:\n"))
            .file("etc/shadow", "root:*:1::::::\nu:$y$j9T$salt$hash:1::::::\n")
            .build()?;
        Ok(Self { tree: tree.build()?, host, home })
    }

    fn new(t: &Guest, tree: Builder) -> Result<Self> {
        Self::with(t, tree, &format!("u:x:{UID}:{UID}::HOME:/bin/zsh\n"))
    }

    fn container(&self, t: &Guest) -> Container {
        on(&self.host, t.container(&self.tree))
    }

    /// With `u`, and users of its own.
    fn bound(&self, t: &Guest) -> Container {
        with_users(self.container(t), BASE, "chown").arg("--bind-user=u")
    }

    fn tidy(self) -> Result<()> {
        fs::remove_dir_all(&self.home).context("tidying")
    }
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let meta = path.symlink_metadata().with_context(|| format!("looking at {path:?}"))?;
    Ok((meta.uid(), meta.gid()))
}

/// M-02: something that maps no owners, on any kernel, as sshfs.
fn what_is_mounted_in_a_home_may_keep_its_owners(t: &Guest) -> Result<()> {
    let scene = Scene::new(t, t.tree())?;
    fs::create_dir(scene.home.join("remote"))?;
    let remote = Mounted::over("ramfs", &scene.home.join("remote"))?;
    let run = scene.bound(t).sh("cd /run/host/home/u; stat -c '%n %u' mine remote");
    drop(remote);
    let run = run?;
    run.prints(&format!("mine {INSIDE}\nremote 65534"))?;
    ensure!(run.stderr.contains("/run/host/home/u belongs to nobody"), "it is not told\n{run}");
    scene.tidy()
}

/// M-02: the home is what it is outside, with the user's files for the user inside; what its root makes there is its root's.
fn a_user_of_the_host_is_at_home(t: &Guest) -> Result<()> {
    let scene = Scene::new(t, t.tree())?;
    let look = "cd /run/host/home/u; stat -c '%n %u %g' . mine private; cat mine
                stat -c '%u %g %a' /run/host/home /run/host/userdb; touch roots";
    scene.bound(t).sh(look)?.prints(&format!(
        ". {INSIDE} {INSIDE}\nmine {INSIDE} {INSIDE}\nprivate {INSIDE} {INSIDE}\nof the host\n0 0 755\n0 0 755"
    ))?;
    for name in ["", "mine", "private"] {
        ensure!(owner(&scene.home.join(name))? == (UID, UID), "the owner of {name:?} was changed");
    }
    ensure!(owner(&scene.home.join("roots"))? == (BASE, BASE), "what root makes is not its own");
    scene.tree.lacks("run/host")?;
    scene.tidy()
}

/// M-02, `--uid=`: where the container's database reads the records. What the user makes at home belongs to the user
/// outside.
fn a_user_of_the_host_runs_the_payload(t: &Guest) -> Result<()> {
    let scene = Scene::new(t, t.tree().script("usr/bin/getent", GETENT))?;
    let script = "echo $(id -u) $(id -g) $USER $HOME; cat ~/private; echo new > ~/new; mkdir ~/dir; stat -c '%u %g' ~/new";
    scene
        .bound(t)
        .arg("-uu")
        .sh(script)?
        .prints(&format!("{INSIDE} {INSIDE} u /run/host/home/u\nof the host\n{INSIDE} {INSIDE}"))?;
    for name in ["new", "dir"] {
        ensure!(owner(&scene.home.join(name))? == (UID, UID), "{name} is somebody else's");
    }
    scene.tidy()
}

/// M-02, R6: neither a set-id program nor a device node of the host's user counts inside.
fn no_program_of_a_home_has_rights_of_its_own(t: &Guest) -> Result<()> {
    let scene = Scene::new(t, t.tree().probe())?;
    let seen = scene.bound(t).observe()?;
    let home = seen.mount("/run/host/home/u")?;
    ensure!(home.has("nosuid") && home.has("nodev"), "it is mounted with {:?}", home.options);
    scene.tidy()
}

/// M-02, nss-systemd(8): files by name and number, and the password for root's eyes only.
fn its_records_are_those_of_a_user_database(t: &Guest) -> Result<()> {
    let scene = Scene::new(t, t.tree())?;
    let look = "cd /run/host/userdb; for file in *; do echo \"$file $(stat -c '%u %g %a' -L $file) $(readlink $file)\"; done
                cat u.user u.user-privileged u.group; (echo > new) 2>/dev/null || echo read-only";
    scene.bound(t).sh(look)?.prints(
        "60514.group 0 0 644 u.group\n\
         60514.user 0 0 644 u.user\n\
         60514.user-privileged 0 0 600 u.user-privileged\n\
         u.group 0 0 644 \n\
         u.user 0 0 644 \n\
         u.user-privileged 0 0 600 \n\
         {\"userName\":\"u\",\"uid\":60514,\"gid\":60514,\"homeDirectory\":\"/run/host/home/u\",\"service\":\"io.systemd.NSpawn\"}\n\
         {\"privileged\":{\"hashedPassword\":[\"$y$j9T$salt$hash\"]}}\n\
         {\"groupName\":\"u\",\"gid\":60514,\"service\":\"io.systemd.NSpawn\"}\n\
         read-only",
    )?;
    scene.tidy()
}

/// M-02: neither a user's nor a group's of the tree, nor another bound user's.
fn its_ids_are_nobody_elses(t: &Guest) -> Result<()> {
    let tree = t
        .tree()
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\nother:x:60514:0::/:\n")
        .file("etc/group", "root:x:0:\nothers:x:60516:\n");
    let passwd = format!("u:x:{UID}:{UID}::HOME:\nv:x:1235:1235::HOME:\n");
    let scene = Scene::with(t, tree, &passwd)?;
    fs::write(scene.host.path().join("etc/group"), format!("u:x:{UID}:\nv:x:1235:\n"))?;
    let container = scene.bound(t).arg("--bind-user=v").arg("--bind-user=u");
    let run = container.sh("cd /run/host/userdb; ls *.user; stat -c %u /run/host/home/u/mine")?;
    run.prints("60515.user\n60517.user\nu.user\nv.user\n60515")?;
    scene.tidy()
}

/// M-02: as systemd-nspawn has it since 258 and 259.
fn its_shell_and_groups_are_those_that_are_asked_for(t: &Guest) -> Result<()> {
    let scene = Scene::new(t, t.tree())?;
    let look = "cd /run/host/userdb; cat u.user; ls *.membership 2>/dev/null; true";
    let record = |more: &str, shell: &str| {
        format!(
            "{{\"userName\":\"u\",\"uid\":60514,\"gid\":60514,{more}\"homeDirectory\":\"/run/host/home/u\",{shell}\"service\":\"io.systemd.NSpawn\"}}"
        )
    };
    let bound = |option: &str| scene.bound(t).arg(option).sh(look);
    bound("--bind-user-shell=no")?.prints(&record("", ""))?;
    bound("--bind-user-shell=yes")?.prints(&record("", "\"shell\":\"/bin/zsh\","))?;
    bound("--bind-user-shell=/bin/x")?.prints(&record("", "\"shell\":\"/bin/x\","))?;
    let groups = scene.bound(t).args(["--bind-user-group=wheel", "--bind-user-group=audio"]);
    let told = record("\"memberOf\":[\"wheel\",\"audio\"],", "");
    groups.sh(look)?.prints(&format!("{told}\nu:audio.membership\nu:wheel.membership"))?;
    scene.tidy()
}

/// M-02: distributions whose users are all of one group. systemd-nspawn refuses them.
fn a_user_without_a_group_of_its_own_gets_one(t: &Guest) -> Result<()> {
    let passwd = format!("u:x:{UID}:100::HOME:/bin/sh\n");
    let scene = Scene::with(t, t.tree().script("usr/bin/getent", GETENT), &passwd)?;
    chown(scene.home.join("mine"), Some(UID), Some(100)).context("sharing a file")?;
    let script = "cd; stat -c '%u %g' mine private; id -g; touch new; echo x >> private
                  cat /run/host/userdb/u.group";
    scene.bound(t).arg("-uu").sh(script)?.prints(
        "60514 60514\n60514 65534\n60514\n{\"groupName\":\"u\",\"gid\":60514,\"service\":\"io.systemd.NSpawn\"}",
    )?;
    ensure!(owner(&scene.home.join("new"))? == (UID, 100), "what is new is somebody else's");
    // Of another group of the user's outside, and written to all the same.
    let text = fs::read_to_string(scene.home.join("private"))?;
    ensure!(text.ends_with("x\n"), "a file of the user's could not be written to");
    scene.tidy()
}

/// M-02: systemd-nspawn maps the user's id for all of the container. Here the mount maps it, for the home alone.
fn nothing_else_of_the_hosts_user_is_the_containers(t: &Guest) -> Result<()> {
    let scene = Scene::new(t, t.tree().script("usr/bin/getent", GETENT))?;
    chown(scene.home.join("mine"), Some(UID + 1), Some(UID + 1)).context("giving a file away")?;
    let beside = Builder::empty(t.scratch()).name("beside").file("theirs", "").build()?;
    chown(beside.path().join("theirs"), Some(UID), Some(UID))?;
    let script = "tr -s ' ' < /proc/self/uid_map; stat -c %u ~/mine /mnt/theirs
                  { echo x >> ~/mine || echo x >> /mnt/theirs; } 2>/dev/null || echo denied";
    let bind = format!("--bind={}:/mnt", beside.path().display());
    let run = scene.bound(t).arg(bind).arg("-uu").sh(script)?;
    run.prints(&format!("0 {BASE} 65536\n65534\n65534\ndenied"))?;
    scene.tidy()
}

/// M-02: whoever is something else inside, or nobody outside; nothing runs, and there is a way out.
fn whoever_cannot_be_bound_is_refused(t: &Guest) -> Result<()> {
    let tree = t
        .tree()
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\nu:x:7:7::/:\n")
        .file("etc/group", "root:x:0:\nw:x:7:\n");
    let passwd = format!(
        "u:x:{UID}:{UID}::HOME:\nw:x:{UID}:{UID}::HOME:\nlost:x:1235:1235::/gone:\n\
         service:x:1236:1236::/:\nodd:x:-1:1::/:\nnobody:x:65534:65534::/nonexistent:\n"
    );
    let scene = Scene::with(t, tree, &passwd)?;
    let group = scene.host.path().join("etc/group");
    fs::write(group, "nogroup:x:65534:\nw:x:1234:\nlost:x:1235:\nservice:x:1236:\n")?;
    let ours = t.subject() == Subject::Rspawn;
    let refused = |container: Container, user: &str, told: &str| -> Result<()> {
        let run = container.arg(format!("--bind-user={user}")).sh("echo ran")?;
        run.refused(t, told)?;
        ensure!(!ours || run.stderr.contains("hint: ") || user == "odd", "no way out\n{run}");
        Ok(())
    };
    let users = || with_users(scene.container(t), BASE, "chown");
    refused(scene.container(t), "w", "--bind-user=w: it needs users of the container's own")?;
    for (user, told) in [
        ("root", "--bind-user=root: root is the container's own"),
        ("nobody", "nobody is who owns"),
        ("nosuch", "--bind-user=nosuch: the host has no such user"),
        ("odd", "the entry of odd in the host's passwd: its user id is \"-1\""),
    ] {
        refused(users(), user, told)?;
    }
    refused(users(), "u", "--bind-user=u: the container has a user of this name")?;
    refused(users(), "w", "--bind-user=w: the container has a group of this name")?;
    if ours {
        refused(users(), "lost", "looking for the home \"/gone\"")?;
        refused(users(), "service", "it is the root of the host")?;
        refused(users().arg("--private-users=65536:100"), "w", "no ids from 60514 to 60577")?;
    }
    scene.tidy()
}

/// M-02: nobody has mapped the owners of sysfs yet, and before Linux 5.12 those of nothing.
fn a_home_that_cannot_be_mapped_is_refused(t: &Guest) -> Result<()> {
    let passwd = format!("u:x:{UID}:{UID}::/sys/kernel:\n");
    let scene = Scene::with(t, t.tree(), &passwd)?;
    let run = scene.bound(t).sh("echo ran")?;
    run.fails_with("--bind-user=u: the home cannot be shown as the user's: ")?;
    ensure!(run.stderr.contains("hint: --bind=/sys/kernel shows it"), "no way out\n{run}");
    scene.tidy()
}

/// R3, defect 8 of systemd-nspawn 252.
fn a_pipe_or_device_for_a_user_database_is_not_opened(t: &Guest) -> Result<()> {
    let scene = Scene::new(t, t.tree())?;
    let passwd = scene.tree.path().join("etc/passwd");
    fs::remove_file(&passwd).context("making room")?;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, &passwd, FileType::Fifo, mode, 0).context("making a pipe")?;
    let refused = "reading /etc/passwd of the container: it is no regular file";
    scene.bound(t).sh("echo ran")?.fails_with(refused)?;
    // Nor is a device opened, which may have effects: this one is nobody's, and to open it would be another error.
    fs::remove_file(&passwd).context("making room")?;
    let device = rustix::fs::makedev(250, 250);
    rustix::fs::mknodat(CWD, &passwd, FileType::CharacterDevice, mode, device)
        .context("making a device")?;
    scene.bound(t).sh("echo ran")?.fails_with(refused)?;
    scene.tidy()
}
