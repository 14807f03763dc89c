//! What was said in all? The command line, and the `.nspawn` file of the machine if there is one.

use anyhow::Result;
use rustix::process::geteuid;

use super::file::{self, Problem, SearchPath};
use super::value::{Scope, SettingsMode};
use super::{Settings, file_is_trusted, merge};
use crate::host::Host;
use crate::spec::machine_of;

/// Reads the first settings file of the machine (G-02) and puts it together with the command line. What is
/// wrong in the file comes back as problems: none of them keeps a container from starting (PIV-09).
///
/// # Errors
/// When a file is there and cannot be read, or nobody knows to which section its lines belong.
pub fn gather(command_line: Settings, host: &Host) -> Result<(Settings, Vec<Problem>)> {
    let mode = command_line.settings_mode.or(SettingsMode::Yes);
    if mode == SettingsMode::No {
        return Ok((command_line, Vec::new()));
    }
    // Without a root there is no file to look for; what is wrong with it is told when the Spec is made.
    let Some((machine, root)) = machine_of(&command_line, host) else {
        return Ok((command_line, Vec::new()));
    };
    let default = if geteuid().is_root() { Scope::System } else { Scope::User };
    let variable = |name| (host.variable)(name).map(std::path::PathBuf::from);
    let (config, runtime) = (variable("XDG_CONFIG_HOME"), variable("XDG_RUNTIME_DIR"));
    let scope = command_line.scope.or(default);
    let places = SearchPath::new(scope, config.as_deref(), runtime.as_deref());
    for candidate in file::search(&machine, Some(&root), &places) {
        if let Some(bytes) = file::read(&candidate)? {
            let trusted = file_is_trusted(candidate.trusted, mode);
            let parsed = file::parse(&bytes, &candidate.path, trusted);
            file::ensure_usable(&parsed.problems)?;
            return Ok((merge(command_line, parsed.settings, mode), parsed.problems));
        }
    }
    Ok((command_line, Vec::new()))
}
