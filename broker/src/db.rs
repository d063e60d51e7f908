//! The store: SQLite or PostgreSQL behind sqlx's `Any` driver, one set of SQL for both.
//!
//! SQL lives beside its noun, in free functions that take a [`Tx`] or a connection. What is written is
//! committed by [`Tx::commit`], which asks for the proof that the audit log has the event: a change of
//! state without its evidence does not compile.

use crate::audit::Recorded;
use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyConnection, AnyPool, Connection as _, Executor, Transaction};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("database.url must start with sqlite: or postgres:, and it is {0:?}")]
    Scheme(String),
    #[error("the database cannot be opened: {0}")]
    Connect(#[source] sqlx::Error),
    #[error("the database cannot be brought to this version's schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

#[derive(Clone, Debug)]
pub struct Db {
    pool: AnyPool,
    kind: Kind,
    pulse: Arc<Mutex<Option<Pulse>>>,
    anchor: Arc<Mutex<Option<AnyConnection>>>,
}

/// When it was last tried whether the database takes a decision, and whether it did.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    at: Instant,
    takes: Result<(), NotReady>,
}

/// Why the database takes no decision, in words for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("the database does not answer")]
    Away,
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
}

/// What keeps a database that answers from writing anything down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    #[error("the disk that holds the broker's database is full")]
    Full,
    #[error("the disk that holds the broker's database cannot be written")]
    Disk,
}

/// How long a [`Pulse`] counts: whoever asks for readiness costs no more than one try in that time.
const PULSE: Duration = Duration::from_secs(1);
/// A database that takes longer is not ready.
const READY_WITHIN: Duration = Duration::from_secs(3);

impl Db {
    /// Opens the database and brings its schema up to date.
    ///
    /// `sqlite:/path/file.db?mode=rwc` or `postgres://user@host/name`.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        sqlx::any::install_default_drivers();
        let kind = match url.split(':').next() {
            Some("sqlite") => Kind::Sqlite,
            Some("postgres" | "postgresql") => Kind::Postgres,
            scheme => return Err(OpenError::Scheme(scheme.unwrap_or_default().to_owned())),
        };
        let pool = AnyPoolOptions::new()
            .max_connections(if kind == Kind::Sqlite { 8 } else { 16 })
            .acquire_timeout(Duration::from_secs(10))
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if kind == Kind::Sqlite {
                        // synchronous=FULL: a decision that was answered is on the disk.
                        for pragma in [
                            "PRAGMA busy_timeout = 10000",
                            "PRAGMA journal_mode = WAL",
                            "PRAGMA synchronous = FULL",
                            "PRAGMA foreign_keys = ON",
                        ] {
                            connection.execute(pragma).await?;
                        }
                    }
                    Ok(())
                })
            })
            // A commit that fails on a full disk ends SQLite's transaction, and the driver goes on believing in it:
            // such a connection could never begin another, and is closed.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect(url)
            .await
            .map_err(OpenError::Connect)?;
        MIGRATIONS.run(&pool).await?;
        let anchor =
            if kind == Kind::Sqlite { Some(anchor(url).await.map_err(OpenError::Connect)?) } else { None };
        Ok(Self { pool, kind, pulse: Arc::default(), anchor: Arc::new(Mutex::new(anchor)) })
    }

    /// For reading outside a transaction.
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// A transaction that will write. On SQLite it takes the write lock at once, so that it waits here
    /// and does not fail half-way.
    pub async fn begin(&self) -> Result<Tx, sqlx::Error> {
        let begin = match self.kind {
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => "BEGIN",
        };
        Ok(Tx { inner: self.pool.begin_with(begin).await? })
    }

    /// Whether a decision could be written now: writes what every decision writes, and changes nothing by it.
    pub async fn ready(&self) -> Result<(), NotReady> {
        let db = self.clone();
        // In a task of its own: a try that hangs is one try, however many ask meanwhile.
        let tried = tokio::spawn(async move {
            let mut pulse = db.pulse.lock().await;
            if let Some(last) = *pulse
                && last.at.elapsed() < PULSE
            {
                return last.takes;
            }
            let takes = db.takes().await.map_err(|error| {
                tracing::error!(%error, "the database takes no decision");
                unwritable(&error).map_or(NotReady::Away, NotReady::Unwritable)
            });
            *pulse = Some(Pulse { at: Instant::now(), takes });
            takes
        });
        tokio::time::timeout(READY_WITHIN, tried)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Err(NotReady::Away))
    }

    async fn takes(&self) -> Result<(), sqlx::Error> {
        let mut tx = self.begin().await?;
        // There and back: SQLite writes nothing for what stays the same, and a full disk is met by what is written.
        for step in ["seq + 1", "seq - 1"] {
            let update = format!("UPDATE audit_head SET seq = {step} WHERE one = 1");
            sqlx::query(sqlx::AssertSqlSafe(update)).execute(tx.conn()).await?;
        }
        tx.commit_housekeeping("the number is what it was").await
    }

    pub async fn close(&self) {
        self.pool.close().await;
        if let Some(anchor) = self.anchor.lock().await.take()
            && let Err(error) = anchor.close().await
        {
            tracing::warn!(%error, "the database was not closed in order");
        }
    }

    pub fn is_sqlite(&self) -> bool {
        self.kind == Kind::Sqlite
    }
}

/// A connection to SQLite that only stays: with the last one its write-ahead log would go, and a disk that is full has
/// no room to make it anew.
async fn anchor(url: &str) -> Result<AnyConnection, sqlx::Error> {
    let mut connection = AnyConnection::connect(url).await?;
    // It holds what it has read.
    sqlx::query("SELECT seq FROM audit_head").fetch_optional(&mut connection).await?;
    Ok(connection)
}

/// A transaction that writes; dropped, it is rolled back.
#[derive(Debug)]
pub struct Tx {
    inner: Transaction<'static, Any>,
}

impl Tx {
    pub fn conn(&mut self) -> &mut AnyConnection {
        &mut self.inner
    }

    /// Commits a change of state together with the audit events it appended.
    pub async fn commit(self, _evidence: Recorded) -> Result<(), sqlx::Error> {
        self.inner.commit().await
    }

    /// Commits what is no decision and no change of state that anybody would ask about: counters,
    /// last-seen times, expired codes swept away. `why` is for the reader.
    pub async fn commit_housekeeping(self, _why: &'static str) -> Result<(), sqlx::Error> {
        self.inner.commit().await
    }
}

/// Waits between tries at what has to be written down, however long a database takes nothing: soon at first, then
/// twice a minute.
#[derive(Debug, Default)]
pub struct Patience(u32);

impl Patience {
    pub async fn wait(&mut self) {
        let wait = Duration::from_secs(1 << self.0.min(5)).min(Duration::from_secs(30));
        self.0 += 1;
        tokio::time::sleep(wait).await;
    }
}

/// The name of the constraint that a write violated, as PostgreSQL gives it; on SQLite the same name for
/// CHECK constraints, and `table.column` (the first of several) for UNIQUE and PRIMARY KEY. A foreign key
/// has no name on SQLite and gives `FOREIGN KEY`.
pub fn violated(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?;
    if let Some(name) = error.constraint() {
        return Some(name.to_owned());
    }
    let message = error.message();
    ["CHECK constraint failed: ", "UNIQUE constraint failed: "]
        .iter()
        .find_map(|prefix| message.split_once(prefix))
        .map(|(_, rest)| rest.split([',', ' ']).next().unwrap_or_default().to_owned())
        .or_else(|| message.contains("FOREIGN KEY constraint failed").then(|| "FOREIGN KEY".to_owned()))
}

/// Whether the database is away or held by somebody else, so that the same may succeed in a while.
pub fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => match error.code() {
            // PostgreSQL: a lost connection, a server that stops, starts, or takes no more connections.
            Some(code) if code.len() == 5 => {
                code.starts_with("08") || code.starts_with("57P0") || code == "53300"
            }
            // SQLite: busy and locked, with whatever else is in the upper bits.
            Some(code) => code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6)),
            None => false,
        },
        _ => false,
    }
}

/// Why nothing can be written down, if the disk under the database is what failed. What is waited for is room, or
/// an operator; the same may succeed then.
pub fn unwritable(error: &sqlx::Error) -> Option<Unwritable> {
    let sqlx::Error::Database(error) = error else { return None };
    match error.code()?.as_ref() {
        // PostgreSQL: disk_full, read_only_sql_transaction, io_error.
        "53100" => Some(Unwritable::Full),
        "25006" | "58030" => Some(Unwritable::Disk),
        // SQLite: full; read-only, an error of the disk, a file that does not open; the upper bits say more.
        code => match code.parse::<u32>().ok().filter(|_| code.len() < 5)? & 0xff {
            13 => Some(Unwritable::Full),
            8 | 10 | 14 => Some(Unwritable::Disk),
            _ => None,
        },
    }
}

/// Whether `error` is the violation of one of these names, as [`violated`] spells them.
pub fn violates(error: &sqlx::Error, names: &[&str]) -> bool {
    violated(error).is_some_and(|name| names.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn an_illegal_step_of_a_device_is_refused_by_the_schema() {
        for db in testing::databases().await {
            let mut tx = db.begin().await.unwrap();
            sqlx::query("INSERT INTO product_line (name, title, cra_class, support_end, created_at) VALUES ('edge', 'Edge', 'default', '2031-12-31', 0)")
                .execute(tx.conn()).await.unwrap();
            sqlx::query("INSERT INTO device (id, serial_number, product_line, state, prior_state, public_key, labels, bundle_version, created_at) VALUES ('gw-1', 's1', 'edge', 'active', 'none', 'k', '{}', 0, 0)")
                .execute(tx.conn()).await.unwrap();
            let error =
                sqlx::query("UPDATE device SET prior_state = 'retired', state = 'active' WHERE id = 'gw-1'")
                    .execute(tx.conn())
                    .await
                    .unwrap_err();
            assert!(violates(&error, &["device_transition_is_legal", "FOREIGN KEY"]), "{error}");
        }
    }

    #[tokio::test]
    async fn a_violated_constraint_is_named_on_both_databases() {
        for db in testing::databases().await {
            let mut tx = db.begin().await.unwrap();
            let error = sqlx::query("INSERT INTO audit_head (one, seq, hash) VALUES (2, 0, '')")
                .execute(tx.conn())
                .await
                .unwrap_err();
            assert_eq!(violated(&error).as_deref(), Some("audit_head_is_one_row"));
        }
    }
}
