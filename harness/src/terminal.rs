//! A guest's console on the terminal of this process.
//!
//! QEMU never owns the terminal: the console is a socket, which this process empties all the time, because a guest whose
//! console nobody reads stands still. When a person is to talk, it is copied to and from the terminal, in raw mode, which
//! a guard undoes.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::report::event::Shell;

/// A guest's console.
#[derive(Debug)]
pub struct Tap {
    stream: UnixStream,
    shown: Arc<AtomicBool>,
}

impl Tap {
    /// Empties the console from now on; nothing is shown yet.
    ///
    /// # Errors
    /// When the socket cannot be duplicated.
    pub fn open(stream: UnixStream) -> Result<Self> {
        let mut from = stream.try_clone().context("duplicating the console's socket")?;
        let shown = Arc::new(AtomicBool::new(false));
        let shows = Arc::clone(&shown);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if shows.load(Ordering::Relaxed) {
                    let mut out = std::io::stdout();
                    // A reader that went away must not stop the guest.
                    let _ = out.write_all(&buffer[..count]).and_then(|()| out.flush());
                }
            }
        });
        Ok(Self { stream, shown })
    }

    /// Gives the terminal to the console, until the returned guard is dropped or the guest ends.
    ///
    /// # Errors
    /// When the terminal's modes cannot be changed.
    pub fn talk(&self) -> Result<RawTerminal> {
        let mut to = self.stream.try_clone().context("duplicating the console's socket")?;
        let raw = RawTerminal::enter()?;
        self.shown.store(true, Ordering::Relaxed);
        thread::spawn(move || {
            copy_input(&mut to);
            // The end of input is the shell's end: what ^D says on a terminal. A guest that is gone needs no telling.
            let _ = to.write_all(b"\x04");
        });
        Ok(raw)
    }
}

/// Copies what is typed until the input ends or the guest does.
fn copy_input(to: &mut UnixStream) {
    let stdin = std::io::stdin();
    let mut buffer = [0; 4096];
    loop {
        let ended = {
            // Of the guest's end only the hang-up is of interest, which is always told.
            let mut fds = [
                PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(to.as_fd(), PollFlags::empty()),
            ];
            match poll(&mut fds, None) {
                Ok(_) => !fds[1].revents().is_empty(),
                Err(errno) => errno != rustix::io::Errno::INTR,
            }
        };
        if ended {
            return;
        }
        match rustix::io::read(&stdin, &mut buffer) {
            Ok(count @ 1..) if to.write_all(&buffer[..count]).is_ok() => {}
            _ => return,
        }
    }
}

/// What a shell is told of this terminal.
#[must_use]
pub fn described(case: Option<String>) -> Shell {
    let size = tcgetwinsize(std::io::stdin()).map_or((0, 0), |size| (size.ws_row, size.ws_col));
    Shell { size, term: std::env::var("TERM").unwrap_or_default(), case }
}

/// The terminal in raw mode, until dropped. Nothing at all when stdin is no terminal.
#[derive(Debug)]
pub struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("reading the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("setting the terminal's modes")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that went away needs no modes.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
