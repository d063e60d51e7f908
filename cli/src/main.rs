//! `daypass`: the command line of Daypass, for engineers, approvers, reviewers and operators.
#![forbid(unsafe_code)]

mod args;
mod cast;
mod client;
mod clock;
mod commands;
mod failure;
mod profile;
mod ssh;
mod ui;

use clap::Parser as _;
use failure::Failure;
use std::io::ErrorKind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    // Fails only if one is installed already, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match commands::main(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // `daypass devices | head`: whoever reads has had enough.
        Err((_, Failure::Output(error))) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err((ui, failure)) => {
            ui.failure(&failure);
            ExitCode::from(ui::failures::exit_code(&failure))
        }
    }
}
