//! Which file systems does every container get? (MNT-01…08, M-05.)
//!
//! Differences from systemd-nspawn 252, on purpose: `/dev` is `noexec`, since nothing there is a program
//! (security.md, section 2); a place where the tree has something mounted already is mounted over, not
//! skipped (MNT-20), so that a tree prepared for chroot does not hand its host's /proc to the container.

use std::path::PathBuf;

use super::{Attrs, From, Kind, Mount, Need, Part, Point, Stage};
use crate::inroot::Links;
use crate::settings::value::IdMapMode;

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
const READ_ONLY: [&str; 9] = [
    "/proc/sys",
    "/proc/acpi",
    "/proc/apm",
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/scsi",
    "/proc/sysrq-trigger",
];

/// The group of terminals.
pub(crate) const TTYS: u32 = 5;

/// Directories of sysfs that a container with a network of its own sees; firmware, modules and power are the
/// host's business.
const SYS: Part = Part {
    fstype: "sysfs",
    shown: &["block", "bus", "class", "dev", "devices", "kernel"],
    empty: &["fs", "fs/cgroup", "fs/selinux"],
};

/// Which of the kernel's settings in /proc and /sys the container can write
/// (`SYSTEMD_NSPAWN_API_VFS_WRITABLE`, F-05).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writable {
    /// None, but those of a network of its own.
    No,
    /// Those of the network.
    Network,
    /// All of them.
    Yes,
}

/// Where the container's sysfs comes from. It shows the network namespace of who mounts it, and the kernel lets only
/// those mount it who have rights over that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sys {
    /// It is mounted inside.
    Inside,
    /// It is mounted before: a user namespace has no rights over the host's network.
    Before,
    /// It is the host's, with all that is mounted there: neither has who starts the container.
    OfHost,
}

/// What the API file systems are to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// What can be written.
    pub writable: Writable,
    /// Whether the network is the container's own.
    pub own_network: bool,
    /// Whether /tmp is a tmpfs (`SYSTEMD_NSPAWN_TMPFS_TMP`, F-05).
    pub tmp: bool,
    /// Whether the kernel has SELinux. Asking it for the file system where it has not makes it look for a module,
    /// at every start.
    pub selinux: bool,
    /// Who mounts sysfs.
    pub sys: Sys,
    /// Whether the container has a tty group, to which its terminals belong.
    pub has_ttys: bool,
    /// Whether the container divides its own cgroup further, as an init does (P-04). Then it must have one.
    pub delegated: bool,
}

/// The rows of the API file systems, in the order in which they are mounted.
pub fn table(api: &Api) -> Vec<Mount> {
    use Stage::{Inner, Outer};
    let (all, network) = match api.writable {
        Writable::No => (false, api.own_network),
        Writable::Network => (false, true),
        Writable::Yes => (true, false),
    };
    let mut rows = Vec::new();
    // Sizes as fractions of the memory keep a container from filling it (M-05).
    if api.tmp {
        rows.push(
            Mount::api(Outer, "/tmp", "tmpfs", FRESH)
                .option("mode", "1777")
                .option("size", "10%")
                .option("nr_inodes", "400k"),
        );
    }
    rows.extend([
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
    ]);
    // A new instance each time it is mounted (Linux 4.7); inside, where ids are the container's.
    let terminals = Mount::api(Inner, "/dev/pts", "devpts", Attrs { noexec: true, ..NOSUID })
        .option("ptmxmode", "0666")
        .option("mode", "620");
    rows.push(match api.has_ttys {
        // The tty group of every distribution.
        true => terminals.option("gid", TTYS.to_string()),
        false => terminals,
    });
    rows.extend([
        Mount::api(Inner, "/dev/mqueue", "mqueue", DATA).may_fail(),
        Mount::api(Inner, "/proc", "proc", DATA),
    ]);
    let stage = if api.sys == Sys::Before { Outer } else { Inner };
    let sys = Mount::api(stage, "/sys", "sysfs", Attrs { read_only: !all, ..DATA });
    let partial = api.own_network || api.writable == Writable::Network;
    rows.push(match api.sys {
        Sys::OfHost => {
            let from = From::Host(PathBuf::from("/sys"));
            Mount { kind: Kind::Bind { from, recursive: true, owners: IdMapMode::None }, ..sys }
        }
        _ if partial => Mount { kind: Kind::Part(SYS), ..sys },
        _ => sys,
    });
    let below_sys = |on, fstype| {
        let mount = Mount::api(Inner, on, fstype, Attrs { read_only: true, ..DATA });
        Mount { point: Point::Exists, ..mount.may_fail() }
    };
    let cgroup = below_sys("/sys/fs/cgroup", "cgroup2");
    rows.push(match api.delegated {
        true => Mount { attrs: DATA, ..cgroup },
        false => cgroup,
    });
    if api.selinux {
        rows.push(below_sys("/sys/fs/selinux", "selinuxfs"));
    }
    if network {
        // Before what is above it, which takes it along.
        let row = read_only("/proc/sys/net", Kind::Again, Need::May);
        rows.push(Mount { attrs: DATA, ..row });
    }
    if !all {
        // Which of them there are depends on the kernel; /proc/sys always is.
        let need = |path: &str| if path == "/proc/sys" { Need::Must } else { Need::May };
        rows.extend(READ_ONLY.map(|path| read_only(path, Kind::Again, need(path))));
    }
    let file = |path| Kind::Bind {
        from: From::Inside(PathBuf::from(path)),
        recursive: false,
        owners: IdMapMode::None,
    };
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

    const ORDINARY: Api = Api {
        writable: Writable::No,
        own_network: false,
        tmp: true,
        selinux: true,
        sys: Sys::Inside,
        has_ttys: true,
        delegated: false,
    };

    /// MNT-01…10, M-05, S-06.
    #[test]
    fn the_table_is_what_the_manual_says() {
        let rows: Vec<String> = table(&ORDINARY).iter().map(ToString::to_string).collect();
        assert_eq!(
            rows.join("\n"),
            "\
outer /tmp             tmpfs mode=1777,size=10%,nr_inodes=400k nosuid nodev strictatime
outer /dev             tmpfs mode=755,size=4m,nr_inodes=64k nosuid noexec strictatime
outer /dev/shm         tmpfs mode=1777,size=10%,nr_inodes=400k nosuid nodev strictatime
outer /run             tmpfs mode=755,size=20%,nr_inodes=800k nosuid nodev strictatime
inner /dev/pts         devpts ptmxmode=0666,mode=620,gid=5 nosuid noexec
inner /dev/mqueue      mqueue nosuid nodev noexec (if possible)
inner /proc            proc nosuid nodev noexec
inner /sys             sysfs ro nosuid nodev noexec
inner /sys/fs/cgroup   cgroup2 ro nosuid nodev noexec (if possible)
inner /sys/fs/selinux  selinuxfs ro nosuid nodev noexec (if possible)
inner /proc/sys        itself ro nosuid nodev noexec
inner /proc/acpi       itself ro nosuid nodev noexec (if possible)
inner /proc/apm        itself ro nosuid nodev noexec (if possible)
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

    fn kernel(api: Api) -> Vec<String> {
        let rows = table(&api).into_iter().map(|row| row.to_string());
        let kept = ["/sys ", "/proc/sys ", "/proc/sys/net ", "/proc/kallsyms ", "/tmp "];
        let of_kernel = |row: &String| kept.iter().any(|on| row.contains(&format!("er {on}")));
        // Blanks that align and what all rows have say nothing here.
        rows.filter(of_kernel)
            .map(|row| row.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
            .map(|row| row.replace(" nosuid nodev noexec", ""))
            .collect()
    }

    const PART: &str = "/sys sysfs with only block, bus, class, dev, devices, kernel";
    const MASK: &str = "/proc/kallsyms bind of /run/host/inaccessible/reg inside ro (if possible)";

    /// S-06, M-05, F-05: what systemd-nspawn 252 mounts for each value of its variable.
    #[test]
    fn what_can_be_written_depends_on_the_network_and_on_the_variable() {
        use Writable::{Network, No, Yes};
        let api = |writable, own_network| Api {
            writable,
            own_network,
            tmp: false,
            selinux: false,
            sys: Sys::Inside,
            has_ttys: true,
            delegated: false,
        };
        let (part_ro, net) = (format!("{PART} ro"), "/proc/sys/net itself (if possible)");
        let sys = "/proc/sys itself ro";
        assert_eq!(kernel(api(No, false)), ["/sys sysfs ro", sys, MASK]);
        for with_network in [api(No, true), api(Network, true), api(Network, false)] {
            assert_eq!(kernel(with_network), [part_ro.as_str(), net, sys, MASK]);
        }
        assert_eq!(kernel(api(Yes, false)), ["/sys sysfs", MASK]);
        assert_eq!(kernel(api(Yes, true)), [PART, MASK]);
        let with_tmp = kernel(Api { tmp: true, ..api(Yes, false) });
        assert!(with_tmp[0].starts_with("/tmp tmpfs"), "{with_tmp:?}");
    }

    /// P-04: read-only otherwise, since it may be a part of the host's.
    #[test]
    fn only_a_delegated_cgroup_can_be_written() {
        let api = Api {
            writable: Writable::No,
            own_network: false,
            tmp: true,
            selinux: false,
            sys: Sys::Inside,
            has_ttys: true,
            delegated: true,
        };
        let row = |api| table(&api).into_iter().find(|row| row.on.ends_with("cgroup")).unwrap();
        assert!(!row(api).attrs.read_only);
        assert!(row(Api { delegated: false, ..api }).attrs.read_only);
    }
}
