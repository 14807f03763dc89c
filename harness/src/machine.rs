//! What machine every guest has, and the file system it boots from.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::accel::Accel;
use crate::guest::{PROGRAM_IN_INITRAMFS, Subject};
use crate::initramfs::Archive;
use crate::kernels::{self, Kernel};
use crate::report::event::{Begin, Scratch};
use crate::shape::{self, Shape};
use crate::suite::Suite;
use crate::vm::config::{Disk, Ram, VmConfig, Writes};

/// Memory of a guest in MiB: the tmpfs over its root and a container's files fit.
pub const GUEST_MEMORY_MIB: u32 = 1024;
/// Apparent size of the scratch disk in MiB; it is sparse.
pub const SCRATCH_MIB: u32 = 8 << 10;

/// What guests are made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// What boots.
    pub kernel: &'a Kernel,
    /// Who is process 1.
    pub shape: Shape,
    /// Its root image.
    pub root: &'a Path,
    /// Who executes it.
    pub accel: Accel,
    /// Its memory in MiB.
    pub memory_mib: u32,
}

impl Parts<'_> {
    /// The machine that these make, with its first file system and its scratch disk.
    #[must_use]
    pub fn machine(&self, initramfs: PathBuf, scratch: Disk) -> VmConfig {
        let image = |serial: &str, path| {
            let serial = serial.to_owned();
            Disk { serial, path, writes: Writes::Refused }
        };
        VmConfig {
            accel: self.accel,
            memory_mib: self.memory_mib,
            ram: Ram::Anonymous,
            kernel: self.kernel.vmlinux(),
            initramfs,
            kernel_arguments: vec![format!("{}={}", shape::ARGUMENT, self.shape.name())],
            disks: vec![
                image("root", self.root.to_owned()),
                image("mods", self.kernel.modules_image()),
                scratch,
            ],
        }
    }
}

/// A scratch disk of this size: a sparse file without a name in `dir`, so that no crash leaves it behind.
///
/// # Errors
/// When it cannot be made.
pub fn scratch_file(dir: &Path, mib: u32) -> Result<File> {
    let file = tempfile::tempfile_in(dir).context("making a scratch disk")?;
    file.set_len(u64::from(mib) << 20).context("making a scratch disk")?;
    Ok(file)
}

/// The scratch disk in that file, as the guest has it; QEMU must inherit the descriptor.
#[must_use]
pub fn scratch_disk(file: &File) -> Disk {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    Disk { serial: "scratch".to_owned(), path, writes: Writes::Throwaway }
}

/// The first order of a guest: what is new of it, and what it is for.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn begin(fs: &str, scratch: Scratch, subject: Subject, timeout_factor: f64) -> Result<Begin> {
    let mut nonce = [0; 8];
    let mut seed = [0; 32];
    for bytes in [&mut nonce[..], &mut seed[..]] {
        rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty())
            .context("drawing random numbers for a guest")?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Begin {
        nonce: u64::from_le_bytes(nonce),
        seed,
        clock_unix_us: u64::try_from(now.as_micros()).context("reading the clock")?,
        fs: fs.to_owned(),
        scratch,
        subject,
        timeout_factor,
    })
}

/// The initramfs for a kernel, made once per run directory.
///
/// # Errors
/// When an input cannot be read or the file cannot be written.
pub fn initramfs(dir: &Path, kernel: &Kernel, suite: &Suite) -> Result<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let name = kernels::file_name(&kernel.name);
    let path = dir.join(format!("{name}.cpio"));
    if path.exists() {
        return Ok(path);
    }
    let mut archive =
        Archive::new().dir("/dev").char_device("/dev/console", 5, 1).dir("/proc").dir("/sys");
    archive = archive.file("/init", 0o755, suite.vm_content()).file(
        PROGRAM_IN_INITRAMFS,
        0o755,
        suite.program_content(),
    );
    archive = archive.dir("/modules");
    let mut order = String::new();
    for (name, content) in kernel.boot_modules()? {
        archive = archive.file(&format!("/modules/{name}"), 0o644, &content);
        order.push_str(&name);
        order.push('\n');
    }
    archive = archive.file("/modules/order", 0o644, order.as_bytes());
    let half = dir.join(format!(".{name}.cpio"));
    fs::write(&half, archive.finish())
        .and_then(|()| fs::rename(&half, &path))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
