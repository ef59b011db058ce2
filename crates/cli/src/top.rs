//! `ringscope top`: where the time goes, live.

mod cells;
#[cfg(test)]
mod fixture;
mod guest;
mod guests;
mod help;
mod keys;
mod order;
mod outliers;
mod queues;
mod screen;
mod source;
mod sources;
mod stream;
mod view;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::Outcome;
use crate::recorder::Choice;
use keys::Command;
use sources::Sources;
use view::View;

/// How often the recorder is read between two redraws: the oftener, the less is overwritten unread.
const POLL_EVERY: Duration = Duration::from_millis(25);

const EXAMPLES: &str = "\
Examples:
  ringscope top                    the only guest of this host, or a table of all; a new picture each second
  ringscope top --name vm0 --interval 0.5
  ringscope top --all --sort rx-p99
  ringscope top --json | jq -c '[.name, .tx.packets, .outliers[0].total_ns]'

Keys:
  q, Ctrl-C          end it
  Enter, 1-9         in the table: open the marked guest, or that on this line; up, down mark another one
  Esc                back to the table
  s, r               sort by the next column; the other way round (guests, or the queues of one)
  p, space           hold the picture; what comes is counted, and the next picture is of the whole pause
  o                  the interval's slowest bursts first, where a low terminal has no room for them
  h, ?               what keys, columns and stages are

Rates, bytes and drops come from the daemon's counters and are exact. Times come from the records; those \
that were overwritten before they could be read are counted as lost. The bar shows what the mean \
consists of. Without --name, guests that come later are shown as well, and those whose daemon has ended are marked.

With --json there is one object a line for each guest and interval, until Ctrl-C: time_ns (CLOCK_REALTIME at its end), \
name, window_s, tx and rx as in `ringscope stats --json`, outliers (its five slowest bursts, the slowest first: times in \
ns, stages by name), and lost_records.";

/// The flags of `ringscope top`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Time between two pictures
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = crate::stats::seconds)]
    interval: Duration,
    /// Begin with the table of all guests, also of one or none
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// What the table of guests is sorted by at first
    #[arg(long, value_name = "COLUMN", default_value = "name")]
    sort: guests::Column,
    /// One JSON object a line for each guest and interval; needs no terminal
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
    let sources = Sources::open(&arguments.choice, arguments.all)?;
    if !arguments.json && !io::stdout().is_terminal() {
        return Err(NoTerminal.into());
    }
    let stop = Arc::new(AtomicBool::new(false));
    // Not SIGHUP, which ends us at once: the terminal is gone then, and who waits for its next key waits for ever.
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    if arguments.json {
        return Ok(stream::follow(sources, arguments.interval, &stop)?);
    }
    let dir = sources.dir().cloned();
    let mut view = View::new(dir, sources.first(), arguments.sort);
    if !arguments.all && view.is_of_one() {
        view.open_first();
    }
    // The terminal comes back in every case: `try_init` sees to it when we panic.
    let mut terminal = ratatui::try_init()?;
    let done = follow(&mut terminal, sources, view, arguments.interval, &stop);
    ratatui::try_restore()?;
    Ok(done?)
}

fn follow(
    terminal: &mut DefaultTerminal,
    mut sources: Sources,
    mut view: View,
    interval: Duration,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut redraw_at = Instant::now() + interval;
    let mut is_stale = true;
    while !stop.load(Ordering::Relaxed) {
        if is_stale {
            terminal.draw(|frame| screen::render(&view, frame))?;
        }
        is_stale = false;
        if !is_terminal_there(pause(&view, redraw_at))? {
            return Ok(());
        }
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Resize(..) => is_stale = true,
                Event::Key(key) => match keys::command(&key) {
                    Some(Command::End) => return Ok(()),
                    Some(command) => {
                        view.obey(command);
                        is_stale = true;
                    }
                    None => {}
                },
                _ => {}
            }
        }
        sources.poll();
        // What comes in a pause stays where it is counted, and is of the interval that ends after it.
        if !view.is_paused() && Instant::now() >= redraw_at {
            redraw_at = Instant::now() + interval;
            let samples = sources.take();
            view.update(samples, sources.unreadable());
            is_stale = true;
        }
    }
    Ok(())
}

/// Waits for input or a signal, no longer than `limit`. Returns whether the terminal is still there: without it, and with
/// SIGHUP ignored (`nohup`), [`event::poll`] would never return.
fn is_terminal_there(limit: Duration) -> io::Result<bool> {
    let stdout = io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::IN)];
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut polled, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(!polled[0].revents().contains(PollFlags::HUP)),
        Err(error) => Err(error.into()),
    }
}

fn pause(view: &View, redraw_at: Instant) -> Duration {
    if view.is_paused() {
        POLL_EVERY
    } else {
        redraw_at.saturating_duration_since(Instant::now()).min(POLL_EVERY)
    }
}
