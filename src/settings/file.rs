//! What does a `.nspawn` file say, and where can it be? Text → [`Settings`], by the option table.
//!
//! Invariants: [`parse`] and [`search`] look at nothing on the machine; no bytes make the parser panic; a
//! bad line costs only itself and is told with its number (PIV-09); a key that would grant something is
//! ignored in a file next to the image (R13). [`read`] opens nothing but a regular file of at most
//! [`SIZE_MAX`] bytes and never blocks (R3).

use crate::errors::{Hinted, hinted};
use crate::options::{self, Section};
use crate::settings::value::{MachineName, Scope, Wrong};
use crate::settings::{Settings, Source};
use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes that are read of a settings file.
pub const SIZE_MAX: u64 = 1 << 20;

/// Something in a file that has no effect. Each is worth one warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: Arc<Path>,
    /// The line, from 1.
    pub line: u32,
    /// What is wrong there.
    pub what: Fault,
}

/// Why a line of a file has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Neither a section, an assignment, a comment nor blank; or not UTF-8.
    Syntax(&'static str),
    /// The beginning of a section without its end. What follows would be taken for another section's, or nobody's, so
    /// a container does not start with such a file, as with systemd-nspawn.
    BrokenSection,
    /// A section that does not exist; its assignments are skipped.
    UnknownSection(String),
    /// A key that does not exist in its section.
    UnknownKey(String),
    /// A key whose value is wrong.
    Value(String, Wrong),
    /// A key that only trusted files may use.
    Untrusted(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}: ", self.path.display(), self.line)?;
        match &self.what {
            Fault::Syntax(what) => f.write_str(what),
            Fault::BrokenSection => f.write_str("a section without its ]"),
            Fault::UnknownSection(name) => write!(f, "unknown section [{name}]"),
            Fault::UnknownKey(name) => write!(f, "unknown key {name}="),
            Fault::Value(name, wrong) => write!(f, "{name}=: {wrong}"),
            Fault::Untrusted(name) => write!(f, "{name}= needs a trusted file"),
        }
    }
}

/// What a file says, and what in it has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// What it says.
    pub settings: Settings,
    /// What it tried to say.
    pub problems: Vec<Problem>,
}

/// Reads the text of a settings file. `path` is for messages only.
pub fn parse(bytes: &[u8], path: &Path, trusted: bool) -> Parsed {
    let path: Arc<Path> = Arc::from(path);
    let mut parsed = Parsed::default();
    let mut place = Place::Nowhere;
    // As some editors begin a file.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    for (line, text) in logical_lines(bytes) {
        let step = match text {
            Ok(text) => follow(&text, &mut place, &mut parsed.settings, &path, line, trusted),
            Err(fault) => Err(fault),
        };
        if let Err(what) = step {
            parsed.problems.push(Problem { path: path.clone(), line, what });
        }
    }
    parsed
}

/// In which section a line stands.
enum Place {
    Nowhere,
    Known(Section),
    Unknown,
}

/// Follows one line.
fn follow(
    text: &str,
    place: &mut Place,
    settings: &mut Settings,
    path: &Arc<Path>,
    line: u32,
    trusted: bool,
) -> Result<(), Fault> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix('[') {
        let name = rest.strip_suffix(']').ok_or(Fault::BrokenSection)?;
        // As everywhere in systemd's files, sections that start with X- are other programs'.
        *place = Section::named(name).map_or(Place::Unknown, Place::Known);
        let known = matches!(place, Place::Known(_)) || name.starts_with("X-");
        return if known { Ok(()) } else { Err(Fault::UnknownSection(name.to_owned())) };
    }
    let (name, value) = text.split_once('=').ok_or(Fault::Syntax("no section and no KEY=VALUE"))?;
    let (name, value) = (name.trim_end(), value.trim_start());
    let section = match place {
        Place::Known(section) => *section,
        Place::Unknown => return Ok(()),
        Place::Nowhere => return Err(Fault::Syntax("an assignment before the first section")),
    };
    let mut all = options::assignments();
    let known = all.find(|one| one.key.section == section && one.key.name == name);
    let Some(known) = known else {
        let other = name.starts_with("X-");
        return if other { Ok(()) } else { Err(Fault::UnknownKey(name.to_owned())) };
    };
    if !trusted && !known.key.trust.admits(value) {
        return Err(Fault::Untrusted(name.to_owned()));
    }
    let source = Source::File { path: path.clone(), line, trusted };
    options::apply(known.set, known.reset, settings, Some(OsStr::new(value)), &source)
        .map_err(|wrong| Fault::Value(name.to_owned(), wrong))
}

/// The lines with their numbers, without comments and blank ones. A backslash at the end joins the next
/// line with a blank; comment lines in between are dropped (systemd.syntax(7)).
fn logical_lines(bytes: &[u8]) -> Vec<(u32, Result<String, Fault>)> {
    let mut lines = Vec::new();
    let mut open: Option<(u32, Vec<u8>)> = None;
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let content = line.trim_ascii_start();
        let comment = content.starts_with(b"#") || content.starts_with(b";");
        if comment || (content.is_empty() && open.is_none()) {
            continue;
        }
        let (start, mut text) = open.take().unwrap_or((number, Vec::new()));
        match line.strip_suffix(b"\\") {
            Some(first) => {
                text.extend_from_slice(first);
                text.push(b' ');
                open = Some((start, text));
            }
            None => {
                text.extend_from_slice(line);
                lines.push((start, decode(text)));
            }
        }
    }
    lines.extend(open.map(|(start, text)| (start, decode(text))));
    lines
}

fn decode(text: Vec<u8>) -> Result<String, Fault> {
    match String::from_utf8(text) {
        Ok(text) if text.contains('\0') => Err(Fault::Syntax("a NUL byte")),
        Ok(text) => Ok(text),
        Err(_) => Err(Fault::Syntax("bytes that are not UTF-8")),
    }
}

/// A place where a settings file may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The file.
    pub path: PathBuf,
    /// Whether only an administrator can have put it there.
    pub trusted: bool,
}

/// The directories of the administrator's files, in the order in which they are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPath(Vec<PathBuf>);

impl SearchPath {
    /// The machine's, or the user's below `config_home` ($XDG_CONFIG_HOME) and `runtime_dir`
    /// ($XDG_RUNTIME_DIR), each of which may be missing (G-02, G-03).
    pub fn new(scope: Scope, config_home: Option<&Path>, runtime_dir: Option<&Path>) -> Self {
        match scope {
            Scope::System => {
                Self(["/etc/systemd/nspawn", "/run/systemd/nspawn"].map(PathBuf::from).to_vec())
            }
            Scope::User => {
                let homes = [config_home, runtime_dir].into_iter().flatten();
                Self(homes.map(|home| home.join("systemd/nspawn")).collect())
            }
        }
    }
}

/// Where the settings of `machine` can be: the first that exists counts. `root` is the directory or
/// image as the user named it, made absolute; the file next to it is the only one that is not trusted.
/// The name is the one before an ephemeral run adds its suffix (G-04).
pub fn search(machine: &MachineName, root: Option<&Path>, dirs: &SearchPath) -> Vec<Candidate> {
    let name = format!("{machine}.nspawn");
    let own = dirs.0.iter().map(|dir| Candidate { path: dir.join(&name), trusted: true });
    let beside = root.and_then(Path::parent);
    let beside = beside.map(|dir| Candidate { path: dir.join(&name), trusted: false });
    own.chain(beside).collect()
}

/// Reads a candidate; `None` if there is no such file.
///
/// Only regular files are read, through a descriptor that neither follows a link in the last
/// component nor waits for a fifo's writer nor becomes the controlling terminal. An
/// administrator's file may be a link, because /etc is often a farm of them.
pub fn read(candidate: &Candidate) -> Result<Option<Vec<u8>>> {
    let path = &candidate.path;
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if !candidate.trusted {
        flags |= OFlags::NOFOLLOW;
    }
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => {
            bail!(without(path, "a symbolic link, which is not followed next to the tree"))
        }
        Err(errno) => return Err(errno).with_context(|| without(path, "opening")),
    };
    let stat = rustix::fs::fstat(&fd).with_context(|| format!("looking at {}", path.display()))?;
    // The administrator's way to say that there is none: a link to /dev/null.
    let is_masked = stat.st_rdev == rustix::fs::makedev(1, 3)
        && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_masked && candidate.trusted {
        return Ok(Some(Vec::new()));
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        bail!(without(path, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let mut bounded = File::from(fd).take(SIZE_MAX + 1);
    bounded.read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() as u64 > SIZE_MAX {
        bail!(without(path, &format!("larger than {SIZE_MAX} bytes")));
    }
    Ok(Some(bytes))
}

const NO_FILE: &str = "--settings=no runs without it";

/// That nothing in a file is such that no container is to start with it.
pub(super) fn ensure_usable(problems: &[Problem]) -> Result<()> {
    let broken = problems.iter().find(|problem| problem.what == Fault::BrokenSection);
    broken.map_or(Ok(()), |broken| bail!(hinted(format!("the settings file {broken}"), NO_FILE)))
}

/// A settings file that cannot be read: not to be passed over, because it may have been there to take rights away.
fn without(path: &Path, what: &str) -> Hinted {
    hinted(format!("the settings file {}: {what}", path.display()), NO_FILE)
}
