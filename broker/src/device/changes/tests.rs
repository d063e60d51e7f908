use super::*;
use crate::db::{Db, violates};
use crate::device::store::Filter;
use crate::device::testing::{NOW, add_line, commit, events, key};
use crate::testing;
use daypass_protocol::signed::fingerprint;

async fn add(db: &Db, id: &str, seed: u8, label: &str) -> DeviceId {
    let device: DeviceId = id.parse().unwrap();
    let mut tx = db.begin().await.unwrap();
    let new = store::NewDevice {
        id: &device,
        serial_number: &format!("SN-{id}"),
        product_line: &"edge".parse().unwrap(),
        public_key: &key(seed).public_key().to_openssh().unwrap(),
        key_fingerprint: &fingerprint(key(seed).public_key()),
        labels: &[("site".to_owned(), label.to_owned())].into(),
        shim_version: "0.1.0",
    };
    let step = Step::new(None, DeviceState::Active).unwrap();
    store::add_enrolled(&mut tx, &new, step, NOW).await.unwrap();
    commit(tx).await;
    device
}

#[tokio::test]
async fn a_suspension_stands_in_the_ledger_and_in_the_audit_log_and_is_taken_back() {
    for db in testing::databases().await {
        add_line(&db, "edge").await;
        let id = add(&db, "gw-1", 1, "Porto").await;
        let mut tx = db.begin().await.unwrap();
        let (change, recorded) = suspend(&mut tx, &id, Actor::Broker, " stolen ", NOW).await.unwrap();
        tx.commit(recorded).await.unwrap();
        assert_eq!((change.state, change.reason.as_str()), (DeviceState::Suspended, "stolen"));
        let mut tx = db.begin().await.unwrap();
        let again = suspend(&mut tx, &id, Actor::Broker, "twice", NOW).await;
        assert!(matches!(again, Err(ChangeError::Illegal(_))), "{again:?}");
        drop(tx);
        let mut tx = db.begin().await.unwrap();
        let (_, recorded) = resume(&mut tx, &id, Actor::Broker, "found", NOW).await.unwrap();
        tx.commit(recorded).await.unwrap();
        let ledger = store::ledger(db.pool(), &id).await.unwrap();
        assert_eq!(ledger.iter().map(|entry| entry.reason.as_str()).collect::<Vec<_>>(), ["stolen", "found"]);
        assert_eq!(events(&db, Kind::DeviceStateChanged).await, 2);
        for reason in ["", "a\x1b[2J", "x".repeat(100_000).as_str()] {
            let mut tx = db.begin().await.unwrap();
            assert!(suspend(&mut tx, &id, Actor::Broker, reason, NOW).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_device_that_is_retired_is_not_resumed_by_code_nor_by_the_schema() {
    for db in testing::databases().await {
        add_line(&db, "edge").await;
        let id = add(&db, "gw-1", 1, "Porto").await;
        let mut tx = db.begin().await.unwrap();
        let retire = Step::new(Some(DeviceState::Active), DeviceState::Retired).unwrap();
        store::take_step(&mut tx, &id, retire).await.unwrap();
        commit(tx).await;
        let mut tx = db.begin().await.unwrap();
        assert!(matches!(
            resume(&mut tx, &id, Actor::Broker, "please", NOW).await,
            Err(ChangeError::Illegal(_))
        ));
        let error = sqlx::query("UPDATE device SET prior_state = state, state = 'active' WHERE id = 'gw-1'")
            .execute(tx.conn())
            .await
            .unwrap_err();
        assert!(violates(&error, &["device_transition_is_legal", "FOREIGN KEY"]), "{error}");
    }
}

#[tokio::test]
async fn devices_are_found_by_line_label_and_text_page_by_page() {
    for db in testing::databases().await {
        add_line(&db, "edge").await;
        for n in 0..102u8 {
            add(&db, &format!("gw-{n:03}"), n, if n % 2 == 0 { "Porto" } else { "Lyon" }).await;
        }
        let (page, next) = store::list(db.pool(), &Filter::default()).await.unwrap();
        assert_eq!((page.len(), next.as_ref().unwrap().as_str()), (100, "gw-099"));
        let rest = Filter { after: next, ..Filter::default() };
        let (page, next) = store::list(db.pool(), &rest).await.unwrap();
        assert_eq!((page.len(), next), (2, None));
        let porto = Filter { labels: vec![("site".to_owned(), "Porto".to_owned())], ..Filter::default() };
        assert_eq!(store::list(db.pool(), &porto).await.unwrap().0.len(), 51);
        let text = Filter { text: Some("sn-GW-007".to_owned()), ..Filter::default() };
        assert_eq!(store::list(db.pool(), &text).await.unwrap().0[0].id.as_str(), "gw-007");
        let other = Filter { line: Some("other".parse().unwrap()), ..Filter::default() };
        assert!(store::list(db.pool(), &other).await.unwrap().0.is_empty());
    }
}
