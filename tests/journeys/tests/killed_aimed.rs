//! The broker is killed while it issues a session's certificate, between the certificate and the recorder, and in
//! the middle of a seal: on PostgreSQL it is held at the very statement, on SQLite at many instants. What it leaves
//! is whole up to the last seal, marked, and nothing of it is half made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Chance, Held, Postgres, Program, World, recordings_of, shown, until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const DEVICE: &str = "gw-0043";
const ROUNDS: usize = 6;
/// More than one seal's worth, and it does not end by itself.
const FLOOD: &str = "stty raw -echo; seq -f line-%040.0f 100000000";

fn opening(world: &World) -> Program {
    Program::start(world.ssh_command(&[&format!("diag@{DEVICE}.daypass"), "echo reached; exit 3"]))
}

/// After the kill: everybody is gone, the broker starts again, and what is there belongs together.
fn starts_again(world: &World) {
    world.crash();
    world.start_again();
    world.evidence_is_whole();
    world.nothing_is_half_made();
    let open = world.sql("SELECT id FROM session WHERE state <> 'ended'");
    assert!(open.is_empty(), "{open:?}");
    let open = world.sql("SELECT file FROM recording WHERE state = 'open'");
    assert!(open.is_empty(), "{open:?}");
    until("the device to be back", || {
        world.ssh(&[&format!("diag@{DEVICE}.daypass"), "echo again"]).out() == "again\n"
    });
}

fn was_cut(program: Program) {
    let done = program.ends();
    assert_eq!(done.code(), 255, "{done}");
    assert_eq!(done.out(), "", "{done}");
}

/// A terminal that has been printing for some seals.
fn flooding(world: &World, seals: usize) -> (Program, String) {
    let mut flood = world.ssh_start(DEVICE, &["-tt"], FLOOD);
    flood.shows("line-0000000000000000000000000000000000009999");
    let id = world.live_session(DEVICE);
    let sealed = format!("SELECT seq FROM audit_event WHERE session = '{id}' AND kind = 'recording.sealed'");
    until("some seals", || world.sql(&sealed).len() >= seals);
    (flood, id)
}

/// The recording of a flood that was cut: interrupted, sealed to some length and not to its whole, and it has what
/// was delivered.
fn is_valid_to_its_seal(world: &World, flood: Program, id: &str) {
    let delivered = flood.ends().out();
    let row = format!("SELECT state, sealed_bytes FROM recording WHERE session = '{id}' AND number = 1");
    let rows = world.sql(&row);
    let (state, sealed) = rows[0].split_once(' ').unwrap();
    assert_eq!(state, "interrupted");
    let cast = recordings_of(&world.broker(), id)
        .into_iter()
        .find(|file| file.extension().is_some_and(|kind| kind == "cast"));
    let cast = std::fs::read(cast.expect("the terminal's recording")).unwrap();
    let sealed: usize = sealed.parse().unwrap();
    println!("sealed {sealed} of {} bytes; delivered {}", cast.len(), delivered.len());
    assert!(0 < sealed && sealed <= cast.len());
    let delivered = delivered.rsplit_once('\n').unwrap().0;
    assert!(shown(&String::from_utf8_lossy(&cast)).starts_with(delivered), "delivered and not recorded");
    let ended = format!("SELECT end_reason FROM session WHERE id = '{id}'");
    assert_eq!(world.sql(&ended), ["interrupted"]);
}

#[test]
fn a_broker_killed_at_the_certificate_and_at_the_seal_leaves_no_half_on_postgresql() {
    let database = Postgres::create("aimed");
    let world = World::start_on(Some(database.url()));
    world.ask(DEVICE, "30m");
    let count = |table: &str| world.sql(&format!("SELECT COUNT(*) FROM {table}"))[0].parse::<u32>().unwrap();

    // The certificate is signed, and its row waits: nothing of the session is there.
    let (sessions, certificates) = (count("session"), count("certificate"));
    let held = Held::table(&database.url(), "certificate");
    let ssh = opening(&world);
    held.is_waited_for();
    world.kill();
    was_cut(ssh);
    held.let_go();
    until("the cut transaction to be gone", || {
        world.sql("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").is_empty()
    });
    assert_eq!((count("session"), count("certificate")), (sessions, certificates), "nothing was committed");
    starts_again(&world);

    // The certificate is issued, and nothing can be recorded yet: it is on record, revoked, and used by nobody.
    let (sessions, journal) = (count("session"), world.journal(DEVICE));
    let held = Held::table(&database.url(), "recording");
    let ssh = opening(&world);
    held.is_waited_for();
    world.kill();
    was_cut(ssh);
    held.let_go();
    assert_eq!(count("session"), sessions + 1);
    assert_eq!(world.journal(DEVICE), journal, "nothing reached the device");
    starts_again(&world);
    let unused = "SELECT s.end_reason FROM session s JOIN certificate c ON c.session = s.id
        WHERE c.revoked_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM recording r WHERE r.session = s.id)";
    assert_eq!(world.sql(unused), ["interrupted"]);

    // The files are on the disk, and the seal waits.
    let (flood, id) = flooding(&world, 2);
    let held = Held::table(&database.url(), "recording");
    held.is_waited_for();
    world.kill();
    held.let_go();
    starts_again(&world);
    is_valid_to_its_seal(&world, flood, &id);
}

#[test]
fn a_broker_killed_while_sessions_open_and_seals_are_made_leaves_no_half_on_sqlite() {
    let world = World::start();
    world.ask(DEVICE, "30m");
    let mut chance = Chance::default();
    for round in 0..ROUNDS {
        let (flood, id) = flooding(&world, 1);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        let done = opening(&world).ends();
                        assert!(matches!(done.code(), 3 | 255), "{done}");
                    }
                });
            }
            std::thread::sleep(chance.within(Duration::from_millis(600)));
            world.kill();
            over.store(true, Ordering::SeqCst);
        });
        starts_again(&world);
        println!("round {round}");
        is_valid_to_its_seal(&world, flood, &id);
    }
    let unopened = "SELECT id FROM session s WHERE end_reason = 'interrupted' AND NOT EXISTS
        (SELECT 1 FROM audit_event e WHERE e.session = s.id AND e.kind = 'session.opened')";
    println!("killed between certificate and opening: {}", world.sql(unopened).len());
}
