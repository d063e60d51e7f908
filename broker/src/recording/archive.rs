//! What happens to a recording after its end: compressed when it was closed, marked when it was not.

use super::store::{self, Recording, State, Stored};
use super::{Inner, seal};
use crate::audit::{self, Actor, Event, Kind};
use daypass_protocol::ids::SessionId;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Fast enough to keep up with sessions; terminal output shrinks to a tenth by it.
const LEVEL: i32 = 3;

/// `x` becomes `x.zst`.
pub(super) fn compressed(path: &Path) -> PathBuf {
    with_suffix(path, ".zst")
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Marks an open recording interrupted; nothing is truncated, and the audit log says what is sealed.
pub(super) async fn interrupt(inner: &Inner, row: &Recording, why: &str) -> Result<(), sqlx::Error> {
    let now = inner.clock.now();
    let found = fs::metadata(inner.root.join(&row.file)).map(|file| file.len());
    let mut tx = inner.db.begin().await?;
    if !store::end(&mut tx, &row.session, row.number, State::Interrupted, now).await? {
        return Ok(());
    }
    let detail = json!({
        "recording": row.number,
        "sealed_bytes": row.sealed_bytes,
        "sealed_sha256": row.sealed_sha256,
        "file_bytes": found.ok(),
        "why": why,
    });
    let event = Event::new(Kind::RecordingInterrupted, Actor::Broker).session(&row.session).detail(detail);
    let recorded = audit::append(&mut tx, now, event).await?;
    tx.commit(recorded).await
}

/// Compresses a closed recording in the background. If that fails the raw file stays, and is as good.
pub(super) fn compress_later(inner: &Arc<Inner>, session: &SessionId, number: i64) {
    let (task, session) = (inner.clone(), session.clone());
    inner.tasks.spawn(async move {
        if let Err(error) = compress(&task, &session, number).await {
            tracing::error!(%session, number, error = format!("{error:#}"), "a recording stays uncompressed");
        }
    });
}

async fn compress(inner: &Inner, session: &SessionId, number: i64) -> anyhow::Result<()> {
    let _turn = inner.compressing.acquire().await?;
    let rows = store::of_session(&inner.db, session).await?;
    let Some(row) = rows
        .into_iter()
        .find(|row| row.number == number && row.state == State::Closed && row.removed_at.is_none())
    else {
        return Ok(());
    };
    let path = inner.root.join(&row.file);
    let raw = path.clone();
    let stored = seal::blocking(move || write_compressed(&raw, &row.sealed_sha256)).await?;
    // The raw file goes only when the compressed one is on the disk and its hash in the row.
    let mut tx = inner.db.begin().await?;
    store::set_stored(&mut tx, session, number, &stored).await?;
    tx.commit_housekeeping("the content and its sealed hash are as before").await?;
    seal::blocking(move || fs::remove_file(&path)).await?;
    Ok(())
}

/// Returns what the compressed file is.
fn write_compressed(path: &Path, sha256: &str) -> io::Result<Stored> {
    let part = with_suffix(path, ".zst.part");
    let mut raw = File::open(path)?;
    let into = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    let mut encoder = zstd::Encoder::new(Hashing { to: into, hash: Sha256::new(), bytes: 0 }, LEVEL)?;
    encoder.include_checksum(true)?;
    let mut content = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let count = raw.read(&mut buffer)?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else { break };
        content.update(read);
        encoder.write_all(read)?;
    }
    let done = encoder.finish()?;
    done.to.sync_all()?;
    if hex::encode(content.finalize()) != sha256 {
        fs::remove_file(&part)?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not what was sealed"));
    }
    fs::rename(&part, compressed(path))?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(Stored { sha256: hex::encode(done.hash.finalize()), bytes: done.bytes })
}

struct Hashing {
    to: File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promise_5_evidence_a_file_that_is_not_what_was_sealed_is_not_archived_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.ndjson");
        fs::write(&path, "what was sealed").unwrap();
        let sealed = hex::encode(Sha256::digest("what was sealed"));
        fs::write(&path, "what was sealeD").unwrap();
        assert_eq!(write_compressed(&path, &sealed).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [path], "the changed file stays as it is, for whoever looks into it");
    }
}
