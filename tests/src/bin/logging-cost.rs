//! What it costs the daemon to log which pages it writes, as during a live migration: frames of 64 bytes that come back to a guest in
//! software, with and without a dirty log in turn.
//!
//!     taskset -c 0 logging-cost PAIRS
//!
//! Prints frames a second, and frames for each second of the daemon's CPU time, both without and with the log, and the ratios. The
//! daemon has CPU 1. The log is emptied a hundred times a second, so that its bits are to be set again.

use std::error::Error;
use std::time::{Duration, Instant};

use frontend::{DirtyFile, Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::dirty::end_of_memory;
use ringscope_tests::frames;

/// Time of one measurement.
const RUN: Duration = Duration::from_secs(1);
/// Time between two looks at the log.
const LOOK: Duration = Duration::from_millis(10);
/// Frames that the guest publishes together.
const TOGETHER: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let pairs: usize = std::env::args().nth(1).unwrap_or_default().parse()?;
    let directory = tempfile::tempdir()?;
    let arguments = ["--datapath", "reflect", "--poll", "never", "--cpus", "1"];
    let daemon = Daemon::start(directory.path(), "vm", &arguments)?;
    for packed in [false, true] {
        let options = GuestOptions::default().queue_size(1024).packed(packed);
        let mut guest = Guest::connect(daemon.socket(), options)?;
        let log = DirtyFile::new(end_of_memory(&guest))?;
        guest.link()?.set_log(log.file(), log.len(), 0)?;
        let mut ratios = [Vec::new(), Vec::new()];
        for _ in 0..pairs {
            let mut rates = [[0.0; 2]; 2];
            for (is_logged, rates) in rates.iter_mut().enumerate() {
                guest.link()?.set_logging(is_logged == 1)?;
                *rates = measure(&daemon, &mut guest, &log)?;
            }
            for (n, ratios) in ratios.iter_mut().enumerate() {
                ratios.push(rates[1][n] / rates[0][n]);
            }
            println!("without {:.0?}, with {:.0?}", rates[0], rates[1]);
        }
        for (what, mut ratios) in ["a second", "a CPU second"].into_iter().zip(ratios) {
            ratios.sort_by(f64::total_cmp);
            let (least, most) = (ratios[0], ratios[pairs - 1]);
            let ring = if packed { "packed" } else { "split" };
            println!("{ring}, {what}: {:.3} ({least:.3} to {most:.3})", ratios[pairs / 2]);
        }
    }
    Ok(())
}

/// Frames a second, and frames for each second of the daemon's CPU time.
fn measure(
    daemon: &Daemon,
    guest: &mut Guest,
    log: &DirtyFile,
) -> Result<[f64; 2], Box<dyn Error>> {
    let sent = frames::frame(1, 64);
    let (begun, cpu) = (Instant::now(), daemon.cpu_time());
    let (mut looked, mut came) = (begun, 0_u32);
    let mut frame = frontend::Frame::default();
    let pair = guest.pair(0);
    while begun.elapsed() < RUN {
        for _ in 0..TOGETHER {
            if !pair.queue(&sent)? {
                break;
            }
        }
        pair.flush()?;
        // No more than are under way: more come all the time.
        for _ in 0..2 * TOGETHER {
            if !pair.receive_into(&mut frame)? {
                break;
            }
            came += 1;
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            log.clear()?;
        }
    }
    let (wall, cpu) = (begun.elapsed(), daemon.cpu_time() - cpu);
    Ok([wall, cpu].map(|time| f64::from(came) / time.as_secs_f64()))
}
