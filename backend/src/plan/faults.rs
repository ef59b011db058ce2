//! Faults to plant, by what plants them.

use datapath::Planted;
use worker::{Crash, Delay};

use super::PlanError;
use crate::spec::FaultSpec;

/// Faults of workers (delays, panics), and faults of the wire. Guests of a switch have no wire.
pub type Faults = (Vec<Delay>, Vec<Crash>, Vec<Planted>);

/// Sorts them.
///
/// # Errors
/// When one needs a wire and there is none.
pub fn sort_faults(all: Vec<FaultSpec>, on_switch: bool) -> Result<Faults, PlanError> {
    let (mut delays, mut crashes, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for fault in all {
        match fault {
            FaultSpec::Delay(delay) => delays.push(delay),
            FaultSpec::Crash(crash) => crashes.push(crash),
            FaultSpec::Wire(_) if on_switch => {
                return Err(PlanError::NoWire("--fault drop or error"));
            }
            FaultSpec::Wire(planted) => faults.push(planted),
        }
    }
    Ok((delays, crashes, faults))
}
