//! One run of the container: the stages are started and heard, and the payload is waited for.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::children::{ending, how, listens_to, pid_of, reap, reap_others, signal_to, wait_for};
use super::fork::fork_into;
use super::inner::Inner;
use super::link::{self, Link};
use super::outer::Outer;
use super::protocol::{FromInner, Sequence, Step, ToInner};
use super::{Child, Parent, apart, fork, inner, outer, told};
use crate::audience::Audience;
use crate::console::forward::Forwarder;
use crate::console::hotkey::Hotkey;
use crate::console::mode::Stream;
use crate::console::pty::release_inherited;
use crate::errors::{Hinted, Report, Verbosity, hinted, warn};
use crate::exit::{self, Ending, Next};
use crate::notify::Inbox;
use crate::session::Session;
use crate::settings::value::KillSignal;
use crate::spec::{Network, Spec};
use crate::sys::process::send_signal;
use crate::tell;
use crate::userns::{self, map::IdMap};

/// How long the rest of the payload's output may find no reader.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// How often a process 1 that does not listen is asked to end, and with what pauses: ten seconds in all.
const REQUESTS: u32 = 40;
const BETWEEN_REQUESTS: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// How many notifications are looked at after the payload's death: more than a queue usually holds
/// (net.unix.max_dgram_qlen, which systemd sets to 512), and an end to it.
const LAST_WORDS: usize = 1024;

/// Something that the event loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Signal,
    FromInner,
    Console,
    Notify,
}

/// What came of a run.
pub(super) struct End {
    pub(super) next: Next,
    /// What the user is to be told, once the terminal has its own modes again.
    pub(super) remark: Option<String>,
}

/// One run of the container. Dropping it kills and reaps whatever still lives (ORD-05).
pub(super) struct Boot<'a> {
    spec: &'a Spec,
    audience: &'a mut Audience,
    /// Where the tree comes from, for those who are told.
    root: &'static str,
    other_ways: Vec<String>,
    /// Which ids of the host the container's users have, if others than those.
    users: Option<IdMap>,
    /// What makes the tree of a container with users of its own, and then its process 1.
    maker: Option<Child>,
    /// The container's process 1.
    first: Option<Child>,
    /// Whether its cgroup keeps it from devices that are not its own.
    guarded: bool,
    /// Whom the inbox listens to: the payload, also if that is not process 1.
    speaker: libc::pid_t,
    inbox: Inbox,
    from_inner: Option<Link<ToInner, FromInner>>,
    sequence: Sequence,
    /// Held so that readers of the container's /proc/kmsg wait (DEV-06).
    kmsg: Option<OwnedFd>,
    /// Why the payload could not be executed, and our exit code.
    refused: Option<(Report, u8)>,
    /// A first request to shut down was passed on.
    shutting_down: bool,
    /// How often it is still repeated to a process 1 that does not listen.
    requests_left: u32,
    /// The user asked for a reboot by hotkey.
    reboot: bool,
}

impl<'a> Boot<'a> {
    /// Starts it.
    pub(super) fn start(
        spec: &'a Spec,
        session: &mut Session,
        audience: &'a mut Audience,
    ) -> Result<Self> {
        let ids = session.ids()?;
        let owner = session.id_map().map(IdMap::root).transpose()?.map(|(uid, gid)| (uid.0, gid.0));
        let root = session.root().mounted(owner, spec)?;
        let (from_inner, link) = link::pair::<ToInner, FromInner>()?;
        let inbox = Inbox::new()?;
        let outer = Outer {
            spec,
            ids: &ids,
            root,
            scratch: session.scratch(),
            inbox: &inbox,
            credentials: session.credentials(),
            link: &link,
        };
        let inner = Inner {
            spec,
            machine_id: &ids.machine,
            credentials: session.credentials(),
            link: &link,
            apart: false,
        };
        let cgroup = session.cgroup();
        let users = session.id_map().cloned();
        let tell = |error| inner::tell(&link, &error);
        let (maker, first) = match &users {
            None => {
                let make = || inner::run(inner, outer::run(&outer, None, &[link.as_fd()])?);
                (None, Some(fork_into(cgroup, namespaces(spec), Parent::Us, make, tell)))
            }
            // Who makes the tree has rights over the host that process 1 of such a container has not.
            Some(map) => {
                let make = || {
                    let kept: Vec<_> = cgroup.into_iter().chain([link.as_fd()]).collect();
                    let made = outer::run(&outer, Some(map), &kept)?;
                    apart::run(inner, made, cgroup, namespaces(spec))
                };
                (Some(fork(libc::CLONE_NEWNS, Parent::Us, make, tell)), None)
            }
        };
        let maker = maker.transpose().map_err(explain_no_process)?;
        let first = first.transpose().map_err(explain_no_process)?;
        let mut boot = Self {
            spec,
            audience,
            root: session.root().way(),
            other_ways: session.root().refused().to_vec(),
            sequence: Sequence::new(users.is_some(), spec.wiring.pty, spec.has_stub),
            users,
            maker,
            speaker: first.as_ref().map_or(0, |first| first.pid),
            first,
            guarded: false,
            inbox,
            from_inner: Some(from_inner),
            kmsg: None,
            refused: None,
            shutting_down: false,
            requests_left: 0,
            reboot: false,
        };
        boot.guarded = session.guard_devices(spec);
        if boot.first.is_some() {
            boot.tell_of_cgroup();
        }
        Ok(boot)
    }

    fn tell_of_cgroup(&self) {
        if let Some(link) = &self.from_inner {
            // A process that is gone has said why.
            let _ = link.send(&ToInner::Cgroup { guarded: self.guarded }, None);
        }
    }

    /// The event loop, to the container's end.
    pub(super) fn run(
        &mut self,
        signals: &SignalFd,
        mut console: Option<&mut Forwarder>,
    ) -> Result<End> {
        // Of those that ended before we listened, no signal tells.
        self.reap_others();
        loop {
            let events = self.wait(signals, console.as_deref())?;
            if let Some(signal) = self.spec.kill_signal.filter(|_| events.is_empty()) {
                self.request(signal)?;
            }
            for event in events {
                match event {
                    Event::FromInner => self.hear_inner(console.as_deref_mut())?,
                    Event::Notify => {
                        self.hear_payload();
                    }
                    Event::Console => {
                        let console = console.as_deref_mut().expect("it was waited for");
                        for hotkey in console.on_ready(Instant::now())? {
                            self.on_hotkey(hotkey)?;
                        }
                    }
                    Event::Signal => {
                        if let Some(ending) = self.take_signals(signals, &mut console)? {
                            return self.end(ending, console);
                        }
                    }
                }
            }
        }
    }

    fn wait(&self, signals: &SignalFd, console: Option<&Forwarder>) -> Result<Vec<Event>> {
        let mut waits = Vec::with_capacity(5);
        // Messages come before the death of their sender.
        if let Some(link) = &self.from_inner {
            waits.push((Event::FromInner, link.as_fd()));
        }
        if let Some(console) = console {
            waits.push((Event::Console, console.as_fd()));
        }
        waits.push((Event::Notify, self.inbox.as_fd()));
        waits.push((Event::Signal, signals.as_fd()));
        let mut fds: Vec<PollFd<'_>> =
            waits.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let patience = (self.requests_left > 0).then_some(&BETWEEN_REQUESTS);
        rustix::io::retry_on_intr(|| poll(&mut fds, patience)).context("waiting for events")?;
        let ready = waits.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((event, _), _)| *event).collect())
    }

    fn hear_inner(&mut self, console: Option<&mut Forwarder>) -> Result<()> {
        let Some(link) = &self.from_inner else { return Ok(()) };
        match link.recv()? {
            Some((FromInner::First(pid), pidfd)) => {
                self.sequence.take(Step::First)?;
                let pidfd = pidfd.context("the container's first process was not handed over")?;
                let map = self.users.as_ref().context("nobody asked for users")?;
                userns::write(map, pid)?;
                link.send(&ToInner::Mapped, None)?;
                self.speaker = pid;
                self.first = Some(Child { pid, pidfd });
                self.tell_of_cgroup();
            }
            Some((FromInner::Console, master)) => {
                self.sequence.take(Step::Console)?;
                let master = master.context("the container's console was not handed over")?;
                console.context("nobody asked for a console")?.connect(master)?;
            }
            Some((FromInner::Payload, pidfd)) => {
                self.sequence.take(Step::Payload)?;
                let pidfd = pidfd.context("the payload's process was not handed over")?;
                self.speaker = pid_of(&pidfd)?;
            }
            Some((FromInner::Ready, kmsg)) => {
                self.sequence.take(Step::Ready)?;
                self.kmsg = kmsg;
            }
            Some((FromInner::Failed(report), _)) => return Err(told(report)),
            Some((FromInner::NoExec(report, errno), _)) => {
                self.refused = Some((report, exit::of_failure(self.spec.exit_mode, errno)));
            }
            None => {
                self.from_inner = None;
                // Otherwise it died on the way; its status comes with SIGCHLD.
                if self.sequence.due() == Some(Step::Exec) && self.refused.is_none() {
                    self.sequence.take(Step::Exec)?;
                    // An init or a stub may reboot, and then the streams are needed once more (RUN-12).
                    if !self.spec.may_reboot() {
                        release_inherited(&self.spec.wiring)?;
                    }
                    self.tell_start();
                }
            }
        }
        Ok(())
    }

    /// The payload was released (DEF-06).
    fn tell_start(&mut self) {
        let Some(first) = &self.first else { return };
        let users = self.users.as_ref();
        self.audience.started(first.pid, &self.spec.machine, self.root, &self.other_ways, users);
        if !self.spec.notify_ready {
            self.audience.ready();
        }
    }

    /// Takes one message, so that a payload that talks all the time keeps nobody else waiting. What it says
    /// before we know that it runs can wait. Returns whether there was one.
    fn hear_payload(&mut self) -> bool {
        if self.sequence.due().is_some() {
            return false;
        }
        let Ok(said) = self.inbox.take(self.speaker) else { return false };
        if let Some(said) = said {
            self.audience.said(said, self.spec.notify_ready);
        }
        true
    }

    /// Acts on every signal that has come. Returns how the container ended, once it has.
    fn take_signals(
        &mut self,
        signals: &SignalFd,
        console: &mut Option<&mut Forwarder>,
    ) -> Result<Option<Ending>> {
        while let Some(info) = signals.read_signal().context("reading a signal")? {
            let number = i32::try_from(info.ssi_signo).context("reading a signal")?;
            match Signal::try_from(number).context("reading a signal")? {
                Signal::SIGCHLD => {}
                Signal::SIGWINCH => {
                    console.as_deref_mut().map_or(Ok(()), Forwarder::on_winch)?;
                }
                Signal::SIGCONT => {
                    console.as_deref_mut().map_or(Ok(()), Forwarder::on_continue)?;
                }
                signal => self.terminate(signal)?,
            }
        }
        self.reap_others();
        self.reap_maker()?;
        let Some(first) = &self.first else { return Ok(None) };
        let Some(status) = reap(first)? else { return Ok(None) };
        // It is dead, so all it had to say is there.
        while self.from_inner.is_some() {
            self.hear_inner(console.as_deref_mut())?;
        }
        for _ in 0..LAST_WORDS {
            if !self.hear_payload() {
                break;
            }
        }
        self.first = None;
        if let Some(step) = self.sequence.due().filter(|_| self.refused.is_none()) {
            bail!("{step}: the container's first process {}", how(&status));
        }
        Ok(Some(ending(&status)?))
    }

    fn reap_others(&self) {
        let ours = [&self.maker, &self.first].into_iter().flatten().map(|child| child.pid);
        reap_others(&ours.collect::<Vec<_>>());
    }

    /// What makes the tree ends when it has said which process is the first, or why there is none.
    fn reap_maker(&mut self) -> Result<()> {
        let Some(maker) = &self.maker else { return Ok(()) };
        let Some(status) = reap(maker)? else { return Ok(()) };
        self.maker = None;
        // One that was killed may have left a process that waits, and holds the link.
        while self.first.is_none() && self.from_inner.is_some() && status.exited() {
            self.hear_inner(None)?;
        }
        match (&self.first, self.sequence.due()) {
            (None, Some(step)) => bail!("{step}: the process that does it {}", how(&status)),
            _ => Ok(()),
        }
    }

    /// A request to end: whoever has a signal for that is asked by it first, and killed at the second request;
    /// anything else is killed (RUN-06, RUN-07, E-06).
    fn terminate(&mut self, signal: Signal) -> Result<()> {
        if let Some(step) = self.sequence.due() {
            bail!("{step}: interrupted by {signal}");
        }
        let Some(first) = &self.first else { return Ok(()) };
        match self.spec.kill_signal.filter(|_| !self.shutting_down) {
            None => signal_to(first, libc::SIGKILL),
            Some(request) => {
                self.shutting_down = true;
                if self.spec.verbosity >= Verbosity::Normal {
                    tell!("Shutting the container down; once more to kill it.");
                }
                self.requests_left = REQUESTS;
                self.request(request)
            }
        }
    }

    /// Asks process 1 to end. An init that has just started does not listen yet, and the kernel keeps nothing
    /// for process 1 that it does not listen to (pid_namespaces(7)): then it is asked again later.
    fn request(&mut self, signal: KillSignal) -> Result<()> {
        let Some(first) = &self.first else { return Ok(()) };
        let listens = self.spec.has_stub || listens_to(first.pid, signal.number());
        self.requests_left = if listens { 0 } else { self.requests_left.saturating_sub(1) };
        signal_to(first, signal.number())
    }

    fn on_hotkey(&mut self, hotkey: Hotkey) -> Result<()> {
        let Some(first) = &self.first else { return Ok(()) };
        match hotkey {
            Hotkey::Kill => signal_to(first, libc::SIGKILL),
            Hotkey::PowerOff => self.terminate(Signal::SIGTERM),
            // SIGRTMIN+5: reboot (systemd(1), SIGNALS).
            Hotkey::Reboot if self.spec.may_reboot() => signal_to(first, libc::SIGRTMIN() + 5),
            Hotkey::Reboot => {
                self.reboot = true;
                signal_to(first, libc::SIGKILL)
            }
        }
    }

    /// Shows the rest of the output and says what follows.
    fn end(&mut self, ending: Ending, console: Option<&mut Forwarder>) -> Result<End> {
        if let Some(console) = console {
            console.drain(DRAIN_PATIENCE)?;
        }
        if let Some((report, code)) = self.refused.take() {
            self.audience.failed(&report, code);
            return Ok(End { next: Next::Exit(code), remark: Some(report.to_string()) });
        }
        let next = match self.reboot {
            true => exit::reboot(self.spec.restart),
            false => exit::next(ending, self.spec.exit_mode, self.spec.restart),
        };
        match next {
            Next::Reboot => self.audience.rebooting(),
            Next::Exit(code) => self.audience.ended(ending, code),
        }
        let remark = match (ending, next) {
            (Ending::Signaled(signal), Next::Exit(1..)) if !self.reboot => {
                let name = exit::signal_name(signal);
                Some(format!("rspawn: the container was killed by {name}"))
            }
            _ => None,
        };
        let wiring = &self.spec.wiring;
        let inherited = [wiring.stdin, wiring.stdout].contains(&Stream::Inherit);
        if next == Next::Reboot && !self.spec.may_reboot() && inherited {
            warn("the command reboots, and its streams were let go of");
        }
        Ok(End { next, remark })
    }
}

impl Drop for Boot<'_> {
    fn drop(&mut self) {
        for child in [self.maker.take(), self.first.take()].into_iter().flatten() {
            // It is our child, so it can only be dead already, and then there is nothing to do.
            let _ = send_signal(&child.pidfd, libc::SIGKILL);
            let _ = wait_for(&child.pidfd);
        }
    }
}

fn explain_no_process(error: anyhow::Error) -> anyhow::Error {
    let permission = |error: &anyhow::Error| {
        error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
    };
    match permission(&error) {
        Some(libc::EPERM) if error.downcast_ref::<Hinted>().is_none() => {
            error.context(hinted("making the container's namespaces", "it needs CAP_SYS_ADMIN"))
        }
        _ => error.context("making the container's namespaces"),
    }
}

fn namespaces(spec: &Spec) -> libc::c_int {
    let own = [
        (true, libc::CLONE_NEWNS),
        (!spec.shares.pid, libc::CLONE_NEWPID),
        (!spec.shares.uts, libc::CLONE_NEWUTS),
        (!spec.shares.ipc, libc::CLONE_NEWIPC),
        (spec.network == Network::Private, libc::CLONE_NEWNET),
    ];
    own.iter().filter(|(is_own, _)| *is_own).fold(0, |flags, (_, flag)| flags | flag)
}
