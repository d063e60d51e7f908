//! A device that stands still: everybody who waits for it is told, and when it goes on it is consistent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Device, Program, World, marker, sleepers, until};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// What the issue allows.
const TOLD_WITHIN: Duration = Duration::from_secs(15);

/// A shim that stands still; it goes on when this is dropped, so that it can be ended.
struct Frozen(Device, Instant);

impl Frozen {
    fn freeze(mut device: Device) -> Self {
        device.shim().signal(Signal::SIGSTOP);
        Self(device, Instant::now())
    }

    fn in_time(&self, what: &str) {
        assert!(self.1.elapsed() < TOLD_WITHIN, "{what} after {:?}", self.1.elapsed());
    }

    fn thaw(&mut self) {
        self.0.shim().signal(Signal::SIGCONT);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// Stays for a second line.
const TERMINAL: &str = "echo ready; read line; echo got $line; read line";
const LINES: u32 = 2000;

fn printing(world: &World, device: &str) -> Program {
    let command =
        format!("i=1; while [ $i -le {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.004; done; echo all");
    world.ssh_start(device, &[], &command)
}

/// A terminal and a command that prints, on a device that then stands still and is being written to.
struct Waiting {
    frozen: Frozen,
    terminal: Program,
    printing: Program,
    /// The terminal's session.
    id: String,
}

impl Waiting {
    fn freeze(world: &World, name: &str) -> Self {
        let device = Device::enrol(world, name, "lab");
        world.ask(name, "10m");
        let mut terminal = world.ssh_start(name, &["-tt"], TERMINAL);
        terminal.shows("ready");
        let id = world.live_session(name);
        let mut printing = printing(world, name);
        printing.shows("line 100\n");
        let frozen = Frozen::freeze(device);
        terminal.send(b"words\n");
        Self { frozen, terminal, printing, id }
    }

    /// It goes on where it stood, byte for byte.
    fn thaws(mut self) -> Frozen {
        self.frozen.thaw();
        self.terminal.shows("got words");
        self.terminal.complains("the device answers again after");
        self.terminal.send(b"enough\n");
        assert_eq!(self.terminal.finish().ok().code(), 0);
        self.printing.shows("all\n");
        let done = self.printing.finish().ok();
        let all = (1..=LINES).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat() + "all\n";
        assert!(done.out() == all, "{} bytes", done.stdout.len());
        self.frozen
    }
}

#[test]
fn a_frozen_device_is_named_to_everybody_who_waits_and_goes_on_byte_for_byte() {
    let world = World::shared();
    let waiting = Waiting::freeze(&world, "gw-frozen");
    let Waiting { frozen, terminal, printing, id } = &waiting;
    let opening = Program::start(world.ssh_command(&["diag@gw-frozen.daypass", "echo reached"]));
    terminal.complains("the device does not answer; waiting for it, 2 min at most");
    frozen.in_time("the terminal was told");
    printing.complains("the device does not answer; waiting for it, 2 min at most");
    frozen.in_time("the command was told");
    let refused = opening.ends();
    frozen.in_time("opening was refused");
    assert_ne!(refused.code(), 0);
    assert_eq!(refused.out(), "");
    refused.says("daypass: the device did not answer within 10s");

    let id = id.clone();
    let _device = waiting.thaws();
    assert_eq!(world.ended(&id)["end_reason"], "closed");
    world.audited("session.waiting", &[&id, "\"silent\":true"]);
    world.audited("session.resumed", &[&id]);
    assert_eq!(world.ssh(&["diag@gw-frozen.daypass", "echo again"]).ok().out(), "again\n");
    world.evidence_is_whole();
}

#[test]
fn a_device_that_is_frozen_for_longer_than_its_connection_lasts_resumes_on_the_next_one() {
    let world = World::shared();
    let waiting = Waiting::freeze(&world, "gw-numb");
    waiting.terminal.complains("the device does not answer; waiting for it");
    world.audited("device.disconnected", &["gw-numb", "no answer to a ping"]);
    let refused = world.ssh(&["diag@gw-numb.daypass", "echo reached"]).with(255);
    refused.says("gw-numb is not connected");

    let _device = waiting.thaws();
    world.evidence_is_whole();
}

#[test]
fn promise_4_access_ends_on_time_a_device_that_stays_frozen_ends_the_session_and_clears_away_when_it_wakes() {
    let world = World::start_with("[sessions]\nresume_grace_s = 3\n");
    let device = Device::enrol(&world, "gw-cold", "lab");
    world.ask("gw-cold", "10m");
    let marker = marker();
    let both = format!("echo ready; setsid sleep {marker} & sleep {marker}");
    let mut terminal = world.ssh_start("gw-cold", &["-tt"], &both);
    let mut command = world.ssh_start("gw-cold", &[], &both);
    terminal.shows("ready");
    command.shows("ready");
    until("all processes on the device", || sleepers(&marker).len() == 4);

    let mut frozen = Frozen::freeze(device);
    let ends: Vec<_> = [terminal, command].into_iter().map(Program::ends).collect();
    frozen.in_time("both were ended");
    for done in ends {
        assert_ne!(done.code(), 0, "{done}");
        let said = format!("{}{}", done.out(), done.stderr);
        assert!(said.contains("the device does not answer; waiting for it, 3 s at most"), "{done}");
        assert!(said.contains("the connection to the device is lost: it did not answer for 3 s"), "{done}");
    }
    for session in world.sessions("gw-cold") {
        let id = session["id"].as_str().unwrap();
        assert_eq!(world.ended(id)["end_reason"], "device_lost");
    }
    assert_eq!(sleepers(&marker).len(), 4, "nobody is there to end them");

    frozen.thaw();
    until("all processes of the sessions to be gone", || sleepers(&marker).is_empty());
    assert_eq!(world.ssh(&["diag@gw-cold.daypass", "echo again"]).ok().out(), "again\n");
    world.evidence_is_whole();
}
