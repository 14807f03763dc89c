//! Who does what, when?
//!
//! | process    | namespaces of its own                   | does |
//! |------------|-----------------------------------------|------|
//! | supervisor | none                                    | forks outer, forwards the console, waits, cleans up |
//! | outer      | mount                                   | makes the tree, switches the root, forks inner |
//! | inner      | and PID, UTS, IPC, cgroup, perhaps net  | makes the machine, gives up privileges, execs the payload |
//!
//! ```text
//! supervisor ── fork ──▶ outer ── fork, as a sibling ──▶ inner
//!     ├──── Cgroup(dir) ───▶│                              │
//!     │  ◀── Inner(pidfd) ──┘ exits                        │
//!     │  ◀── Console(pty) ─────────────────────────────────┤
//!     │  ◀── Ready ────────────────────────────────────────┤
//!     ├──── Go ───────────────────────────────────────────▶│
//!     │  ◀── end of the link: it has exec'd ───────────────┘
//! ```
//!
//! With `--as-pid2` inner forks once more, announces that process as `Payload`, and becomes a stub (E-01); the
//! new process goes on in its place.
//!
//! A stage that fails sends `Failed` instead, and only the supervisor tells the user.

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

/// An error that another stage has sent.
fn told(report: crate::errors::Report) -> anyhow::Error {
    match report.hint {
        Some(hint) => crate::errors::hinted(report.chain, hint).into(),
        None => anyhow::anyhow!(report.chain),
    }
}
