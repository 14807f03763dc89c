//! What a person brings along into a guest, which sees nothing of the host: each file or directory is an archive on a
//! read-only disk of its own, unpacked before anything else happens.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};

use crate::guest::agent::SCRATCH;
use crate::report::event::Order;
use crate::tool;
use crate::vm::config::{Disk, Writes};

/// As many disks as the machine has room for beside its own.
const MOST: usize = 16;

/// A file or directory of the host, and what it is called in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bring {
    from: PathBuf,
    to: String,
}

impl FromStr for Bring {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named =
            text.rsplit_once(':').filter(|(from, to)| !from.is_empty() && to.starts_with('/'));
        let (from, to) = match named {
            Some((from, to)) => (Path::new(from), to.trim_end_matches('/').to_owned()),
            None => {
                let from = Path::new(text);
                let whole =
                    fs::canonicalize(from).with_context(|| format!("looking for {text}"))?;
                let name = from.file_name().or(whole.file_name());
                let name = name.and_then(|name| name.to_str());
                let name = name.with_context(|| {
                    format!(
                        "{text} has no name for the guest\nhint: {text}:/scratch/NAME gives one"
                    )
                })?;
                (from, format!("{SCRATCH}/{name}"))
            }
        };
        ensure!(
            !to.is_empty(),
            "{text} would be the guest's whole root\nhint: name a place below it"
        );
        Ok(Self { from: from.to_owned(), to })
    }
}

/// It as an archive.
#[derive(Debug)]
pub(super) struct Packed {
    /// The archive, a file without a name, which QEMU has by descriptor.
    pub(super) file: File,
    /// See [`Bring`].
    pub(super) to: String,
    serial: String,
    directory: bool,
}

impl Packed {
    /// The disk that it is on.
    pub(super) fn disk(&self) -> Disk {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd()).into();
        Disk { serial: self.serial.clone(), path, writes: Writes::Refused }
    }

    /// What puts it where it belongs.
    pub(super) fn order(self) -> Order {
        Order::Unpack { disk: self.serial, to: self.to, directory: self.directory }
    }
}

/// Packs all of it into files in `dir`, owners, lists, attributes and holes included.
///
/// # Errors
/// When something is not there or cannot be read.
pub(super) fn pack(all: &[Bring], dir: &Path) -> Result<Vec<Packed>> {
    ensure!(all.len() <= MOST, "{} times --copy are too many\nhint: at most {MOST}", all.len());
    all.iter().enumerate().map(|(index, bring)| bring.pack(format!("copy{index}"), dir)).collect()
}

impl Bring {
    fn pack(&self, serial: String, dir: &Path) -> Result<Packed> {
        let Self { from, to } = self;
        let what = || format!("packing {}", from.display());
        // What a link leads to is meant; links below it stay what they are.
        let from = fs::canonicalize(from).with_context(what)?;
        let directory = from.is_dir();
        let (base, name) = match from.file_name() {
            Some(name) if !directory => {
                (from.parent().with_context(what)?, Path::new(".").join(name))
            }
            _ => (from.as_path(), PathBuf::from(".")),
        };
        let file = tempfile::tempfile_in(dir).context("making a disk")?;
        let mut tar = tool::command("tar");
        tar.args(["--create", "--sparse", "--numeric-owner", "--acls", "--xattrs"]);
        tar.args(["--xattrs-include=*", "--file=-", "--directory"]).arg(base).arg(name);
        tar.stdout(file.try_clone().context("making a disk")?).stderr(Stdio::piped());
        let child = tar.spawn().context("running tar")?;
        let ended = child.wait_with_output().context("running tar")?;
        if !ended.status.success() {
            bail!("{}: {}", what(), String::from_utf8_lossy(&ended.stderr).trim());
        }
        Ok(Packed { file, to: to.clone(), serial, directory })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/etc/passwd", "/etc/passwd", "/scratch/passwd")]
    #[case("/etc/passwd:/etc/shadow", "/etc/passwd", "/etc/shadow")]
    #[case("/usr/share/:/mnt/", "/usr/share/", "/mnt")]
    #[case("/usr/share/", "/usr/share/", "/scratch/share")]
    #[case("a:b:/c", "a:b", "/c")]
    fn a_place_is_named_or_below_scratch(#[case] text: &str, #[case] from: &str, #[case] to: &str) {
        let bring = Bring::from_str(text).unwrap();
        assert_eq!(bring, Bring { from: from.into(), to: to.to_owned() });
    }

    #[rstest]
    #[case::nothing_there("/no/such/file", "/no/such/file")]
    #[case::the_whole_root("/etc:/", "hint")]
    #[case::no_name("/", "hint")]
    fn what_cannot_be_brought_is_told(#[case] text: &str, #[case] part: &str) {
        let error = format!("{:#}", Bring::from_str(text).unwrap_err());
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn a_directory_is_packed_without_its_name_and_a_file_with_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("-d")).unwrap();
        fs::write(dir.path().join("-d/file"), "content").unwrap();
        let names = |path: &str, to: &str| {
            let bring = Bring { from: dir.path().join(path), to: to.to_owned() };
            let packed = bring.pack("copy0".to_owned(), dir.path()).unwrap();
            let mut list = tool::command("tar");
            list.arg("--list").arg("--file").arg(format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                packed.file.as_raw_fd()
            ));
            (tool::text(&mut list).unwrap(), packed.directory)
        };
        assert_eq!(names("-d", "/x"), ("./\n./file\n".to_owned(), true));
        assert_eq!(names("-d/file", "/x"), ("./file\n".to_owned(), false));
    }
}
