//! Watching a session while it runs: everything is seen, by those who may, and nobody who watches slows anybody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Place, Program, World, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What one session may cost the broker, its watchers with it: ARCHITECTURE.md, "Flow control".
const SESSION_KIB: u64 = 96 * 1024;
/// How long others may take for what takes a moment, on a machine that is busy.
const PROMPT: Duration = Duration::from_secs(10);
/// The end of what prints much.
const DONE: &str = "that was all";

fn watch(world: &World, persona: &str, session: &str, more: &[&str]) -> Program {
    let mut args = vec!["watch", session];
    args.extend(more);
    Program::start(world.command(persona, &args))
}

/// Somebody at a terminal of the device, and the session.
fn terminal(place: &Place, command: &str) -> (Program, String) {
    let host = place.host();
    let mut ssh = Program::start(place.command("ssh", &["-tt", &host, command]));
    ssh.shows("begun");
    let session = place.world.live_session(&place.device.id);
    (ssh, session)
}

/// What a terminal showed, by the lines of its recording; and the last line, once it is there.
fn shown(lines: &str) -> (String, Option<Value>) {
    let (mut text, mut last) = (String::new(), None);
    // A line that is not whole yet is none.
    for line in lines.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if line["ended"].is_string() {
            last = Some(line);
        } else if line[1] == "o" {
            text += line[2].as_str().unwrap();
        }
    }
    (text, last)
}

#[test]
fn a_watcher_sees_what_the_engineer_sees_from_the_start_and_onward_and_hears_why_it_ended() {
    let place = Place::new("gw-watched", "shell,exec");
    let world = &place.world;
    let (mut ssh, session) = terminal(&place, "echo begun; exec cat");
    ssh.send(b"before anybody watched\n");
    ssh.shows("before anybody watched\r\nbefore anybody watched\r\n");

    let lines = watch(world, "reviewer", &session, &["--json"]);
    let mut text = watch(world, "engineer", &session, &[]);
    text.shows("before anybody watched\nbefore anybody watched\n");
    until("the watcher to see what was shown before", || shown(&lines.out()).0 == ssh.out());
    // Escapes are kept in the recording, and none that does not draw reaches whoever watches.
    ssh.send("grün \x1b]52;c;aGk=\x07 漢字\n".as_bytes());
    text.shows("漢字");
    until("the watcher to see what is shown now", || shown(&lines.out()).0 == ssh.out());
    assert!(!text.out().contains('\x1b'), "{:?}", text.out());
    world.audited("session.watched", &[&session, "chloe"]);

    let _ = world.cli("reviewer", &["end", &session, "--reason", "seen enough"]).ok();
    let (said, last) = (ssh.ends(), lines.ends().ok());
    let (seen, last) = shown(&last.out()).with_last();
    assert!(said.out().starts_with(&seen), "{said}");
    assert_eq!((&last["ended"], &last["reason"]), (&"session".into(), &"ended_by_person".into()), "{last}");
    let replay = format!("`daypass --profile engineer play {session}` replays it");
    let _ = text.ends().ok().says("ended by a person, by chloe").says(&replay);

    // It is over: there is nothing to watch, and what there is instead is said.
    let late = world.cli("reviewer", &["watch", &session]).with(1);
    let _ = late.says("is over already").says(&format!("daypass --profile reviewer play {session}"));
}

trait WithLast {
    fn with_last(self) -> (String, Value);
}

impl WithLast for (String, Option<Value>) {
    fn with_last(self) -> (String, Value) {
        (self.0, self.1.expect("no last line"))
    }
}

#[test]
fn a_session_without_a_terminal_is_waited_with_until_it_has_one() {
    let place = Place::new("gw-plain", "shell,exec");
    let (master, host) = (place.world.dir().join("gw-plain-cm"), place.host());
    let control = format!("ControlPath={}", master.display());
    let first = Program::start(place.command("ssh", &["-M", "-o", &control, &host, "echo begun; cat"]));
    until("the session", || first.out().contains("begun"));
    let session = place.world.live_session(&place.device.id);
    let mut watcher = watch(&place.world, "reviewer", &session, &[]);
    watcher.complains("Watching S-");
    let second =
        Program::start(place.command("ssh", &["-tt", "-o", &control, &host, "echo on a terminal; cat"]));
    watcher.shows("on a terminal\n");
    let none = place.world.cli("reviewer", &["watch", &session, "--channel", "7"]).with(6);
    let _ = none.says("no open terminal on channel 7");
    // The terminal is closed, and the session goes on without it.
    second.signal(Signal::SIGTERM);
    let _ = second.ends();
    let _ = watcher.ends().ok().says("The terminal was closed");
    let _ = first.finish().ok();
}

#[test]
fn who_may_not_watch_does_not_and_a_watcher_whose_right_or_sign_in_ends_is_ended() {
    let world = Arc::new(World::start());
    let place = Place::on(world.clone(), "gw-private", &["--channel", "shell,exec"]);
    let (mut ssh, session) = terminal(&place, "echo begun; exec cat");
    // Support leads do not know of it; the fleet's people may end it, and not look at it.
    let _ = world.cli("approver", &["watch", &session]).with(6);
    let _ = world.cli("operator", &["watch", &session]).with(4);
    assert!(!world.has_event("session.watched", &[]), "nobody watched");

    let mut out = watch(&world, "reviewer", &session, &[]);
    let mut barred = watch(&world, "engineer", &session, &[]);
    for watcher in [&mut out, &mut barred] {
        watcher.shows("begun");
    }
    let _ = world.cli("reviewer", &["logout"]).ok();
    let _ = out.ends().with(3).says("not signed in");
    ssh.send(b"after the sign-out\n");
    barred.shows("after the sign-out");
    world.add_policy(
        "nobody-watches",
        "@id(\"nobody-watches\")\n@description(\"Nobody watches.\")\n\
         forbid (principal, action == Action::\"watch\", resource);\n",
    );
    let _ = barred.ends().with(4).says("may not watch");
    ssh.send(b"nobody sees this\n");
    ssh.shows("nobody sees this\r\nnobody sees this");
    assert!(ssh.is_running(), "the session is not touched by any of it");
}

/// With standard output in a file, which does not have to be held in memory.
fn into_file(command: &Command, file: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" > \"$INTO\"", "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.env("INTO", file);
    shell
}

fn ends_with(file: &Path, text: &str) -> bool {
    let mut file = std::fs::File::open(file).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(length.saturating_sub(2000))).unwrap();
    let mut end = Vec::new();
    file.read_to_end(&mut end).unwrap();
    String::from_utf8_lossy(&end).contains(text)
}

#[test]
fn a_watcher_that_does_not_read_slows_nobody_and_has_every_byte_when_it_reads_on() {
    let world = Arc::new(World::start());
    let place = Place::on(world.clone(), "gw-much", &["--channel", "shell,exec", "--for", "10m"]);
    world.ask("gw-0043", "10m");
    let file = |name: &str| place.here.join(name);
    let host = place.host();
    let before = world.watch_memory();
    // 62 MB on a terminal.
    let command = format!("echo begun; read go; seq 1 7000000; echo {DONE}; exec cat");
    let engineer = file("engineer");
    let mut ssh = Program::start(into_file(&place.command("ssh", &["-tt", &host, &command]), &engineer));
    until("the terminal", || engineer.exists() && ends_with(&engineer, "begun"));
    let session = world.live_session("gw-much");
    let watching = |name: &str| {
        let command = world.command("reviewer", &["--json", "watch", &session]);
        let into = file(name);
        let program = Program::start(into_file(&command, &into));
        until("a watcher to see it", || into.exists() && ends_with(&into, "begun"));
        (program, into)
    };
    let (asleep, slept) = watching("asleep");
    let (awake, saw) = watching("awake");
    asleep.signal(Signal::SIGSTOP);
    ssh.send(b"go\n");
    until("the session to print it all", || ends_with(&engineer, DONE));
    until("the other watcher to see it all", || ends_with(&saw, DONE));
    assert!(std::fs::metadata(&slept).unwrap().len() < 1 << 20, "it slept");

    let began = Instant::now();
    ssh.send(b"and now\n");
    until("the session to answer", || ends_with(&engineer, "and now"));
    until("the other watcher to see it", || ends_with(&saw, "and now"));
    assert_eq!(world.ssh(&["diag@gw-0043.daypass", "echo prompt"]).ok().out(), "prompt\n");
    let _ = world.json("engineer", &["sessions", "--live"]);
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
    let cost = world.most_memory().saturating_sub(before);
    println!("a session, its two watchers and a neighbour cost the broker {cost} KiB");
    assert!(cost < SESSION_KIB, "{cost} KiB");

    // The session ends while one watcher sleeps; what it missed is there when it wakes.
    ssh.send(b"\x04");
    let _ = ssh.ends();
    let _ = awake.ends().ok();
    world.ended(&session);
    asleep.signal(Signal::SIGCONT);
    let _ = asleep.ends().ok();
    let printed = std::fs::read_to_string(&engineer).unwrap();
    assert!(printed.len() > 60_000_000, "{}", printed.len());
    for watcher in [saw, slept] {
        let (seen, last) = shown(&std::fs::read_to_string(watcher).unwrap()).with_last();
        assert_eq!(seen.len(), printed.len());
        assert!(seen == printed, "other bytes");
        assert_eq!(last["ended"], "session", "{last}");
    }
}
