//! The CPUs of a guest's workers.

use super::PlanError;
use crate::args::CpuList;

/// The CPU of each worker; one worker on any CPU if there is no list.
///
/// # Errors
/// When a CPU is named twice, or workers would have no queue pair.
pub fn cpus(list: Option<CpuList>, queue_pairs: u16) -> Result<Vec<Option<usize>>, PlanError> {
    let Some(CpuList(cpus)) = list else { return Ok(vec![None]) };
    if cpus.len() > queue_pairs.into() {
        return Err(PlanError::TooManyCpus { cpus: cpus.len(), queue_pairs });
    }
    match (1..cpus.len()).find(|&n| cpus[..n].contains(&cpus[n])) {
        Some(n) => Err(PlanError::SameCpu(cpus[n])),
        None => Ok(cpus.into_iter().map(Some).collect()),
    }
}
