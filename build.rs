//! Builds the default system call programs once: libseccomp takes 7 to 11 ms for the allow list, more than all the
//! rest of a container's start. The same table and code build other programs at run time, and a unit test checks
//! that both agree.
//!
//! Also compiles the stub of `--as-pid2` (`src/sys/stub_program.rs`), which is a program of its own.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

// The library uses more of these files than the build script does.
#[allow(dead_code, unreachable_pub)]
#[path = "src/security/seccomp"]
mod seccomp {
    pub mod bpf;
    pub mod compact;
    pub mod families;
    pub mod filter;
    pub mod table;
}

use seccomp::{bpf, compact, filter, table};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    for file in ["bpf", "compact", "families", "filter", "table"] {
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
    let [allow_list, no_audit] = ["allow_list.bpf", "no_audit.bpf"].map(|name| out.join(name));
    let joined = bpf::joined(&[&fs::read(allow_list)?, &fs::read(no_audit)?]);
    fs::write(out.join("default.bpf"), joined)?;
    compile_stub(&machine, &out.join("stub"))
}

/// Without a library and with as few pages as a linker can be told to make; empty on a machine that the stub does not
/// know.
fn compile_stub(machine: &str, to: &Path) -> Result<(), Box<dyn Error>> {
    const SOURCE: &str = "src/sys/stub_program.rs";
    println!("cargo::rerun-if-changed={SOURCE}");
    if !["x86_64", "aarch64"].contains(&machine) {
        return Ok(fs::write(to, [])?);
    }
    let mut compiler = Command::new(std::env::var("RUSTC")?);
    compiler.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "stub"]);
    compiler.args(["--target", &std::env::var("TARGET")?]);
    compiler.args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "strip=symbols"]);
    compiler.args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"]);
    compiler.args(["-C", "link-args=-nostartfiles -nostdlib -static"]);
    compiler.args(["-C", "link-args=-Wl,--build-id=none,-z,noseparate-code,-z,noexecstack"]);
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        compiler.args(["-C", &format!("linker={linker}")]);
    }
    let status = compiler.arg(SOURCE).arg("-o").arg(to).status()?;
    if status.success() { Ok(()) } else { Err(format!("compiling {SOURCE}: {status}").into()) }
}
