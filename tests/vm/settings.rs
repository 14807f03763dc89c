//! `.nspawn` files: where they are found, who wins, and what one that nobody trusts may say.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::{Guest, Subject};

cases![
    a_file_next_to_the_tree_is_read,
    the_mode_decides_whether_the_file_or_the_command_line_wins,
    etc_comes_before_run_and_run_before_the_trees_neighbour,
    a_name_that_is_given_names_the_file,
    a_link_to_the_tree_names_the_machine_and_the_file,
    a_masked_file_says_nothing,
    a_section_without_its_end_stops_the_start,
    what_is_dropped_stays_dropped_beside_what_is_wrong,
    a_throw_away_run_reads_the_trees_own_file,
    the_administrators_file_may_ask_for_anything,
    a_neighbours_file_cannot_ask_for_rights,
    each_right_that_a_neighbours_file_asks_for_is_told: [Need::Only(Subject::Rspawn)],
    a_neighbours_file_may_forbid_calls_and_allow_none,
    a_bad_line_is_told_and_the_rest_counts,
    an_empty_assignment_takes_back,
    a_files_command_runs_when_none_was_given,
    a_command_runs_instead_of_a_files_init,
    a_file_that_is_no_file_is_refused_without_waiting: [] within 30,
    a_huge_file_is_read_to_its_end,
    a_file_beyond_every_measure_is_refused,
];

/// A file outside the tree; removed when dropped.
struct Written(PathBuf);

impl Written {
    fn at(path: PathBuf, text: &str) -> Result<Self> {
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(Self(path))
    }

    /// A settings file of the administrator.
    fn installed(dir: &str, machine: &str, text: &str) -> Result<Self> {
        let dir = Path::new(dir).join("systemd/nspawn");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Self::at(dir.join(format!("{machine}.nspawn")), text)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // What is still there then is found by the leftovers check of the case, with its name.
        let _ = fs::remove_file(&self.0);
    }
}

/// The settings file next to a tree.
fn beside(tree: &Tree) -> PathBuf {
    tree.path().with_extension("nspawn")
}

fn write_beside(tree: &Tree, text: &str) -> Result<Written> {
    Written::at(beside(tree), text)
}

/// G-02, NAM-05.
fn a_file_next_to_the_tree_is_read(t: &Guest) -> Result<()> {
    let tree = t.tree().name("neighbour").build()?;
    let _beside =
        write_beside(&tree, "[Exec]\nHostname=from-file\nEnvironment=A=1 'B=two words'\n")?;
    t.container(&tree).sh("hostname; echo $A $B")?.prints("from-file\n1 two words")?;
    Ok(())
}

/// NAM-03, G-02: the link's name, as the user knows it, and the link's directory.
fn a_link_to_the_tree_names_the_machine_and_the_file(t: &Guest) -> Result<()> {
    let tree = t.tree().name("behind").build()?;
    let places = Builder::empty(t.scratch()).name("places").link("web", tree.path()).build()?;
    let link = places.path().join("web");
    for path in [link.clone(), link.join("."), places.path().join("../places/web/")] {
        t.container_at(&path).sh("hostname")?.prints("web")?;
    }
    let _beside = Written::at(places.path().join("web.nspawn"), "[Exec]\nHostname=from-file\n")?;
    t.container_at(&link).sh("hostname")?.prints("from-file")?;
    Ok(())
}

/// As administrators say that a unit is none.
fn a_masked_file_says_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().name("masked").build()?;
    let _beside = write_beside(&tree, "[Exec]\nHostname=from-file\n")?;
    let dir = Path::new("/etc/systemd/nspawn");
    fs::create_dir_all(dir)?;
    let mask = dir.join("masked.nspawn");
    symlink("/dev/null", &mask)?;
    let mask = Written(mask);
    t.container(&tree).sh("hostname")?.prints("masked")?;
    drop(mask);
    t.container(&tree).sh("hostname")?.prints("from-file")?;
    Ok(())
}

/// What follows could have been there to take rights away.
fn a_section_without_its_end_stops_the_start(t: &Guest) -> Result<()> {
    let tree = t.tree().name("broken").build()?;
    let _beside = write_beside(&tree, "[Exec]\nHostname=x\n[Files\nReadOnly=yes\n")?;
    t.container(&tree).sh("touch /new")?.fails_with("broken.nspawn")?;
    tree.lacks("new")?;
    t.container(&tree).arg("--settings=no").sh("echo ran")?.prints("ran")?;
    Ok(())
}

/// R13: one wrong word must not give back what the others take.
fn what_is_dropped_stays_dropped_beside_what_is_wrong(t: &Guest) -> Result<()> {
    let tree = t.tree().name("dropped").probe().build()?;
    let _beside = write_beside(&tree, "[Exec]\nDropCapability=CAP_BOGUS CAP_CHOWN\n")?;
    let bounding = t.container(&tree).observe()?.capabilities("CapBnd")?;
    ensure!(bounding & 1 == 0, "CAP_CHOWN is there: {bounding:016x}");
    Ok(())
}

/// G-02: what both say, what the file alone says, and what only a trusted file may say.
fn the_mode_decides_whether_the_file_or_the_command_line_wins(t: &Guest) -> Result<()> {
    let tree = t.tree().name("modes").build()?;
    let _beside = write_beside(
        &tree,
        "[Exec]\nHostname=file\nWorkingDirectory=/usr\nEnvironment=A=file\n\
         [Files]\nTemporaryFileSystem=/var\n",
    )?;
    for (mode, expected) in [
        ("yes", "cli /usr cli 0"),
        ("no", "cli / cli 0"),
        ("override", "file /usr file 0"),
        ("trusted", "cli /usr cli 1"),
    ] {
        let run = t
            .container(&tree)
            .arg(format!("--settings={mode}"))
            .args(["--hostname=cli", "--setenv=A=cli"])
            .sh("echo $(hostname) $(pwd) $A $(grep -c ' /var tmpfs ' /proc/mounts)")?;
        run.prints(expected).with_context(|| format!("with --settings={mode}"))?;
    }
    Ok(())
}

/// G-02: the first that exists counts, and counts alone.
fn etc_comes_before_run_and_run_before_the_trees_neighbour(t: &Guest) -> Result<()> {
    let tree = t.tree().name("search").build()?;
    let etc = Written::installed("/etc", "search", "[Exec]\nEnvironment=A=etc\n")?;
    let run = Written::installed("/run", "search", "[Exec]\nEnvironment=A=run\nHostname=of-run\n")?;
    let _beside = write_beside(&tree, "[Exec]\nEnvironment=A=beside\n")?;
    let say = "echo $A $(hostname)";
    t.container(&tree).sh(say)?.prints("etc search")?;
    drop(etc);
    t.container(&tree).sh(say)?.prints("run of-run")?;
    drop(run);
    t.container(&tree).sh(say)?.prints("beside search")?;
    Ok(())
}

/// NAM-05, G-04.
fn a_name_that_is_given_names_the_file(t: &Guest) -> Result<()> {
    let tree = t.tree().name("dirname").build()?;
    let _beside = write_beside(&tree, "[Exec]\nEnvironment=A=dirname\n")?;
    let given = beside(&tree).with_file_name("given.nspawn");
    let _given = Written::at(given, "[Exec]\nEnvironment=A=given\n")?;
    t.container(&tree).arg("-Mgiven").sh("echo $A")?.prints("given")?;
    t.container(&tree).arg("-Mother").sh("echo =$A")?.prints("=")?;
    Ok(())
}

/// G-04: not one of the copy's random name.
fn a_throw_away_run_reads_the_trees_own_file(t: &Guest) -> Result<()> {
    let tree = t.tree().name("thrown").build()?;
    let _beside = write_beside(&tree, "[Exec]\nEnvironment=A=own\n")?;
    t.container(&tree).arg("-x").sh("echo $A")?.prints("own")?;
    Ok(())
}

/// F-02: below /run, as below /etc, all keys count.
fn the_administrators_file_may_ask_for_anything(t: &Guest) -> Result<()> {
    let tree = t.tree().name("admin").build()?;
    let _file = Written::installed(
        "/run",
        "admin",
        "[Exec]\nCapability=CAP_SYSLOG\nLimitNOFILE=77\n[Files]\nTemporaryFileSystem=/var\n\
         [Network]\nPrivate=yes\n",
    )?;
    let run = t.container(&tree).sh(
        "grep -c ' /var tmpfs ' /proc/mounts; ulimit -n; ls /sys/class/net; grep CapBnd /proc/self/status",
    )?;
    run.succeeds()?;
    let text = run.text();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines[..3] == ["1", "77", "lo"], "{run}");
    let set = lines[3].split('\t').next_back().unwrap_or_default();
    let set = u64::from_str_radix(set, 16).with_context(|| format!("reading a set\n{run}"))?;
    // CAP_SYSLOG is bit 34 (linux/capability.h).
    ensure!(set & (1 << 34) != 0, "the capability is missing\n{run}");
    Ok(())
}

/// F-02, R13, CVE-2026-40226: each is ignored with a warning, what takes rights away still counts.
fn a_neighbours_file_cannot_ask_for_rights(t: &Guest) -> Result<()> {
    let tree = t.tree().dir("mnt").name("hostile").build()?;
    let secret = t.scratch().join("secret");
    let bind = format!("{}:/mnt/secret", secret.display());
    let _secret = Written::at(secret, "the host's")?;
    let _beside = write_beside(
        &tree,
        &format!(
            "[Exec]\nCapability=all\nAmbientCapability=CAP_SYSLOG\nLimitNOFILE=77\nMachineID=0123456789abcdef0123456789abcdef\n\
             DropCapability=CAP_KILL\n[Files]\nBind={bind}\nBindReadOnly={bind}\nTemporaryFileSystem=/var\n\
             Overlay=/etc::/mnt\n"
        ),
    )?;
    let run = t.container(&tree).sh(
        "ls /mnt; ulimit -n; grep -c ' /var tmpfs ' /proc/mounts; echo $container_uuid; grep CapBnd /proc/self/status",
    )?;
    run.succeeds()?;
    let text = run.text();
    ensure!(!text.contains("secret") && !text.contains("01234567-89ab"), "it was granted\n{run}");
    ensure!(!text.lines().any(|line| line == "77" || line == "1"), "it was granted\n{run}");
    let set = text.lines().last().and_then(|line| line.split('\t').next_back()).unwrap_or_default();
    let set = u64::from_str_radix(set, 16).with_context(|| format!("reading a set\n{run}"))?;
    // CAP_SYSLOG is bit 34 and CAP_KILL bit 5 (linux/capability.h).
    ensure!(set & (1 << 34) == 0 && set & (1 << 5) == 0, "the bounding set is {set:x}\n{run}");
    for key in ["Capability", "Bind", "TemporaryFileSystem", "LimitNOFILE"] {
        ensure!(run.stderr.contains(&format!("{key}=")), "nothing was said of {key}=\n{run}");
    }
    Ok(())
}

/// All keys that only a trusted file may use.
const RIGHTS: &str = "[Exec]
Ephemeral=yes
Capability=all
AmbientCapability=CAP_SYSLOG
MachineID=0123456789abcdef0123456789abcdef
PrivateUsers=identity
PrivateUsersDelegate=1
OOMScoreAdjust=-900
CPUAffinity=0
SuppressSync=yes
LinkJournal=host
LimitCPU=77
LimitFSIZE=77
LimitDATA=77
LimitSTACK=77
LimitCORE=77
LimitRSS=77
LimitNOFILE=77
LimitAS=77
LimitNPROC=77
LimitMEMLOCK=77
LimitLOCKS=77
LimitSIGPENDING=77
LimitMSGQUEUE=77
LimitNICE=1
LimitRTPRIO=1
LimitRTTIME=77
[Files]
PrivateUsersOwnership=chown
PrivateUsersChown=yes
Bind=/etc:/mnt
BindReadOnly=/etc:/mnt
Inaccessible=/etc
TemporaryFileSystem=/var
Overlay=/etc::/mnt
OverlayReadOnly=/etc::/mnt
BindUser=nobody
BindUserShell=yes
[Network]
Private=yes
Interface=lo
MACVLAN=lo
IPVLAN=lo
VirtualEthernet=yes
VirtualEthernetExtra=a:b
Bridge=b
Zone=z
NamespacePath=/proc/self/ns/net
Port=80
";

/// F-02, R13: none of them is forgotten.
fn each_right_that_a_neighbours_file_asks_for_is_told(t: &Guest) -> Result<()> {
    let tree = t.tree().name("asking").build()?;
    let _beside = write_beside(&tree, RIGHTS)?;
    let run = t.container(&tree).sh("ls /run/host/home 2>/dev/null; ulimit -n; echo $$")?;
    let lines = (1..).zip(RIGHTS.lines());
    for (number, key) in lines.filter_map(|(number, line)| Some((number, line.split_once('=')?.0)))
    {
        let told = format!("asking.nspawn, line {number}: {key}= needs a trusted file");
        ensure!(run.stderr.contains(&told), "nothing was said of {key}=\n{run}");
    }
    run.succeeds()?;
    ensure!(!run.text().contains("nobody") && !run.text().contains("77\n"), "granted\n{run}");
    Ok(())
}

/// F-02, R13: taking away is for anyone, giving back is not.
fn a_neighbours_file_may_forbid_calls_and_allow_none(t: &Guest) -> Result<()> {
    let tree = t.tree().name("calling").probe().build()?;
    let _beside = write_beside(
        &tree,
        "[Exec]\nSystemCallFilter=keyctl bpf\nSystemCallFilter=~openat2\n\
         RestrictAddressFamilies=~AF_PACKET\nRestrictAddressFamilies=AF_PACKET\n",
    )?;
    let seen = t.container(&tree).observe()?;
    for call in ["keyctl", "bpf", "openat2"] {
        ensure!(seen.calls[call] == libc::EPERM, "{call} answers {}", seen.calls[call]);
    }
    ensure!(seen.sockets["AF_PACKET"] == libc::EAFNOSUPPORT, "{:?}", seen.sockets);
    Ok(())
}

/// PIV-09: a wrong value is told with its file and line, and costs nothing else.
fn a_bad_line_is_told_and_the_rest_counts(t: &Guest) -> Result<()> {
    let tree = t.tree().name("wrong").build()?;
    let _beside = write_beside(
        &tree,
        "[Exec]\nBogus=1\nPivotRoot=relative\njunk\nBoot=maybe\n[Bogus]\nx=1\n[Exec]\nEnvironment=A=\\\n# between\n  B=2\n",
    )?;
    let run = t.container(&tree).sh("echo ran=$A,$B")?;
    run.prints("ran=,2")?;
    let told = |words: [&str; 2]| {
        run.stderr.lines().any(|line| {
            line.contains("wrong.nspawn") && words.iter().all(|word| line.contains(word))
        })
    };
    for words in [["2", "Bogus"], ["3", "relative"], ["4", ""], ["5", "maybe"], ["6", "Bogus"]] {
        ensure!(told(words), "{words:?} are in no line\n{run}");
    }
    Ok(())
}

/// systemd.nspawn(5), as 252 has it: of a list, of a path, of a name.
fn an_empty_assignment_takes_back(t: &Guest) -> Result<()> {
    let tree = t.tree().name("empty").build()?;
    let _beside = write_beside(
        &tree,
        "[Exec]\nHostname=other\nHostname=\nEnvironment=A=1\nEnvironment=\nEnvironment=B=2\n\
         WorkingDirectory=/usr\nWorkingDirectory=\n",
    )?;
    t.container(&tree).sh("echo $(hostname) =$A $B $(pwd)")?.prints("empty = 2 /")?;
    Ok(())
}

/// F-01: `Parameters=` below `Boot=no`, as the manual's example has it; a command of the command line comes first.
fn a_files_command_runs_when_none_was_given(t: &Guest) -> Result<()> {
    let tree = t.tree().name("params").build()?;
    let _beside = write_beside(&tree, "[Exec]\nBoot=no\nParameters=echo one 'two words'\n")?;
    t.container(&tree).run(&[])?.prints("one two words")?;
    t.container(&tree).run(&["/bin/echo", "other"])?.prints("other")?;
    Ok(())
}

/// F-01: the init is not to take the command for its arguments.
fn a_command_runs_instead_of_a_files_init(t: &Guest) -> Result<()> {
    let init = "echo init \"$@\"";
    let tree = t.tree().name("booting").script("usr/lib/systemd/systemd", init).build()?;
    let _beside = write_beside(&tree, "[Exec]\nBoot=yes\n")?;
    t.container(&tree).run(&[])?.prints("init")?;
    t.container(&tree).run(&["/bin/echo", "command"])?.prints("command")?;
    Ok(())
}

/// R3, security.md 3.8: systemd-nspawn waits for ever at the first two. A difference from it, and one that a link
/// is not followed where the tree's owner may have made it.
fn a_file_that_is_no_file_is_refused_without_waiting(t: &Guest) -> Result<()> {
    let tree = t.tree().name("odd").build()?;
    let file = beside(&tree);
    let name = file.display().to_string();
    let made = |command: &mut Command| -> Result<()> {
        let status = command.status().with_context(|| format!("running {command:?}"))?;
        ensure!(status.success(), "{command:?}: {status}");
        Ok(())
    };
    let makers: [&dyn Fn() -> Result<()>; 4] = [
        &|| made(Command::new("mkfifo").arg(&file)),
        &|| made(Command::new("mknod").arg(&file).args(["c", "1", "5"])),
        &|| symlink("/dev/zero", &file).context("linking"),
        &|| fs::create_dir(&file).context("making a directory"),
    ];
    for make in makers {
        make()?;
        let run = t.container(&tree).sh("echo ran")?;
        run.fails_with(&name)?;
        ensure!(run.stderr.contains("--settings=no"), "no way out is named\n{run}");
        t.container(&tree).arg("--settings=no").sh("echo ran")?.prints("ran")?;
        fs::remove_file(&file).or_else(|_| fs::remove_dir(&file)).context("removing it")?;
    }
    Ok(())
}

/// Appendix A, "one huge settings file": just below 1 MiB, and its last line counts.
fn a_huge_file_is_read_to_its_end(t: &Guest) -> Result<()> {
    let tree = t.tree().name("huge").build()?;
    let mut text = String::from("[Exec]\nHostname=first\n");
    let mut count = 0;
    while text.len() < (1 << 20) - 200 {
        match count % 4 {
            0 => text.push_str("# a comment that is as long as comments are\n"),
            1 => text.push_str("DropCapability=CAP_KILL \\\n  CAP_CHOWN\n"),
            2 => text.push_str("\n[Network]\n[Files]\nReadOnly=no\n[Exec]\n"),
            _ => text.push_str(&format!("Environment=LAST={count}\n")),
        }
        count += 1;
    }
    text.push_str("Environment=LAST=end\nHostname=last\n");
    let _beside = write_beside(&tree, &text)?;
    t.container(&tree).sh("echo $(hostname) $LAST")?.prints("last end")?;
    Ok(())
}

/// R3: 1 MiB is the bound. A difference from systemd-nspawn, which reads on.
fn a_file_beyond_every_measure_is_refused(t: &Guest) -> Result<()> {
    let tree = t.tree().name("giant").build()?;
    let beside = write_beside(&tree, "")?;
    let file = fs::File::options().write(true).open(&beside.0).context("opening the file")?;
    file.set_len(1 << 40).context("growing the file")?;
    t.container(&tree).sh("echo ran")?.fails_with("larger than 1048576 bytes")?;
    Ok(())
}
