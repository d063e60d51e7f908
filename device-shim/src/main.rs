//! The device's program: reads the command line and does what it says.

// A test's program is not linked by build.rs.
#[cfg(all(target_env = "musl", target_arch = "x86_64", not(test)))]
mod memmove;

use daypass_protocol::join::JoinToken;
use daypass_shim::args::{self, Command, Files, HELP};
use daypass_shim::config::{Config, DEFAULT_PATH};
use daypass_shim::device::Device;
use daypass_shim::enrol::{self, NewDevice};
use daypass_shim::session::{leader, monitor};
use daypass_shim::state::StateDir;
use daypass_shim::tunnel::Over;
use daypass_shim::{note, run, status};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Why this program ends with a status other than 0.
enum Failure {
    /// Status 2.
    Usage(String),
    /// Status 1.
    Failed(String),
}

#[allow(clippy::needless_pass_by_value, reason = "map_err gives the error away")]
fn failed(error: impl ToString) -> Failure {
    Failure::Failed(error.to_string())
}

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let done = match args::parse(args) {
        Ok(Command::Monitor(fd)) => return monitor::main(fd),
        Ok(Command::Leader(fd)) => return leader::main(fd),
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("daypass-shim ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::Enrol { token, serial_number, device, files }) => {
            enrol_device(&token, serial_number, device, &files)
        }
        Ok(Command::Run(files)) => run_device(&files),
        Ok(Command::Status(files)) => {
            config(&files).and_then(|config| print(&status::status(&config).map_err(failed)?))
        }
        Err(wrong) => Err(Failure::Usage(format!("{wrong}\nhint: daypass-shim --help"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => complain(&text, 2),
        Err(Failure::Failed(text)) => complain(&text, 1),
    }
}

fn complain(text: &str, status: u8) -> ExitCode {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(std::io::stderr(), "error: {text}");
    ExitCode::from(status)
}

fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout().write_all(text.as_bytes()).map_err(failed)
}

/// The configuration that was named; or the one at the usual place, if there is one.
fn config(files: &Files) -> Result<Config, Failure> {
    let mut config = match &files.config {
        Some(path) => Config::load(path),
        None if Path::new(DEFAULT_PATH).exists() => Config::load(Path::new(DEFAULT_PATH)),
        None => Ok(Config::default()),
    }
    .map_err(|errors| Failure::Usage(errors.to_string()))?;
    if let Some(state) = &files.state {
        config.state_dir = std::path::absolute(state).map_err(failed)?;
    }
    Ok(config)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)
}

fn enrol_device(
    token: &str,
    serial_number: Option<String>,
    id: Option<daypass_protocol::ids::DeviceId>,
    files: &Files,
) -> Result<(), Failure> {
    let config = config(files)?;
    let mut text = token.to_owned();
    if token == "-" {
        text.clear();
        std::io::stdin().take(4096).read_to_string(&mut text).map_err(failed)?;
    }
    let token = JoinToken::parse(&text).map_err(|error| Failure::Usage(error.to_string()))?;
    let serial_number = serial_number.or_else(enrol::hardware_serial).ok_or_else(|| {
        Failure::Usage("the hardware states no serial number\nhint: give --serial-number".to_owned())
    })?;
    let enrolled = runtime()?
        .block_on(enrol::enrol(&config, &token, NewDevice { serial_number, id }))
        .map_err(failed)?;
    print(&format!("enrolled as {} at {}\n", enrolled.device, enrolled.broker_url))
}

fn run_device(files: &Files) -> Result<(), Failure> {
    let config = config(files)?;
    let state = StateDir::new(&config.state_dir);
    if state.is_retired() && !state.is_enrolled() {
        note!("this device was retired; there is nothing to run");
        return Ok(());
    }
    if config.logins.is_empty() {
        note!("no logins are configured: every session will be refused");
    }
    let device = Arc::new(Device::load(config).map_err(failed)?);
    // Orphans of a monitor that was killed come here, and are killed.
    nix::sys::prctl::set_child_subreaper(true).map_err(failed)?;
    let over = runtime()?.block_on(async {
        let (stop, stopping) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.send_replace(true);
        });
        Ok(run::run(device, stopping).await)
    })?;
    match over {
        Over::Retired => note!("this device left its fleet: key and state are wiped"),
        Over::Stopping => note!("stopped"),
    }
    Ok(())
}
