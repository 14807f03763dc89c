//! The user's own terminal: what of it reaches the payload, and what becomes of it.

use std::fs::File;
use std::io::read_to_string;
use std::os::fd::AsFd;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::guest::observe::descendants_of;
use harness::guest::{Guest, Subject};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{
    LocalModes, OptionalActions, Termios, Winsize, tcgetattr, tcsetattr, tcsetwinsize,
};

use crate::cleanup::{await_ends, watched};
use crate::console::{Screen, bare, terminal};

cases![
    each_stream_is_a_terminal_where_the_callers_is,
    the_escape_key_kills_when_pressed_three_times,
    a_new_size_is_passed_on,
    a_killed_launchers_terminal_is_put_back,
    modes_of_somebody_else_stay_when_the_launcher_is_killed,
];

/// 4.1 #17, C-01: each by itself, so that a redirected stream has every byte unchanged.
fn each_stream_is_a_terminal_where_the_callers_is(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "for n in 0 1 2; do [ -t $n ] && seen=$seen$n; done; echo \"$seen\" > /seen; \
                  printf 'a\\nb\\n'";
    for number in 0..8_u8 {
        let given = [1, 2, 4].map(|bit| number & bit != 0);
        let mut command = bare(t, &tree);
        command.args(["-q", "/bin/sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut screen = Screen::start_with(command, given)?;
        let output = screen.child.stdout.take();
        let (code, shown) = screen.ends()?;
        ensure!(code == Some(0), "with {given:?} the exit code is {code:?}: {shown:?}");
        let names = (0..3).filter(|stream| given[*stream]).map(|stream| stream.to_string());
        let expected: String = names.collect();
        let seen = tree.read("seen")?;
        ensure!(seen.trim_end() == expected, "with {given:?} terminals are {seen:?}");
        match output {
            Some(pipe) => {
                let text = read_to_string(pipe).context("reading the pipe")?;
                ensure!(text == "a\nb\n", "with {given:?} the pipe has {text:?}");
                ensure!(shown.is_empty(), "with {given:?} it shows {shown:?}");
            }
            // The user's terminal may translate once more what the payload's has translated.
            None => ensure!(shown.replace('\r', "") == "a\nb\n", "with {given:?}: {shown:?}"),
        }
    }
    Ok(())
}

/// RUN-02, C-03: also what listens to no signal.
fn the_escape_key_kills_when_pressed_three_times(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut keys = vec![("-q", b"\x1d\x1d\x1d")];
    if t.subject() == Subject::Rspawn {
        keys.push(("--escape-key=ctrl-a", b"\x01\x01\x01"));
    }
    for (option, typed) in keys {
        let mut command = bare(t, &tree);
        let script = "trap '' TERM HUP INT; echo up; while :; do sleep 1; done";
        command.args([option, "/bin/sh", "-c", script]);
        let mut screen = Screen::start(command)?;
        screen.shows("up\r")?;
        screen.types(typed)?;
        let (code, shown) = screen.ends()?;
        ensure!(code == Some(1), "with {option} the exit code is {code:?}: {shown:?}");
    }
    Ok(())
}

/// RUN-03.
fn a_new_size_is_passed_on(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut command = bare(t, &tree);
    let script = "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.1; done";
    command.args(["-q", "/bin/sh", "-c", script]);
    let mut screen = Screen::start(command)?;
    screen.shows("up\r")?;
    let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&screen.screen, size).context("changing the terminal's size")?;
    // The kernel tells only those whose controlling terminal it is.
    kill_process(Pid::from_child(&screen.child), Signal::WINCH).context("telling the subject")?;
    screen.shows("40 100\r")?;
    screen.ends()?;
    Ok(())
}

/// The modes of a terminal that nobody uses are those of either side.
fn modes(terminal: &impl AsFd) -> Result<Termios> {
    tcgetattr(terminal).context("reading the terminal's modes")
}

fn same(one: &Termios, other: &Termios) -> bool {
    (one.input_modes, one.output_modes, one.local_modes)
        == (other.input_modes, other.output_modes, other.local_modes)
}

/// Kills a launcher that has a terminal, after `then`, and returns the modes that everybody has left it with.
fn left_by_a_killed_one(t: &Guest, then: impl FnOnce(&File) -> Result<()>) -> Result<Termios> {
    let tree = t.tree().build()?;
    let mut command = bare(t, &tree);
    command.args(["-q", "/bin/sh", "-c", "echo up; exec sleep 1000"]);
    let mut screen = Screen::start(command)?;
    screen.shows("up\r")?;
    ensure!(!modes(&screen.screen)?.local_modes.contains(LocalModes::ICANON), "it is not raw");
    then(&screen.screen)?;
    let watched = watched(descendants_of(screen.child.id())?)?;
    screen.child.kill().context("killing the subject")?;
    screen.hangs_up();
    await_ends(&watched)?;
    let left = modes(&screen.screen)?;
    screen.ends()?;
    // What a killed run leaves is removed by the next one.
    t.container(&tree).sh("true")?.succeeds()?;
    Ok(left)
}

/// RUN-03, R7: a shell goes on with the terminal.
fn a_killed_launchers_terminal_is_put_back(t: &Guest) -> Result<()> {
    let before = modes(&terminal()?.screen)?;
    let left = left_by_a_killed_one(t, |_| Ok(()))?;
    ensure!(same(&before, &left), "it was left with {left:?} instead of {before:?}");
    Ok(())
}

/// RUN-03, R7: as a shell that has taken its terminal back, or a pager.
fn modes_of_somebody_else_stay_when_the_launcher_is_killed(t: &Guest) -> Result<()> {
    let mut theirs = modes(&terminal()?.screen)?;
    theirs.local_modes -= LocalModes::ECHO;
    let left = left_by_a_killed_one(t, |terminal| {
        tcsetattr(terminal, OptionalActions::Now, &theirs).context("setting modes of our own")
    })?;
    ensure!(same(&theirs, &left), "it was left with {left:?} instead of {theirs:?}");
    Ok(())
}
