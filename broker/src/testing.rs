//! What tests of the broker share: real databases of both kinds.

use crate::db::Db;
use std::path::PathBuf;

/// An empty SQLite database, and an empty PostgreSQL database in the cluster that
/// `DAYPASS_TEST_POSTGRES` names (`tests/run` starts one). Each test gets its own two.
pub async fn databases() -> Vec<Db> {
    vec![sqlite().await, postgres().await]
}

pub async fn sqlite() -> Db {
    // Left to the system's cleaner of temporary files: the test's runtime may still hold it open.
    let file: PathBuf = tempfile::tempdir().unwrap().keep().join("daypass.db");
    Db::open(&format!("sqlite:{}?mode=rwc", file.display())).await.unwrap()
}

pub async fn postgres() -> Db {
    let cluster = std::env::var("DAYPASS_TEST_POSTGRES")
        .expect("DAYPASS_TEST_POSTGRES must name a PostgreSQL server, as tests/run does");
    let name = format!("t{}", hex::encode(crate::random::bytes::<8>().unwrap()));
    sqlx::any::install_default_drivers();
    let admin = sqlx::AnyPool::connect(&format!("{cluster}/postgres")).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await.unwrap();
    admin.close().await;
    Db::open(&format!("{cluster}/{name}")).await.unwrap()
}
