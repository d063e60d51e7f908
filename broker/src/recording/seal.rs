//! Seals: while a recording grows, its length and running SHA-256 go into the audit log, so that what is
//! before the newest seal can be proven whole, whatever happens afterwards.

use super::store::{self, Recording, State};
use super::writer::{Answer, Command, Growth, Piece, Snapshot, Start};
use super::{Inner, RecordError, SessionFacts, archive};
use crate::audit::{self, Actor, Event, Kind};
use crate::db::Patience;
use daypass_protocol::api::RecordingKind;
use daypass_protocol::time::Timestamp;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

/// A disk or a database that takes longer for a seal counts as failed.
const SEAL_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries at a database that is away.
const AGAIN: Duration = Duration::from_millis(500);

/// Owns the life of a session's recordings: opened, sealed, closed or interrupted, each step in one
/// transaction with its audit event.
#[derive(Debug)]
pub(super) struct Sealer {
    inner: Arc<Inner>,
    facts: SessionFacts,
    /// Relative to the root.
    folder: String,
    commands: mpsc::Sender<Command>,
    growth: Arc<Growth>,
    failure: watch::Sender<Option<RecordError>>,
    /// One seal at a time, and none beside a close: a seal never comes after its recording's end.
    turn: Mutex<Turn>,
    abandoned: AtomicBool,
    over: AtomicBool,
    wake: Notify,
}

/// A piece on its way to the writer. What it records is delivered only after [`Pending::recorded`].
#[derive(Debug)]
#[must_use]
pub struct Pending {
    sealer: Arc<Sealer>,
    answer: oneshot::Receiver<Result<(), RecordError>>,
}

impl Pending {
    /// Waits until the recorder has it. Asked again only if the call was dropped.
    pub async fn recorded(&mut self) -> Result<(), RecordError> {
        let answer = (&mut self.answer).await.unwrap_or(Err(RecordError::Stopped));
        answer.map_err(|error| self.sealer.poison(error))
    }
}

#[derive(Debug, Default)]
struct Turn {
    /// Directories are synced before the first seal: a sealed file must not vanish with its entry.
    folders_synced: bool,
}

impl Sealer {
    pub fn new(
        inner: Arc<Inner>,
        facts: SessionFacts,
        folder: String,
        commands: mpsc::Sender<Command>,
        growth: Arc<Growth>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            facts,
            folder,
            commands,
            growth,
            failure: watch::Sender::new(None),
            turn: Mutex::default(),
            abandoned: AtomicBool::new(false),
            over: AtomicBool::new(false),
            wake: Notify::new(),
        })
    }

    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    pub fn check(&self) -> Result<(), RecordError> {
        match &*self.failure.borrow() {
            Some(error) => Err(error.clone()),
            None if self.over.load(Ordering::Acquire) => Err(RecordError::Closed),
            None => Ok(()),
        }
    }

    /// The first failure stays: it is the cause of all that follow.
    fn poison(&self, error: RecordError) -> RecordError {
        if matches!(error, RecordError::TooLong { .. }) {
            return error;
        }
        let mut first = error;
        self.failure.send_if_modified(|failure| match failure {
            Some(earlier) => {
                first = earlier.clone();
                false
            }
            None => {
                tracing::error!(session = %self.facts.session, error = ?first, "recording failed");
                *failure = Some(first.clone());
                true
            }
        });
        first
    }

    pub async fn failed(&self) -> RecordError {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(RecordError::Stopped),
            Err(_) => RecordError::Stopped,
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, RecordError> {
        self.check()?;
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(command(done)).await.is_ok();
        let answer =
            if sent { answer.await.unwrap_or(Err(RecordError::Stopped)) } else { Err(RecordError::Stopped) };
        answer.map_err(|error| self.poison(error))
    }

    pub async fn append(&self, number: i64, piece: Piece) -> Result<(), RecordError> {
        self.ask(|done| Command::Append { number, piece, done }).await
    }

    /// Nothing to write, in order with what is: fails when the recorder has failed.
    pub fn nothing(self: &Arc<Self>) -> Result<Pending, RecordError> {
        self.check()?;
        let (done, answer) = oneshot::channel();
        // The receiver is right here.
        let _ = done.send(Ok(()));
        Ok(Pending { sealer: self.clone(), answer })
    }

    /// Gives a piece to the writer, in order, without waiting until it is written.
    pub async fn submit(self: &Arc<Self>, number: i64, piece: Piece) -> Result<Pending, RecordError> {
        self.submit_taken(number, || piece).await
    }

    /// As [`Self::submit`], for a piece that lies elsewhere: it is taken when there is room for it and sent
    /// in the same breath, so that a call that is dropped while it waits has taken nothing.
    pub async fn submit_taken(
        self: &Arc<Self>,
        number: i64,
        take: impl FnOnce() -> Piece,
    ) -> Result<Pending, RecordError> {
        self.check()?;
        let (done, answer) = oneshot::channel();
        match self.commands.reserve().await {
            Ok(room) => {
                room.send(Command::Append { number, piece: take(), done });
                Ok(Pending { sealer: self.clone(), answer })
            }
            Err(_) => Err(self.poison(RecordError::Stopped)),
        }
    }

    fn event(&self, kind: Kind, detail: serde_json::Value) -> Event {
        let actor = Actor::Person { id: self.facts.person.clone(), email: self.facts.email.clone() };
        Event::new(kind, actor)
            .request(&self.facts.request)
            .session(&self.facts.session)
            .device(&self.facts.device)
            .detail(detail)
    }

    /// Creates the file, its row and its audit event: all three or none.
    pub async fn open(
        &self,
        number: i64,
        kind: RecordingKind,
        channel: Option<u32>,
        name: &str,
        start: Start,
    ) -> Result<(), RecordError> {
        self.check()?;
        let file = format!("{}/{name}", self.folder);
        let path = self.inner.root.join(&file);
        let mut turn = self.turn.lock().await;
        turn.folders_synced = false;
        let opened = async {
            let now = self.now();
            let mut tx = self.inner.db.begin().await?;
            let row = Recording {
                session: self.facts.session.clone(),
                number,
                kind,
                channel: channel.map(i64::from),
                file: file.clone(),
                state: State::Open,
                started_at: now,
                sealed_bytes: 0,
                sealed_sha256: hex::encode(Sha256::digest(b"")),
                stored_sha256: None,
                removed_at: None,
                files_gone: false,
            };
            store::insert(&mut tx, &row).await?;
            let detail = json!({
                "recording": number, "kind": store::kind_as_str(kind), "channel": channel, "file": file,
            });
            let recorded = audit::append(&mut tx, now, self.event(Kind::RecordingStarted, detail)).await?;
            self.ask(|done| Command::Open { number, path: path.clone(), start, done }).await?;
            if let Err(error) = tx.commit(recorded).await {
                // Nothing of the session is in it yet, and no row will know it.
                let _ = std::fs::remove_file(&path);
                return Err(error.into());
            }
            Ok(())
        };
        opened.await.map_err(|error: RecordError| self.poison(error))
    }

    /// Seals what grew; an error ends the session.
    async fn seal(&self) -> Result<(), RecordError> {
        let mut turn = self.turn.lock().await;
        if self.over.load(Ordering::Acquire) {
            return Ok(());
        }
        let snapshots = self.ask(|done| Command::Snapshot { done }).await?;
        let entered = async {
            self.sync(&mut turn, &snapshots).await?;
            self.enter(&snapshots, Kind::RecordingSealed).await
        };
        match tokio::time::timeout(SEAL_WITHIN, entered).await {
            Ok(result) => result,
            Err(_) => Err(RecordError::SealTooSlow),
        }
        .map_err(|error| self.poison(error))
    }

    async fn sync(&self, turn: &mut Turn, snapshots: &[Snapshot]) -> Result<(), RecordError> {
        let files: Vec<Arc<File>> = snapshots.iter().map(|snapshot| snapshot.file.clone()).collect();
        let root = self.inner.root.clone();
        let folder = root.join(&self.folder);
        let folders = !turn.folders_synced;
        blocking(move || {
            for file in files {
                file.sync_data()?;
            }
            if folders {
                for folder in folder.ancestors().take_while(|folder| folder.starts_with(&root)) {
                    File::open(folder)?.sync_all()?;
                }
            }
            Ok(())
        })
        .await
        .map_err(RecordError::syncing)?;
        turn.folders_synced = true;
        Ok(())
    }

    /// Enters seals into the rows and the audit log. A database that is away for a moment is waited for; the
    /// callers bound how long.
    async fn enter(&self, snapshots: &[Snapshot], kind: Kind) -> Result<(), RecordError> {
        let mut entered = Vec::new();
        loop {
            let missing = snapshots.iter().filter(|snapshot| !entered.contains(&snapshot.number));
            match self.try_enter(missing, kind).await {
                Err(RecordError::Log(error)) if crate::db::is_away(&error) => {
                    tracing::warn!(%error, session = %self.facts.session, "a seal waits for the database");
                }
                done => return done,
            }
            tokio::time::sleep(AGAIN).await;
            // A connection that is lost during a commit does not say whether it was one.
            match store::of_session(&self.inner.db, &self.facts.session).await {
                Ok(rows) => entered = already(&rows, snapshots, kind),
                Err(error) if crate::db::is_away(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn try_enter(
        &self,
        snapshots: impl Iterator<Item = &Snapshot>,
        kind: Kind,
    ) -> Result<(), RecordError> {
        let now = self.now();
        let mut tx = self.inner.db.begin().await?;
        let mut evidence = None;
        for Snapshot { number, bytes, sha256, .. } in snapshots {
            store::seal(&mut tx, &self.facts.session, *number, *bytes, sha256).await?;
            if kind == Kind::RecordingClosed
                && !store::end(&mut tx, &self.facts.session, *number, State::Closed, now).await?
            {
                return Err(sqlx::Error::RowNotFound.into());
            }
            let detail = json!({ "recording": number, "bytes": bytes, "sha256": sha256 });
            evidence = Some(audit::append(&mut tx, now, self.event(kind, detail)).await?);
        }
        if let Some(evidence) = evidence {
            tx.commit(evidence).await?;
        }
        Ok(())
    }

    /// Closes one recording, or all that are open and with them the session's.
    pub async fn close(&self, number: Option<i64>, last: bool) -> Result<(), RecordError> {
        let mut turn = self.turn.lock().await;
        let closed = async {
            let snapshots = self.ask(|done| Command::Finish { number, done }).await?;
            let entered = async {
                self.sync(&mut turn, &snapshots).await?;
                self.enter(&snapshots, Kind::RecordingClosed).await
            };
            match tokio::time::timeout(SEAL_WITHIN, entered).await {
                Ok(result) => result.map(|()| snapshots),
                Err(_) => Err(RecordError::SealTooSlow),
            }
        };
        let result = closed.await.map_err(|error| self.poison(error));
        if result.is_err() && last {
            self.interrupt_in_turn(&mut turn).await;
        }
        if last {
            self.finish();
        }
        for snapshot in result? {
            archive::compress_later(&self.inner, &self.facts.session, snapshot.number);
        }
        Ok(())
    }

    fn finish(&self) {
        self.over.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// After a failure: the rows say that the recording ends at its newest seal. A database that is what failed
    /// is tried until it takes that; if the broker stops before, its next start does it.
    pub async fn interrupt(&self, why: &str) {
        tracing::warn!(session = %self.facts.session, why, "recording interrupted");
        let mut turn = self.turn.lock().await;
        self.interrupt_in_turn(&mut turn).await;
        self.finish();
    }

    async fn interrupt_in_turn(&self, _turn: &mut Turn) {
        let why = match &*self.failure.borrow() {
            Some(error) => error.to_string(),
            None => "the session was dropped".to_owned(),
        };
        let marked = async || {
            let rows = store::of_session(&self.inner.db, &self.facts.session).await?;
            for row in rows.iter().filter(|row| row.state == State::Open) {
                archive::interrupt(&self.inner, row, &why).await?;
            }
            Ok::<(), sqlx::Error>(())
        };
        let mut patience = Patience::default();
        while let Err(error) = marked().await {
            let session = &self.facts.session;
            if matches!(error, sqlx::Error::PoolClosed) {
                tracing::error!(%session, "the broker stops; recordings stay open until its next start");
                return;
            }
            tracing::error!(%session, %error, "recordings were not marked interrupted; it is tried again");
            patience.wait().await;
        }
    }

    /// The recorder was dropped without an end.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Seals until the session's recording is over.
    pub async fn run(self: Arc<Self>) {
        let limits = self.inner.limits;
        let mut last: Option<Instant> = None;
        loop {
            if self.over.load(Ordering::Acquire) {
                return;
            }
            if self.abandoned.load(Ordering::Acquire) {
                // What is there is sealed once more; if that fails, the rest stands unsealed, and says so.
                if let Err(error) = self.seal().await {
                    tracing::error!(session = %self.facts.session, %error, "the last seal failed");
                }
                self.interrupt("the session was dropped").await;
                return;
            }
            let unsealed = self.growth.unsealed.load(Ordering::Acquire);
            let grown_at = Instant::now();
            if unsealed == 0 {
                tokio::select! {
                    () = self.growth.grown.notified() => {}
                    () = self.wake.notified() => {}
                    error = self.failed() => return self.interrupt(&error.to_string()).await,
                }
                continue;
            }
            let earliest = last.map_or(grown_at, |last| last + limits.seal_gap);
            let latest = grown_at + limits.seal_every;
            loop {
                let much = self.growth.unsealed.load(Ordering::Acquire) >= limits.seal_bytes;
                let due = if much { earliest } else { latest.max(earliest) };
                tokio::select! {
                    () = tokio::time::sleep_until(due) => break,
                    () = self.growth.grown.notified() => {}
                    () = self.wake.notified() => break,
                    error = self.failed() => return self.interrupt(&error.to_string()).await,
                }
            }
            if self.over.load(Ordering::Acquire) || self.abandoned.load(Ordering::Acquire) {
                continue;
            }
            if let Err(error) = self.seal().await {
                return self.interrupt(&error.to_string()).await;
            }
            last = Some(Instant::now());
        }
    }
}

/// The numbers of those snapshots that the rows have.
fn already(rows: &[Recording], snapshots: &[Snapshot], kind: Kind) -> Vec<i64> {
    let has = |snapshot: &&Snapshot| {
        rows.iter().any(|row| {
            row.number == snapshot.number
                && (row.sealed_bytes, &row.sealed_sha256) == (snapshot.bytes, &snapshot.sha256)
                && (kind != Kind::RecordingClosed || row.state == State::Closed)
        })
    };
    snapshots.iter().filter(has).map(|snapshot| snapshot.number).collect()
}

/// Runs what blocks on the disk where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error)),
    }
}
