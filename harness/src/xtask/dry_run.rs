//! `cargo xtask vm-test --dry-run`: QEMU's command lines, and nothing is run.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::accel::Choice;
use crate::machine::{self, GUEST_MEMORY_MIB, Parts, SCRATCH_MIB};
use crate::matrix::Plan;
use crate::rundir::RunDir;
use crate::suite::Suite;
use crate::tool;
use crate::vm::args::{Sockets, qemu_arguments};

use super::vm_test::Ready;

/// Prints them for each job.
///
/// # Errors
/// When what they need cannot be made.
pub(super) fn run(
    plan: &Plan,
    ready: &Ready,
    choice: &Choice,
    suite: &Suite,
    run_dir: &RunDir,
) -> Result<ExitCode> {
    for job in &plan.jobs {
        let kernel =
            ready.kernels.get(&job.cell.kernel).context("planning a kernel that is not ready")?;
        let root =
            ready.roots.get(&job.cell.shape).context("planning a guest that is not ready")?;
        let initramfs = machine::initramfs(run_dir.path(), kernel, suite)?;
        let scratch = machine::scratch_file(run_dir.path(), SCRATCH_MIB)?;
        let (accel, memory_mib) = (choice.accel, GUEST_MEMORY_MIB);
        let parts = Parts { kernel, shape: job.cell.shape, root, accel, memory_mib };
        let machine = parts.machine(initramfs, machine::scratch_disk(&scratch));
        let sockets = Sockets { agent: 3, monitor: 4, console: None };
        let words = qemu_arguments(&machine, sockets, &run_dir.path().join("console.log"));
        let words: Vec<String> = words.iter().map(|word| tool::quoted(word)).collect();
        println!("# {}: {} cases", job.cell, job.cases.len());
        println!("qemu-system-x86_64 {}", words.join(" "));
    }
    Ok(ExitCode::SUCCESS)
}
