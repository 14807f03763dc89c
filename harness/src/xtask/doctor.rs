//! `cargo xtask doctor`: what this machine has, and which accelerator guests will get and why. Changes nothing.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::accel::{self, Wish};
use crate::artifact::Store;
use crate::workspace::Workspace;
use crate::{kernels, userland};

use super::setup::{self, Scope};

/// Prints the findings.
///
/// # Errors
/// When the checkout's own tables cannot be read.
pub fn run(workspace: &Workspace) -> Result<()> {
    let missing = setup::missing(Scope::Suite);
    if missing.is_empty() {
        println!("packages     all there");
    }
    for (package, why) in missing {
        println!("packages     missing {package}: {why} (cargo xtask setup)");
    }
    println!("qemu         {}", accel::qemu_version().unwrap_or_else(|| "not there".to_owned()));
    println!("kvm          {}", accel::probe());
    match accel::choose(workspace, Wish::Auto) {
        Ok(choice) => println!("accelerator  {} ({})", choice.accel, choice.why),
        Err(error) => println!("accelerator  none: {error:#}"),
    }
    println!("processors   {}", std::thread::available_parallelism().map_or(1, usize::from));
    println!("memory       {} MiB available", available_memory_mib().unwrap_or(0));
    if let Ok(space) = rustix::fs::statvfs(workspace.root()) {
        println!("disk         {} MiB free", space.f_bavail.saturating_mul(space.f_frsize) >> 20);
    }
    let stored = Store::at(workspace.vm_dir().join("store")).list()?;
    for row in kernels::rows(workspace)? {
        let cached =
            stored.iter().any(|entry| entry.name.starts_with(&format!("kernel-{}-", row.name)));
        println!("kernel       {} {}", row.name, if cached { "cached" } else { "not cached" });
    }
    for named in userland::recipes(workspace)? {
        let state = if named.built(workspace).is_some() { "cached" } else { "not cached" };
        println!("image        {} {state}", named.name);
    }
    Ok(())
}

/// `MemAvailable` of /proc/meminfo, or what the cgroup leaves if that is less.
#[must_use]
pub fn available_memory_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024;
    Some(cgroup_memory_mib().map_or(machine, |cgroup| cgroup.min(machine)))
}

/// What our cgroup may still take (cgroup2, memory.max); none without a limit. One further up is not seen.
fn cgroup_memory_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let dir = Path::new("/sys/fs/cgroup").join(path);
    let figure = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(figure("memory.max")?.saturating_sub(figure("memory.current")?) >> 20)
}
