//! Who does what, when?
//!
//! | process    | namespaces of its own                         | does |
//! |------------|-----------------------------------------------|------|
//! | supervisor | none, or user and mount of an ordinary user's  | forks the first process, forwards the console, waits, cleans up |
//! | the first  | mount, PID, UTS, IPC, cgroup, perhaps network | outer makes the tree and switches the root, inner makes the machine, gives up privileges and execs the payload |
//!
//! ```text
//! supervisor ── fork ──▶ outer
//!     │                    ▼
//!     ├──── Cgroup ─────▶ inner
//!     │  ◀── Console(pty) ─┤
//!     │  ◀── Ready ────────┤
//!     │  ◀── end of link ──┘ it has exec'd
//! ```
//!
//! The two parts are one process: a second one would cost a tenth of a start. Neither is in its own cgroup namespace
//! until inner makes one, and outer does nothing by which the container's namespaces could be told from the host's.
//!
//! With `--as-pid2` inner forks once more, announces that process as `Payload`, and becomes a stub (E-01); the
//! new process goes on in its place.
//!
//! A container with users of its own (U-01) has two processes for the two parts, since what makes the tree has rights
//! over the host that its process 1 has not (`apart.rs`):
//!
//! ```text
//! supervisor ── fork ──▶ outer ── fork, as a sibling ──▶ inner
//!     │  ◀── First(pidfd) ───┘ exits                       │
//!     ├──── Mapped ───────────────────────────────────────▶│
//!     ├──── Cgroup ───────────────────────────────────────▶│ and on as above
//! ```
//!
//! An ordinary user's supervisor enters a user namespace before it does anything else, and is a root for the rest.
//!
//! A process that fails sends `Failed` instead, and only the supervisor tells the user.

mod apart;
mod boot;
mod children;
mod errand;
mod exec;
mod fork;
mod getent;
mod inner;
mod link;
mod outer;
mod payload;
mod protocol;
mod stub;
mod supervisor;
mod user;

pub(crate) use errand::errand;
pub use fork::{Child, Parent, fork};
pub use stub::is_available as has_stub;
pub use supervisor::run;

/// An error that the first process has sent.
fn told(report: crate::errors::Report) -> anyhow::Error {
    match report.hint {
        Some(hint) => crate::errors::hinted(report.chain, hint).into(),
        None => anyhow::anyhow!(report.chain),
    }
}
