//! Which of the payload's streams go through a pseudo-terminal, and which are handed on as they are?
//! Pure: the decision needs only what was said and which of our own three streams are terminals.
//!
//! **A terminal of the host is never handed to the payload unless a pipe mode was asked for.** Who
//! holds one can push input into it (TIOCSTI, TIOCLINUX), change its keymap, or steal it; so said
//! the history of bubblewrap (CVE-2017-5226) and of lxc (CVE-2016-10124).
//! [`Wiring::exposes_terminal`] tells when it happens nevertheless, so that the system call filter can
//! take the worst of it away.
//!
//! # When nothing is said
//!
//! Each stream that is a terminal goes through the pty, each that is not is handed on. So a pipe stays
//! binary-clean and sees its reader close, a file gets what was written to it, and the payload asks
//! `isatty` and hears what it would have heard without a container.
//!
//! | stdin | stdout | stderr | as in               | through the pty | keyboard  | pty shown on | why |
//! |-------|--------|--------|---------------------|-----------------|-----------|--------------|-----|
//! | tty   | tty    | tty    | `rspawn`            | all             | stdin     | stdout       | A shell: raw, and the payload's own line editing. |
//! | tty   | tty    | –      | `rspawn 2>log`      | stdin, stdout   | stdin     | stdout       | As above; the log gets stderr, and stderr only. |
//! | tty   | –      | tty    | `rspawn \| less`    | stdin, stderr   | follow    | stderr       | The terminal is shared with the pager: its modes are changed only as far as the payload changes those of its pty, and nothing is read while another process has set them. |
//! | tty   | –      | –      | `rspawn >f 2>&1`    | stdin           | follow    | stdin        | As above. What is written to /dev/tty (a prompt) still has to be seen, so it goes to the terminal that stdin is. |
//! | –     | tty    | tty    | `rspawn </dev/null` | stdout, stderr  | on demand | stdout       | The payload reads the file; a pager in it reads keys from /dev/tty, and gets them once it has asked by changing the modes. Until then what is typed ahead stays for the shell. |
//! | –     | tty    | –      | `x \| rspawn 2>log` | stdout          | on demand | stdout       | As above. |
//! | –     | –      | tty    | `x \| rspawn \| y`  | stderr          | on demand | stderr       | Data passes untouched; messages and a password prompt reach the user. |
//! | –     | –      | –      | cron, CI            | none            | –         | –            | Plain pipes, no pty: like any command. An init is the exception, see below. |
//!
//! systemd-nspawn takes `interactive` for the first two rows and `read-only` for all the others, where
//! stdin is silently not forwarded and stderr is mixed into stdout; that is what its users complain
//! about most (§4.1 row 17), so it is a declared difference.
//!
//! # When the payload is an init
//!
//! An init wants a /dev/console whatever started it, reads nothing from stdin and shares its streams
//! with every service. So [`resolve_for_init`] keeps systemd-nspawn's defaults.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, bail};

/// What `--console=` takes (systemd-nspawn(1); C-01).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleMode {
    /// A pty, connected to stdin and stdout in both directions.
    Interactive,
    /// A pty whose output goes to stdout; nothing is read.
    ReadOnly,
    /// A pty that is connected to nothing; what is written to it is lost.
    Passive,
    /// No pty: the three streams are handed to the payload as they are.
    Pipe,
    /// `Interactive` if stdin and stdout are terminals, else `Pipe`. What `--pipe` means.
    Autopipe,
}

/// Every mode with the word for it.
const WORDS: [(ConsoleMode, &str); 5] = [
    (ConsoleMode::Interactive, "interactive"),
    (ConsoleMode::ReadOnly, "read-only"),
    (ConsoleMode::Passive, "passive"),
    (ConsoleMode::Pipe, "pipe"),
    (ConsoleMode::Autopipe, "autopipe"),
];

impl FromStr for ConsoleMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match WORDS.iter().find(|(_, word)| *word == text) {
            Some((mode, _)) => Ok(*mode),
            None => bail!(
                "{text:?} is no console mode: expected interactive, read-only, passive, pipe or autopipe"
            ),
        }
    }
}

impl fmt::Display for ConsoleMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        WORDS.iter().filter(|(mode, _)| mode == self).try_for_each(|(_, word)| f.write_str(word))
    }
}

/// Where one of the payload's three streams comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The container's pseudo-terminal.
    Pty,
    /// Our own stream, handed on as it is.
    Inherit,
}

/// What is read and sent into the pty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyboard {
    /// Nothing.
    Off,
    /// Stdin, whatever it is; a terminal is put in raw mode.
    Stdin,
    /// Stdin, a terminal that others use too: its modes follow those of the pty.
    Follow,
    /// The terminal that shows the pty, and only while the payload has changed the pty's modes.
    OnDemand,
}

/// Which of our own streams shows what is written to the pty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// Stdout.
    Stdout,
    /// Stderr.
    Stderr,
    /// The terminal that stdin is, opened once more for writing.
    Stdin,
}

/// The decision: what is connected to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// Whether there is a pseudo-terminal, and so a /dev/console.
    pub pty: bool,
    /// The payload's stdin.
    pub stdin: Stream,
    /// The payload's stdout.
    pub stdout: Stream,
    /// The payload's stderr.
    pub stderr: Stream,
    /// What is sent into the pty.
    pub keyboard: Keyboard,
    /// Where the pty's output goes; without one it is read and dropped, so that no writer blocks.
    pub screen: Option<Screen>,
    /// Whether the payload gets a terminal of the host: the system call filter must then refuse TIOCSTI
    /// and TIOCLINUX, comparing the low 32 bits of the request (CVE-2019-10063).
    pub exposes_terminal: bool,
}

impl Wiring {
    /// Whether the payload has nothing but our own streams, so that nothing is to be forwarded.
    /// systemd-nspawn is quiet then (G-01).
    pub fn is_plain(&self) -> bool {
        !self.pty
    }
}

/// Decides the wiring of a command. The last three arguments tell which of our streams are terminals.
pub fn resolve(
    said: Option<ConsoleMode>,
    stdin_tty: bool,
    stdout_tty: bool,
    stderr_tty: bool,
) -> Wiring {
    let plain = Wiring {
        pty: false,
        stdin: Stream::Inherit,
        stdout: Stream::Inherit,
        stderr: Stream::Inherit,
        keyboard: Keyboard::Off,
        screen: None,
        exposes_terminal: stdin_tty || stdout_tty || stderr_tty,
    };
    let all = Wiring {
        pty: true,
        stdin: Stream::Pty,
        stdout: Stream::Pty,
        stderr: Stream::Pty,
        exposes_terminal: false,
        ..plain
    };
    let interactive = Wiring { keyboard: Keyboard::Stdin, screen: Some(Screen::Stdout), ..all };
    match said {
        Some(ConsoleMode::Interactive) => interactive,
        Some(ConsoleMode::ReadOnly) => Wiring { screen: Some(Screen::Stdout), ..all },
        Some(ConsoleMode::Passive) => all,
        Some(ConsoleMode::Autopipe) if stdin_tty && stdout_tty => interactive,
        Some(ConsoleMode::Pipe | ConsoleMode::Autopipe) => plain,
        None => per_stream(stdin_tty, stdout_tty, stderr_tty),
    }
}

/// Decides the wiring of an init (`--boot`): as [`resolve`], but with systemd-nspawn's defaults.
pub fn resolve_for_init(
    said: Option<ConsoleMode>,
    stdin_tty: bool,
    stdout_tty: bool,
    stderr_tty: bool,
) -> Wiring {
    let default =
        if stdin_tty && stdout_tty { ConsoleMode::Interactive } else { ConsoleMode::ReadOnly };
    resolve(said.or(Some(default)), stdin_tty, stdout_tty, stderr_tty)
}

/// The table at the top of this file.
fn per_stream(stdin_tty: bool, stdout_tty: bool, stderr_tty: bool) -> Wiring {
    let stream = |is_tty| if is_tty { Stream::Pty } else { Stream::Inherit };
    let keyboard = match (stdin_tty, stdout_tty, stderr_tty) {
        (true, true, _) => Keyboard::Stdin,
        (true, false, _) => Keyboard::Follow,
        (false, false, false) => Keyboard::Off,
        (false, _, _) => Keyboard::OnDemand,
    };
    let screen = match (stdin_tty, stdout_tty, stderr_tty) {
        (_, true, _) => Some(Screen::Stdout),
        (_, false, true) => Some(Screen::Stderr),
        (true, false, false) => Some(Screen::Stdin),
        (false, false, false) => None,
    };
    Wiring {
        pty: stdin_tty || stdout_tty || stderr_tty,
        stdin: stream(stdin_tty),
        stdout: stream(stdout_tty),
        stderr: stream(stderr_tty),
        keyboard,
        screen,
        exposes_terminal: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// One word per wiring: the streams (`p`ty or `i`nherited), the keyboard, the screen.
    fn told(wiring: Wiring) -> String {
        let letter = |stream| if stream == Stream::Pty { 'p' } else { 'i' };
        let Wiring { stdin, stdout, stderr, keyboard, screen, .. } = wiring;
        let streams: String = [stdin, stdout, stderr].map(letter).iter().collect();
        let exposed = if wiring.exposes_terminal { " exposed" } else { "" };
        format!("{streams} {keyboard:?} {screen:?}{exposed}")
    }

    #[rstest]
    #[case(true, true, true, "ppp Stdin Some(Stdout)")]
    #[case(true, true, false, "ppi Stdin Some(Stdout)")]
    #[case(true, false, true, "pip Follow Some(Stderr)")]
    #[case(true, false, false, "pii Follow Some(Stdin)")]
    #[case(false, true, true, "ipp OnDemand Some(Stdout)")]
    #[case(false, true, false, "ipi OnDemand Some(Stdout)")]
    #[case(false, false, true, "iip OnDemand Some(Stderr)")]
    #[case(false, false, false, "iii Off None")]
    fn by_default_terminals_go_through_the_pty_and_the_rest_is_handed_on(
        #[case] stdin: bool,
        #[case] stdout: bool,
        #[case] stderr: bool,
        #[case] expected: &str,
    ) {
        let wiring = resolve(None, stdin, stdout, stderr);
        assert_eq!(told(wiring), expected);
        assert_eq!(wiring.pty, stdin || stdout || stderr);
    }

    #[rstest]
    #[case(ConsoleMode::Interactive, [true, true, true], "ppp Stdin Some(Stdout)")]
    #[case(ConsoleMode::Interactive, [false, false, false], "ppp Stdin Some(Stdout)")]
    #[case(ConsoleMode::ReadOnly, [true, true, true], "ppp Off Some(Stdout)")]
    #[case(ConsoleMode::ReadOnly, [false, false, false], "ppp Off Some(Stdout)")]
    #[case(ConsoleMode::Passive, [true, true, true], "ppp Off None")]
    #[case(ConsoleMode::Pipe, [false, false, false], "iii Off None")]
    #[case(ConsoleMode::Pipe, [true, true, true], "iii Off None exposed")]
    #[case(ConsoleMode::Pipe, [false, false, true], "iii Off None exposed")]
    #[case(ConsoleMode::Autopipe, [true, true, false], "ppp Stdin Some(Stdout)")]
    #[case(ConsoleMode::Autopipe, [true, false, true], "iii Off None exposed")]
    #[case(ConsoleMode::Autopipe, [false, true, false], "iii Off None exposed")]
    #[case(ConsoleMode::Autopipe, [false, false, false], "iii Off None")]
    fn a_mode_that_was_said_is_done_for_commands_and_for_inits(
        #[case] said: ConsoleMode,
        #[case] ttys: [bool; 3],
        #[case] expected: &str,
    ) {
        let [stdin, stdout, stderr] = ttys;
        assert_eq!(told(resolve(Some(said), stdin, stdout, stderr)), expected);
        assert_eq!(told(resolve_for_init(Some(said), stdin, stdout, stderr)), expected);
    }

    #[rstest]
    #[case([true, true, false], "ppp Stdin Some(Stdout)")]
    #[case([true, false, true], "ppp Off Some(Stdout)")]
    #[case([false, false, false], "ppp Off Some(Stdout)")]
    fn an_init_always_has_a_console(#[case] ttys: [bool; 3], #[case] expected: &str) {
        let [i, o, e] = ttys;
        assert_eq!(told(resolve_for_init(None, i, o, e)), expected);
    }

    #[test]
    fn every_mode_prints_what_it_parses_from() {
        for (mode, word) in WORDS {
            assert_eq!(word.parse::<ConsoleMode>().unwrap(), mode);
            assert_eq!(mode.to_string(), word);
        }
    }

    #[rstest]
    #[case("")]
    #[case("Interactive")]
    #[case("readonly")]
    #[case("pipe ")]
    fn other_words_are_refused(#[case] word: &str) {
        assert!(word.parse::<ConsoleMode>().is_err());
    }
}
