//! Who wants to know how the container fares? The service manager that started us, and whoever reads what
//! `--status-fd=` names. What is told them is decided here, once for both.

use std::os::fd::OwnedFd;

use anyhow::Result;

use crate::notify::{Said, Upstream};

/// Everybody who is told.
#[derive(Debug, Default)]
pub struct Audience {
    manager: Upstream,
    /// READY=1 was said; a container that is started again is not ready twice (RUN-05).
    ready: bool,
}

impl Audience {
    /// The service manager that our `NOTIFY_SOCKET` names.
    ///
    /// # Errors
    /// When it names none.
    pub fn new(_status: Option<OwnedFd>) -> Result<Self> {
        Ok(Self { manager: Upstream::new(std::env::var_os("NOTIFY_SOCKET"))?, ready: false })
    }

    /// The payload was executed, in a container whose process 1 is `leader` outside (DEF-06).
    pub fn started(&mut self, leader: libc::pid_t) {
        self.manager.tell(&format!("STATUS=Container running.\nX_NSPAWN_LEADER_PID={leader}"));
    }

    /// The container is ready.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
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

    /// The container has ended for good (RUN-05).
    pub fn stopping(&self) {
        self.manager.tell("STOPPING=1\nSTATUS=Terminating...");
    }
}
