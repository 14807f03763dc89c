//! How is a program executed, and why was it not?
//!
//! execvpe(3) but for three things: what is a program of another machine is never handed to a shell as if it were a
//! script; what leads to our own binary, which is the host's, is not executed; and after a failure the file is looked at,
//! since "no such file" can mean its interpreter or loader.
//!
//! Runs inside the container, after its root has become ours; what it opens is opened without waiting and read to
//! a bound (R3).

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// What runs a script without a first line that names an interpreter (execvp(3)).
const SHELL: &CStr = c"/bin/sh";

/// How much of a file is looked at: its header, the program headers, a `#!` line.
const HEAD_BYTES: u64 = 4096;

/// How far scripts that are run by scripts are followed: the kernel follows fewer (Linux, fs/exec.c, exec_binprm).
const MOST_INTERPRETERS: usize = 8;

/// Why nothing was executed.
#[derive(Debug)]
pub(super) struct NotRun {
    /// What the kernel said.
    pub(super) error: io::Error,
    /// What the file shows about the reason; empty if nothing.
    pub(super) hint: String,
}

/// Becomes `program`, with `words` as its arguments, its name first, and `environment` as `NAME=VALUE`.
/// Without a slash it is searched in the directories of `path` (NS-11). Comes back only if that is impossible.
pub(super) fn execute(
    program: &OsStr,
    words: &[OsString],
    environment: &[OsString],
    path: &str,
) -> NotRun {
    let searched = !program.as_bytes().contains(&b'/');
    let places: Vec<PathBuf> = match searched {
        true => path.split(':').map(|dir| Path::new(dir).join(program)).collect(),
        false => vec![program.into()],
    };
    let mut denied = false;
    for place in &places {
        match try_one(place, words, environment) {
            Errno::ENOENT | Errno::ENOTDIR if searched => {}
            // Another directory may have one that may be executed.
            Errno::EACCES if searched => denied = true,
            errno => return NotRun { error: errno.into(), hint: explain(place, errno) },
        }
    }
    let errno = if denied { Errno::EACCES } else { Errno::ENOENT };
    let there = places.iter().find(|place| place.symlink_metadata().is_ok());
    let hint = match there {
        Some(place) => explain(place, errno),
        None => {
            let name = program.to_string_lossy();
            format!("no directory of the container's PATH has a \"{name}\"")
        }
    };
    NotRun { error: errno.into(), hint }
}

fn try_one(place: &Path, words: &[OsString], environment: &[OsString]) -> Errno {
    let strings = |texts: &[OsString]| -> Result<Vec<CString>, Errno> {
        texts.iter().map(|text| string(text.as_bytes())).collect()
    };
    let run = || -> Result<Errno, Errno> {
        let place = string(place.as_os_str().as_bytes())?;
        let (mut words, environment) = (strings(words)?, strings(environment)?);
        if runs_us(Path::new(OsStr::from_bytes(place.to_bytes()))) {
            return Ok(Errno::EPERM);
        }
        let Err(errno) = nix::unistd::execve(&place, &words, &environment);
        if errno != Errno::ENOEXEC || is_program(&place) {
            return Ok(errno);
        }
        let name = words.first_mut().ok_or(Errno::EINVAL)?;
        *name = place;
        words.insert(0, SHELL.to_owned());
        // The file's own error counts: that there is no shell is no reason of it.
        let Err(_) = nix::unistd::execve(SHELL, &words, &environment);
        Ok(errno)
    };
    run().unwrap_or_else(|errno| errno)
}

fn string(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

/// Whether a file, or what the kernel runs it with, is the binary that this process executes, found over a link of
/// procfs. The payload would hold the host's file, to be written to as soon as it is not executed any more
/// (CVE-2019-5736).
fn runs_us(place: &Path) -> bool {
    let mut place = place.to_owned();
    for _ in 0..MOST_INTERPRETERS {
        if leads_to_us(&place) {
            return true;
        }
        match head(&place).as_deref().and_then(needed) {
            Some(Needed::Interpreter(path)) => place = path,
            Some(Needed::Loader(path)) => return leads_to_us(&path),
            None => return false,
        }
    }
    false
}

/// A tree may well have our file under a name of its own: a container in a container.
fn leads_to_us(place: &Path) -> bool {
    let open = |resolve| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(CWD, place, flags, Mode::empty(), resolve)
    };
    let is_magic = open(ResolveFlags::NO_MAGICLINKS).err() == Some(rustix::io::Errno::LOOP);
    if !is_magic {
        return false;
    }
    let ours = rustix::fs::stat("/proc/self/exe");
    let theirs = open(ResolveFlags::empty()).and_then(rustix::fs::fstat);
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    matches!((ours, theirs), (Ok(ours), Ok(theirs)) if identity(ours) == identity(theirs))
}

fn is_program(place: &CStr) -> bool {
    head(Path::new(OsStr::from_bytes(place.to_bytes()))).is_some_and(|head| head.starts_with(ELF))
}

/// The first bytes of a regular file.
fn head(place: &Path) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(place, flags, Mode::empty()).ok()?);
    let mut head = Vec::new();
    let regular = file.metadata().ok()?.is_file();
    file.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    regular.then_some(head)
}

const ELF: &[u8] = b"\x7fELF";

/// What about a file keeps it from being executed.
fn explain(place: &Path, errno: Errno) -> String {
    let shown = place.display();
    let missing = |path: &Path| path.metadata().is_err();
    match (errno, place.metadata()) {
        (Errno::EPERM, _) if runs_us(place) => {
            format!("{shown} leads to the launcher's own program on the host")
        }
        (Errno::ENOENT, Err(_)) if place.is_symlink() => {
            format!("{shown} is a link to something that is not in the tree")
        }
        (Errno::ENOENT, Err(_)) => format!("there is no {shown} in the tree"),
        (Errno::ENOENT, Ok(_)) => match head(place).as_deref().and_then(needed) {
            Some(Needed::Interpreter(path)) if missing(&path) => {
                format!("{shown} is a script for {}, which is not in the tree", path.display())
            }
            Some(Needed::Loader(path)) if missing(&path) => {
                format!("{shown} needs the loader {}, which is not in the tree", path.display())
            }
            _ => format!("the interpreter or loader that {shown} names is not in the tree"),
        },
        (Errno::EACCES, Ok(meta)) if meta.is_dir() => format!("{shown} is a directory"),
        (Errno::EACCES, Ok(meta)) if !meta.is_file() => format!("{shown} is no regular file"),
        (Errno::EACCES, Ok(meta)) if meta.permissions().mode() & 0o111 == 0 => {
            format!("{shown} is not executable; chmod +x makes it so")
        }
        (Errno::EACCES, Ok(_)) => {
            format!("{shown} or what runs it may not be executed, perhaps because of its mount")
        }
        (Errno::ENOEXEC, Ok(_)) => {
            let ours = rustix::system::uname().machine().to_string_lossy().into_owned();
            match head(place).as_deref().and_then(machine) {
                Some(machine) => format!("{shown} is a program for {machine}, this is {ours}"),
                None => format!("{shown} is no program for {ours}"),
            }
        }
        _ => String::new(),
    }
}

/// What the kernel runs a file with.
#[derive(Debug, PartialEq)]
enum Needed {
    /// Named by `#!`.
    Interpreter(PathBuf),
    /// Named by the ELF program header of type PT_INTERP.
    Loader(PathBuf),
}

fn needed(head: &[u8]) -> Option<Needed> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii();
        let path = line.split(u8::is_ascii_whitespace).next().filter(|path| !path.is_empty())?;
        return Some(Needed::Interpreter(OsString::from_vec(path.to_vec()).into()));
    }
    // elf(5): offsets of e_phoff, e_phentsize, e_phnum, and of p_offset, p_filesz of a 64-bit and a 32-bit file.
    let [table, entry, count, offset, size, width] = match head.get(..5)? {
        [0x7f, b'E', b'L', b'F', 2] => [32, 54, 56, 8, 32, 8],
        [0x7f, b'E', b'L', b'F', 1] => [28, 42, 44, 4, 16, 4],
        _ => return None,
    };
    let number = |at: usize, width: usize| little_endian(head, at, width);
    let (table, entry, count) = (number(table, width)?, number(entry, 2)?, number(count, 2)?);
    for index in 0..count {
        let header = index.checked_mul(entry)?.checked_add(table)?;
        if number(header, 4)? == PT_INTERP {
            let from = number(header.checked_add(offset)?, width)?;
            let to = from.checked_add(number(header.checked_add(size)?, width)?)?;
            let path = head.get(from..to)?.split(|byte| *byte == 0).next()?;
            return Some(Needed::Loader(OsString::from_vec(path.to_vec()).into()));
        }
    }
    None
}

/// elf(5).
const PT_INTERP: usize = 3;

fn little_endian(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(width)?)?;
    let number = field.iter().rev().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    usize::try_from(number).ok()
}

/// The name of the machine that a program is for, if it is a common one (linux/elf-em.h).
fn machine(head: &[u8]) -> Option<String> {
    if !head.starts_with(ELF) {
        return None;
    }
    Some(match little_endian(head, 18, 2)? {
        3 => "i386".to_owned(),
        8 => "mips".to_owned(),
        21 => "ppc64".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv".to_owned(),
        258 => "loongarch".to_owned(),
        other => format!("ELF machine {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(b"#!/bin/sh -e\nx", Some("/bin/sh"))]
    #[case(b"#! /usr/bin/env python", Some("/usr/bin/env"))]
    #[case(b"#!\n", None)]
    #[case(b"#!", None)]
    #[case(b"", None)]
    fn a_script_names_its_interpreter(#[case] head: &[u8], #[case] expected: Option<&str>) {
        let expected = expected.map(|path| Needed::Interpreter(path.into()));
        assert_eq!(needed(head), expected);
    }

    #[test]
    fn a_program_names_its_loader_and_its_machine() {
        let head = head(Path::new("/bin/sh")).unwrap();
        let Some(Needed::Loader(loader)) = needed(&head) else { panic!("no loader") };
        assert!(loader.is_absolute() && loader.exists(), "{loader:?}");
        let ours = rustix::system::uname().machine().to_string_lossy().into_owned();
        assert_eq!(machine(&head), Some(ours));
        // Whatever is cut off or changed, the answer is no worse than none.
        for length in 0..head.len() {
            needed(&head[..length]);
        }
        for at in 0..200 {
            let mut odd = head.clone();
            odd[at] = 0xff;
            needed(&odd);
            machine(&odd);
        }
    }

    fn made(dir: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// NS-13: nothing of this replaces the test's own process.
    #[test]
    fn what_cannot_be_executed_is_explained_by_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut foreign = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0".to_vec();
        foreign.resize(200, 0);
        made(dir, "script", b"#!/no/interpreter\n", 0o755);
        made(dir, "plain", b"text", 0o644);
        made(dir, "foreign", &foreign, 0o755);
        std::fs::create_dir(dir.join("dir")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("/proc/self/exe", dir.join("us")).unwrap();
        let path = dir.to_str().unwrap();
        made(dir, "of-us", format!("#!{path}/us\n").as_bytes(), 0o755);
        for (name, errno, words) in [
            ("script", libc::ENOENT, "is a script for /no/interpreter, which is not in the tree"),
            ("plain", libc::EACCES, "plain is not executable"),
            ("foreign", libc::ENOEXEC, "foreign is a program for aarch64, this is "),
            ("dir", libc::EACCES, "dir is a directory"),
            ("link", libc::ENOENT, "link is a link to something that is not in the tree"),
            ("nothing", libc::ENOENT, "nothing"),
            ("us", libc::EPERM, "us leads to the launcher's own program"),
            ("of-us", libc::EPERM, "of-us leads to the launcher's own program"),
        ] {
            for program in [name.to_owned(), format!("{path}/{name}")] {
                let not_run = execute(program.as_ref(), &[name.into()], &[], path);
                assert_eq!(not_run.error.raw_os_error(), Some(errno), "{program}");
                assert!(not_run.hint.contains(words), "{program}: {}", not_run.hint);
            }
        }
        let not_run = execute("nothing".as_ref(), &["nothing".into()], &[], path);
        assert_eq!(not_run.hint, "no directory of the container's PATH has a \"nothing\"");
    }
}
