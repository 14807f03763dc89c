//! Does a session at a real terminal go as its user expects, and is the terminal sane afterwards?
//!
//! A shell in tmux(1), typed at. Each test ends with the modes of the terminal being those that it began with.
//! Waits are for text on the screen; the limit only keeps a failing test from hanging. Needs root and tmux, else each
//! test says why it shows nothing. The shell is dash, since bash would put the modes right itself.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use harness::fixture::tree::{Builder, Tree};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serial_test::file_serial;

/// After how long a test has failed: far more than any step takes.
const LIMIT: Duration = Duration::from_secs(30);

/// A shell in a tmux server of its own, and a tree. Fields go in this order.
struct Session {
    seen: String,
    output: Receiver<Vec<u8>>,
    tree: Tree,
    dir: tempfile::TempDir,
}

impl Session {
    /// `None` where nothing can be shown; says why.
    fn open(name: &str) -> Option<Self> {
        let tmux = Command::new("tmux").arg("-V").output().is_ok();
        let busybox = Path::new("/usr/bin/busybox").exists();
        if !rustix::process::geteuid().is_root() || !tmux || !busybox {
            eprintln!("skipped {name}: it needs root, tmux and busybox-static");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let tree = Builder::minimal(dir.path()).build().unwrap();
        let fifo = dir.path().join("screen");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::from(0o600)).unwrap();
        let (sender, output) = channel();
        let from = fifo.clone();
        // Ends when tmux does, which has the only writer.
        std::thread::spawn(move || {
            let mut screen = fs::File::open(from).unwrap();
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut piece) {
                if sender.send(piece[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut session = Self { seen: String::new(), output, tree, dir };
        session.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "PS1='host> ' ENV= exec dash"]);
        session.tmux(&["pipe-pane", &format!("cat > {}", fifo.display())]);
        session.types("echo ready-$((1+1))");
        session.sees("ready-2");
        session.prompts();
        session.types(&format!("stty -a > {}", session.file("before").display()));
        session.prompts();
        Some(session)
    }

    fn tmux(&self, words: &[&str]) -> Output {
        let output = Command::new("tmux")
            .args(["-f", "/dev/null", "-S"])
            .arg(self.file("socket"))
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "tmux {words:?}: {output:?}");
        output
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The words that start a container, to be typed.
    fn rspawn(&self) -> String {
        format!("{} -q -D {}", env!("CARGO_BIN_EXE_rspawn"), self.tree.path().display())
    }

    fn types(&self, line: &str) {
        self.tmux(&["send-keys", "-l", "--", line]);
        self.keys(&["Enter"]);
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "--"], keys].concat());
    }

    /// Waits until the screen shows `text` after what was waited for before. What is typed is echoed: `text` must not
    /// be part of it.
    fn sees(&mut self, text: &str) {
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.output.recv_timeout(LIMIT) {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(error) => panic!("{text:?} did not appear ({error}) after {:?}", self.seen),
            }
        }
    }

    /// Waits for the shell: what is typed ahead belongs to what still runs.
    fn prompts(&mut self) {
        self.sees("host> ");
    }

    /// Waits for the end of what was typed, then compares the terminal with how it was.
    fn ends_sane(&mut self, code: i32) {
        self.prompts();
        let after = self.file("after");
        self.types(&format!("echo code=$?; stty -a > {}; echo end-$((2+2))", after.display()));
        self.sees(&format!("code={code}\r"));
        self.sees("end-4");
        self.prompts();
        assert_eq!(self.modes("after"), self.modes("before"), "the terminal's modes changed");
    }

    /// What stty(1) has written to a file, but for the line with the size.
    fn modes(&self, name: &str) -> String {
        let text = fs::read_to_string(self.file(name)).unwrap();
        text.split_once('\n').unwrap().1.to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A test that closes the terminal has ended the server already.
        let socket = self.file("socket");
        let _ = Command::new("tmux").arg("-S").arg(socket).arg("kill-server").output();
    }
}

/// A descriptor that tells of a process's end, and the number to kill it by.
struct Process(Pid, OwnedFd);

impl Process {
    fn of(file: &Path) -> Self {
        let number: i32 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let pid = Pid::from_raw(number).unwrap();
        Self(pid, pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    fn ends(&self) {
        let limit = Timespec::try_from(LIMIT).unwrap();
        let ended = poll(&mut [PollFd::new(&self.1, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "process {:?} is still there", self.0);
    }
}

/// C-01, RUN-03.
#[test]
#[file_serial(tmux)]
fn a_shell_is_used_and_left() {
    let Some(mut session) = Session::open("shell") else { return };
    session.types(&session.rspawn());
    session.types("echo in-$((40+2)) $(tty) $0");
    session.sees("in-42 /dev/pts/0 -sh");
    // Line editing of the container's own.
    session.tmux(&["send-keys", "-l", "echo edixed"]);
    session.keys(&["BSpace", "BSpace", "BSpace"]);
    session.types("ted-$((6*7))");
    session.sees("edited-42");
    session.types("exit 5");
    session.ends_sane(5);
}

/// RUN-03: SIGWINCH, with the new size already set.
#[test]
#[file_serial(tmux)]
fn a_resized_window_is_told() {
    let Some(mut session) = Session::open("resize") else { return };
    let script = "trap 'echo now $(stty size)' WINCH; trap 'exit 3' INT; \
                  echo first $(stty size); while :; do sleep 0.1; done";
    session.types(&format!("{} sh -c \"{}\"", session.rspawn(), script.replace('$', "\\$")));
    session.sees("first 24 80");
    session.tmux(&["set-option", "-g", "window-size", "manual"]);
    session.tmux(&["resize-window", "-x", "101", "-y", "33"]);
    session.sees("now 33 101");
    session.keys(&["C-c"]);
    session.ends_sane(3);
}

/// RUN-03: raw, so the key is the payload's.
#[test]
#[file_serial(tmux)]
fn control_c_interrupts_the_command_inside() {
    let Some(mut session) = Session::open("interrupt") else { return };
    let script = "trap 'echo got-int; exit 7' INT; echo wait-ing; while :; do read line; done";
    session.types(&format!("{} sh -c \"{script}\"", session.rspawn()));
    session.sees("wait-ing\r");
    session.keys(&["C-c"]);
    session.sees("got-int\r");
    session.ends_sane(7);
}

/// RUN-02, C-03, RUN-13.
#[test]
#[file_serial(tmux)]
fn the_escape_key_thrice_kills_the_container() {
    let Some(mut session) = Session::open("escape") else { return };
    session.types(&format!("{} sh -c 'echo go; exec sleep 1000'", session.rspawn()));
    session.sees("go\r");
    session.keys(&["C-]", "C-]", "C-]"]);
    session.sees("killed by SIGKILL");
    session.ends_sane(1);
}

/// `--escape-key=`: none and another one.
#[test]
#[file_serial(tmux)]
fn the_escape_key_can_be_another_or_none() {
    let Some(mut session) = Session::open("other") else { return };
    let script = "stty raw -echo; echo go; head -c 4 | od -An -tx1; stty sane";
    session.types(&format!("{} --escape-key=none sh -c '{script}'", session.rspawn()));
    session.sees("go");
    session.keys(&["C-]", "C-]", "C-]", "x"]);
    session.sees("1d 1d 1d 78");
    session.ends_sane(0);
    session.types(&format!("{} --escape-key=ctrl-a sh -c 'echo go; sleep 1000'", session.rspawn()));
    session.sees("go\r");
    session.keys(&["C-a", "C-a", "C-a"]);
    session.sees("killed by SIGKILL");
    session.ends_sane(1);
}

/// Job control of the shell inside.
#[test]
#[file_serial(tmux)]
fn control_z_stops_a_job_inside() {
    let Some(mut session) = Session::open("stop") else { return };
    session.types(&session.rspawn());
    session.types("echo up-$((1+1))");
    session.sees("up-2");
    session.types("sh -c 'echo on; read line; echo got $line'");
    session.sees("on\r");
    session.keys(&["C-z"]);
    session.sees("Stopped");
    session.types("fg");
    session.types("word");
    session.sees("got word");
    session.types("exit");
    session.ends_sane(0);
}

/// In the background nothing is read and no mode is changed; in the foreground both happen.
#[test]
#[file_serial(tmux)]
fn a_container_in_the_background_leaves_the_terminal_alone() {
    let Some(mut session) = Session::open("background") else { return };
    session.types("set -m");
    session.prompts();
    let script = "echo started; read line; echo got $line";
    session.types(&format!("{} sh -c '{script}' &", session.rspawn()));
    session.sees("started");
    let during = session.file("during");
    session.types(&format!("stty -a > {}; echo mine-$((3+3))", during.display()));
    session.sees("mine-6");
    session.prompts();
    assert_eq!(session.modes("during"), session.modes("before"), "changed from the background");
    session.types("fg");
    session.types("theirs");
    session.sees("got theirs");
    session.ends_sane(0);
}

/// 4.1 #17: stopped from outside as a whole job, with the shell's modes in between.
#[test]
#[file_serial(tmux)]
fn a_stopped_launcher_gives_the_terminal_back() {
    let Some(mut session) = Session::open("suspend") else { return };
    session.types("set -m");
    session.prompts();
    let pid = session.file("pid");
    let script = "echo started; read line; echo got $line";
    let start = format!("sh -c 'echo $$ > {}; exec \"$@\"' sh", pid.display());
    session.types(&format!("{start} {} sh -c '{script}'", session.rspawn()));
    session.sees("started\r");
    kill_process(Process::of(&pid).0, Signal::STOP).unwrap();
    session.sees("Stopped");
    session.prompts();
    // Nobody can react to SIGSTOP, so the terminal is raw: a line ends with what Enter stands for otherwise.
    session.tmux(&["send-keys", "-l", "--", "stty sane; echo shell-$((5+5))"]);
    session.keys(&["C-j"]);
    session.sees("shell-10");
    session.prompts();
    session.types("fg");
    session.types("again");
    session.sees("got again");
    session.prompts();
    session.types("echo done-$((8+8))");
    session.sees("done-16");
}

/// E-09: a reader downstream gets plain text, and the terminal keeps its modes.
#[test]
#[file_serial(tmux)]
fn a_pipeline_works_as_of_any_command() {
    let Some(mut session) = Session::open("pipeline") else { return };
    session.types(&format!(
        "{} sh -c 'echo a; test -t 1 || echo no-tty-$((1+1))' | cat -A",
        session.rspawn()
    ));
    session.sees("a$\r");
    session.sees("no-tty-2$\r");
    session.prompts();
    session.types(&format!("{} sh -c 'yes' | head -n 2", session.rspawn()));
    session.sees("y\r\ny\r");
    session.ends_sane(0);
}

/// C-01: the end of the input is there at once.
#[test]
#[file_serial(tmux)]
fn no_input_ends_a_reader_at_once() {
    let Some(mut session) = Session::open("null") else { return };
    session.types(&format!("{} sh -c 'cat; exit 6' < /dev/null", session.rspawn()));
    session.ends_sane(6);
}

/// RUN-07, R8: SIGHUP ends the container; its tree is free again.
#[test]
#[file_serial(tmux)]
fn closing_the_terminal_ends_the_container() {
    let Some(mut session) = Session::open("close") else { return };
    let pid = session.file("pid");
    let start = format!("sh -c 'echo $$ > {}; exec \"$@\"' sh", pid.display());
    session.types(&format!("{start} {} sh -c 'echo go; exec sleep 1000'", session.rspawn()));
    session.sees("go\r");
    let launcher = Process::of(&pid);
    session.tmux(&["kill-session"]);
    launcher.ends();
    let mut again = Command::new(env!("CARGO_BIN_EXE_rspawn"));
    let output = again.arg("-qD").arg(session.tree.path()).arg("true").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// R7, R12: nothing of us is left to put the modes back but the watch.
#[test]
#[file_serial(tmux)]
fn a_killed_launcher_leaves_a_sane_terminal() {
    let Some(mut session) = Session::open("killed") else { return };
    let pid = session.file("pid");
    let start = format!("sh -c 'echo $$ > {}; exec \"$@\"' sh", pid.display());
    session.types(&format!("{start} {} sh -c 'echo go; exec sleep 1000'", session.rspawn()));
    session.sees("go\r");
    let launcher = Process::of(&pid);
    kill_process(launcher.0, Signal::KILL).unwrap();
    launcher.ends();
    session.sees("Killed");
    session.prompts();
    // The watch acts when the launcher's pipe closes, which may be a moment after the shell goes on.
    let (before, after) = (session.file("before"), session.file("after"));
    let compare = format!("stty -a > {0} && cmp -s {0} {1}", after.display(), before.display());
    session.types(&format!("until {compare}; do :; done; echo sane-$((7+7))"));
    session.sees("sane-14");
    assert_eq!(session.modes("after"), session.modes("before"));
}
