//! The clocks of this host: how far `CLOCK_REALTIME` is ahead, and how the counter of a KVM guest follows from the host's.

use agent::RealtimeAhead;
use report::journey::GuestCounter;
use serde_json::{Value, json};

use crate::doctor::files::Files;

/// KVM's files: a directory `THREAD-DESCRIPTOR` for each guest, after the thread that made it (`kvm_create_vm_debugfs` in
/// `virt/kvm/kvm_main.c`). In each, the directories of virtual CPUs (`arch/x86/kvm/debugfs.c`).
const GUESTS: &str = "/sys/kernel/debug/kvm";
/// Readings of both clocks.
const READINGS: u32 = 64;

/// What a recording's facts have as `clocks`: `realtime_ahead_ns`, the least and the most by which `CLOCK_REALTIME` is ahead of
/// `CLOCK_MONOTONIC`, and `guest_counter`, how the counter of the front end's guest follows from the host's, or `n/a: ` and
/// why that is not known.
pub fn look(front_end: Option<u32>) -> Value {
    let [low, high] = RealtimeAhead::read(READINGS).bounds_ns();
    let counter = match guest_counter(&Files::of_this_host(), front_end) {
        Ok(counter) => json!(counter),
        Err(reason) => json!(format!("n/a: {reason}")),
    };
    json!({ "realtime_ahead_ns": [low, high], "guest_counter": counter })
}

/// The relation of the counters, if it is the same for all virtual CPUs of the process.
fn guest_counter(files: &Files, front_end: Option<u32>) -> Result<GuestCounter, String> {
    let process = front_end.ok_or("no front end is connected")?;
    let guests = files.names(GUESTS, "").ok_or_else(|| {
        format!("no {GUESTS} (as root, with KVM: mount -t debugfs debugfs /sys/kernel/debug)")
    })?;
    let is_of_process = |name: &&String| {
        let thread = name.split_once('-').and_then(|(thread, _)| thread.parse::<u32>().ok());
        thread.is_some_and(|thread| files.exists(&format!("/proc/{process}/task/{thread}")))
    };
    let mut found = None;
    for guest in guests.iter().filter(is_of_process) {
        for vcpu in files.names(&format!("{GUESTS}/{guest}"), "vcpu").unwrap_or_default() {
            let counter = counter_of(files, &format!("{GUESTS}/{guest}/{vcpu}"))?;
            if found.is_some_and(|found| found != counter) {
                return Err(format!(
                    "the virtual CPUs of process {process} have different counters"
                ));
            }
            found = Some(counter);
        }
    }
    found.ok_or_else(|| format!("process {process} has no guest of KVM"))
}

/// The counter of a virtual CPU. Hardware that scales no counters has no ratio.
fn counter_of(files: &Files, vcpu: &str) -> Result<GuestCounter, String> {
    let number = |name: &str| files.parse(&format!("{vcpu}/{name}"));
    let offset = format!("{vcpu}/tsc-offset");
    let tsc_offset = files.parse(&offset).ok_or_else(|| format!("{offset} has no number"))?;
    let scale = number("tsc-scaling-ratio").zip(number("tsc-scaling-ratio-frac-bits"));
    let (scaling_ratio, fraction_bits) = scale.unwrap_or((1, 0));
    let fraction_bits = u32::try_from(fraction_bits).unwrap_or(u32::MAX);
    Ok(GuestCounter { tsc_offset, scaling_ratio, fraction_bits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::files::tests::Pretended;

    const QEMU: (&str, &str) = ("/proc/700/task/700/comm", "qemu-system-x86");

    fn found(files: &[(&str, &str)]) -> Result<GuestCounter, String> {
        guest_counter(&Pretended::new(files).files(), Some(700))
    }

    #[test]
    fn the_counter_of_the_front_ends_guest_is_found() {
        let offset = ("/sys/kernel/debug/kvm/700-12/vcpu0/tsc-offset", "-81072213390\n");
        let another = ("/sys/kernel/debug/kvm/9-12/vcpu0/tsc-offset", "5\n");
        let total = ("/sys/kernel/debug/kvm/exits", "99\n");
        let plain =
            GuestCounter { tsc_offset: -81_072_213_390, scaling_ratio: 1, fraction_bits: 0 };
        assert_eq!(found(&[QEMU, offset, another, total]), Ok(plain));
        let ratio = ("/sys/kernel/debug/kvm/700-12/vcpu0/tsc-scaling-ratio", "281474976710656\n");
        let bits = ("/sys/kernel/debug/kvm/700-12/vcpu0/tsc-scaling-ratio-frac-bits", "48\n");
        let scaled = GuestCounter { scaling_ratio: 1 << 48, fraction_bits: 48, ..plain };
        assert_eq!(found(&[QEMU, offset, ratio, bits]), Ok(scaled));
        // Made by another thread of the process.
        let thread = ("/proc/700/task/703/comm", "vmm");
        let its = ("/sys/kernel/debug/kvm/703-9/vcpu0/tsc-offset", "4");
        assert_eq!(found(&[QEMU, thread, its]).unwrap().tsc_offset, 4);
    }

    #[test]
    fn what_keeps_it_from_being_found_is_said() {
        let one = ("/sys/kernel/debug/kvm/700-12/vcpu0/tsc-offset", "1");
        let two = ("/sys/kernel/debug/kvm/700-12/vcpu1/tsc-offset", "2");
        let none = ("/sys/kernel/debug/kvm/700-12/vcpu0/guest_mode", "0");
        for (files, reason) in [
            (&[QEMU][..], "no /sys/kernel/debug/kvm"),
            (&[QEMU, ("/sys/kernel/debug/kvm/exits", "0")], "process 700 has no guest of KVM"),
            (&[one], "process 700 has no guest of KVM"),
            (&[QEMU, one, two], "different counters"),
            (&[QEMU, none], "tsc-offset has no number"),
        ] {
            let error = found(files).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let error = guest_counter(&Pretended::new(&[QEMU]).files(), None).unwrap_err();
        assert_eq!(error, "no front end is connected");
    }
}
