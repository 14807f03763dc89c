//! Does the forwarder carry bytes, modes and sizes between two real pseudo-terminals?
//!
//! `user` is the terminal that somebody sits at: its slave is what rspawn was started on, its master is
//! the person. `guest` is the container's pty: its slave is what the payload has.

use super::*;
use crate::console::mode::{Stream, resolve};
use crate::console::pty::{self, Pty};
use rstest::rstest;
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Winsize, tcsetattr,
};
use std::fs::File;
use std::io::{Read, Seek, Write};

fn new_pty() -> Pty {
    let pty = pty::open(File::open("/dev/pts").unwrap().as_fd()).unwrap();
    rustix::io::ioctl_fionbio(&pty.slave, true).unwrap();
    pty
}

/// A forwarder between the given streams and a new pty of a container.
struct Scene {
    forwarder: Forwarder,
    slave: OwnedFd,
    hotkeys: Vec<Hotkey>,
}

impl Scene {
    fn new(wiring: &Wiring, stdin: impl AsFd, stdout: impl AsFd, stderr: impl AsFd) -> Scene {
        let streams =
            Streams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
        let mut forwarder = Forwarder::new(wiring, EscapeKey::default(), streams).unwrap();
        let guest = new_pty();
        forwarder.connect(guest.master).unwrap();
        Scene { forwarder, slave: guest.slave, hotkeys: Vec::new() }
    }

    /// All three streams are the user's terminal.
    fn interactive(user: &Pty) -> Scene {
        Scene::new(&resolve(None, true, true, true), &user.slave, &user.slave, &user.slave)
    }

    /// Runs the loop until `done` holds, which is asked after each event; fails when nothing happens.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Scene) -> bool) {
        while !done(self) {
            let mut wait = [PollFd::new(&self.forwarder, PollFlags::IN)];
            let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
            let count = rustix::event::poll(&mut wait, Some(&limit)).unwrap();
            assert_ne!(count, 0, "nothing happens any more, waiting for {what}");
            self.hotkeys.extend(self.forwarder.on_ready(Instant::now()).unwrap());
        }
    }

    /// Runs the loop until `from` has given `expected`, and fails if it gives anything else.
    fn expect(&mut self, from: impl AsFd, expected: &[u8]) {
        let mut seen = Vec::new();
        self.until(&format!("{:?}", String::from_utf8_lossy(expected)), |_| {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = rustix::io::read(from.as_fd(), &mut piece) {
                seen.extend_from_slice(&piece[..count]);
            }
            assert!(expected.starts_with(&seen[..seen.len().min(expected.len())]), "{seen:?}");
            seen.len() >= expected.len()
        });
        assert_eq!(String::from_utf8_lossy(&seen), String::from_utf8_lossy(expected));
    }

    fn expect_at_slave(&mut self, expected: &[u8]) {
        let slave = self.slave.try_clone().unwrap();
        self.expect(slave, expected);
    }

    /// What the payload reads until a read gives nothing.
    fn input_until_its_end(&mut self) -> Vec<u8> {
        let mut seen = Vec::new();
        self.until("the end of the input", |scene| {
            let mut piece = [0; 4096];
            loop {
                match rustix::io::read(&scene.slave, &mut piece) {
                    Ok(0) => return true,
                    Ok(count) => seen.extend_from_slice(&piece[..count]),
                    Err(_) => return false,
                }
            }
        });
        seen
    }

    fn print(&self, text: &[u8]) {
        File::from(self.slave.try_clone().unwrap()).write_all(text).unwrap();
    }
}

fn type_at(user: &Pty, text: &[u8]) {
    File::from(user.master.try_clone().unwrap()).write_all(text).unwrap();
}

fn local(fd: impl AsFd) -> LocalModes {
    tcgetattr(fd).unwrap().local_modes
}

fn change(fd: impl AsFd, change: impl FnOnce(&mut Termios)) {
    let mut modes = tcgetattr(&fd).unwrap();
    change(&mut modes);
    tcsetattr(&fd, OptionalActions::Now, &modes).unwrap();
}

fn nonblocking_reader(reader: &io::PipeReader) {
    rustix::io::ioctl_fionbio(reader, true).unwrap();
}

#[test]
fn a_line_goes_in_and_its_echo_and_the_answer_come_out() {
    let user = new_pty();
    let mut scene = Scene::interactive(&user);
    type_at(&user, b"ls\r");
    scene.expect_at_slave(b"ls\n");
    scene.print(b"file\n");
    scene.expect(&user.master, b"ls\r\nfile\r\n");
    assert!(!scene.forwarder.ended_midline());
    scene.print(b"$ ");
    scene.expect(&user.master, b"$ ");
    assert!(scene.forwarder.ended_midline());
}

#[test]
fn the_terminal_is_raw_while_forwarding_and_as_before_afterwards() {
    let user = new_pty();
    let before = tcgetattr(&user.slave).unwrap();
    let scene = Scene::interactive(&user);
    let raw = tcgetattr(&user.slave).unwrap();
    assert!(!raw.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
    assert!(!raw.output_modes.contains(OutputModes::OPOST));
    scene.forwarder.close().unwrap();
    let after = tcgetattr(&user.slave).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.output_modes, before.output_modes);
}

#[test]
fn a_terminal_that_a_shell_has_reset_is_raw_again_before_it_is_read() {
    let user = new_pty();
    let before = tcgetattr(&user.slave).unwrap();
    let mut scene = Scene::interactive(&user);
    tcsetattr(&user.slave, OptionalActions::Now, &before).unwrap();
    type_at(&user, b"ls\r");
    scene.expect_at_slave(b"ls\n");
    assert!(!local(&user.slave).contains(LocalModes::ICANON));
}

#[test]
fn the_shared_terminal_never_becomes_nonblocking() {
    let user = new_pty();
    rustix::io::ioctl_fionbio(&user.slave, false).unwrap();
    let _scene = Scene::interactive(&user);
    let flags = rustix::fs::fcntl_getfl(&user.slave).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn the_size_is_copied_at_the_start_and_when_it_changes() {
    let user = new_pty();
    let size = |rows| Winsize { ws_row: rows, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&user.slave, size(33)).unwrap();
    let mut scene = Scene::interactive(&user);
    assert_eq!(rustix::termios::tcgetwinsize(&scene.slave).unwrap().ws_row, 33);
    rustix::termios::tcsetwinsize(&user.slave, size(44)).unwrap();
    scene.forwarder.on_winch().unwrap();
    assert_eq!(rustix::termios::tcgetwinsize(&scene.slave).unwrap().ws_row, 44);
}

#[test]
fn hotkeys_are_reported_and_their_last_byte_is_kept_back() {
    let user = new_pty();
    let mut scene = Scene::interactive(&user);
    change(&scene.slave, |modes| modes.make_raw());
    type_at(&user, b"\x1d\x1drx");
    scene.expect_at_slave(b"\x1d\x1dx");
    assert_eq!(scene.hotkeys, [Hotkey::Reboot]);
}

#[test]
fn a_slave_that_is_closed_and_opened_again_is_heard() {
    let user = new_pty();
    let mut scene = Scene::interactive(&user);
    scene.print(b"one\n");
    scene.expect(&user.master, b"one\r\n");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&scene.slave));
    let path = std::fs::read_link(path).unwrap();
    scene.slave = File::open("/dev/null").unwrap().into();
    scene.until("the end of the slave", |scene| scene.forwarder.is_drained());
    // A hang-up that stays must not keep the loop busy: once told, the descriptor is quiet.
    scene.forwarder.on_ready(Instant::now()).unwrap();
    let mut wait = [PollFd::new(&scene.forwarder, PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut wait, Some(&Timespec::default())).unwrap(), 0);
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    scene.slave = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
    scene.print(b"two\n");
    scene.expect(&user.master, b"two\r\n");
}

#[test]
fn what_the_payload_printed_last_is_shown_before_the_end() {
    let mut file = tempfile::tempfile().unwrap();
    let null = File::open("/dev/null").unwrap();
    let read_only = resolve(Some("read-only".parse().unwrap()), false, false, false);
    let mut scene = Scene::new(&read_only, &null, &file, &null);
    scene.print(&[b'x'; 3000]);
    scene.slave = null.into();
    assert!(scene.forwarder.drain(Duration::from_secs(10)).unwrap());
    file.rewind().unwrap();
    let mut text = Vec::new();
    file.read_to_end(&mut text).unwrap();
    assert_eq!(text, [b'x'; 3000]);
}

#[test]
fn draining_gives_up_on_a_reader_that_does_not_read() {
    let (reader, writer) = io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let mut full = writer.try_clone().unwrap();
    full.write_all(&[0; 65536]).unwrap();
    let read_only = resolve(Some("read-only".parse().unwrap()), false, false, false);
    let mut scene = Scene::new(&read_only, &null, &writer, &null);
    scene.print(b"lost");
    assert!(!scene.forwarder.drain(Duration::from_millis(1)).unwrap());
    drop(reader);
    assert!(scene.forwarder.drain(Duration::from_secs(10)).unwrap());
}

#[test]
fn a_slow_reader_holds_the_payload_back_and_loses_nothing() {
    let (mut reader, writer) = io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let read_only = resolve(Some("read-only".parse().unwrap()), false, false, false);
    let mut scene = Scene::new(&read_only, &null, &writer, &null);
    drop(writer);
    change(&scene.slave, |modes| modes.make_raw());
    let mut sent = 0;
    let mut print = |scene: &Scene| {
        while let Ok(count) = rustix::io::write(&scene.slave, &[b'x'; 1000]) {
            sent += count;
            assert!(sent < 1 << 20, "nobody reads, yet the payload is not held back");
        }
    };
    // Until neither side moves: the pipe, the buffer and the pty are full.
    loop {
        print(&scene);
        let mut wait = [PollFd::new(&scene.forwarder, PollFlags::IN)];
        if rustix::event::poll(&mut wait, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }))
            .unwrap()
            == 0
        {
            break;
        }
        scene.forwarder.on_ready(Instant::now()).unwrap();
    }
    nonblocking_reader(&reader);
    let mut seen = 0;
    scene.until("all that was printed", |_| {
        let mut piece = [0; 65536];
        while let Ok(count @ 1..) = reader.read(&mut piece) {
            seen += count;
        }
        seen == sent
    });
}

#[test]
fn a_payload_outlives_the_reader_of_its_output() {
    let (reader, writer) = io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let read_only = resolve(Some("read-only".parse().unwrap()), false, false, false);
    let mut scene = Scene::new(&read_only, &null, &writer, &null);
    drop(reader);
    for _ in 0..100 {
        scene.print(&[b'x'; 1000]);
        scene.until("the output to be dropped", |scene| scene.forwarder.is_drained());
        scene.forwarder.begin_drain().unwrap();
    }
}

#[rstest]
#[case::at_the_start_of_a_line(b"one\ntwo\n", b"one\ntwo\n")]
#[case::in_the_middle_of_a_line(b"one\ntwo", b"one\ntwo")]
#[case::nothing_at_all(b"", b"")]
fn a_file_as_stdin_goes_in_whole_and_ends(#[case] text: &[u8], #[case] expected: &[u8]) {
    let mut stdin = tempfile::tempfile().unwrap();
    stdin.write_all(text).unwrap();
    stdin.rewind().unwrap();
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    let interactive = resolve(Some("interactive".parse().unwrap()), false, false, false);
    let mut scene =
        Scene::new(&interactive, &stdin, null.as_ref().unwrap(), null.as_ref().unwrap());
    let seen = scene.input_until_its_end();
    assert_eq!(seen, expected);
}

#[test]
fn a_large_file_as_stdin_is_not_lost_in_the_line_discipline() {
    let mut stdin = tempfile::tempfile().unwrap();
    let text: Vec<u8> = (0..20_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    stdin.write_all(&text).unwrap();
    stdin.rewind().unwrap();
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    let interactive = resolve(Some("interactive".parse().unwrap()), false, false, false);
    let mut scene =
        Scene::new(&interactive, &stdin, null.as_ref().unwrap(), null.as_ref().unwrap());
    for _ in 0..20 {
        scene.forwarder.on_ready(Instant::now()).unwrap();
    }
    let waiting = scene.forwarder.pty.as_ref().unwrap().to_pty.len();
    assert!((1..=BUFFER_BYTES).contains(&waiting), "{waiting} bytes wait for a payload");
    scene.expect_at_slave(&text);
}

/// stdin and stderr are the user's terminal, stdout is something else.
fn pipeline(user: &Pty) -> Scene {
    let null = File::open("/dev/null").unwrap();
    let wiring = resolve(None, true, false, true);
    assert_eq!((wiring.stdout, wiring.keyboard), (Stream::Inherit, Keyboard::Follow));
    Scene::new(&wiring, &user.slave, null, &user.slave)
}

#[test]
fn in_a_pipeline_the_terminal_edits_lines_until_the_payload_says_otherwise() {
    let user = new_pty();
    let before = local(&user.slave);
    let mut scene = pipeline(&user);
    assert_eq!(local(&user.slave), before);
    type_at(&user, b"abx\x7fc\n");
    scene.expect_at_slave(b"abc\n");
    scene.expect(&user.master, b"abx\x08 \x08c\r\n");
    change(&scene.slave, |modes| modes.local_modes -= LocalModes::ECHO);
    scene.until("echo off", |_| !local(&user.slave).contains(LocalModes::ECHO));
    assert!(local(&user.slave).contains(LocalModes::ICANON));
    change(&scene.slave, |modes| modes.local_modes |= LocalModes::ECHO);
    scene.until("echo on", |_| local(&user.slave) == before);
}

#[test]
fn in_a_pipeline_a_payload_that_sets_raw_mode_gets_each_key() {
    let user = new_pty();
    let mut scene = pipeline(&user);
    change(&scene.slave, |modes| {
        modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        modes.special_codes[SpecialCodeIndex::VMIN] = 0;
    });
    scene.until("single keys", |_| !local(&user.slave).contains(LocalModes::ICANON));
    type_at(&user, b"q");
    scene.expect_at_slave(b"q");
}

#[test]
fn in_a_pipeline_the_end_of_input_key_ends_the_input() {
    let user = new_pty();
    let mut scene = pipeline(&user);
    type_at(&user, b"last\n\x04");
    assert_eq!(scene.input_until_its_end(), b"last\n");
}

#[test]
fn in_a_pipeline_one_end_of_input_key_ends_one_input() {
    let user = new_pty();
    let mut scene = pipeline(&user);
    type_at(&user, b"part\x04");
    scene.expect_at_slave(b"part");
    type_at(&user, b"\x04");
    assert_eq!(scene.input_until_its_end(), b"");
    assert_eq!(rustix::io::read(&scene.slave, &mut [0; 8]), Err(rustix::io::Errno::AGAIN));
    // The next reader, a shell after its command, still has its own input.
    type_at(&user, b"next\r");
    scene.expect_at_slave(b"next\n");
}

#[test]
fn in_a_pipeline_keys_are_not_taken_from_a_pager() {
    let user = new_pty();
    let mut scene = pipeline(&user);
    let before = tcgetattr(&user.slave).unwrap();
    change(&user.slave, |modes| modes.local_modes -= LocalModes::ICANON);
    type_at(&user, b"q");
    scene.print(b"done\n");
    scene.expect(&user.master, b"q\x64one\r\r\n");
    assert_eq!(rustix::io::read(&user.slave, &mut [0; 8]), Ok(1), "the pager's key is still there");
    // The pager is done, and what is typed now is for the payload.
    tcsetattr(&user.slave, OptionalActions::Now, &before).unwrap();
    type_at(&user, b"yes\n");
    scene.expect_at_slave(b"yes\n");
}

#[test]
fn a_payload_that_resets_its_terminal_still_gets_lines() {
    let user = new_pty();
    let mut scene = pipeline(&user);
    change(&scene.slave, |modes| modes.local_modes -= LocalModes::EXTPROC);
    scene.until("raw input", |_| !local(&user.slave).contains(LocalModes::ICANON));
    assert!(tcgetattr(&user.slave).unwrap().output_modes.contains(OutputModes::OPOST));
    type_at(&user, b"abc\r");
    scene.expect_at_slave(b"abc\n");
}

#[test]
fn with_stdin_elsewhere_keys_are_read_only_once_the_payload_asks() {
    let user = new_pty();
    let null = File::open("/dev/null").unwrap();
    let wiring = resolve(None, false, true, true);
    let mut scene = Scene::new(&wiring, null, &user.slave, &user.slave);
    type_at(&user, b"ahead\n");
    scene.print(b"done\n");
    scene.expect(&user.master, b"ahead\r\ndone\r\r\n");
    assert_eq!(rustix::io::read(&user.slave, &mut [0; 8]), Ok(6), "it stays for the shell");
    change(&scene.slave, |modes| modes.local_modes -= LocalModes::ICANON);
    scene.until("single keys", |_| !local(&user.slave).contains(LocalModes::ICANON));
    type_at(&user, b"q");
    scene.expect_at_slave(b"q");
}

#[test]
fn a_terminal_that_hangs_up_ends_the_input_and_not_the_payload() {
    let user = new_pty();
    let mut scene = Scene::interactive(&user);
    drop(user);
    scene.until("the hang-up", |scene| scene.forwarder.keyboard.is_none());
    scene.print(b"nobody sees this\n");
    scene.until("the output to be dropped", |scene| scene.forwarder.is_drained());
}

#[test]
fn a_second_run_of_the_container_gets_the_same_terminal() {
    let user = new_pty();
    let mut scene = Scene::interactive(&user);
    scene.print(b"first\n");
    assert!(scene.forwarder.drain(Duration::from_secs(10)).unwrap());
    let guest = new_pty();
    scene.forwarder.connect(guest.master).unwrap();
    scene.slave = guest.slave;
    type_at(&user, b"x\r");
    scene.expect_at_slave(b"x\n");
    scene.expect(&user.master, b"first\r\nx\r\n");
}

#[test]
fn a_passive_console_is_read_so_that_no_writer_blocks() {
    let null = File::open("/dev/null").unwrap();
    let passive = resolve(Some("passive".parse().unwrap()), true, true, true);
    let mut scene = Scene::new(&passive, &null, &null, &null);
    for _ in 0..100 {
        scene.print(&[b'x'; 1000]);
        scene.until("the output to be dropped", |scene| scene.forwarder.is_drained());
        scene.forwarder.begin_drain().unwrap();
    }
}
