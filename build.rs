//! Builds the default system call programs once: libseccomp takes 7 to 11 ms for the allow list, more than all the
//! rest of a container's start. The same table and code build other programs at run time, and a unit test checks
//! that both agree.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::path::PathBuf;

// The library uses more of these files than the build script does.
#[allow(dead_code, unreachable_pub)]
#[path = "src/security/seccomp"]
mod seccomp {
    pub mod bpf;
    pub mod compact;
    pub mod filter;
    pub mod table;
}

use seccomp::{compact, filter, table};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    for file in ["bpf", "compact", "filter", "table"] {
        println!("cargo::rerun-if-changed=src/security/seccomp/{file}.rs");
    }
    let machine = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let arches = filter::arches(&machine)
        .ok_or_else(|| format!("no system call filter for the machine {machine}"))?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let none = BTreeSet::new();
    let programs = [
        ("allow_list", filter::allow_list(arches, table::DECIDING_BY_DEFAULT, &none, &none)?),
        ("no_audit", filter::no_audit(arches)?),
        ("no_sync", filter::no_sync(arches)?),
        ("no_terminal_input", filter::no_terminal_input(arches)?),
    ];
    for (name, program) in programs {
        let path = out.join(name).with_extension("bpf");
        program.export_bpf(File::create(&path)?)?;
        fs::write(&path, compact::compact(fs::read(&path)?))?;
    }
    Ok(())
}
