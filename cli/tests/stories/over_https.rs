//! `--over https`, and `daypass proxy` where it does not come to a connection.

use crate::asking::{live, request};
use crate::broker::{Broker, Reply};
use crate::place::Place;
use serde_json::json;

fn with_grant() -> (Broker, Place) {
    let broker = Broker::start();
    broker.on("GET /v1/requests", Reply::json(200, &json!({"items": [request("granted", &live())]})));
    let place = Place::signed_in(&broker, 300);
    (broker, place)
}

/// The way that `ssh` was told on its command line.
fn way(place: &Place) -> Option<String> {
    place.notes().unwrap().into_iter().find(|word| word.starts_with("ProxyCommand "))
}

#[test]
fn which_way_is_said_once_or_for_good() {
    let (_broker, place) = with_grant();
    let https = |text: &str| text.contains(" --profile default proxy -- '%h'");
    place.run(&["ssh", "gw-0042", "--over", "https"]);
    assert!(https(&way(&place).unwrap()));
    assert!(!https(&place.read("ssh_config").unwrap()) && !https(&place.read("ssh_include").unwrap()));
    place.run(&["ssh", "gw-0042"]);
    assert_eq!(way(&place), None, "it was for once");

    let told = place.run(&["setup", "ssh", "--over", "https", "--yes"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(place.read("config.toml").unwrap().contains("over = \"https\""));
    for file in ["ssh_config", "ssh_include"] {
        assert!(https(&place.read(file).unwrap()), "{file}");
    }
    place.run(&["ssh", "gw-0042"]);
    assert_eq!(way(&place), None, "it stands in the file");
    place.run(&["ssh", "gw-0042", "--over", "ssh"]);
    assert!(way(&place).unwrap().contains(" --profile default proxy --fdpass -- '%h'"));
    assert!(place.notes().unwrap().contains(&"ProxyUseFdpass yes".to_owned()));
    place.run(&["ssh", "gw-0042", "--over", "jump"]);
    assert!(way(&place).unwrap().contains("-W '[%h]:%p' daypass-gateway-default"));
    assert!(place.notes().unwrap().contains(&"ProxyUseFdpass no".to_owned()));
    // What is not said again stays as it was.
    let told = place.run(&["setup", "ssh"]);
    assert!(told.err.starts_with("Everything is in place."), "{told:?}");
    assert_eq!(place.run(&["setup", "ssh", "--over", "carrier-pigeon"]).code, 2);
    assert_eq!(place.run(&["setup", "ssh", "--over", "ssh", "--yes"]).code, 0);
    assert!(!https(&place.read("ssh_include").unwrap()));
}

#[test]
fn an_ssh_port_that_does_not_answer_is_spoken_of_before_ssh_fails() {
    let (broker, place) = with_grant();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut info = broker.info();
    info["ssh_port"] = port.into();
    broker.instead("GET /v1/broker", Reply::json(200, &info));
    let told = place.run(&["ssh", "gw-0042"]);
    assert_eq!(told.code, 7, "ssh is asked all the same: {told:?}");
    let hint = format!(
        "hint: 127.0.0.1 port {port} cannot be reached (Connection refused (os error 111)); \
         if only HTTPS gets out of your network, run `daypass setup ssh --over https`\n"
    );
    assert_eq!(told.err, hint);
    // Who goes over HTTPS needs no such port.
    let told = place.run(&["ssh", "gw-0042", "--over", "https"]);
    assert_eq!((told.code, told.err.as_str()), (7, ""));
}

#[test]
fn proxy_says_on_standard_error_why_there_is_no_connection() {
    let broker = Broker::start();
    // Its access token is over: another is got first, as for every verb.
    let place = Place::signed_in(&broker, 0);
    broker.on(
        "GET /v1/ssh/gw-0042.daypass",
        Reply::problem(503, "Too many SSH connections are being set up.", Some("Try again in a moment.")),
    );
    let told = place.run(&["proxy", "gw-0042.daypass"]);
    let said = "error: Too many SSH connections are being set up.\nhint: Try again in a moment.\n";
    assert_eq!((told.code, told.out.as_str(), told.err.as_str()), (1, "", said));
    assert_eq!(broker.heard("POST /v1/token").len(), 1);

    // Something in between that answers for the broker, and a host name that is no name.
    broker.on("GET /v1/ssh/gw-0043", Reply::json(200, &json!({})));
    let told = place.run(&["proxy", "gw-0043"]);
    assert_eq!(told.code, 1);
    assert!(
        told.err.starts_with("error: the broker's answer is not as it should be: it opened no WebSocket")
    );
    let told = place.run(&["proxy", "../requests?x#y"]);
    assert_eq!(told.code, 6, "{told:?}");
    assert_eq!(broker.heard("GET /v1/ssh/..%2Frequests%3Fx%23y").len(), 1, "it stays one name");

    let told = Place::new().run(&["proxy", "gw-0042"]);
    assert_eq!(told.code, 3, "{told:?}");
    assert!(told.err.contains("hint: run `daypass login"), "{told:?}");
}
