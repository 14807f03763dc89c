//! How are mounts written? `--bind=`, `--tmpfs=`, `--overlay=`, `--inaccessible=`, `--pivot-root=`.
//!
//! Invariants: a destination is absolute; it may be `/`, which mounts over the root itself. A colon or
//! backslash in a path is written `\:` or `\\`.

use super::{Wrong, absolute, clean, escape_colons, join, split_colons};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the files of a mount come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A path of the host; relative ones are meant from the working directory.
    Host(PathBuf),
    /// `+PATH`: an absolute path inside the container's tree.
    Tree(PathBuf),
    /// The empty text: a new directory below /var/tmp that is removed at the end.
    Scratch,
}

impl MountSource {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix('+') {
            _ if text.is_empty() => Some(Self::Scratch),
            Some(inside) => absolute(inside).map(Self::Tree),
            None => clean(text).map(Self::Host),
        }
    }

    /// The destination that is meant when none is written: the same path inside.
    fn destination(&self) -> Option<PathBuf> {
        match self {
            Self::Host(path) | Self::Tree(path) => path.is_absolute().then(|| path.clone()),
            Self::Scratch => None,
        }
    }
}

impl fmt::Display for MountSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A leading `./` keeps a relative path that starts with `+` from being read as `+PATH`.
            Self::Host(path) if path.to_string_lossy().starts_with('+') => {
                write!(f, "./{}", escaped(path))
            }
            Self::Host(path) => f.write_str(&escaped(path)),
            Self::Tree(path) => write!(f, "+{}", escaped(path)),
            Self::Scratch => Ok(()),
        }
    }
}

fn escaped(path: &Path) -> String {
    escape_colons(&path.to_string_lossy())
}

/// Whether mounts below the source come along (`rbind`, `norbind`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recursion {
    /// The source with everything mounted below it.
    #[default]
    Recursive,
    /// The one file system of the source.
    Single,
}

/// How owners of a bound tree appear inside a user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdMapMode {
    /// `noidmap`: as the kernel shows them.
    #[default]
    None,
    /// `idmap`: user n of the host is user n of the container.
    IdMap,
    /// `rootidmap`: the source's owner is the container's root.
    RootIdMap,
    /// `owneridmap`: the source's owner is the owner of the mount point inside.
    OwnerIdMap,
}

impl fmt::Display for IdMapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "noidmap",
            Self::IdMap => "idmap",
            Self::RootIdMap => "rootidmap",
            Self::OwnerIdMap => "owneridmap",
        })
    }
}

/// The third part of a bind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// `rbind` (the default) or `norbind`.
    pub recursion: Recursion,
    /// `noidmap` (the default), `idmap`, `rootidmap` or `owneridmap`.
    pub id_map: IdMapMode,
}

impl FromStr for BindOptions {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str =
            "bind options out of rbind, norbind, noidmap, idmap, rootidmap and owneridmap";
        let mut options = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word {
                "rbind" => options.recursion = Recursion::Recursive,
                "norbind" => options.recursion = Recursion::Single,
                "noidmap" => options.id_map = IdMapMode::None,
                "idmap" => options.id_map = IdMapMode::IdMap,
                "rootidmap" => options.id_map = IdMapMode::RootIdMap,
                "owneridmap" => options.id_map = IdMapMode::OwnerIdMap,
                _ => return Err(Wrong::new(word, EXPECTED)),
            }
        }
        Ok(options)
    }
}

impl fmt::Display for BindOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.recursion {
            Recursion::Recursive => "rbind",
            Recursion::Single => "norbind",
        })?;
        match self.id_map {
            IdMapMode::None => Ok(()),
            other => write!(f, ",{other}"),
        }
    }
}

/// `[+]SOURCE[:DESTINATION[:OPTIONS]]` of `--bind=` and `--bind-ro=` (M-01).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// What is mounted.
    pub source: MountSource,
    /// Where, in the container.
    pub destination: PathBuf,
    /// Whether it was `--bind-ro=`; not part of the text.
    pub read_only: bool,
    /// The third part.
    pub options: BindOptions,
}

impl Bind {
    /// The same mount, read-only: what `--bind-ro=` makes of the text.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }
}

impl FromStr for Bind {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str = "SOURCE[:DESTINATION[:OPTIONS]] with an absolute destination";
        let wrong = || Wrong::new(text, EXPECTED);
        let parts = split_colons(text).filter(|_| !text.is_empty()).ok_or_else(wrong)?;
        let (source, written, options) = match parts.as_slice() {
            [source] => (source, None, ""),
            [source, to] => (source, Some(to), ""),
            [source, to, options] => (source, Some(to), options.as_str()),
            _ => return Err(wrong()),
        };
        let source = MountSource::parse(source).ok_or_else(wrong)?;
        let to = written.map_or_else(|| source.destination(), |to| absolute(to));
        let options = options.parse()?;
        Ok(Self { source, destination: to.ok_or_else(wrong)?, read_only: false, options })
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, escaped(&self.destination))?;
        if self.options != BindOptions::default() {
            write!(f, ":{}", self.options)?;
        }
        Ok(())
    }
}

/// `PATH[:OPTIONS]` of `--tmpfs=` (CLI-25).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Where, in the container.
    pub destination: PathBuf,
    /// Mount options for the kernel; `mode=0755` when none were written.
    pub options: String,
}

impl FromStr for Tmpfs {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str = "PATH[:OPTIONS] with an absolute path";
        let wrong = || Wrong::new(text, EXPECTED);
        // Only the path knows escapes; options such as mpol=prefer:1 keep their colons as they are.
        let end = unescaped_colon(text).unwrap_or(text.len());
        let path = split_colons(&text[..end]).ok_or_else(wrong)?.concat();
        let options = text.get(end + 1..).unwrap_or("mode=0755");
        if options.contains('\0') {
            return Err(wrong());
        }
        Ok(Self { destination: absolute(&path).ok_or_else(wrong)?, options: options.to_owned() })
    }
}

/// The place of the first colon that no backslash precedes.
fn unescaped_colon(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b':' if !escaped => return Some(index),
            b'\\' if !escaped => escaped = true,
            _ => escaped = false,
        }
    }
    None
}

impl fmt::Display for Tmpfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", escaped(&self.destination), self.options)
    }
}

/// `LOWEST[:…]:UPPER:DESTINATION` or `LOWER:UPPER-AND-DESTINATION` of `--overlay=` (M-04).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The layers from the lowest to the one below the top; at least one.
    pub lower: Vec<MountSource>,
    /// The top layer, which takes the writes unless the overlay is read-only.
    pub upper: MountSource,
    /// Where, in the container.
    pub destination: PathBuf,
    /// Whether it was `--overlay-ro=`; not part of the text.
    pub read_only: bool,
}

impl Overlay {
    /// The same mount, read-only: what `--overlay-ro=` makes of the text.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }
}

impl FromStr for Overlay {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str = "two or more paths LOWER[:LOWER…][:UPPER]:DESTINATION, the \
             destination absolute, only UPPER empty";
        let wrong = || Wrong::new(text, EXPECTED);
        let parts = split_colons(text).ok_or_else(wrong)?;
        let [layers @ .., last] = parts.as_slice() else { return Err(wrong()) };
        let to = absolute(last).ok_or_else(wrong)?;
        let (lower, upper) = match layers {
            [] => return Err(wrong()),
            [only] => (std::slice::from_ref(only), MountSource::Host(to.clone())),
            [lower @ .., upper] => (lower, MountSource::parse(upper).ok_or_else(wrong)?),
        };
        let lower: Option<Vec<_>> = lower.iter().map(|path| MountSource::parse(path)).collect();
        let lower = lower.filter(|all| !all.contains(&MountSource::Scratch)).ok_or_else(wrong)?;
        Ok(Self { lower, upper, destination: to, read_only: false })
    }
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, &self.lower, ":")?;
        write!(f, ":{}:{}", self.upper, escaped(&self.destination))
    }
}

/// A path that `--inaccessible=` covers; it must exist in the container (M-03).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inaccessible(pub PathBuf);

impl FromStr for Inaccessible {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let path = absolute(text).filter(|path| path != Path::new("/"));
        let expected = "an absolute path in the container that is not /";
        path.map(Self).ok_or_else(|| Wrong::new(text, expected))
    }
}

impl fmt::Display for Inaccessible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

/// One mount that the user asked for; their order is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustomMount {
    /// `--bind=`, `--bind-ro=`.
    Bind(Bind),
    /// `--tmpfs=`.
    Tmpfs(Tmpfs),
    /// `--overlay=`, `--overlay-ro=`.
    Overlay(Overlay),
    /// `--inaccessible=`.
    Inaccessible(Inaccessible),
}

/// `NEW[:OLD]` of `--pivot-root=` (PIV-01, PIV-02); both paths are the container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PivotRoot {
    /// What becomes the root.
    pub new: PathBuf,
    /// Where the former root is put; dropped when `None`.
    pub old: Option<PathBuf>,
}

impl FromStr for PivotRoot {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "NEW-ROOT[:PLACE-OF-THE-OLD], absolute paths");
        // No escapes here, and the second colon belongs to the path: the manual splits at the first.
        let (new, old) = match text.split_once(':') {
            Some((new, "")) => (new, None),
            Some((new, old)) => (new, Some(absolute(old).ok_or_else(wrong)?)),
            None => (text, None),
        };
        Ok(Self { new: absolute(new).ok_or_else(wrong)?, old })
    }
}

impl fmt::Display for PivotRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.new.display())?;
        match &self.old {
            Some(old) => write!(f, ":{}", old.display()),
            None => Ok(()),
        }
    }
}
