//! The database is away for ten seconds, whatever is going on: what is asked meanwhile waits or is told so,
//! nothing is lost or half made, nothing goes on unrecorded, and afterwards all is as before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Cluster, Device, Done, Lock, Program, World, eventually, marker, sleepers, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

const AWAY: Duration = Duration::from_secs(10);

fn ready(world: &World) -> u16 {
    world.get("/readyz").0
}

fn ask(device: &str) -> Vec<String> {
    let args = ["--json", "request", device, "-l", "diag", "--channel", "shell,exec,sftp", "--for", "20m"];
    args.into_iter().chain(["--reason", "a journey"]).map(str::to_owned).collect()
}

fn started(world: &World, persona: &str, args: &[String]) -> Program {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Program::start(world.command(persona, &args))
}

/// It waited and was done, or was told in words that it cannot be done now.
fn done_or_told(done: &Done) -> Option<Value> {
    if done.code() == 0 {
        return Some(done.json());
    }
    done.says("error:").says("The broker could not do this now").says("hint:");
    None
}

/// Three kinds of session with bytes flowing, a request of each kind and an opening, while the database is
/// taken away and given back.
fn away<'a>(world: &World, take_away: impl FnOnce() -> Box<dyn FnOnce() + 'a>) {
    let device = Device::enrol(world, "gw-base", "lab");
    let _ = world.cli("engineer", &ask("gw-base").iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let waiting = world.json("engineer", &["request", "gw-0042", "-l", "diag", "--reason", "to be approved"]);
    let waiting = waiting["id"].as_str().unwrap().to_owned();
    let marker = marker();
    let silent = format!("echo ready; setsid sleep {marker} & read line; echo got $line");
    let mut still = world.ssh_start("gw-base", &["-tt"], &silent);
    still.shows("ready");
    let still_id = world.live_session("gw-base");
    let mut printing = world.ssh_start(
        "gw-base",
        &[],
        "i=1; while [ $i -le 1500 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo all",
    );
    printing.shows("line 50\n");
    until("ready", || ready(world) == 200);

    let give_back = take_away();
    let gone = Instant::now();
    let asking = started(world, "engineer", &ask("gw-base"));
    let approving = started(world, "approver", &["--json", "approve", &waiting].map(str::to_owned));
    let opening = Program::start(world.ssh_command(&["diag@gw-base.daypass", "echo reached"]));
    until("the broker to say that it is not ready", || ready(world) == 503);
    assert!(gone.elapsed() < AWAY / 2, "readiness is told at once, and not after {:?}", gone.elapsed());
    assert_eq!(world.get("/healthz").0, 200, "the process itself is well");
    // A browser on its way to the sign-in page.
    let (status, kind, body) = world.get("/login?next=/device");
    assert!(matches!(status, 302 | 303 | 503), "{status} {kind} {body}");
    std::thread::sleep(AWAY.saturating_sub(gone.elapsed()));
    give_back();

    until("the broker to be ready again", || ready(world) == 200);
    let asked = done_or_told(&asking.ends());
    let approved = done_or_told(&approving.ends());
    let opened = opening.ends();
    if opened.code() == 0 {
        assert_eq!(opened.out(), "reached\n");
    } else {
        assert_eq!(opened.out(), "", "nothing half-way: {opened}");
        opened.says("daypass: ");
    }
    println!("asked: {asked:?}\napproved: {approved:?}\nopened: {opened}");
    if let Some(asked) = asked {
        let id = asked["id"].as_str().unwrap();
        assert_eq!(world.sql(&format!("SELECT state FROM access_grant WHERE request = '{id}'")), ["live"]);
    }
    let grants = world.sql(&format!("SELECT state FROM access_grant WHERE request = '{waiting}'"));
    match &approved {
        Some(_) => assert_eq!(grants, ["live"]),
        None => {
            // Told that it failed, the approver tries again, and one of the two counts.
            if grants.is_empty() {
                let _ = world.cli("approver", &["approve", &waiting]).ok();
            }
        }
    }
    world.nothing_is_half_made();

    // A session with nothing to record goes on; one with output waits for its seal, which is bounded.
    still.send(b"words\n");
    still.shows("got words");
    let _ = still.finish().ok();
    assert_eq!(world.ended(&still_id)["end_reason"], "closed");
    printing.shows("all\n");
    let done = printing.finish().ok();
    let lines = (1..=1500).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat() + "all\n";
    assert!(done.out() == lines, "{} bytes", done.stdout.len());
    until("everything of the sessions to be gone", || sleepers(&marker).is_empty());

    assert_eq!(world.ssh(&["diag@gw-base.daypass", "echo again"]).ok().out(), "again\n");
    drop(device);
    until("no session and no recording to be open", || {
        world.sql("SELECT id FROM session WHERE state <> 'ended'").is_empty()
            && world.sql("SELECT file FROM recording WHERE state = 'open'").is_empty()
    });
    assert!(world.sql("SELECT file FROM recording WHERE state = 'interrupted'").is_empty());
    assert!(!world.log().contains("panicked"), "{}", world.log());
    world.evidence_is_whole();
    world.nothing_is_half_made();
}

#[test]
fn promise_4_access_ends_on_time_also_when_policy_changes_while_the_database_is_away() {
    let cluster = Cluster::start();
    let world = World::start_on(Some(cluster.url()));
    let _device = Device::enrol(&world, "gw-base", "lab");
    let _ = world.cli("engineer", &ask("gw-base").iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let marker = marker();
    let mut session = world.ssh_start("gw-base", &["-tt"], &format!("echo ready; exec sleep {marker}"));
    session.shows("ready");
    let id = world.live_session("gw-base");

    cluster.go_away();
    let text = "@id(\"closed\")\n@description(\"Closed for the night.\")\n\
                forbid (principal, action == Action::\"connect\", resource);\n";
    std::fs::write(world.policies().join("zz-closed.cedar"), text).unwrap();
    world.signal(Signal::SIGHUP);
    until("the session not to be judged", || world.log().contains("a session could not be judged again"));
    assert!(session.is_running(), "what cannot be read decides nothing");
    cluster.come_back();
    let done = session.ends();
    assert!(done.to_string().contains("policy does not allow this session any more"), "{done}");
    until("its process to be gone", || sleepers(&marker).is_empty());
    assert_eq!(world.ended(&id)["end_reason"], "policy_changed");
}

#[test]
fn a_database_that_is_away_for_ten_seconds_loses_nothing_on_postgresql() {
    let cluster = Cluster::start();
    let world = World::start_on(Some(cluster.url()));
    away(&world, || {
        cluster.go_away();
        Box::new(|| cluster.come_back())
    });
}

#[test]
fn a_database_that_is_held_for_ten_seconds_loses_nothing_on_sqlite() {
    let world = World::start();
    let file = world.sqlite_file();
    away(&world, || {
        let lock = Lock::take(&file);
        Box::new(|| lock.let_go())
    });
}

/// What must be on record and cannot be, for longer than anybody waits: it ends, with the reason.
#[test]
fn promise_2_no_recorder_no_session_a_database_that_stays_away_ends_what_it_cannot_record() {
    let cluster = Cluster::start();
    let world = World::start_on(Some(cluster.url()));
    world.ask("gw-0043", "10m");
    let marker = marker();
    let mut printing = world.ssh_start(
        "gw-0043",
        &["-tt"],
        &format!("setsid sleep {marker} & while sleep 0.05; do echo tick; done"),
    );
    printing.shows("tick");
    let id = world.live_session("gw-0043");
    cluster.go_away();
    let gone = Instant::now();
    let done = printing.ends();
    assert_ne!(done.code(), 0);
    let said = format!("{}{}", done.out(), done.stderr);
    assert!(said.contains("recording failed, and nothing happens here unrecorded"), "{said}");
    assert!(gone.elapsed() < Duration::from_secs(45), "{:?}", gone.elapsed());
    until("everything of the session to be gone", || sleepers(&marker).is_empty());
    let refused = world.ssh(&["diag@gw-0043.daypass", "echo reached"]).with(255);
    assert_eq!(refused.out(), "");
    refused.says("daypass: ");

    cluster.come_back();
    // Without a restart: the end is written down as soon as it can be.
    eventually("the end of the session on record", || {
        let ended = world.sql(&format!("SELECT end_reason FROM session WHERE id = '{id}'"));
        (ended == ["recorder_failed"]).then_some(())
    });
    until("its recording to be marked", || {
        world
            .sql(&format!("SELECT state FROM recording WHERE session = '{id}' AND state = 'open'"))
            .is_empty()
    });
    let marked = world.sql(&format!("SELECT state FROM recording WHERE session = '{id}' AND number = 0"));
    assert_eq!(marked, ["interrupted"]);
    assert_eq!(world.ssh(&["diag@gw-0043.daypass", "echo again"]).ok().out(), "again\n");
    assert!(!world.log().contains("panicked"), "{}", world.log());
    world.evidence_is_whole();
    world.nothing_is_half_made();
}
