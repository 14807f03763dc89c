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
//!     │  ◀── Inner(pidfd) ──┘ exits                        │
//!     │  ◀── Console(pty) ─────────────────────────────────┤
//!     │  ◀── Ready ────────────────────────────────────────┤
//!     ├──── Go ───────────────────────────────────────────▶│
//!     │  ◀── end of the link: it has exec'd ───────────────┘
//! ```
//!
//! A stage that fails sends `Failed` instead, and only the supervisor tells the user.

mod exec;
mod fork;
mod inner;
mod link;
mod outer;
mod payload;
mod protocol;
mod supervisor;

pub use fork::{Child, Parent, fork};
pub use supervisor::run;
