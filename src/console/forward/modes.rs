//! Which modes do the pty and the user's terminal have, and how does the payload learn that its input has
//! ended? The part of the [`Forwarder`] that moves no bytes.
//!
//! A terminal that is the user's alone is raw. One that a pager or another part of a pipeline shares
//! follows the modes of the pty, and only while nobody else has set it; see [`crate::console::mode`].

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::Timespec;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use rustix::time::{Itimerspec, TimerfdTimerFlags};

use super::Forwarder;
use crate::console::mode::Keyboard;
use crate::console::tint::Tint;
use crate::sys::tty::enter_packet_mode;

/// How often to look whether the terminal is ours again, while it is not: no event tells.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

impl Forwarder {
    /// Gives what is shown a background colour, if it is shown on a terminal (C-02). To be called before
    /// [`Forwarder::connect`].
    pub fn tint(&mut self, colour: &str) {
        if self.screen.as_ref().is_some_and(|sink| sink.end.is_terminal()) {
            self.tint = Some(Tint::new(colour));
        }
    }

    /// Takes the colour away again.
    pub(super) fn wash(&mut self) {
        if let (Some(tint), Some(sink)) = (self.tint.take(), &self.screen) {
            // A terminal that takes nothing now, or is gone, keeps its colour.
            let _ = sink.end.write(tint.end());
        }
    }

    /// Whether the user's terminal follows the modes of the pty, rather than being raw.
    pub(super) fn follows(&self) -> bool {
        matches!(self.style, Keyboard::Follow | Keyboard::OnDemand) && self.terminal.is_some()
    }

    /// Gives a new pty the keys of the user's terminal, and has the kernel tell of changed modes where
    /// they are to be followed: with EXTPROC the line editing is ours to do, and the user's terminal
    /// does it (termios(3); RFC 1184 is what the kernel made it for).
    pub(super) fn prepare(&self, master: &OwnedFd) -> Result<Termios> {
        let mut modes = tcgetattr(master).context("asking for the modes of the pty")?;
        let Some(terminal) = &self.terminal else { return Ok(modes) };
        modes.special_codes = terminal.saved().special_codes.clone();
        // A raw terminal has other values in the same places (termios(3)).
        modes.special_codes[SpecialCodeIndex::VMIN] = 1;
        modes.special_codes[SpecialCodeIndex::VTIME] = 0;
        let utf8 = terminal.saved().input_modes.contains(InputModes::IUTF8);
        modes.input_modes.set(InputModes::IUTF8, utf8);
        if self.follows() {
            modes.local_modes |= LocalModes::EXTPROC;
            enter_packet_mode(master.as_fd()).context("having the pty tell of changed modes")?;
        }
        tcsetattr(master, OptionalActions::Now, &modes).context("setting the modes of the pty")?;
        Ok(modes)
    }

    /// Brings the user's terminal into the modes it should have, or has a look again later if it is
    /// somebody else's now.
    pub(super) fn settle(&mut self) -> Result<()> {
        let follows = self.follows();
        let (Some(terminal), Some(pty)) = (&mut self.terminal, &self.pty) else { return Ok(()) };
        let usable = terminal.in_foreground() && (!follows || terminal.is_ours());
        let again = if usable { Timespec::default() } else { LOOK_AGAIN };
        let timer = Itimerspec { it_interval: again, it_value: again };
        rustix::time::timerfd_settime(&self.clock, TimerfdTimerFlags::empty(), &timer)
            .context("setting the timer")?;
        if !usable {
            return Ok(());
        }
        let set = if !follows {
            terminal.set_raw()
        } else {
            let now = tcgetattr(&pty.fd).context("asking for the modes of the pty")?;
            if now.local_modes.contains(LocalModes::EXTPROC) {
                terminal.follow(&pty.first, &now)
            } else {
                // The payload has set all modes anew, as `stty sane` does. The pty edits lines now.
                terminal.set_raw_input()
            }
        };
        if let Err(error) = set
            && rustix::termios::tcgetattr(&*terminal).is_ok()
        {
            return Err(error);
        }
        // One that has hung up has no modes; its end is seen when it is read.
        Ok(())
    }

    /// Tells the payload that there is no more input, in the only way a terminal has for it.
    pub(super) fn end_of_input(&mut self) -> Result<()> {
        let (Some(pty), Some(source)) = (&mut self.pty, &self.keyboard) else { return Ok(()) };
        let hung_up = source.hung_up;
        let from_terminal = self.terminal.is_some();
        if from_terminal && (hung_up || self.style == Keyboard::Stdin) {
            // A raw terminal has no other end than a hang-up, and SIGHUP tells of that.
            self.keyboard = None;
            return Ok(());
        }
        let mut modes = tcgetattr(&pty.fd).context("asking for the modes of the pty")?;
        if modes.local_modes.contains(LocalModes::EXTPROC) {
            // With EXTPROC, VEOF means the end only while nothing else waits to be read; without it,
            // always. So from the user's first ^D on the pty edits lines itself.
            modes.local_modes -= LocalModes::EXTPROC;
            tcsetattr(&pty.fd, OptionalActions::Now, &modes).context("ending the input")?;
        }
        // In the middle of a line the first VEOF only hands on what there is of it (termios(3)). What
        // the user's terminal gave us was handed on already, when the key was typed there. (Pasted
        // as "text^D^D" the text may still be on its way to the line discipline and take this VEOF
        // for its own; the key then has to be typed once more.)
        let count = if pty.at_line_start || from_terminal { 1 } else { 2 };
        let eof = modes.special_codes[SpecialCodeIndex::VEOF];
        // Without such a key (termios(3), _POSIX_VDISABLE), or where the payload reads single keys, an
        // end cannot be told.
        if eof != 0 && modes.local_modes.contains(LocalModes::ICANON) {
            pty.to_pty.extend(std::iter::repeat_n(eof, count));
        }
        if from_terminal {
            return self.settle();
        }
        self.keyboard = None;
        Ok(())
    }
}
