//! Recorded streams through [`Watch`]: each way to die has its own verdict, and no stream passes by accident.

use std::time::Duration;

use super::*;
use crate::report::event::Keep;

const NONCE: u64 = 7;

struct Stream {
    watch: Watch,
    seq: u32,
}

impl Stream {
    fn of(cases: &[&str]) -> Self {
        Self::keeping(Keep::Never, cases)
    }

    fn keeping(keep: Keep, cases: &[&str]) -> Self {
        let work =
            |name: &&str| Work { case: (*name).to_owned(), limit_s: 1, keep, boot: 0, attempt: 0 };
        let planned: Vec<Work> = cases.iter().map(work).collect();
        Self { watch: Watch::new(NONCE, "b1", &planned), seq: 0 }
    }

    fn ready(cases: &[&str]) -> Self {
        let mut stream = Self::of(cases);
        assert_eq!(stream.say(hello("b1")), Step::Ready);
        stream
    }

    fn say(&mut self, body: Event) -> Step {
        self.say_with_console(body, "")
    }

    fn say_with_console(&mut self, body: Event, console: &str) -> Step {
        let message = Message { nonce: NONCE, seq: self.seq, body };
        self.seq += 1;
        self.watch.feed(Input::Said(message), console)
    }

    fn verdicts(&mut self) -> Vec<(String, Verdict)> {
        self.watch.take_reports().into_iter().map(|report| (report.case, report.verdict)).collect()
    }
}

fn hello(build_id: &str) -> Event {
    Event::Hello { version: WIRE_VERSION, build_id: build_id.to_owned(), kernel: "6.1".to_owned() }
}

fn start(case: &str) -> Event {
    Event::Start { case: case.to_owned() }
}

fn passed(case: &str) -> Event {
    let output = String::new();
    Event::Outcome { case: case.to_owned(), verdict: Verdict::Passed, duration_ms: 5, output }
}

fn one(case: &str, verdict: Verdict) -> Vec<(String, Verdict)> {
    vec![(case.to_owned(), verdict)]
}

#[test]
fn a_whole_stream_passes_each_case_once() {
    let mut s = Stream::ready(&["a", "b"]);
    s.say(start("a"));
    s.say(Event::Heartbeat);
    assert_eq!(s.say(passed("a")), Step::Wait);
    assert!(s.verdicts().is_empty(), "an outcome is held until the next thing begins");
    s.say(start("b"));
    assert_eq!(s.verdicts(), one("a", Verdict::Passed));
    assert_eq!(s.say(passed("b")), Step::AllIn);
    assert_eq!(s.say(Event::Bye { outcomes: 2 }), Step::Done);
    assert_eq!(s.watch.conclude(""), End::Clean);
    assert_eq!(s.verdicts(), one("b", Verdict::Passed));
    assert!(s.watch.unreported().is_empty());
}

#[test]
fn a_panic_is_told_by_its_line_whatever_was_noticed_first() {
    for first in [Input::Panicked, Input::Shutdown("guest-reset".to_owned()), Input::ChannelClosed]
    {
        let mut s = Stream::ready(&["a", "b"]);
        s.say(start("a"));
        assert_eq!(s.watch.feed(first, ""), Step::Dead);
        assert_eq!(s.watch.conclude("[ 4.2] Kernel panic - not syncing: boom\n"), End::InCase);
        let line = "Kernel panic - not syncing: boom".to_owned();
        assert_eq!(s.verdicts(), one("a", Verdict::Panicked { line }));
        assert_eq!(s.watch.unreported(), ["b"]);
    }
}

#[test]
fn silence_is_a_hang_and_an_end_without_goodbye_is_a_loss() {
    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    s.watch.feed(Input::Silence(Duration::from_secs(9)), "");
    s.watch.conclude("");
    assert!(matches!(s.verdicts().as_slice(), [(_, Verdict::Hung { .. })]));

    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    s.watch.feed(Input::Shutdown("guest-shutdown".to_owned()), "");
    s.watch.conclude("");
    let how = "the guest powered off without goodbye".to_owned();
    assert_eq!(s.verdicts(), one("a", Verdict::Lost { how }));
}

#[test]
fn an_agent_that_ends_is_lost_unless_it_has_said_goodbye() {
    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    assert_eq!(s.watch.feed(Input::AgentGone, ""), Step::Dead);
    s.watch.conclude("");
    assert!(
        matches!(s.verdicts().as_slice(), [(_, Verdict::Lost { how })] if how.contains("lives on"))
    );

    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    s.say(passed("a"));
    s.say(Event::Bye { outcomes: 1 });
    assert_eq!(s.watch.feed(Input::AgentGone, ""), Step::Done);
    assert_eq!(s.watch.conclude(""), End::Clean);
}

#[test]
fn garbage_a_foreign_nonce_and_a_gap_each_spoil_the_case_they_come_in() {
    let foreign = Input::Said(Message { nonce: 8, seq: 2, body: passed("a") });
    let gap = Input::Said(Message { nonce: NONCE, seq: 9, body: passed("a") });
    for input in [foreign, gap, Input::Garbage("noise".to_owned())] {
        let mut s = Stream::ready(&["a"]);
        s.say(start("a"));
        assert_eq!(s.watch.feed(input, ""), Step::Dead);
        s.watch.conclude("");
        assert!(matches!(s.verdicts().as_slice(), [(_, Verdict::Garbage { .. })]));
    }
}

#[test]
fn a_guest_that_tells_of_its_own_death_is_not_believed() {
    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    let verdict = Verdict::Panicked { line: "no".to_owned() };
    let output = String::new();
    let outcome = Event::Outcome { case: "a".to_owned(), verdict, duration_ms: 5, output };
    assert_eq!(s.say(outcome), Step::Dead);
    s.watch.conclude("");
    assert!(matches!(s.verdicts().as_slice(), [(_, Verdict::Garbage { .. })]));
}

#[test]
fn a_second_outcome_takes_the_first_ones_pass_away() {
    let mut s = Stream::ready(&["a", "b"]);
    s.say(start("a"));
    s.say(passed("a"));
    assert_eq!(s.say(passed("a")), Step::Dead);
    assert_eq!(
        s.say(Event::Bye { outcomes: 1 }),
        Step::Dead,
        "a goodbye after garbage was believed"
    );
    s.watch.conclude("");
    let what = "a second outcome of a".to_owned();
    assert_eq!(s.verdicts(), one("a", Verdict::Garbage { what }));
}

#[test]
fn an_outcome_that_was_not_asked_for_is_garbage() {
    let mut s = Stream::ready(&["a"]);
    assert_eq!(s.say(start("z")), Step::Dead);
    let mut s = Stream::ready(&["a"]);
    assert_eq!(s.say(passed("a")), Step::Dead);
}

#[test]
fn a_kernel_complaint_fails_the_case_in_whose_window_it_is() {
    let splat = "[ 5.0] WARNING: CPU: 0 PID: 9 at fs/x.c:1 f+0x1/0x2\n";
    let mut s = Stream::ready(&["a", "b"]);
    s.say(start("a"));
    s.say(passed("a"));
    assert_eq!(s.say_with_console(start("b"), splat), Step::Failed);
    assert!(matches!(s.verdicts().as_slice(), [(case, Verdict::Splat { .. })] if case == "a"));
    assert_eq!(s.watch.conclude(""), End::InCase);
    assert_eq!(s.watch.unreported(), ["b"], "a case went on in a guest whose kernel complains");
}

#[test]
fn a_failure_whose_disk_is_kept_ends_the_guest_as_it_is() {
    let failed = |case: &str| Event::Outcome {
        case: case.to_owned(),
        verdict: Verdict::Failed { chain: Vec::new() },
        duration_ms: 5,
        output: String::new(),
    };
    for (keep, step) in [(Keep::OnFailure, Step::Failed), (Keep::Never, Step::Wait)] {
        let mut s = Stream::keeping(keep, &["a", "b"]);
        s.say(hello("b1"));
        s.say(start("a"));
        assert_eq!(s.say(failed("a")), step);
    }
    let mut s = Stream::keeping(Keep::OnFailure, &["a", "b"]);
    s.say(hello("b1"));
    s.say(start("a"));
    s.say(failed("a"));
    assert_eq!(s.watch.conclude(""), End::InCase);
    assert!(matches!(s.verdicts().as_slice(), [(_, Verdict::Failed { .. })]));
    assert_eq!(s.watch.unreported(), ["b"]);
}

#[test]
fn a_restart_is_no_outcome_and_hides_no_complaint() {
    let restart = Event::Restart { case: "a".to_owned(), how: Restart::PowerCut };
    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    assert_eq!(s.say(restart.clone()), Step::Restart);
    assert_eq!(s.watch.conclude(""), End::Restart(Restart::PowerCut));
    assert_eq!((s.verdicts(), s.watch.unreported()), (Vec::new(), vec!["a".to_owned()]));

    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    let splat = "[ 5.0] WARNING: possible circular locking dependency detected\n";
    assert_eq!(s.say_with_console(restart.clone(), splat), Step::Failed);
    assert!(matches!(s.verdicts().as_slice(), [(_, Verdict::Splat { .. })]));

    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    assert_eq!(s.say(restart), Step::Restart);
    assert_eq!(s.watch.conclude(splat), End::InCase, "said while the guest was being ended");
    assert!(matches!(s.verdicts().as_slice(), [(_, Verdict::Splat { .. })]));
}

#[test]
fn what_the_kernel_says_of_the_disk_that_a_case_left_is_that_cases() {
    let begin = "[ 4.9] harness: begin a\n";
    let error = "[ 2.0] BTRFS error (device vdc): parent transid verify failed on 1\n";
    for (boot, word) in [(0, "PASS"), (1, "SPLAT")] {
        let mut s = Stream::of(&["a"]);
        let (case, keep) = ("a".to_owned(), Keep::Never);
        let work = Work { case, limit_s: 1, keep, boot, attempt: 0 };
        s.watch = Watch::new(NONCE, "b1", &[work]);
        s.say_with_console(hello("b1"), error);
        s.say_with_console(start("a"), begin);
        s.say(passed("a"));
        s.say(Event::Bye { outcomes: 1 });
        s.watch.conclude("");
        assert!(matches!(s.verdicts().as_slice(), [(_, verdict)] if verdict.word() == word));
    }
}

#[test]
fn a_restart_of_another_case_is_garbage() {
    let mut s = Stream::ready(&["a", "b"]);
    s.say(start("a"));
    let other = Event::Restart { case: "b".to_owned(), how: Restart::Reboot };
    assert_eq!(s.say(other), Step::Dead);
}

#[test]
fn a_complaint_after_the_note_of_the_next_case_is_that_ones() {
    let console = "[ 4.9] harness: begin b\n[ 5.0] WARNING: CPU: 0 PID: 9 at fs/x.c:1 f+0x1/0x2\n";
    let mut s = Stream::ready(&["a", "b"]);
    s.say(start("a"));
    s.say(passed("a"));
    s.say_with_console(start("b"), console);
    assert_eq!(s.verdicts(), one("a", Verdict::Passed));
    s.say(passed("b"));
    s.say(Event::Bye { outcomes: 2 });
    s.watch.conclude("");
    assert!(matches!(s.verdicts().as_slice(), [(case, Verdict::Splat { .. })] if case == "b"));
}

#[test]
fn what_the_kernel_says_on_its_way_down_is_the_last_cases() {
    let panic = "[ 5.0] Kernel panic - not syncing: boom\n";
    let warning = "[ 5.0] WARNING: fs/x.c:1 at f+0x1/0x2, CPU#0: sh/9\n";
    for (console, word) in [(panic, "PANIC"), (warning, "SPLAT")] {
        let mut s = Stream::ready(&["a"]);
        s.say(start("a"));
        s.say(passed("a"));
        s.say(Event::Bye { outcomes: 1 });
        s.watch.conclude(console);
        let verdicts = s.verdicts();
        assert!(matches!(verdicts.as_slice(), [(_, verdict)] if verdict.word() == word));
    }
}

#[test]
fn a_pass_in_a_guest_that_dies_right_after_is_none() {
    let mut s = Stream::ready(&["a", "b"]);
    s.say(start("a"));
    s.say(passed("a"));
    s.watch.feed(Input::Shutdown("guest-reset".to_owned()), "");
    assert!(matches!(s.watch.conclude(""), End::Between(why) if why.contains("reset itself")));
    assert_eq!((s.verdicts(), s.watch.unreported().len()), (Vec::new(), 2));
}

#[test]
fn what_the_host_does_to_a_guest_is_no_cases_fault() {
    for cause in [Input::DiskError, Input::ChannelClosed] {
        let mut s = Stream::ready(&["a"]);
        s.say(start("a"));
        s.watch.feed(cause, "");
        assert!(matches!(s.watch.conclude(""), End::Between(_)));
        assert_eq!((s.verdicts(), s.watch.unreported().len()), (Vec::new(), 1));
    }
}

#[test]
fn a_guest_with_leftovers_is_not_one_for_others() {
    let left = Verdict::LeftBehind { things: vec!["mount /x (tmpfs)".to_owned()] };
    for verdict in [left, Verdict::TimedOut { limit_ms: 1 }] {
        let mut s = Stream::ready(&["a", "b"]);
        s.say(start("a"));
        let (case, output) = ("a".to_owned(), String::new());
        let outcome = Event::Outcome { case, verdict, duration_ms: 5, output };
        assert_eq!(s.say(outcome), Step::Failed);
    }
}

#[test]
fn a_panic_whose_text_came_too_early_is_still_a_panic() {
    let mut s = Stream::ready(&["a", "b"]);
    s.say(start("a"));
    s.say(passed("a"));
    s.say_with_console(start("b"), "[ 4.2] Kernel panic - not syncing: boom\n");
    s.watch.feed(Input::Shutdown("guest-reset".to_owned()), "");
    s.watch.conclude("");
    assert!(matches!(
        s.verdicts().as_slice(),
        [(_, Verdict::Passed), (_, Verdict::Panicked { .. })]
    ));
}

#[test]
fn a_guest_of_another_build_is_never_ready() {
    let mut s = Stream::of(&["a"]);
    assert_eq!(s.say(hello("b0")), Step::Dead);
    let End::NeverReady(why) = s.watch.conclude("") else { panic!("ready") };
    assert!(why.contains("build b0"), "{why}");
    assert_eq!(s.watch.unreported(), ["a"]);
}

#[test]
fn a_goodbye_that_counts_otherwise_is_garbage() {
    let mut s = Stream::ready(&["a"]);
    s.say(start("a"));
    s.say(passed("a"));
    assert_eq!(s.say(Event::Bye { outcomes: 2 }), Step::Dead);
    s.watch.conclude("");
    assert!(matches!(s.verdicts().as_slice(), [(_, Verdict::Garbage { .. })]));
}
