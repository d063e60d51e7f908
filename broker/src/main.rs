//! `daypass-broker`: arguments in, the broker's library does the rest.

use clap::{Parser, Subcommand};
use daypass_broker::broker::Ctx;
use daypass_broker::certificate::{KeyPurpose, Keys};
use daypass_broker::clock::Clock;
use daypass_broker::config::Config;
use daypass_broker::db::Db;
use daypass_broker::{audit, demo, http, init, policy, serve};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Thousands of tunnels come and go; this allocator gives their memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Just-in-time SSH access for deployed products: the broker.
#[derive(Debug, Parser)]
#[command(name = "daypass-broker", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a commented configuration, make the keys, and say what to do next
    Init {
        /// The folder to make everything in
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// The address under which people and devices will reach the broker
        #[arg(long, default_value = "https://127.0.0.1:8443")]
        url: String,
    },
    /// Run the broker
    Serve {
        #[arg(long, default_value = "broker.toml")]
        config: PathBuf,
    },
    /// Read a configuration and report every mistake in it
    Check {
        #[arg(long, default_value = "broker.toml")]
        config: PathBuf,
    },
    /// Work on policies, on files alone
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Check the audit log and every recording against it; exits 1 if anything is not as it was written
    Verify {
        #[arg(long, default_value = "broker.toml")]
        config: PathBuf,
    },
    /// Print the OpenAPI description of the HTTP API
    Openapi,
    /// Run a broker with a sign-in page and simulated devices, on this machine alone
    Demo(demo::Args),
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Parse and validate a folder of policies
    Check {
        #[arg(long, default_value = "policies")]
        dir: PathBuf,
    },
    /// Run the cases of a folder of policies
    Test {
        #[arg(long, default_value = "policies")]
        dir: PathBuf,
    },
    /// Say how the asks in a file are decided, and by which policies
    Explain {
        #[arg(long, default_value = "policies")]
        dir: PathBuf,
        asks: PathBuf,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(path: &Path) -> anyhow::Result<Config> {
    Ok(Config::load(path, |name| std::env::var(name).ok())?)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init { dir, url } => {
            let made = init::init(&dir, &url)?;
            println!("{}", init::next_steps(&made));
        }
        Command::Check { config } => {
            load(&config)?;
            println!("{} is in order.", config.display());
        }
        Command::Serve { config } => {
            let config = load(&config)?;
            serve::start_log(&config)?;
            runtime()?.block_on(async {
                let ctx = Ctx::open(config, Clock::system()).await?;
                let running = serve::start(ctx).await?;
                if running.tls.is_self_made() {
                    eprintln!(
                        "The HTTPS certificate was made here, for loopback. Its fingerprint:\n  {}",
                        running.tls.fingerprint()
                    );
                }
                let signalled = running.until_signal().await;
                running.stop().await;
                signalled
            })?;
        }
        Command::Policy(PolicyCommand::Check { dir }) => println!("{}", policy::commands::check(&dir)?),
        Command::Policy(PolicyCommand::Test { dir }) => {
            let report = policy::commands::test(&dir)?;
            println!("{report}");
            if !report.passed() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Policy(PolicyCommand::Explain { dir, asks }) => {
            println!("{}", policy::commands::explain(&dir, &asks)?);
        }
        Command::Verify { config } => {
            let config = load(&config)?;
            let keys = Keys::load(&config.keys_dir, &config.key_passphrase)?;
            let evidence = [keys.get(KeyPurpose::Evidence).public_key().clone()];
            let report = runtime()?.block_on(async {
                let db = Db::open(&config.database_url).await?;
                anyhow::Ok(audit::verify::run(&db, &evidence, &config.recordings.dir).await?)
            })?;
            println!("{report}");
            if !report.is_clean() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Openapi => println!("{}", serde_json::to_string_pretty(&http::router::openapi())?),
        Command::Demo(args) => runtime()?.block_on(demo::run(args))?,
    }
    Ok(ExitCode::SUCCESS)
}
