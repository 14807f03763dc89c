//! Scratch disks that hold a file system already: made once per userland by a guest's own programs, and copied for each
//! guest, which costs a few milliseconds where making one costs an emulated processor a second.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::artifact::{Key, Store};
use crate::guest::Subject;
use crate::guest::agent::MKFS;
use crate::kept::MEMORY_FS;
use crate::machine;
use crate::report::event::{Event, Order, Scratch};
use crate::vm::config::VmConfig;
use crate::vm::launch::{self, Place, Started};
use crate::vm::process::Serial;
use crate::vm::watch::Input;

/// Zeros of this length are not copied.
const BLOCK: usize = 64 << 10;

/// The image with this file system for disks as big as `scratch`; made by a guest of `config`, whose disk `scratch` is,
/// within `limit` if there is none, for which `begin` is called first and what it returns is held. None for a file system
/// that is made otherwise.
///
/// # Errors
/// When the guest does not come up, or the disk cannot be copied.
pub fn image<T>(
    store: &Store,
    config: &VmConfig,
    scratch: &File,
    fs: &str,
    limit: Duration,
    begin: impl FnOnce() -> T,
) -> Result<Option<PathBuf>> {
    if !MKFS.iter().any(|(name, ..)| *name == fs) {
        return Ok(None);
    }
    let length = scratch.metadata().context("measuring the scratch disk")?.len();
    let root = config.disks.iter().find(|disk| disk.serial == "root");
    // The root's path tells its content, and so the programs.
    let root = root.context("looking for the guest's root")?.path.to_string_lossy().into_owned();
    let key = Key::of("scratch").with(root).with(length.to_le_bytes()).with(format!("{MKFS:?}"));
    let entry = store.entry("scratch", key, |at| {
        let _held = begin();
        make(config, scratch, at, limit).context("making scratch disks")
    })?;
    Ok(Some(file_of(&entry, fs)).filter(|image| image.exists()))
}

fn file_of(entry: &Path, fs: &str) -> PathBuf {
    entry.join(format!("{fs}.img"))
}

fn make(config: &VmConfig, scratch: &File, at: &Path, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    let begin = machine::begin(MEMORY_FS, Scratch::Empty, Subject::Rspawn, 1.0)?;
    let shared = [scratch.as_fd()];
    let place = Place { dir: at, serial: Serial::Log, shared: &shared };
    let Started { qemu, mut channel, inputs, .. } = launch::boot(config, place, begin)?;
    let await_event = |wanted: &dyn Fn(&Event) -> bool| loop {
        let left = until.saturating_duration_since(Instant::now());
        match inputs.recv_timeout(left) {
            Ok(Input::Said(message)) if wanted(&message.body) => return Ok(message.body),
            Ok(Input::Said(_)) => {}
            other => bail!("the guest does not answer: {other:?}"),
        }
    };
    await_event(&|event| matches!(event, Event::Hello { .. }))?;
    for (fs, ..) in MKFS {
        channel.order(Order::Format { fs: (*fs).to_owned() })?;
        // A guest of another project may have no program for it, and no use.
        let Event::Ended { code: 0 } = await_event(&|event| matches!(event, Event::Ended { .. }))?
        else {
            empty(scratch)?;
            continue;
        };
        let path = file_of(at, fs);
        let image =
            File::create_new(&path).with_context(|| format!("making {}", path.display()))?;
        fill(&image, scratch)?;
    }
    drop(qemu);
    // Who asked begins with an empty disk.
    empty(scratch)
}

fn empty(scratch: &File) -> Result<()> {
    let length = scratch.metadata().context("measuring the scratch disk")?.len();
    scratch.set_len(0).and_then(|()| scratch.set_len(length)).context("emptying the scratch disk")
}

/// Makes `to`, which is empty, hold what `from` does; what is zero stays a hole.
///
/// # Errors
/// When either cannot be read or written.
pub fn fill(to: &File, from: &File) -> Result<()> {
    let what = "copying a scratch disk";
    let length = from.metadata().context(what)?.len();
    to.set_len(length).context(what)?;
    let (mut from, mut to) = (from, to);
    let zeros = vec![0; BLOCK];
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    // ENXIO: nothing but a hole is left (lseek(2)).
    while let Ok(data) = rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data)).context(what)?;
        at = data;
        from.seek(SeekFrom::Start(at)).context(what)?;
        while at < end {
            let size = usize::try_from(end - at).map_or(BLOCK, |left| left.min(BLOCK));
            from.read_exact(&mut buffer[..size]).context(what)?;
            if buffer[..size] != zeros[..size] {
                to.seek(SeekFrom::Start(at)).context(what)?;
                to.write_all(&buffer[..size]).context(what)?;
            }
            at += size as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_content_and_keeps_the_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"first", 0).unwrap();
        from.write_all_at(&vec![0; 1 << 20], 4 << 20).unwrap();
        from.write_all_at(b"middle", (32 << 20) + 5).unwrap();
        from.write_all_at(b"last", (64 << 20) - 4).unwrap();
        fill(&to, &from).unwrap();
        let at = |offset: u64, length: usize| {
            let mut found = vec![1; length];
            to.read_exact_at(&mut found, offset).unwrap();
            found
        };
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert_eq!((at(0, 5), at((64 << 20) - 4, 4)), (b"first".to_vec(), b"last".to_vec()));
        assert_eq!((at((32 << 20) + 5, 6), at(4 << 20, 3)), (b"middle".to_vec(), vec![0; 3]));
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "zeros were written");
    }
}
