//! argv in, exit code out. Prints the one error there is.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rspawn::audience::Audience;
use rspawn::cli::{self, Invocation};
use rspawn::errors::{Report, warn};
use rspawn::handover::Handover;
use rspawn::host::Host;
use rspawn::settings::value::{ExitMode, Explain};
use rspawn::settings::{Settings, gather};
use rspawn::sys::process::keep_ended_children;
use rspawn::{exit, handover, host, mounts, root, spec, stage, tell, userns};

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(usage) => {
            tell!("rspawn: {}\nhint: {}", usage.message, usage.hint);
            return ExitCode::from(exit::of_failure(cli::exit_mode(std::env::args_os()), None));
        }
    };
    let (exit_mode, status_fd) = match &invocation {
        Invocation::Run(settings) => {
            let fd = settings.status_fd.value().map(|fd| fd.0);
            (settings.exit_mode.or(ExitMode::Nspawn), fd)
        }
        _ => (ExitMode::Nspawn, None),
    };
    let mut audience = Audience::default();
    // Nothing that our caller has left open may reach the payload (FDS-01); nothing of ours is open yet.
    let inherited = handover::inherit(|name| std::env::var_os(name), status_fd);
    let result = inherited.and_then(|inherited| {
        audience = Audience::new(inherited.status);
        act(invocation, inherited.handover, &mut audience)
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut report = Report::of(&error);
            if report.is_about_rights() {
                report.hint = report.hint.or_else(host::why_not_permitted);
            }
            let code = exit::of_failure(exit_mode, None);
            audience.failed(&report, code);
            tell!("{report}");
            ExitCode::from(code)
        }
    }
}

fn act(invocation: Invocation, handover: Handover, audience: &mut Audience) -> Result<u8> {
    keep_ended_children();
    let host = Host::look(handover);
    match invocation {
        Invocation::Print(text) => print(&text),
        Invocation::Explain(format, settings) => {
            let spec = decide(*settings, &host)?;
            match format {
                Explain::Text => print(&spec::explain(&spec)),
                Explain::Json => print(&spec::json(&spec)),
            }
        }
        Invocation::Cleanup(settings) => {
            let spec = decide(*settings, &host)?;
            userns::become_root(&spec.users)?;
            let mut places = mounts::places_of_work(&spec.mounts);
            places.extend(spec.scratch_places);
            root::sweep(spec.root.source(), &places);
            rspawn::cgroup::collect();
            Ok(0)
        }
        Invocation::Run(settings) => {
            audience.find_manager()?;
            stage::run(&decide(*settings, &host)?, audience)
        }
    }
}

fn decide(settings: Settings, host: &Host) -> Result<spec::Spec> {
    let (settings, problems) = gather(settings, host)?;
    for problem in problems {
        warn(problem);
    }
    spec::resolve(&settings, host)
}

fn print(text: &str) -> Result<u8> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
        other => other.map(|()| 0).context("writing to stdout"),
    }
}
