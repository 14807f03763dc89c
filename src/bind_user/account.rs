//! What does the host know of a user? Its files first, and then, by its `getent`, whatever else it asks
//! (nsswitch.conf(5)): this program is not linked with the host's modules, and may be static.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::integration::files::read_of_host;
use crate::userns::range::{HostGid, HostUid};

/// getent(1), EXIT STATUS: a key was not found, and a database that cannot be asked for one.
const NOT_FOUND: [i32; 2] = [2, 3];

/// A user of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// By which its files are known.
    pub uid: HostUid,
    /// Its primary group.
    pub gid: HostGid,
    /// As the entry has it.
    pub home: PathBuf,
    /// As the entry has it; none is the system's default.
    pub shell: Option<PathBuf>,
}

/// Looks up a user by a name, which must be one that passwd(5) can hold.
///
/// # Errors
/// When a database cannot be read, or has a malformed entry.
pub(crate) fn of_host(name: &str) -> Result<Option<Account>> {
    let Some(entry) = entry(Path::new("/etc/passwd"), "passwd", name)? else { return Ok(None) };
    let account = parse(&entry);
    account.map(Some).with_context(|| format!("the entry of {name} in the host's passwd"))
}

/// The hash of its password, if it has one that lets somebody in and we may see it.
///
/// # Errors
/// When a database cannot be read for another reason than that it is not ours to read.
pub(super) fn hashed_password(name: &str) -> Result<Option<String>> {
    let entry = entry(Path::new("/etc/shadow"), "shadow", name)?;
    Ok(entry.as_deref().and_then(hash).map(str::to_owned))
}

/// The line of a name. What is not there, or not ours to read, has none.
fn entry(file: &Path, database: &str, name: &str) -> Result<Option<String>> {
    let text = match read_of_host(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if is_nothing_for_us(&error) => String::new(),
        Err(error) => {
            return Err(error).with_context(|| format!("reading {} of the host", file.display()));
        }
    };
    match line_of(&text, name) {
        Some(line) => Ok(Some(line.to_owned())),
        None => ask(database, name),
    }
}

fn is_nothing_for_us(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
}

fn line_of<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find(|line| line.split_once(':').is_some_and(|(first, _)| first == name))
}

/// Asks the host's `getent`. A host without one has nothing but its files.
fn ask(database: &str, name: &str) -> Result<Option<String>> {
    let mut getent = Command::new("/usr/bin/getent");
    let answer = match getent.args([database, name]).stdin(Stdio::null()).output() {
        Err(error) if is_nothing_for_us(&error) => return Ok(None),
        other => other.context("asking the host's getent")?,
    };
    match answer.status.code() {
        Some(0) => {
            let text = String::from_utf8_lossy(&answer.stdout).into_owned();
            Ok(line_of(&text, name).map(str::to_owned))
        }
        Some(code) if NOT_FOUND.contains(&code) => Ok(None),
        _ => {
            bail!("asking the host's getent for {database} {name}: it ended with {}", answer.status)
        }
    }
}

/// passwd(5).
fn parse(line: &str) -> Result<Account> {
    let fields: Vec<_> = line.split(':').collect();
    let [_, _, uid, gid, _, home, shell] = fields[..] else {
        bail!("it has {} fields, not 7", fields.len())
    };
    let id = |text: &str, what: &str| {
        let id = text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        id.with_context(|| format!("its {what} is {text:?}"))
    };
    Ok(Account {
        uid: HostUid(id(uid, "user id")?),
        gid: HostGid(id(gid, "group id")?),
        home: home.into(),
        shell: Some(PathBuf::from(shell)).filter(|shell| shell.is_absolute()),
    })
}

/// shadow(5): the second field. What starts with `!` or `*`, or is a single letter, is no hash, and nobody logs in by it.
fn hash(line: &str) -> Option<&str> {
    let field = line.split(':').nth(1)?;
    (field.len() > 1 && !field.starts_with(['!', '*'])).then_some(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn an_entry_is_that_of_the_whole_name() {
        let text = "ab:x:1:1::/:\n\na:x:2:2::/:\na:x:3:3::/:\n";
        assert_eq!(line_of(text, "a"), Some("a:x:2:2::/:"));
        assert_eq!(line_of(text, "b"), None);
        assert_eq!(line_of(text, "a:x"), None);
    }

    /// M-02.
    #[test]
    fn an_entry_names_ids_home_and_shell() {
        let account = parse("u:x:1000:100:A B,,:/home/u:/bin/zsh").unwrap();
        let expected = Account {
            uid: HostUid(1000),
            gid: HostGid(100),
            home: "/home/u".into(),
            shell: Some("/bin/zsh".into()),
        };
        assert_eq!(account, expected);
        assert_eq!(parse("u:x:1000:100::/home/u:").unwrap().shell, None);
    }

    #[rstest]
    #[case("u:x:1000:100::/home/u", "6 fields")]
    #[case("u:x:1000:100::/home/u:/bin/sh:", "8 fields")]
    #[case("u:x:-1:100::/home/u:", "user id is \"-1\"")]
    #[case("u:x:7:4294967295::/home/u:", "group id is \"4294967295\"")]
    fn a_malformed_entry_is_told(#[case] line: &str, #[case] told: &str) {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }

    /// crypt(5), shadow(5).
    #[rstest]
    #[case("u:$y$j9T$a$b:1:0:99999:7:::", Some("$y$j9T$a$b"))]
    #[case("u:ab.cDeFgHiJkL:::::::", Some("ab.cDeFgHiJkL"))]
    #[case("u:!:1::::::", None)]
    #[case("u:!$y$j9T$a$b:1::::::", None)]
    #[case("u:*:1::::::", None)]
    #[case("u::1::::::", None)]
    #[case("u:x:1::::::", None)]
    #[case("u", None)]
    fn only_what_lets_somebody_in_is_a_hash(#[case] line: &str, #[case] expected: Option<&str>) {
        assert_eq!(hash(line), expected);
    }
}
