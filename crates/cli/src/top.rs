//! `ringscope top`: where the time goes, live.

mod screen;
mod source;
mod stream;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Outcome;
use crate::recorder::Choice;
use screen::Screen;
use source::Source;

/// How often the recorder is read between two redraws: the oftener, the less is overwritten unread.
const POLL_EVERY: Duration = Duration::from_millis(25);

const EXAMPLES: &str = "\
Examples:
  ringscope top                    the only recorder of this host, a new picture each second
  ringscope top --name vm0 --interval 0.5
  ringscope top --json | jq -c '[.tx.packets, .outliers[0].total_ns]'

Keys: q or Ctrl-C ends it.

Rates, bytes and drops come from the daemon's counters and are exact. Times come from the records; those \
that were overwritten before they could be read are counted as lost. The bar shows what the mean \
consists of.

With --json there is one object a line for each interval, until Ctrl-C: time_ns (CLOCK_REALTIME at its end), name, window_s, \
tx and rx as in `ringscope stats --json`, outliers (its five slowest bursts, the slowest first: times in ns, stages by \
name), and lost_records.";

/// The flags of `ringscope top`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Time between two pictures
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = crate::stats::seconds)]
    interval: Duration,
    /// One JSON object a line for each interval; needs no terminal
    #[arg(long)]
    json: bool,
}

/// There is nothing to draw on.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected a terminal as standard output, found a file or a pipe; use --json there, or `ringscope stats`"
)]
struct NoTerminal;

/// Runs `ringscope top` until it is ended by a key or a signal.
///
/// # Errors
/// When there is no recorder to follow, or no terminal.
pub fn run(arguments: &Arguments) -> Outcome {
    let source = Source::new(arguments.choice.open()?);
    if !arguments.json && !io::stdout().is_terminal() {
        return Err(NoTerminal.into());
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    if arguments.json {
        return Ok(stream::follow(source, arguments.interval, &stop)?);
    }
    // The terminal comes back in every case: `try_init` sees to it when we panic.
    let mut terminal = ratatui::try_init()?;
    let done = follow(&mut terminal, source, arguments.interval, &stop);
    ratatui::try_restore()?;
    Ok(done?)
}

fn follow(
    terminal: &mut DefaultTerminal,
    mut source: Source,
    interval: Duration,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut screen = Screen::new(source.identity());
    let mut redraw_at = Instant::now() + interval;
    let mut is_stale = true;
    while !stop.load(Ordering::Relaxed) {
        if is_stale {
            terminal.draw(|frame| screen.render(frame))?;
        }
        let pause = redraw_at.saturating_duration_since(Instant::now()).min(POLL_EVERY);
        is_stale = false;
        if event::poll(pause)? {
            match event::read()? {
                event if is_end(&event) => return Ok(()),
                Event::Resize(..) => is_stale = true,
                _ => {}
            }
        }
        source.poll();
        if Instant::now() >= redraw_at {
            redraw_at = Instant::now() + interval;
            screen.update(source.take(), source.identity());
            is_stale = true;
        }
    }
    Ok(())
}

fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_control_c =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (is_control_c || key.code == KeyCode::Char('q'))
}
