//! `tmpmount DIR KIB`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, size] = words.as_slice() else {
        eprintln!("usage: tmpmount DIR KIB");
        return ExitCode::from(2);
    };
    let Ok(size_kib) = size.parse() else {
        eprintln!("tmpmount: \"{size}\" is no number");
        return ExitCode::from(2);
    };
    match tmpmount::mount_on(Path::new(dir), size_kib) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tmpmount: {error:#}");
            ExitCode::FAILURE
        }
    }
}
