use super::*;
use crate::device::testing::{NOW, add_line, events, key, trust};
use crate::testing;
use daypass_protocol::bundle;
use daypass_protocol::signed::SignedText;
use daypass_protocol::ssh_key::Certificate;
use daypass_protocol::tunnel::hello::Conversation;

fn binding() -> Binding {
    Binding::new(Conversation::Enrolment, &[1; 32], &[2; 32], &[3; 32])
}

async fn token(db: &Db, uses: u32) -> String {
    let (trust, _) = trust();
    let ask = EnrolTokenAsk {
        product_line: "edge".parse().unwrap(),
        uses,
        lifetime_s: 60,
        labels: [("site".to_owned(), "Porto".to_owned())].into(),
    };
    let mut tx = db.begin().await.unwrap();
    let (made, recorded) =
        make_token(&mut tx, &trust, "https://broker.example", &ask, Actor::Broker, NOW).await.unwrap();
    tx.commit(recorded).await.unwrap();
    JoinToken::parse(&made.token).unwrap().secret
}

fn body(seed: u8, serial: &str) -> Enrol {
    Enrol {
        v: 1,
        binding: binding(),
        public_key: key(seed).public_key().to_openssh().unwrap(),
        serial_number: serial.to_owned(),
        device: None,
        product_line: None,
        shim_version: "0.1.0".to_owned(),
    }
}

fn ask(secret: &str, seed: u8, enrol: &Enrol) -> EnrolAsk {
    let enrol = SignedText::seal(&key(seed), Purpose::Enrol, enrol).unwrap();
    EnrolAsk { v: 1, secret: secret.to_owned(), enrol }
}

async fn try_enrol(db: &Db, ask: &EnrolAsk, now: Timestamp) -> Result<Enrolled, EnrolError> {
    enrol(db, &trust().0, &binding(), "192.0.2.1:1", ask, now).await
}

async fn databases() -> Vec<Db> {
    let databases = testing::databases().await;
    for db in &databases {
        add_line(db, "edge").await;
    }
    databases
}

#[tokio::test]
async fn a_device_enrols_and_gets_its_id_its_certificate_and_its_bundle() {
    for db in databases().await {
        let secret = token(&db, 1).await;
        let enrolled = try_enrol(&db, &ask(&secret, 1, &body(1, "SN 00/42-A")), NOW).await.unwrap();
        assert_eq!(enrolled.device.as_str(), "sn-00-42-a");
        let pinned = [key(200).public_key().clone()];
        let trusted = bundle::open(&enrolled.bundle, &pinned, &enrolled.device, 0).unwrap();
        assert_eq!(trusted.bundle.broker_keys, enrolled.broker_keys);
        assert_eq!(trusted.bundle.version, 1);
        let certificate = Certificate::from_openssh(&enrolled.host_certificate).unwrap();
        assert_eq!(certificate.public_key(), key(1).public_key().key_data());
        let device = store::find(db.pool(), &enrolled.device).await.unwrap().unwrap();
        assert_eq!(device.state, DeviceState::Active);
        assert_eq!(device.labels["site"], "Porto");
        let ledger = store::ledger(db.pool(), &enrolled.device).await.unwrap();
        assert_eq!((ledger.len(), ledger[0].from, ledger[0].to), (1, None, DeviceState::Active));
        assert_eq!(events(&db, Kind::DeviceEnrolled).await, 1);
        assert_eq!(events(&db, Kind::DeviceStateChanged).await, 1);
    }
}

#[tokio::test]
async fn a_join_token_used_twice_lets_in_one_device() {
    for db in databases().await {
        let secret = token(&db, 1).await;
        try_enrol(&db, &ask(&secret, 1, &body(1, "s1")), NOW).await.unwrap();
        let refused = try_enrol(&db, &ask(&secret, 2, &body(2, "s2")), NOW).await.unwrap_err();
        assert!(matches!(refused, EnrolError::TokenUsedUp), "{refused}");
        assert_eq!(refused.code(), RefusalCode::TokenUnusable);
        assert!(store::find(db.pool(), &"s2".parse().unwrap()).await.unwrap().is_none());
        assert_eq!(events(&db, Kind::EnrolmentRefused).await, 1);
    }
}

#[tokio::test]
async fn of_two_devices_that_race_for_the_last_use_one_is_refused() {
    for db in databases().await {
        let secret = token(&db, 1).await;
        let (one, two) = (ask(&secret, 1, &body(1, "s1")), ask(&secret, 2, &body(2, "s2")));
        let (one, two) = tokio::join!(try_enrol(&db, &one, NOW), try_enrol(&db, &two, NOW));
        assert!(one.is_ok() != two.is_ok());
        let refused = one.err().or(two.err()).unwrap();
        assert!(matches!(refused, EnrolError::TokenUsedUp), "{refused}");
    }
}

#[tokio::test]
async fn an_expired_join_token_and_one_for_another_product_line_let_nobody_in() {
    for db in databases().await {
        let secret = token(&db, 1).await;
        let late = NOW + Duration::from_mins(1);
        let refused = try_enrol(&db, &ask(&secret, 1, &body(1, "s1")), late).await.unwrap_err();
        assert!(matches!(refused, EnrolError::TokenExpired(_)), "{refused}");
        let other = Enrol { product_line: Some("chargers".to_owned()), ..body(1, "s1") };
        let refused = try_enrol(&db, &ask(&secret, 1, &other), NOW).await.unwrap_err();
        assert!(matches!(refused, EnrolError::OtherLine { .. }), "{refused}");
        // Neither has used it up.
        try_enrol(&db, &ask(&secret, 1, &body(1, "s1")), NOW).await.unwrap();
    }
}

#[tokio::test]
async fn possession_of_the_key_is_proven_on_this_connection() {
    for db in databases().await {
        let secret = token(&db, 9).await;
        let elsewhere = Binding::new(Conversation::Enrolment, &[9; 32], &[2; 32], &[3; 32]);
        let cases = [
            ask("guessed", 1, &body(1, "s1")),
            ask(&secret, 1, &Enrol { binding: elsewhere, ..body(1, "s1") }),
            // Signed by one key, naming another.
            ask(&secret, 2, &body(1, "s1")),
        ];
        for case in cases {
            let refused = try_enrol(&db, &case, NOW).await.unwrap_err();
            assert_eq!(refused.code(), RefusalCode::NotAuthentic, "{refused}");
        }
        let hello = SignedText::seal(&key(1), Purpose::Hello, &body(1, "s1")).unwrap();
        let refused = try_enrol(&db, &EnrolAsk { v: 1, secret, enrol: hello }, NOW).await.unwrap_err();
        assert_eq!(refused.code(), RefusalCode::NotAuthentic, "a signature for another purpose");
        assert_eq!(events(&db, Kind::EnrolmentRefused).await, 4);
    }
}

#[tokio::test]
async fn an_id_a_serial_number_and_a_key_belong_to_one_device() {
    for db in databases().await {
        let secret = token(&db, 9).await;
        let first = Enrol { device: Some("gw-1".parse().unwrap()), ..body(1, "s1") };
        try_enrol(&db, &ask(&secret, 1, &first), NOW).await.unwrap();
        let id = Enrol { device: Some("gw-1".parse().unwrap()), ..body(2, "s2") };
        let refused = try_enrol(&db, &ask(&secret, 2, &id), NOW).await.unwrap_err();
        assert!(matches!(refused, EnrolError::IdTaken(_)), "{refused}");
        let refused = try_enrol(&db, &ask(&secret, 2, &body(2, "s1")), NOW).await.unwrap_err();
        assert!(matches!(refused, EnrolError::SerialTaken(_)), "{refused}");
        let refused = try_enrol(&db, &ask(&secret, 1, &body(1, "s3")), NOW).await.unwrap_err();
        assert!(matches!(refused, EnrolError::KeyTaken), "{refused}");
        // The same device again: the answer was lost.
        let again = try_enrol(&db, &ask(&secret, 1, &first), NOW).await.unwrap();
        assert_eq!(again.device.as_str(), "gw-1");
        for serial in ["", "a\u{202e}b", "x".repeat(101).as_str(), "--"] {
            let refused = try_enrol(&db, &ask(&secret, 3, &body(3, serial)), NOW).await.unwrap_err();
            assert_eq!(refused.code(), RefusalCode::Malformed, "{serial:?} {refused}");
        }
    }
}

#[tokio::test]
async fn a_join_token_is_bounded_and_kept_only_as_a_hash() {
    for db in databases().await {
        let secret = token(&db, 1).await;
        let row = sqlx::query("SELECT secret_hash FROM join_token").fetch_one(db.pool()).await.unwrap();
        let kept: String = sqlx::Row::get(&row, 0);
        assert_ne!(kept, secret);
        assert_eq!(kept, JoinToken::secret_hash(&secret));
        let good = EnrolTokenAsk {
            product_line: "edge".parse().unwrap(),
            uses: 1,
            lifetime_s: 60,
            labels: [].into(),
        };
        let bad = [
            EnrolTokenAsk { uses: 0, ..good.clone() },
            EnrolTokenAsk { uses: MAX_USES + 1, ..good.clone() },
            EnrolTokenAsk { lifetime_s: 0, ..good.clone() },
            EnrolTokenAsk { lifetime_s: u64::MAX, ..good.clone() },
            EnrolTokenAsk { labels: [("a=b".to_owned(), String::new())].into(), ..good.clone() },
            EnrolTokenAsk { labels: [("a".to_owned(), "\x1b[2J".to_owned())].into(), ..good.clone() },
            EnrolTokenAsk { product_line: "nothing".parse().unwrap(), ..good },
        ];
        for ask in bad {
            let mut tx = db.begin().await.unwrap();
            let (trust, _) = trust();
            let made = make_token(&mut tx, &trust, "https://b", &ask, Actor::Broker, NOW).await;
            assert!(made.is_err(), "{ask:?}");
            assert!(!matches!(made, Err(MakeTokenError::Database(_))), "{made:?}");
        }
    }
}
