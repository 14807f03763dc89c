//! Running other programs: every failure names the program, how it ended and the end of what it said.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed program's stderr that its error repeats.
const TAIL_LINES: usize = 12;

/// Directories beside PATH where Debian puts administrators' programs, which an ordinary user's PATH lacks.
const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The first executable file called `name` on PATH or in the administrators' directories.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ADMIN_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
}

/// A command for the program `name`, found as [`find`] does, in the C locale.
#[must_use]
pub fn command(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| PathBuf::from(name)));
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// Runs to the end and returns stdout.
///
/// # Errors
/// When the program cannot start or does not end with 0; the error carries the tail of its stderr.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let shown = display(command);
    let out = command.output().with_context(|| format!("running {shown}"))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
    bail!("running {shown}: {}\n  {tail}", out.status)
}

/// [`output`] as text.
///
/// # Errors
/// As [`output`]; and when what the program printed is not UTF-8.
pub fn text(command: &mut Command) -> Result<String> {
    let shown = display(command);
    String::from_utf8(output(command)?).with_context(|| format!("reading what {shown} printed"))
}

/// Runs with this process's own stdout and stderr.
///
/// # Errors
/// When the program cannot start or does not end with 0.
pub fn visible(command: &mut Command) -> Result<()> {
    let shown = display(command);
    let status = command.status().with_context(|| format!("running {shown}"))?;
    if status.success() { Ok(()) } else { bail!("running {shown}: {status}") }
}

/// The command as a person would type it, without its directory.
#[must_use]
pub fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(name).chain(command.get_args()).map(quoted).collect::<Vec<_>>().join(" ")
}

/// One word, quoted for a shell where it needs it.
#[must_use]
pub fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_program_and_repeats_its_last_words() {
        let err =
            output(command("sh").args(["-c", "echo alas >&2; exit 3"])).unwrap_err().to_string();
        assert!(err.contains("sh -c 'echo alas >&2; exit 3'"), "{err}");
        assert!(err.contains("exit status: 3") && err.contains("alas"), "{err}");
    }

    #[test]
    fn words_are_quoted_only_where_a_shell_would_split_them() {
        assert_eq!(quoted(OsStr::new("-drive=a.b")), "-drive=a.b");
        assert_eq!(quoted(OsStr::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(OsStr::new("")), "''");
    }
}
