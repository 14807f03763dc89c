//! Holding it wrong: each refusal names what was wrong, exits 1, and writes nothing to standard output.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::container::Run;
use harness::guest::Guest;

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
    an_ordinary_user_is_told_to_become_root,
    help_and_version_need_no_root,
    options_behind_the_command_are_the_commands,
];

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

/// CON-10.
fn an_ordinary_user_is_told_to_become_root(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let before = tree.listing()?;
    let run = t.container(&tree).through(ORDINARY).sh("true")?;
    is_civil(run.fails_with("root")?)?;
    tree.listing()?.same_as(&before)
}

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
