use super::store::State;
use super::*;
use crate::audit::{self, Actor, Event, Kind};
use crate::testing;
use bytes::Bytes;
use daypass_protocol::api::{EndReason, RecordingKind};
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::frame::Exit;
use daypass_protocol::tunnel::open::{Pty, WindowSize};
use futures_util::TryStreamExt as _;
use sqlx::Executor as _;
use std::process::Command as Program;

/// What was submitted, once it is written.
async fn written(pending: Result<Pending, RecordError>) -> Result<(), RecordError> {
    pending?.recorded().await
}

/// A broker's recordings with one session, as `session::open` leaves it.
pub(crate) struct Fixture {
    pub db: Db,
    pub root: PathBuf,
    pub recordings: Recordings,
    pub facts: SessionFacts,
    pub clock: Clock,
}

const AT: Timestamp = Timestamp(1_795_345_512_345);

pub(crate) fn quick() -> Limits {
    Limits {
        min_free_bytes: 0,
        seal_gap: Duration::from_millis(5),
        seal_every: Duration::from_millis(10),
        ..Limits::default()
    }
}

impl Fixture {
    pub async fn new(db: Db) -> Self {
        let root = tempfile::tempdir().unwrap().keep().join("recordings");
        Self::at(db, root, quick()).await
    }

    pub async fn at(db: Db, root: PathBuf, limits: Limits) -> Self {
        let clock = Clock::fixed(AT);
        let recordings = Recordings::new(db.clone(), clock.clone(), root.clone(), limits);
        let facts = SessionFacts {
            session: "S-7K2M9QXD".parse().unwrap(),
            request: "R-7K2M9QXD".parse().unwrap(),
            person: "P-7K2M9QXD".parse().unwrap(),
            email: "ana@example.com".to_owned(),
            device: "gw-0042".parse().unwrap(),
            login: "diag".parse().unwrap(),
            client_address: "192.0.2.7:50022".to_owned(),
        };
        let mut tx = db.begin().await.unwrap();
        for row in [
            "INSERT INTO person (id, issuer, subject, email, name, teams, mfa, first_seen_at, signed_in_at) VALUES ('P-7K2M9QXD', 'i', 's', 'ana@example.com', 'Ana', '[]', 1, 0, 0)",
            "INSERT INTO product_line (name, title, cra_class, support_end, created_at) VALUES ('edge', 'Edge', 'default', '2031-12-31', 0)",
            "INSERT INTO device (id, serial_number, product_line, state, prior_state, public_key, labels, bundle_version, created_at) VALUES ('gw-0042', 's1', 'edge', 'active', 'none', 'k', '{}', 0, 0)",
            "INSERT INTO request (id, person, device, login, channels, duration_ms, reason, emergency, state, asked_at, lapses_at, decided_at, why, approver_teams) VALUES ('R-7K2M9QXD', 'P-7K2M9QXD', 'gw-0042', 'diag', 'shell', 1, 'r', 0, 'granted', 0, 0, 0, '[]', '[]')",
            "INSERT INTO access_grant (request, person, device, login, channels, starts_at, ends_at, state) VALUES ('R-7K2M9QXD', 'P-7K2M9QXD', 'gw-0042', 'diag', 'shell', 0, 1, 'live')",
            "INSERT INTO session (id, request, person, device, login, state, started_at, client_address, client_kex, device_kex) VALUES ('S-7K2M9QXD', 'R-7K2M9QXD', 'P-7K2M9QXD', 'gw-0042', 'diag', 'open', 0, 'a', 'k', 'k')",
        ] {
            tx.conn().execute(row).await.unwrap();
        }
        let event = Event::new(Kind::SessionOpened, Actor::Broker).session(&facts.session);
        let recorded = audit::append(&mut tx, AT, event).await.unwrap();
        tx.commit(recorded).await.unwrap();
        Self { db, root, recordings, facts, clock }
    }

    /// As `session` ends a session.
    pub async fn end_session(&self) {
        let mut tx = self.db.begin().await.unwrap();
        tx.conn()
            .execute("UPDATE session SET state = 'ended', ended_at = 1, end_reason = 'closed'")
            .await
            .unwrap();
        let event = Event::new(Kind::SessionEnded, Actor::Broker).session(&self.facts.session);
        let recorded = audit::append(&mut tx, AT, event).await.unwrap();
        tx.commit(recorded).await.unwrap();
    }

    /// A session with a shell and a command, closed, compressed and ended.
    pub async fn whole_session(&self) {
        let recorder = self.recordings.start(&self.facts, None).await.unwrap();
        let shell = recorder.channel(0, shell()).await.unwrap();
        written(shell.stdout(&Bytes::from_static("$ uptime grün\r\n".as_bytes())).await).await.unwrap();
        self.sealed(1).await;
        written(shell.stdout(&Bytes::from_static(b"up 3 days\r\n")).await).await.unwrap();
        shell.close().await.unwrap();
        let exec = recorder.channel(1, exec()).await.unwrap();
        written(exec.stdout(&Bytes::from(vec![7; 100_000])).await).await.unwrap();
        written(exec.exit(&Exit::Status(0)).await).await.unwrap();
        recorder.close(EndReason::Closed, None).await.unwrap();
        self.recordings.settle().await;
        self.end_session().await;
    }

    pub async fn row(&self, number: i64) -> store::Recording {
        let rows = store::of_session(&self.db, &self.facts.session).await.unwrap();
        rows.into_iter().find(|row| row.number == number).unwrap()
    }

    /// Waits until something of a recording is sealed.
    pub async fn sealed(&self, number: i64) -> i64 {
        self.until(|row| row.number == number && row.sealed_bytes > 0).await.sealed_bytes
    }

    async fn until(&self, holds: impl Fn(&store::Recording) -> bool) -> store::Recording {
        let wait = async {
            loop {
                let rows = store::of_session(&self.db, &self.facts.session).await.unwrap();
                if let Some(row) = rows.into_iter().find(&holds) {
                    return row;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the awaited row")
    }

    pub async fn content(&self, number: u32) -> String {
        let content = self.recordings.read(&self.facts.session, number).await.unwrap();
        let chunks: Vec<Bytes> = content.into_stream().try_collect().await.unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }
}

pub(crate) fn shell() -> ChannelFacts {
    let size = WindowSize { cols: 80, rows: 24, ..WindowSize::default() };
    let pty = Pty { term: "xterm".to_owned(), size, modes: Vec::new() };
    ChannelFacts { kind: ChannelKind::Shell, pty: Some(pty), command: None, target: None }
}

pub(crate) fn exec() -> ChannelFacts {
    ChannelFacts { kind: ChannelKind::Exec, pty: None, command: Some(b"cat \xff".to_vec()), target: None }
}

/// A real, small disk; unmounted with the value.
pub(crate) struct SmallDisk(pub PathBuf);

impl SmallDisk {
    pub fn mount() -> Self {
        let at = tempfile::tempdir().unwrap().keep();
        let done = Program::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(&at)
            .status()
            .expect("mount(8)");
        assert!(done.success(), "these tests mount a tmpfs and must run as root");
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Program::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_session_is_recorded_sealed_closed_compressed_and_read_back() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        let shell = recorder.channel(0, shell()).await.unwrap();
        shell.input(6).unwrap();
        written(shell.stdout(&Bytes::from_static(b"gr\xc3")).await).await.unwrap();
        written(shell.stdout(&Bytes::from_static(b"\xbcn\x1b[2J")).await).await.unwrap();
        shell.resize(WindowSize { cols: 100, rows: 40, ..WindowSize::default() }).await.unwrap();
        let live = at.content(1).await;
        assert!(live.contains("\\u001b[2J"), "a live recording can be read: {live}");
        written(shell.exit(&Exit::Signal { name: "HUP".to_owned(), core_dumped: false }).await)
            .await
            .unwrap();
        shell.close().await.unwrap();
        let exec = recorder.channel(1, exec()).await.unwrap();
        written(exec.stdout(&Bytes::from_static(b"out")).await).await.unwrap();
        written(exec.stderr(&Bytes::from_static(b"err")).await).await.unwrap();
        exec.close().await.unwrap();
        recorder.close(EndReason::Expired, Some("the window is over".to_owned())).await.unwrap();
        at.recordings.settle().await;

        let cast = at.content(1).await;
        let mut lines = cast.lines();
        let header: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
        assert_eq!((header["version"].as_u64(), header["width"].as_u64()), (Some(2), Some(80)));
        assert_eq!(header["timestamp"].as_u64(), Some(AT.as_secs()));
        let events: Vec<(f64, String, String)> =
            lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        let shown: String =
            events.iter().filter(|event| event.1 == "o").map(|event| event.2.as_str()).collect();
        assert_eq!(shown, "grün\x1b[2J");
        assert!(events.iter().any(|event| event.1 == "r" && event.2 == "100x40"));

        let output = at.content(2).await;
        assert_eq!(output.lines().count(), 2);
        assert!(output.contains(r#""stream":"stderr","data":"ZXJy""#), "{output}");

        let events: Vec<SessionEvent> =
            at.content(0).await.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(matches!(&events[0], SessionEvent::SessionOpened { login, .. } if login == "diag"));
        assert!(events.contains(&SessionEvent::ChannelClosed {
            channel: 0,
            input_bytes: 6,
            stdout_bytes: 9,
            stderr_bytes: 0
        }));
        assert!(matches!(events.last(), Some(SessionEvent::SessionEnded { reason: EndReason::Expired, .. })));

        for number in 0..3 {
            let row = at.row(number).await;
            assert_eq!(row.state, State::Closed);
            assert!(!at.root.join(&row.file).exists(), "only the compressed file stays");
            assert!(row.stored_sha256.is_some());
        }
        let mode = |path: &Path| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode(&at.root.join("2026-11-22/S-7K2M9QXD/events.ndjson.zst")), 0o600);
        assert_eq!(mode(&at.root.join("2026-11-22/S-7K2M9QXD")), 0o700);
        let kinds: Vec<RecordingKind> =
            [at.row(0).await, at.row(1).await, at.row(2).await].map(|row| row.kind).into();
        assert_eq!(kinds, [RecordingKind::Events, RecordingKind::Asciicast, RecordingKind::Output]);
    }
}

#[tokio::test]
async fn no_recorder_no_session_a_recorder_that_cannot_start_gives_nothing_to_write_to() {
    // The root below a file, and in a place where the kernel lets nobody create.
    let file = tempfile::NamedTempFile::new().unwrap();
    for root in [file.path().join("recordings"), PathBuf::from("/proc/recordings")] {
        let at = Fixture::at(testing::sqlite().await, root, quick()).await;
        let error = at.recordings.start(&at.facts, None).await.unwrap_err();
        assert!(matches!(error, RecordError::Start(_)), "{error:?}");
        assert!(store::of_session(&at.db, &at.facts.session).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn no_recorder_no_session_without_its_audit_event_no_recording_starts() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        at.db.pool().execute("DELETE FROM audit_head").await.unwrap();
        let error = at.recordings.start(&at.facts, None).await.unwrap_err();
        assert!(matches!(error, RecordError::Log(_)), "{error:?}");
        assert!(store::of_session(&at.db, &at.facts.session).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn no_recorder_no_session_too_little_room_denies_new_sessions() {
    let limits = Limits { min_free_bytes: u64::MAX, ..quick() };
    let at = Fixture::at(testing::sqlite().await, std::env::temp_dir(), limits).await;
    let error = at.recordings.start(&at.facts, None).await.unwrap_err();
    assert!(matches!(error, RecordError::TooLittleRoom { .. }), "{error:?}");
    assert!(error.to_string().contains("must make room"));
}

#[tokio::test]
async fn no_recorder_no_session_a_full_disk_poisons_the_recorder() {
    for db in testing::databases().await {
        let disk = SmallDisk::mount();
        let at = Fixture::at(db, disk.0.join("recordings"), quick()).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        let failed = recorder.failed();
        let exec = recorder.channel(0, exec()).await.unwrap();
        let block = Bytes::from(vec![b'x'; 32 * 1024]);
        let mut recorded = 0;
        let error = loop {
            match written(exec.stdout(&block).await).await {
                Ok(()) => recorded += block.len(),
                Err(error) => break error,
            }
            assert!(recorded <= 1 << 20, "more was accepted than the disk holds");
        };
        assert!(recorded > 0);
        assert!(matches!(error, RecordError::Full(_)), "{error:?}");
        assert_eq!(error.to_string(), "the disk that holds the recordings is full");
        assert!(matches!(failed.await, RecordError::Full(_)), "the session hears of it");
        // Room again: what was torn stays over.
        std::fs::remove_file(at.root.join(at.row(0).await.file)).unwrap();
        assert!(exec.stdout(&Bytes::from_static(b"x")).await.is_err());
        assert!(exec.stderr(&Bytes::from_static(b"x")).await.is_err());
        assert!(exec.input(1).is_err(), "no input either: its answer would be unrecorded");
        assert!(exec.exit(&Exit::Status(0)).await.is_err());
        assert!(recorder.event(&SessionEvent::Notice { text: "x".to_owned() }).await.is_err());
        assert!(recorder.channel(1, shell()).await.is_err());
        assert!(exec.close().await.is_err());
        assert!(recorder.close(EndReason::RecorderFailed, None).await.is_err());
        let row = at.row(1).await;
        assert_eq!(row.state, State::Interrupted);
        let log = audit::store::of_session(&at.db, &at.facts.session).await.unwrap();
        let why = log.iter().find(|entry| entry.kind == "recording.interrupted").unwrap();
        assert!(why.detail.contains("is full"), "{}", why.detail);
        at.recordings.settle().await;
    }
}

#[tokio::test]
async fn no_recorder_no_session_a_device_that_takes_no_byte_fails_the_write() {
    let at = Fixture::new(testing::sqlite().await).await;
    let folder = at.root.join("2026-11-22/S-7K2M9QXD");
    let recorder = at.recordings.start(&at.facts, None).await.unwrap();
    // Something else lies where the channel's file must be created: it is never written to.
    std::os::unix::fs::symlink("/dev/full", folder.join("channel-0.output")).unwrap();
    let error = recorder.channel(0, exec()).await.unwrap_err();
    assert!(matches!(error, RecordError::Start(_)), "{error:?}");
    assert!(recorder.event(&SessionEvent::Notice { text: "x".to_owned() }).await.is_err());
}

#[tokio::test]
async fn no_recorder_no_session_a_seal_that_fails_ends_the_recording() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        let shell = recorder.channel(0, shell()).await.unwrap();
        let failed = recorder.failed();
        at.db.close().await;
        written(shell.stdout(&Bytes::from_static(b"x")).await).await.ok();
        let error = tokio::time::timeout(Duration::from_secs(20), failed).await.unwrap();
        assert!(matches!(error, RecordError::Log(_)), "{error:?}");
        assert!(shell.stdout(&Bytes::from_static(b"x")).await.is_err());
        assert!(shell.input(1).is_err());
        assert!(recorder.close(EndReason::RecorderFailed, None).await.is_err());
    }
}

#[tokio::test]
async fn a_session_that_is_dropped_half_way_is_sealed_and_marked_interrupted() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        let shell = recorder.channel(0, shell()).await.unwrap();
        written(shell.stdout(&Bytes::from_static(b"the last word")).await).await.unwrap();
        drop((shell, recorder));
        at.recordings.settle().await;
        let row = at.row(1).await;
        assert_eq!(row.state, State::Interrupted);
        let length = std::fs::metadata(at.root.join(&row.file)).unwrap().len();
        assert_eq!(u64::try_from(row.sealed_bytes).unwrap(), length, "all of it is sealed");
        assert!(at.content(1).await.contains("the last word"));
    }
}

#[tokio::test]
async fn after_a_crash_open_recordings_are_interrupted_and_nothing_is_truncated() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        let shell = recorder.channel(0, shell()).await.unwrap();
        written(shell.stdout(&Bytes::from_static(b"before the crash")).await).await.unwrap();
        let sealed = at.sealed(1).await;
        // A broker that crashed drops nothing.
        std::mem::forget((shell, recorder));
        let path = at.root.join(at.row(1).await.file);
        let before = std::fs::read(&path).unwrap();
        let again = Recordings::new(at.db.clone(), Clock::fixed(AT), at.root.clone(), quick());
        assert_eq!(again.recover().await.unwrap(), 2);
        assert_eq!(again.recover().await.unwrap(), 0);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let row = at.row(1).await;
        assert_eq!((row.state, row.sealed_bytes >= sealed), (State::Interrupted, true));
        let log = audit::store::of_session(&at.db, &at.facts.session).await.unwrap();
        let told = log.iter().filter(|entry| entry.kind == "recording.interrupted").count();
        assert_eq!(told, 2);
    }
}

#[tokio::test]
async fn a_row_that_points_out_of_the_folder_is_not_followed() {
    let at = Fixture::new(testing::sqlite().await).await;
    at.whole_session().await;
    for file in ["../../etc/passwd", "/etc/passwd", "", "a/../../b"] {
        sqlx::query("UPDATE recording SET file = $1 WHERE number = 1")
            .bind(file)
            .execute(at.db.pool())
            .await
            .unwrap();
        let error = at.recordings.read(&at.facts.session, 1).await.unwrap_err();
        assert!(matches!(error, ReadError::File(_)), "{error:?}");
    }
    assert!(matches!(at.recordings.read(&at.facts.session, 99).await, Err(ReadError::Unknown)));
}

#[tokio::test]
async fn a_recording_that_has_reached_its_limit_takes_nothing_more_however_small() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, Some(10)).await.unwrap();
        let exec = recorder.channel(0, exec()).await.unwrap();
        written(exec.stdout(&Bytes::from_static(b"12345678")).await).await.unwrap();
        let too_much = written(exec.stdout(&Bytes::from_static(b"90123")).await).await;
        assert!(matches!(too_much, Err(RecordError::TooLong { .. })), "{too_much:?}");
        let small = written(exec.stdout(&Bytes::from_static(b"9")).await).await;
        assert!(matches!(small, Err(RecordError::TooLong { .. })), "behind a gap nothing follows: {small:?}");
        exec.close().await.unwrap();
        recorder.close(EndReason::RecordingLimit, None).await.unwrap();
        at.recordings.settle().await;
    }
}

#[tokio::test]
async fn no_recorder_no_session_a_channel_that_outlives_its_session_records_nothing() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        let exec = recorder.channel(0, exec()).await.unwrap();
        recorder.close(EndReason::Closed, None).await.unwrap();
        let late = written(exec.stdout(&Bytes::from_static(b"late")).await).await;
        assert!(matches!(late, Err(RecordError::Closed)), "{late:?}");
        assert!(exec.pass_in(Bytes::from_static(b"late")).await.is_err(), "nor does input pass");
        at.recordings.settle().await;
    }
}
