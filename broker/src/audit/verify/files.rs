//! The recordings: rows against the log, files against their seals, and files that nobody knows.

use super::{Finding, RecordingKey, Report, Told, VerifyError};
use crate::db::Db;
use crate::recording::store::{self as recordings, Recording, State};
use crate::recording::{Place, open_file, place};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often, and after how long, a file without a row is looked for once more.
const LOOKS: usize = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

pub(super) async fn check(
    db: &Db,
    root: &Path,
    rows: Vec<Recording>,
    told: &BTreeMap<RecordingKey, Told>,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let mut missing: BTreeSet<&RecordingKey> = told.keys().collect();
    let mut work = Vec::new();
    for row in rows {
        let key = (row.session.to_string(), row.number);
        missing.remove(&key);
        report.recordings += 1;
        report.removed += u64::from(row.removed_at.is_some());
        match told.get(&key) {
            Some(told) if told.started => {
                compare(&key, &row, told, &mut report.findings);
                work.push((key, row, told.seals.clone()));
            }
            _ => {
                report.findings.push(Finding::RecordingUnknown(key.0.clone(), key.1));
                work.push((key, row, Vec::new()));
            }
        }
    }
    for (session, number) in missing {
        report.findings.push(Finding::RecordingMissing(session.clone(), *number));
    }
    let root = root.to_owned();
    let read = tokio::task::spawn_blocking(move || read_all(&root, work)).await;
    let read = read.map_err(|error| VerifyError::Folder(io::Error::other(error)))?;
    let read = read.map_err(VerifyError::Folder)?;
    report.bytes += read.bytes;
    report.unsealed_bytes += read.unsealed_bytes;
    report.findings.extend(begun_meanwhile(db, read.findings).await?);
    Ok(())
}

/// Without the files that have a row by now: of sessions that began beside this check.
async fn begun_meanwhile(db: &Db, mut findings: Vec<Finding>) -> Result<Vec<Finding>, VerifyError> {
    for _ in 0..LOOKS {
        if !findings.iter().any(|finding| matches!(finding, Finding::FileUnknown(_))) {
            break;
        }
        // A file is made a moment before its row is committed.
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let mut connection = db.pool().acquire().await?;
        let known: BTreeSet<String> = recordings::all(&mut connection)
            .await?
            .into_iter()
            .filter(|row| !row.files_gone)
            .map(|row| row.file)
            .collect();
        findings.retain(|finding| match finding {
            Finding::FileUnknown(file) => {
                let whole = file.strip_suffix(".part").unwrap_or(file);
                let raw = whole.strip_suffix(".zst").unwrap_or(whole);
                !known.contains(raw)
            }
            _ => true,
        });
    }
    Ok(findings)
}

fn compare((session, number): &RecordingKey, row: &Recording, told: &Told, findings: &mut Vec<Finding>) {
    let mut differs = |what| findings.push(Finding::RecordingRow(session.clone(), *number, what));
    if row.file != told.file {
        differs("it names another file");
    }
    let state = match (told.closed, told.interrupted) {
        (true, _) => State::Closed,
        (false, true) => State::Interrupted,
        (false, false) => State::Open,
    };
    if row.state != state {
        differs("it is in another state");
    }
    if row.removed_at.is_some() != told.removed {
        differs(if told.removed { "it was removed" } else { "it says that it was removed" });
    }
    let empty = (0, hex::encode(Sha256::digest(b"")));
    let (bytes, sha256) = told.seals.last().unwrap_or(&empty);
    if u64::try_from(row.sealed_bytes) != Ok(*bytes) || row.sealed_sha256 != *sha256 {
        differs("its seal is another");
    }
}

#[derive(Default)]
struct Pass {
    bytes: u64,
    unsealed_bytes: u64,
    findings: Vec<Finding>,
}

/// A recording with the seals that the audit log has of it: bytes and running hash.
type Sealed = (RecordingKey, Recording, Vec<(u64, String)>);

fn read_all(root: &Path, work: Vec<Sealed>) -> io::Result<Pass> {
    let mut read = Pass::default();
    let mut known = BTreeSet::new();
    for ((session, number), row, seals) in work {
        let found = |what: String| Finding::File(session.clone(), number, row.file.clone(), what);
        let place = match place(root, &row.file) {
            Ok(place) => place,
            Err(error) => {
                read.findings.push(found(error.to_string()));
                continue;
            }
        };
        if row.files_gone {
            // A file that is there all the same is one that nobody knows.
            continue;
        }
        known.insert(part(&place.compressed));
        known.insert(place.raw.clone());
        known.insert(place.compressed.clone());
        if row.removed_at.is_some() {
            // Its files are about to go.
            continue;
        }
        match check_content(&place, &row, &seals) {
            Ok((bytes, unsealed)) => {
                read.bytes += bytes;
                read.unsealed_bytes += unsealed;
            }
            Err(what) => read.findings.push(found(what)),
        }
        if let Some(expected) = &row.stored_sha256 {
            match File::open(&place.compressed).and_then(hash) {
                Ok(actual) if actual == *expected => {}
                Ok(_) => read.findings.push(found("the compressed file was changed".to_owned())),
                Err(error) => {
                    read.findings.push(found(format!("the compressed file cannot be read: {error}")));
                }
            }
        }
    }
    unknown(root, root, &known, &mut read.findings)?;
    Ok(read)
}

fn part(compressed: &Path) -> PathBuf {
    let mut name = compressed.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn hash(mut file: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let count = file.read(&mut buffer)?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else { break };
        hash.update(read);
    }
    Ok(hex::encode(hash.finalize()))
}

/// One pass with a running hash that is compared at each seal. Gives the length, and how much of it no
/// seal covers.
fn check_content(place: &Place, row: &Recording, seals: &[(u64, String)]) -> Result<(u64, u64), String> {
    let mut file = open_file(&place.raw).map_err(|error| format!("the file cannot be read: {error}"))?;
    let mut hash = Sha256::new();
    let mut at = 0u64;
    let mut buffer = vec![0; 128 * 1024];
    for (bytes, sha256) in seals {
        if *bytes < at {
            return Err(format!("a seal over {bytes} bytes comes after one over {at}"));
        }
        while at < *bytes {
            let want = usize::try_from(*bytes - at).unwrap_or(usize::MAX).min(buffer.len());
            let room = buffer.get_mut(..want).unwrap_or_default();
            let count = file.read(room).map_err(|error| format!("the file is damaged: {error}"))?;
            let Some(read) = room.get(..count).filter(|read| !read.is_empty()) else {
                return Err(format!("the file is truncated: {bytes} bytes were sealed, {at} are there"));
            };
            hash.update(read);
            at += count as u64;
        }
        if hex::encode(hash.clone().finalize()) != *sha256 {
            return Err(format!("the first {bytes} bytes are not what was sealed"));
        }
    }
    let mut tail = 0u64;
    loop {
        match file.read(&mut buffer).map_err(|error| format!("the file is damaged: {error}"))? {
            0 => break,
            count => tail += count as u64,
        }
    }
    if row.state == State::Closed && tail > 0 {
        return Err(format!("{tail} bytes were added after the end"));
    }
    Ok((at + tail, tail))
}

/// Files below `folder` that no row knows. Links are not followed, and are never ours.
fn unknown(
    root: &Path,
    folder: &Path,
    known: &BTreeSet<PathBuf>,
    findings: &mut Vec<Finding>,
) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // Before the first session there is no folder; a file that should be in it has its finding.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            unknown(root, &path, known, findings)?;
        } else if !known.contains(&path) {
            let name = path.strip_prefix(root).unwrap_or(&path);
            findings.push(Finding::FileUnknown(name.display().to_string()));
        }
    }
    Ok(())
}
