//! How is a file system verified while it is read (dm-verity)? Its root hash is given, or stands next to the image; the
//! hash tree lies in another partition or file; the kernel checks each block against it (I-10, IMG-23).
//!
//! Invariants: what is verified is only read; a device is marked to go with its last user before it serves, so
//! that nothing is left of it when we are killed; what the tree's header says is checked before the
//! kernel sees it.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::discover::{Role, RootHashes};
use super::gpt::Disk;
use crate::checkpoint;
use crate::errors::{hinted, warn};
use crate::settings::value::{RootHash, RootHashSignature};
use crate::sys::{device_mapper, process};

const CONTROL: &str = "/dev/mapper/control";
/// What the names of our devices begin with; then the PID namespace, process and its starting time that made them.
const PREFIX: &str = "rspawn.";
/// Longest side file and signature, in bytes (R3 of the security rules).
const MAX_FILE_BYTES: u64 = 64 << 10;
/// `struct verity_sb` of cryptsetup, lib/verity/verity.c; everything is little-endian.
const HEADER_BYTES: usize = 512;
/// Hash functions that a header may ask for; others would have the kernel look for modules of any name.
const ALGORITHMS: [&str; 8] =
    ["sha256", "sha512", "sha384", "sha224", "sha1", "sha3-256", "sha3-512", "blake2b-256"];

/// What the user says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verity {
    /// `--root-hash=`.
    pub hash: Option<RootHash>,
    /// `--root-hash-sig=`.
    pub signature: Option<RootHashSignature>,
    /// `--verity-data=`, absolute.
    pub data: Option<PathBuf>,
    /// Whether what is not said is looked for next to the image (IMG-23).
    pub side_files: bool,
}

/// What is known of an image from outside of it.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) hashes: RootHashes,
    signature: Option<Vec<u8>>,
    /// Where the hash tree of the root is, if not in the image.
    pub(super) data: Option<OwnedFd>,
}

impl Known {
    /// Collects what was said and what stands next to the image.
    ///
    /// # Errors
    /// When one of the files holds something else, or is missing although it was named.
    pub(super) fn of(said: &Verity, path: &Path, image: &OwnedFd) -> Result<Self> {
        let mut hash = [said.hash.clone(), None];
        if said.side_files {
            for (hash, word) in hash.iter_mut().zip(["roothash", "usrhash"]) {
                if hash.is_none() {
                    *hash = beside(path, image, word)?;
                }
            }
        }
        let [root, usr] = hash;
        let side = |suffix: &str| {
            let wanted = said.side_files && root.is_some();
            wanted.then(|| side_file(path, suffix)).map(|path| (path, false))
        };
        let (named, data) = match &said.signature {
            Some(RootHashSignature::File(path)) => (Some((path.clone(), true)), None),
            Some(RootHashSignature::Data(data)) => (None, Some(data.clone())),
            None => (side("roothash.p7s"), None),
        };
        let signature = match named {
            Some((path, must)) => read(&path, must).context("reading the root hash's signature")?,
            None => data,
        };
        let data = match said.data.clone().map(|path| (path, true)).or_else(|| side("verity")) {
            Some((path, must)) => open(&path, must).context("opening the dm-verity data")?,
            None => None,
        };
        let (signed, data_is_elsewhere) = (signature.is_some(), data.is_some());
        ensure!(
            root.is_some() || !signed && !data_is_elsewhere,
            hinted(
                "--root-hash-sig= and --verity-data= need a root hash",
                "it is given by --root-hash=, or stands in a file IMAGE.roothash, which -x does not look for",
            )
        );
        let hashes = RootHashes { root, usr, signed, data_is_elsewhere };
        Ok(Self { hashes, signature, data })
    }
}

/// A root hash as an attribute of the image, or in a file next to it.
fn beside(path: &Path, image: &OwnedFd, word: &str) -> Result<Option<RootHash>> {
    let mut text = vec![0; 1024];
    let attribute = format!("user.verity.{word}");
    let what = || format!("reading the {word} of \"{}\"", path.display());
    let found = match rustix::fs::fgetxattr(image, attribute.as_str(), &mut text) {
        Ok(length) => Some(text[..length].to_vec()),
        // None, or a file system or a block device that has no attributes.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOTTY | Errno::PERM) => {
            read(&side_file(path, word), false).with_context(what)?
        }
        Err(errno) => return Err(errno).with_context(what),
    };
    let Some(text) = found else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().map(Some).with_context(what)
}

/// The name of an image without `.raw`, with a suffix.
fn side_file(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or(OsStr::new("")).as_bytes();
    let mut name = name.strip_suffix(b".raw").unwrap_or(name).to_vec();
    name.push(b'.');
    name.extend(suffix.as_bytes());
    path.with_file_name(OsStr::from_bytes(&name))
}

/// Opens a regular file or a block device, if it must be there or is.
fn open(path: &Path, must: bool) -> Result<Option<OwnedFd>> {
    let what = || format!("\"{}\"", path.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) if !must => return Ok(None),
        other => other.with_context(what)?,
    };
    let stat = rustix::fs::fstat(&file).with_context(what)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Ok(Some(file)),
        _ => bail!("\"{}\" is no regular file and no block device", path.display()),
    }
}

fn read(path: &Path, must: bool) -> Result<Option<Vec<u8>>> {
    let Some(file) = open(path, must)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let limited = File::from(file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    limited.with_context(|| format!("\"{}\"", path.display()))?;
    let size = bytes.len() as u64;
    ensure!(size <= MAX_FILE_BYTES, "\"{}\" is larger than 64 KiB", path.display());
    Ok(Some(bytes))
}

/// The header of a hash tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    algorithm: &'static str,
    data_block_bytes: u32,
    hash_block_bytes: u32,
    data_blocks: u64,
    salt: Vec<u8>,
}

impl Header {
    /// Reads it from the start of `tree`, for data of `data_bytes`.
    ///
    /// # Errors
    /// When there is none, or it says what cannot be.
    pub fn read(tree: &(impl Disk + ?Sized), start: u64, data_bytes: u64) -> Result<Self> {
        let mut raw = [0; HEADER_BYTES];
        tree.read_at(start, &mut raw).context("reading the header of the hash tree")?;
        let u32_at =
            |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        ensure!(raw.starts_with(b"verity\0\0"), "there is no hash tree of dm-verity");
        let (version, kind) = (u32_at(8), u32_at(12));
        ensure!(
            (version, kind) == (1, 1),
            "the hash tree has the unknown version {version}.{kind}"
        );
        let word = raw[32..64].split(|byte| *byte == 0).next().unwrap_or_default();
        let algorithm = ALGORITHMS.into_iter().find(|known| known.as_bytes() == word);
        let algorithm = algorithm.with_context(|| {
            let word = String::from_utf8_lossy(word);
            hinted(
                format!("the hash function {word:?} of the hash tree is not known"),
                format!("known are {}", ALGORITHMS.join(", ")),
            )
        })?;
        let (data_block_bytes, hash_block_bytes) = (u32_at(64), u32_at(68));
        for bytes in [data_block_bytes, hash_block_bytes] {
            // Documentation/admin-guide/device-mapper/verity.rst; more than a page is not read by older kernels.
            let fits = bytes.is_power_of_two() && (512..=65536).contains(&bytes);
            ensure!(fits, "the hash tree has blocks of {bytes} bytes");
        }
        let data_blocks = u64::from(u32_at(72)) | u64::from(u32_at(76)) << 32;
        let all = data_blocks.checked_mul(u64::from(data_block_bytes));
        ensure!(
            all.is_some_and(|all| all > 0 && all <= data_bytes),
            "the hash tree is for {data_blocks} blocks of {data_block_bytes} bytes, which the data has not"
        );
        let salt_bytes = usize::from(u16::from_le_bytes([raw[80], raw[81]]));
        ensure!(salt_bytes <= 256, "the hash tree has a salt of {salt_bytes} bytes");
        let salt = raw[88..88 + salt_bytes].to_vec();
        Ok(Self { algorithm, data_block_bytes, hash_block_bytes, data_blocks, salt })
    }

    fn data_bytes(&self) -> u64 {
        self.data_blocks * u64::from(self.data_block_bytes)
    }

    /// The parameters of the kernel's target (Documentation/admin-guide/device-mapper/verity.rst). Devices
    /// are said by number; `key` is the name of a key with the signature.
    fn parameters(&self, data: u64, tree: u64, hash: &RootHash, key: Option<&str>) -> String {
        let device = |id: u64| format!("{}:{}", rustix::fs::major(id), rustix::fs::minor(id));
        let salt = match &self.salt[..] {
            [] => "-".to_owned(),
            salt => salt.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        // The tree begins in the first whole block behind the header.
        let first = (HEADER_BYTES as u64).div_ceil(u64::from(self.hash_block_bytes));
        let mut text = format!(
            "1 {} {} {} {} {} {first} {} {hash} {salt}",
            device(data),
            device(tree),
            self.data_block_bytes,
            self.hash_block_bytes,
            self.data_blocks,
            self.algorithm,
        );
        if let Some(key) = key {
            text.push_str(&format!(" 2 root_hash_sig_key_desc {key}"));
        }
        text
    }
}

/// A device that shows what was verified. It goes with its last user.
#[derive(Debug)]
pub(super) struct Device {
    path: PathBuf,
    _device: OwnedFd,
}

impl Device {
    /// Its node.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the device of a role of the block devices `data` and `tree`.
///
/// # Errors
/// When this kernel has no dm-verity, does not trust the signature, or the data is not what was hashed.
pub(super) fn attach(
    known: &Known,
    role: Role,
    header: &Header,
    data: impl AsFd,
    tree: impl AsFd,
) -> Result<Device> {
    let hash = known.hashes.of(role).context("looking for the root hash")?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    let control = rustix::fs::open(CONTROL, flags, Mode::empty()).map_err(explain_missing)?;
    sweep_with(&control);
    let number = |device: &dyn AsFd| rustix::fs::fstat(device.as_fd()).map(|stat| stat.st_rdev);
    let asking = "asking for a device's number";
    let (data, tree) = (number(&data).context(asking)?, number(&tree).context(asking)?);
    let name = format!("{}.{role}", owner().context("finding out when we were started")?);
    let signature = known.signature.as_ref().filter(|_| role == Role::Root);
    if let Some(signature) = signature {
        let key = CString::new(name.as_str()).expect("the name holds no NUL");
        process::add_key(&key, signature).context("giving the kernel the root hash's signature")?;
    }
    let id = device_mapper::create(&control, &name).context("making a verified device")?;
    let guard = Unmarked { control: &control, name: &name };
    checkpoint::reach("device-made");
    let parameters = header.parameters(data, tree, hash, signature.map(|_| name.as_str()));
    device_mapper::load(&control, &name, "verity", header.data_bytes(), &parameters)
        .map_err(explain_refused)?;
    let path = PathBuf::from(format!("/dev/dm-{}", rustix::fs::minor(id)));
    let open = || rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let device = open().with_context(|| format!("opening {}", path.display()))?;
    // From here on it goes with us.
    device_mapper::remove(&control, &name, true).context("marking a verified device")?;
    std::mem::forget(guard);
    device_mapper::resume(&control, &name).context("starting a verified device")?;
    let mut file = File::from(device);
    let first = file.rewind().and_then(|()| file.read_exact(&mut [0; 512]));
    first.with_context(|| {
        hinted(
            "the first block is not what the root hash says",
            "the root hash is another image's, or the image was changed",
        )
    })?;
    Ok(Device { path, _device: file.into() })
}

/// Removes a device again that was not marked to go by itself.
struct Unmarked<'a> {
    control: &'a OwnedFd,
    name: &'a str,
}

impl Drop for Unmarked<'_> {
    fn drop(&mut self) {
        if let Err(error) = device_mapper::remove(self.control, self.name, false) {
            warn(format_args!("removing the device {}: {error}", self.name));
        }
    }
}

fn explain_missing(errno: Errno) -> anyhow::Error {
    let what = format!("opening {CONTROL}");
    if !matches!(errno, Errno::NOENT | Errno::NODEV | Errno::NXIO) {
        return anyhow::Error::new(errno).context(what);
    }
    anyhow::Error::new(errno).context(hinted(
        what,
        "a root hash needs the kernel's device mapper, which this one does not have: try \"modprobe dm-verity\"",
    ))
}

fn explain_refused(error: std::io::Error) -> anyhow::Error {
    const WHAT: &str = "verifying with dm-verity";
    let hint = match error.raw_os_error() {
        Some(libc::ENOKEY | libc::EKEYREJECTED | libc::EBADMSG) => {
            "the kernel takes a signature only from whom its own keyrings trust"
        }
        Some(libc::EINVAL | libc::ENOENT) => {
            "the kernel's log says what it dislikes; has it dm-verity (modprobe dm-verity)?"
        }
        _ => return anyhow::Error::new(error).context(WHAT),
    };
    anyhow::Error::new(error).context(hinted(WHAT, hint))
}

/// The first part of the names of our own devices.
fn owner() -> std::io::Result<String> {
    let namespace = std::fs::metadata("/proc/self/ns/pid").map(|at| inode(&at))?;
    let pid = std::process::id();
    Ok(format!("{PREFIX}{namespace}.{pid}.{}", started("self")?))
}

fn inode(of: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(of)
}

/// When a process was started, in clock ticks since boot (proc_pid_stat(5), field 22).
fn started(pid: &str) -> std::io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields are counted behind the name, which can hold anything.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = rest.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// Removes devices that a run made which was killed before it could mark them. What is in use stays.
pub(crate) fn sweep() {
    // Without the device mapper there is nothing of ours.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    if let Ok(control) = rustix::fs::open(CONTROL, flags, Mode::empty()) {
        sweep_with(&control);
    }
}

fn sweep_with(control: &OwnedFd) {
    let Ok(namespace) = std::fs::metadata("/proc/self/ns/pid").map(|at| inode(&at)) else { return };
    for name in device_mapper::names(control).unwrap_or_default() {
        if is_dead(&name, namespace, |pid| started(pid).ok()) {
            // In use by what a killed run left running; it goes with that.
            let _ = device_mapper::remove(control, &name, true);
        }
    }
}

/// Whether a device's name is one of ours whose maker is gone. Those of other PID namespaces cannot be told.
fn is_dead(name: &str, namespace: u64, started: impl Fn(&str) -> Option<u64>) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let mut parts = rest.split('.');
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok());
    match (number(), number(), number()) {
        (Some(of), Some(pid), Some(at)) => of == namespace && started(&pid.to_string()) != Some(at),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// As `veritysetup format` writes it.
    fn header() -> Vec<u8> {
        let mut raw = vec![0; HEADER_BYTES];
        raw[..8].copy_from_slice(b"verity\0\0");
        (raw[8], raw[12]) = (1, 1);
        raw[32..38].copy_from_slice(b"sha256");
        raw[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        raw[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        raw[72..80].copy_from_slice(&16_u64.to_le_bytes());
        raw[80] = 2;
        raw[88..90].copy_from_slice(&[0xab, 0x01]);
        raw
    }

    /// I-10.
    #[test]
    fn a_header_becomes_parameters_of_the_kernel() {
        let header = Header::read(&*header(), 0, 65536).unwrap();
        let (data, tree) = (rustix::fs::makedev(7, 1), rustix::fs::makedev(7, 2));
        let hash: RootHash = "00112233445566778899aabbccddeeff".parse().unwrap();
        let text = "1 7:1 7:2 4096 4096 16 1 sha256 00112233445566778899aabbccddeeff ab01";
        assert_eq!(header.parameters(data, tree, &hash, None), text);
        let signed = format!("{text} 2 root_hash_sig_key_desc k");
        assert_eq!(header.parameters(data, tree, &hash, Some("k")), signed);
        let plain = Header { salt: Vec::new(), hash_block_bytes: 512, ..header };
        assert!(plain.parameters(data, tree, &hash, None).ends_with("eeff -"));
    }

    /// I-10: a hostile header is refused before the kernel sees it.
    #[rstest]
    #[case::no_header(0, b"Verity", "no hash tree")]
    #[case::version(8, &[2], "version 2.1")]
    #[case::of_another_system(12, &[0], "version 1.0")]
    #[case::words(32, b"sha256 1 x", "not known")]
    #[case::empty_blocks(64, &[0, 0], "blocks of 0 bytes")]
    #[case::odd_blocks(68, &[1, 0x10], "blocks of 4097 bytes")]
    #[case::no_data(72, &[0], "for 0 blocks")]
    #[case::more_than_there_is(72, &[17], "for 17 blocks")]
    #[case::overflow(72, &[0xff; 8], "for 18446744073709551615 blocks")]
    #[case::salt(80, &[1, 1], "salt of 257 bytes")]
    fn a_header_that_lies_is_refused(#[case] at: usize, #[case] to: &[u8], #[case] why: &str) {
        let mut raw = header();
        raw[at..at + to.len()].copy_from_slice(to);
        let error = Header::read(&*raw, 0, 65536).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    /// IMG-23.
    #[test]
    fn side_files_are_called_like_the_image_without_raw() {
        let name = |path: &str| side_file(Path::new(path), "roothash");
        assert_eq!(name("/a/disk.raw"), Path::new("/a/disk.roothash"));
        assert_eq!(name("/a/disk.img"), Path::new("/a/disk.img.roothash"));
    }

    #[test]
    fn a_device_is_left_over_when_its_maker_is_gone() {
        let dead = |name: &str| is_dead(name, 5, |pid| (pid == "7").then_some(100));
        assert!(!dead("rspawn.5.7.100.root"), "it lives");
        assert!(dead("rspawn.5.7.99.root"), "the number was given again");
        assert!(dead("rspawn.5.8.100.root"));
        assert!(!dead("rspawn.6.8.100.root"), "of another namespace");
        assert!(!dead("rspawn.x.8.100.root") && !dead("vg-root") && !dead("rspawn."));
    }
}
