//! Databases of a test's own: one to look into, one to take away.

use crate::program::Done;
use crate::world::World;
use crate::{Program, until};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A database in the PostgreSQL server that `tests/run` starts; dropped with this.
#[derive(Debug)]
pub struct Postgres {
    server: String,
    name: String,
}

fn psql(url: &str, queries: &str) -> Done {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-A", "-t", "-F", " ", "-v", "ON_ERROR_STOP=1", url]);
    Program::run(psql, format!("{queries};\n").as_bytes())
}

impl Postgres {
    pub fn create(what: &str) -> Self {
        let server = std::env::var("DAYPASS_TEST_POSTGRES")
            .expect("DAYPASS_TEST_POSTGRES must name a PostgreSQL server, as tests/run does");
        let name = format!("{what}_{}", std::process::id());
        let _ = psql(&format!("{server}/postgres"), &format!("CREATE DATABASE {name}")).ok();
        Self { server, name }
    }

    pub fn url(&self) -> String {
        format!("{}/{}", self.server, self.name)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = psql(
            &format!("{}/postgres", self.server),
            &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
        );
    }
}

/// A PostgreSQL server that a test may stop under a broker.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    bin: PathBuf,
    port: u16,
}

impl Cluster {
    pub fn start() -> Self {
        let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .expect("PostgreSQL must be installed, as tests/run does")
            .map(|version| version.unwrap().path().join("bin"))
            .collect();
        versions.sort();
        let bin = versions.pop().unwrap();
        let dir = tempfile::Builder::new().prefix("daypass-pg-").tempdir().unwrap();
        if nix::unistd::getuid().is_root() {
            let mut chown = Command::new("chown");
            chown.arg("postgres").arg(dir.path());
            let _ = Program::run(chown, b"").ok();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Self { dir, bin, port };
        let _ =
            cluster.run("initdb", &format!("-D '{}' -A trust -U postgres", cluster.data().display())).ok();
        cluster.come_back();
        cluster
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// As the system's user `postgres` where this is root, whom the server does not serve.
    fn run(&self, program: &str, args: &str) -> Done {
        let line = format!("'{}' {args} >/dev/null </dev/null", self.bin.join(program).display());
        let mut command = if nix::unistd::getuid().is_root() {
            let mut su = Command::new("su");
            su.args(["postgres", "-s", "/bin/sh", "-c", &line]);
            su
        } else {
            let mut sh = Command::new("sh");
            sh.args(["-c", &line]);
            sh
        };
        command.current_dir("/");
        Program::run(command, b"")
    }

    /// Gone in the middle of whatever it does.
    pub fn go_away(&self) {
        let _ = self.run("pg_ctl", &format!("-D '{}' -m immediate -w stop", self.data().display())).ok();
    }

    pub fn come_back(&self) {
        let dir = self.dir.path().display();
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={dir} -c max_connections=100",
            self.port
        );
        let data = self.data();
        let _ = self
            .run("pg_ctl", &format!("-D '{}' -l '{dir}/log' -w -o '{options}' start 2>&1", data.display()))
            .ok();
        until("PostgreSQL to answer", || psql(&self.url(), "SELECT 1").code() == 0);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.run("pg_ctl", &format!("-D '{}' -m immediate -w stop", self.data().display()));
    }
}

/// Holds SQLite's file so that nobody else can write.
#[derive(Debug)]
pub struct Lock(Program);

impl Lock {
    pub fn take(file: &Path) -> Self {
        let mut sqlite = Command::new("sqlite3");
        sqlite.arg(file);
        let mut held = Program::start(sqlite);
        held.send(b".timeout 10000\nBEGIN EXCLUSIVE;\nSELECT 'held';\n");
        held.shows("held");
        Self(held)
    }

    pub fn let_go(mut self) {
        self.0.send(b"ROLLBACK;\n");
        let _ = self.0.finish().ok();
    }
}

/// Holds one table of a PostgreSQL database, so that whoever needs it waits.
#[derive(Debug)]
pub struct Held {
    psql: Program,
    url: String,
    table: String,
}

impl Held {
    pub fn table(url: &str, table: &str) -> Self {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", url]);
        let mut psql = Program::start(psql);
        psql.send(format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT 'held';\n").as_bytes());
        psql.shows("held");
        Self { psql, url: url.to_owned(), table: table.to_owned() }
    }

    pub fn is_waited_for(&self) {
        let waiting =
            format!("SELECT 1 FROM pg_locks WHERE relation = '{}'::regclass AND NOT granted", self.table);
        until("somebody to need the table", || !psql(&self.url, &waiting).ok().out().is_empty());
    }

    pub fn let_go(mut self) {
        self.psql.send(b"ROLLBACK;\n");
        let _ = self.psql.finish().ok();
    }
}

impl World {
    pub fn sqlite_file(&self) -> PathBuf {
        self.broker().join("data/daypass.db")
    }

    /// The rows that queries find, their columns with a blank between them.
    pub fn sql(&self, query: &str) -> Vec<String> {
        let done = match self.database() {
            Some(url) => psql(url, query),
            None => {
                let mut sqlite = Command::new("sqlite3");
                sqlite.args(["-bail", "-separator", " "]).arg(self.sqlite_file());
                Program::run(sqlite, format!(".timeout 20000\n{query};\n").as_bytes())
            }
        };
        done.ok().out().lines().map(str::to_owned).collect()
    }

    /// Fails the test if the database holds a state without its event, an event without its state, or a half
    /// of what belongs together.
    #[track_caller]
    pub fn nothing_is_half_made(&self) {
        let asked: Vec<_> = HALVES.iter().map(|(what, query)| format!("SELECT '{what}:'; {query}")).collect();
        let found = self.sql(&asked.join(";\n"));
        assert!(found.iter().all(|line| line.ends_with(':')), "{found:#?}");
        assert_eq!(found.len(), HALVES.len(), "every question was answered");
    }
}

/// What must find nothing.
const HALVES: &[(&str, &str)] = &[
    (
        "a request that nobody was heard to ask",
        "SELECT id FROM request r WHERE NOT EXISTS
           (SELECT 1 FROM audit_event e WHERE e.request = r.id AND e.kind = 'request.asked')",
    ),
    (
        "a request on record that is not there",
        "SELECT request FROM audit_event WHERE kind = 'request.asked'
           AND request NOT IN (SELECT id FROM request)",
    ),
    (
        "a grant without its event",
        "SELECT request FROM access_grant g WHERE NOT EXISTS
           (SELECT 1 FROM audit_event e WHERE e.request = g.request AND e.kind = 'grant.made')",
    ),
    (
        "a grant on record that is not there",
        "SELECT request FROM audit_event WHERE kind = 'grant.made'
           AND request NOT IN (SELECT request FROM access_grant)",
    ),
    (
        "a request that is granted without a grant, or the other way round",
        "SELECT id FROM request r WHERE (state = 'granted') <>
           EXISTS (SELECT 1 FROM access_grant g WHERE g.request = r.id)",
    ),
    (
        "a request that was decided otherwise without its event",
        "SELECT id FROM request r WHERE state IN ('denied', 'cancelled', 'lapsed') AND NOT EXISTS
           (SELECT 1 FROM audit_event e WHERE e.request = r.id AND e.kind = 'request.' || r.state)",
    ),
    (
        "an ended grant without its event",
        "SELECT request FROM access_grant g WHERE state <> 'live' AND NOT EXISTS
           (SELECT 1 FROM audit_event e WHERE e.request = g.request AND e.kind = 'grant.' || g.state)",
    ),
    (
        "answers that differ from those on record",
        "SELECT request FROM answer a GROUP BY request HAVING COUNT(*) <>
           (SELECT COUNT(*) FROM audit_event e WHERE e.request = a.request AND e.kind = 'request.answered')",
    ),
    (
        "an answer on record that is not there",
        "SELECT request FROM audit_event WHERE kind = 'request.answered'
           AND request NOT IN (SELECT request FROM answer)",
    ),
    (
        "a session without its beginning on record",
        "SELECT id FROM session s WHERE NOT EXISTS
           (SELECT 1 FROM audit_event e WHERE e.session = s.id AND e.kind = 'session.opening')",
    ),
    (
        "a session that was never begun",
        "SELECT session FROM audit_event WHERE kind = 'session.opening'
           AND session NOT IN (SELECT id FROM session)",
    ),
    (
        "a session whose end is not on record, or is and did not happen",
        "SELECT id FROM session s WHERE (state = 'ended') <> EXISTS (SELECT 1 FROM audit_event e
           WHERE e.session = s.id AND e.kind IN ('session.ended', 'session.interrupted'))",
    ),
    (
        "a session without exactly one certificate",
        "SELECT id FROM session s WHERE 1 <> (SELECT COUNT(*) FROM certificate c WHERE c.session = s.id)",
    ),
    (
        "certificates that differ from those on record",
        "SELECT 'rows and events' WHERE (SELECT COUNT(*) FROM certificate) <>
           (SELECT COUNT(*) FROM audit_event WHERE kind = 'certificate.issued')",
    ),
    (
        "a certificate of an ended session that is not revoked",
        "SELECT c.serial FROM certificate c JOIN session s ON s.id = c.session
           WHERE s.state = 'ended' AND c.revoked_at IS NULL",
    ),
    (
        "a recording whose end is not on record",
        "SELECT file FROM recording r WHERE state <> 'open' AND NOT EXISTS (SELECT 1 FROM audit_event e
           WHERE e.session = r.session AND e.kind = 'recording.' || r.state)",
    ),
    (
        "more who are signed in than signed in",
        "SELECT 'rows and events' WHERE (SELECT COUNT(*) FROM browser_session) + (SELECT COUNT(*) FROM token_family)
           > (SELECT COUNT(*) FROM audit_event WHERE kind = 'sign_in.succeeded')",
    ),
];
