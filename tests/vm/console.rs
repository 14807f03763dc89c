//! The payload's three streams: plain pipes where the caller has none but pipes, a terminal where it has one.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::guest::Guest;
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

cases![
    pipes_carry_every_byte_unchanged,
    standard_output_and_errors_stay_apart,
    a_closed_output_ends_the_payload_not_the_launcher,
    a_terminal_gives_the_payload_a_terminal_of_its_own,
    the_terminals_size_is_passed_on,
    what_is_typed_reaches_the_payload,
    the_callers_terminal_is_left_as_it_was,
    the_exit_code_is_passed_on_from_a_terminal,
];

/// 4.1 #17: no translation of line ends, no end-of-file character, no lost tail.
fn pipes_carry_every_byte_unchanged(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 256 + n / 7000) as u8).collect();
    let mut input = tempfile::tempfile().context("making a file of input")?;
    input.write_all(&bytes).and_then(|()| input.rewind()).context("writing the input")?;
    let run = t.container(&tree).run_with_input(&["/bin/cat"], Stdio::from(input))?;
    run.succeeds()?;
    ensure!(
        run.stdout == bytes,
        "{} bytes came back of {}, or others",
        run.stdout.len(),
        bytes.len()
    );
    Ok(())
}

/// E-09, C-01: pipe mode.
fn standard_output_and_errors_stay_apart(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).sh("echo out; echo err >&2; exit 4")?;
    run.exits(4)?;
    ensure!(run.text() == "out\n" && run.stderr.contains("err\n"), "mixed\n{run}");
    Ok(())
}

/// G-09: the launcher survives a reader that went away; the payload gets SIGPIPE as anywhere.
fn a_closed_output_ends_the_payload_not_the_launcher(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t
        .container(&tree)
        .through(&["/bin/sh", "-c", "{ \"$@\"; echo code $? >&2; } | head -n 1", "sh"])
        .sh("yes; echo ended >&2")?;
    ensure!(run.text() == "y\n" && run.stderr.contains("ended"), "no end\n{run}");
    ensure!(run.stderr.contains("code 0"), "the launcher died\n{run}");
    Ok(())
}

struct Terminal {
    /// The user's side.
    screen: File,
    /// What the launcher gets.
    line: OwnedFd,
}

fn terminal() -> Result<Terminal> {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("opening a terminal")?;
    grantpt(&screen).and_then(|()| unlockpt(&screen)).context("unlocking a terminal")?;
    let name = ptsname(&screen, Vec::new()).context("asking for the terminal's name")?;
    let name = name.into_string().context("reading the terminal's name")?;
    tcsetwinsize(&screen, Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 })
        .context("setting the terminal's size")?;
    // Without NOCTTY it would become the terminal of this case's session, and hang it up at the end.
    let line = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .context("opening the terminal's line")?;
    Ok(Terminal { screen: screen.into(), line })
}

/// Runs a script with a terminal, types `typed` once the payload has printed a line, and returns all that the screen
/// shows.
fn on_terminal(t: &Guest, script: &str, typed: &str) -> Result<(Option<i32>, String)> {
    let tree = t.tree().build()?;
    let Terminal { mut screen, line } = terminal()?;
    let before = tcgetattr(&line).context("reading the terminal's modes")?;
    let kept = line.try_clone().context("keeping the terminal open")?;
    let mut child = t
        .container(&tree)
        .caller_env("TERM", "dumb")
        .start_on_terminal(&format!("echo ready; {script}; echo :over"), line)?;
    let mut shown = Vec::new();
    let mut sent = false;
    let mut buffer = [0; 4096];
    // The last line of the script is the event that ends the reading.
    while !String::from_utf8_lossy(&shown).contains(":over\r") && !child_ended(&mut child)? {
        let count = screen.read(&mut buffer).context("reading the screen")?;
        shown.extend_from_slice(&buffer[..count]);
        if !sent && String::from_utf8_lossy(&shown).contains("ready\r") {
            screen.write_all(typed.as_bytes()).context("typing")?;
            sent = true;
        }
    }
    // What is not read can keep the launcher from ending.
    let drain = std::thread::spawn(move || {
        let mut rest = Vec::new();
        // The line's last end closes: EIO.
        let _ = screen.read_to_end(&mut rest);
    });
    let status = child.wait().context("waiting for the subject")?;
    let after = tcgetattr(&kept).context("reading the terminal's modes")?;
    ensure!(
        (before.input_modes, before.output_modes, before.local_modes, before.control_modes)
            == (after.input_modes, after.output_modes, after.local_modes, after.control_modes),
        "the terminal's modes changed from {before:?} to {after:?}"
    );
    drop(kept);
    drain.join().map_err(|_| anyhow::anyhow!("the reader of the screen panicked"))?;
    Ok((status.code(), String::from_utf8_lossy(&shown).into_owned()))
}

/// A subject that refuses to start prints nothing more; then the reading must not go on for ever.
fn child_ended(child: &mut std::process::Child) -> Result<bool> {
    Ok(child.try_wait().context("looking at the subject")?.is_some())
}

/// DEV-04, bubblewrap CVE-2017-5226: not the caller's terminal, of which not even the name is known inside.
fn a_terminal_gives_the_payload_a_terminal_of_its_own(t: &Guest) -> Result<()> {
    let (_, shown) = on_terminal(
        t,
        "test -t 0 && test -t 1 && test -t 2 && echo three; tty; stat -c %t,%T $(tty); echo > /dev/tty && echo ctty",
        "",
    )?;
    ensure!(shown.contains("three\r"), "no terminal: {shown:?}");
    ensure!(shown.contains("/dev/console\r") || shown.contains("/dev/pts/"), "its name: {shown:?}");
    ensure!(shown.contains("ctty\r"), "it is not the controlling one: {shown:?}");
    Ok(())
}

/// RUN-03.
fn the_terminals_size_is_passed_on(t: &Guest) -> Result<()> {
    let (_, shown) = on_terminal(t, "stty size", "")?;
    ensure!(shown.contains("33 77"), "another size: {shown:?}");
    Ok(())
}

/// RUN-03.
fn what_is_typed_reaches_the_payload(t: &Guest) -> Result<()> {
    let (_, shown) = on_terminal(t, "read word; echo got=$word", "hello\n")?;
    ensure!(shown.contains("got=hello\r"), "it did not arrive: {shown:?}");
    Ok(())
}

/// RUN-03: [`on_terminal`] compares the modes; here the payload spoils its own.
fn the_callers_terminal_is_left_as_it_was(t: &Guest) -> Result<()> {
    let (code, shown) = on_terminal(t, "stty raw -echo; stty sane", "")?;
    ensure!(code == Some(0), "exit code {code:?}: {shown:?}");
    Ok(())
}

/// RUN-10.
fn the_exit_code_is_passed_on_from_a_terminal(t: &Guest) -> Result<()> {
    let (code, shown) = on_terminal(t, "trap 'exit 9' EXIT", "")?;
    ensure!(code == Some(9), "exit code {code:?}: {shown:?}");
    Ok(())
}
