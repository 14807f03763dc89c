//! The payload's three streams: plain pipes where the caller has none but pipes, a terminal where it has one.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::tree::Tree;
use harness::guest::{Guest, Subject};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

cases![
    pipes_carry_every_byte_unchanged,
    standard_output_and_errors_stay_apart,
    a_closed_output_ends_the_payload_not_the_launcher,
    a_closed_stream_is_seen_outside,
    a_terminal_gives_the_payload_a_terminal_of_its_own,
    the_terminals_size_is_passed_on,
    what_is_typed_reaches_the_payload,
    the_callers_terminal_is_left_as_it_was,
    the_exit_code_is_passed_on_from_a_terminal,
    large_data_goes_both_ways_through_a_pipe,
    closed_streams_are_no_obstacle,
    a_read_only_console_shows_and_reads_nothing,
    a_passive_console_shows_nothing,
    an_interactive_console_takes_pipes,
    the_end_of_the_input_is_passed_on,
    autopipe_hands_pipes_on,
    what_was_printed_last_is_still_shown,
    the_hotkeys_restart_and_power_off,
    the_user_is_greeted_unless_quiet,
    an_unfinished_line_is_finished,
    a_background_is_kept_at_a_terminal_only,
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

/// G-09: the launcher holds no end of what is the payload's, which can live on without it.
fn a_closed_stream_is_seen_outside(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let start = |script: &str| {
        let mut command = bare(t, &tree);
        command.args(["-q", "--pipe", "/bin/sh", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the subject")
    };
    let mut child = start("echo said; exec >&-; read word")?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let said = std::io::read_to_string(output.context("there is no output")?);
    let lives_on = !child_ended(&mut child)?;
    drop(input);
    child.wait().context("waiting for the subject")?;
    ensure!(said.context("reading the output")? == "said\n" && lives_on, "another output");
    let mut child = start("exec <&-; echo closed; until [ -e /go ]; do sleep 0.1; done")?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let mut output = output.context("there is no output")?;
    output.read_exact(&mut [0; 7]).context("waiting for the payload")?;
    let mut input = input.context("there is no input")?;
    // The launcher lets go when it sees that the payload runs; a full pipe waits for that.
    let refused = loop {
        if let Err(error) = input.write_all(&[b'x'; 4096]) {
            break error;
        }
    };
    std::fs::write(tree.path().join("go"), "").context("letting it end")?;
    child.wait().context("waiting for the subject")?;
    ensure!(refused.kind() == ErrorKind::BrokenPipe, "{refused}");
    Ok(())
}

pub(crate) struct Terminal {
    /// The user's side.
    pub(crate) screen: File,
    /// What the launcher gets.
    pub(crate) line: OwnedFd,
}

pub(crate) fn terminal() -> Result<Terminal> {
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
    let flags = rustix::fs::fcntl_getfl(&kept).context("reading the terminal's flags")?;
    ensure!(!flags.contains(OFlags::NONBLOCK), "the terminal was left non-blocking");
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

/// C-01: 4 MiB of every byte, in and out at the same time.
fn large_data_goes_both_ways_through_a_pipe(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let bytes: Vec<u8> = (0..4_u32 << 20).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let (reader, mut writer) = std::io::pipe().context("making a pipe")?;
    let input = bytes.clone();
    let feeder = std::thread::spawn(move || writer.write_all(&input));
    let run = t.container(&tree).arg("--pipe").run_with_input(&["/bin/cat"], reader.into())?;
    run.succeeds()?;
    feeder.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))?.context("feeding")?;
    ensure!(run.stdout == bytes, "{} bytes of {} came back", run.stdout.len(), bytes.len());
    Ok(())
}

/// FDS-01: what was opened meanwhile must not be taken for a stream.
fn closed_streams_are_no_obstacle(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for (closed, says) in [("<&-", "runs"), (">&-", ""), ("2>&-", "runs"), ("<&- 2>&-", "runs")] {
        let script = format!("exec \"$@\" {closed}");
        let container = t.container(&tree).through(&["/bin/sh", "-c", &script, "sh"]);
        let run = container.sh("echo runs; cat; exit 3").with_context(|| closed.to_owned())?;
        // A shell that cannot print says so with a status of its own.
        run.exits(3)?;
        ensure!(run.text().trim() == says, "with {closed}\n{run}");
    }
    Ok(())
}

/// C-01: a terminal inside, and its output outside; the input stays where it is.
fn a_read_only_console_shows_and_reads_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let (mut reader, mut writer) = std::io::pipe().context("making a pipe")?;
    writer.write_all(b"left").context("typing ahead")?;
    let input = reader.try_clone().context("sharing the pipe")?;
    let script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; exit 4";
    let run = t
        .container(&tree)
        .arg("--console=read-only")
        .run_with_input(&["/bin/sh", "-c", script], input.into())?;
    run.exits(4)?;
    ensure!(run.text().contains("terminal\r\n"), "nothing was shown\n{run}");
    drop(writer);
    let mut left = String::new();
    reader.read_to_string(&mut left).context("reading what is left")?;
    ensure!(left == "left", "the input was read: {left:?} is left");
    Ok(())
}

/// C-01. A difference from systemd-nspawn 252, which prints at the end what the terminal holds by then; its manual says
/// that the terminal is not connected anywhere. More is printed than all buffers on the way hold.
fn a_passive_console_shows_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "test -t 1 && seq 1 20000; exit 4";
    let run = t.container(&tree).arg("--console=passive").sh(script)?;
    run.exits(4)?;
    ensure!(run.stdout.is_empty(), "it was shown\n{run}");
    Ok(())
}

/// C-01, 4.1 #17: neither end is left non-blocking.
fn an_interactive_console_takes_pipes(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let (reader, mut writer) = std::io::pipe().context("making a pipe")?;
    let kept = reader.try_clone().context("keeping the pipe")?;
    writer.write_all(b"word\n").context("typing")?;
    let run = t
        .container(&tree)
        .arg("--console=interactive")
        .run_with_input(&["/bin/sh", "-c", "test -t 0 && read w; echo got=$w"], reader.into())?;
    run.succeeds()?;
    ensure!(run.text().contains("got=word\r\n"), "it did not arrive\n{run}");
    let flags = rustix::fs::fcntl_getfl(&kept).context("reading the pipe's flags")?;
    ensure!(!flags.contains(OFlags::NONBLOCK), "the pipe was left non-blocking");
    Ok(())
}

/// C-01: also in the middle of a line, where one end-of-file character would end no more than that.
fn the_end_of_the_input_is_passed_on(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for text in ["word", "word\n", ""] {
        let (reader, mut writer) = std::io::pipe().context("making a pipe")?;
        writer.write_all(text.as_bytes()).context("typing")?;
        drop(writer);
        let container = t.container(&tree).arg("--console=interactive");
        let words = ["/bin/sh", "-c", "echo got=$(cat):over"];
        let run = container.run_with_input(&words, reader.into())?;
        run.succeeds()?;
        let expected = format!("got={}:over\r\n", text.trim_end());
        ensure!(run.text().contains(&expected), "of {text:?} it got something else\n{run}");
    }
    Ok(())
}

/// C-01.
fn autopipe_hands_pipes_on(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run =
        t.container(&tree).arg("--console=autopipe").sh("test -t 0 || test -t 1 || echo pipes")?;
    ensure!(run.succeeds()?.text() == "pipes\n", "{run}");
    Ok(())
}

/// RUN-03: more than all buffers on the way hold, from a command that has ended when it is read.
fn what_was_printed_last_is_still_shown(t: &Guest) -> Result<()> {
    let (code, shown) = on_terminal(t, "seq 1 20000", "")?;
    ensure!(code == Some(0), "exit code {code:?}");
    let numbers = shown.lines().filter_map(|line| line.parse::<u32>().ok());
    ensure!(numbers.eq(1..=20000), "lines are missing, doubled or out of order");
    Ok(())
}

/// C-03, RUN-02, DEV-05: a restart keeps the user's terminal; a command has no init to ask, so that both end it. A
/// difference from systemd-nspawn before version 258.
fn the_hotkeys_restart_and_power_off(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut command = bare(t, &tree);
    command.args(["-q", "/bin/sh", "-c", "echo up; while :; do sleep 1; done"]);
    let mut screen = Screen::start(command)?;
    screen.shows("up\r")?;
    screen.types(b"\x1d\x1dr")?;
    screen.shows("up\r")?;
    screen.types(b"\x1d\x1dx\x1d\x1dp")?;
    let (code, _) = screen.ends()?;
    ensure!(code == Some(1), "exit code {code:?}");
    Ok(())
}

/// RUN-01, G-01: a line with the name and the tree, one with the key that ends the container; none with `-q`, and none
/// where all streams are the command's own.
fn the_user_is_greeted_unless_quiet(t: &Guest) -> Result<()> {
    let tree = t.tree().name("greeted").build()?;
    let shown = |options: &[&str]| -> Result<String> {
        let mut command = bare(t, &tree);
        command.args(options).arg("/bin/true");
        Ok(Screen::start(command)?.ends()?.1)
    };
    let text = shown(&[])?;
    let path = tree.path().display().to_string();
    ensure!(text.contains("greeted") && text.contains(&path), "no greeting: {text:?}");
    ensure!(text.contains("Press ^] three times"), "the key is not told: {text:?}");
    ensure!(shown(&["-q"])?.is_empty(), "it is not quiet");
    ensure!(!shown(&["--pipe"])?.contains("Press"), "greeted without a terminal of its own");
    if t.subject() == Subject::Rspawn {
        let text = shown(&["--escape-key=ctrl-a"])?;
        ensure!(text.contains("Press ^A three times"), "another key is told: {text:?}");
        ensure!(!shown(&["--escape-key=none"])?.contains("Press"), "a key is told of none");
    }
    Ok(())
}

/// RUN-04: so that the shell's prompt is at the beginning of a line.
fn an_unfinished_line_is_finished(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for (script, newlines) in [("printf unfinished", 1), ("echo finished", 1)] {
        let mut command = bare(t, &tree);
        command.args(["/bin/sh", "-c", script]);
        let (_, text) = Screen::start(command)?.ends()?;
        let after = text.split("finished").nth(1).unwrap_or_default();
        let blank = after.chars().take_while(|char| "\r\n".contains(*char));
        let count = blank.filter(|char| *char == '\n').count();
        ensure!(count == newlines, "{count} line ends after {script:?}: {text:?}");
    }
    Ok(())
}

/// C-02: set, set again behind a reset, and taken away; never into a pipe. systemd-nspawn has it since version 256.
fn a_background_is_kept_at_a_terminal_only(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut command = bare(t, &tree);
    command.args(["-q", "--background=44", "/bin/sh", "-c", "printf 'a\\033[0mb'"]);
    let (_, text) = Screen::start(command)?.ends()?;
    let expected = "\u{1b}[44ma\u{1b}[0m\u{1b}[44mb\u{1b}[0m\u{1b}[K";
    ensure!(text == expected, "{text:?}");
    for mode in ["pipe", "interactive"] {
        let container = t.container(&tree).arg("--background=44").arg(format!("--console={mode}"));
        ensure!(container.sh("printf plain")?.text() == "plain", "a colour in a pipe");
    }
    Ok(())
}

/// The subject's command line without the harness's `-q`.
pub(crate) fn bare(t: &Guest, tree: &Tree) -> Command {
    let mut command = match t.subject() {
        Subject::Rspawn => Command::new(t.launcher()),
        Subject::Nspawn => {
            let mut command = Command::new("systemd-nspawn");
            command.args(["--register=no", "--keep-unit"]);
            command
        }
    };
    command.arg("-D").arg(tree.path()).env("TERM", "dumb");
    command
}

/// A command at a terminal, typed at by the case.
pub(crate) struct Screen {
    pub(crate) screen: File,
    /// Keeps the terminal from hanging up before its output was read.
    line: Option<OwnedFd>,
    pub(crate) child: Child,
    shown: Vec<u8>,
    /// Up to where it was looked at.
    seen: usize,
}

impl Screen {
    pub(crate) fn start(command: Command) -> Result<Self> {
        Self::start_with(command, [true; 3])
    }

    /// Those of its input, output and errors that are the terminal; the others stay what they are.
    pub(crate) fn start_with(mut command: Command, is_terminal: [bool; 3]) -> Result<Self> {
        let Terminal { screen, line } = terminal()?;
        for (give, _) in [Command::stdin::<OwnedFd>, Command::stdout, Command::stderr]
            .into_iter()
            .zip(is_terminal)
            .filter(|(_, given)| *given)
        {
            give(&mut command, line.try_clone().context("giving the terminal to the subject")?);
        }
        let child = command.spawn().context("starting the subject")?;
        // It holds the streams, which would keep the terminal open.
        drop(command);
        Ok(Self { screen, line: Some(line), child, shown: Vec::new(), seen: 0 })
    }

    pub(crate) fn types(&mut self, keys: &[u8]) -> Result<()> {
        self.screen.write_all(keys).context("typing")
    }

    /// Waits for text after what was waited for before; the case's own limit ends a wait in vain.
    pub(crate) fn shows(&mut self, text: &str) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let rest = String::from_utf8_lossy(&self.shown[self.seen..]).into_owned();
            if let Some(at) = rest.find(text) {
                self.seen += at + text.len();
                return Ok(());
            }
            let count = self.screen.read(&mut buffer).context("reading the screen")?;
            self.shown.extend_from_slice(&buffer[..count]);
        }
    }

    /// Waits until nobody has the terminal open any more.
    pub(crate) fn hangs_up(&mut self) {
        drop(self.line.take());
        // The end of the last one who has the terminal open: EIO.
        let _ = self.screen.read_to_end(&mut self.shown);
    }

    /// Waits for the end; the exit code and all that was shown.
    pub(crate) fn ends(mut self) -> Result<(Option<i32>, String)> {
        self.hangs_up();
        let status = self.child.wait().context("waiting for the subject")?;
        Ok((status.code(), String::from_utf8_lossy(&self.shown).into_owned()))
    }
}
