//! What is printed for other programs, instead of serving guests.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;

/// The text that these flags ask for.
pub fn asked(args: &Args) -> Option<Vec<u8>> {
    if args.print_capabilities {
        return Some(capabilities());
    }
    if args.print_man {
        return Some(manual());
    }
    args.print_completions.map(completions)
}

/// Prints it. A reader that has seen enough is no error.
pub fn out(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("ringscoped: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// For management tools (QEMU, docs/interop/vhost-user.json).
fn capabilities() -> Vec<u8> {
    format!("{}\n", serde_json::json!({ "type": "net", "features": [] })).into()
}

fn manual() -> Vec<u8> {
    let mut page = Vec::new();
    let written = clap_mangen::Man::new(Args::command()).section("1").render(&mut page);
    debug_assert!(written.is_ok(), "a vector takes everything");
    page
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ringscoped", &mut script);
    script
}
