//! What a broker leaves: recordings, and events in the audit log.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The files of a session's recordings, below a broker's folder.
pub fn recordings_of(broker: &Path, session: &str) -> Vec<PathBuf> {
    let days = std::fs::read_dir(broker.join("data/recordings")).unwrap();
    let mut files: Vec<PathBuf> = days
        .filter_map(|day| std::fs::read_dir(day.unwrap().path().join(session)).ok())
        .flatten()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files
}

/// What the screen was shown, by an asciicast.
pub fn shown(cast: &str) -> String {
    cast.lines()
        .skip(1)
        // A recording that was cut ends in the middle of a line.
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|event| event[1] == "o")
        .map(|event| event[2].as_str().unwrap().to_owned())
        .collect()
}

/// Changes one bit in the middle of a file.
pub fn flip_one_bit(path: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], middle).unwrap();
}

/// Whether the audit log holds an event of this kind that says all of `words`.
///
/// There is no reader of the log for people yet. SQLite stores the columns of a row one after the other,
/// in the file or in its write-ahead log, and the kind comes first.
pub(crate) fn event_in(broker: &Path, kind: &str, words: &[&str]) -> bool {
    /// More than the columns between the kind and the end of any detail that is looked for.
    const ROW: usize = 600;
    ["data/daypass.db", "data/daypass.db-wal"].iter().any(|name| {
        let bytes = std::fs::read(broker.join(name)).unwrap_or_default();
        bytes.windows(kind.len()).enumerate().any(|(at, window)| {
            window == kind.as_bytes() && {
                let row = &bytes[at..bytes.len().min(at + ROW)];
                let row = String::from_utf8_lossy(row);
                words.iter().all(|word| row.contains(word))
            }
        })
    })
}
