//! Whom the payload runs as: `--uid=`, looked up in the container by the container's own `getent`.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::{Guest, Subject};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

cases![
    a_user_of_the_container_is_found_by_name_and_by_number,
    root_is_known_without_asking,
    the_groups_are_those_of_the_containers_database,
    a_user_that_the_container_does_not_know_is_named,
    digits_are_a_number_and_never_a_name,
    odd_numbers_are_refused_before_anything_runs,
    a_malformed_entry_is_refused_by_its_field,
    a_tree_without_getent_knows_only_root,
    getent_is_given_less_than_any_payload,
    what_getent_leaves_behind_is_ended: [] within 60,
    an_endless_answer_is_refused: [] within 60,
    a_missing_home_is_made_and_owned,
    a_home_never_leads_out_of_the_tree,
    a_read_only_tree_keeps_its_user_without_a_home,
    a_shell_starts_at_home_and_a_command_does_not,
    the_container_gives_its_terminal_to_the_user,
    streams_of_the_caller_keep_their_owner,
    a_user_has_only_ambient_capabilities,
    a_killed_launcher_takes_the_users_payload_along: [] within 60,
];

/// A getent that knows the tree's own /etc/passwd and /etc/group, as that of a distribution does.
const GETENT: &str = r#"
case $1 in
passwd)
    case $2 in
    *[!0-9]*) grep "^$2:" /etc/passwd || exit 2 ;;
    *) grep "^[^:]*:[^:]*:$2:" /etc/passwd || exit 2 ;;
    esac ;;
initgroups)
    printf '%s' "$2"
    grep "[:,]$2\(,\|$\)" /etc/group | cut -d: -f3 | tr '\n' ' ' | sed 's/^/ /'
    echo ;;
*) exit 1 ;;
esac"#;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
deep:x:700:700::/homes/of/deep:/bin/sh
old:x:701:700::/usr/share:/bin/sh
700:x:0:0::/root:/bin/sh
";

const GROUP: &str = "root:x:0:
users:x:710:deep,old
audio:x:711:deep
other:x:712:nobody
";

pub(crate) fn users(t: &Guest) -> Builder {
    t.tree()
        .script("usr/bin/getent", GETENT)
        .dir("usr/share")
        .file("etc/passwd", PASSWD)
        .file("etc/group", GROUP)
}

/// CLI-09, E-05, ENV-02: `USER` and `LOGNAME` are what was said, the home is that of the entry.
fn a_user_of_the_container_is_found_by_name_and_by_number(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    let script = "echo $(id -u) $(id -g) $USER $LOGNAME $HOME";
    // The second is the old name of the last, from before there were user instances; 252 has no other.
    let options = [("-uold", "old"), ("--user=old", "old"), ("-u701", "701"), ("--uid=old", "old")];
    let known = if t.subject() == Subject::Nspawn { 3 } else { 4 };
    for (option, name) in options.into_iter().take(known) {
        let expected = format!("701 700 {name} {name} /usr/share");
        t.container(&tree).arg(option).sh(script)?.prints(&expected)?;
    }
    Ok(())
}

/// NS-07: nothing is asked; the tree has no getent here.
fn root_is_known_without_asking(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "echo $(id -u) $(id -G) $USER $LOGNAME $HOME";
    t.container(&tree).sh(script)?.prints("0 0 root root /root")?;
    t.container(&tree).arg("-uroot").sh(script)?.prints("0 0 root root /root")?;
    t.container(&tree).arg("-u0").sh(script)?.prints("0 0 0 0 /root")?;
    Ok(())
}

/// NS-07, CVE-2014-8989: none of the caller's groups are left.
fn the_groups_are_those_of_the_containers_database(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    let script = "grep Groups: /proc/self/status | tr -s '\\t ' ' '";
    t.container(&tree).arg("-udeep").sh(script)?.prints("Groups: 710 711")?;
    t.container(&tree).arg("-uold").sh(script)?.prints("Groups: 710")?;
    t.container(&tree).sh(script)?.prints("Groups:")?;
    Ok(())
}

/// NS-07, RUN-16.
fn a_user_that_the_container_does_not_know_is_named(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    // The host has this one.
    t.container(&tree).arg("-udaemon").sh("echo ran")?.fails_with("daemon")?;
    t.container(&tree).arg("-u4321").sh("echo ran")?.fails_with("4321")?;
    Ok(())
}

/// CVE-2016-3697: the tree has a user named `700` with the id of root, and a getent that looks for the name. Needs a
/// difference: systemd-nspawn 252 runs the payload as root then.
fn digits_are_a_number_and_never_a_name(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    t.container(&tree).arg("-u700").sh("id -u")?.prints("700")?;
    drop(tree);
    let lying = "case $1 in passwd) grep \"^$2:\" /etc/passwd || exit 2 ;; *) echo $2 ;; esac";
    let tree = users(t).script("usr/bin/getent", lying).build()?;
    t.container(&tree).arg("-u700").sh("id -u")?.fails_with("user 0")?;
    Ok(())
}

/// CVE-2016-3697 and its relatives: sign, blank, overflow, "no id". Needs a difference: systemd-nspawn 252 asks its
/// getent about them, and takes "+0" for root.
fn odd_numbers_are_refused_before_anything_runs(t: &Guest) -> Result<()> {
    let tree = users(t).script("usr/bin/getent", "echo asked > /asked; exit 2").build()?;
    for number in ["-1", "+0", " 0", "0 ", "0x0", "4294967295", "4294967296", "65535", "0:0"] {
        t.container(&tree).arg(format!("-u{number}")).sh("echo ran")?.fails_with("")?;
    }
    tree.lacks("asked")
}

/// NS-07: every malformed field has a message of its own. Needs a difference: systemd-nspawn 252 has other words, and
/// takes a relative home.
fn a_malformed_entry_is_refused_by_its_field(t: &Guest) -> Result<()> {
    for (answer, message) in [
        ("u:x:-1:8::/h:", "user id in its entry is \"-1\""),
        ("u:x:7:4294967295::/h:", "group id in its entry is \"4294967295\""),
        ("u:x:7:8::h:", "home directory in its entry is not absolute"),
        ("u:x:7", "no group id"),
        ("", "nothing"),
    ] {
        let tree = t.tree().script("usr/bin/getent", &format!("echo '{answer}'")).build()?;
        t.container(&tree).arg("-uu").sh("echo ran")?.fails_with(message)?;
    }
    let groups = "case $1 in passwd) echo u:x:7:8::/: ;; *) echo u 4 -5 ;; esac";
    let tree = t.tree().script("usr/bin/getent", groups).build()?;
    t.container(&tree).arg("-uu").sh("echo ran")?.fails_with("\"-5\"")?;
    Ok(())
}

/// NS-07. Needs a difference: systemd-nspawn 252 says no more than that there is no such user.
fn a_tree_without_getent_knows_only_root(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).arg("-udeep").sh("echo ran")?.fails_with("getent")?;
    Ok(())
}

/// NS-07, R6, R10: it is a program of the tree, and runs before the payload's privileges were taken. Needs a
/// difference: systemd-nspawn 252 gives it all capabilities of the host.
fn getent_is_given_less_than_any_payload(t: &Guest) -> Result<()> {
    let look = format!(
        "exec 5>&1 >> /tmp/seen 2>&1; ls -l /proc/self/fd | sed -n 's/.* \\([0-9]* ->\\)/\\1/p'
         grep -E '^(Cap|Seccomp:|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status
         (: < /dev/tty); echo environment: $(env)
         exec 1>&5 5>&-; {GETENT}"
    );
    let tree = users(t).script("usr/bin/getent", &look).build()?;
    // /tmp of a container is its own, so the payload tells what was seen.
    let run = t
        .container(&tree)
        .caller_env("SECRET", "of the caller")
        .through(&["/bin/sh", "-c", "exec 7</etc/passwd; exec \"$@\"", "sh"])
        .arg("-udeep")
        .sh("cat /tmp/seen")?;
    run.succeeds()?;
    let seen = run.text();
    let lines = |start: &str| -> Vec<String> {
        seen.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
    };
    for (set, value) in [("CapInh", 0), ("CapAmb", 0), ("CapPrm", 4), ("CapEff", 4), ("CapBnd", 4)]
    {
        ensure!(
            lines(set).iter().all(|line| *line == format!("{set}:\t{value:016x}"))
                && lines(set).len() == 2,
            "{set} is not {value}\n{run}"
        );
    }
    ensure!(lines("Seccomp:").iter().all(|line| line.ends_with('2')), "not filtered\n{run}");
    ensure!(lines("NoNewPrivs").iter().all(|line| line.ends_with('1')), "may gain\n{run}");
    ensure!(!seen.contains("SECRET"), "the caller's environment\n{run}");
    ensure!(seen.matches("/dev/tty: No such device").count() == 2, "a terminal\n{run}");
    // 5 is the answer, put there by the script itself; 3 is the directory that `ls` reads.
    let open = seen.lines().filter(|line| line.contains("->"));
    for line in open {
        let number = line.split(' ').next().unwrap_or_default();
        ensure!(["0", "1", "2", "3", "5", "10"].contains(&number), "descriptor {line}\n{run}");
        ensure!(!line.contains("passwd"), "a descriptor of the caller\n{run}");
    }
    Ok(())
}

/// NS-07: a program that it starts in the background does not live on beside the payload, with other rights. Needs a
/// difference: with systemd-nspawn 252 it does.
fn what_getent_leaves_behind_is_ended(t: &Guest) -> Result<()> {
    let daemon = format!("setsid sleep 1000 > /dev/null & {GETENT}");
    let tree = users(t).script("usr/bin/getent", &daemon).build()?;
    let script =
        "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; done | grep -c '[s]leep 1000'";
    t.container(&tree).arg("-uold").sh(script)?.exits(1)?;
    t.container(&tree).args(["--as-pid2", "-uold"]).sh(script)?.exits(1)?;
    Ok(())
}

/// R3: what is read of the tree has a bound. Needs a difference: systemd-nspawn 252 reads for ever.
fn an_endless_answer_is_refused(t: &Guest) -> Result<()> {
    let tree = users(t).script("usr/bin/getent", "exec yes u:x:7:8::/:").build()?;
    let run = t.container(&tree).arg("-uold").sh("echo ran")?;
    run.fails_with("longer than")?;
    Ok(())
}

/// NS-08: parents 0775 and root's, the home 0755 and the user's; one that exists keeps its owner.
fn a_missing_home_is_made_and_owned(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    t.container(&tree)
        .arg("-udeep")
        .sh("stat -c '%n %a %u:%g' /homes /homes/of /homes/of/deep")?
        .prints("/homes 775 0:0\n/homes/of 775 0:0\n/homes/of/deep 755 700:700")?;
    t.container(&tree).arg("-uold").sh("stat -c %u:%g /usr/share")?.prints("0:0")?;
    Ok(())
}

/// R2: a home below a link of the tree is made in the tree.
fn a_home_never_leads_out_of_the_tree(t: &Guest) -> Result<()> {
    let outside = t.scratch().join("outside");
    std::fs::create_dir(&outside).context("making a directory of the host")?;
    let tree = users(t).link("homes", format!("../../../../../..{}", outside.display())).build()?;
    let run = t.container(&tree).arg("-udeep").sh("echo ran")?;
    let left = std::fs::read_dir(&outside).context("looking at it")?.count();
    std::fs::remove_dir_all(&outside).context("removing it")?;
    ensure!(left == 0, "something was made outside\n{run}");
    ensure!(!run.stderr.contains("panicked"), "{run}");
    Ok(())
}

/// NS-08. Needs a difference: systemd-nspawn 252 does not start.
fn a_read_only_tree_keeps_its_user_without_a_home(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    let container = t.container(&tree).arg("--read-only").arg("-udeep");
    container.sh("id -u; ls -d /homes 2>/dev/null")?.exits(1)?;
    container.sh("id -u")?.prints("700")?;
    Ok(())
}

/// NS-12, E-05.
fn a_shell_starts_at_home_and_a_command_does_not(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    t.container(&tree).arg("-udeep").sh("pwd")?.prints("/")?;
    let mut input = tempfile::tempfile().context("making a file of input")?;
    std::io::Write::write_all(&mut input, b"pwd\n").context("writing the input")?;
    std::io::Seek::rewind(&mut input).context("rewinding the input")?;
    let container = t.container(&tree).arg("-udeep");
    container.run_with_input(&[], input.into())?.prints("/homes/of/deep")?;
    Ok(())
}

/// NS-08, DEV-04: the pty is the user's, and nobody else's, under each of its names.
fn the_container_gives_its_terminal_to_the_user(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("opening a pty")?;
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).context("unlocking the pty")?;
    let name = ptsname(&terminal, Vec::new()).context("naming the pty")?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let peer = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).context("opening it")?;
    let mut child = t.container(&tree).arg("-udeep").start_on_terminal(
        "stat -L -c %u:%g:%a /proc/self/fd/0 /dev/console | tr '\\n' ' '; echo > /dev/console && echo done",
        peer,
    )?;
    let mut text = String::new();
    let mut buffer = [0; 1024];
    // EIO: every other end is closed.
    while let Ok(length @ 1..) = rustix::io::read(&terminal, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    child.wait().context("waiting for the subject")?;
    ensure!(text.contains("700:700:600 700:700:600") && text.contains("done"), "{text:?}");
    Ok(())
}

/// NS-08: what was handed on may be a file of the host.
fn streams_of_the_caller_keep_their_owner(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    let input = tempfile::tempfile().context("making a file of input")?;
    let kept = input.try_clone().context("keeping hold of the input")?;
    t.container(&tree).arg("-udeep").run_with_input(&["/bin/true"], input.into())?.succeeds()?;
    let owner = kept.metadata().context("looking at the input")?.uid();
    ensure!(owner == 0, "the caller's file belongs to {owner} now");
    Ok(())
}

/// NS-07, S-01.
fn a_user_has_only_ambient_capabilities(t: &Guest) -> Result<()> {
    let tree: Tree = users(t).probe().build()?;
    let seen = t.container(&tree).arg("-udeep").observe()?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(seen.capabilities(set)? == 0, "{set}: {:?}", seen.status.get(set));
    }
    // CAP_NET_RAW is 13 (capabilities(7)).
    let ambient = ["-udeep", "--ambient-capability=CAP_NET_RAW"];
    let seen = t.container(&tree).args(ambient).observe()?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(seen.capabilities(set)? == 1 << 13, "{set}: {:?}", seen.status.get(set));
    }
    Ok(())
}

/// R7: the kernel forgets whose death is ours when credentials change. Needs a difference: with systemd-nspawn 252 the
/// payload lives on (defect 1).
fn a_killed_launcher_takes_the_users_payload_along(t: &Guest) -> Result<()> {
    let tree = users(t).build()?;
    let mut running = t.container(&tree).arg("-uold").start("echo up; exec sleep 1000")?;
    running.next_line()?;
    let payload = running.payload()?;
    let pid = Pid::from_raw(i32::try_from(payload[0])?).context("a process without number")?;
    let watched = pidfd_open(pid, PidfdFlags::empty()).context("watching the payload")?;
    running.signal(Signal::KILL)?;
    let bound = Timespec { tv_sec: 30, tv_nsec: 0 };
    let ended =
        poll(&mut [PollFd::new(&watched, PollFlags::IN)], Some(&bound)).context("waiting")?;
    ensure!(ended == 1, "the payload lives on");
    running.end()?;
    // What a killed run leaves is removed by the next one.
    t.container(&tree).sh("true")?.succeeds()?;
    Ok(())
}
