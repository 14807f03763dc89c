//! The parent: starts the container, and starts it again if it reboots.
//!
//! It stays in the caller's namespaces, unless it must be the root of one to do anything, and has one thread and one
//! event loop, that of [`Boot`]. Signals are read from a descriptor, so that every way out takes back what was done (R9).

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::boot::Boot;
use super::{Parent, fork};
use crate::audience::Audience;
use crate::console::forward::{Forwarder, Streams};
use crate::credentials;
use crate::errors::Verbosity;
use crate::exit::Next;
use crate::session::Session;
use crate::spec::Spec;
use crate::sys::process::ignores_hangup;
use crate::tell;
use crate::userns;

/// What ends us when it comes once or, with an init, twice (RUN-06, RUN-07).
const TERMINATING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Runs the container that `spec` describes, to its end. Returns our exit code.
///
/// # Errors
/// When the container could not be started; nothing of it is left then.
pub fn run(spec: &Spec, audience: &mut Audience) -> Result<u8> {
    // Whoever gives one may keep us waiting; a signal simply ends us then, since nothing is made yet.
    let credentials = credentials::load(&spec.credentials)?;
    userns::become_root(&spec.users)?;
    let signals = block_signals()?;
    let mut session = Session::open(spec, credentials)?;
    let mut console = open_console(spec)?;
    if spec.verbosity >= Verbosity::Normal {
        greet(spec);
    }
    let (code, remark) = loop {
        let mut boot = Boot::start(spec, &mut session, audience)?;
        let end = boot.run(&signals, console.as_mut())?;
        match end.next {
            Next::Reboot => {}
            Next::Exit(code) => break (code, end.remark),
        }
    };
    audience.stopping();
    let midline = console.as_ref().is_some_and(Forwarder::ended_midline);
    if let Some(console) = console {
        console.close()?;
    }
    if spec.verbosity >= Verbosity::Normal {
        if midline {
            tell!();
        }
        tell!("Container {} ended with exit code {code}.", spec.machine);
    }
    if let Some(remark) = remark {
        tell!("{remark}");
    }
    if let Some(kept) = session.close(spec, code != 0)? {
        audience.kept(&kept);
        tell!("rspawn: what it has written is kept in {}", kept.display());
    }
    Ok(code)
}

/// Blocks what the event loop reads; children inherit that and undo it before they exec. What nohup(1) started lives on
/// when its terminal goes.
fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::from_iter(TERMINATING);
    if ignores_hangup() {
        set.remove(Signal::SIGHUP);
    }
    set.extend([Signal::SIGCHLD, Signal::SIGWINCH, Signal::SIGCONT]);
    set.thread_block().context("blocking signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("listening for signals")
}

/// The user's side of the pty, if there is one, and the process that restores the terminal if we cannot.
fn open_console(spec: &Spec) -> Result<Option<Forwarder>> {
    if !spec.wiring.pty {
        return Ok(None);
    }
    let mut console = Forwarder::new(&spec.wiring, spec.escape_key, Streams::own())?;
    if let Some(colour) = &spec.background {
        console.tint(colour);
    }
    if let Some(watch) = console.watch()? {
        // It has nobody to tell a failure to: by then we are dead.
        fork(0, Parent::Us, || watch.run(), |_| ()).context("watching over the terminal")?;
    }
    Ok(Some(console))
}

fn greet(spec: &Spec) {
    let source = spec.root.source().display();
    tell!("Spawning container {} on {source}.", spec.machine);
    if let Some(byte @ 1..=31) = spec.escape_key.byte().filter(|_| spec.wiring.pty) {
        let key = char::from(byte | 0x40);
        tell!("Press ^{key} three times within 1s to kill the container.");
    }
}
