//! What was done to files over SFTP: the operations among a session's events, one line each.

use super::lines::Lines;
use crate::failure::Failure;
use crate::ui::{Ui, clean, words};
use serde::Deserialize;

/// A line of the events file, as far as it is about files.
#[derive(Debug, Deserialize)]
struct Line {
    event: String,
    channel: Option<u32>,
    op: Option<String>,
    path: Option<Name>,
    to: Option<Name>,
    flags: Option<String>,
    attributes: Option<Attributes>,
    result: Option<String>,
    entries: Option<u64>,
    read: Option<Transfer>,
    written: Option<Transfer>,
    why: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Name {
    text: String,
}

#[derive(Debug, Deserialize)]
struct Attributes {
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<String>,
    mtime: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Transfer {
    bytes: u64,
    sha256: Option<String>,
    why_none: Option<String>,
    #[serde(default)]
    whole: bool,
}

/// Prints them, of one channel or of all; whether there were any.
pub async fn print(lines: &mut Lines<'_>, channel: Option<u32>, ui: &Ui) -> Result<bool, Failure> {
    let mut any = false;
    // Asked and not yet answered, at most as many as a channel may have.
    let mut asked: Vec<Line> = Vec::new();
    while let Some(line) = lines.next().await? {
        // Events of other kinds have other fields; a broker newer than this program may have more kinds.
        let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
        if !line.event.starts_with("sftp") || channel.is_some_and(|wanted| line.channel != Some(wanted)) {
            continue;
        }
        any = true;
        match line.event.as_str() {
            "sftp_asked" => {
                asked.push(line);
                continue;
            }
            "sftp" => {
                let is_same = |one: &Line| {
                    (one.channel, &one.op, &one.path, &one.to)
                        == (line.channel, &line.op, &line.path, &line.to)
                };
                if let Some(at) = asked.iter().position(is_same) {
                    asked.remove(at);
                }
            }
            _ => {}
        }
        for told in tell(&line) {
            ui.data_line(&told)?;
        }
    }
    for line in asked {
        ui.data_line(&format!("{} {}", told_of(&line), words::NO_ANSWER))?;
    }
    Ok(any)
}

fn tell(line: &Line) -> Vec<String> {
    if line.event == "sftp_unreadable" {
        return vec![clean(line.why.as_deref().unwrap_or_default())];
    }
    if line.event != "sftp" {
        return Vec::new();
    }
    let ok = line.result.as_deref() == Some("ok");
    let failure = line.result.as_deref().filter(|_| !ok).map(|result| clean(&result.replace('_', " ")));
    let path = line.path.as_ref().map(|path| clean(&path.text)).unwrap_or_default();
    let told = match (line.op.as_deref(), ok) {
        (Some("close"), _) => {
            let moved = [("get", &line.read), ("put", &line.written)];
            return moved
                .into_iter()
                .filter_map(|(verb, moved)| Some(transfer(verb, &path, moved.as_ref()?, failure.as_deref())))
                .collect();
        }
        (Some("closedir"), _) => format!("list {path} {} names", line.entries.unwrap_or(0)),
        // What an opened file was opened for is told when it is closed; looking at names and attributes is
        // what every client does all the time.
        (Some("open" | "opendir"), true)
        | (
            Some(
                "stat" | "lstat" | "fstat" | "realpath" | "readlink" | "expand_path" | "home_directory"
                | "statvfs" | "fstatvfs" | "limits" | "users_groups_by_id" | "fsync",
            ),
            _,
        ) => return Vec::new(),
        _ => told_of(line),
    };
    vec![match failure {
        Some(failure) => format!("{told}: {failure}"),
        None => told,
    }]
}

/// `put /tmp/x 1048576 bytes sha256:…`
fn transfer(verb: &str, path: &str, moved: &Transfer, failure: Option<&str>) -> String {
    let hash = match (&moved.sha256, &moved.why_none) {
        (Some(sha256), _) => format!("sha256:{}", clean(sha256)),
        (None, Some(why)) => format!("(no hash: {})", clean(&why.replace('_', " "))),
        (None, None) => "(no hash)".to_owned(),
    };
    let part = if moved.sha256.is_some() && !moved.whole { " (the file may have more)" } else { "" };
    let failure = failure.map(|failure| format!(": {failure}")).unwrap_or_default();
    format!("{verb} {path} {} bytes {hash}{part}{failure}", moved.bytes)
}

fn told_of(line: &Line) -> String {
    let mut told = clean(&line.op.as_deref().unwrap_or("?").replace('_', " "));
    for (before, name) in [(" ", &line.path), (" -> ", &line.to)] {
        if let Some(name) = name {
            told.push_str(before);
            told.push_str(&clean(&name.text));
        }
    }
    if let Some(flags) = &line.flags {
        told.push_str(" for ");
        told.push_str(&clean(flags));
    }
    if let Some(set) = &line.attributes {
        let facts = [
            ("size", set.size.map(|n| n.to_string())),
            ("uid", set.uid.map(|n| n.to_string())),
            ("gid", set.gid.map(|n| n.to_string())),
            ("mode", set.mode.clone()),
            ("mtime", set.mtime.map(|n| n.to_string())),
        ];
        for (name, value) in facts {
            if let Some(value) = value {
                told.extend([" ", name, "=", &clean(&value)]);
            }
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Vec<String> {
        tell(&serde_json::from_str(line).unwrap())
    }

    #[test]
    fn transfers_are_told_with_size_and_hash_or_why_there_is_none() {
        let close = |moved: &str| {
            format!(
                r#"{{"t":1,"event":"sftp","channel":0,"op":"close","path":{{"text":"/tmp/x"}},"result":"ok",{moved}}}"#
            )
        };
        assert_eq!(
            told(&close(r#""written":{"bytes":5,"sha256":"ab","whole":true}"#)),
            ["put /tmp/x 5 bytes sha256:ab"]
        );
        assert_eq!(
            told(&close(r#""read":{"bytes":5,"sha256":"ab","whole":false}"#)),
            ["get /tmp/x 5 bytes sha256:ab (the file may have more)"]
        );
        assert_eq!(
            told(&close(r#""read":{"bytes":5,"sha256":null,"why_none":"out_of_order","whole":false}"#)),
            ["get /tmp/x 5 bytes (no hash: out of order)"]
        );
    }

    #[test]
    fn a_hostile_name_stays_on_its_line() {
        let line = r#"{"event":"sftp","channel":0,"op":"remove","path":{"text":"/a\n\u001b[2Jput /b"},"result":"failure"}"#;
        assert_eq!(told(line), ["remove /a\u{fffd}\u{fffd}[2Jput /b: failure"]);
    }
}
