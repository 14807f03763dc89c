//! Holding it wrong: each refusal names what was wrong, exits 1, and writes nothing to standard output.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Run;
use harness::guest::{Guest, Subject};

const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    a_tree_that_is_not_there_is_named,
    a_tree_without_usr_is_refused_before_it_is_touched,
    the_running_system_is_refused_without_x,
    an_unknown_option_is_named,
    an_option_without_its_value_is_named,
    a_bad_machine_name_is_named,
    a_bad_assignment_is_named,
    a_bad_bind_is_named,
    a_file_is_no_tree,
    help_and_version_need_no_root,
    options_behind_the_command_are_the_commands,
    what_excludes_each_other_touches_nothing,
    a_tree_without_os_release_is_not_booted,
    a_tree_without_an_init_is_not_booted,
    a_tree_in_use_is_named,
    a_command_that_cannot_run_is_explained_by_its_file,
    a_program_of_another_machine_is_no_script,
    a_script_without_a_first_line_runs_in_a_shell,
    a_missing_shell_is_told,
    what_a_container_needs_is_told_by_name,
    a_tree_with_a_file_or_link_for_proc_is_explained,
    missing_rights_are_named,
    a_root_of_a_user_namespace_is_told_so: [OURS],
    a_working_directory_that_is_gone_is_told,
    a_name_cannot_write_to_the_terminal,
    a_host_without_systemd_is_enough,
    a_name_alone_is_searched_among_the_machines,
];

/// R14, DEF-09, DEF-15: one line with `words` in it and one hint, nothing on the standard output. What
/// systemd-nspawn writes is its own.
fn is_told(t: &Guest, run: &Run, code: i32, words: &[&str]) -> Result<()> {
    run.exits(code)?;
    ensure!(run.stdout.is_empty(), "a refusal wrote to standard output\n{run}");
    ensure!(!run.stderr.contains("panicked"), "a panic\n{run}");
    if t.subject() == Subject::Nspawn {
        return Ok(());
    }
    let lines: Vec<&str> = run.stderr.lines().collect();
    let shaped = matches!(lines[..], [what, hint]
        if what.starts_with("rspawn: ") && hint.starts_with("hint: "));
    ensure!(shaped, "not one line and one hint\n{run}");
    for word in words {
        ensure!(run.stderr.contains(word), "the complaint does not name \"{word}\"\n{run}");
    }
    Ok(())
}

/// R14: one complaint, no panic, no trace of Rust.
fn is_civil(run: &Run) -> Result<()> {
    ensure!(
        !run.stderr.contains("panicked") && !run.stderr.contains("RUST_BACKTRACE"),
        "a panic\n{run}"
    );
    let complaints = run.stderr.lines().filter(|line| !line.starts_with("hint:")).count();
    ensure!((1..=4).contains(&complaints), "{complaints} lines of complaint\n{run}");
    Ok(())
}

/// CLI-05.
fn a_tree_that_is_not_there_is_named(t: &Guest) -> Result<()> {
    let run = t.container_at(Path::new("/no/such/tree")).sh("true")?;
    is_civil(run.fails_with("/no/such/tree")?)
}

/// CHK-02, DEF-14: checked first, copied later.
fn a_tree_without_usr_is_refused_before_it_is_touched(t: &Guest) -> Result<()> {
    let tree = harness::fixture::tree::Builder::empty(t.scratch()).file("file", "text").build()?;
    let before = tree.listing()?;
    for option in ["--read-only", "-x", "-q"] {
        let run = t.container(&tree).arg(option).sh("true")?;
        is_civil(run.fails_with(&tree.path().display().to_string())?)?;
    }
    tree.listing()?.same_as(&before)
}

/// CON-12.
fn the_running_system_is_refused_without_x(t: &Guest) -> Result<()> {
    let run = t.container_at(Path::new("/")).sh("true")?;
    is_civil(run.exits(1)?)?;
    ensure!(
        ["-x", "--ephemeral"].iter().any(|way| run.stderr.contains(way)),
        "no way out is named\n{run}"
    );
    Ok(())
}

/// CLI-04.
fn an_unknown_option_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for option in ["--no-such-option", "--read-onl=x", "-?"] {
        let run = t.container(&tree).arg(option).sh("true")?;
        run.fails_with(option.split('=').next().unwrap_or(option).trim_start_matches('-'))?;
    }
    Ok(())
}

/// CLI-04.
fn an_option_without_its_value_is_named(t: &Guest) -> Result<()> {
    for option in
        ["--directory", "--machine", "--setenv", "--bind", "--bind-ro", "--chdir", "--uid"]
    {
        t.command().arg(option).run(&[])?.fails_with(option)?;
    }
    Ok(())
}

/// CLI-11, R15.
fn a_bad_machine_name_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let long = "x".repeat(65);
    for name in ["bad name", "../up", "a/b", ".", "-x-", long.as_str()] {
        let run = t.container(&tree).arg(format!("--machine={name}")).sh("true")?;
        is_civil(run.fails_with(name)?)?;
    }
    Ok(())
}

/// CLI-26.
fn a_bad_assignment_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for assignment in ["=value", "1A=value", "A B=value"] {
        let run = t.container(&tree).arg(format!("--setenv={assignment}")).sh("true")?;
        is_civil(run.fails_with(assignment)?)?;
    }
    Ok(())
}

/// CLI-24.
fn a_bad_bind_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for option in
        ["--bind=/etc:relative", "--bind-ro=/etc:/mnt:no-such-option", "--bind=/etc:/../..:x"]
    {
        let run = t.container(&tree).arg(option).sh("true")?;
        let value = option.split_once('=').map_or(option, |(_, value)| value);
        is_civil(&run)?;
        run.exits(1)?;
        ensure!(
            run.stdout.is_empty() && value.split(':').any(|part| run.stderr.contains(part)),
            "{run}"
        );
    }
    Ok(())
}

/// CLI-05.
fn a_file_is_no_tree(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let file = tree.path().join("etc/passwd");
    let run = t.container_at(&file).sh("true")?;
    is_civil(run.fails_with("etc/passwd")?)
}

const ORDINARY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];

/// CLI-03.
fn help_and_version_need_no_root(t: &Guest) -> Result<()> {
    for option in ["-h", "--help", "--version"] {
        let run = t.command().through(ORDINARY).arg(option).run(&[])?;
        run.succeeds()?;
        ensure!(!run.stdout.is_empty() && run.stderr.is_empty(), "on the wrong stream\n{run}");
    }
    Ok(())
}

/// CLI-01.
fn options_behind_the_command_are_the_commands(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).run(&["/bin/echo", "-x", "--no-such-option", "-D", "/"])?;
    run.prints("-x --no-such-option -D /").context("passing options on")?;
    Ok(())
}

/// CON-01, CON-03…06, CON-08, G-05, I-06: exit status 1 and not a file was touched; 125 with `--exit-mode=shell`,
/// which systemd-nspawn does not have. What later versions allow is not refused as a conflict (CON-07, CON-09).
fn what_excludes_each_other_touches_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let before = tree.listing()?;
    let other = t.scratch().join("other").display().to_string();
    for options in [
        vec!["--image=/img"],
        vec!["--template=/tmpl", "--image=/img"],
        vec!["-x", "--template=/tmpl"],
        vec!["-x", "--link-journal=host"],
        vec!["-x", "--link-journal=guest"],
        vec!["-b", "-a"],
    ] {
        let container = options.iter().fold(t.container(&tree), |line, word| line.arg(word));
        let run = container.sh("true")?;
        is_told(t, &run, 1, &["exclude"]).or_else(|_| is_told(t, &run, 1, &["combined"]))?;
        if t.subject() == Subject::Rspawn {
            let run = container.arg("--exit-mode=shell").sh("true")?;
            ensure!(run.status.code() == Some(125), "not 125\n{run}");
        }
    }
    let run = t.command().arg(format!("--template={other}")).run(&["/bin/true"])?;
    is_told(t, &run, 1, &["--template= needs --directory= or --machine="])?;
    if t.subject() == Subject::Rspawn {
        let run = t.container(&tree).args(["-b", "--share-system"]).sh("true")?;
        is_told(t, &run, 1, &["--boot and --share-system"])?;
        let run = t.command().arg("--cleanup").run(&[])?;
        is_told(t, &run, 1, &["--cleanup needs"])?;
    }
    ensure!(!Path::new(&other).exists(), "{other} was made");
    tree.listing()?.same_as(&before)
}

/// CHK-01.
fn a_tree_without_os_release_is_not_booted(t: &Guest) -> Result<()> {
    let tree = t.tree().without("etc/os-release").build()?;
    let before = tree.listing()?;
    for options in [&["-b"][..], &["-b", "-x"]] {
        let container = options.iter().fold(t.container(&tree), |line, word| line.arg(word));
        let shown = tree.path().display().to_string();
        is_told(t, &container.run(&[])?, 1, &["os-release", &shown])?;
    }
    tree.listing()?.same_as(&before)
}

/// NS-10, NS-13.
fn a_tree_without_an_init_is_not_booted(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).arg("-b").arg("--console=pipe").run(&[])?;
    is_told(t, &run, 1, &["/usr/lib/systemd/systemd, /lib/systemd/systemd, /sbin/init", "--boot"])
}

/// SNP-51.
fn a_tree_in_use_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t.container(&tree).start("echo up; read line; true")?;
    running.next_line()?;
    let shown = tree.path().display().to_string();
    is_told(t, &t.container(&tree).sh("true")?, 1, &[&shown, "in use", "-x"])?;
    t.container(&tree).arg("-x").sh("true")?.succeeds()?;
    running.end()?.succeeds()?;
    Ok(())
}

/// NS-13, DEF-09: the file tells what exec(3) does not. systemd-nspawn has other words, and 1 only.
fn a_command_that_cannot_run_is_explained_by_its_file(t: &Guest) -> Result<()> {
    let tree = t
        .tree()
        .file("usr/bin/plain", "text")
        .link("usr/bin/dangling", "/no/such/program")
        .script("usr/bin/odd", "")
        .file("usr/bin/library", "")
        .dir("usr/bin/folder")
        .build()?;
    fs::write(tree.path().join("usr/bin/odd"), "#!/no/interpreter -x\n").context("writing")?;
    // A copy keeps the mode; its loader is not in the tree.
    fs::copy("/bin/true", tree.path().join("usr/bin/dynamic")).context("copying a program")?;
    for (command, words, code) in [
        ("nothing", "no directory of the container's PATH has a \"nothing\"", 127),
        ("/usr/bin/nothing", "there is no /usr/bin/nothing in the tree", 127),
        ("dangling", "/usr/bin/dangling is a link to something that is not in the tree", 127),
        ("odd", "/usr/bin/odd is a script for /no/interpreter, which is not in the tree", 127),
        ("dynamic", "/usr/bin/dynamic needs the loader /", 127),
        ("plain", "/usr/bin/plain is not executable", 126),
        ("/usr/bin/plain", "/usr/bin/plain is not executable", 126),
        ("folder", "/usr/bin/folder is a directory", 126),
    ] {
        if t.subject() == Subject::Nspawn {
            t.container(&tree).run(&[command])?.exits(1)?;
            continue;
        }
        let run = t.container(&tree).run(&[command])?;
        is_told(t, &run, 1, &[&format!("executing \"{command}\""), words])?;
        let run = t.container(&tree).arg("--exit-mode=shell").run(&[command])?;
        is_told(t, &run, code, &[words])?;
    }
    Ok(())
}

/// A 64-bit program for s390x: only its header. systemd-nspawn has a shell run it, as execvpe(3) does: a difference.
const FOREIGN: &[u8] = b"\x7fELF\x02\x02\x01\0\0\0\0\0\0\0\0\0\0\x02\0\x16\0\0\0\x01";

fn a_program_of_another_machine_is_no_script(t: &Guest) -> Result<()> {
    let tree = t.tree().script("usr/bin/foreign", "").build()?;
    fs::write(tree.path().join("usr/bin/foreign"), FOREIGN).context("writing a program")?;
    let run = t.container(&tree).run(&["foreign"])?;
    is_told(t, &run, 1, &["executing \"foreign\"", "/usr/bin/foreign is a program for"])?;
    let run = t.container(&tree).arg("--exit-mode=shell").run(&["foreign"])?;
    is_told(t, &run, 126, &[])
}

/// NS-11, execvp(3).
fn a_script_without_a_first_line_runs_in_a_shell(t: &Guest) -> Result<()> {
    let tree = t.tree().script("usr/bin/bare", "").build()?;
    fs::write(tree.path().join("usr/bin/bare"), "echo $0 $1\n").context("writing a script")?;
    for command in ["bare", "/usr/bin/bare"] {
        t.container(&tree).run(&[command, "word"])?.prints("/usr/bin/bare word")?;
    }
    Ok(())
}

/// NS-12, NS-13.
fn a_missing_shell_is_told(t: &Guest) -> Result<()> {
    let tree = t.tree().without("usr/bin/sh").build()?;
    let words = ["/bin/bash or /bin/sh", "name a command that it has"];
    is_told(t, &t.container(&tree).run(&[])?, 1, &words)
}

/// CLI-05, CLI-24, E-03, E-04, M-03, MNT-30: each names the option and what was not found.
fn what_a_container_needs_is_told_by_name(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for (option, words) in [
        ("--bind=/no/source", &["--bind=/no/source", "looking for the source"][..]),
        ("--bind-ro=/no/source:/mnt", &["--bind-ro=/no/source:/mnt"]),
        ("--chdir=/no/place", &["--chdir=", "\"/no/place\"", "one of the container"]),
        ("--settings=no --machine=..", &["--machine="]),
    ] {
        let container = option.split(' ').fold(t.container(&tree), |line, word| line.arg(word));
        is_told(t, &container.run(&["/bin/true"])?, 1, words)?;
    }
    is_told(t, &t.container(&tree).run(&[""])?, 1, &["the command is an empty word"])
}

/// 4.1 #24, runc CVE-2019-19921: what the API file systems are mounted on must be a directory of the tree.
fn a_tree_with_a_file_or_link_for_proc_is_explained(t: &Guest) -> Result<()> {
    if t.subject() == Subject::Nspawn {
        // It follows the link.
        return Ok(());
    }
    for (name, place) in [("linked", "proc"), ("linked2", "sys"), ("linked3", "dev")] {
        let tree = t.tree().name(name).without(place).link(place, "/etc").build()?;
        let words = [&format!("/{place}"), "symbolic link"];
        is_told(t, &t.container(&tree).sh("true")?, 1, &words.map(|word| word as &str))?;
    }
    let tree = t.tree().name("filed").without("proc").file("proc", "text").build()?;
    is_told(t, &t.container(&tree).sh("true")?, 1, &["/proc", "must be a directory"])
}

/// NS-01: root without a capability that a start needs, as in many containers. systemd-nspawn has other words.
fn missing_rights_are_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for (option, name) in
        [("--bounding-set=-sys_admin", "CAP_SYS_ADMIN"), ("--bounding-set=-setpcap", "CAP_SETPCAP")]
    {
        if t.subject() == Subject::Nspawn {
            continue;
        }
        let container = t.container(&tree).through(&["setpriv", option, "--"]);
        is_told(t, &container.sh("true")?, 1, &["Operation not permitted", name])?;
    }
    Ok(())
}

/// CON-10: id 0 alone is no root.
fn a_root_of_a_user_namespace_is_told_so(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).through(&["unshare", "--user", "--map-root-user", "--"]);
    is_told(t, &container.sh("true")?, 1, &["Operation not permitted", "user namespace"])
}

/// NAM-02.
fn a_working_directory_that_is_gone_is_told(t: &Guest) -> Result<()> {
    let place = t.scratch().join("gone");
    fs::create_dir(&place).context("making a directory")?;
    let script = format!("cd {0} && rmdir {0} && exec \"$@\"", place.display());
    let run = t.command().through(&["/bin/sh", "-c", &script, "sh"]).run(&[])?;
    is_told(t, &run, 1, &["the working directory", "-D"])
}

/// R14: a file's name may hold anything; the message is still one line without control characters.
fn a_name_cannot_write_to_the_terminal(t: &Guest) -> Result<()> {
    let odd = t.scratch().join("odd\n\u{1b}[2Jname");
    symlink("/nowhere", &odd).context("making a link")?;
    let run = t.container_at(&odd).sh("true");
    fs::remove_file(&odd).context("removing the link")?;
    let run = run?;
    is_told(t, &run, 1, &["name"])?;
    let clean = run.stderr.chars().all(|char| char == '\n' || !char.is_control());
    ensure!(clean || t.subject() == Subject::Nspawn, "a control character\n{run}");
    Ok(())
}

/// CON-11, P-05: this guest was not booted by systemd and has no bus, and nothing asks for them.
fn a_host_without_systemd_is_enough(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    if !Path::new("/run/systemd/system").exists() {
        let container = t.container(&tree).args(["--register=no", "--keep-unit"]);
        container.sh("echo runs")?.prints("runs")?;
    }
    Ok(())
}

/// NAM-01, I-01: a link among the machines leads to the tree; a name that is not there is told with the places.
fn a_name_alone_is_searched_among_the_machines(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let place = Path::new("/var/lib/machines");
    fs::create_dir_all(place).context("making the directory of machines")?;
    let name = format!("case-{}", std::process::id());
    symlink(tree.path(), place.join(&name)).context("linking the tree")?;
    let run = t.command().arg(format!("-M{name}")).run(&["/bin/hostname"]);
    fs::remove_file(place.join(&name)).context("removing the link")?;
    run?.prints(&name)?;
    let run = t.command().arg("-Mno-such-machine").run(&["/bin/true"])?;
    is_told(
        t,
        &run,
        1,
        &["--machine=: there is no machine \"no-such-machine\"", "/var/lib/machines"],
    )
}
