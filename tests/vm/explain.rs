//! `--explain`: what would be done, without doing it. systemd-nspawn has no such option.

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::tree::Builder;
use harness::guest::{Guest, Subject};

cases![
    explain_touches_nothing_and_needs_no_root: [Need::Only(Subject::Rspawn)],
    explain_as_json_is_json: [Need::Only(Subject::Rspawn)],
    explain_tells_what_was_decided: [Need::Only(Subject::Rspawn)],
];

const ORDINARY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];

/// 1.1 of the architecture: nothing on the machine is touched before the plan exists.
fn explain_touches_nothing_and_needs_no_root(t: &Guest) -> Result<()> {
    let tree = Builder::minimal(t.scratch()).build()?;
    let before = tree.listing()?;
    let option = format!("--bind={}:/mnt/place", tree.path().display());
    for through in [&[][..], ORDINARY] {
        let run = t
            .container(&tree)
            .through(through)
            .args(["-x", "--explain"])
            .arg(&option)
            .sh("exit 3")?;
        run.succeeds()?;
        for word in ["/proc", "/dev/pts", "/mnt/place", &tree.path().display().to_string()] {
            ensure!(run.text().contains(word), "it does not tell of {word}\n{run}");
        }
    }
    tree.listing()?.same_as(&before)
}

/// What was said shows in what would be done.
fn explain_tells_what_was_decided(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let said = [
        "--explain",
        "--console=interactive",
        "--escape-key=ctrl-a",
        "--background=44",
        "--no-new-privileges=yes",
        "--ambient-capability=CAP_KILL",
        "--exit-mode=shell",
        "--hostname=elsewhere",
    ];
    let run = t.container(&tree).through(ORDINARY).args(said).sh("exit 3")?;
    run.succeeds()?;
    let text = run.text().to_lowercase();
    for fact in ["^a", "44", "none can be gained", "cap_kill", "shell", "elsewhere"] {
        ensure!(text.contains(fact), "it does not tell {fact}\n{run}");
    }
    Ok(())
}

fn explain_as_json_is_json(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).through(ORDINARY).arg("--explain=json").sh("exit 3")?;
    run.succeeds()?;
    let value: serde_json::Value =
        serde_json::from_slice(&run.stdout).with_context(|| format!("{run}"))?;
    ensure!(value.is_object() && run.text().contains("/dev/pts"), "something is missing\n{run}");
    Ok(())
}
