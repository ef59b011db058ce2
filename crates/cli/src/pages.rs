//! `completions` and `man`: what packages install beside the program, made from its own flags.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::Shell;

const NAME: &str = "ringscope";

#[derive(clap::Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(clap::Args)]
pub struct Man {
    /// Directory of the pages; made if missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub fn completions(arguments: &Completions) -> Result<(), Box<dyn Error>> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::Arguments::command(), NAME, &mut script);
    Ok(io::stdout().write_all(&script)?)
}

pub fn man(arguments: &Man) -> Result<(), Box<dyn Error>> {
    let failed = |error: io::Error| format!("{}: {error}", arguments.directory.display());
    std::fs::create_dir_all(&arguments.directory).map_err(failed)?;
    let command = crate::Arguments::command().name(NAME).disable_help_subcommand(true);
    clap_mangen::generate_to(command, &arguments.directory).map_err(failed)?;
    Ok(())
}
