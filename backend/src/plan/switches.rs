//! The switches between guests.

use worker::SWITCH_PAIRS_MAX;

use super::{GuestPlan, PlanError, SwitchPlan};
use crate::spec::DatapathSpec;

/// The switches of the guests. All guests of a switch must have the same values for its worker.
pub fn switches(guests: &[GuestPlan]) -> Result<Vec<SwitchPlan>, PlanError> {
    let mut switches: Vec<SwitchPlan> = Vec::new();
    for (n, guest) in guests.iter().enumerate() {
        let DatapathSpec::Switch { name, uplink } = &guest.datapath else { continue };
        let uplink = uplink.as_deref().cloned();
        if guest.workers.len() > 1 {
            let cpus = guest.workers.len();
            return Err(PlanError::SwitchCpus { switch: name.clone(), cpus });
        }
        match switches.iter_mut().find(|switch| switch.name == *name) {
            None => switches.push(SwitchPlan { name: name.clone(), guests: vec![n], uplink }),
            Some(switch) => {
                agree(name, &guests[switch.guests[0]], guest)?;
                if let Some(mac) = guest.mac
                    && switch.guests.iter().any(|&other| guests[other].mac == Some(mac))
                {
                    return Err(PlanError::SameMac { switch: name.clone(), mac });
                }
                switch.guests.push(n);
                match (&switch.uplink, uplink) {
                    (None, uplink) => switch.uplink = uplink,
                    (Some(found), Some(other)) if *found != other => {
                        let (found, other) = (found.to_string(), other.to_string());
                        return Err(PlanError::Differs {
                            switch: name.clone(),
                            key: "uplink",
                            found,
                            other,
                        });
                    }
                    (Some(_), _) => {}
                }
            }
        }
    }
    for switch in &switches {
        let pairs = switch.guests.iter().map(|&n| usize::from(guests[n].queue_pairs)).sum();
        let (switch, max) = (switch.name.clone(), SWITCH_PAIRS_MAX);
        if pairs > max {
            return Err(PlanError::SwitchPairs { switch, pairs, max });
        }
    }
    Ok(switches)
}

/// Checks that one worker can serve both guests.
fn agree(switch: &str, one: &GuestPlan, other: &GuestPlan) -> Result<(), PlanError> {
    let cpu = |plan: &GuestPlan| plan.workers[0].cpu.map_or("any".into(), |cpu| cpu.to_string());
    let sched = |plan: &GuestPlan| {
        plan.workers[0].fifo.map_or("none".into(), |priority| format!("fifo:{priority}"))
    };
    let pairs = [
        ("poll", one.poll.to_string(), other.poll.to_string()),
        ("cpus", cpu(one), cpu(other)),
        ("sched", sched(one), sched(other)),
    ];
    match pairs.into_iter().find(|(_, found, other)| found != other) {
        None => Ok(()),
        Some((key, found, other)) => {
            Err(PlanError::Differs { switch: switch.to_owned(), key, found, other })
        }
    }
}
