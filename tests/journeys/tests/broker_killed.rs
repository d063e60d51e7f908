//! The broker is killed at every step of a request's journey: sign-in, request, approval, grant, opening,
//! certificate, recording with bytes flowing, end. Whatever was answered is still there, nothing is half
//! made, everybody is told, and the story goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{
    Chance, Device, Postgres, Program, World, eventually, marker, recordings_of, shown, sleepers, until,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

const ROUNDS: usize = 4;
const DEVICE: &str = "gw-kill";

/// What the broker has said yes to, over all rounds.
#[derive(Default)]
struct Answered {
    /// Cookie jars of browsers that were let in.
    browsers: Vec<PathBuf>,
    asked: Vec<String>,
    approved: Vec<String>,
    granted: Vec<String>,
    /// Sessions that ran to their end.
    sessions: u32,
}

/// How many calls were cut off in the middle, of each kind.
#[derive(Debug, Default)]
struct Cut {
    sign_in: AtomicU32,
    ask: AtomicU32,
    approve: AtomicU32,
    grant: AtomicU32,
    open: AtomicU32,
}

/// Signs a browser in, as far as the broker answers.
fn sign_in(world: &World, jar: &Path) -> bool {
    let curl = |args: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-ks", "--noproxy", "*", "--max-time", "30", "-o", "/dev/null", "-c"]).arg(jar);
        curl.arg("-b").arg(jar).args(args);
        Program::run(curl, b"")
    };
    let start = format!("https://127.0.0.1:{}/login?next=/device", world.port("https"));
    let sent = curl(&["-w", "%{redirect_url}", &start]);
    if sent.code() != 0 || sent.out().is_empty() {
        return false;
    }
    let authorize = format!("{}&login_hint=engineer&prompt=none", sent.out());
    // To the page behind the sign-in, or nowhere.
    let back = curl(&["-L", "-w", "%{http_code} %{url_effective}", &authorize]);
    back.code() == 0 && back.out().starts_with("200 ") && back.out().ends_with("/device")
}

fn is_signed_in(world: &World, jar: &Path) -> bool {
    let mut curl = Command::new("curl");
    curl.args(["-ks", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", "-b"]).arg(jar);
    curl.arg(format!("https://127.0.0.1:{}/v1/me", world.port("https")));
    Program::run(curl, b"").out() == "200"
}

/// What a person's command line was told, or nothing if it was cut off.
fn told(world: &World, persona: &str, args: &[&str]) -> Option<serde_json::Value> {
    let mut all = vec!["--json"];
    all.extend(args);
    let done = world.cli(persona, &all);
    (done.code() == 0).then(|| done.json())
}

fn ask(world: &World, device: &str, reason: &str) -> Option<serde_json::Value> {
    let what = ["--channel", "shell,exec,sftp", "--for", "30m", "--reason", reason];
    told(world, "engineer", &[&["request", device, "-l", "diag"], &what[..]].concat())
}

fn id(answer: &serde_json::Value) -> String {
    answer["id"].as_str().unwrap().to_owned()
}

/// Sessions of each kind, with bytes flowing.
struct Flowing {
    terminal: Program,
    command: Program,
    upload: Program,
    marker: String,
    ids: Vec<String>,
}

impl Flowing {
    fn start(world: &World, device: &Device, round: usize) -> Self {
        let marker = marker();
        let lines = "i=1; while :; do echo line $i; i=$((i+1)); sleep 0.01; done";
        let both = format!("stty -onlcr 2>/dev/null; setsid sleep {marker} & sleep {marker} & {lines}");
        let mut terminal = world.ssh_start(DEVICE, &["-tt"], &both);
        let mut command = world.ssh_start(DEVICE, &[], &both);
        let (from, to) = (device.dir.join("big"), device.dir.join(format!("big-{round}")));
        if !from.exists() {
            std::fs::File::create(&from).unwrap().set_len(4 << 30).unwrap();
        }
        let mut sftp = Command::new("sftp");
        sftp.arg("-F").arg(world.home("engineer").join(".ssh/config"));
        sftp.args(["-b", "-", &format!("diag@{DEVICE}.daypass")]);
        sftp.env_remove("SSH_AUTH_SOCK").env("HOME", world.home("engineer"));
        let mut upload = Program::start(sftp);
        upload.send(format!("put {} {}\n", from.display(), to.display()).as_bytes());
        terminal.shows("line 20\n");
        command.shows("line 20\n");
        until("bytes to arrive", || std::fs::metadata(&to).is_ok_and(|file| file.len() > 200_000));
        let ids = eventually("three sessions", || {
            let live = world.json("engineer", &["sessions", "--live", "--device", DEVICE]);
            let ids: Vec<_> = live.as_array()?.iter().map(id).collect();
            (ids.len() == 3).then_some(ids)
        });
        Self { terminal, command, upload, marker, ids }
    }
}

/// Everybody at it at once, until the broker is killed.
fn kill_amid_everything(world: &World, round: usize, after: Duration, answered: &mut Answered, cut: &Cut) {
    let over = AtomicBool::new(false);
    let begun = [const { AtomicBool::new(false) }; 5];
    let (to_approve, waiting) = mpsc::channel::<String>();
    // What the round before left.
    for request in world.json("engineer", &["requests", "--mine", "--state", "pending"]).as_array().unwrap() {
        to_approve.send(id(request)).unwrap();
    }
    let note = |counter: &AtomicU32| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        let browsers = scope.spawn(|| {
            let mut in_order = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let jar = world.dir().join(format!("jar-{round}-{}", in_order.len()));
                if sign_in(world, &jar) {
                    in_order.push(jar);
                    begun[0].store(true, Ordering::SeqCst);
                } else {
                    note(&cut.sign_in);
                }
            }
            in_order
        });
        let asking = scope.spawn(|| {
            let mut asked = Vec::new();
            let to_approve = to_approve;
            while !over.load(Ordering::SeqCst) {
                match ask(world, "gw-0042", "somebody has to approve it") {
                    Some(request) => {
                        assert_eq!(request["state"], "pending", "{request}");
                        let _ = to_approve.send(id(&request));
                        asked.push(id(&request));
                        begun[1].store(true, Ordering::SeqCst);
                    }
                    None => note(&cut.ask),
                }
            }
            asked
        });
        let approving = scope.spawn(|| {
            let mut approved = Vec::new();
            // Until the engineer stops asking.
            for request in waiting {
                match told(world, "approver", &["approve", &request]) {
                    Some(answer) => {
                        assert_eq!(answer["state"], "granted", "{answer}");
                        approved.push(request);
                        begun[2].store(true, Ordering::SeqCst);
                    }
                    None => note(&cut.approve),
                }
            }
            approved
        });
        let granting = scope.spawn(|| {
            let mut granted = Vec::new();
            while !over.load(Ordering::SeqCst) {
                match ask(world, DEVICE, "granted at once") {
                    Some(request) => {
                        assert_eq!(request["state"], "granted", "{request}");
                        granted.push(id(&request));
                        begun[3].store(true, Ordering::SeqCst);
                    }
                    None => note(&cut.grant),
                }
            }
            granted
        });
        let opening: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut ended = 0;
                    while !over.load(Ordering::SeqCst) {
                        let done = world.ssh(&[&format!("diag@{DEVICE}.daypass"), "echo reached; exit 3"]);
                        if done.code() == 3 {
                            assert_eq!(done.out(), "reached\n");
                            ended += 1;
                            begun[4].store(true, Ordering::SeqCst);
                        } else {
                            assert_eq!(done.code(), 255, "{done}");
                            note(&cut.open);
                        }
                    }
                    ended
                })
            })
            .collect();
        // A while after everybody had an answer: somewhere in the middle of what comes next.
        if round == 0 {
            until("every step once", || begun.iter().all(|one| one.load(Ordering::SeqCst)));
        }
        std::thread::sleep(after);
        world.kill();
        over.store(true, Ordering::SeqCst);
        answered.browsers.extend(browsers.join().unwrap());
        answered.asked.extend(asking.join().unwrap());
        answered.approved.extend(approving.join().unwrap());
        answered.granted.extend(granting.join().unwrap());
        answered.sessions += opening.into_iter().map(|one| one.join().unwrap()).sum::<u32>();
    });
    world.crash();
}

fn nothing_answered_is_lost(world: &World, answered: &Answered) {
    let requests = world.sql("SELECT id FROM request");
    for id in answered.asked.iter().chain(&answered.granted) {
        assert!(requests.contains(id), "{id} was answered and is lost");
    }
    let grants = world.sql("SELECT request FROM access_grant");
    for id in answered.approved.iter().chain(&answered.granted) {
        assert!(grants.contains(id), "{id} was granted and is lost");
    }
    let approvals = world.sql("SELECT request FROM answer WHERE verdict = 'approve'");
    for id in &answered.approved {
        assert!(approvals.contains(id), "the approval of {id} is lost");
    }
    if let Some(newest) = answered.browsers.last() {
        assert!(is_signed_in(world, newest), "a browser that was let in is not any more");
    }
}

/// Without the broker: what it wrote before it delivered.
fn delivered_is_recorded(world: &World, terminal: &str, sessions: &[String]) {
    let delivered = terminal.rsplit_once('\n').unwrap().0;
    let recorded =
        sessions.iter().flat_map(|session| recordings_of(&world.broker(), session)).find_map(|file| {
            let cast = file.extension().is_some_and(|kind| kind == "cast");
            cast.then(|| std::fs::read(&file).unwrap())
        });
    let recorded = shown(&String::from_utf8_lossy(&recorded.expect("the terminal's recording")));
    assert!(recorded.starts_with(delivered), "delivered {delivered:?}, recorded {recorded:?}");
}

fn killed_at_every_step(world: &World) {
    let mut chance = Chance::default();
    let device = Device::enrol(world, DEVICE, "lab");
    assert_eq!(ask(world, DEVICE, "for the whole story").unwrap()["state"], "granted");
    let (mut answered, cut) = (Answered::default(), Cut::default());
    for round in 0..ROUNDS {
        let flowing = Flowing::start(world, &device, round);
        let after = chance.within(Duration::from_millis(700));
        kill_amid_everything(world, round, after, &mut answered, &cut);
        let terminal = flowing.terminal.ends();
        for done in [&terminal, &flowing.command.ends(), &flowing.upload.ends()] {
            assert_ne!(done.code(), 0, "{done}");
            let told = ["closed", "Connection reset", "Broken pipe", "Connection"];
            assert!(told.iter().any(|word| done.stderr.contains(word)), "{done}");
        }
        delivered_is_recorded(world, &terminal.out(), &flowing.ids);

        world.start_again();
        world.evidence_is_whole();
        world.nothing_is_half_made();
        nothing_answered_is_lost(world, &answered);
        let open = world.sql("SELECT id FROM session WHERE state <> 'ended'");
        assert!(open.is_empty(), "after {after:?}: {open:?}");
        let open = world.sql("SELECT file FROM recording WHERE state = 'open'");
        assert!(open.is_empty(), "after {after:?}: {open:?}");
        for session in &flowing.ids {
            let ended = format!("SELECT end_reason FROM session WHERE id = '{session}'");
            assert_eq!(world.sql(&ended), ["interrupted"]);
            let events = format!("SELECT state FROM recording WHERE session = '{session}' AND number = 0");
            assert_eq!(world.sql(&events), ["interrupted"]);
        }
        device.is_online(world);
        until("every process of the sessions to be gone", || sleepers(&flowing.marker).is_empty());
        // The grant outlives the broker.
        assert_eq!(world.ssh(&[&format!("diag@{DEVICE}.daypass"), "echo again"]).ok().out(), "again\n");
        let _ = std::fs::remove_file(device.dir.join(format!("big-{round}")));
    }
    println!(
        "answered: {} browsers, {} asked, {} approved, {} granted, {} sessions; cut off: {cut:?}",
        answered.browsers.len(),
        answered.asked.len(),
        answered.approved.len(),
        answered.granted.len(),
        answered.sessions
    );
    // Each step was in flight, and each had been answered before.
    for (step, cut) in [
        ("sign-in", &cut.sign_in),
        ("request", &cut.ask),
        ("approval", &cut.approve),
        ("grant", &cut.grant),
        ("opening", &cut.open),
    ] {
        assert!(cut.load(Ordering::Relaxed) > 0, "no {step} was cut off");
    }
    assert!(!answered.browsers.is_empty() && !answered.asked.is_empty() && !answered.granted.is_empty());
    world.stop();
    world.evidence_is_whole();
    world.nothing_is_half_made();
}

#[test]
fn a_broker_killed_at_any_step_loses_no_decision_on_sqlite() {
    killed_at_every_step(&World::start());
}

#[test]
fn a_broker_killed_at_any_step_loses_no_decision_on_postgresql() {
    let database = Postgres::create("killed");
    killed_at_every_step(&World::start_on(Some(database.url())));
}
