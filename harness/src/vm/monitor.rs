//! QEMU's monitor: commands with their answers while a guest is being made, and only its events once it runs.
//!
//! The protocol is a JSON object per line; events come between a command and its answer (QEMU Machine Protocol
//! Specification, docs/interop/qmp-spec).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::watch::Input;

/// A monitor that has been greeted.
#[derive(Debug)]
pub struct Monitor {
    from: BufReader<UnixStream>,
    /// Events that came while an answer was waited for.
    early: Vec<Line>,
}

/// One line that QEMU says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Line {
    event: Option<String>,
    data: Data,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Data {
    reason: Option<String>,
    open: Option<bool>,
    status: Option<String>,
}

impl Monitor {
    /// Greets QEMU, which takes no command and sends no event before that.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn open(socket: UnixStream) -> Result<Self> {
        // The order of our greeting and QEMU's does not matter, and its answer is waited for with the first command's.
        (&socket)
            .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
            .context("greeting QEMU's monitor")?;
        Ok(Self { from: BufReader::new(socket), early: Vec::new() })
    }

    /// Gives the capabilities that a migration with its memory in a file of its own needs, on either side of it.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    pub fn prepare_migration(&mut self, until: Instant) -> Result<()> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        self.execute("migrate-set-capabilities", capabilities, until)
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// When QEMU refuses, ends, or says nothing until then.
    pub fn execute(&mut self, command: &str, arguments: Value, until: Instant) -> Result<()> {
        let what = || format!("asking QEMU to {command}");
        let line = json!({ "execute": command, "arguments": arguments, "id": command });
        let mut socket = self.from.get_ref();
        socket.write_all(format!("{line}\n").as_bytes()).with_context(what)?;
        loop {
            let text = self.line(until).with_context(what)?;
            // The greeting's answer has no id.
            let ours = serde_json::from_str::<Value>(&text)
                .is_ok_and(|value| value.get("id").is_some_and(|id| id == command));
            let said: Line = serde_json::from_str(&text).unwrap_or_default();
            match said {
                Line { error: Some(error), .. } => bail!("{}: {error}", what()),
                Line { answer: Some(_), .. } if ours => return Ok(()),
                Line { event: Some(_), .. } => self.early.push(said),
                _ => {}
            }
        }
    }

    /// Waits until the agent has opened its port.
    ///
    /// # Errors
    /// When QEMU ends, or that does not happen until then.
    pub fn await_agent(&mut self, until: Instant) -> Result<()> {
        let opened = |said: &Line| said.is("VSERPORT_CHANGE") && said.data.open == Some(true);
        self.await_event(opened, until).map(drop).context("waiting for the guest's agent")
    }

    /// Waits until a migration has come to its end, either way.
    ///
    /// # Errors
    /// When it failed, QEMU ended, or that does not happen until then.
    pub fn await_migration(&mut self, until: Instant) -> Result<()> {
        let status = |said: &Line| said.data.status.clone().unwrap_or_default();
        let over = |said: &Line| {
            said.is("MIGRATION") && ["completed", "failed"].contains(&status(said).as_str())
        };
        let end = self.await_event(over, until).context("waiting for a guest's state")?;
        ensure!(status(&end) == "completed", "the guest's state could not be moved");
        Ok(())
    }

    fn await_event(&mut self, wanted: impl Fn(&Line) -> bool, until: Instant) -> Result<Line> {
        if let Some(at) = self.early.iter().position(&wanted) {
            return Ok(self.early.remove(at));
        }
        loop {
            let said: Line = serde_json::from_str(&self.line(until)?).unwrap_or_default();
            if wanted(&said) {
                return Ok(said);
            }
            ensure!(!said.is("SHUTDOWN"), "the guest ended");
            if said.event.is_some() {
                self.early.push(said);
            }
        }
    }

    fn line(&mut self, until: Instant) -> Result<String> {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "QEMU's monitor says nothing");
        self.from.get_ref().set_read_timeout(Some(left)).context("setting a limit")?;
        let mut text = String::new();
        match self.from.read_line(&mut text) {
            Ok(0) => bail!("QEMU ended"),
            Ok(_) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("QEMU's monitor says nothing")
            }
            Err(error) => Err(error).context("reading QEMU's monitor"),
        }
    }

    /// From now on what tells a panic, a reset and a clean power-off apart goes to `inputs`; what came before too.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn watch(self, inputs: Sender<Input>) -> Result<()> {
        self.from.get_ref().set_read_timeout(None::<Duration>).context("lifting a limit")?;
        for input in self.early.iter().filter_map(input_of) {
            // The owner is gone when the queue is closed: nobody is left to tell, here and below.
            let _ = inputs.send(input);
        }
        let from = self.from;
        thread::spawn(move || {
            for line in from.lines() {
                let Ok(line) = line else { return };
                let said: Line = serde_json::from_str(&line).unwrap_or_default();
                if let Some(input) = input_of(&said)
                    && inputs.send(input).is_err()
                {
                    return;
                }
            }
        });
        Ok(())
    }
}

impl Line {
    fn is(&self, event: &str) -> bool {
        self.event.as_deref() == Some(event)
    }
}

fn input_of(said: &Line) -> Option<Input> {
    match said.event.as_deref()? {
        "GUEST_PANICKED" => Some(Input::Panicked),
        "SHUTDOWN" => Some(Input::Shutdown(said.data.reason.clone().unwrap_or_default())),
        // The only port is the agent's; it has no other reason to close it than its end.
        "VSERPORT_CHANGE" => (said.data.open == Some(false)).then_some(Input::AgentGone),
        "BLOCK_IO_ERROR" => Some(Input::DiskError),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn pair() -> (Monitor, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Monitor::open(ours).unwrap(), theirs)
    }

    fn input(line: &str) -> Option<Input> {
        input_of(&serde_json::from_str(line).unwrap())
    }

    #[test]
    fn the_monitor_tells_a_reset_from_a_power_off() {
        let line = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        assert_eq!(input(line), Some(Input::Shutdown("guest-reset".to_owned())));
        assert_eq!(input(r#"{"return": {}}"#), None);
        let port = |open| {
            format!(r#"{{"event": "VSERPORT_CHANGE", "data": {{"open": {open}, "id": "agent"}}}}"#)
        };
        assert_eq!(input(&port(true)), None);
        assert_eq!(input(&port(false)), Some(Input::AgentGone));
        let panicked = r#"{"event": "GUEST_PANICKED", "data": {"action": "pause"}}"#;
        assert_eq!(input(panicked), Some(Input::Panicked));
    }

    #[test]
    fn an_answer_is_found_behind_events_which_are_kept() {
        let (mut monitor, mut qemu) = pair();
        let lines = [
            r#"{"QMP": {"version": {}, "capabilities": []}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "VSERPORT_CHANGE", "data": {"open": true}}"#,
            r#"{"event": "GUEST_PANICKED"}"#,
            r#"{"return": {}, "id": "stop"}"#,
        ];
        qemu.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
        monitor.execute("stop", json!({}), soon()).unwrap();
        monitor.await_agent(soon()).unwrap();
        let (sender, inputs) = mpsc::channel();
        monitor.watch(sender).unwrap();
        assert_eq!(inputs.recv().unwrap(), Input::Panicked);
    }

    #[test]
    fn a_refusal_and_a_failed_migration_are_errors() {
        let (mut monitor, mut qemu) = pair();
        qemu.write_all(b"{\"error\": {\"desc\": \"no such file\"}, \"id\": \"cont\"}\n").unwrap();
        let error = monitor.execute("cont", json!({}), soon()).unwrap_err();
        assert!(error.to_string().contains("no such file"), "{error}");
        for status in ["setup", "active", "failed"] {
            let line =
                format!("{{\"event\": \"MIGRATION\", \"data\": {{\"status\": \"{status}\"}}}}\n");
            qemu.write_all(line.as_bytes()).unwrap();
        }
        assert!(monitor.await_migration(soon()).is_err());
    }

    #[test]
    fn an_end_of_qemu_is_no_answer() {
        let (mut monitor, qemu) = pair();
        drop(qemu);
        assert!(monitor.await_agent(soon()).is_err());
    }
}
