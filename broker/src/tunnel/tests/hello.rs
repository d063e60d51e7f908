use super::world::*;
use crate::audit::{Actor, Kind};
use crate::device::testing::{events, key};
use crate::tunnel::{Limits, OpenError};
use crate::waiting::Bounds;
use daypass_protocol::api::DeviceState;
use daypass_protocol::bundle;
use daypass_protocol::signed::{Purpose, SignedText};
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::tunnel::control::{FromDevice, ToDevice};
use daypass_protocol::tunnel::hello::{
    Answer, Conversation, Enrol, EnrolAsk, Enrolled, RefusalCode, Welcome, encode_nonce,
};
use daypass_protocol::tunnel::{MAX_HELLO, TUNNEL_PATH, TUNNEL_PROTOCOL};
use std::time::Duration;

async fn refusal(dialled: &mut Dialled) -> RefusalCode {
    match dialled.hear::<Answer<Welcome>>().await {
        Answer::Refused { code, .. } => code,
        Answer::Welcome(_) => panic!("the device was let in"),
    }
}

async fn until_offline(world: &World) {
    while world.server.tunnels().is_online(&DEVICE.parse().unwrap())
        || events(&world.db, Kind::DeviceDisconnected).await == 0
    {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_device_says_hello_and_is_online_until_it_goes() {
    let world = World::new().await;
    let (device, welcome) = world.hello(DEVICE, 1).await.unwrap();
    assert!(welcome.accepts_sessions);
    let pinned: [PublicKey; 1] = [key(200).public_key().clone()];
    let trusted = bundle::open(&welcome.bundle.unwrap(), &pinned, &DEVICE.parse().unwrap(), 0).unwrap();
    assert_eq!(trusted.bundle.version, 1);
    assert_eq!(world.tunnel().tls_group(), "X25519MLKEM768");
    assert_eq!(events(&world.db, Kind::DeviceConnected).await, 1);
    drop(device);
    until_offline(&world).await;
}

#[tokio::test]
async fn a_relay_between_two_tls_connections_is_refused() {
    let world = World::new().await;
    // The device's hello is for the connection that it has with the relay.
    let mut with_device = world.dial().await;
    let binding = with_device.challenge(Conversation::Tunnel).await;
    let hello = sealed_hello(DEVICE, &key(1), &binding);
    let mut with_broker = world.dial().await;
    with_broker.challenge(Conversation::Tunnel).await;
    with_broker.say(&hello).await;
    assert_eq!(refusal(&mut with_broker).await, RefusalCode::NotAuthentic);
    assert_eq!(with_broker.close_code().await, 1000);
    assert_eq!(events(&world.db, Kind::DeviceRefused).await, 1);
    // The very same hello is good where it was made for; after that, it is a replay.
    with_device.say(&hello).await;
    assert!(matches!(with_device.hear().await, Answer::Welcome::<Welcome>(_)));
    let mut replay = world.dial().await;
    replay.challenge(Conversation::Tunnel).await;
    replay.say(&hello).await;
    assert_eq!(refusal(&mut replay).await, RefusalCode::NotAuthentic);
}

#[tokio::test]
async fn an_unknown_device_and_a_wrong_key_get_the_same_answer() {
    let world = World::new().await;
    assert_eq!(world.hello(DEVICE, 2).await.err(), Some(RefusalCode::UnknownDevice));
    assert_eq!(world.hello("gw-9999", 1).await.err(), Some(RefusalCode::UnknownDevice));
    assert!(world.server.tunnels().is_empty());
}

#[tokio::test]
async fn garbage_instead_of_a_hello_is_refused() {
    let world = World::new().await;
    for text in ["", "{}", "\u{0}\u{1b}[2J", r#"{"body":"{}","signature":""}"#] {
        let mut dialled = world.dial().await;
        dialled.challenge(Conversation::Tunnel).await;
        dialled.say_text(text).await;
        assert_eq!(refusal(&mut dialled).await, RefusalCode::Malformed, "{text:?}");
    }
}

#[tokio::test]
async fn a_hello_that_is_too_long_is_cut_off_with_1009() {
    let world = World::new().await;
    let mut dialled = world.dial().await;
    dialled.challenge(Conversation::Tunnel).await;
    dialled.say_text(&"a".repeat(MAX_HELLO + 1)).await;
    assert_eq!(dialled.close_code().await, 1009);
}

#[tokio::test]
async fn a_hello_that_never_comes_is_given_up_and_its_place_is_free_again() {
    let hello = Duration::from_millis(300);
    let hellos = Bounds { altogether: 1, per_source: 1 };
    let world = World::with(Limits { hello, hellos, ..limits() }).await;
    let mut silent = world.dial().await;
    silent.challenge(Conversation::Tunnel).await;
    let nonce = encode_nonce(&NONCE);
    let full = world.dial_with(TUNNEL_PATH, Some(TUNNEL_PROTOCOL), Some(&nonce)).await;
    assert!(full.err().unwrap().to_string().contains("503"));
    assert_eq!(silent.close_code().await, 1008);
    drop(silent);
    while world.server.hellos.taken() > 0 {
        tokio::task::yield_now().await;
    }
    world.hello(DEVICE, 1).await.unwrap();
}

#[tokio::test]
async fn who_is_silent_gives_way_to_a_device_that_comes_later() {
    let hellos = Bounds { altogether: 1, per_source: 1 };
    let world = World::with(Limits { hellos, ..limits() }).await;
    let mut silent = world.dial().await;
    silent.challenge(Conversation::Tunnel).await;
    // As a device does that was told to come again.
    let came = async {
        loop {
            let nonce = encode_nonce(&NONCE);
            match world.dial_with(TUNNEL_PATH, Some(TUNNEL_PROTOCOL), Some(&nonce)).await {
                Ok(_) => return,
                Err(full) => assert!(full.to_string().contains("503"), "{full}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), came).await.unwrap();
    assert_eq!(silent.close_code().await, 1013);
}

#[tokio::test]
async fn who_has_said_hello_waits_for_an_answer_and_is_not_sent_away() {
    let hellos = Bounds { altogether: 1, per_source: 1 };
    let world = World::with(Limits { hellos, judged: 1, ..limits() }).await;
    let busy = world.server.room_to_judge().await;
    let mut waiting = Box::pin(world.hello(DEVICE, 1));
    // Longer than what anybody who is silent is given.
    let early = tokio::time::timeout(Duration::from_millis(1500), &mut waiting).await;
    assert!(early.is_err(), "nobody is judged without room for it");
    let nonce = encode_nonce(&NONCE);
    let full = world.dial_with(TUNNEL_PATH, Some(TUNNEL_PROTOCOL), Some(&nonce)).await;
    assert!(full.err().unwrap().to_string().contains("503"));
    drop(busy);
    waiting.await.unwrap();
}

#[tokio::test]
async fn who_would_be_judged_after_they_have_left_is_told_to_come_again() {
    let world = World::with(Limits { hello: Duration::from_secs(1), judged: 1, ..limits() }).await;
    let busy = world.server.room_to_judge().await;
    let told = tokio::time::timeout(Duration::from_secs(10), world.hello(DEVICE, 1)).await.unwrap();
    assert_eq!(told.err(), Some(RefusalCode::Busy));
    drop(busy);
    world.hello(DEVICE, 1).await.unwrap();
}

#[tokio::test]
async fn an_upgrade_without_nonce_or_subprotocol_is_refused() {
    let world = World::new().await;
    let nonce = encode_nonce(&NONCE);
    for (protocol, nonce) in [
        (None, Some(nonce.as_str())),
        (Some("daypass-enrol-1"), Some(nonce.as_str())),
        (Some(TUNNEL_PROTOCOL), None),
        (Some(TUNNEL_PROTOCOL), Some("AAAA")),
    ] {
        let refused = world.dial_with(TUNNEL_PATH, protocol, nonce).await.err().unwrap();
        assert!(refused.to_string().contains("400"), "{refused}");
    }
}

#[tokio::test]
async fn a_second_connection_with_a_living_device_key_is_refused_as_a_suspected_clone() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    assert_eq!(world.hello(DEVICE, 1).await.err(), Some(RefusalCode::AlreadyConnected));
    assert_eq!(events(&world.db, Kind::CloneSuspected).await, 1);
    assert!(!tunnel.is_closed(), "the older connection stays");
    tunnel.send(ToDevice::Resume).await.unwrap();
    assert_eq!(device.hear().await, Some(ToDevice::Resume));
}

#[tokio::test]
async fn a_device_whose_first_connection_is_dead_gets_in() {
    let world = World::with(Limits { probe: Duration::from_millis(300), ..limits() }).await;
    let (device, first) = world.connect().await;
    device.freeze();
    let (_second, _) = world.hello(DEVICE, 1).await.unwrap();
    assert!(first.is_closed());
    assert!(!world.tunnel().is_closed());
    assert_eq!(events(&world.db, Kind::CloneSuspected).await, 0);
    until_disconnected(&world).await;
    assert!(!world.tunnel().is_closed(), "the end of the first does not remove the second");
}

async fn until_disconnected(world: &World) {
    while events(&world.db, Kind::DeviceDisconnected).await == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_silent_device_is_pinged_and_given_up_when_it_does_not_answer() {
    let short = Duration::from_millis(200);
    let world = World::with(Limits { silence: short, pong: short, ..limits() }).await;
    let (device, tunnel) = world.connect().await;
    // It answers pings, and lives through several of them.
    tokio::time::timeout(short * 4, tunnel.closed()).await.unwrap_err();
    device.freeze();
    tunnel.closed().await;
    until_offline(&world).await;
}

#[tokio::test]
async fn a_suspended_device_keeps_its_tunnel_and_opens_no_channel() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let id = DEVICE.parse().unwrap();
    let mut changes = world.server.changes().subscribe();
    world.server.suspend(&id, Actor::Broker, "stolen").await.unwrap();
    assert_eq!(device.hear().await, Some(ToDevice::Suspend { reason: "stolen".to_owned() }));
    assert_eq!(changes.recv().await.unwrap().state, DeviceState::Suspended);
    let refused = tunnel.open(exec(0), &session_key(), None).await;
    assert!(matches!(refused, Err(OpenError::Suspended)), "{refused:?}");
    drop(device);
    until_offline(&world).await;
    let (mut device, welcome) = world.hello(DEVICE, 1).await.unwrap();
    assert!(!welcome.accepts_sessions);
    assert!(matches!(device.hear().await, Some(ToDevice::Tick { .. })));
    world.server.resume(&id, Actor::Broker, "found").await.unwrap();
    assert_eq!(device.hear().await, Some(ToDevice::Resume));
}

#[tokio::test]
async fn a_device_that_is_quarantined_lost_or_retired_gets_no_tunnel() {
    let world = World::new().await;
    world.step(DeviceState::Active, DeviceState::Quarantined).await;
    assert_eq!(world.hello(DEVICE, 1).await.err(), Some(RefusalCode::StateForbids));
    world.step(DeviceState::Quarantined, DeviceState::Lost).await;
    assert_eq!(world.hello(DEVICE, 1).await.err(), Some(RefusalCode::StateForbids));
    world.step(DeviceState::Lost, DeviceState::Retired).await;
    assert_eq!(world.hello(DEVICE, 1).await.err(), Some(RefusalCode::StateForbids));
    assert_eq!(events(&world.db, Kind::DeviceRefused).await, 3);
}

#[tokio::test]
async fn a_hello_of_another_version_is_refused() {
    let world = World::new().await;
    let mut dialled = world.dial().await;
    let binding = dialled.challenge(Conversation::Tunnel).await;
    let sealed = sealed_hello(DEVICE, &key(1), &binding);
    let good: [PublicKey; 1] = [key(1).public_key().clone()];
    let mut hello: serde_json::Value = sealed.open(&good, Purpose::Hello, "a hello").unwrap();
    hello["v"] = 2.into();
    dialled.say(&SignedText::seal(&key(1), Purpose::Hello, &hello).unwrap()).await;
    assert_eq!(refusal(&mut dialled).await, RefusalCode::Malformed);
    assert!(world.server.tunnels().is_empty());
}

#[tokio::test]
async fn strangers_fill_the_audit_log_only_so_far_and_proven_devices_are_entered_all_the_same() {
    let world = World::new().await;
    world.step(DeviceState::Active, DeviceState::Quarantined).await;
    let mut entered = 0;
    while world.server.may_enter_stranger() {
        entered += 1;
        assert!(entered <= 60, "a stranger may fill the log");
    }
    assert_eq!(world.hello(DEVICE, 2).await.err(), Some(RefusalCode::UnknownDevice));
    assert_eq!(events(&world.db, Kind::DeviceRefused).await, 0, "that one is in the program's log");
    assert_eq!(world.hello(DEVICE, 1).await.err(), Some(RefusalCode::StateForbids));
    assert_eq!(events(&world.db, Kind::DeviceRefused).await, 1);
}

#[tokio::test]
async fn two_hellos_at_the_same_time_take_one_place() {
    let world = World::new().await;
    let device = DEVICE.parse().unwrap();
    let first = world.server.tunnels().reserve(&device, Duration::from_secs(1)).await.unwrap();
    assert_eq!(world.hello(DEVICE, 1).await.err(), Some(RefusalCode::Busy));
    drop(first);
    assert!(world.hello(DEVICE, 1).await.is_ok(), "the place is given back");
}

#[tokio::test]
async fn promise_4_access_ends_on_time_a_state_that_changed_during_the_hello_is_found() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    // Committed by somebody whom this broker's registry could not tell.
    world.step(DeviceState::Active, DeviceState::Suspended).await;
    world.server.catch_up(&tunnel, DeviceState::Active).await;
    assert!(matches!(device.hear().await, Some(ToDevice::Suspend { .. })));
    assert!(tunnel.open(exec(0), &session_key(), None).await.is_err(), "no channel opens");
    world.step(DeviceState::Suspended, DeviceState::Quarantined).await;
    world.server.catch_up(&tunnel, DeviceState::Suspended).await;
    assert!(tunnel.is_closed());
}

#[tokio::test]
async fn a_newer_trust_bundle_reaches_a_connected_device_once() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    world.server.push_bundles().await.unwrap();
    world.keys.user_cas.lock().unwrap().push(key(203).public_key().clone());
    world.server.push_bundles().await.unwrap();
    world.server.push_bundles().await.unwrap();
    tunnel.send(ToDevice::Resume).await.unwrap();
    let Some(ToDevice::Bundle { bundle: signed }) = device.hear().await else { panic!("no bundle") };
    let pinned = [key(200).public_key().clone()];
    let trusted = bundle::open(&signed, &pinned, &DEVICE.parse().unwrap(), 1).unwrap();
    assert_eq!((trusted.bundle.version, trusted.user_cas.len()), (2, 2));
    assert_eq!(device.hear().await, Some(ToDevice::Resume), "no second bundle");
}

#[tokio::test]
async fn control_garbage_and_a_stream_of_the_devices_own_end_the_tunnel() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let mut gone = tunnel.sessions_gone();
    let session = "S-00000001".parse().unwrap();
    device.say(&FromDevice::SessionGone { session }).await;
    assert_eq!(gone.recv().await.unwrap().as_str(), "S-00000001");
    device.say_bytes(&[0xff; 8]).await;
    tunnel.closed().await;
    drop(device);
    until_offline(&world).await;
    let (device, tunnel) = world.connect().await;
    device.open_a_stream().await;
    tunnel.closed().await;
}

#[tokio::test]
async fn a_device_enrols_over_the_wire_and_connects_with_its_new_id() {
    let world = World::new().await;
    let ask = daypass_protocol::api::EnrolTokenAsk {
        product_line: "edge".parse().unwrap(),
        uses: 1,
        lifetime_s: 60,
        labels: [].into(),
    };
    let mut tx = world.db.begin().await.unwrap();
    let made = crate::device::enrolment::make_token(
        &mut tx,
        world.server.trust(),
        "https://broker.example",
        &ask,
        Actor::Broker,
        crate::device::testing::NOW,
    );
    let (token, recorded) = made.await.unwrap();
    tx.commit(recorded).await.unwrap();
    let token = daypass_protocol::join::JoinToken::parse(&token.token).unwrap();
    assert_eq!(token.broker_pin, daypass_protocol::signed::fingerprint(key(200).public_key()));
    let mut dialled = world.dial_enrolment().await;
    let binding = dialled.challenge(Conversation::Enrolment).await;
    let body = Enrol {
        v: 1,
        binding,
        public_key: key(9).public_key().to_openssh().unwrap(),
        serial_number: "SN-9".to_owned(),
        device: None,
        product_line: None,
        shim_version: "0.1.0".to_owned(),
    };
    let enrol = SignedText::seal(&key(9), Purpose::Enrol, &body).unwrap();
    dialled.say(&EnrolAsk { v: 1, secret: token.secret, enrol }).await;
    let Answer::Welcome(enrolled) = dialled.hear::<Answer<Enrolled>>().await else { panic!("refused") };
    assert_eq!(dialled.close_code().await, 1000);
    assert_eq!(enrolled.device.as_str(), "sn-9");
    world.hello("sn-9", 9).await.unwrap();
}
