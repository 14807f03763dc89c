//! `cargo xtask bench --guests`: what a fresh guest costs, restored from a template and booted, beside a warm one.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::artifact::Store;
use crate::bench::guests::{Bench, Row};
use crate::machine::{GUEST_MEMORY_MIB, Parts};
use crate::rundir::RunDir;
use crate::shape::Shape;
use crate::template::Templates;
use crate::workspace::Workspace;
use crate::{accel, kernels, suite};

use super::vm_test::{Ready, lane};

/// Measures on the default kernel and prints a table, or JSON.
///
/// # Errors
/// When something cannot be built, or a guest does not come up.
pub(super) fn run(
    workspace: &Workspace,
    mirror: Option<&str>,
    rounds: usize,
    json: bool,
) -> Result<ExitCode> {
    let row = kernels::rows(workspace)?.into_iter().next().context("reading the default kernel")?;
    let suite = suite::build(workspace)?;
    let choice = accel::choose(workspace, accel::Wish::Auto)?;
    let shapes = BTreeSet::from([Shape::Lean]);
    let ready = Ready::make(workspace, mirror, std::slice::from_ref(&row), &shapes)?;
    let run_dir = RunDir::make(workspace)?;
    let suite = suite.pinned()?;
    let kernel = ready.kernels.get(&row.name).context("the kernel is not ready")?;
    let root = ready.roots.get(&Shape::Lean).context("the guest is not ready")?;
    let (accel, memory_mib) = (choice.accel, GUEST_MEMORY_MIB);
    let parts = Parts { kernel, shape: Shape::Lean, root, accel, memory_mib };
    let (templates, suite) = (&Templates::of(workspace), &suite);
    let store = &Store::of(workspace);
    let bench = Bench { parts, suite, templates, store, dir: run_dir.path() };
    let mut rows = Vec::new();
    for fs in lane(workspace, "quick")?.fs {
        rows.extend(bench.measure(&fs, rounds)?);
    }
    if json {
        let value = serde_json::json!({ "kernel": row.name, "accel": accel, "rows": rows });
        println!("{value:#}");
    } else {
        println!("guests of {}, accel {accel} ({}), {rounds} rounds", row.name, choice.why);
        print!("{}", table(&rows));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<9} {:<6} {:>22} {:>14} {:>14} {:>14}\n",
        "start", "fs", "ready (min–max) ms", "qemu's cpu ms", "first cmd ms", "same again ms"
    );
    for row in rows {
        let [Some(ready), Some(cpu), Some(first), Some(again)] =
            [row.ready_ms, row.ready_cpu_ms, row.first_ms, row.again_ms]
        else {
            continue;
        };
        let start = format!("{:?}", row.start).to_lowercase();
        let spread = format!("{:.0} ({:.0}–{:.0})", ready.median, ready.min, ready.max);
        text.push_str(&format!(
            "{start:<9} {:<6} {spread:>22} {:>14.0} {:>14.0} {:>14.0}\n",
            row.fs, cpu.median, first.median, again.median
        ));
    }
    text
}
