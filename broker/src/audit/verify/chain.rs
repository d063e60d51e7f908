//! The log itself: its chain, its head, its checkpoints; and what it tells.

use super::{Finding, RecordingKey, Report, SessionTold, Told};
use crate::audit::Kind;
use crate::audit::checkpoint::Checkpoint;
use crate::audit::store::{self, CheckpointRow, Entry};
use daypass_protocol::signed::{self, Purpose};
use daypass_protocol::ssh_key::PublicKey;
use sqlx::AnyConnection;
use std::collections::BTreeMap;

const PAGE: i64 = 1000;

/// The previous hash of the first event.
const ORIGIN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

type Story = (BTreeMap<String, SessionTold>, BTreeMap<RecordingKey, Told>);

pub(super) async fn walk(
    connection: &mut AnyConnection,
    evidence: &[PublicKey],
    report: &mut Report,
) -> Result<Story, sqlx::Error> {
    let checkpoints = store::checkpoints(connection).await?;
    let mut signed: BTreeMap<i64, &CheckpointRow> = checkpoints.iter().map(|row| (row.seq, row)).collect();
    let (mut sessions, mut recordings) = Story::default();
    let (mut last, mut prev) = (0, ORIGIN.to_owned());
    loop {
        let page = store::after(connection, last, PAGE).await?;
        for entry in &page {
            if entry.seq != last + 1 {
                let (before, expected, found) = (last, last + 1, entry.seq);
                report.findings.push(Finding::EventMissing { before, expected, found });
                // The gap is one finding; the chain goes on from what the event says came before.
                prev.clone_from(&entry.prev_hash);
            }
            if entry.prev_hash != prev || entry.hash != entry.expected_hash(&prev) {
                report.findings.push(Finding::EventChanged(entry.seq));
            }
            if let Some(checkpoint) = signed.remove(&entry.seq) {
                check(checkpoint, entry, evidence, report);
            }
            hear(entry, &mut sessions, &mut recordings);
            (last, prev) = (entry.seq, entry.hash.clone());
            report.events += 1;
        }
        if page.is_empty() {
            break;
        }
    }
    for row in signed.values() {
        report.findings.push(Finding::CheckpointBeyondLog(row.seq));
    }
    let (head, hash) = store::head(connection).await?;
    if head != last || hash != prev {
        report.findings.push(Finding::HeadDiffers { last, head });
    }
    report.checkpoints = checkpoints.len() as u64;
    let newest = checkpoints.last().map_or(0, |row| row.seq);
    report.unsigned = u64::try_from(last - newest).unwrap_or(0);
    Ok((sessions, recordings))
}

fn check(row: &CheckpointRow, entry: &Entry, evidence: &[PublicKey], report: &mut Report) {
    if let Err(error) = signed::verify(evidence, Purpose::Checkpoint, row.body.as_bytes(), &row.signature) {
        report.findings.push(Finding::CheckpointSignature(row.seq, error.to_string()));
        return;
    }
    let said = serde_json::from_str::<Checkpoint>(&row.body).is_ok_and(|body| {
        body.v == 1 && body.seq == entry.seq && body.hash == entry.hash && body.at == row.at
    });
    if !said || row.hash != entry.hash {
        report.findings.push(Finding::CheckpointDiffers(row.seq));
    }
}

fn hear(
    entry: &Entry,
    sessions: &mut BTreeMap<String, SessionTold>,
    recordings: &mut BTreeMap<RecordingKey, Told>,
) {
    let Some(id) = &entry.session else { return };
    let is = |kind: Kind| entry.kind == kind.as_str();
    if is(Kind::SessionOpening) {
        sessions.entry(id.clone()).or_default();
    } else if is(Kind::SessionOpened) {
        sessions.entry(id.clone()).or_default().opened = true;
    } else if is(Kind::SessionEnded) || is(Kind::SessionInterrupted) {
        sessions.entry(id.clone()).or_default().ended = true;
    }
    if is(Kind::RecordingsRemoved) {
        let first = (id.clone(), i64::MIN);
        let own = recordings.range_mut(first..).take_while(|((session, _), _)| session == id);
        own.for_each(|(_, told)| told.removed = true);
        return;
    }
    let (started, sealed) = (is(Kind::RecordingStarted), is(Kind::RecordingSealed));
    let (closed, interrupted) = (is(Kind::RecordingClosed), is(Kind::RecordingInterrupted));
    if !(started || sealed || closed || interrupted) {
        return;
    }
    // A detail that does not read was changed; then the chain has its finding already.
    let detail: serde_json::Value = serde_json::from_str(&entry.detail).unwrap_or_default();
    let Some(number) = detail.get("recording").and_then(serde_json::Value::as_i64) else { return };
    let told = recordings.entry((id.clone(), number)).or_default();
    if started {
        told.started = true;
        text(&detail, "file").clone_into(&mut told.file);
    }
    if sealed || closed {
        let bytes = detail.get("bytes").and_then(serde_json::Value::as_u64).unwrap_or(0);
        told.seals.push((bytes, text(&detail, "sha256").to_owned()));
    }
    told.closed |= closed;
    told.interrupted |= interrupted;
}

fn text<'a>(detail: &'a serde_json::Value, key: &str) -> &'a str {
    detail.get(key).and_then(serde_json::Value::as_str).unwrap_or_default()
}
