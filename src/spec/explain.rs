//! How is a `Spec` shown? As text for people and as JSON for programs, from one list of facts.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{Calls, Knobs, Limits, Network, Shares, Spec, Start, Users, WhichIds};
use crate::mounts::{Mount, custom, labelled, table};
use crate::root::{Access, Keep, Ladder, LayerSpec, RootSpec, Rung};
use crate::settings::value::{Delegate, EphemeralReboot, Volatile};
use crate::userns::range::USUAL_COUNT;

/// The spec and the mount table, one fact or row a line.
pub fn explain(spec: &Spec) -> String {
    let mut text = String::new();
    for (name, value) in facts(spec) {
        text.push_str(&format!("{name:<14} {value}\n"));
    }
    for row in rows(spec) {
        text.push_str(&format!("mount          {row}\n"));
    }
    text
}

/// The same as one JSON object; its `mounts` are the rows as text.
pub fn json(spec: &Spec) -> String {
    let mut object = Map::new();
    for (name, value) in facts(spec) {
        object.insert(name.to_owned(), Value::String(value));
    }
    let rows = rows(spec).iter().map(|row| Value::String(row.to_string())).collect();
    object.insert("mounts".to_owned(), Value::Array(rows));
    format!("{:#}\n", Value::Object(object))
}

fn rows(spec: &Spec) -> Vec<Mount> {
    let mut rows = labelled(table(&spec.api), spec.labels.files.as_deref());
    rows.extend(custom(&spec.mounts));
    rows
}

fn facts(spec: &Spec) -> Vec<(&'static str, String)> {
    let mut facts = vec![("machine", spec.machine.clone()), ("hostname", spec.hostname.clone())];
    if let Some(uuid) = &spec.uuid {
        facts.push(("uuid", uuid.clone()));
    }
    facts.push(("root", root(&spec.root)));
    if let Some(pivot) = &spec.pivot {
        facts.push(("pivot-root", pivot.to_string()));
    }
    if spec.users != Users::Host {
        facts.push(("users", users(&spec.users)));
    }
    if spec.volatile != Volatile::No {
        facts.push(("volatile", spec.volatile.to_string()));
    }
    facts.push(("start", start(&spec.start)));
    if spec.has_stub {
        facts.push(("process-1", "a stub; the payload is process 2".to_owned()));
    }
    facts.push(("user", spec.user.to_string()));
    if !spec.bound_users.is_empty() {
        let users: Vec<_> = spec.bound_users.iter().map(ToString::to_string).collect();
        facts.push(("bound-users", users.join(", ")));
    }
    if let Some(dir) = &spec.chdir {
        facts.push(("chdir", dir.display().to_string()));
    }
    let environment = spec.environment.iter().map(|(name, value)| format!("{name}={value}"));
    facts.push(("environment", environment.collect::<Vec<_>>().join(" ")));
    if !spec.credentials.is_empty() {
        let credentials: Vec<_> = spec.credentials.iter().map(ToString::to_string).collect();
        facts.push(("credentials", credentials.join(", ")));
    }
    let network = match spec.network {
        Network::Host => "the host's",
        Network::Private => "private, loopback only",
    };
    facts.push(("network", network.to_owned()));
    let console = if spec.wiring.pty { "pseudo-terminal" } else { "our own streams" };
    let integration = &spec.integration;
    facts.push(("name-servers", integration.name_servers.to_string()));
    facts.push(("time-zone", integration.time_zone.to_string()));
    facts.push(("journal", integration.journal.to_string()));
    facts.push(("console", console.to_owned()));
    if spec.wiring.pty {
        facts.push(("escape-key", spec.escape_key.to_string()));
    }
    facts.extend(spec.background.iter().map(|colour| ("background", colour.clone())));
    if spec.handover.count() > 0 {
        facts.push(("handed-over", format!("{} descriptors, from 3 on", spec.handover.count())));
    }
    let Shares { pid, uts, ipc } = spec.shares;
    for (shared, name) in [(pid, "pid"), (uts, "uts"), (ipc, "ipc")] {
        if shared {
            facts.push(("namespace", format!("the host's for {name}")));
        }
    }
    if let Some(signal) = spec.kill_signal {
        facts.push(("asked-to-end", format!("by {signal}")));
    }
    if spec.notify_ready {
        facts.push(("ready", "when the container says so".to_owned()));
    }
    if spec.knobs != Knobs::default() {
        facts.push(("variables", knobs(&spec.knobs)));
    }
    facts.push(("capabilities", spec.capabilities.to_string()));
    if !spec.ambient.is_empty() {
        facts.push(("ambient", spec.ambient.to_string()));
    }
    if spec.no_new_privileges {
        facts.push(("privileges", "none can be gained by exec".to_owned()));
    }
    facts.push(("system-calls", calls(spec.calls.as_ref())));
    for (what, label) in [("label", &spec.labels.process), ("label-of-files", &spec.labels.files)] {
        facts.extend(label.iter().map(|label| (what, label.clone())));
    }
    if spec.limits != Limits::default() {
        facts.push(("limits", limits(&spec.limits)));
    }
    facts.push(("exit-mode", spec.exit_mode.to_string()));
    facts
}

fn root(root: &RootSpec) -> String {
    let shown = root.source().display();
    let access = if root.access() == Access::Read { ", read-only" } else { "" };
    match root {
        RootSpec::Directory { .. } => format!("the directory {shown}{access}"),
        RootSpec::Template { from, .. } => {
            let from = from.display();
            format!("the directory {shown}{access}, filled from {from} if it does not exist")
        }
        RootSpec::Ephemeral { layer, .. } => {
            format!("a throw-away layer over {shown}{access}: {}", layer_of(layer))
        }
        RootSpec::Image { policy, verity, throw_away, .. } => {
            let policy = policy.as_ref().map(|policy| format!(", by the policy {policy}"));
            let hash = verity.hash.as_ref().map(|hash| format!(", verified by {hash}"));
            let policy = policy.unwrap_or_default() + &hash.unwrap_or_default();
            match throw_away {
                None => format!("the image {shown}{access}{policy}"),
                Some(Ladder { rungs, elsewhere }) => {
                    let ladder = ladder(rungs, elsewhere);
                    format!("the image {shown}, not changed{access}{policy}: {ladder}")
                }
            }
        }
    }
}

fn layer_of(layer: &LayerSpec) -> String {
    let Ladder { rungs, elsewhere } = &layer.ladder;
    let mut text = match (&rungs[..], layer.beside) {
        ([Rung::Tmpfs], _) => "in memory".to_owned(),
        (_, true) => ladder(rungs, elsewhere),
        (_, false) => format!("{}; in {}", among(rungs), places(elsewhere)),
    };
    if layer.on_reboot == EphemeralReboot::Reset {
        text.push_str(", new after a reboot");
    }
    match &layer.on_failure {
        Keep::No => {}
        Keep::There => text.push_str(", kept after a failure"),
        Keep::In(place) => text.push_str(&format!(", kept in {} after a failure", place.display())),
    }
    text
}

fn among(rungs: &[Rung]) -> String {
    rungs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", else ")
}

fn places(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn ladder(rungs: &[Rung], elsewhere: &[PathBuf]) -> String {
    format!("{}; next to it, else in {}", among(rungs), places(elsewhere))
}

fn users(users: &Users) -> String {
    let (ids, delegated, ownership) = match users {
        Users::Host => return "the host's".to_owned(),
        Users::Caller(map) => return format!("those of our user: {map}"),
        Users::Private { ids, delegated, ownership } => (ids, delegated, ownership),
    };
    let ids = match ids {
        WhichIds::OfTree => "the range of the tree's owner".to_owned(),
        WhichIds::Pick => "the range of the tree's owner if it is free, else another".to_owned(),
        WhichIds::Range(range) => format!("the range {range}"),
        WhichIds::Map(map) => format!("the maps {map}"),
    };
    let further = match delegated {
        Delegate(0) => String::new(),
        count => format!(", and {count} further ranges of {USUAL_COUNT} for containers inside"),
    };
    format!("{ids}{further}; owners: {ownership}")
}

fn start(start: &Start) -> String {
    let words = |words: &[std::ffi::OsString]| {
        let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
        words.join(" ")
    };
    match start {
        Start::Init { arguments } => format!("an init, with [{}]", words(arguments)),
        Start::Command { words: command } => words(command),
        Start::Shell => "a login shell".to_owned(),
    }
}

fn calls(calls: Option<&Calls>) -> String {
    let Some(calls) = calls else { return "not filtered".to_owned() };
    let mut text = "filtered".to_owned();
    for (what, names) in [("also", &calls.lists.allow), ("without", &calls.lists.deny)] {
        if !names.is_empty() {
            text.push_str(&format!(", {what} {}", names.join(" ")));
        }
    }
    if calls.suppress_sync {
        text.push_str(", syncing does nothing");
    }
    if let Some(families) = &calls.families {
        text.push_str(&format!(", sockets: {families}"));
    }
    text
}

fn limits(limits: &Limits) -> String {
    let mut words: Vec<_> = limits.resources.iter().map(ToString::to_string).collect();
    words.extend(limits.oom_score.map(|score| format!("oom-score={score}")));
    if !limits.cpus.is_empty() {
        words.push(format!("cpus={:?}", limits.cpus));
    }
    words.extend(limits.personality.map(|personality| format!("personality={personality:?}")));
    words.join(" ")
}

fn knobs(knobs: &Knobs) -> String {
    let mut words = Vec::new();
    words.extend((!knobs.locks).then(|| "the root is not locked".to_owned()));
    words.extend((!knobs.checks_os_release).then(|| "os-release is not looked for".to_owned()));
    words.extend((!knobs.cgroup_namespace).then(|| "the host's cgroups are seen".to_owned()));
    if knobs.service != Knobs::default().service {
        words.push(format!("container={}", knobs.service));
    }
    words.join(", ")
}
