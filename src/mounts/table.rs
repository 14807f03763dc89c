//! Which file systems does every container get? (MNT-01…08, M-05.)
//!
//! Differences from systemd-nspawn 252, on purpose: `/dev` is `noexec`, since nothing there is a program
//! (security.md, section 2); a place where the tree has something mounted already is mounted over, not
//! skipped (MNT-20), so that a tree prepared for chroot does not hand its host's /proc to the container.

use std::path::PathBuf;

use super::{Attrs, From, Kind, Mount, Need, Point, Stage};
use crate::inroot::Links;

const NOSUID: Attrs = Attrs { nosuid: true, ..Attrs::none() };
const HARMLESS: Attrs = Attrs { nodev: true, ..NOSUID };
const DATA: Attrs = Attrs { noexec: true, ..HARMLESS };
const FRESH: Attrs = Attrs { strictatime: true, ..HARMLESS };

/// Where [`crate::tree`] puts what the rows below mount: an empty file, and the id of this boot.
pub(crate) const EMPTY: &str = "/run/host/inaccessible/reg";
/// See [`EMPTY`]: a pipe without messages (DEV-06).
pub(crate) const KMSG: &str = "/run/host/proc-kmsg";
/// See [`EMPTY`].
pub(crate) const BOOT_ID: &str = "/run/host/proc-sys-kernel-random-boot-id";

/// Files of procfs that tell more of the kernel than a container needs (S-06).
const MASKED: [&str; 4] = ["/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/timer_list"];

/// Directories of procfs that a container may look at and not write to (S-06).
const READ_ONLY: [&str; 8] = [
    "/proc/sys",
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/scsi",
    "/proc/sysrq-trigger",
];

/// The rows of the API file systems, in the order in which they are mounted.
pub fn table() -> Vec<Mount> {
    use Stage::{Inner, Outer};
    // Sizes as fractions of the memory keep a container from filling it (M-05).
    let mut rows = vec![
        Mount::api(Outer, "/tmp", "tmpfs", FRESH)
            .option("mode", "1777")
            .option("size", "10%")
            .option("nr_inodes", "400k"),
        Mount::api(Outer, "/dev", "tmpfs", Attrs { noexec: true, strictatime: true, ..NOSUID })
            .option("mode", "755")
            .option("size", "4m")
            .option("nr_inodes", "64k"),
        Mount::api(Outer, "/dev/shm", "tmpfs", FRESH)
            .option("mode", "1777")
            .option("size", "10%")
            .option("nr_inodes", "400k"),
        Mount::api(Outer, "/run", "tmpfs", FRESH)
            .option("mode", "755")
            .option("size", "20%")
            .option("nr_inodes", "800k"),
        // A new instance each time it is mounted (Linux 4.7). 5 is the tty group of every distribution.
        Mount::api(Outer, "/dev/pts", "devpts", Attrs { noexec: true, ..NOSUID })
            .option("ptmxmode", "0666")
            .option("mode", "620")
            .option("gid", "5"),
        Mount::api(Inner, "/dev/mqueue", "mqueue", DATA).may_fail(),
        Mount::api(Inner, "/proc", "proc", DATA),
        // It shows the network namespace of who mounts it, so inner does, once it has its own.
        Mount::api(Inner, "/sys", "sysfs", Attrs { read_only: true, ..DATA }),
        Mount {
            point: Point::Exists,
            ..Mount::api(Inner, "/sys/fs/cgroup", "cgroup2", Attrs { read_only: true, ..DATA })
                .may_fail()
        },
    ];
    // Which of them there are depends on the kernel; /proc/sys always is.
    let need = |path: &str| if path == "/proc/sys" { Need::Must } else { Need::May };
    rows.extend(READ_ONLY.map(|path| read_only(path, Kind::Again, need(path))));
    let file = |path| Kind::Bind { from: From::Inside(PathBuf::from(path)), recursive: false };
    rows.extend(MASKED.map(|path| read_only(path, file(EMPTY), Need::May)));
    rows.push(read_only("/proc/kmsg", file(KMSG), Need::May));
    rows.push(read_only("/proc/sys/kernel/random/boot_id", file(BOOT_ID), Need::Must));
    // Last, since what was mounted from there is not to lose its own attributes.
    rows.push(read_only("/run/host", Kind::Again, Need::Must));
    rows
}

/// Something of the container, read-only, in a place that exists.
fn read_only(on: &str, kind: Kind, need: Need) -> Mount {
    Mount {
        stage: Stage::Inner,
        on: PathBuf::from(on),
        kind,
        attrs: Attrs { read_only: true, ..DATA },
        need,
        point: Point::Exists,
        links: Links::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_what_the_manual_says() {
        let rows: Vec<String> = table().iter().map(ToString::to_string).collect();
        assert_eq!(
            rows.join("\n"),
            "\
outer /tmp             tmpfs mode=1777,size=10%,nr_inodes=400k nosuid nodev strictatime
outer /dev             tmpfs mode=755,size=4m,nr_inodes=64k nosuid noexec strictatime
outer /dev/shm         tmpfs mode=1777,size=10%,nr_inodes=400k nosuid nodev strictatime
outer /run             tmpfs mode=755,size=20%,nr_inodes=800k nosuid nodev strictatime
outer /dev/pts         devpts ptmxmode=0666,mode=620,gid=5 nosuid noexec
inner /dev/mqueue      mqueue nosuid nodev noexec (if possible)
inner /proc            proc nosuid nodev noexec
inner /sys             sysfs ro nosuid nodev noexec
inner /sys/fs/cgroup   cgroup2 ro nosuid nodev noexec (if possible)
inner /proc/sys        itself ro nosuid nodev noexec
inner /proc/acpi       itself ro nosuid nodev noexec (if possible)
inner /proc/asound     itself ro nosuid nodev noexec (if possible)
inner /proc/bus        itself ro nosuid nodev noexec (if possible)
inner /proc/fs         itself ro nosuid nodev noexec (if possible)
inner /proc/irq        itself ro nosuid nodev noexec (if possible)
inner /proc/scsi       itself ro nosuid nodev noexec (if possible)
inner /proc/sysrq-trigger itself ro nosuid nodev noexec (if possible)
inner /proc/kallsyms   bind of /run/host/inaccessible/reg inside ro nosuid nodev noexec (if possible)
inner /proc/kcore      bind of /run/host/inaccessible/reg inside ro nosuid nodev noexec (if possible)
inner /proc/keys       bind of /run/host/inaccessible/reg inside ro nosuid nodev noexec (if possible)
inner /proc/timer_list bind of /run/host/inaccessible/reg inside ro nosuid nodev noexec (if possible)
inner /proc/kmsg       bind of /run/host/proc-kmsg inside ro nosuid nodev noexec (if possible)
inner /proc/sys/kernel/random/boot_id bind of /run/host/proc-sys-kernel-random-boot-id inside ro nosuid nodev noexec
inner /run/host        itself ro nosuid nodev noexec"
        );
    }
}
