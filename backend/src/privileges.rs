//! `--print-privileges`: which capabilities a run with these flags needs for its set-up. `tests/tests/privileges.rs` runs each with
//! these, and with one fewer; but not `--user`, which changes whose the files are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::plan::Plan;
use crate::spec::{DatapathSpec, Port};

/// For each capability what needs it.
type Needs = BTreeMap<&'static str, Vec<String>>;

/// A line for each capability, with what needs it; one line if none is needed.
pub fn text(plan: &Plan) -> String {
    let needs = needs(plan);
    if needs.is_empty() {
        return "none: any user can run this\n".into();
    }
    let width = needs.keys().map(|name| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, reasons) in needs {
        let _ = writeln!(text, "{name:<width$}  {}", reasons.join(", "));
    }
    text
}

/// The owner of a tap. One without an owner is for everyone (`tun_not_capable`, drivers/net/tun.c).
fn owner_of(tap: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/class/net/{tap}/owner")).ok()?.trim().parse().ok()
}

fn needs(plan: &Plan) -> Needs {
    let mut needs = Needs::new();
    let mut add = |names: &[&'static str], reason: &str| {
        for name in names {
            let reasons = needs.entry(name).or_default();
            if !reasons.iter().any(|known| known == reason) {
                reasons.push(reason.to_owned());
            }
        }
    };
    for wire in plan.wires() {
        match wire {
            DatapathSpec::Tap { port: Port::Name(name), .. } => {
                if let Some(owner) = owner_of(name) {
                    add(&["CAP_NET_ADMIN"], &format!("{wire} (not for its owner, user {owner})"));
                }
            }
            DatapathSpec::Macvtap { over: Some(_), .. } => {
                add(&["CAP_NET_ADMIN", "CAP_DAC_OVERRIDE"], &wire.to_string());
            }
            DatapathSpec::Macvtap { port: Port::Name(_), over: None, .. } => {
                let reason = format!("{wire} (not if its /dev/tapN is this user's)");
                add(&["CAP_DAC_OVERRIDE"], &reason);
            }
            DatapathSpec::AfXdp { .. } => {
                add(&["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW"], &wire.to_string());
                add(&["CAP_IPC_LOCK"], &format!("{wire} (or ulimit -l unlimited)"));
            }
            DatapathSpec::Tap { port: Port::Descriptor(_), .. }
            | DatapathSpec::Macvtap { port: Port::Descriptor(_), over: None, .. }
            | DatapathSpec::Switch { .. }
            | DatapathSpec::Reflect
            | DatapathSpec::Null { .. } => {}
        }
    }
    if plan.guests.iter().any(|guest| guest.kernel_stages) {
        add(&["CAP_BPF", "CAP_PERFMON"], "--kernel-stages");
    }
    if plan.guests.iter().flat_map(|guest| &guest.workers).any(|worker| worker.fifo.is_some()) {
        add(&["CAP_SYS_NICE"], "--sched");
    }
    let confinement = &plan.confinement;
    if confinement.user.is_some() {
        add(&["CAP_SETGID", "CAP_SETUID"], "--user");
    }
    if confinement.group.is_some() {
        add(&["CAP_SETGID"], "--socket-group");
    }
    if confinement.socket_user.is_some() {
        add(&["CAP_CHOWN"], "--socket-user");
    }
    needs
}
