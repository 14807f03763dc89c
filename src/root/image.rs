//! How does a disk image become mounts? Its partitions are found, told apart and probed; each gets a loop
//! device of its own and is mounted attached to nothing, so that no directory of the host is needed (IMG-03).
//!
//! Invariants: what is not used is not opened; a partition that may only be read is on a device that can only
//! be read; all of it goes when the descriptors do.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::discover::{Architecture, Layout, Place, Programs, Protection, Role, Used, discover};
use super::filesystem::{FileSystem, probe};
use super::gpt::{self, FileDisk, Table};
use super::loop_device::{self, LoopDevice};
use super::verity::{self, Header, Known, Verity};
use super::{Access, check};
use crate::checkpoint;
use crate::errors::{hinted, warn};
use crate::mounts::{self, Attrs};
use crate::settings::value::ImagePolicy;
use crate::sys::loop_device::{Window, sector_bytes, size_bytes};
use crate::sys::resize;

/// An image whose partitions were found.
#[derive(Debug)]
pub(super) struct Image {
    /// The first is the root.
    volumes: Vec<Volume>,
    programs: Programs,
}

#[derive(Debug)]
struct Volume {
    role: Role,
    system: FileSystem,
    access: Access,
    device: Device,
    /// The size in bytes that it is to be grown to.
    grow: Option<u64>,
}

#[derive(Debug)]
enum Device {
    Loop(LoopDevice),
    /// Used as it is (IMG-02).
    Block(PathBuf),
    /// Checked while it is read (I-10).
    Verified(verity::Device),
}

/// A file system of an image, attached nowhere.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) role: Role,
    pub(super) mount: OwnedFd,
    /// Whether an overlay can lie on it: the kernel refuses those file systems that fold case.
    pub(super) can_be_covered: bool,
    /// Whether all of it belongs to whom the mount says, for want of owners of its own.
    pub(super) is_owned_by_mount: bool,
}

/// Opens an image: a regular file or a block device (IMG-01).
pub(super) fn open(path: &Path, access: Access) -> Result<OwnedFd> {
    let what = || format!("opening the image \"{}\"", path.display());
    // Looked at first: to open other files can have effects.
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let found = found.with_context(what)?;
    let stat = rustix::fs::fstat(&found).with_context(what)?;
    let mut flags = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        // A disk with something mounted from it is not to be written to by a second way (open(2), O_EXCL).
        FileType::BlockDevice if access == Access::Write => flags |= OFlags::EXCL,
        FileType::BlockDevice => {}
        FileType::Directory => bail!(hinted(
            format!("the image \"{}\" is a directory", path.display()),
            "-i takes a disk image; a directory is given with -D",
        )),
        _ => bail!(hinted(
            format!("the image \"{}\" is no regular file and no block device", path.display()),
            "-i takes a disk image",
        )),
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::open(again, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
        .with_context(what)
}

/// What is asked of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    /// Told in messages, and what side files are named after.
    pub(super) path: &'a Path,
    pub(super) access: Access,
    pub(super) policy: Option<&'a ImagePolicy>,
    pub(super) verity: &'a Verity,
}

/// A partition that was looked at, before any is attached.
struct Probed {
    used: Used,
    system: FileSystem,
    size_bytes: u64,
    wants_check: bool,
    /// That of its hash tree, if it is verified.
    header: Option<Header>,
}

impl Image {
    /// Finds the partitions of an image and attaches those that are used.
    pub(super) fn attach(file: OwnedFd, request: Request<'_>) -> Result<Self> {
        checkpoint::reach("image-opened");
        let Request { path, access, policy, verity } = request;
        let shown = path.display();
        let (disk, sector) = disk(&file)?;
        let table = gpt::read(&disk, sector)
            .with_context(|| format!("reading the partition table of \"{shown}\""))?;
        if matches!(table, Table::Gpt { is_backup: true, .. }) {
            warn(format_args!("the first partition table of \"{shown}\" is damaged"));
        }
        let known = Known::of(verity, path, &file)?;
        let Layout { used, programs } =
            discover(&table, Architecture::ours(), &known.hashes, policy)
                .with_context(|| format!("looking for the partitions of \"{shown}\""))?;
        // All are probed before the first is attached: a wrong image leaves no trace (DEF-14).
        let mut probed = Vec::new();
        for used in used {
            let what = || format!("looking at {} of \"{shown}\"", described(&used));
            if used.hash_tree.is_some() && used.protection == Protection::None {
                let role = used.role;
                warn(format_args!(
                    "the {role} of \"{shown}\" has dm-verity data and no root hash, ignoring it"
                ));
            }
            probed.push(probe_one(&disk, used.clone(), &known).with_context(what)?);
        }
        let mut volumes = Vec::new();
        for probed in probed {
            let what = described(&probed.used);
            let volume = attach_one(&file, disk.size_bytes, path, access, probed, &known);
            volumes.push(volume.with_context(|| format!("attaching {what} of \"{shown}\""))?);
        }
        Ok(Self { volumes, programs })
    }

    /// Whether nothing on its root can be changed, whatever was asked for.
    pub(super) fn root_is_only_read(&self) -> bool {
        self.volumes.first().is_some_and(|root| root.access == Access::Read)
    }

    /// Whose programs it holds.
    pub(super) fn programs(&self) -> Programs {
        self.programs
    }

    /// Mounts what was found, the root first. What has no owners of its own belongs to `owner`, user and group.
    pub(super) fn mounted(&self, owner: Option<(u32, u32)>) -> Result<Vec<Part>> {
        let mounted = self.volumes.iter().map(|volume| volume.part(owner)).collect();
        checkpoint::reach("image-mounted");
        mounted
    }

    /// Mounts once more what has no owners of its own, if it is to belong to others than it was mounted for.
    pub(super) fn given_to(&self, owner: (u32, u32), parts: Vec<Part>) -> Result<Vec<Part>> {
        let given =
            self.volumes.iter().zip(parts).map(|(volume, part)| match part.is_owned_by_mount {
                true => {
                    // Two mounts of one device have the options of the first.
                    drop(part);
                    volume.part(Some(owner))
                }
                false => Ok(part),
            });
        given.collect()
    }
}

/// A file or block device with its size, and the size of its sectors if it has any.
fn disk(file: &OwnedFd) -> Result<(FileDisk<'_>, Option<u32>)> {
    let stat = rustix::fs::fstat(file).context("asking for the image's size")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Ok((FileDisk { file, size_bytes: stat.st_size.unsigned_abs() }, None));
    }
    let asking = "asking for the device's size";
    let size_bytes = size_bytes(file).context(asking)?;
    Ok((FileDisk { file, size_bytes }, Some(sector_bytes(file).context(asking)?)))
}

fn probe_one(image: &FileDisk<'_>, used: Used, known: &Known) -> Result<Probed> {
    let start = used.start_bytes;
    let size_bytes = used.size_bytes.unwrap_or(image.size_bytes.saturating_sub(start));
    let system = probe(image, start, size_bytes)?;
    let wants_check = check::is_needed(image, start, system)?;
    let header = match (used.protection, used.hash_tree, &known.data) {
        (Protection::None, ..) => None,
        (_, Some(tree), _) => Some(Header::read(image, tree.start_bytes, size_bytes)?),
        (_, None, Some(file)) => Some(Header::read(&disk(file)?.0, 0, size_bytes)?),
        (_, None, None) => bail!("there is no dm-verity data"),
    };
    Ok(Probed { used, system, size_bytes, wants_check, header })
}

fn attach_one(
    file: &OwnedFd,
    disk_bytes: u64,
    path: &Path,
    access: Access,
    probed: Probed,
    known: &Known,
) -> Result<Volume> {
    let Probed { used, system, size_bytes, wants_check, header } = probed;
    let write =
        access == Access::Write && !used.read_only && !system.is_read_only() && header.is_none();
    let access = if write { Access::Write } else { Access::Read };
    let window = |start_bytes: u64, size_bytes: u64| {
        let rest = disk_bytes.saturating_sub(start_bytes) == size_bytes;
        let size_bytes = if rest { 0 } else { size_bytes };
        Window { offset_bytes: start_bytes, size_bytes, read_only: !write }
    };
    let whole = used.number.is_none() && is_block(file)?;
    let device = match (header, used.hash_tree) {
        (None, _) if whole => Device::Block(path.to_owned()),
        (None, _) => Device::Loop(loop_device::attach(file, window(used.start_bytes, size_bytes))?),
        (Some(header), tree) => {
            let data = Attached::of(file, whole, window(used.start_bytes, size_bytes))?;
            let tree = match (tree, &known.data) {
                (Some(Place { start_bytes, size_bytes }), _) => {
                    Attached::of(file, false, window(start_bytes, size_bytes))?
                }
                (None, Some(tree)) => {
                    let all = Window { offset_bytes: 0, size_bytes: 0, read_only: true };
                    Attached::of(tree, is_block(tree)?, all)?
                }
                (None, None) => bail!("there is no dm-verity data"),
            };
            Device::Verified(verity::attach(known, used.role, &header, data.fd(), tree.fd())?)
        }
    };
    if write && wants_check {
        check::repair(system, device.path(), &described(&used))?;
    }
    let grow = (write && used.grow).then_some(size_bytes);
    Ok(Volume { role: used.role, system, access, device, grow })
}

fn is_block(file: &OwnedFd) -> Result<bool> {
    let stat = rustix::fs::fstat(file).context("asking what the image is")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
}

/// A block device that another one is made of.
enum Attached<'a> {
    Loop(LoopDevice),
    Itself(&'a OwnedFd),
}

impl<'a> Attached<'a> {
    fn of(file: &'a OwnedFd, itself: bool, window: Window) -> Result<Self> {
        match itself {
            true => Ok(Self::Itself(file)),
            false => loop_device::attach(file, window).map(Self::Loop),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Loop(device) => device.fd(),
            Self::Itself(file) => file.as_fd(),
        }
    }
}

impl Device {
    fn path(&self) -> &Path {
        match self {
            Self::Loop(device) => device.path(),
            Self::Block(path) => path,
            Self::Verified(device) => device.path(),
        }
    }
}

fn described(used: &Used) -> String {
    match used.number {
        Some(number) => format!("partition {number} ({})", used.role),
        None => "the file system".to_owned(),
    }
}

impl Volume {
    fn part(&self, owner: Option<(u32, u32)>) -> Result<Part> {
        let mount = self.mounted(owner).with_context(|| {
            format!("mounting the {} partition, which holds {}", self.role, self.system)
        })?;
        let is_vfat = self.system == FileSystem::Vfat;
        Ok(Part { role: self.role, mount, can_be_covered: !is_vfat, is_owned_by_mount: is_vfat })
    }

    fn mounted(&self, owner: Option<(u32, u32)>) -> Result<OwnedFd> {
        let boots = matches!(self.role, Role::Esp | Role::Xbootldr);
        let attrs = Attrs {
            read_only: self.access == Access::Read,
            nodev: true,
            nosuid: boots,
            noexec: boots,
            strictatime: false,
        };
        let device = self.device.path();
        let mut options = Vec::new();
        if self.system == FileSystem::Xfs {
            // A copy of an image has the same id as the image, and both may be mounted (xfs(5)).
            options.push(("nouuid", ""));
        }
        if boots && self.system == FileSystem::Vfat {
            // It has no modes of its own, and may hold keys.
            options.push(("umask", "0077"));
        }
        let owner = owner.filter(|_| self.system == FileSystem::Vfat);
        let owner = owner.map(|(uid, gid)| (uid.to_string(), gid.to_string()));
        if let Some((uid, gid)) = &owner {
            options.extend([("uid", uid.as_str()), ("gid", gid.as_str())]);
        }
        let first = mounts::disk(self.system.name(), device, &options, attrs);
        if let (Ok(mount), Some(size_bytes)) = (&first, self.grow) {
            // It serves as it is, too.
            if let Err(error) = self.grow(mount, size_bytes) {
                warn(format_args!("growing the {} file system: {error}", self.role));
            }
        }
        let first = first.map_err(|error| self.explained(error));
        let Some(option) = self.system.without_recovery().filter(|_| attrs.read_only) else {
            return first;
        };
        first.or_else(|error| {
            options.push(option);
            let second = mounts::disk(self.system.name(), device, &options, attrs);
            if second.is_ok() {
                let role = self.role;
                warn(format_args!("the journal of the {role} partition was not written back"));
            }
            // If it was not the journal, the first error is the one that counts.
            second.map_err(|_| error)
        })
    }

    /// The kernel takes two devices of one btrfs for its parts, so a copy of an image cannot be mounted beside it
    /// (fs/btrfs/volumes.c, device_list_add); and no file system goes below the blocks of its device.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let verified = matches!(self.device, Device::Verified(_));
        match error.downcast_ref::<Errno>() {
            Some(&Errno::INVAL) if verified => error.context(hinted(
                "on what is verified",
                "has it smaller blocks than its hash tree? veritysetup(8) has --data-block-size",
            )),
            Some(&(Errno::EXIST | Errno::BUSY)) if self.system == FileSystem::Btrfs => error
                .context(hinted(
                    "a btrfs of the same id is mounted",
                    "btrfstune(8) -u gives a copy of an image an id of its own",
                )),
            _ => error,
        }
    }

    /// Grows the file system to its partition (UAPI.2, bit 59 of the flags).
    fn grow(&self, mount: &OwnedFd, size_bytes: u64) -> std::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(mount, ".", flags, Mode::empty())?;
        match self.system {
            FileSystem::Ext4 => resize::ext4(root, size_bytes),
            FileSystem::Btrfs => resize::btrfs(root),
            FileSystem::Xfs => resize::xfs(root, size_bytes),
            FileSystem::Vfat | FileSystem::Squashfs | FileSystem::Erofs => Ok(()),
        }
    }
}
