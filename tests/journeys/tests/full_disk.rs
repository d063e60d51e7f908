//! The disk under SQLite is full: nothing is decided, nobody comes in, nothing goes on unrecorded, everybody is
//! told why; and when there is room again all is as before, without a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Device, World, marker, sleepers, until};

const FULL: &str = "the disk that holds the broker's database is full";

#[test]
fn a_full_disk_under_sqlite_lets_nothing_happen_and_loses_nothing() {
    let (world, [disk, _recordings]) = World::on_small_disks(24);
    let device = Device::enrol(&world, "gw-full", "lab");
    let granted = world.ask("gw-full", "20m");
    let ask = ["request", "gw-0042", "-l", "diag", "--reason", "to be approved"];
    let waiting = world.json("engineer", &ask)["id"].as_str().unwrap().to_owned();
    let marker = marker();
    let silent = format!("echo ready; setsid sleep {marker} & read line; echo got $line");
    let mut still = world.ssh_start("gw-full", &["-tt"], &silent);
    still.shows("ready");
    let still_id = world.live_session("gw-full");
    let sealed = format!("SELECT number FROM recording WHERE session = '{still_id}' AND sealed_bytes > 0");
    until("all of it to be sealed", || world.sql(&sealed).len() == 2);
    let ticks = format!("setsid sleep {marker} & while sleep 0.05; do echo tick; done");
    let mut printing = world.ssh_start("gw-full", &["-tt"], &ticks);
    printing.shows("tick");
    until("both sessions", || {
        world.sessions("gw-full").iter().filter(|one| one["state"] == "open").count() == 2
    });
    let printing_id = world.sessions("gw-full")[0]["id"].as_str().unwrap().to_owned();
    assert_ne!(printing_id, still_id);
    let ready = || world.get("/readyz");
    assert_eq!(ready().0, 200);

    // From here on every commit needs room: what the write-ahead log has already is given back first.
    until("the log to be empty", || world.sql("PRAGMA wal_checkpoint(TRUNCATE)") == ["0 0 0"]);
    disk.fill();

    // What prints cannot be sealed any more: it ends, with the reason.
    let done = printing.ends();
    assert_ne!(done.code(), 0);
    let said = format!("{}{}", done.out(), done.stderr);
    assert!(said.contains("recording failed, and nothing happens here unrecorded"), "{said}");
    // Readiness says it, in the words for people.
    until("the broker to say that it is not ready", || ready().0 == 503);
    assert_eq!(ready().2.trim_end(), FULL);
    assert_eq!(world.get("/healthz").0, 200, "the process itself is well");
    // A request, an approval, a session: refused, with the reason.
    let journal = device.journal();
    for (who, args) in [
        ("engineer", &["request", "gw-full", "-l", "diag", "--reason", "more"][..]),
        ("approver", &["approve", &waiting]),
        ("engineer", &["cancel", &waiting]),
    ] {
        let refused = world.cli(who, args);
        assert_ne!(refused.code(), 0, "{refused}");
        refused.says("error:").says(FULL).says("hint:");
    }
    for args in
        [&["diag@gw-full.daypass", "echo reached"][..], &["-tt", "diag@gw-full.daypass", "echo reached"]]
    {
        let refused = world.ssh(args);
        assert_ne!(refused.code(), 0, "{refused}");
        let said = format!("{}{}", refused.out(), refused.stderr);
        assert!(said.contains(FULL) && !said.contains("reached"), "{refused}");
    }
    assert_eq!(device.journal(), journal, "nothing reached the device");
    assert!(still.is_running(), "with nothing to record it goes on");

    disk.make_room();
    until("the broker to be ready again", || ready().0 == 200);
    world.nothing_is_half_made();
    assert_eq!(world.sql("SELECT request FROM access_grant"), [granted], "no grant was made");
    let ended = world.ended(&printing_id);
    assert_eq!(ended["end_reason"], "recorder_failed", "{ended:#?}");
    let marked = format!("SELECT state FROM recording WHERE session = '{printing_id}' AND number = 0");
    until("its recording to be marked", || world.sql(&marked) == ["interrupted"]);
    still.send(b"words\n");
    still.shows("got words");
    let _ = still.finish().ok();
    assert_eq!(world.ended(&still_id)["end_reason"], "closed");
    let _ = world.cli("approver", &["approve", &waiting]).ok();
    assert_eq!(world.ssh(&["diag@gw-full.daypass", "echo again"]).ok().out(), "again\n");
    until("everything of the sessions to be gone", || sleepers(&marker).is_empty());
    until("no session and no recording to be open", || {
        world.sql("SELECT id FROM session WHERE state <> 'ended'").is_empty()
            && world.sql("SELECT file FROM recording WHERE state = 'open'").is_empty()
    });
    assert!(!world.log().contains("panicked"), "{}", world.log());
    world.evidence_is_whole();
    world.nothing_is_half_made();
}
