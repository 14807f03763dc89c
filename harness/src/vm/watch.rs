//! What follows from what a guest says and does: the verdicts. Pure: inputs in, reports out.
//!
//! Invariants: a case passes only if its outcome came once, in order, with the run's nonce, after its start, and the
//! console showed no complaint of the kernel until the next thing began; each planned case is reported at most once;
//! what was not reported is named by [`Watch::unreported`].

use crate::report::event::{Event, Message, Restart, WIRE_VERSION, Work};
use crate::report::{CaseReport, Verdict};

use super::console;

/// What reaches the thread that owns a guest.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The agent said something.
    Said(Message<Event>),
    /// Something on the channel was no message.
    Garbage(String),
    /// The channel ended.
    ChannelClosed,
    /// QEMU ends, for this reason of its monitor: `guest-shutdown`, `guest-reset`, ….
    Shutdown(String),
    /// The agent closed its end of the channel, which it does by ending; the kernel lives on.
    AgentGone,
    /// The guest's kernel said through pvpanic that it panicked.
    Panicked,
    /// The host could not write a guest's disk.
    DiskError,
    /// Nothing came within the limit.
    Silence(std::time::Duration),
}

/// What the owner of a guest does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Waits for more.
    Wait,
    /// The agent is up: give it its cases.
    Ready,
    /// All outcomes are in: tell it to power off.
    AllIn,
    /// It said goodbye.
    Done,
    /// A case did not pass, and nothing else may touch what it left: end the guest as it is.
    Failed,
    /// The case that runs goes on in another guest: end this one as it is.
    Restart,
    /// It is past saving: collect what still comes, then [`Watch::conclude`].
    Dead,
}

/// How a guest's life ended, beside its reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With goodbye.
    Clean,
    /// Before the agent was ready: nobody's fault but the machine's.
    NeverReady(String),
    /// While a case ran, or because it had not passed; it has been reported.
    InCase,
    /// Because the case wants to go on in another guest; it has not been reported.
    Restart(Restart),
    /// Between cases, or after the last without goodbye.
    Between(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Booting,
    Idle,
    Running(usize),
    Done,
    Failed,
    Restarting(usize, Restart),
}

/// The state of one guest.
#[derive(Debug)]
pub struct Watch {
    nonce: u64,
    build_id: String,
    planned: Vec<Work>,
    reported: Vec<bool>,
    seq: u32,
    phase: Phase,
    /// An outcome that waits for the console of what comes after it.
    held: Option<(usize, CaseReport)>,
    window: String,
    /// A panic's line that came with what belonged to an earlier case.
    panic: Option<String>,
    reports: Vec<CaseReport>,
    outcomes: u32,
    causes: Vec<Input>,
}

impl Watch {
    /// A guest that is about to boot, to run these cases.
    #[must_use]
    pub fn new(nonce: u64, build_id: &str, planned: &[Work]) -> Self {
        Self {
            nonce,
            build_id: build_id.to_owned(),
            planned: planned.to_vec(),
            reported: vec![false; planned.len()],
            seq: 0,
            phase: Phase::Booting,
            held: None,
            window: String::new(),
            panic: None,
            reports: Vec::new(),
            outcomes: 0,
            causes: Vec::new(),
        }
    }

    /// What the guest is waited for, for a person.
    #[must_use]
    pub fn awaited(&self) -> String {
        match self.phase {
            Phase::Booting => "the guest's agent".to_owned(),
            Phase::Idle => "the next case".to_owned(),
            Phase::Running(index) => self.planned[index].case.clone(),
            Phase::Done | Phase::Failed | Phase::Restarting(..) => {
                "the guest's power-off".to_owned()
            }
        }
    }

    /// True until the agent has said hello.
    #[must_use]
    pub fn is_booting(&self) -> bool {
        self.phase == Phase::Booting
    }

    /// The case that runs now.
    #[must_use]
    pub fn running(&self) -> Option<&str> {
        match self.phase {
            Phase::Running(index) => Some(&self.planned[index].case),
            _ => None,
        }
    }

    /// The case that ended the guest by not passing, if it is the last that was heard of.
    #[must_use]
    pub fn failed(&self) -> Option<&str> {
        self.held.as_ref().map(|(_, report)| report.case.as_str())
    }

    /// Takes an input, with what the console printed since the last one.
    pub fn feed(&mut self, input: Input, console: &str) -> Step {
        self.window.push_str(console);
        match input {
            // Who has said something unbelievable, or is dead, is not listened to any more.
            Input::Said(_) | Input::Garbage(_) if !self.causes.is_empty() => Step::Dead,
            Input::Said(message) => self.said(message),
            Input::Shutdown(_) | Input::ChannelClosed | Input::AgentGone
                if self.phase == Phase::Done =>
            {
                Step::Done
            }
            other => self.dead(other),
        }
    }

    /// The reports that are final by now.
    pub fn take_reports(&mut self) -> Vec<CaseReport> {
        std::mem::take(&mut self.reports)
    }

    /// Planned cases without a report, in order.
    #[must_use]
    pub fn unreported(&self) -> Vec<String> {
        let missing = self.planned.iter().zip(&self.reported).filter(|(_, reported)| !**reported);
        missing.map(|(work, _)| work.case.clone()).collect()
    }

    /// Ends the watch: with a dead guest, gives the case it died in its verdict. Takes the rest of the console.
    pub fn conclude(&mut self, console: &str) -> End {
        self.window.push_str(console);
        let death = self.death();
        // Garbage right after an outcome makes that outcome unbelievable: a second one, or a foreign one.
        let doubted = matches!(self.causes.first(), Some(Input::Garbage(_)));
        if doubted
            && let (Some(verdict), Some((index, mut report))) = (death.clone(), self.held.take())
        {
            report.verdict = verdict;
            self.report(index, report);
            return End::InCase;
        }
        match (self.phase, death) {
            (Phase::Restarting(index, how), _) => match self.complaint() {
                None => End::Restart(how),
                Some(verdict) => self.blame(index, verdict),
            },
            (Phase::Failed, _) => {
                self.release();
                End::InCase
            }
            (Phase::Done, _) | (_, None) => match (console::panic_line(&self.window), &self.held) {
                // It said goodbye, and died of what its last case had done.
                (Some(line), Some((index, _))) => self.blame(*index, Verdict::Panicked { line }),
                _ => {
                    self.release();
                    End::Clean
                }
            },
            (Phase::Booting, Some(verdict)) => End::NeverReady(verdict.told()),
            (Phase::Running(_), Some(Verdict::NotRun { why })) => End::Between(why),
            (Phase::Running(index), Some(verdict)) => self.blame(index, verdict),
            (Phase::Idle, Some(verdict)) => match &self.held {
                // The kernel died of what the last case had done.
                Some((index, _)) if matches!(verdict, Verdict::Panicked { .. }) => {
                    self.blame(*index, verdict)
                }
                // Nobody knows what else that case had done to the guest: it runs again, in another.
                Some((_, held)) if held.verdict == Verdict::Passed => {
                    self.held = None;
                    End::Between(verdict.told())
                }
                _ => {
                    self.release();
                    End::Between(verdict.told())
                }
            },
        }
    }

    /// The worst that the kernel said since the last thing began.
    fn complaint(&self) -> Option<Verdict> {
        if let Some(line) = console::panic_line(&self.window) {
            return Some(Verdict::Panicked { line });
        }
        let lines = console::splat_lines(&self.window);
        (!lines.is_empty()).then_some(Verdict::Splat { lines })
    }

    /// Gives a case a verdict that it has not come to itself.
    fn blame(&mut self, index: usize, verdict: Verdict) -> End {
        let outcome = self.held.take().filter(|(held, _)| *held == index).map(|(_, report)| report);
        let report = outcome.unwrap_or_else(|| CaseReport {
            case: self.planned[index].case.clone(),
            verdict: Verdict::Passed,
            duration_ms: 0,
            output: String::new(),
            console: Vec::new(),
        });
        let console = console::tail(&self.window, 40);
        self.report(index, CaseReport { verdict, console, ..report });
        End::InCase
    }

    fn said(&mut self, message: Message<Event>) -> Step {
        if message.nonce != self.nonce {
            return self.garbage("a message with another run's nonce".to_owned());
        }
        if message.seq != self.seq {
            let text = format!("message {} came where {} was due", message.seq, self.seq);
            return self.garbage(text);
        }
        self.seq += 1;
        match (message.body, self.phase) {
            (Event::Hello { version, build_id, .. }, Phase::Booting) => {
                if version != WIRE_VERSION {
                    return self.garbage(format!(
                        "the guest speaks version {version}, not {WIRE_VERSION}"
                    ));
                }
                if build_id != self.build_id {
                    return self.garbage(format!(
                        "the guest runs the build {build_id}, not {}",
                        self.build_id
                    ));
                }
                self.phase = Phase::Idle;
                // What a kernel complains of while booting is no case's doing, unless one has sent it there.
                if self.planned.first().is_none_or(|work| work.boot == 0) {
                    self.window.clear();
                }
                Step::Ready
            }
            (Event::Heartbeat, _) => Step::Wait,
            (Event::Start { case }, Phase::Idle) => {
                match self.planned.iter().position(|work| work.case == case) {
                    Some(index) if !self.reported[index] && !self.holds(index) => {
                        let window = std::mem::take(&mut self.window);
                        // All is its own of one that goes on here: that it has sent the guest there was before.
                        let (before, after) = match self.planned[index].boot {
                            0 => console::cut_at_begin(&window, &case),
                            _ => ("", window.as_str()),
                        };
                        before.clone_into(&mut self.window);
                        let splat = self.release();
                        after.clone_into(&mut self.window);
                        if splat {
                            // Its guest is not one for others any more: this one starts again elsewhere.
                            self.phase = Phase::Failed;
                            return Step::Failed;
                        }
                        self.phase = Phase::Running(index);
                        Step::Wait
                    }
                    Some(_) => self.garbage(format!("{case} started twice")),
                    None => self.garbage(format!("{case} started, which was not asked for")),
                }
            }
            (Event::Outcome { case, verdict, duration_ms, output }, Phase::Running(index))
                if case == self.planned[index].case =>
            {
                if !verdict.is_a_guests() {
                    return self.garbage(format!("the guest says {} of {case}", verdict.word()));
                }
                self.outcomes += 1;
                let dirty =
                    matches!(verdict, Verdict::LeftBehind { .. } | Verdict::TimedOut { .. });
                let kept = verdict != Verdict::Passed && self.planned[index].keep.applies(&verdict);
                let stops = dirty || kept;
                self.held = Some((
                    index,
                    CaseReport { case, verdict, duration_ms, output, console: Vec::new() },
                ));
                if stops {
                    self.phase = Phase::Failed;
                    return Step::Failed;
                }
                self.phase = Phase::Idle;
                let last = self.reported.iter().filter(|reported| !**reported).count() == 1;
                if last { Step::AllIn } else { Step::Wait }
            }
            (Event::Restart { case, how }, Phase::Running(index))
                if case == self.planned[index].case =>
            {
                let Some(verdict) = self.complaint() else {
                    self.phase = Phase::Restarting(index, how);
                    return Step::Restart;
                };
                self.blame(index, verdict);
                self.phase = Phase::Failed;
                Step::Failed
            }
            (Event::Outcome { case, .. }, Phase::Idle)
                if self.held.as_ref().is_some_and(|(_, held)| held.case == case) =>
            {
                self.garbage(format!("a second outcome of {case}"))
            }
            (Event::Bye { outcomes }, Phase::Idle) => {
                if outcomes != self.outcomes {
                    return self.garbage(format!(
                        "the guest counts {outcomes} outcomes, {} came",
                        self.outcomes
                    ));
                }
                // What the kernel says on its way down is still the last case's.
                self.phase = Phase::Done;
                Step::Done
            }
            (event, _) => self.garbage(format!("out of turn: {event:?}")),
        }
    }

    fn holds(&self, index: usize) -> bool {
        self.held.as_ref().is_some_and(|(held, _)| *held == index)
    }

    fn garbage(&mut self, what: String) -> Step {
        self.dead(Input::Garbage(what))
    }

    fn dead(&mut self, cause: Input) -> Step {
        self.causes.push(cause);
        Step::Dead
    }

    /// The verdict that the causes add up to. What came first decides, except that a panic explains every silence
    /// and every end after it.
    fn death(&self) -> Option<Verdict> {
        let first = self.causes.first()?;
        if let Input::Garbage(what) = first {
            return Some(Verdict::Garbage { what: what.clone() });
        }
        let line = self.panic.clone().or_else(|| console::panic_line(&self.window));
        if line.is_some() || self.causes.contains(&Input::Panicked) {
            let line = line
                .unwrap_or_else(|| "the guest's kernel panicked and printed nothing".to_owned());
            return Some(Verdict::Panicked { line });
        }
        Some(match first {
            Input::Silence(limit) => Verdict::Hung {
                why: format!(
                    "nothing heard for {} s while waiting for {}",
                    limit.as_secs(),
                    self.awaited()
                ),
            },
            Input::AgentGone => Verdict::Lost {
                how: "the agent ended without goodbye, the guest lives on".to_owned(),
            },
            // Neither is a guest's doing.
            Input::DiskError => {
                Verdict::NotRun { why: "the host could not write the guest's disk".to_owned() }
            }
            _ => {
                let reason = self.causes.iter().find_map(|cause| match cause {
                    Input::Shutdown(reason) => Some(reason.as_str()),
                    _ => None,
                });
                let Some(reason) = reason else {
                    return Some(Verdict::NotRun { why: "QEMU died".to_owned() });
                };
                let how = match reason {
                    "guest-shutdown" => "the guest powered off without goodbye".to_owned(),
                    "guest-reset" => "the guest reset itself without goodbye".to_owned(),
                    other => format!("QEMU ended: {other}"),
                };
                Verdict::Lost { how }
            }
        })
    }

    /// Makes the held outcome final, unless the kernel complained since it began. Returns whether it did.
    fn release(&mut self) -> bool {
        let window = std::mem::take(&mut self.window);
        self.panic = self.panic.take().or_else(|| console::panic_line(&window));
        let Some((index, mut report)) = self.held.take() else { return false };
        let splats = console::splat_lines(&window);
        let complained = !splats.is_empty();
        if complained {
            report.console = console::tail(&window, 40);
            if report.verdict == Verdict::Passed {
                report.verdict = Verdict::Splat { lines: splats };
            }
        }
        self.report(index, report);
        complained
    }

    fn report(&mut self, index: usize, report: CaseReport) {
        self.reported[index] = true;
        self.reports.push(report);
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
