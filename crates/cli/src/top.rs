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

use ratatui::crossterm::event::{self, Event};
use ratatui::{DefaultTerminal, Frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::recorder::Choice;
use crate::{Outcome, plain};
use keys::Command;
use sources::Sources;
use view::View;

/// Time between two reads of the recorder. The shorter, the fewer records are overwritten unread.
const POLL_EVERY: Duration = Duration::from_millis(25);

const EXAMPLES: &str = "\
Examples:
  ringscope top                    the only guest, or a table of all guests
  ringscope top --name vm0 --interval 0.5
  ringscope top --all --sort rx-p99
  ringscope top --json | jq -c '[.name, .tx.packets, .outliers[0].total_ns]'

Keys:
  q, Ctrl-C    quit
  Enter, 1-9   in the table: open the marked guest, or the one on that line
  up, down     mark another guest
  Esc          back to the table
  s, r         sort by the next column; reverse the order
  p, space     pause; the next screen covers the whole pause
  o            show the slowest bursts first, or last
  h, ?         explain keys, columns and stages

Rates, bytes and drops are the daemon's counters and exact. Times are those of
the records; records that are overwritten before they are read are counted as
lost. The bar shows the stages of the mean. Without --name, new guests appear,
and guests whose daemon has ended are marked.

--json prints one object a line for each guest and interval, until Ctrl-C:
  time_ns       CLOCK_REALTIME at the interval's end
  name          the guest
  window_s      the interval's length, seconds
  tx, rx        as in `ringscope stats --json`
  queues        kicks and calls of each queue in the interval
  outliers      the five slowest bursts, slowest first; times in ns. While
                the host kernel is measured (`ringscoped --kernel-stages`, or
                `ringscope ctl NAME kernel-stages on`), not_running_ns is the
                time in which the worker did not run, and interrupted says
                what took most of it; otherwise both are null
  lost_records  records overwritten before they were read";

/// The flags of `ringscope top`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Time between two updates
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = crate::stats::seconds)]
    interval: Duration,
    /// Start with the table of all guests, even if there is one or none
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// Sort the table of guests by this column
    #[arg(long, value_name = "COLUMN", default_value = "name")]
    sort: guests::Column,
    /// Print a JSON object for each guest and interval; needs no terminal
    #[arg(long)]
    json: bool,
}

/// Standard output is no terminal.
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
            terminal.draw(|frame| {
                screen::render(&view, frame);
                make_plain(frame);
            })?;
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

/// Replaces what the locale cannot show.
fn make_plain(frame: &mut Frame<'_>) {
    let plain = plain::cell();
    for cell in &mut frame.buffer_mut().content {
        if let Some(symbol) = plain(cell.symbol()) {
            cell.set_symbol(&symbol);
        }
    }
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
