//! Files that a broker was about to record into when it was killed: they were made, and their row was not
//! committed. Nothing of a session can be in one, because nobody writes before the commit; one with more than
//! its header in it is something else, stays, and is found by `verify`.

use super::{Recordings, output, seal, store};
use daypass_protocol::ids::SessionId;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A session lies in the folder of the day it began on, and lasts at most a week.
const DAYS: usize = 8;
/// Longest header of an asciicast.
const HEADER: u64 = 64 * 1024;

impl Recordings {
    /// Removes what is left of recordings that never began. For the broker's start; returns how many.
    pub(super) async fn clear_strays(&self) -> Result<usize, sqlx::Error> {
        let root = self.inner.root.clone();
        let sessions = match seal::blocking(move || newest_sessions(&root)).await {
            Ok(sessions) => sessions,
            Err(error) => {
                tracing::error!(%error, "the recordings folder cannot be looked through");
                return Ok(0);
            }
        };
        let mut cleared = 0;
        for (session, folder) in sessions {
            let rows = store::of_session(&self.inner.db, &session).await?;
            let known: BTreeSet<PathBuf> = rows.iter().map(|row| self.inner.root.join(&row.file)).collect();
            match seal::blocking(move || clear(&folder, &known)).await {
                Ok(count) => cleared += count,
                Err(error) => {
                    tracing::error!(%session, %error, "what never was a recording cannot be removed");
                }
            }
        }
        Ok(cleared)
    }
}

/// The folders of the sessions of the newest days.
fn newest_sessions(root: &Path) -> io::Result<Vec<(SessionId, PathBuf)>> {
    let mut days = folders(root)?;
    days.sort();
    let mut sessions = Vec::new();
    for day in days.into_iter().rev().take(DAYS) {
        for folder in folders(&day)? {
            let id = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            sessions.extend(id.map(|id: SessionId| (id, folder)));
        }
    }
    Ok(sessions)
}

fn folders(below: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(below) {
        Ok(entries) => entries,
        Err(error) if super::absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn clear(folder: &Path, known: &BTreeSet<PathBuf>) -> io::Result<usize> {
    let mut cleared = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_file() && !known.contains(&path) && never_began(&path)? {
            fs::remove_file(&path)?;
            cleared += 1;
        }
    }
    Ok(cleared)
}

/// Whether there is no more in a file than what it begins with.
fn never_began(path: &Path) -> io::Result<bool> {
    let length = fs::metadata(path)?.len();
    Ok(match path.extension().and_then(|end| end.to_str()) {
        Some("ndjson") => length == 0,
        Some("output") if length <= HEADER => output::MAGIC.starts_with(&fs::read(path)?),
        Some("cast") if length <= HEADER => {
            let content = fs::read(path)?;
            let lines = content.split_inclusive(|byte| *byte == b'\n').count();
            lines <= 1 && !content.contains(&b'[')
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use crate::recording::tests::Fixture;
    use crate::testing;
    use std::fs;

    #[tokio::test]
    async fn what_a_killed_broker_had_not_begun_is_removed_and_nothing_else_is() {
        for db in testing::databases().await {
            let at = Fixture::new(db).await;
            at.whole_session().await;
            let folder = at.root.join(at.row(0).await.file);
            let folder = folder.parent().unwrap();
            let other = folder.with_file_name("S-00000042");
            fs::create_dir(&other).unwrap();
            let strays = [
                (other.join("events.ndjson"), &b""[..]),
                (folder.join("channel-7.output"), crate::recording::output::MAGIC),
                (folder.join("channel-8.cast"), b"{\"version\":2,\"width\":80}\n"),
            ];
            let kept = [
                (folder.join("channel-7.ndjson"), &b"{}\n"[..]),
                (folder.join("channel-9.cast"), b"{\"version\":2}\n[0.1,\"o\",\"x\"]\n"),
                (folder.join("channel-9.output"), b"something of somebody else's"),
                (folder.join("channel-9.zst"), b""),
            ];
            for (path, content) in strays.iter().chain(&kept) {
                fs::write(path, content).unwrap();
            }
            assert_eq!(at.recordings.clear_strays().await.unwrap(), 3);
            assert!(strays.iter().all(|(path, _)| !path.exists()));
            assert!(kept.iter().all(|(path, _)| path.exists()), "verify finds these");
            assert!(at.content(0).await.contains("session"), "what was recorded stays");
        }
    }
}
