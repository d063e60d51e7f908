use crate::broker::{Broker, Reply};
use crate::place::Place;
use crate::signing_in::me;

#[test]
fn two_processes_refresh_once() {
    let broker = Broker::start();
    broker.on("GET /v1/me", Reply::json(200, &me()));
    let place = Place::signed_in(&broker, 0);
    let both: Vec<_> = (0..2).map(|_| place.command(&["whoami"]).spawn().unwrap()).collect();
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(broker.heard("POST /v1/token").len(), 1);
    assert!(!broker.was_revoked());
    assert!(place.read("tokens.json").unwrap().contains("refresh-1"));
}

#[test]
fn a_token_that_the_broker_no_longer_takes_is_renewed_once() {
    let broker = Broker::start();
    broker.on("GET /v1/me", Reply::json(200, &me()));
    let place = Place::signed_in(&broker, 300);
    // By our clock the access token is good; the broker thinks otherwise.
    broker.accept_generation(0);
    std::fs::write(
        place.profile().join("tokens.json"),
        place.read("tokens.json").unwrap().replace("access-0", "access-old"),
    )
    .unwrap();
    assert_eq!(place.run(&["whoami"]).code, 0);
    assert_eq!(broker.heard("POST /v1/token").len(), 1);
}

#[test]
fn a_revoked_family_means_signing_in_again() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 0);
    broker.accept_generation(5);
    let told = place.run(&["whoami"]);
    assert_eq!(
        (told.code, told.err.as_str()),
        (3, "error: you are not signed in\nhint: run `daypass login`\n")
    );
    assert_eq!(place.read("tokens.json"), None);
}

#[test]
fn tokens_that_cannot_be_read_are_an_error_that_does_not_show_them() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 300);
    std::fs::write(place.profile().join("tokens.json"), "{\"refresh_token\":\"secret\"").unwrap();
    let told = place.run(&["whoami"]);
    assert_eq!(told.code, 1);
    assert!(told.err.contains("tokens.json") && !told.err.contains("secret"), "{told:?}");
}
