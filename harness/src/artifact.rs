//! The content-addressed store: where built things lie, and how one comes to be there exactly once.
//!
//! Invariants: an entry's name holds the hash of everything it was made from; an entry that exists is whole (it is
//! built beside and renamed); whoever builds an entry holds its lock, so two runs do not build it twice; a build
//! that was killed leaves only a `.tmp` directory, which the next build of that entry removes, and [`Store::sweep`].

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::workspace::Workspace;

/// Bump when the meaning of a builder's output changes without its inputs changing.
pub const BUILDER_VERSION: &str = "1";

/// File in each entry whose time of change says when the entry was last used.
const USED: &str = ".used";

/// The hash of everything that an entry is made from, fed piece by piece.
#[derive(Debug, Clone)]
pub struct Key(Sha256);

impl Key {
    /// A key for things of this kind; [`BUILDER_VERSION`] is part of it.
    #[must_use]
    pub fn of(kind: &str) -> Self {
        Self(Sha256::new()).with(kind).with(BUILDER_VERSION)
    }

    /// Adds an input. Pieces are delimited by their length, so that `ab`+`c` differs from `a`+`bc`.
    #[must_use]
    pub fn with(mut self, piece: impl AsRef<[u8]>) -> Self {
        let piece = piece.as_ref();
        self.0.update((piece.len() as u64).to_le_bytes());
        self.0.update(piece);
        self
    }

    /// The first 16 hexadecimal digits: enough to tell entries apart.
    #[must_use]
    pub fn hex(self) -> String {
        hex(&self.0.finalize())[..16].to_owned()
    }
}

/// SHA-256 of a file's content, in hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer)
            .with_context(|| format!("reading {}", path.display()))?
        {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// One thing in the store.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Name and hash, e.g. `kernel-debian-6.1-0123456789abcdef`.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// When it was last asked for.
    pub used: SystemTime,
    /// Allocated size in bytes.
    pub size_bytes: u64,
}

impl Store {
    /// That of a checkout.
    #[must_use]
    pub fn of(workspace: &Workspace) -> Self {
        Self::at(workspace.vm_dir().join("store"))
    }

    /// The store in this directory, which is made when first needed.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The entry, if it has been built.
    #[must_use]
    pub fn lookup(&self, name: &str, key: Key) -> Option<PathBuf> {
        let path = self.dir.join(format!("{name}-{}", key.hex()));
        path.is_dir().then_some(path)
    }

    /// The entry; built by `build` into an empty directory if it is not there.
    ///
    /// # Errors
    /// When the store cannot be written, and what `build` returns.
    pub fn entry(
        &self,
        name: &str,
        key: Key,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let id = format!("{name}-{}", key.hex());
        let path = self.dir.join(&id);
        fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        let _lock = self.lock(&id)?;
        if !path.is_dir() {
            let temporary = self.temporary(&id);
            remove_tree(&temporary)?;
            fs::create_dir(&temporary)
                .with_context(|| format!("making {}", temporary.display()))?;
            if let Err(error) = build(&temporary) {
                remove_tree(&temporary)?;
                return Err(error);
            }
            // An entry that has its name is whole, also after a power cut.
            let dir = fs::File::open(&temporary);
            dir.and_then(|dir| Ok(rustix::fs::syncfs(&dir)?))
                .with_context(|| format!("syncing {}", temporary.display()))?;
            fs::rename(&temporary, &path)
                .with_context(|| format!("putting {id} into the store"))?;
        }
        fs::write(path.join(USED), "").with_context(|| format!("marking {id} as used"))?;
        Ok(path)
    }

    /// Everything in the store, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => {
                return Err(error).with_context(|| format!("listing {}", self.dir.display()));
            }
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("listing {}", self.dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let used = fs::metadata(path.join(USED))
                .and_then(|meta| meta.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH);
            let size_bytes = allocated_bytes(&path)?;
            found.push(Stored { name, path, used, size_bytes });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes the entries whose names begin so, but for the `count` that were used last.
    ///
    /// # Errors
    /// When the store cannot be read, or an entry cannot be removed.
    pub fn keep_newest(&self, beginning: &str, count: usize) -> Result<()> {
        let mut found = self.list()?;
        found.retain(|stored| stored.name.starts_with(beginning));
        found.sort_by_key(|stored| std::cmp::Reverse(stored.used));
        found.iter().skip(count).try_for_each(|stored| self.remove(&stored.name))
    }

    /// Removes an entry if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, name: &str, key: Key) -> Result<()> {
        self.remove(&format!("{name}-{}", key.hex()))
    }

    fn remove(&self, id: &str) -> Result<()> {
        // Out of sight in one step, so that nobody finds half of it.
        let aside = self.temporary(id);
        let _lock = self.lock(id)?;
        remove_tree(&aside)?;
        match fs::rename(self.dir.join(id), &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {id} from the store"))
            }
            _ => remove_tree(&aside),
        }
    }

    /// Removes what killed builds left. What is being built is left alone.
    ///
    /// # Errors
    /// When the store cannot be read, or something cannot be removed.
    pub fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).into_iter().flatten() {
            let entry = entry.with_context(|| format!("listing {}", self.dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
            let Some((id, _)) = name.and_then(|name| name.rsplit_once('.')) else { continue };
            let path = self.lock_path(id);
            let lock =
                fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
            if flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok() {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Where this process alone makes an entry: programs that a killed one has started may still write to theirs.
    fn temporary(&self, id: &str) -> PathBuf {
        self.dir.join(format!(".{id}.{}.tmp", std::process::id()))
    }

    fn lock_path(&self, id: &str) -> PathBuf {
        self.dir.join(format!(".{id}.lock"))
    }

    /// Waits for the entry's lock.
    fn lock(&self, id: &str) -> Result<fs::File> {
        let path = self.lock_path(id);
        let lock = fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
        flock(lock.as_fd(), FlockOperation::LockExclusive)
            .with_context(|| format!("locking {id}"))?;
        Ok(lock)
    }

    /// Removes what was not used for `age`, and what killed builds left. Returns the names.
    ///
    /// # Errors
    /// When the store cannot be read, or an entry cannot be removed.
    pub fn collect_garbage(&self, age: Duration) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let limit = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        for stored in self.list()?.into_iter().filter(|stored| stored.used < limit) {
            self.remove(&stored.name)?;
            removed.push(stored.name);
        }
        Ok(removed)
    }
}

/// Removes a tree if it is there; directories without write permission are opened up first, as a Debian tree has some.
///
/// # Errors
/// When something in it cannot be removed.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Blocks that a tree occupies, in bytes; links are not followed.
///
/// # Errors
/// When a directory cannot be read.
pub fn allocated_bytes(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let meta =
        fs::symlink_metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    let mut sum = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("listing {}", path.display()))? {
            sum += allocated_bytes(
                &entry.with_context(|| format!("listing {}", path.display()))?.path(),
            )?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_built_once_and_a_failed_build_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("store"));
        let key = || Key::of("test").with("a");
        assert!(store.entry("x", key(), |_| anyhow::bail!("no")).is_err());
        assert!(store.lookup("x", key()).is_none());
        let path = store.entry("x", key(), |at| Ok(fs::write(at.join("f"), "1")?)).unwrap();
        let again = store.entry("x", key(), |_| anyhow::bail!("built twice")).unwrap();
        assert_eq!(path, again);
        assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "1");
        assert_eq!(store.list().unwrap().len(), 1);
        assert!(store.collect_garbage(Duration::from_secs(3600)).unwrap().is_empty());
    }

    #[test]
    fn what_a_killed_build_left_does_not_become_part_of_the_entry() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().to_owned());
        let half = dir.path().join(format!(".x-{}.tmp", Key::of("test").hex()));
        fs::create_dir(&half).unwrap();
        fs::write(half.join("half"), "").unwrap();
        let path = store.entry("x", Key::of("test"), |_| Ok(())).unwrap();
        assert!(!path.join("half").exists());
    }

    #[test]
    fn a_sweep_removes_what_a_killed_build_left_and_nothing_that_is_being_built() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().to_owned());
        fs::create_dir(dir.path().join(".dead-0.7.tmp")).unwrap();
        store
            .entry("x", Key::of("test"), |at| {
                store.sweep()?;
                Ok(fs::write(at.join("f"), "")?)
            })
            .unwrap();
        assert!(!dir.path().join(".dead-0.7.tmp").exists());
    }

    #[test]
    fn the_last_used_entries_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().to_owned());
        let day = Duration::from_secs(24 * 3600);
        for (age, name) in ["t-new", "t-old", "t-older", "other"].iter().enumerate() {
            let path = store.entry(name, Key::of("test"), |_| Ok(())).unwrap();
            let used = SystemTime::now() - day * u32::try_from(age).unwrap();
            fs::File::options()
                .write(true)
                .open(path.join(USED))
                .unwrap()
                .set_modified(used)
                .unwrap();
        }
        store.keep_newest("t-", 2).unwrap();
        let left = ["t-new", "t-old", "t-older", "other"]
            .map(|name| store.lookup(name, Key::of("test")).is_some());
        assert_eq!(left, [true, true, false, true]);
        store.discard("t-new", Key::of("test")).unwrap();
        assert!(store.lookup("t-new", Key::of("test")).is_none());
    }

    #[test]
    fn pieces_of_a_key_do_not_run_into_each_other() {
        assert_ne!(
            Key::of("k").with("ab").with("c").hex(),
            Key::of("k").with("a").with("bc").hex()
        );
    }
}
