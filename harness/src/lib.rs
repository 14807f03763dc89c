//! Boots distribution kernels in QEMU and runs test cases inside.
//!
//! The guest runs the cases, the host plans and judges. In the order of a run: [`suite`] builds what guests execute,
//! [`matrix`] plans cases over cells, [`accel`] chooses who executes guests, [`kernels`] and [`userland`] make what
//! they boot and mount (kept in [`artifact`]'s store, from packages that [`apt`] finds), [`runner`] boots one guest
//! after the other for each of [`schedule`]'s jobs with the pieces in [`vm`], and [`report`] tells what came of it.
//! Inside, [`guest`] is PID 1, agent and surroundings of a [`case`]; [`fixture`] builds what a case works on. [`xtask`]
//! has the commands; [`coverage`] tells which behaviours no test names.
//!
//! **Invariants**
//! * Nothing passes without positive proof: [`vm::watch`].
//! * What is planned is reported by name, exactly once: [`report::summary::exit_code`].
//! * A need is data, and a skip is decided before anything boots: [`matrix::plan`].
//! * A killed run leaves no process, no mount and no half entry in the store: [`vm::process`], [`artifact`].
//! * This package builds with cargo and a C linker alone.

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
pub mod machine;
pub mod matrix;
pub mod need;
pub mod report;
pub mod rundir;
pub mod runner;
pub mod schedule;
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
pub mod workspace;
pub mod xtask;
