//! `daypass completions`.

use super::Context;
use crate::args::Cli;
use crate::failure::Failure;
use clap::CommandFactory as _;
use clap_complete::Shell;

pub fn run(context: &Context, shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "daypass", &mut script);
    context.ui.data(&String::from_utf8_lossy(&script))
}
