//! The audit log: every event of the system, chained by hash and signed at checkpoints.
//!
//! [`append`] writes one event inside the caller's transaction and returns the [`Recorded`] that
//! [`Tx::commit`] asks for.

pub mod checkpoint;
mod event;
pub mod store;
pub mod verify;

pub use event::{Actor, Event, Kind};

use crate::db::{Db, Tx};
use daypass_protocol::ids::{DeviceId, RequestId, SessionId};
use daypass_protocol::time::Timestamp;
use sha2::{Digest, Sha256};
use sqlx::Row;

/// Proof that an event of this transaction is in the log; nothing else can make one.
#[derive(Debug)]
#[must_use = "commit the transaction with it"]
pub struct Recorded {
    _private: (),
}

/// Appends one event to the chain, in the caller's transaction.
///
/// The update of the one-row head comes first: it takes the row's lock, so that two transactions cannot
/// chain to the same event.
pub async fn append(tx: &mut Tx, at: Timestamp, event: Event) -> Result<Recorded, sqlx::Error> {
    let head = sqlx::query("UPDATE audit_head SET seq = seq + 1 WHERE one = 1 RETURNING seq, hash")
        .fetch_one(tx.conn())
        .await?;
    let (seq, prev): (i64, String) = (head.try_get(0)?, head.try_get(1)?);
    let detail = event.detail.to_string();
    let hash = link(
        &prev,
        &Stored {
            seq,
            at: at.as_millis(),
            kind: event.kind.as_str(),
            actor: &event.actor.to_string(),
            request: event.request.as_ref().map(RequestId::as_str),
            session: event.session.as_ref().map(SessionId::as_str),
            device: event.device.as_ref().map(DeviceId::as_str),
            detail: &detail,
        },
    );
    sqlx::query(
        "INSERT INTO audit_event (seq, at, kind, actor, request, session, device, detail, prev_hash, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(seq)
    .bind(at.as_millis())
    .bind(event.kind.as_str())
    .bind(event.actor.to_string())
    .bind(event.request.map(String::from))
    .bind(event.session.map(String::from))
    .bind(event.device.map(String::from))
    .bind(detail)
    .bind(prev)
    .bind(hash.clone())
    .execute(tx.conn())
    .await?;
    sqlx::query("UPDATE audit_head SET hash = $1 WHERE one = 1").bind(hash).execute(tx.conn()).await?;
    Ok(Recorded { _private: () })
}

/// Appends one event that goes with no other change of state: a refusal, a channel.
pub async fn note(db: &Db, at: Timestamp, event: Event) -> Result<(), sqlx::Error> {
    let mut tx = db.begin().await?;
    let recorded = append(&mut tx, at, event).await?;
    tx.commit(recorded).await
}

/// The fields of an event that its hash covers: all of them.
#[derive(Debug)]
pub struct Stored<'a> {
    pub seq: i64,
    pub at: i64,
    pub kind: &'a str,
    pub actor: &'a str,
    pub request: Option<&'a str>,
    pub session: Option<&'a str>,
    pub device: Option<&'a str>,
    pub detail: &'a str,
}

/// The hash that links an event to the one before it: SHA-256, hex, over `daypass-audit-1`, the previous
/// hash and each field. Every part is preceded by its length (8 bytes, big endian), and an absent field
/// is the length 2^64-1 without bytes, so that no two events have the same text.
pub fn link(prev_hash: &str, event: &Stored<'_>) -> String {
    let mut hash = Sha256::new();
    let mut part = |text: Option<&str>| match text {
        Some(text) => {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        None => hash.update(u64::MAX.to_be_bytes()),
    };
    part(Some("daypass-audit-1"));
    part(Some(prev_hash));
    part(Some(&event.seq.to_string()));
    part(Some(&event.at.to_string()));
    part(Some(event.kind));
    part(Some(event.actor));
    part(event.request);
    part(event.session);
    part(event.device);
    part(Some(event.detail));
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn events_are_chained_in_the_order_of_their_commits() {
        for db in testing::databases().await {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..20 {
                let db = db.clone();
                tasks.spawn(async move {
                    let mut tx = db.begin().await.unwrap();
                    let event =
                        Event::new(Kind::BrokerStarted, Actor::Broker).detail(serde_json::json!({ "n": n }));
                    let recorded = append(&mut tx, Timestamp(n), event).await.unwrap();
                    tx.commit(recorded).await.unwrap();
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            let rows = sqlx::query("SELECT seq, prev_hash, hash FROM audit_event ORDER BY seq")
                .fetch_all(db.pool())
                .await
                .unwrap();
            assert_eq!(rows.len(), 20);
            let mut prev = "0".repeat(64);
            for (row, seq) in rows.iter().zip(1i64..) {
                assert_eq!(row.get::<i64, _>(0), seq);
                assert_eq!(row.get::<String, _>(1), prev);
                prev = row.get(2);
            }
        }
    }

    #[tokio::test]
    async fn a_transaction_that_is_rolled_back_leaves_no_event_and_no_gap() {
        for db in testing::databases().await {
            let mut tx = db.begin().await.unwrap();
            let _lost =
                append(&mut tx, Timestamp(1), Event::new(Kind::BrokerStarted, Actor::Broker)).await.unwrap();
            drop(tx);
            let mut tx = db.begin().await.unwrap();
            let kept =
                append(&mut tx, Timestamp(2), Event::new(Kind::BrokerStarted, Actor::Broker)).await.unwrap();
            tx.commit(kept).await.unwrap();
            let rows = sqlx::query("SELECT seq FROM audit_event").fetch_all(db.pool()).await.unwrap();
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].get::<i64, _>(0), 1);
        }
    }
}
