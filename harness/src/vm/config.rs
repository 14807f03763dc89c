//! What machine a guest gets. Plain data; [`super::args`] turns it into QEMU's words.

use std::path::PathBuf;

use crate::accel::Accel;

/// Kernel command line of every guest. `loglevel=5` brings kernel warnings to the console, which `quiet` alone hides;
/// with `panic=-1` and QEMU's -no-reboot a panic ends the machine at once.
pub const KERNEL_ARGUMENTS: &str = "quiet loglevel=5 panic=-1 reboot=t cryptomgr.notests console=ttyS0 random.trust_cpu=on harness.port=agent";

/// The same for guests that QEMU interprets. Their containers start twice as fast with it, since
///
/// * QEMU keeps the translation of a program by its addresses, and translates anew one that lies elsewhere at each
///   start: 70 instead of 20 ms to execute a small one;
/// * pages and objects that nobody reads are not zeroed;
/// * one processor that never rests has nothing to gain by waiting for its own grace periods.
///
/// Measured with QEMU 7.2, in pairs: the first takes half of a suite's time away, the others a tenth each.
pub const TCG_KERNEL_ARGUMENTS: &str =
    "norandmaps transparent_hugepage=never init_on_alloc=0 rcupdate.rcu_expedited=1";

/// A disk of the guest, found inside by its serial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// At most 20 characters.
    pub serial: String,
    /// Raw image.
    pub path: PathBuf,
    /// Who may write.
    pub writes: Writes,
}

/// What becomes of writes to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// The guest sees a read-only disk.
    Refused,
    /// They reach the file, which belongs to this guest alone and is thrown away after: nothing is ever synced.
    Throwaway,
    /// They go to an overlay that ends with QEMU; the file stays as it is.
    Overlaid,
}

/// Where a guest's memory comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ram {
    /// It is the guest's own, and gone with it.
    #[default]
    Anonymous,
    /// The file, which the guest's writes reach: a template in the making.
    Shared(PathBuf),
    /// The file as it was, copied where the guest writes; the machine waits for the state that belongs to it.
    Copied(PathBuf),
}

/// A guest's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// Who executes its instructions.
    pub accel: Accel,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// What is in it at first.
    pub ram: Ram,
    /// Uncompressed kernel with a PVH entry.
    pub kernel: PathBuf,
    /// First file system.
    pub initramfs: PathBuf,
    /// Kernel command line beyond [`KERNEL_ARGUMENTS`].
    pub kernel_arguments: Vec<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
}
