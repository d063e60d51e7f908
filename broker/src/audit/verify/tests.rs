use super::*;
use crate::audit::checkpoint::{self, Sign};
use crate::recording::tests::Fixture;
use crate::testing;
use daypass_protocol::signed::{self, Purpose};
use daypass_protocol::ssh_key::PrivateKey;
use daypass_protocol::ssh_key::private::Ed25519Keypair;
use daypass_protocol::time::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;

fn key() -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[9; 32]))
}

fn signer() -> Sign {
    Arc::new(|text| signed::sign(&key(), Purpose::Checkpoint, text).map_err(Into::into))
}

async fn report(at: &Fixture) -> Report {
    run(&at.db, &[key().public_key().clone()], &at.root).await.unwrap()
}

/// Untouched stores with one whole session and a checkpoint, on both databases.
async fn stores() -> Vec<Fixture> {
    let mut stores = Vec::new();
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        at.whole_session().await;
        checkpoint::take(&at.db, Timestamp(5), &signer()).await.unwrap().unwrap();
        let clean = report(&at).await;
        assert!(clean.is_clean(), "{clean}");
        stores.push(at);
    }
    stores
}

/// What somebody with the database in their hands can do: constraints and all.
async fn tamper(at: &Fixture, statements: &[&'static str]) {
    let mut connection = at.db.pool().acquire().await.unwrap();
    let off = if at.db.is_sqlite() {
        "PRAGMA foreign_keys = OFF"
    } else {
        "SET session_replication_role = replica"
    };
    let on =
        if at.db.is_sqlite() { "PRAGMA foreign_keys = ON" } else { "SET session_replication_role = DEFAULT" };
    sqlx::query(off).execute(&mut *connection).await.unwrap();
    for statement in statements {
        let done = sqlx::query(*statement).execute(&mut *connection).await.unwrap();
        assert!(done.rows_affected() > 0, "{statement}");
    }
    sqlx::query(on).execute(&mut *connection).await.unwrap();
}

async fn found_after(statements: &[&'static str], expected: impl Fn(&Finding) -> bool) {
    for at in stores().await {
        tamper(&at, statements).await;
        let report = report(&at).await;
        assert!(report.findings.iter().any(&expected), "{report}");
        assert_eq!(report.exit_code(), 1);
    }
}

async fn file(at: &Fixture, number: i64) -> PathBuf {
    at.root.join(format!("{}.zst", at.row(number).await.file))
}

#[tokio::test]
async fn an_untouched_store_verifies_clean() {
    for at in stores().await {
        let report = report(&at).await;
        assert_eq!((report.sessions, report.recordings, report.checkpoints), (1, 3, 1));
        assert_eq!((report.unsigned, report.unsealed_bytes, report.exit_code()), (0, 0, 0));
        assert!(report.to_string().contains("The evidence is whole."));
    }
}

#[tokio::test]
async fn a_live_session_verifies_clean() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        at.sealed(0).await;
        let live = report(&at).await;
        assert!(live.is_clean(), "{live}");
        drop(recorder);
        at.recordings.settle().await;
    }
}

#[tokio::test]
async fn every_flipped_bit_in_a_compressed_recording_is_found() {
    for at in stores().await {
        let path = file(&at, 0).await;
        let whole = std::fs::read(&path).unwrap();
        // One bit in each byte: headers have bits that a decoder passes over.
        for index in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[index] ^= 1 << (index % 8);
            std::fs::write(&path, bytes).unwrap();
            if index % 16 == 0 || index < 16 {
                let report = report(&at).await;
                assert!(
                    report.findings.iter().any(|f| matches!(f, Finding::File(..))),
                    "byte {index}: {report}"
                );
            }
        }
        std::fs::write(&path, whole).unwrap();
        assert!(report(&at).await.is_clean());
    }
}

#[tokio::test]
async fn one_flipped_bit_in_a_recording_is_found() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        at.sealed(0).await;
        drop(recorder);
        at.recordings.settle().await;
        at.end_session().await;
        let path = at.root.join(at.row(0).await.file);
        let whole = std::fs::read(&path).unwrap();
        assert!(report(&at).await.is_clean());
        for index in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[index] ^= 0x10;
            std::fs::write(&path, bytes).unwrap();
            let report = report(&at).await;
            assert!(report.findings.iter().any(|f| matches!(f, Finding::File(..))), "{report}");
        }
        // And one byte less.
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let report = report(&at).await;
        assert!(report.to_string().contains("truncated"), "{report}");
    }
}

#[tokio::test]
async fn a_truncated_or_missing_compressed_file_is_found() {
    for at in stores().await {
        let path = file(&at, 2).await;
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(report(&at).await.findings.iter().any(|f| matches!(f, Finding::File(_, 2, ..))));
        std::fs::remove_file(&path).unwrap();
        assert!(report(&at).await.findings.iter().any(|f| matches!(f, Finding::File(_, 2, ..))));
    }
}

#[tokio::test]
async fn a_file_that_no_recording_knows_is_found() {
    for at in stores().await {
        std::fs::write(at.root.join("2026-11-22/S-7K2M9QXD/extra.cast"), "x").unwrap();
        assert_eq!(
            report(&at).await.findings,
            [Finding::FileUnknown("2026-11-22/S-7K2M9QXD/extra.cast".to_owned())]
        );
    }
}

#[tokio::test]
async fn a_changed_audit_detail_is_found() {
    found_after(&["UPDATE audit_event SET detail = '{\"recording\":0}' WHERE seq = 2"], |finding| {
        *finding == Finding::EventChanged(2)
    })
    .await;
}

#[tokio::test]
async fn a_changed_actor_or_time_is_found() {
    found_after(&["UPDATE audit_event SET actor = 'broker', at = at + 1 WHERE seq = 3"], |finding| {
        *finding == Finding::EventChanged(3)
    })
    .await;
}

#[tokio::test]
async fn a_removed_event_is_found() {
    found_after(&["DELETE FROM audit_event WHERE seq = 2"], |finding| {
        *finding == Finding::EventMissing { before: 1, expected: 2, found: 3 }
    })
    .await;
}

#[tokio::test]
async fn removed_last_events_are_found_by_the_head() {
    found_after(&["DELETE FROM audit_event WHERE seq = (SELECT MAX(seq) FROM audit_event)"], |finding| {
        matches!(finding, Finding::HeadDiffers { .. })
    })
    .await;
}

#[tokio::test]
async fn removed_last_events_are_found_by_the_checkpoint_when_the_head_was_moved_too() {
    found_after(
        &[
            "DELETE FROM audit_event WHERE seq = (SELECT MAX(seq) FROM audit_event)",
            "UPDATE audit_head SET seq = (SELECT MAX(seq) FROM audit_event), hash = (SELECT hash FROM audit_event ORDER BY seq DESC LIMIT 1)",
        ],
        |finding| matches!(finding, Finding::CheckpointBeyondLog(_)),
    )
    .await;
}

#[tokio::test]
async fn a_checkpoint_that_says_something_else_is_found() {
    found_after(&["UPDATE audit_checkpoint SET hash = 'x'"], |finding| {
        matches!(finding, Finding::CheckpointDiffers(_))
    })
    .await;
    found_after(&["UPDATE audit_checkpoint SET body = body || ' '"], |finding| {
        matches!(finding, Finding::CheckpointSignature(..))
    })
    .await;
}

#[tokio::test]
async fn a_checkpoint_signed_by_another_key_is_found() {
    for at in stores().await {
        let other = PrivateKey::from(Ed25519Keypair::from_seed(&[8; 32]));
        let report = run(&at.db, &[other.public_key().clone()], &at.root).await.unwrap();
        assert!(report.findings.iter().any(|f| matches!(f, Finding::CheckpointSignature(..))), "{report}");
    }
}

#[tokio::test]
async fn a_missing_session_is_found() {
    found_after(&["DELETE FROM session"], |finding| matches!(finding, Finding::SessionMissing(_))).await;
}

#[tokio::test]
async fn a_session_whose_end_is_not_in_the_log_is_found() {
    found_after(&["UPDATE session SET state = 'open', ended_at = NULL, end_reason = NULL"], |finding| {
        matches!(finding, Finding::SessionState(..))
    })
    .await;
}

#[tokio::test]
async fn a_session_that_was_opened_and_not_recorded_is_found() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let report = report(&at).await;
        assert_eq!(report.findings, [Finding::SessionUnrecorded("S-7K2M9QXD".to_owned())]);
    }
}

#[tokio::test]
async fn a_missing_recording_row_is_found() {
    found_after(&["DELETE FROM recording WHERE number = 1"], |finding| {
        *finding == Finding::RecordingMissing("S-7K2M9QXD".to_owned(), 1)
    })
    .await;
}

#[tokio::test]
async fn a_changed_seal_in_a_row_is_found() {
    found_after(&["UPDATE recording SET sealed_bytes = sealed_bytes - 1 WHERE number = 1"], |finding| {
        matches!(finding, Finding::RecordingRow(_, 1, _))
    })
    .await;
}

#[tokio::test]
async fn nothing_new_takes_no_checkpoint() {
    for at in stores().await {
        assert_eq!(checkpoint::take(&at.db, Timestamp(6), &signer()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_session_that_begins_beside_the_check_is_no_finding() {
    for at in stores().await {
        // The moment between a file and its row: the file is there, the row comes while the check goes on.
        let row = at.row(0).await;
        let late = at.root.join("2026-11-22/S-00000042");
        std::fs::create_dir_all(&late).unwrap();
        std::fs::write(late.join("events.ndjson"), "").unwrap();
        let checking = report(&at);
        let beginning = async {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            let sql = format!(
                "INSERT INTO recording (session, number, kind, file, state, started_at, sealed_bytes, sealed_sha256)
                 VALUES ('{}', 77, 'events', '2026-11-22/S-00000042/events.ndjson', 'open', 0, 0, 'x')",
                row.session
            );
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(at.db.pool()).await.unwrap();
        };
        let (report, ()) = tokio::join!(checking, beginning);
        assert!(report.is_clean(), "{report}");
    }
}
