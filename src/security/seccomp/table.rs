//! Which system calls may a payload make by default, and which sets of them have a name?
//!
//! The facts are systemd-nspawn's interface (v252 to v262; S-03): a call in [`ALLOWED`] is allowed, any other call
//! that some set names is known and gives EPERM, all the rest gives ENOSYS so that libraries fall back
//! (systemd issue 19922, runc issue 2151). Sets have the names of systemd.exec(5), `SystemCallFilter=`, because users
//! type them. Left out on purpose: key rings and bpf (not namespaced), perf events, kexec, swap, quotas,
//! open_by_handle_at and fanotify (reach beyond the mount namespace), CPU emulation, obsolete calls.
//!
//! Differences from systemd-nspawn 252, on purpose:
//!
//! | calls | 252 | here | why |
//! |---|---|---|---|
//! | landlock_*, futex_wait, futex_wake, futex_requeue | EPERM | allowed | a sandbox inside only restricts itself (systemd pull request 34552); the futex calls do what futex does |
//! | cachestat, statmount, listmount, *xattrat, file_getattr, file_setattr, open_tree_attr, mseal | ENOSYS | allowed where libseccomp knows them | newer forms of calls that are allowed |
//! | process_mrelease, memfd_secret, lsm_* | EPERM or ENOSYS | allowed | they touch only the caller's own objects, or processes it may kill |
//!
//! This file is also compiled into the build script, so it uses nothing of the crate.

/// A named set of system calls; members that start with `@` are sets themselves.
#[derive(Debug)]
pub struct Set {
    /// With the leading `@`.
    pub name: &'static str,
    /// Names, separated by blanks. A name that libseccomp or the architecture does not have is skipped.
    pub members: &'static str,
}

/// One row of the allow list.
#[derive(Debug)]
pub struct Allow {
    /// Bits of the capabilities of which one must be kept for the row to count; 0 is "always".
    pub with: u64,
    /// Calls and sets, separated by blanks.
    pub items: &'static str,
}

// Numbers of linux/capability.h, as bits.
const IPC_LOCK: u64 = 1 << 14;
const SYS_MODULE: u64 = 1 << 16;
const SYS_RAWIO: u64 = 1 << 17;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_PACCT: u64 = 1 << 20;
const SYS_BOOT: u64 = 1 << 22;
const SYS_TIME: u64 = 1 << 25;
const SYS_TTY_CONFIG: u64 = 1 << 26;
const SYSLOG: u64 = 1 << 34;

/// The capabilities that change the filter: those that a row of [`ALLOWED`] asks for.
pub const DECIDING: u64 = {
    let mut bits = 0;
    let mut i = 0;
    while i < ALLOWED.len() {
        bits |= ALLOWED[i].with;
        i += 1;
    }
    bits
};

/// Those of [`DECIDING`] that a container keeps by default (CAP-01).
pub const DECIDING_BY_DEFAULT: u64 = SYS_PTRACE | SYS_BOOT | SYS_TTY_CONFIG;

/// What a payload may call.
pub const ALLOWED: &[Allow] = &[
    Allow {
        with: 0,
        items: "@aio @basic-io @chown @default @file-system @io-event @ipc @mount @network-io @process @resources \
                @sandbox @setuid @signal @sync @timer",
    },
    Allow {
        with: 0,
        items: "arm_fadvise64_64 cachestat capget capset copy_file_range fadvise64 fadvise64_64 flock get_mempolicy \
                getcpu getpriority ioctl ioprio_get kcmp madvise mincore mremap mseal name_to_handle_at oldolduname \
                olduname personality process_mrelease readahead readdir remap_file_pages sched_get_priority_max \
                sched_get_priority_min sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
                sched_rr_get_interval_time64 sendfile sendfile64 setdomainname setfsgid setfsgid32 setfsuid \
                setfsuid32 sethostname setpgid setsid splice sysinfo tee umask uname userfaultfd vmsplice \
                memfd_secret lsm_get_self_attr lsm_list_modules lsm_set_self_attr",
    },
    Allow { with: SYS_TIME, items: "@clock" },
    Allow { with: SYS_MODULE, items: "@module" },
    Allow { with: SYS_RAWIO, items: "@raw-io" },
    Allow { with: IPC_LOCK, items: "@memlock" },
    Allow { with: SYS_PACCT, items: "acct" },
    Allow { with: SYS_PTRACE, items: "process_vm_readv process_vm_writev ptrace" },
    Allow { with: SYS_BOOT, items: "reboot" },
    Allow { with: SYSLOG, items: "syslog" },
    Allow { with: SYS_TTY_CONFIG, items: "vhangup" },
];

/// Known calls that are in no set: refused unless allowed.
pub const KNOWN_BESIDE_SETS: &str = "map_shadow_stack memfd_secret mincore process_mrelease seccomp syslog timerfd \
     spu_create spu_run sched_get_affinity sched_set_affinity setpgrp getpagesize gethostname getdtablesize \
     getdomainname multiplexer syscall sysmips oldumount old_adjtimex perfctr kern_features memory_ordering \
     s390_guarded_storage s390_sthyi utrap_install";

/// The named sets.
pub const SETS: &[Set] = &[
    Set {
        name: "@default",
        members: "arch_prctl brk cacheflush clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
                  clock_nanosleep clock_nanosleep_time64 execve exit exit_group futex futex_requeue futex_time64 \
                  futex_wait futex_waitv futex_wake get_robust_list get_thread_area getegid getegid32 geteuid \
                  geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid getrandom getresgid \
                  getresgid32 getresuid getresuid32 getrlimit getsid gettid gettimeofday getuid getuid32 membarrier \
                  mmap mmap2 mprotect munmap nanosleep pause prlimit64 restart_syscall riscv_flush_icache \
                  riscv_hwprobe rseq rt_sigreturn sched_getaffinity sched_yield set_robust_list set_thread_area \
                  set_tid_address set_tls sigreturn time ugetrlimit uretprobe",
    },
    Set {
        name: "@aio",
        members: "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit \
                  io_uring_enter io_uring_register io_uring_setup",
    },
    Set {
        name: "@basic-io",
        members: "_llseek close close_range dup dup2 dup3 lseek pread64 preadv preadv2 pwrite64 pwritev pwritev2 \
                  read readv write writev",
    },
    Set { name: "@chown", members: "chown chown32 fchown fchown32 fchownat lchown lchown32" },
    Set {
        name: "@clock",
        members: "adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday",
    },
    Set { name: "@cpu-emulation", members: "modify_ldt subpage_prot switch_endian vm86 vm86old" },
    Set {
        name: "@debug",
        members: "lookup_dcookie perf_event_open pidfd_getfd ptrace rtas s390_runtime_instr sys_debug_setcontext",
    },
    Set {
        name: "@file-system",
        members: "access chdir chmod close creat faccessat faccessat2 fallocate fchdir fchmod fchmodat fchmodat2 \
                  fcntl fcntl64 fgetxattr file_getattr file_setattr flistxattr fremovexattr fsetxattr fstat fstat64 \
                  fstatat64 fstatfs fstatfs64 ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr \
                  getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lgetxattr link linkat \
                  listxattr listxattrat llistxattr lremovexattr lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat \
                  newfstatat oldfstat oldlstat oldstat open openat openat2 readlink readlinkat removexattr \
                  removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs statfs64 \
                  statx symlink symlinkat truncate truncate64 unlink unlinkat utime utimensat utimensat_time64 \
                  utimes",
    },
    Set {
        name: "@io-event",
        members: "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
                  epoll_wait_old eventfd eventfd2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select",
    },
    Set {
        name: "@ipc",
        members: "ipc memfd_create mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 \
                  mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 process_madvise \
                  process_vm_readv process_vm_writev semctl semget semop semtimedop semtimedop_time64 shmat shmctl \
                  shmdt shmget",
    },
    Set { name: "@keyring", members: "add_key keyctl request_key" },
    Set { name: "@memlock", members: "mlock mlock2 mlockall munlock munlockall" },
    Set { name: "@module", members: "delete_module finit_module init_module" },
    Set {
        name: "@mount",
        members: "chroot fsconfig fsmount fsopen fspick listmount mount mount_setattr move_mount open_tree \
                  open_tree_attr pivot_root statmount umount umount2",
    },
    Set {
        name: "@network-io",
        members: "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
                  recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socket socketcall \
                  socketpair",
    },
    Set {
        name: "@obsolete",
        members: "_sysctl afs_syscall bdflush break create_module ftime get_kernel_syms getpmsg gtty idle lock mpx \
                  prof profil putpmsg query_module security sgetmask ssetmask stime stty sysfs tuxcall ulimit uselib \
                  ustat vserver",
    },
    Set { name: "@pkey", members: "pkey_alloc pkey_free pkey_mprotect" },
    Set {
        name: "@privileged",
        members: "@chown @clock @module @raw-io @reboot @swap _sysctl acct bpf capset chroot fanotify_init \
                  fanotify_mark open_by_handle_at pivot_root quotactl quotactl_fd setdomainname setfsuid \
                  setfsuid32 setgroups setgroups32 sethostname setresuid setresuid32 setreuid setreuid32 setuid \
                  setuid32 vhangup",
    },
    Set {
        name: "@process",
        members: "capget clone clone3 execveat fork getrusage kill pidfd_open pidfd_send_signal prctl \
                  rt_sigqueueinfo rt_tgsigqueueinfo setns swapcontext tgkill times tkill unshare vfork wait4 waitid \
                  waitpid",
    },
    Set {
        name: "@raw-io",
        members: "ioperm iopl pciconfig_iobase pciconfig_read pciconfig_write s390_pci_mmio_read \
                  s390_pci_mmio_write",
    },
    Set { name: "@reboot", members: "kexec_file_load kexec_load reboot" },
    Set {
        name: "@resources",
        members: "ioprio_set mbind migrate_pages move_pages nice sched_setaffinity sched_setattr sched_setparam \
                  sched_setscheduler set_mempolicy set_mempolicy_home_node setpriority setrlimit",
    },
    Set {
        name: "@sandbox",
        members: "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    },
    Set {
        name: "@setuid",
        members: "setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid \
                  setresuid32 setreuid setreuid32 setuid setuid32",
    },
    Set {
        name: "@signal",
        members: "rt_sigaction rt_sigpending rt_sigprocmask rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
                  sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigsuspend",
    },
    Set { name: "@swap", members: "swapoff swapon" },
    Set {
        name: "@sync",
        members: "fdatasync fsync msync sync sync_file_range sync_file_range2 syncfs",
    },
    Set {
        name: "@system-service",
        members: "@aio @basic-io @chown @default @file-system @io-event @ipc @keyring @memlock @network-io @process \
                  @resources @setuid @signal @sync @timer arm_fadvise64_64 capget capset copy_file_range fadvise64 \
                  fadvise64_64 flock get_mempolicy getcpu getpriority ioctl ioprio_get kcmp madvise mremap \
                  name_to_handle_at oldolduname olduname personality readahead readdir remap_file_pages \
                  sched_get_priority_max sched_get_priority_min sched_getattr sched_getparam sched_getscheduler \
                  sched_rr_get_interval sched_rr_get_interval_time64 sched_yield sendfile sendfile64 setfsgid \
                  setfsgid32 setfsuid setfsuid32 setpgid setsid splice sysinfo tee umask uname userfaultfd vmsplice",
    },
    Set {
        name: "@timer",
        members: "alarm getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime \
                  timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
                  timerfd_settime timerfd_settime64 times",
    },
];

/// The set of that name, which starts with `@`.
#[must_use]
pub fn set(name: &str) -> Option<&'static Set> {
    SETS.iter().find(|s| s.name == name)
}

/// The names of calls behind one item, sets resolved down to their calls. `@known` is every call named here. `None`
/// when the item is a set that does not exist; a single call is never looked up.
#[must_use]
pub fn calls(item: &str) -> Option<Vec<&str>> {
    if item == "@known" {
        return Some(known());
    }
    if !item.starts_with('@') {
        return Some(vec![item]);
    }
    let mut all = Vec::new();
    for member in set(item)?.members.split_ascii_whitespace() {
        all.extend(calls(member)?);
    }
    Some(all)
}

/// Every call that a set or a row names: a decision was made about it.
#[must_use]
pub fn known() -> Vec<&'static str> {
    let rows = ALLOWED.iter().map(|a| a.items);
    SETS.iter()
        .map(|s| s.members)
        .chain(rows)
        .chain([KNOWN_BESIDE_SETS])
        .flat_map(str::split_ascii_whitespace)
        .filter(|m| !m.starts_with('@'))
        .collect()
}
