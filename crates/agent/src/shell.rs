//! `shell`: one command in a guest, from the host.

use crate::Error;
use crate::console::Console;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The console.sock that qemu-scripts/launch made.
    socket: PathBuf,
    /// The command, one line; without it, only wait for the guest.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Time for the guest to answer, and again for the command to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

pub fn run(args: &Args) -> Result<(), Error> {
    let limit = Duration::from_secs(args.timeout);
    let command = args.command.join(" ");
    if command.contains('\n') {
        let (expected, found) = ("one line".to_owned(), format!("{command:?}"));
        return Err(Error::Usage { flag: "COMMAND", expected, found });
    }
    let mut console = Console::connect(&args.socket)?;
    console.await_boot(limit)?;
    if command.is_empty() {
        return Ok(());
    }
    let output = console.run(&command, limit)?;
    stdout().lock().write_all(output.text.as_bytes())?;
    match output.status {
        0 => Ok(()),
        status => Err(Error::Command { command, status }),
    }
}
