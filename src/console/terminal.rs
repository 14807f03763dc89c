//! What modes does the user's terminal have while the container runs, and who puts them back?
//!
//! [`Terminal`] changes them and puts them back on drop. What a drop cannot do, after SIGKILL, does a
//! [`Watch`]: a tiny process which waits for the end of a pipe that only the supervisor holds.
//!
//! Invariant of both: modes are put back only while they are still those that we have set. A shell that
//! has taken its terminal back, or a pager at the end of a pipeline, has modes of its own by then.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use rustix::pipe::PipeFlags;
use rustix::process::getpgrp;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr,
    tcgetpgrp, tcsetattr,
};

/// The part of a termios that decides how a terminal behaves, small enough to be sent whole and to be
/// compared. Speeds and character sizes are nobody's business here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Modes {
    input: u32,
    output: u32,
    local: u32,
    min: u8,
    time: u8,
}

/// How many bytes [`Modes`] are in the pipe to a [`Watch`]; below PIPE_BUF, so written whole.
const RECORD_BYTES: usize = 14;

impl Modes {
    fn of(termios: &Termios) -> Modes {
        Modes {
            input: termios.input_modes.bits(),
            output: termios.output_modes.bits(),
            local: termios.local_modes.bits(),
            min: termios.special_codes[SpecialCodeIndex::VMIN],
            time: termios.special_codes[SpecialCodeIndex::VTIME],
        }
    }

    fn record(self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        record[0..4].copy_from_slice(&self.input.to_ne_bytes());
        record[4..8].copy_from_slice(&self.output.to_ne_bytes());
        record[8..12].copy_from_slice(&self.local.to_ne_bytes());
        record[12..14].copy_from_slice(&[self.min, self.time]);
        record
    }
}

/// The user's terminal, with the modes it had when we came.
#[derive(Debug)]
pub struct Terminal {
    fd: OwnedFd,
    saved: Termios,
    /// What we have set last; the saved ones in the beginning.
    ours: Modes,
    /// Ends when we do; see [`Watch`].
    watch: Option<OwnedFd>,
}

impl Terminal {
    /// Takes note of the terminal's modes and changes nothing.
    pub fn open(fd: BorrowedFd<'_>) -> Result<Terminal> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3).context("keeping hold of the terminal")?;
        let saved = tcgetattr(&fd).context("asking for the terminal's modes")?;
        let ours = Modes::of(&saved);
        Ok(Terminal { fd, saved, ours, watch: None })
    }

    /// The modes it had when we came.
    pub fn saved(&self) -> &Termios {
        &self.saved
    }

    /// Whether we may read and change it without being stopped. A terminal that is not our controlling
    /// one knows no job control for us (tcgetpgrp(3), ENOTTY).
    pub fn in_foreground(&self) -> bool {
        tcgetpgrp(&self.fd).map_or(true, |group| group == getpgrp())
    }

    /// Whether nobody else has changed the modes since.
    pub fn is_ours(&self) -> bool {
        tcgetattr(&self.fd).is_ok_and(|now| Modes::of(&now) == self.ours)
    }

    /// Whether it has the modes that we have given it, and not just those it had.
    pub fn is_set(&self) -> bool {
        self.ours != Modes::of(&self.saved) && self.is_ours()
    }

    /// Every key and every byte as it is, for the pty does what is to be done with them.
    pub fn set_raw(&mut self) -> Result<()> {
        let mut raw = self.saved.clone();
        raw.make_raw();
        self.set(&raw)
    }

    /// Every key as it is, but output as before: others write to this terminal, too, and their lines
    /// would become a staircase.
    pub fn set_raw_input(&mut self) -> Result<()> {
        let mut raw = self.saved.clone();
        raw.make_raw();
        raw.output_modes = self.saved.output_modes;
        self.set(&raw)
    }

    /// Changes what the payload has changed at its pty, from `first` to `now`, and nothing else.
    pub fn follow(&mut self, first: &Termios, now: &Termios) -> Result<()> {
        let wanted = followed(&self.saved, first, now);
        self.set(&wanted)
    }

    /// Puts the modes back, unless somebody else has set others.
    pub fn restore(&mut self) -> Result<()> {
        if !self.is_ours() || self.ours == Modes::of(&self.saved) {
            return Ok(());
        }
        // From the background this would stop us, were the signal not blocked (tcsetattr(3), SIGTTOU).
        let was_blocked = block_sigttou()?;
        let result = tcsetattr(&self.fd, OptionalActions::Now, &self.saved);
        if !was_blocked {
            SigSet::from(Signal::SIGTTOU).thread_unblock().context("unblocking SIGTTOU")?;
        }
        self.ours = Modes::of(&self.saved);
        result.context("putting the terminal's modes back")
    }

    /// Prepares a process that puts the modes back if we die without doing so. To be called before the
    /// modes are changed, and the result to be run in a child at once.
    pub fn watch(&mut self) -> Result<Watch> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map(|(reader, writer)| (writer, reader))
            .context("making a pipe for the terminal's watch")?;
        rustix::io::ioctl_fionbio(&ours, true).context("making the watch's pipe non-blocking")?;
        let tty = self.fd.try_clone().context("handing the terminal to its watch")?;
        self.watch = Some(ours);
        self.tell_watch(self.ours);
        Ok(Watch { tty, saved: self.saved.clone(), pipe: theirs })
    }

    /// Sets modes and remembers what the driver has made of them.
    fn set(&mut self, wanted: &Termios) -> Result<()> {
        if Modes::of(wanted) == self.ours && self.is_ours() {
            return Ok(());
        }
        // Told before it is done: killed between the two, the watch finds modes that it may replace.
        self.tell_watch(Modes::of(wanted));
        tcsetattr(&self.fd, OptionalActions::Now, wanted)
            .context("setting the terminal's modes")?;
        let made = tcgetattr(&self.fd).context("reading the terminal's modes back")?;
        self.ours = Modes::of(&made);
        if self.ours != Modes::of(wanted) {
            self.tell_watch(self.ours);
        }
        Ok(())
    }

    fn tell_watch(&mut self, modes: Modes) {
        let Some(pipe) = &self.watch else { return };
        if rustix::io::write(pipe, &modes.record()).is_err() {
            // Somebody has killed it. Its work was only a precaution, so we go on without.
            self.watch = None;
        }
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The terminal may be gone for good (SIGHUP); nothing can be put back then, nor be told.
        let _ = self.restore();
    }
}

/// What [`Terminal::watch`] wants to be run in a process of its own.
#[derive(Debug)]
pub struct Watch {
    tty: OwnedFd,
    saved: Termios,
    pipe: OwnedFd,
}

impl Watch {
    /// Waits for the supervisor's end, whatever kind of end it is; puts the modes back if that was left
    /// undone; returns. To be run in a fresh child that exits right afterwards: it takes descriptors 0
    /// and 1, closes all others and blocks every signal.
    ///
    /// The child leaves the session, so that no signal to the job reaches it, SIGHUP included, and so
    /// that job control does not stop it: that only knows the controlling terminal (tcsetattr(3)).
    pub fn run(self) -> Result<()> {
        SigSet::all().thread_block().context("blocking all signals")?;
        // EPERM: a session of its own already.
        let _ = rustix::process::setsid();
        rustix::stdio::dup2_stdin(&self.tty).context("keeping the terminal")?;
        rustix::stdio::dup2_stdout(&self.pipe).context("keeping the pipe")?;
        let Watch { tty, saved, pipe } = self;
        drop((tty, pipe));
        crate::sys::tty::close_from(2).context("closing what was inherited")?;
        restore_when_parent_dies(rustix::stdio::stdin(), &saved, rustix::stdio::stdout())
    }
}

/// Reads what the supervisor sets until it is gone, then acts.
fn restore_when_parent_dies(
    tty: BorrowedFd<'_>,
    saved: &Termios,
    pipe: BorrowedFd<'_>,
) -> Result<()> {
    let mut last = None;
    let mut record = [0; RECORD_BYTES];
    // Records are written whole and read whole (pipe(7), PIPE_BUF).
    while rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut record))
        .context("waiting for the supervisor's end")?
        > 0
    {
        last = Some(record);
    }
    let now = tcgetattr(tty).context("asking for the terminal's modes")?;
    if last == Some(Modes::of(&now).record()) {
        tcsetattr(tty, OptionalActions::Now, saved).context("putting the terminal's modes back")?;
    }
    Ok(())
}

/// Blocks SIGTTOU and tells whether it was blocked already.
fn block_sigttou() -> Result<bool> {
    let before = SigSet::thread_get_mask().context("asking for the signal mask")?;
    SigSet::from(Signal::SIGTTOU).thread_block().context("blocking SIGTTOU")?;
    Ok(before.contains(Signal::SIGTTOU))
}

/// `saved`, with each flag replaced that differs between `first` and `now`. EXTPROC stays what it is: it
/// is how we learn of the changes, not one of them.
fn followed(saved: &Termios, first: &Termios, now: &Termios) -> Termios {
    let pick = |saved: u32, first: u32, now: u32| (saved & !(first ^ now)) | (now & (first ^ now));
    let mut wanted = saved.clone();
    wanted.input_modes = InputModes::from_bits_retain(pick(
        saved.input_modes.bits(),
        first.input_modes.bits(),
        now.input_modes.bits(),
    ));
    wanted.output_modes = OutputModes::from_bits_retain(pick(
        saved.output_modes.bits(),
        first.output_modes.bits(),
        now.output_modes.bits(),
    ));
    wanted.local_modes = LocalModes::from_bits_retain(pick(
        saved.local_modes.bits(),
        (first.local_modes | LocalModes::EXTPROC).bits(),
        (now.local_modes | LocalModes::EXTPROC).bits(),
    ));
    // Whatever the payload waits for is its pty's to do. With a VMIN of 0 a read would give 0 bytes for
    // no key as well as for the end of the input.
    if !wanted.local_modes.contains(LocalModes::ICANON) {
        wanted.special_codes[SpecialCodeIndex::VMIN] = 1;
        wanted.special_codes[SpecialCodeIndex::VTIME] = 0;
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::pty::{self, Pty};
    use std::fs::File;

    fn new_pty() -> Pty {
        pty::open(File::open("/dev/pts").unwrap().as_fd()).unwrap()
    }

    fn modes(fd: impl AsFd) -> Modes {
        Modes::of(&tcgetattr(fd).unwrap())
    }

    #[test]
    fn raw_mode_ends_with_the_guard() {
        let pty = new_pty();
        let before = modes(&pty.slave);
        let mut terminal = Terminal::open(pty.slave.as_fd()).unwrap();
        terminal.set_raw().unwrap();
        assert!(!tcgetattr(&pty.slave).unwrap().local_modes.contains(LocalModes::ECHO));
        assert!(terminal.is_ours());
        drop(terminal);
        assert_eq!(modes(&pty.slave), before);
    }

    #[test]
    fn modes_that_somebody_else_has_set_are_left_alone() {
        let pty = new_pty();
        let mut terminal = Terminal::open(pty.slave.as_fd()).unwrap();
        terminal.set_raw().unwrap();
        let mut pager = tcgetattr(&pty.slave).unwrap();
        pager.local_modes |= LocalModes::ISIG;
        tcsetattr(&pty.slave, OptionalActions::Now, &pager).unwrap();
        assert!(!terminal.is_ours());
        drop(terminal);
        assert_eq!(modes(&pty.slave), Modes::of(&pager));
    }

    #[test]
    fn only_what_the_payload_changes_is_followed() {
        let (host, guest) = (new_pty(), new_pty());
        let mut special = tcgetattr(&host.slave).unwrap();
        special.input_modes -= InputModes::IXON;
        tcsetattr(&host.slave, OptionalActions::Now, &special).unwrap();
        let mut terminal = Terminal::open(host.slave.as_fd()).unwrap();
        let mut first = tcgetattr(&guest.slave).unwrap();
        first.local_modes |= LocalModes::EXTPROC;
        let mut now = first.clone();
        now.local_modes -= LocalModes::ECHO;
        terminal.follow(&first, &now).unwrap();
        let seen = tcgetattr(&host.slave).unwrap();
        assert!(!seen.local_modes.intersects(LocalModes::ECHO | LocalModes::EXTPROC));
        assert!(seen.local_modes.contains(LocalModes::ICANON));
        assert!(!seen.input_modes.contains(InputModes::IXON));
        terminal.follow(&first, &first.clone()).unwrap();
        assert_eq!(modes(&host.slave), Modes::of(&special));
    }

    #[test]
    fn single_keys_are_waited_for_whatever_the_terminal_had() {
        let (host, guest) = (new_pty(), new_pty());
        let mut odd = tcgetattr(&host.slave).unwrap();
        odd.special_codes[SpecialCodeIndex::VMIN] = 0;
        tcsetattr(&host.slave, OptionalActions::Now, &odd).unwrap();
        let mut terminal = Terminal::open(host.slave.as_fd()).unwrap();
        let first = tcgetattr(&guest.slave).unwrap();
        let mut now = first.clone();
        now.local_modes -= LocalModes::ICANON;
        terminal.follow(&first, &now).unwrap();
        assert_eq!(modes(&host.slave).min, 1);
    }

    /// The waiting half of a watch, with the supervisor's end simulated by closing the pipe.
    fn after_death(change: impl FnOnce(&Pty)) -> (Modes, Modes) {
        let pty = new_pty();
        let before = modes(&pty.slave);
        let mut terminal = Terminal::open(pty.slave.as_fd()).unwrap();
        let watch = terminal.watch().unwrap();
        terminal.set_raw().unwrap();
        terminal.watch = None;
        change(&pty);
        restore_when_parent_dies(watch.tty.as_fd(), &watch.saved, watch.pipe.as_fd()).unwrap();
        let after = modes(&pty.slave);
        std::mem::forget(terminal);
        (before, after)
    }

    #[test]
    fn the_watch_puts_back_what_a_killed_supervisor_has_left() {
        let (before, after) = after_death(|_| {});
        assert_eq!(after, before);
    }

    #[test]
    fn the_watch_leaves_the_modes_of_a_shell_alone() {
        let (before, after) = after_death(|pty| {
            let mut shell = tcgetattr(&pty.slave).unwrap();
            shell.input_modes |= InputModes::ICRNL;
            tcsetattr(&pty.slave, OptionalActions::Now, &shell).unwrap();
        });
        assert_ne!(after, before);
    }
}
