//! rspawn starts containers: *said → decided → done*.
//!
//! | step    | modules, in reading order |
//! |---------|---------------------------|
//! | said    | [`options`] is the table of all options; [`cli`] and [`settings`] read argv and `.nspawn` files by it |
//! | decided | [`host`] looks at the machine once; [`spec`] makes one [`spec::Spec`] of both, in which nothing is open |
//! | done    | [`session`] holds what outlives a run ([`root`]: where the tree comes from); [`stage`] runs the three processes, which use [`mounts`], [`tree`], [`integration`], [`inroot`], [`ids`], [`bind_user`], [`userns`], [`console`], [`credentials`] and [`security`] |
//!
//! Beside them: [`handover`] and [`notify`] are what a service manager shares with us and the payload,
//! [`undo`] takes back what was done to the host, `walk` goes through trees that someone hostile has written, `held` changes what is immutable there, [`errors`], [`exit`], [`audience`] and [`status`] say how it went, `progress` shows how it goes,
//! [`sys`] wraps what no crate has, and `checkpoint` is where tests stop us.
//!
//! # Invariants
//!
//! * **Nothing on the machine is touched before the `Spec` exists**, and `--explain` prints all of it.
//! * **Paths of the container are resolved by [`inroot`] only**, below its root and by descriptor.
//! * **One file forks** (`stage/fork.rs`), from a process with one thread; a child never returns.
//! * **Sets are tables with one interpreter**: options, mounts, nodes, capabilities, system calls.
//! * **The supervisor alone tells errors**, as one chain of what was being done.
//! * There is no set-uid mode, no daemon, no async runtime, and no re-exec of our own binary: what stays in
//!   a container is the payload, or a program of its own in memory (`sys/stub_program.rs`, R11).

pub mod audience;
pub mod bind_user;
pub mod cgroup;
mod checkpoint;
pub mod cli;
pub mod console;
pub mod credentials;
pub mod errors;
pub mod exit;
pub mod handover;
mod held;
pub mod host;
pub mod ids;
pub mod inroot;
pub mod integration;
pub mod mounts;
pub mod notify;
pub mod options;
mod progress;
pub mod root;
pub mod security;
pub mod session;
pub mod settings;
pub mod spec;
pub mod stage;
pub mod status;
pub mod sys;
pub mod tree;
pub mod undo;
pub mod userns;
mod walk;
