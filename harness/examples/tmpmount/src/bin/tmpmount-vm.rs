//! `cargo run -p tmpmount --bin tmpmount-vm [FILTER…]`: runs the cases in guests.

use std::path::Path;
use std::process::ExitCode;

use harness::workspace::{Project, Workspace};

fn main() -> ExitCode {
    let project = Project {
        package: "tmpmount",
        program: "tmpmount",
        suite: "tmpmount-cases",
        libraries: &[],
    };
    // What is in qemu/, images/ and ci/ of this directory counts; kernels and images are kept below cargo's target.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    harness::xtask::project::main(&Workspace::of_package(here).testing(project))
}
