//! Who wins when the command line and a `.nspawn` file say different things?
//!
//! Invariants: what belongs together is taken together (a file's binds are not mixed with the command
//! line's, just as in systemd-nspawn); every field of `Settings` is named here, which the compiler checks.

use super::value::{Resource, Rlimit, SettingsMode};
use super::{Each, Said, Settings, Source};

/// One `Settings` out of two (G-02): the command line wins, or the file with
/// [`SettingsMode::Override`]. With [`SettingsMode::No`] the file says nothing. Whether untrusted
/// keys count was decided when the file was parsed ([`file_is_trusted`]).
pub fn merge(command_line: Settings, file: Settings, mode: SettingsMode) -> Settings {
    match mode {
        SettingsMode::No => command_line,
        SettingsMode::Yes | SettingsMode::Trusted => over(command_line, file),
        SettingsMode::Override => over(file, command_line),
    }
}

/// Whether all keys of a file count that was found in a place of this kind.
pub fn file_is_trusted(place_is_trusted: bool, mode: SettingsMode) -> bool {
    place_is_trusted || mode == SettingsMode::Trusted
}

/// A field or a list that may be unsaid.
trait Sayable {
    fn said(&self) -> bool;
}

impl<T> Sayable for Said<T> {
    fn said(&self) -> bool {
        self.is_said()
    }
}

impl<T> Sayable for Each<T> {
    fn said(&self) -> bool {
        self.is_said()
    }
}

/// Moves each group of fields from `weak` to `strong` unless `strong` says one of the group.
macro_rules! fill {
    ($strong:ident, $weak:ident; $([$($field:ident),+])+) => {
        $(if ![$($strong.$field.said()),+].contains(&true) {
            $($strong.$field = $weak.$field;)+
        })+
        // A field that is missing above does not compile.
        let Settings { start: _, parameters: _, rlimits: _, $($($field: _,)+)+ } = &$strong;
    };
}

fn over(mut strong: Settings, mut weak: Settings) -> Settings {
    merge_start(&mut strong, &mut weak);
    strong.rlimits = merge_limits(std::mem::take(&mut strong.rlimits), &weak.rlimits);
    // The groups are the bits of systemd-nspawn's settings mask; a field it has no key for stands
    // alone.
    fill! { strong, weak;
        [explain] [cleanup] [quiet] [verbose] [settings_mode] [scope] [no_ask_password]
        [status_fd] [exit_mode]
        [directory] [template] [image] [image_policy] [mstack] [oci_bundle]
        [ephemeral] [ephemeral_dir] [ephemeral_reboot] [keep_on_failure] [keep_name]
        [read_only] [volatile] [root_hash] [root_hash_sig] [verity_data] [pivot_root]
        [chdir] [environment] [user] [kill_signal] [notify_ready] [suppress_sync] [share_system]
        [machine] [hostname] [uuid] [slice] [properties] [register] [keep_unit]
        [private_users, private_users_if_possible, ownership, id_maps] [delegate]
        [private_network, interfaces, macvlans, ipvlans, veth, veth_extras, bridge, zone,
         network_namespace]
        [ports]
        [capabilities, drop_capabilities, ambient_capabilities]
        [no_new_privileges] [syscalls] [address_families]
        [selinux_context] [selinux_apifs_context]
        [oom_score_adjust] [cpu_affinity] [personality]
        [resolv_conf] [timezone] [link_journal]
        [forward_journal] [forward_journal_max_use] [forward_journal_keep_free]
        [forward_journal_max_file_size] [forward_journal_max_files]
        [mounts] [bind_users] [bind_user_shell] [bind_user_groups]
        [console] [background] [escape_key] [credentials]
    }
    strong
}

/// `Boot=`, `ProcessTwo=` and `Parameters=` belong together: a command of the command line must not
/// become arguments of the file's init, nor the reverse. Parameters alone leave the other side's
/// choice of how to start as it is, as `--settings=override` needs below `--boot`.
fn merge_start(strong: &mut Settings, weak: &mut Settings) {
    let command_line = |said: Option<&Source>| said == Some(&Source::CommandLine);
    let strong_is_file = !command_line(strong.start.source().or(strong.parameters.source()));
    match (strong.start.is_said(), strong.parameters.is_said()) {
        (false, false) => {
            strong.start = std::mem::take(&mut weak.start);
            strong.parameters = std::mem::take(&mut weak.parameters);
        }
        (false, true) if strong_is_file => strong.start = std::mem::take(&mut weak.start),
        _ => {}
    }
}

/// Limits are masked one resource at a time.
fn merge_limits(strong: Each<Rlimit>, weak: &Each<Rlimit>) -> Each<Rlimit> {
    let said: Vec<Resource> = strong.values().map(|limit| limit.resource).collect();
    let mut all = Each::default();
    let others = weak.stated().filter(|(limit, _)| !said.contains(&limit.resource));
    for (limit, source) in others.chain(strong.stated()) {
        all.add(*limit, source);
    }
    all
}
