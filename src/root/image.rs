//! How does a disk image become mounts? Its partitions are found, told apart and probed; each gets a loop
//! device of its own and is mounted attached to nothing, so that no directory of the host is needed (IMG-03).
//!
//! Invariants: what is not used is not opened; a partition that may only be read is on a device that can only
//! be read; all of it goes when the descriptors do.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags};

use super::Access;
use super::discover::{Architecture, Layout, Programs, Role, Used, discover};
use super::filesystem::{FileSystem, probe};
use super::gpt::{self, FileDisk, Table};
use super::loop_device::{self, LoopDevice};
use crate::errors::{hinted, warn};
use crate::mounts::{self, Attrs};
use crate::settings::value::ImagePolicy;
use crate::sys::loop_device::{Window, sector_bytes, size_bytes};

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
}

#[derive(Debug)]
enum Device {
    Loop(LoopDevice),
    /// Used as it is (IMG-02).
    Block(PathBuf),
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

impl Image {
    /// Finds the partitions of an image and attaches those that are used. `path` is told in messages.
    pub(super) fn attach(
        file: OwnedFd,
        path: &Path,
        access: Access,
        policy: Option<&ImagePolicy>,
    ) -> Result<Self> {
        let shown = path.display();
        let stat = rustix::fs::fstat(&file).context("asking for the image's size")?;
        let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        let (size, sector) = if is_block {
            let asking = "asking for the device's size";
            (size_bytes(&file).context(asking)?, Some(sector_bytes(&file).context(asking)?))
        } else {
            (stat.st_size.unsigned_abs(), None)
        };
        let disk = FileDisk { file: &file, size_bytes: size };
        let table = gpt::read(&disk, sector)
            .with_context(|| format!("reading the partition table of \"{shown}\""))?;
        if matches!(table, Table::Gpt { is_backup: true, .. }) {
            warn(format_args!("the first partition table of \"{shown}\" is damaged"));
        }
        let Layout { used, programs } = discover(&table, Architecture::ours(), policy)
            .with_context(|| format!("looking for the partitions of \"{shown}\""))?;
        // All are probed before the first is attached: a wrong image leaves no trace (DEF-14).
        let mut known = Vec::new();
        for used in used {
            let rest = size.saturating_sub(used.start_bytes);
            let system = probe(&disk, used.start_bytes, used.size_bytes.unwrap_or(rest))
                .with_context(|| format!("looking at {} of \"{shown}\"", described(&used)))?;
            known.push((used, system));
        }
        let mut volumes = Vec::new();
        for (used, system) in known {
            let write = access == Access::Write && !used.read_only && !system.is_read_only();
            let access = if write { Access::Write } else { Access::Read };
            let window = Window {
                offset_bytes: used.start_bytes,
                size_bytes: used.size_bytes.unwrap_or(0),
                read_only: !write,
            };
            let device = match used.number {
                None if is_block => Device::Block(path.to_owned()),
                _ => Device::Loop(loop_device::attach(&file, window)?),
            };
            volumes.push(Volume { role: used.role, system, access, device });
        }
        Ok(Self { volumes, programs })
    }

    /// Whose programs it holds.
    pub(super) fn programs(&self) -> Programs {
        self.programs
    }

    /// Mounts what was found, the root first. What has no owners of its own belongs to `owner`, user and group.
    pub(super) fn mounted(&self, owner: Option<(u32, u32)>) -> Result<Vec<Part>> {
        self.volumes.iter().map(|volume| volume.part(owner)).collect()
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
        let device = match &self.device {
            Device::Loop(device) => device.path(),
            Device::Block(path) => path,
        };
        let mut options = Vec::new();
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
}
