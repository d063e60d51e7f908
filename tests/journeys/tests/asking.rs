//! Requests raised from inside plain `ssh`: the reason is asked at the prompt, the wait is seen, and then
//! the shell is there.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, some named for their promise"
)]

use journeys::{Device, Program, World, eventually, until};

/// `ssh -tt diag@DEVICE.daypass`, as somebody at a terminal calls it.
fn at_a_terminal(world: &World, device: &str, options: &[&str], command: &[&str]) -> Program {
    let target = format!("diag@{device}.daypass");
    let mut args = vec!["-tt"];
    args.extend(options);
    args.push(&target);
    args.extend(command);
    Program::start(world.ssh_command(&args))
}

/// The one request for this device that waits.
fn pending(world: &World, device: &str) -> serde_json::Value {
    eventually("a request that waits", || {
        let found = world.json("engineer", &["requests", "--mine", "--state", "pending"]);
        found.as_array().unwrap().iter().find(|request| request["device"] == device).cloned()
    })
}

#[test]
fn the_reason_is_asked_at_the_prompt_and_the_shell_comes_with_the_approval() {
    let world = World::shared();
    let _device = Device::enrol(&world, "gw-ask", "field");
    let mut ssh = at_a_terminal(&world, "gw-ask", &[], &[]);
    ssh.complains("you have no live grant for diag on gw-ask");
    ssh.complains("say what for:");
    ssh.send("modem won't aus\x7f\x7f\x7fänswer\r".as_bytes());
    ssh.complains("waits for somebody of support-leads");
    ssh.complains("/requests/R-");
    ssh.complains("lapses in");

    let request = pending(&world, "gw-ask");
    assert_eq!(request["reason"], "modem won't änswer");
    assert_eq!(request["channels"], serde_json::json!(["shell", "exec"]));
    assert_eq!(request["duration_s"], 1800);
    let id = request["id"].as_str().unwrap();
    world.audited("request.asked", &[id, "gw-ask"]);

    let _ = world.cli("approver", &["approve", id, "--for", "10m", "--comment", "call me before"]).ok();
    ssh.complains("is granted for 10m instead of 30m. It was approved by ");
    ssh.complains(": call me before.");
    ssh.send(b"echo in-$((20 + 1)); exit 3\n");
    ssh.shows("in-21");
    let done = ssh.finish().with(3);
    assert!(!done.out().contains("waits"), "standard output is the device's: {done}");

    // The grant that is live is used again, without a word.
    let mut again = at_a_terminal(&world, "gw-ask", &[], &[]);
    again.send(b"echo again-$((1 + 1)); exit\n");
    again.shows("again-2");
    let done = again.finish().ok();
    assert!(!done.stderr.contains("grant"), "{done}");
}

#[test]
fn who_comes_again_finds_the_request_waiting() {
    let world = World::shared();
    let _device = Device::enrol(&world, "gw-twice", "field");
    let mut first = at_a_terminal(&world, "gw-twice", &["-o", "SetEnv=DAYPASS_REASON=twice"], &[]);
    first.complains("lapses in");
    let id = pending(&world, "gw-twice")["id"].as_str().unwrap().to_owned();
    // Ctrl-C leaves, and the request stays.
    first.send(b"\x03");
    let done = first.ends().with(130);
    done.says(&format!("stopped waiting; {id} stays open")).says(&format!("daypass cancel {id}"));

    let second = at_a_terminal(&world, "gw-twice", &[], &[]);
    second.complains(&format!("already waiting: {id}"));
    let asked = world.json("engineer", &["requests", "--mine", "--state", "pending"]);
    let ours = asked.as_array().unwrap().iter().filter(|request| request["device"] == "gw-twice").count();
    assert_eq!(ours, 1, "no second request");
    let _ = world.cli("approver", &["deny", &id, "--comment", "not today"]).ok();
    let done = second.ends().with(255);
    done.says("denied by").says("not today");
}

#[test]
fn promise_1_no_grant_no_bytes__what_is_typed_before_the_grant_reaches_no_device() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-ahead", "field");
    let mut ssh = at_a_terminal(&world, "gw-ahead", &["-o", "SetEnv=DAYPASS_REASON=ahead"], &["cat"]);
    ssh.complains("lapses in");
    ssh.send(b"typed ahead\r");
    let request = pending(&world, "gw-ahead");
    assert_eq!((&request["command"], &request["reason"]), (&"cat".into(), &"ahead".into()));
    assert_eq!(device.journal(), "", "nothing has reached the device");
    let _ = world.cli("approver", &["approve", request["id"].as_str().unwrap()]).ok();
    ssh.complains("is granted");
    until("the command to run", || device.journal().contains("\"opened\""));
    ssh.send(b"after the grant\r\x04");
    let done = ssh.ends().ok();
    assert!(done.out().contains("after the grant") && !done.out().contains("ahead"), "{done}");
}

#[test]
fn promise_1_no_grant_no_bytes__the_rest_of_a_pasted_reason_is_not_typed_on_the_device() {
    let world = World::shared();
    // Granted at once: the rest of the paste comes while that is decided.
    let device = Device::enrol(&world, "gw-paste", "lab");
    let mut ssh = at_a_terminal(&world, "gw-paste", &[], &["cat"]);
    ssh.complains("say what for:");
    ssh.send(b"the first line\r");
    for line in 0..20 {
        ssh.send(format!("pasted {line}\r").as_bytes());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    ssh.complains("is granted");
    until("the command to run", || device.journal().contains("\"opened\""));
    ssh.send(b"after the grant\r\x04");
    let done = ssh.ends().ok();
    assert!(done.out().contains("after the grant") && !done.out().contains("pasted"), "{done}");
    let asked = world.json("engineer", &["requests", "--mine"]);
    let asked = asked.as_array().unwrap().iter().find(|request| request["device"] == "gw-paste").unwrap();
    assert_eq!(asked["reason"], "the first line");
}

#[test]
fn promise_1_no_grant_no_bytes__scripts_are_refused_in_one_line_and_ask_for_nothing() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-script", "field");
    let env = ["-o", "SetEnv=DAYPASS_REASON=script"];
    let target = "diag@gw-script.daypass";
    // Without a terminal, and with one that is a pipe.
    for args in [&[env[0], env[1], target, "uptime"][..], &[env[0], env[1], "-tt", target]] {
        let done = Program::run(world.ssh_command(args), b"rm -rf /tmp/nothing\n").with(255);
        done.says("you have no live grant for diag on gw-script").says("daypass request gw-script -l diag");
        assert_eq!(done.out(), "", "{done}");
    }
    let asked = world.json("engineer", &["requests", "--mine"]);
    assert!(asked.as_array().unwrap().iter().all(|request| request["device"] != "gw-script"), "{asked}");
    assert_eq!(device.journal(), "");
}

#[test]
fn what_policy_refuses_at_once_is_said_at_the_prompt() {
    let world = World::shared();
    let _device = Device::enrol(&world, "gw-long", "field");
    let long = at_a_terminal(&world, "gw-long", &["-o", "SetEnv=DAYPASS_REASON=long DAYPASS_FOR=6d"], &[]);
    long.complains("is refused");
    let done = long.ends().with(255);
    done.says("hint: would be possible: ");
    for (value, says) in
        [("DAYPASS_FOR=soon", "a duration is written like"), ("DAYPASS_FOR=1s", "at least 30 seconds")]
    {
        let set = format!("SetEnv=DAYPASS_REASON=odd {value}");
        let odd = at_a_terminal(&world, "gw-long", &["-o", &set], &[]).ends();
        odd.with(255).says(says);
    }
    let unknown = at_a_terminal(&world, "gw-nowhere", &["-o", "SetEnv=DAYPASS_REASON=x"], &[]).ends();
    unknown.with(255).says("no device is called gw-nowhere");
}

#[test]
fn who_does_not_say_why_asks_for_nothing() {
    let world = World::shared();
    let _device = Device::enrol(&world, "gw-silent", "field");
    let mut ssh = at_a_terminal(&world, "gw-silent", &[], &[]);
    ssh.complains("say what for:");
    ssh.send(b"\r  \rhalf a rea\x03");
    ssh.ends().with(130).says("nothing was asked");
    let asked = world.json("engineer", &["requests", "--mine"]);
    assert!(asked.as_array().unwrap().iter().all(|request| request["device"] != "gw-silent"), "{asked}");
}

#[test]
fn a_request_that_would_not_be_enough_is_not_waited_for() {
    let world = World::shared();
    let _device = Device::enrol(&world, "gw-other", "field");
    let narrow = ["request", "gw-other", "-l", "diag", "--reason", "one look", "--", "uptime"];
    let _ = world.cli("engineer", &narrow).ok();
    let mut ssh = at_a_terminal(&world, "gw-other", &["-o", "SetEnv=DAYPASS_REASON=shell"], &[]);
    ssh.complains("lapses in");
    assert!(!ssh.err().contains("already waiting"), "{}", ssh.err());
    let asked = world.json("engineer", &["requests", "--mine", "--state", "pending"]);
    let ours = asked.as_array().unwrap().iter().filter(|request| request["device"] == "gw-other").count();
    assert_eq!(ours, 2, "one for the command, one for the shell");
    ssh.send(b"\x03");
    let _ = ssh.ends().with(130);
}
