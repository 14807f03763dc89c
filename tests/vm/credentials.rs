//! Credentials: what is handed to the container in secret.

use std::io::Write;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::guest::Guest;

cases![
    credentials_are_files_that_only_root_can_read,
    a_credential_may_hold_any_byte,
    credentials_are_kept_in_memory_and_cannot_be_changed,
    a_credential_is_read_from_a_file_or_a_socket,
    a_plain_name_is_one_of_the_callers_credentials,
    a_user_can_read_what_is_meant_for_it,
    without_credentials_there_is_no_place_for_them,
    what_cannot_be_handed_over_is_refused_by_name,
    a_secret_is_not_explained,
];

/// T-05.
fn credentials_are_files_that_only_root_can_read(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .args(["--set-credential=a:one", "--set-credential=b.c:"])
        .sh("cd $CREDENTIALS_DIRECTORY && pwd && stat -c '%n %a %u %g %s' . *")?
        .prints("/run/host/credentials\n. 500 0 0 0\na 400 0 0 3\nb.c 400 0 0 0")?;
    Ok(())
}

/// T-05: C escapes; the value may have colons.
fn a_credential_may_hold_any_byte(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .arg(r"--set-credential=a:x:\n\x00\377\\")
        .sh("od -An -tx1 /run/host/credentials/a")?
        .prints("78 3a 0a 00 ff 5c")?;
    Ok(())
}

/// T-05: a ramfs is never swapped out.
fn credentials_are_kept_in_memory_and_cannot_be_changed(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let container = t.container(&tree).arg("--set-credential=a:one");
    let seen = container.observe()?;
    let mount = seen.mount("/run/host/credentials")?;
    ensure!(mount.fs == "ramfs", "{mount:?}");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        ensure!(mount.has(option), "it is not {option}: {mount:?}");
    }
    container.sh("echo x > /run/host/credentials/a || rm /run/host/credentials/a")?.exits(1)?;
    Ok(())
}

/// T-05.
fn a_credential_is_read_from_a_file_or_a_socket(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut file = tempfile::NamedTempFile::new_in("/tmp").context("making a file")?;
    file.write_all(b"of a file").context("filling the file")?;
    let path = file.path().display();
    let script = "cat /run/host/credentials/a";
    t.container(&tree)
        .arg(format!("--load-credential=a:{path}"))
        .sh(script)?
        .prints("of a file")?;
    let dir = tempfile::tempdir().context("making a directory")?;
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).context("listening")?;
    let server = std::thread::spawn(move || -> Result<()> {
        listener.accept().context("waiting for the launcher")?.0.write_all(b"of a socket")?;
        Ok(())
    });
    let option = format!("--load-credential=a:{}", path.display());
    t.container(&tree).arg(option).sh(script)?.prints("of a socket")?;
    server.join().ok().context("the server failed")?
}

/// T-05, systemd-nspawn(1).
fn a_plain_name_is_one_of_the_callers_credentials(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let dir = tempfile::tempdir().context("making a directory")?;
    std::fs::write(dir.path().join("mine"), "passed on").context("making a credential")?;
    let container = t.container(&tree).arg("--load-credential=a:mine");
    let script = "cat /run/host/credentials/a";
    let path = dir.path().to_str().context("an odd directory")?;
    container.clone().caller_env("CREDENTIALS_DIRECTORY", path).sh(script)?.prints("passed on")?;
    container.sh(script)?.fails_with("redential")?;
    Ok(())
}

/// T-05. Needs a difference: systemd-nspawn 252 leaves them to root.
fn a_user_can_read_what_is_meant_for_it(t: &Guest) -> Result<()> {
    let getent = "case $1 in passwd) echo u:x:7:8::/: ;; *) echo u ;; esac";
    let tree = t.tree().script("usr/bin/getent", getent).build()?;
    t.container(&tree)
        .args(["-uu", "--set-credential=a:one"])
        .sh("cd $CREDENTIALS_DIRECTORY; stat -c '%a %u %g' . a; cat a")?
        .prints("500 7 8\n400 7 8\none")?;
    Ok(())
}

/// T-05, E-09.
fn without_credentials_there_is_no_place_for_them(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .caller_env("CREDENTIALS_DIRECTORY", "/run/credentials/of-the-host")
        .sh("echo ${CREDENTIALS_DIRECTORY-unset}; grep -c credentials /proc/mounts")?
        .exits(1)?;
    Ok(())
}

/// T-05.
fn what_cannot_be_handed_over_is_refused_by_name(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for (option, named) in [
        ("--set-credential=a/b:x", "a/b"),
        ("--set-credential=..:x", ".."),
        ("--set-credential=lonely", "lonely"),
        ("--load-credential=a:/no/such/file", "/no/such/file"),
        ("--load-credential=a:/etc", "/etc"),
        ("--load-credential=long:/dev/zero", "long"),
    ] {
        t.container(&tree).arg(option).sh("echo ran")?.fails_with(named)?;
    }
    let twice = ["--set-credential=twice:1", "--load-credential=twice:/etc/passwd"];
    t.container(&tree).args(twice).sh("echo ran")?.fails_with("twice")?;
    Ok(())
}

/// T-05: the content is in no output of ours.
fn a_secret_is_not_explained(t: &Guest) -> Result<()> {
    if t.subject() == harness::guest::Subject::Nspawn {
        // It explains nothing.
        return Ok(());
    }
    let tree = t.tree().build()?;
    for format in ["text", "json"] {
        let explain = format!("--explain={format}");
        let run = t.container(&tree).arg("--set-credential=a:hush").arg(explain).sh("true")?;
        run.succeeds()?;
        ensure!(run.text().contains("credentials") && !run.text().contains("hush"), "{run}");
    }
    Ok(())
}
