//! Boots distribution kernels in QEMU and runs test cases inside.
//!
//! The guest runs the cases, the host plans and judges. In the order of a run: [`suite`] builds what guests execute,
//! [`matrix`] plans cases over cells, [`accel`] chooses who executes guests, [`kernels`] ([`local_kernel`]) and [`userland`] make what
//! they boot and mount (kept in [`artifact`]'s store, from packages that [`apt`] finds), [`runner`] gives each of
//! [`schedule`]'s jobs to one guest after the other, and [`report`] tells what came of it. A guest is a [`machine`] with a
//! [`scratch`] disk, restored from a [`template`] with the pieces in [`vm`]; what a failed case leaves of it is [`kept`],
//! and opened at the [`terminal`].
//! Inside, [`guest`] is PID 1, agent and surroundings of a [`case`]; [`fixture`] builds what a case works on. [`xtask`]
//! has the commands; [`coverage`] tells which behaviours no test names.
//!
//! **Invariants**
//! * Nothing passes without positive proof: [`vm::watch`].
//! * What is planned is reported by name, exactly once: [`report::summary::exit_code`].
//! * A need is data, and a skip is decided before anything boots: [`matrix::plan`].
//! * Guests of one template share no random number and no clock: [`report::event::Begin`].
//! * A killed run leaves no process, no mount and no half entry in the store: [`vm::process`], [`artifact`].
//! * This package builds with cargo and a C linker alone.
//!
//! # Cases of another package
//!
//! What is tested is a [`workspace::Project`]: a package with a program and a test target. `harness/examples/tmpmount` is
//! one, complete and small, with cases about a helper that mounts a tmpfs; `cargo run -p tmpmount --bin tmpmount-vm` runs
//! them. Such a package has:
//!
//! 1. A test target with `harness = false`, linked statically by the harness, whose `main` is that of its suite. It is
//!    everything in a guest: process 1, the agent that takes the host's orders, and each case in a process of its own.
//!
//! ```no_run
//! use std::fs;
//! use std::process::{Command, ExitCode};
//!
//! use harness::case::Need;
//! use harness::cases;
//! use harness::guest::suite::Suite;
//! use harness::guest::{Guest, observe};
//!
//! // A row per case: what it needs of its guest beside itself, and its limit in seconds where 20 are too few.
//! cases![
//!     it_mounts_what_it_was_asked_for,
//!     it_works_on_btrfs_too: [Need::Fs("btrfs"), Need::Kernel(5, 10)] within 60,
//! ];
//!
//! // A case fails by returning an error. It is root, `scratch` is its own, and what it leaves behind (a mount, a
//! // process, a loop device, a cgroup, a file) fails it, too.
//! fn it_mounts_what_it_was_asked_for(t: &Guest) -> anyhow::Result<()> {
//!     let dir = t.scratch().join("place");
//!     fs::create_dir(&dir)?;
//!     let run = Command::new(t.launcher()).arg(&dir).arg("64").output()?;
//!     anyhow::ensure!(run.status.success(), "{run:?}");
//!     let mounts = observe::mounts_of("self")?;
//!     anyhow::ensure!(mounts.iter().any(|mount| mount.on == dir.to_string_lossy()), "{mounts:?}");
//!     rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::empty())?;
//!     fs::remove_dir(&dir)?;
//!     Ok(())
//! }
//!
//! fn it_works_on_btrfs_too(t: &Guest) -> anyhow::Result<()> {
//!     anyhow::ensure!(t.fs() == "btrfs");
//!     Ok(())
//! }
//!
//! const SUITE: Suite = Suite {
//!     tables: &[CASES],
//!     launcher: "/path/of/the/program", // env!("CARGO_BIN_EXE_program")
//!     sources: env!("CARGO_MANIFEST_DIR"),
//! };
//!
//! fn main() -> ExitCode {
//!     SUITE.main()
//! }
//! ```
//!
//! 2. A program that runs them, with the whole command line of `vm-test`:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use harness::workspace::{Project, Workspace};
//!
//! fn main() -> std::process::ExitCode {
//!     let project =
//!         Project { package: "mine", program: "mine", suite: "mine-cases", libraries: &[] };
//!     let here = Workspace::of_package(Path::new(env!("CARGO_MANIFEST_DIR")));
//!     harness::xtask::project::main(&here.testing(project))
//! }
//! ```
//!
//! 3. Tables: `qemu/kernels.toml` and `qemu/lanes.toml` (on what it runs), `images/guest.toml` (the packages of the
//!    guests' Debian). `ci/expected-skips.toml` and `qemu/kernels.lock` are optional.
//!
//! Fixtures are in [`fixture`]; a case that needs a service manager, D-Bus or journald asks for
//! [`shape::Shape::Systemd`]; one about a container that boots takes an [`fixture::os::Os`].

pub mod accel;
pub mod apt;
pub mod artifact;
pub mod bench;
pub mod build_id;
pub mod case;
pub mod coverage;
pub mod ext4;
pub mod fixture;
pub mod guest;
pub mod initramfs;
pub mod kept;
pub mod kernels;
mod life;
pub mod local_kernel;
pub mod machine;
pub mod matrix;
pub mod need;
pub mod nextest;
pub mod report;
pub mod rundir;
pub mod runner;
pub mod schedule;
pub mod scratch;
pub mod shape;
pub mod static_build;
pub mod suite;
mod sys;
pub mod systemd;
pub mod template;
pub mod terminal;
pub mod tool;
pub mod userland;
pub mod vm;
mod vmlinux;
pub mod workspace;
pub mod xtask;
