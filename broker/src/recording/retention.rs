//! Recordings that were kept as long as they had to be: removed, which the audit log says.
//!
//! First the decision is on record, then the files go. A broker that stops in between goes on at its next
//! start. The rows stay, with the hash of what was there.

use super::store::{self, Recording};
use super::{Recordings, absent, archive, place, seal};
use crate::audit::{self, Actor, Event, Kind};
use daypass_protocol::time::Timestamp;
use serde_json::json;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Most sessions at one time: what is left is for the next.
const AT_ONCE: i64 = 50;

impl Recordings {
    /// Removes the recordings of sessions that ended long enough ago: as long as policy said for each, and
    /// `keep` where it said nothing. Returns of how many sessions.
    pub async fn remove_old(&self, keep: Option<Duration>) -> Result<usize, sqlx::Error> {
        let now = self.inner.clock.now();
        let else_before = keep.map(|keep| now - keep);
        let due = store::kept_long_enough(&self.inner.db, now, else_before, AT_ONCE).await?;
        for kept in &due {
            // What is being compressed is not removed under the compressor's hands.
            let Ok(_turn) = self.inner.compressing.acquire().await else { break };
            let rows = store::of_session(&self.inner.db, &kept.session).await?;
            let mut tx = self.inner.db.begin().await?;
            if store::set_removed(&mut tx, &kept.session, now).await? == 0 {
                continue;
            }
            let removed: Vec<_> = rows
                .iter()
                .filter(|row| row.removed_at.is_none())
                .map(|row| {
                    json!({ "recording": row.number, "bytes": row.sealed_bytes, "sha256": row.sealed_sha256 })
                })
                .collect();
            let by = if kept.keep_ms.is_some() { "policy" } else { "configuration" };
            let kept_ms = kept.keep_ms.or(keep.and_then(|keep| i64::try_from(keep.as_millis()).ok()));
            let detail = json!({
                "ended_at": kept.ended_at, "kept_ms": kept_ms, "by": by, "recordings": removed,
            });
            let event =
                Event::new(Kind::RecordingsRemoved, Actor::Broker).session(&kept.session).detail(detail);
            let recorded = audit::append(&mut tx, now, event).await?;
            tx.commit(recorded).await?;
            tracing::info!(session = %kept.session, by, "recordings were kept long enough");
        }
        self.clear_removed(now).await?;
        Ok(due.len())
    }

    /// Deletes the files of what was removed. A file that cannot be deleted is tried again.
    async fn clear_removed(&self, now: Timestamp) -> Result<(), sqlx::Error> {
        for row in store::to_be_gone(&self.inner.db).await? {
            let root = self.inner.root.clone();
            let ours = row.clone();
            if let Err(error) = seal::blocking(move || clear(&root, &ours)).await {
                let (session, number) = (&row.session, row.number);
                tracing::error!(%session, number, %error, "a recording whose time is over cannot be deleted");
                continue;
            }
            let mut tx = self.inner.db.begin().await?;
            store::set_gone(&mut tx, &row.session, row.number, now).await?;
            tx.commit_housekeeping("that it was removed is on record already").await?;
        }
        Ok(())
    }
}

/// Deletes what there is of a recording, and its folders when they are empty.
fn clear(root: &Path, row: &Recording) -> io::Result<()> {
    let place = place(root, &row.file)?;
    let part = archive::with_suffix(&place.compressed, ".part");
    for file in [&place.raw, &place.compressed, &part] {
        match fs::remove_file(file) {
            Err(error) if !absent(&error) => return Err(error),
            _ => {}
        }
    }
    // Of the session, then of the day; one that is not empty stays.
    for folder in place.raw.ancestors().skip(1).take_while(|folder| *folder != root) {
        match fs::remove_dir(folder) {
            Ok(()) => {}
            Err(error) if absent(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::verify;
    use crate::recording::tests::Fixture;
    use crate::recording::{ReadError, RecordError};
    use crate::testing;
    use std::path::PathBuf;

    const DAY: Duration = Duration::from_hours(24);

    /// A session that ended at 1 ms, on both databases; policy said this of it.
    async fn ended(keep: &'static str) -> Vec<Fixture> {
        let mut stores = Vec::new();
        for db in testing::databases().await {
            let at = Fixture::new(db).await;
            at.whole_session().await;
            let sql = format!("UPDATE session SET keep_ms = {keep}");
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(at.db.pool()).await.unwrap();
            stores.push(at);
        }
        stores
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        entries
            .flat_map(|entry| {
                let path = entry.unwrap().path();
                if path.is_dir() { files(&path) } else { vec![path] }
            })
            .collect()
    }

    async fn whole(at: &Fixture) -> verify::Report {
        let report = verify::run(&at.db, &[], &at.root).await.unwrap();
        assert!(report.is_clean(), "{report}");
        report
    }

    #[tokio::test]
    async fn recordings_are_kept_for_ever_unless_somebody_says_otherwise() {
        for at in ended("NULL").await {
            at.clock.set(Timestamp(i64::MAX / 2));
            assert_eq!(at.recordings.remove_old(None).await.unwrap(), 0);
            assert_eq!(files(&at.root).len(), 3);
        }
    }

    #[tokio::test]
    async fn what_was_kept_long_enough_goes_and_the_evidence_says_so() {
        for at in ended("NULL").await {
            at.clock.set(Timestamp(1) + DAY - Duration::from_millis(1));
            assert_eq!(at.recordings.remove_old(Some(DAY)).await.unwrap(), 0, "a moment too early");
            at.clock.set(Timestamp(1) + DAY);
            assert_eq!(at.recordings.remove_old(Some(DAY)).await.unwrap(), 1);
            assert_eq!(files(&at.root), [] as [PathBuf; 0]);
            assert_eq!(fs::read_dir(&at.root).unwrap().count(), 0, "no empty folders are left");
            assert_eq!(store::total_bytes(&at.db).await.unwrap(), 0);
            let report = whole(&at).await;
            assert_eq!((report.recordings, report.removed), (3, 3));
            let read = at.recordings.read(&at.facts.session, 1).await;
            assert!(matches!(read, Err(ReadError::Removed(_))), "{read:?}");
            assert_eq!(at.recordings.remove_old(Some(DAY)).await.unwrap(), 0, "once");
        }
    }

    #[tokio::test]
    async fn what_policy_says_of_a_session_counts_for_it() {
        for at in ended("1000").await {
            at.clock.set(Timestamp(1001));
            assert_eq!(at.recordings.remove_old(None).await.unwrap(), 1);
        }
        for at in ended("999999999999").await {
            at.clock.set(Timestamp(1) + 10 * DAY);
            assert_eq!(at.recordings.remove_old(Some(DAY)).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_broker_that_stopped_half_way_goes_on() {
        for at in ended("NULL").await {
            let now = Timestamp(1) + DAY;
            at.clock.set(now);
            // The decision was made, and nothing was deleted yet.
            let mut tx = at.db.begin().await.unwrap();
            store::set_removed(&mut tx, &at.facts.session, now).await.unwrap();
            let event = Event::new(Kind::RecordingsRemoved, Actor::Broker).session(&at.facts.session);
            let recorded = audit::append(&mut tx, now, event).await.unwrap();
            tx.commit(recorded).await.unwrap();
            assert_eq!(whole(&at).await.removed, 3, "files that are about to go are no finding");
            assert_eq!(at.recordings.remove_old(Some(DAY)).await.unwrap(), 0);
            assert_eq!(files(&at.root), [] as [PathBuf; 0]);
            whole(&at).await;
        }
    }

    #[tokio::test]
    async fn promise_5_evidence_a_recording_removed_by_somebody_else_is_found() {
        for at in ended("NULL").await {
            at.clock.set(Timestamp(1) + DAY);
            // Rows that say so, files that are gone, and no event.
            let mut tx = at.db.begin().await.unwrap();
            store::set_removed(&mut tx, &at.facts.session, Timestamp(5)).await.unwrap();
            tx.commit_housekeeping("a test tampers").await.unwrap();
            at.recordings.clear_removed(Timestamp(5)).await.unwrap();
            let report = verify::run(&at.db, &[], &at.root).await.unwrap();
            assert_eq!(report.findings.len(), 3, "{report}");
            // And a file that came back after it was removed.
            fs::create_dir_all(&at.root).unwrap();
            fs::write(at.root.join("late.ndjson"), "x").unwrap();
            let report = verify::run(&at.db, &[], &at.root).await.unwrap();
            assert_eq!(report.findings.len(), 4, "{report}");
        }
    }

    #[tokio::test]
    async fn a_session_that_runs_keeps_its_recordings() -> Result<(), RecordError> {
        for db in testing::databases().await {
            let at = Fixture::new(db).await;
            let recorder = at.recordings.start(&at.facts, None).await?;
            at.clock.set(Timestamp(i64::MAX / 2));
            assert_eq!(at.recordings.remove_old(Some(DAY)).await?, 0);
            drop(recorder);
            at.recordings.settle().await;
        }
        Ok(())
    }
}
