//! How do bytes get from the user to the pty and back, inside somebody else's event loop?
//!
//! A [`Forwarder`] has an epoll instance of its own and is one descriptor to the outside: readable when
//! [`Forwarder::on_ready`] has something to do. Inside, everything is edge-triggered, with a flag per
//! stream that says "not known to be exhausted". That is what a pty needs: a master whose slave is
//! closed everywhere reports a hang-up for ever, and becomes readable again when an init opens the
//! console anew, which only an edge can tell.
//!
//! Invariants: buffers are bounded, and a full one stops the reading at its other side; a call does a
//! bounded amount of work; output that nobody takes any more is dropped and the payload runs on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::termios::{Termios, tcgetattr};
use rustix::time::{TimerfdClockId, TimerfdFlags};

use crate::console::endpoint::Endpoint;
use crate::console::hotkey::{EscapeKey, Hotkey, Recogniser};
use crate::console::mode::{Keyboard, Screen, Wiring};
use crate::console::terminal::{Terminal, Watch};
use crate::console::tint::Tint;
use crate::sys::tty::{PACKET_DATA, PACKET_MODES};

mod modes;
#[cfg(test)]
mod tests;

/// How much of each direction is kept while the other side is slow.
const BUFFER_BYTES: usize = 16 * 1024;
/// How much is read at once. A pty's line discipline holds 4096 bytes (N_TTY_BUF_SIZE).
const PIECE_BYTES: usize = 4096;
/// How many pieces one call may move, so that a payload that prints for ever starves nobody.
const ROUNDS: usize = 16;

const MASTER: u64 = 0;
const KEYBOARD: u64 = 1;
const SCREEN: u64 = 2;
const CLOCK: u64 = 3;
const AGAIN: u64 = 4;

/// The three streams that rspawn was given.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// Standard input.
    pub stdin: BorrowedFd<'a>,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
}

impl Streams<'static> {
    /// This process's own.
    pub fn own() -> Self {
        Streams {
            stdin: rustix::stdio::stdin(),
            stdout: rustix::stdio::stdout(),
            stderr: rustix::stdio::stderr(),
        }
    }
}

/// The user's side of the console. Lives as long as the session, over reboots of the container.
#[derive(Debug)]
pub struct Forwarder {
    epoll: OwnedFd,
    clock: OwnedFd,
    /// Readable when a call has left work although no event is to come.
    again: OwnedFd,
    style: Keyboard,
    keyboard: Option<Source>,
    screen: Option<Sink>,
    /// Where sizes come from: the terminal that shows the pty, else the one that is typed at.
    sized_by: Option<OwnedFd>,
    /// Only if its modes are to be changed, that is, if it is typed at.
    terminal: Option<Terminal>,
    keys: Recogniser,
    tint: Option<Tint>,
    pty: Option<Master>,
    /// The payload is gone: nothing is read from the user.
    draining: bool,
    shown_bytes: u64,
    midline: bool,
}

/// What is typed at.
#[derive(Debug)]
struct Source {
    end: Endpoint,
    /// Not known to be exhausted.
    ready: bool,
    /// It has hung up, so its end is for good.
    hung_up: bool,
}

/// What shows the pty.
#[derive(Debug)]
struct Sink {
    end: Endpoint,
    /// Not known to be full.
    ready: bool,
}

/// The pty of one run of the container.
#[derive(Debug)]
struct Master {
    fd: OwnedFd,
    /// The modes it began with; with EXTPROC, if the user's terminal is to follow them.
    first: Termios,
    /// Whether each read begins with a status byte.
    packets: bool,
    /// Not known to be exhausted, not known to be full.
    readable: bool,
    writable: bool,
    to_screen: VecDeque<u8>,
    to_pty: VecDeque<u8>,
    /// Whether what was typed last ends a line; only then one VEOF means the end of the input.
    at_line_start: bool,
}

impl AsFd for Forwarder {
    /// Readable when [`Forwarder::on_ready`] is to be called. Level-triggered, fit for another epoll.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Forwarder {
    /// Opens the user's side. Nothing is read and no mode is changed before [`Forwarder::connect`].
    pub fn new(wiring: &Wiring, escape: EscapeKey, streams: Streams<'_>) -> Result<Forwarder> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll")?;
        let timer = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let clock = rustix::time::timerfd_create(TimerfdClockId::Monotonic, timer)
            .context("making a timer")?;
        add(&epoll, &clock, CLOCK, EventFlags::IN)?;
        let again = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .context("making an eventfd")?;
        add(&epoll, &again, AGAIN, EventFlags::IN)?;
        let shown_on = wiring.screen.map(|screen| match screen {
            Screen::Stdout => streams.stdout,
            Screen::Stderr => streams.stderr,
            Screen::Stdin => streams.stdin,
        });
        let typed_at = match wiring.keyboard {
            Keyboard::Off => None,
            Keyboard::Stdin | Keyboard::Follow => Some(streams.stdin),
            Keyboard::OnDemand => shown_on,
        };
        let keyboard = typed_at.map(Endpoint::reading).transpose().context("opening the input")?;
        let screen = shown_on.map(Endpoint::writing).transpose().context("opening the output")?;
        if let Some(end) = keyboard.as_ref().filter(|end| end.can_wait()) {
            add(&epoll, end, KEYBOARD, EventFlags::IN | EventFlags::ET)?;
        }
        if let Some(end) = screen.as_ref().filter(|end| end.can_wait()) {
            add(&epoll, end, SCREEN, EventFlags::OUT | EventFlags::ET)?;
        }
        let terminal = match keyboard.as_ref().filter(|end| end.is_terminal()) {
            Some(end) => Some(Terminal::open(end.as_fd())?),
            None => None,
        };
        let sized_by = [&screen, &keyboard].into_iter().flatten().find(|end| end.is_terminal());
        let sized_by = sized_by.map(|end| end.as_fd().try_clone_to_owned()).transpose();
        Ok(Forwarder {
            epoll,
            clock,
            again,
            style: wiring.keyboard,
            sized_by: sized_by.context("keeping hold of the terminal")?,
            keyboard: keyboard.map(|end| Source { end, ready: true, hung_up: false }),
            screen: screen.map(|end| Sink { end, ready: true }),
            terminal,
            keys: Recogniser::new(escape),
            tint: None,
            pty: None,
            draining: false,
            shown_bytes: 0,
            midline: false,
        })
    }

    /// The process that puts the terminal back after a SIGKILL, if there is a terminal whose modes we
    /// may change. To be asked for before [`Forwarder::connect`], and run in a child (see [`Watch`]).
    pub fn watch(&mut self) -> Result<Option<Watch>> {
        self.terminal.as_mut().map(Terminal::watch).transpose()
    }

    /// Takes the master of a new run of the container and begins. An earlier master is let go of, so
    /// [`Forwarder::drain`] it first.
    pub fn connect(&mut self, master: OwnedFd) -> Result<()> {
        self.pty = None;
        self.draining = false;
        // Nobody shares the master's description: the child that opened it has exec'd or ended.
        rustix::io::ioctl_fionbio(&master, true).context("making the pty non-blocking")?;
        let flags = EventFlags::IN | EventFlags::PRI | EventFlags::OUT | EventFlags::ET;
        add(&self.epoll, &master, MASTER, flags)?;
        let first = self.prepare(&master)?;
        self.pty = Some(Master {
            fd: master,
            first,
            packets: self.follows(),
            readable: true,
            writable: true,
            to_screen: VecDeque::new(),
            to_pty: VecDeque::new(),
            at_line_start: true,
        });
        self.on_winch()?;
        self.settle()?;
        self.call_again()
    }

    /// Moves what can be moved now, without blocking. Hotkeys come in the order in which they were
    /// typed; they are not sent into the pty, the escape keys before them are.
    pub fn on_ready(&mut self, now: Instant) -> Result<Vec<Hotkey>> {
        self.take_events()?;
        let mut hotkeys = Vec::new();
        for _ in 0..ROUNDS {
            if !self.round(now, &mut hotkeys)? {
                return Ok(hotkeys);
            }
        }
        self.call_again()?;
        Ok(hotkeys)
    }

    /// To be called on SIGWINCH: copies the terminal's size to the pty, which tells the payload.
    pub fn on_winch(&mut self) -> Result<()> {
        let (Some(terminal), Some(pty)) = (&self.sized_by, &self.pty) else { return Ok(()) };
        // A terminal that has hung up has no size, and the payload keeps the last one.
        let Ok(size) = rustix::termios::tcgetwinsize(terminal) else { return Ok(()) };
        rustix::termios::tcsetwinsize(&pty.fd, size).context("setting the size of the pty")
    }

    /// To be called on SIGCONT: a shell has changed the modes while we were stopped, the window may have
    /// another size, and we may be in the foreground or not.
    pub fn on_continue(&mut self) -> Result<()> {
        self.settle()?;
        self.on_winch()?;
        self.call_again()
    }

    /// Whether everything that was written to the pty has been shown. Only then true for good, when the
    /// payload is gone.
    pub fn is_drained(&self) -> bool {
        self.pty.as_ref().is_none_or(|pty| !pty.readable && pty.to_screen.is_empty())
    }

    /// Begins the end: nothing is read from the user any more, and what the payload has left in the pty
    /// is still to be shown. Call [`Forwarder::on_ready`] until [`Forwarder::is_drained`].
    pub fn begin_drain(&mut self) -> Result<()> {
        let Some(pty) = &mut self.pty else { return Ok(()) };
        pty.to_pty.clear();
        pty.readable = true;
        self.draining = true;
        self.call_again()
    }

    /// Does both, to be called when the payload is gone. Gives up when nothing could be shown for
    /// `patience` (a stopped terminal, a reader that does not read), and tells whether all was shown.
    pub fn drain(&mut self, patience: Duration) -> Result<bool> {
        self.begin_drain()?;
        let mut deadline = Instant::now() + patience;
        loop {
            let before = self.shown_bytes;
            self.on_ready(Instant::now())?;
            if self.is_drained() {
                return Ok(true);
            }
            let now = Instant::now();
            if self.shown_bytes != before {
                deadline = now + patience;
            }
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return Ok(false);
            }
            let limit = Timespec::try_from(left).context("waiting that long")?;
            let mut wait = [PollFd::new(&self.epoll, PollFlags::IN)];
            match rustix::event::poll(&mut wait, Some(&limit)) {
                // A signal of the event loop's is waiting there and will be seen after this.
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("waiting for the terminal"),
            }
        }
    }

    /// Whether what was shown last is the beginning of a line that was not finished (RUN-04).
    pub fn ended_midline(&self) -> bool {
        self.midline
    }

    /// Puts the terminal back now, with an error if that is impossible; a drop does it silently.
    pub fn close(mut self) -> Result<()> {
        self.wash();
        self.terminal.as_mut().map_or(Ok(()), Terminal::restore)
    }

    /// Notes what has happened to which stream.
    fn take_events(&mut self) -> Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(4);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, Some(&Timespec::default())) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("asking for events of the console"),
        }
        for event in events {
            let (data, flags) = (event.data.u64(), event.flags);
            match (data, &mut self.pty, &mut self.keyboard, &mut self.screen) {
                (MASTER, Some(pty), _, _) => {
                    pty.readable |=
                        flags.intersects(EventFlags::IN | EventFlags::PRI | EventFlags::HUP);
                    pty.writable |= flags.contains(EventFlags::OUT);
                }
                (KEYBOARD, _, Some(source), _) => {
                    source.ready = true;
                    source.hung_up |= flags.contains(EventFlags::HUP);
                }
                (SCREEN, _, _, Some(sink)) => sink.ready = true,
                (AGAIN, ..) => {
                    // Only how often it was asked for is in there.
                    let _ = rustix::io::read(&self.again, &mut [0; 8]);
                }
                (CLOCK, ..) => {
                    // Only how often it went off is in there.
                    let _ = rustix::io::read(&self.clock, &mut [0; 8]);
                    self.settle()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves at most one piece over each of the four ways, and tells whether anything has moved.
    fn round(&mut self, now: Instant, hotkeys: &mut Vec<Hotkey>) -> Result<bool> {
        let pulled = self.pull()?;
        let shown = self.show();
        let typed = self.take_typed(now, hotkeys)?;
        let pushed = self.push();
        Ok(pulled || shown || typed || pushed)
    }

    /// From the pty into its buffer.
    fn pull(&mut self) -> Result<bool> {
        let Some(pty) = &mut self.pty else { return Ok(false) };
        if !pty.readable || pty.to_screen.len() + PIECE_BYTES > BUFFER_BYTES {
            return Ok(false);
        }
        let mut piece = [0; PIECE_BYTES];
        let count = match rustix::io::read(&pty.fd, &mut piece) {
            // EIO: no slave is open any more, which an open of /dev/console may change.
            Ok(0) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::IO) => {
                pty.readable = false;
                return Ok(false);
            }
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno).context("reading from the pty"),
            Ok(count) => count,
        };
        let mut shown = |bytes: &[u8]| match &mut self.tint {
            Some(tint) => pty.to_screen.extend(tint.feed(bytes)),
            None => pty.to_screen.extend(bytes),
        };
        match (pty.packets, piece[0]) {
            (false, _) => shown(&piece[..count]),
            (true, PACKET_DATA) => shown(&piece[1..count]),
            (true, status) if status & PACKET_MODES != 0 => self.settle()?,
            // Flow control and flushes happen at the user's terminal by themselves.
            (true, _) => {}
        }
        Ok(true)
    }

    /// From the pty's buffer to the screen.
    fn show(&mut self) -> bool {
        let Some(pty) = &mut self.pty else { return false };
        let (bytes, _) = pty.to_screen.as_slices();
        if bytes.is_empty() {
            return false;
        }
        let Some(sink) = &mut self.screen else {
            pty.to_screen.clear();
            return true;
        };
        if !sink.ready {
            return false;
        }
        match sink.end.write(bytes) {
            Ok(count) => {
                self.midline = bytes[..count].last().is_some_and(|byte| *byte != b'\n');
                pty.to_screen.drain(..count);
                self.shown_bytes += count as u64;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sink.ready = false;
                false
            }
            // The reader is gone, the terminal hung up or the disk full. The payload runs on, as the
            // left side of `| head` does while it is not writing.
            Err(_) => {
                self.screen = None;
                true
            }
        }
    }

    /// From the user into the buffer for the pty.
    fn take_typed(&mut self, now: Instant, hotkeys: &mut Vec<Hotkey>) -> Result<bool> {
        if !self.may_read()? {
            return Ok(false);
        }
        let (Some(pty), Some(source)) = (&mut self.pty, &mut self.keyboard) else {
            return Ok(false);
        };
        let mut piece = [0; PIECE_BYTES];
        match source.end.read(&mut piece) {
            Ok(0) => self.end_of_input()?,
            Ok(count) => {
                for byte in &piece[..count] {
                    match self.keys.feed(*byte, now) {
                        Some(hotkey) => hotkeys.push(hotkey),
                        None => pty.to_pty.push_back(*byte),
                    }
                }
                pty.at_line_start = piece[count - 1] == b'\n';
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                source.ready = false;
                return Ok(false);
            }
            // The terminal hung up, or never could be read. The payload's own end is not ours to say.
            Err(_) => self.keyboard = None,
        }
        Ok(true)
    }

    /// Whether the user's input is there, is wanted, and is ours to take.
    fn may_read(&mut self) -> Result<bool> {
        let (Some(pty), Some(source)) = (&self.pty, &self.keyboard) else { return Ok(false) };
        if self.draining || !source.ready || pty.to_pty.len() + PIECE_BYTES > BUFFER_BYTES {
            return Ok(false);
        }
        let Some(terminal) = &self.terminal else { return Ok(true) };
        if source.hung_up {
            return Ok(true);
        }
        if self.style == Keyboard::OnDemand {
            let now = tcgetattr(&pty.fd).context("asking for the modes of the pty")?;
            if now.local_modes == pty.first.local_modes {
                return Ok(false);
            }
        }
        // In the background a read would stop us; where another has set the modes, it would take keys
        // from a pager. In both cases the timer that this starts tells when to try again.
        let usable = terminal.in_foreground() && (!self.follows() || terminal.is_ours());
        // Brought to the foreground a moment ago, or changed by a shell while we were stopped: raw first.
        if !usable || (!self.follows() && !terminal.is_set()) {
            self.settle()?;
        }
        Ok(usable)
    }

    /// From the buffer into the pty.
    fn push(&mut self) -> bool {
        let Some(pty) = &mut self.pty else { return false };
        let (bytes, _) = pty.to_pty.as_slices();
        if bytes.is_empty() || !pty.writable {
            return false;
        }
        match rustix::io::write(&pty.fd, bytes) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => pty.writable = false,
            Ok(count) => drop(pty.to_pty.drain(..count)),
            Err(rustix::io::Errno::INTR) => {}
            // No slave is open: what is typed at nobody is lost, as at any terminal.
            Err(_) => pty.to_pty.clear(),
        }
        true
    }

    /// Has our descriptor become readable although no edge is to come.
    fn call_again(&self) -> Result<()> {
        rustix::io::write(&self.again, &1u64.to_ne_bytes()).context("asking to be called again")?;
        Ok(())
    }
}

fn add(epoll: &OwnedFd, source: impl AsFd, data: u64, flags: EventFlags) -> Result<()> {
    epoll::add(epoll, source, EventData::new_u64(data), flags)
        .context("asking for events of the console")
}
