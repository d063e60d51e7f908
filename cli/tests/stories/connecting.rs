use crate::asking::{live, request};
use crate::broker::{Broker, Reply, now};
use crate::place::Place;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

fn mine(items: &[Value]) -> Reply {
    Reply::json(200, &json!({"items": items}))
}

#[test]
fn a_live_grant_leads_straight_to_ssh() {
    let broker = Broker::start();
    broker.on("GET /v1/requests", mine(&[request("granted", &live())]));
    let place = Place::signed_in(&broker, 300);
    let told = place.run(&["ssh", "gw-0042", "--", "ls", "-l", "a b"]);
    assert_eq!(told.code, 7, "the exit code is that of ssh: {told:?}");
    let config = place.profile().join("ssh_config");
    assert_eq!(
        place.notes().unwrap(),
        [
            "-F",
            config.to_str().unwrap(),
            "-o",
            "HostName=gw-0042.daypass",
            "-o",
            "HostKeyAlias=gw-0042.daypass",
            "-l",
            "diag",
            "--",
            "gw-0042.default.as.daypass",
            "ls",
            "-l",
            "a b"
        ]
    );
    assert!(broker.heard("POST /v1/requests").is_empty());
    assert!(broker.heard("GET /v1/requests").concat().contains("?mine=true&device=gw-0042 "));
    assert!(place.read("id_ed25519-cert.pub").unwrap().starts_with("ssh-ed25519-cert-v01@openssh.com "));

    // A certificate that lives on is not asked for again; one that is about to end is.
    place.run(&["ssh", "gw-0042"]);
    assert_eq!(broker.heard("POST /v1/me/certificate").len(), 1);
    *broker.inner.certificate_lives.lock().unwrap() = Duration::from_mins(4);
    std::fs::remove_file(place.profile().join("id_ed25519-cert.pub")).unwrap();
    place.run(&["ssh", "gw-0042"]);
    place.run(&["ssh", "gw-0042"]);
    assert_eq!(broker.heard("POST /v1/me/certificate").len(), 3);
}

#[test]
fn without_a_grant_a_request_is_raised_and_waited_for() {
    let broker = Broker::start();
    broker.on("GET /v1/requests", mine(&[]));
    broker.on("POST /v1/requests", Reply::json(201, &request("pending", &Value::Null)));
    broker.on("GET /v1/requests/R-7K2M9QXD", Reply::json(200, &request("granted", &live())));
    let place = Place::signed_in(&broker, 300);
    let told = place.run(&["ssh", "diag@gw-0042", "--reason", "modem resets", "--for", "15m"]);
    assert_eq!(told.code, 7, "{told:?}");
    assert!(told.err.contains("R-7K2M9QXD waits for somebody of support-leads"), "{told:?}");
    assert!(told.err.contains("R-7K2M9QXD is granted"), "{told:?}");
    assert!(broker.heard("POST /v1/requests").concat().contains("\"duration_s\":900"));
    assert!(place.notes().is_some());
}

#[test]
fn a_request_that_already_waits_is_joined() {
    let broker = Broker::start();
    broker.on("GET /v1/requests", mine(&[request("pending", &Value::Null)]));
    broker.on("GET /v1/requests/R-7K2M9QXD", Reply::json(200, &request("granted", &live())));
    let told = Place::signed_in(&broker, 300).run(&["ssh", "gw-0042"]);
    assert_eq!(told.code, 7, "{told:?}");
    assert!(broker.heard("POST /v1/requests").is_empty());
}

#[test]
fn ssh_is_not_started_without_a_grant() {
    for (state, code) in [("denied", 4), ("lapsed", 5)] {
        let broker = Broker::start();
        broker.on("GET /v1/requests", mine(&[]));
        broker.on("POST /v1/requests", Reply::json(201, &request(state, &Value::Null)));
        let place = Place::signed_in(&broker, 300);
        let told = place.run(&["ssh", "gw-0042", "--reason", "x"]);
        assert_eq!(told.code, code, "{told:?}");
        assert_eq!(place.notes(), None);
    }
}

#[test]
fn a_grant_that_is_over_narrower_or_for_another_login_is_not_used() {
    let mut over = live();
    over["state"] = "revoked".into();
    let mut narrow = live();
    narrow["channels"] = json!(["exec"]);
    let mut other = request("granted", &live());
    other["login"] = "root".into();
    for candidate in [request("granted", &over), request("granted", &narrow), other] {
        let broker = Broker::start();
        broker.on("GET /v1/requests", mine(&[candidate]));
        let place = Place::signed_in(&broker, 300);
        let told = place.run(&["ssh", "-l", "diag", "gw-0042"]);
        assert_eq!(
            (told.code, told.err.as_str()),
            (2, "error: access to gw-0042 needs a reason\nhint: say what for with --reason TEXT\n")
        );
        assert_eq!(place.notes(), None);
    }
}

#[test]
fn without_a_terminal_signing_in_is_not_tried() {
    let told = Place::new().run(&["ssh", "gw-0042"]);
    assert_eq!(told.code, 3, "{told:?}");
    assert!(told.err.contains("daypass login --broker"), "{told:?}");
}

fn config_path(place: &Place) -> String {
    place.profile().join("ssh_config").display().to_string()
}

/// What the real ssh makes of a configuration.
fn resolved(place: &Place, args: &[&str]) -> String {
    let output =
        Command::new("/usr/bin/ssh").args(args).env("HOME", place.dir.path().join("home")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn openssh_reads_the_generated_configuration_as_it_is_meant() {
    let broker = Broker::start();
    broker.on("GET /v1/requests", mine(&[request("granted", &live())]));
    let place = Place::signed_in(&broker, 300);
    place.run(&["ssh", "gw-0042"]);
    let notes = place.notes().unwrap();
    let mut args = vec!["-G"];
    args.extend(notes.iter().map(String::as_str));
    let device = resolved(&place, &args);
    let profile = place.profile();
    let jump = resolved(&place, &["-G", "-F", notes[1].as_str(), "daypass-gateway-default"]);
    for (options, hop) in [(&device, "device"), (&jump, "gateway")] {
        for line in [
            "identitiesonly yes".to_owned(),
            "stricthostkeychecking true".to_owned(),
            format!("identityfile {}", profile.join("id_ed25519").display()),
            format!("certificatefile {}", profile.join("id_ed25519-cert.pub").display()),
            format!("userknownhostsfile {}", profile.join("known_hosts").display()),
            "globalknownhostsfile /dev/null".to_owned(),
        ] {
            assert!(options.lines().any(|found| found == line), "{hop}: {line}\n{options}");
        }
    }
    for line in ["hostname gw-0042.daypass", "user diag", "port 22", "proxyusefdpass yes"] {
        assert!(device.lines().any(|found| found == line), "{line}\n{device}");
    }
    let proxy = " proxy --fdpass -- '%h'";
    assert!(
        device.lines().any(|line| line.starts_with("proxycommand '") && line.ends_with(proxy)),
        "{device}"
    );
    for line in ["hostname 127.0.0.1", "port 2222", "user daypass"] {
        assert!(jump.lines().any(|found| found == line), "{line}\n{jump}");
    }
}

/// What `daypass ssh` or plain ssh gets told by the broker for a ticket.
fn ticket(port: u16) -> Reply {
    let expires_at = now() + Duration::from_secs(30);
    let ticket = json!({"ticket": "T1", "expires_at": expires_at, "ssh_host": "127.0.0.1", "ssh_port": port});
    Reply::json(201, &ticket)
}

#[test]
fn ssh_is_handed_a_connection_on_which_the_ticket_was_said() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 300);
    assert_eq!(place.run(&["setup", "ssh", "--yes"]).code, 0);
    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    broker.on("POST /v1/ssh/gw-0042.daypass/tickets", ticket(gateway.local_addr().unwrap().port()));
    let mut ssh = Command::new("/usr/bin/ssh");
    ssh.arg("-F").arg(place.dir.path().join("home/.ssh/config")).arg("diag@gw-0042.daypass");
    ssh.env("HOME", place.dir.path().join("home")).stderr(Stdio::piped());
    let ssh = ssh.spawn().unwrap();
    let (connection, _) = gateway.accept().unwrap();
    let mut lines = BufReader::new(connection).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "daypass-ticket T1");
    assert!(lines.next().unwrap().unwrap().starts_with("SSH-2.0-OpenSSH"), "ssh speaks there itself");
    drop(lines);
    let said = ssh.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(255));
}

#[test]
fn a_connection_that_does_not_come_about_says_why() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 300);
    assert_eq!(place.run(&["setup", "ssh", "--yes"]).code, 0);
    // No ticket: the gateway as a jump host.
    broker.on(
        "POST /v1/ssh/gw-0042.daypass/tickets",
        Reply::problem(503, "Too many SSH connections are being set up.", None),
    );
    let told = place.run(&["proxy", "--fdpass", "gw-0042.daypass"]);
    assert_eq!(
        place.notes().unwrap(),
        ["-F", &config_path(&place), "-W", "[gw-0042.daypass]:22", "daypass-gateway-default"]
    );
    let note = "Too many SSH connections are being set up: going through the gateway as a jump host\n";
    assert!(told.err.starts_with(note), "{told:?}");
    // Standard output is a pipe here.
    assert!(told.err.contains("error: the connection could not be handed to ssh: "), "{told:?}");
    assert!(told.err.contains("`ProxyUseFdpass yes`"), "{told:?}");
    // What the gateway would say too.
    let problem = Reply::problem(400, "gw..x is not the name of a device", None);
    broker.on("POST /v1/ssh/gw..x/tickets", problem);
    let told = place.run(&["proxy", "--fdpass", "gw..x"]);
    assert_eq!((told.code, told.err.as_str()), (1, "error: gw..x is not the name of a device\n"));
    // A ticket, and nobody at the port.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    broker.on("POST /v1/ssh/gw-0043.daypass/tickets", ticket(port));
    let told = place.run(&["proxy", "--fdpass", "gw-0043.daypass"]);
    assert_eq!(told.code, 1);
    assert!(told.err.starts_with(&format!("error: 127.0.0.1 port {port} cannot be reached: ")), "{told:?}");
    assert!(told.err.contains("--over https"), "{told:?}");
    // A ticket that would be two lines.
    let mut two = json!({"ticket": "T1\r\nSSH-2.0-x", "expires_at": 0, "ssh_host": "127.0.0.1"});
    two["ssh_port"] = port.into();
    broker.on("POST /v1/ssh/gw-0044.daypass/tickets", Reply::json(201, &two));
    let told = place.run(&["proxy", "--fdpass", "gw-0044.daypass"]);
    assert!(told.err.contains("its ticket does not read"), "{told:?}");
}

#[test]
fn setup_shows_what_it_writes_asks_and_is_idempotent() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 300);
    let own = place.dir.path().join("home/.ssh/config");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    std::fs::write(&own, "Host *\n    IdentityFile ~/.ssh/own\n    ProxyCommand false\n").unwrap();

    let told = place.run(&["setup", "ssh"]);
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.err.contains("@cert-authority *.daypass ssh-ed25519 "), "{told:?}");
    assert!(!std::fs::read_to_string(&own).unwrap().contains("Include"), "nothing without a yes");

    assert_eq!(place.run(&["setup", "ssh", "--yes"]).code, 0);
    let once = std::fs::read_to_string(&own).unwrap();
    let told = place.run(&["setup", "ssh"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.err.starts_with("Everything is in place."), "{told:?}");
    assert_eq!(std::fs::read_to_string(&own).unwrap(), once);

    // A certificate that is gone comes back when plain ssh asks, and nothing else is asked for.
    std::fs::remove_file(place.profile().join("id_ed25519-cert.pub")).unwrap();
    let options = resolved(&place, &["-G", "-F", own.to_str().unwrap(), "diag@gw-0042.daypass"]);
    assert!(place.read("id_ed25519-cert.pub").is_some());
    assert!(options.contains(" proxy --fdpass -- '%h'\n"), "{options}");
    assert!(options.contains("\nproxyusefdpass yes\n"), "{options}");
    assert!(!options.contains("proxycommand false"), "{options}");

    // What `daypass ssh` calls a device by is left alone: another profile's identity must not be added.
    let options = resolved(&place, &["-G", "-F", own.to_str().unwrap(), "gw-0042.other.as.daypass"]);
    assert!(!options.contains("profiles/default"), "{options}");
    let elsewhere = resolved(&place, &["-G", "-F", own.to_str().unwrap(), "example.com"]);
    assert!(!elsewhere.contains("daypass"), "{elsewhere}");
}

#[test]
fn getting_ready_is_quiet_and_does_not_ask_the_broker_without_need() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 300);
    let told = place.run(&["ssh-ready"]);
    assert_eq!((told.code, told.out.as_str(), told.err.as_str()), (0, "", ""));
    let heard = broker.inner.heard.lock().unwrap().len();
    assert_eq!(place.run(&["ssh-ready"]).code, 0);
    assert_eq!(broker.inner.heard.lock().unwrap().len(), heard);
}

/// A request for one command, as the broker shows it.
fn one_command(state: &str, command: &str, grant: &Value) -> Value {
    let mut request = request(state, grant);
    request["command"] = command.into();
    request["channels"] = json!(["exec"]);
    request
}

#[test]
fn a_command_without_a_grant_is_asked_for_alone() {
    let broker = Broker::start();
    broker.on("GET /v1/requests", mine(&[]));
    let asked = "systemctl status a b";
    broker.on("POST /v1/requests", Reply::json(201, &one_command("pending", asked, &Value::Null)));
    broker.on("GET /v1/requests/R-7K2M9QXD", Reply::json(200, &one_command("granted", asked, &live())));
    let place = Place::signed_in(&broker, 300);
    // ssh joins with spaces, so that is what is asked for.
    let told = place.run(&["ssh", "gw-0042", "--reason", "x", "--", "systemctl", "status", "a b"]);
    assert_eq!(told.code, 7, "{told:?}");
    let sent = broker.heard("POST /v1/requests").concat();
    assert!(sent.contains("\"command\":\"systemctl status a b\""), "{sent}");
    assert!(sent.contains("\"channels\":[\"exec\"]"), "{sent}");
    assert!(told.err.contains("to run `systemctl status a b` waits"), "{told:?}");

    // Who names channels asks for those instead.
    let args = ["ssh", "gw-0042", "--reason", "x", "--channel", "shell,exec", "--", "uptime"];
    place.run(&args);
    let sent = broker.heard("POST /v1/requests").pop().unwrap();
    assert!(!sent.contains("command") && sent.contains("[\"shell\",\"exec\"]"), "{sent}");
}

#[test]
fn a_grant_of_one_command_is_used_for_that_command_only() {
    let mut grant = live();
    grant["channels"] = json!(["exec"]);
    for (args, uses) in [
        (&["ssh", "gw-0042", "--", "uptime", "-p"][..], true),
        (&["ssh", "gw-0042", "--", "uptime"], false),
        (&["ssh", "gw-0042"], false),
    ] {
        let broker = Broker::start();
        broker.on("GET /v1/requests", mine(&[one_command("granted", "uptime -p", &grant)]));
        let place = Place::signed_in(&broker, 300);
        let told = place.run(args);
        assert_eq!(told.code == 7, uses, "{told:?}");
        assert_eq!(place.notes().is_some(), uses);
    }
}

#[test]
fn a_command_that_cannot_be_shown_as_it_is_is_not_sent() {
    let broker = Broker::start();
    broker.on("GET /v1/requests", mine(&[]));
    let place = Place::signed_in(&broker, 300);
    for bad in ["ls\nrm x", "ls\u{202e}", " ls"] {
        let told = place.run(&["ssh", "gw-0042", "--reason", "x", "--", bad]);
        assert!(told.err.starts_with("error: the command "), "{told:?}");
    }
    assert!(broker.heard("POST /v1/requests").is_empty());
}
