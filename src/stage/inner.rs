//! The second part of a start: it makes the machine and becomes the payload.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{
    DumpableBehavior, PidfdFlags, Signal, getpid, pidfd_open, set_dumpable_behavior,
    set_parent_process_death_signal,
};

use super::link::Link;
use super::outer::{self, Made};
use super::protocol::{FromInner, ToInner};
use super::user::{self, Identity};
use super::{Parent, fork, payload, stub};
use crate::console::pty::{self, Pty};
use crate::credentials::{self, Credential};
use crate::errors::{Report, hinted};
use crate::ids::Id;
use crate::inroot::{InRoot, Links};
use crate::mounts::{self, Stage};
use crate::security::{caps, limits, seccomp, selinux};
use crate::settings::value::Limit;
use crate::spec::{Calls, Network, Spec};
use crate::sys::process::keep_only;
use crate::tree;

/// What the payload and its surroundings are made of, by inheritance.
#[derive(Clone, Copy)]
pub(super) struct Inner<'a> {
    pub(super) spec: &'a Spec,
    pub(super) machine_id: &'a Id,
    pub(super) credentials: &'a [Credential],
    pub(super) link: &'a Link<FromInner, ToInner>,
    /// Whether it was limited already, by the process that has made the tree apart from it.
    pub(super) apart: bool,
}

const PATH_DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// In the container's namespaces, but for that of cgroups, with the host still in sight.
pub(super) fn run(inner: Inner<'_>, made: Made) -> Result<()> {
    let link = inner.link;
    let kept: Vec<_> = [link.as_fd()].into_iter().chain(made.fds()).collect();
    keep_only(inner.spec.handover.end(), &kept)
        .context("closing what the container must not see")?;
    let Made { tree: root, mut custom, .. } = made;
    tie_to_supervisor(link)?;
    let spec = &*spec_with_its_cgroup(inner.spec, link)?;
    let inner = Inner { spec, ..inner };
    // Until exec nobody may look into us (CVE-2016-9962).
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("becoming undumpable")?;
    if spec.knobs.cgroup_namespace {
        // Here, because one that is asked for at birth has the cgroup of our parent for its root
        // (cgroup_namespaces(7)).
        unshare(CloneFlags::CLONE_NEWCGROUP).context("making a cgroup namespace")?;
    }
    // In a user namespace the kernel makes a new procfs or sysfs only where one is in sight (Linux, fs/namespace.c,
    // mount_too_revealing), so the root is switched behind that.
    mounts::apply(&mounts::table(&spec.api), Stage::Inner, &root)?;
    custom.mount(Stage::Inner, &root, None)?;
    drop(custom);
    outer::switch_root(&root)?;
    let console = open_console(spec, &root, link)?;
    if !spec.shares.uts {
        rustix::system::sethostname(spec.hostname.as_bytes()).context("setting the host name")?;
    }
    if spec.network == Network::Private {
        crate::sys::network::bring_up("lo").context("bringing up the loopback interface")?;
    }
    // What the payload mounts spreads among its own namespaces, as on a machine that systemd booted.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change("/", shared).context("sharing the container's mounts inside")?;
    if !inner.apart {
        let proc = root.open(Path::new("/proc"), Links::Refused, PATH_DIR);
        limit(spec, proc.context("opening the container's /proc")?)?;
    }
    limits::clear_securebits()?;
    limits::join_own_keyring()?;
    if !spec.has_stub {
        return become_payload(inner, root, console, None);
    }
    // Nothing that the payload sends to the stub may come before it can take it.
    SigSet::all().thread_block().context("blocking signals")?;
    let (stub_runs, until_stub_runs) = std::io::pipe().context("making a pipe to the payload")?;
    // The child lets go of its copy; ours is closed by exec.
    let until_stub_runs = Cell::new(Some(until_stub_runs));
    let payload = fork(
        0,
        Parent::Us,
        || {
            drop(until_stub_runs.take());
            // It dies with the stub, and so with the supervisor.
            tie_to_supervisor(link)?;
            let us = pidfd_open(getpid(), PidfdFlags::empty()).context("naming the payload")?;
            link.send(&FromInner::Payload, Some(us.as_fd()))?;
            drop(us);
            become_payload(inner, root, console, Some(stub_runs))
        },
        |error| tell(link, &error),
    )
    .context("making a process for the payload")?;
    give_up_privileges(spec, &Identity::root("root".to_owned()), link)?;
    match stub::become_stub(payload.pid, spec.exit_mode)? {}
}

/// The rest of the way, in the process that will be the payload.
fn become_payload(
    inner: Inner<'_>,
    root: InRoot,
    console: Option<Pty>,
    stub_runs: Option<PipeReader>,
) -> Result<()> {
    let Inner { spec, machine_id, credentials, link, .. } = inner;
    let number = console.as_ref().map(|console| console.number);
    pty::attach(console.map(|console| console.slave), &spec.wiring)?;
    let user = user::settle(spec, &root)?;
    if let Some(number) = number.filter(|_| !user.is_root()) {
        user::give_console(&root, number, &user)?;
    }
    credentials::mount(&root, credentials, user.uid, user.gid)?;
    if let Some(label) = &spec.labels.process {
        selinux::label_next_exec(label)?;
    }
    let kmsg = tree::open_kmsg(&root)?;
    drop(root);
    link.send(&FromInner::Ready, Some(kmsg.as_fd()))?;
    drop(kmsg);
    // Before that, /proc/1/exe is our binary (R11).
    if let Some(mut end) = stub_runs {
        end.read_to_end(&mut Vec::new()).context("waiting for the stub")?;
    }
    give_up_privileges(spec, &user, link)?;
    let refusal = payload::exec(spec, machine_id, &user);
    let report = Report::of(&refusal.error);
    link.send(&FromInner::NoExec(report, refusal.errno), None)
}

/// What is to be done with the cgroup that we were born into, or without one.
fn spec_with_its_cgroup<'a>(
    spec: &'a Spec,
    link: &Link<FromInner, ToInner>,
) -> Result<Cow<'a, Spec>> {
    match link.recv()? {
        Some((ToInner::Cgroup { guarded: true }, _)) => Ok(Cow::Borrowed(spec)),
        Some((ToInner::Cgroup { guarded: false }, _)) => Ok(spec.without_own_cgroup()),
        Some(_) => bail!("the supervisor is out of turn: a bug in rspawn"),
        None => bail!("the supervisor is gone"),
    }
}

/// Tells the supervisor why the start is over.
pub(super) fn tell(link: &Link<FromInner, ToInner>, error: &anyhow::Error) {
    // Without a supervisor there is nobody to tell.
    let _ = link.send(&FromInner::Failed(Report::of(error)), None);
}

/// Whatever kills the supervisor kills us. The kernel forgets it when credentials change (prctl(2),
/// PR_SET_PDEATHSIG), so it is done again then. One that died before is noticed by its end of the link.
pub(super) fn tie_to_supervisor(link: &Link<FromInner, ToInner>) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("tying us to the supervisor")?;
    let mut ends = [PollFd::new(link, PollFlags::empty())];
    poll(&mut ends, Some(&Timespec::default())).context("looking for the supervisor")?;
    if ends[0].revents().contains(PollFlags::HUP) {
        bail!("the supervisor is gone");
    }
    Ok(())
}

/// Opens the pty in the container's own devpts and sends its master up (DEV-04).
fn open_console(
    spec: &Spec,
    root: &InRoot,
    link: &Link<FromInner, ToInner>,
) -> Result<Option<Pty>> {
    if !spec.wiring.pty {
        return Ok(None);
    }
    let devpts = root
        .open(Path::new("/dev/pts"), Links::Refused, OFlags::RDONLY | OFlags::DIRECTORY)
        .context("opening the container's /dev/pts")?;
    let console = pty::open(devpts.as_fd())?;
    console.give_to(0, 0)?;
    tree::console(root, console.number)?;
    link.send(&FromInner::Console, Some(console.master.as_fd()))?;
    Ok(Some(console))
}

/// Limits and audit id of whoever called us are not the payload's (E-10, NS-03, R-01). It takes rights over the host to
/// raise some of them. `proc` is the root of a procfs.
pub(super) fn limit(spec: &Spec, proc: impl AsFd) -> Result<()> {
    let mut defaults = limits::Limits::boot_defaults();
    for limit in &spec.limits.resources {
        let bound = |limit: Limit| (limit != Limit::INFINITY).then_some(limit.0);
        defaults.override_with(limit.resource.kernel(), bound(limit.soft), bound(limit.hard))?;
    }
    defaults.apply().context("--rlimit=")?;
    if !spec.limits.cpus.is_empty() {
        limits::set_cpu_affinity(&spec.limits.cpus).context("--cpu-affinity=")?;
    }
    if let Some(personality) = spec.limits.personality {
        limits::set_personality(personality).context("--personality=")?;
    }
    if let Some(score) = spec.limits.oom_score {
        limits::set_oom_score(&proc, score).context("--oom-score-adjust=")?;
    }
    // Among the host's processes it remains who has logged in (NS-03).
    if !spec.shares.pid {
        limits::reset_login_uid(&proc)?;
    }
    Ok(())
}

/// In the order in which each step can still be taken: the filter needs CAP_SYS_ADMIN.
fn give_up_privileges(spec: &Spec, user: &Identity, link: &Link<FromInner, ToInner>) -> Result<()> {
    if let Some(calls) = &spec.calls {
        filter_calls(spec, calls)?;
    }
    caps::apply(spec.capabilities, spec.ambient, || user.assume())?;
    tie_to_supervisor(link)?;
    if spec.no_new_privileges {
        limits::set_no_new_privs()?;
    }
    Ok(())
}

/// SEC-04: a kernel without filters gets none, as with systemd-nspawn, unless one was asked for.
fn filter_calls(spec: &Spec, calls: &Calls) -> Result<()> {
    if !seccomp::is_available() {
        ensure!(
            !calls.is_asked_for(),
            hinted(
                "filtering system calls: this kernel cannot",
                "it needs CONFIG_SECCOMP_FILTER for --system-call-filter=, --restrict-address-families= and --suppress-sync=",
            )
        );
        return Ok(());
    }
    let extras = seccomp::Extras {
        shares_terminal: spec.wiring.exposes_terminal,
        suppress_sync: calls.suppress_sync,
    };
    let mut program = seccomp::Program::new(spec.capabilities, &calls.lists, extras)?;
    if let Some(families) = &calls.families {
        program = program.restricted_to(families)?;
    }
    seccomp::load(&program)
}
