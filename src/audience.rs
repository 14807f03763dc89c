//! Who wants to know how the container fares? The service manager that started us, and whoever reads what
//! `--status-fd=` names. What is told them is decided here, once for both.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Result;

use crate::errors::Report;
use crate::exit::Ending;
use crate::notify::{Said, Upstream};
use crate::status::{Event, Log};
use crate::userns::map::IdMap;

/// Everybody who is told. The default is nobody.
#[derive(Debug, Default)]
pub struct Audience {
    manager: Upstream,
    log: Log,
    /// READY=1 was said; a container that is started again is not ready twice (RUN-05).
    ready: bool,
}

impl Audience {
    /// The service manager that our `NOTIFY_SOCKET` names, and the reader of `status`.
    pub fn new(status: Option<OwnedFd>) -> Self {
        Self { log: Log::new(status), ..Self::default() }
    }

    /// Looks for the service manager.
    ///
    /// # Errors
    /// When `NOTIFY_SOCKET` names none.
    pub fn find_manager(&mut self) -> Result<()> {
        self.manager = Upstream::new(std::env::var_os("NOTIFY_SOCKET"))?;
        Ok(())
    }

    /// The payload was executed, in a container whose process 1 is `leader` outside (DEF-06); `root` is where its
    /// tree comes from, `refused` says which ways to it did not bear, and `users` are its own, if it has others than
    /// the host.
    pub fn started(
        &mut self,
        leader: libc::pid_t,
        machine: &str,
        root: &str,
        refused: &[String],
        users: Option<&IdMap>,
    ) {
        let users = users.map(IdMap::to_string);
        let users = users.as_deref();
        self.log.tell(&Event::Started { leader, machine, root, refused, users });
        self.manager.tell(&format!("STATUS=Container running.\nX_NSPAWN_LEADER_PID={leader}"));
    }

    /// The container is ready.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.log.tell(&Event::Ready);
            self.manager.tell("READY=1");
        }
    }

    /// The container said something of itself (E-07). That it is ready counts if it was asked to say so.
    pub fn said(&mut self, said: Said, notify_ready: bool) {
        if said.ready && notify_ready {
            self.ready();
        }
        if let Some(text) = said.status {
            self.manager.tell(&format!("STATUS=Container running: {text}"));
        }
    }

    /// The container has ended and is started again (RUN-12).
    pub fn rebooting(&mut self) {
        self.log.tell(&Event::Reboot);
    }

    /// The container has ended in this way, and we exit with this code.
    pub fn ended(&mut self, ending: Ending, exit_code: u8) {
        self.log.tell(&match ending {
            Ending::Exited(code) => Event::Exited { code: Some(code), signal: None, exit_code },
            Ending::Signaled(signal) => {
                Event::Exited { code: None, signal: Some(signal), exit_code }
            }
        });
    }

    /// What the run has written stays there.
    pub fn kept(&mut self, path: &Path) {
        self.log.tell(&Event::Kept { path: &path.to_string_lossy() });
    }

    /// Nothing ran, or we gave up on it, and exit with this code (RUN-16).
    pub fn failed(&mut self, report: &Report, exit_code: u8) {
        let Report { chain, hint } = report;
        self.log.tell(&Event::Failed { error: chain, hint: hint.as_deref(), exit_code });
    }

    /// The container has ended for good (RUN-05).
    pub fn stopping(&self) {
        self.manager.tell("STOPPING=1\nSTATUS=Terminating...");
    }
}
