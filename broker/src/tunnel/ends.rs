//! The ends of devices' connections, written down.
//!
//! Thousands can end in one moment: a network goes, or the broker stops. One task writes them, many to a
//! transaction, so that devices which come back meanwhile do not stand in a line behind those who left; and it
//! tries again for as long as the database does not take them.

use crate::audit::{self, Actor, Event, Kind};
use crate::clock::Clock;
use crate::db::{Db, Patience};
use crate::device::store;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::text::made_visible;
use std::net::SocketAddr;
use tokio::sync::{mpsc, watch};

/// Most ends in one transaction: others want the database too.
const AT_ONCE: usize = 200;

/// A connection that is over.
#[derive(Debug)]
pub struct Ended {
    pub device: DeviceId,
    pub peer: SocketAddr,
    pub why: String,
}

/// The way to the task that writes. Bounded by how many connections there can be.
#[derive(Debug)]
pub struct Ends {
    sender: mpsc::UnboundedSender<Ended>,
    /// How many are not written yet.
    left: watch::Sender<usize>,
}

impl Ends {
    /// Starts the task; it ends with this, or with the database.
    pub fn start(db: Db, clock: Clock) -> Self {
        let (sender, ended) = mpsc::unbounded_channel();
        let left = watch::Sender::new(0);
        tokio::spawn(write(db, clock, ended, left.clone()));
        Self { sender, left }
    }

    pub fn add(&self, ended: Ended) {
        self.left.send_modify(|left| *left += 1);
        if let Err(mpsc::error::SendError(ended)) = self.sender.send(ended) {
            tracing::error!(device = %ended.device, "the end of a connection was not written down");
        }
    }

    pub fn left(&self) -> usize {
        *self.left.borrow()
    }

    /// Waits until all that were added are written.
    pub async fn written(&self) {
        // The sender is here.
        let _ = self.left.subscribe().wait_for(|left| *left == 0).await;
    }
}

async fn write(db: Db, clock: Clock, mut ended: mpsc::UnboundedReceiver<Ended>, left: watch::Sender<usize>) {
    let mut batch = Vec::new();
    while ended.recv_many(&mut batch, AT_ONCE).await > 0 {
        let mut patience = Patience::default();
        while let Err(error) = enter(&db, &clock, &batch).await {
            tracing::error!(%error, connections = batch.len(), "ends of connections could not be written down");
            if matches!(error, sqlx::Error::PoolClosed) {
                return;
            }
            patience.wait().await;
        }
        left.send_modify(|left| *left -= batch.len());
        batch.clear();
    }
}

async fn enter(db: &Db, clock: &Clock, batch: &[Ended]) -> Result<(), sqlx::Error> {
    let now = clock.now();
    let mut tx = db.begin().await?;
    let mut last = None;
    for Ended { device, peer, why } in batch {
        store::seen(&mut tx, device, None, now).await?;
        let event = Event::new(Kind::DeviceDisconnected, Actor::Device(device.clone()))
            .device(device)
            .detail(serde_json::json!({ "from": peer, "why": made_visible(why, 500) }));
        last = Some(audit::append(&mut tx, now, event).await?);
    }
    match last {
        Some(recorded) => tx.commit(recorded).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use daypass_protocol::time::Timestamp;
    use std::time::Duration;

    #[tokio::test]
    async fn connections_that_end_all_at_once_are_all_written_down() {
        for db in testing::databases().await {
            let ends = Ends::start(db.clone(), Clock::fixed(Timestamp(1000)));
            for number in 0..=3 * AT_ONCE {
                ends.add(Ended {
                    device: format!("gw-{number}").parse().unwrap(),
                    peer: "192.0.2.1:1".parse().unwrap(),
                    why: "the broker stops".to_owned(),
                });
            }
            tokio::time::timeout(Duration::from_secs(60), ends.written()).await.unwrap();
            let written: i64 =
                sqlx::query_scalar("SELECT COUNT(*) FROM audit_event WHERE kind = 'device.disconnected'")
                    .fetch_one(db.pool())
                    .await
                    .unwrap();
            assert_eq!(usize::try_from(written).unwrap(), 3 * AT_ONCE + 1);
            assert_eq!(ends.left(), 0);
        }
    }

    #[tokio::test]
    async fn what_the_database_does_not_take_is_tried_again() {
        for db in testing::databases().await {
            sqlx::query("ALTER TABLE audit_head RENAME TO elsewhere").execute(db.pool()).await.unwrap();
            let ends = Ends::start(db.clone(), Clock::fixed(Timestamp(1000)));
            ends.add(Ended {
                device: "gw-0042".parse().unwrap(),
                peer: "192.0.2.1:1".parse().unwrap(),
                why: "gone".to_owned(),
            });
            let early = tokio::time::timeout(Duration::from_millis(300), ends.written()).await;
            assert!(early.is_err() && ends.left() == 1);
            sqlx::query("ALTER TABLE elsewhere RENAME TO audit_head").execute(db.pool()).await.unwrap();
            tokio::time::timeout(Duration::from_secs(60), ends.written()).await.unwrap();
        }
    }
}
