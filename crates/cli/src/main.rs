//! The ringscope tool.
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The end point of measurements, in guests and on the far host.
    Agent(lab::agent::Args),
}

fn main() -> std::process::ExitCode {
    let Command::Agent(args) = Line::parse().command;
    match lab::agent::run(args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringscope: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
