//! A copy in all that an ordinary user can make; the rest is cases of `tests/vm`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, Timespec, Timestamps, XattrFlags};

use super::*;

const DIR: rustix::fs::OFlags = rustix::fs::OFlags::PATH;

fn copied(from: &Path, to: &Path, without: &[Identity]) -> Result<()> {
    fs::create_dir(to).unwrap();
    let (from, to) = (File::open(from).unwrap(), File::open(to).unwrap());
    tree(&Order {
        from: from.as_fd(),
        to: to.as_fd(),
        sharing: Sharing::IfPossible,
        without,
        without_prefix: ".#rspawn.",
        shows: false,
    })
}

/// Everything that can be told of a tree, by path; inodes are numbered in the order of their first path. Looking changes
/// times of access, so it is looked once, at each thing before into it.
fn listing(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, meta));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut inodes = Vec::new();
    let describe = |(path, meta): (PathBuf, fs::Metadata)| {
        let inode = inodes.iter().position(|inode| *inode == meta.ino()).unwrap_or_else(|| {
            inodes.push(meta.ino());
            inodes.len() - 1
        });
        let content = match () {
            () if meta.is_file() => format!("{:?}", fs::read(&path).unwrap()),
            () if meta.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () => String::new(),
        };
        let size = if meta.is_dir() { 0 } else { meta.len() };
        let access = (meta.atime(), meta.atime_nsec());
        // Reading a link is an access, and nobody can ask for another.
        let access = if meta.is_symlink() { (0, 0) } else { access };
        let times = (access, meta.mtime(), meta.mtime_nsec());
        let mut value = [0; 100];
        let attribute = rustix::fs::lgetxattr(&path, "user.test", &mut value[..]);
        let attribute = attribute.map(|length| value[..length].to_vec());
        let owner = (meta.uid(), meta.gid());
        let text = format!(
            "{:o} {owner:?} {size} {inode} {} {times:?} {attribute:?} {content}",
            meta.mode(),
            meta.rdev()
        );
        (path.strip_prefix(top).unwrap().to_owned(), text)
    };
    found.into_iter().map(describe).collect()
}

fn set_times(path: &Path) {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times =
        Timestamps { last_access: time(3, 4_000_005), last_modification: time(-6, 700_000_008) };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn a_copy_is_the_same_in_all_but_its_sockets() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("from");
    fs::create_dir_all(from.join("a/b/c")).unwrap();
    fs::write(from.join("a/file"), "text").unwrap();
    fs::write(from.join("a/empty"), "").unwrap();
    fs::write(from.join("a/big"), vec![7; 3 << 20]).unwrap();
    fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(from.join("a/file"), from.join("a/b/again")).unwrap();
    fs::hard_link(from.join("a/file"), from.join("third")).unwrap();
    symlink("/nowhere", from.join("link")).unwrap();
    fs::hard_link(from.join("link"), from.join("a/link")).unwrap();
    rustix::fs::mkfifoat(CWD, from.join("pipe"), Mode::from(0o640)).unwrap();
    fs::set_permissions(from.join("a/b"), fs::Permissions::from_mode(0o1555)).unwrap();
    let value = b"value";
    // A tmpfs has them since Linux 6.6; without, there is nothing to compare.
    let _ = rustix::fs::setxattr(from.join("a/file"), "user.test", value, XattrFlags::empty());
    let _ = rustix::fs::setxattr(from.join("a"), "user.test", value, XattrFlags::empty());
    for path in ["a/file", "a/big", "link", "pipe", "a/b/c", "a/b", "a", ""] {
        set_times(&from.join(path));
    }
    let to = place.path().join("to");
    copied(&from, &to, &[]).unwrap();
    // Copying has left no trace in the source.
    assert_eq!(from.join("a/file").metadata().unwrap().atime(), 3);
    let (source, copy) = (listing(&from), listing(&to));
    for (path, text) in &source {
        assert_eq!(Some(text), copy.get(path), "{}", path.display());
    }
    assert_eq!(source.len(), copy.len());
    drop(UnixListener::bind(from.join("socket")).unwrap());
    copied(&from, &place.path().join("without"), &[]).unwrap();
    assert!(!place.path().join("without/socket").exists());
    assert!(place.path().join("without/third").exists());
}

#[test]
fn holes_stay_holes() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("from");
    fs::create_dir(&from).unwrap();
    let file = File::create(from.join("sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"middle", 40 << 20).unwrap();
    fs::write(from.join("zeroes"), vec![0; 1 << 20]).unwrap();
    let to = place.path().join("to");
    copied(&from, &to, &[]).unwrap();
    let sparse = to.join("sparse").metadata().unwrap();
    assert_eq!(sparse.len(), 64 << 20);
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    let mut text = [0; 6];
    File::open(to.join("sparse")).unwrap().read_exact_at(&mut text, 40 << 20).unwrap();
    assert_eq!(&text, b"middle");
    assert!(fs::read(to.join("zeroes")).unwrap().iter().all(|byte| *byte == 0));
}

/// DEF-03.
#[test]
fn what_is_no_part_of_the_tree_is_left_out() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("from");
    fs::create_dir_all(from.join("deep/mine/x")).unwrap();
    fs::create_dir_all(from.join(".#rspawn.other/x")).unwrap();
    fs::create_dir_all(from.join("deep/.#rspawn.kept")).unwrap();
    let mine = from.join("deep/mine").metadata().unwrap();
    let to = place.path().join("to");
    copied(&from, &to, &[(mine.dev(), mine.ino())]).unwrap();
    let found: Vec<_> = listing(&to).into_keys().collect();
    assert_eq!(found, ["", "deep", "deep/.#rspawn.kept"].map(PathBuf::from));
}

#[test]
fn many_files_and_directories_are_all_copied() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("from");
    for dir in 0..40 {
        fs::create_dir_all(from.join(format!("{dir}/x/y"))).unwrap();
        for file in 0..60 {
            fs::write(from.join(format!("{dir}/x/{file}")), format!("{dir} {file}")).unwrap();
        }
    }
    for file in 0..3000 {
        File::create(from.join(format!("flat-{file}"))).unwrap();
    }
    let to = place.path().join("to");
    copied(&from, &to, &[]).unwrap();
    let names = |top: &Path| listing(top).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&from), names(&to));
    assert_eq!(fs::read_to_string(to.join("7/x/13")).unwrap(), "7 13");
}

#[test]
fn what_cannot_be_copied_is_named() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("from");
    let mut deep = from.clone();
    // Deeper than a path can be long.
    fs::create_dir(&from).unwrap();
    let mut dir = rustix::fs::open(&from, DIR, Mode::empty()).unwrap();
    for _ in 0..4100 {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", DIR, Mode::empty()).unwrap();
    }
    deep.push("d");
    let error = copied(&from, &place.path().join("to"), &[]).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.starts_with("copying \"/d/d/"), "{}", &text[..40]);
    assert!(text.ends_with("4096 directories deep"), "{}", &text[text.len() - 60..]);
    for name in [c"from", c"to"] {
        let parent = File::open(place.path()).unwrap();
        crate::root::remove::tree(parent.as_fd(), name).unwrap();
    }
}
