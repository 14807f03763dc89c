//! The floor of `cargo xtask bench`: `floor TREE PROGRAM [ARGUMENT…]` runs a program in a container and does nothing
//! that a container does not need to exist. Not for use: it guards against nothing.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some((tree, payload)) = arguments.split_first() else {
        eprintln!("floor: usage: floor TREE PROGRAM [ARGUMENT…]");
        return ExitCode::from(2);
    };
    match harness::bench::floor::run(Path::new(tree), payload) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}
