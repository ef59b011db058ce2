//! `ringscope why`: the slow packets of a recording or recorder, grouped by cause.

use report::trigger::nanoseconds;
use report::why::{Limit, Why, to_json, to_text};

use crate::doctor;
use crate::input::Input;
use crate::plain::shown;
use crate::{Outcome, output};

const EXAMPLES: &str = "\
Examples:
  ringscope record --kernel-stages --seconds 10 -o ten.rec
  ringscope why ten.rec              why the slowest 1 % were slow
  ringscope why ten.rec --over 500us
                                     why anything took longer than that
  ringscope why --json | jq '.culprits[0].words'
                                     of the only recorder here

What is looked at:
  bursts          with the wake-up of their worker
  frames          in the host, between tap and wire
  turns           of the guest and of the far end, from a request to its
                  answer: for probe packets (ringscoped --trace-probe)

A cause is named if it took a third or more of the time above the median:
  preempted       another thread had the CPU: its name, process and class
  throttled       a control group had used up its CPU quota
  stopped         by a signal, a debugger, or a frozen control group
  blocked         in a system call
  page-fault      memory had to be brought in
  interrupt, softirq
                  the CPU served another device, or other packets
  printk          a BPF program printed debug messages
  kvm-exit        KVM had taken a virtual CPU out of its guest
  hypervisor      nothing on this kernel ran: on a virtual machine likely the
                  hypervisor
Where everybody ran, the stage that took longest is named: no-buffers,
behind-datapath, guest, far-end, datapath, queue, unknown.

Who took a CPU is known if interruptions are measured: ringscoped
--kernel-stages, ringscope record --kernel-stages, or ringscope ctl NAME
kernel-stages on.";

/// The flags of `ringscope why`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    input: Input,
    /// Slow is what takes longer than this, such as 500us [default: what is
    /// above the 99th percentile of its kind]
    #[arg(long, value_name = "TIME", value_parser = limit)]
    over: Option<u64>,
    /// Print one JSON object instead of words
    #[arg(long)]
    json: bool,
}

fn limit(text: &str) -> Result<u64, String> {
    nanoseconds(text).ok_or_else(|| "expected a time with its unit, such as 500us or 2ms".into())
}

/// Runs `ringscope why`.
///
/// # Errors
/// When there is nothing to read, or the output cannot be written.
pub fn run(arguments: &Arguments) -> Outcome {
    let (source, name) = arguments.input.open()?;
    let limit = arguments.over.map_or(Limit::P99, Limit::Over);
    let is_virtual = doctor::summary()["is_virtual"].as_bool().unwrap_or(false);
    let why = Why::read(&source, &name, limit, is_virtual);
    let text = match arguments.json {
        true => to_json(&why) + "\n",
        false => shown(to_text(&why)),
    };
    Ok(output::print(&text)?)
}
