//! The filter of a role (`seccomp(2)`), made of its [calls](crate::calls).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use crate::calls::{Call, Test};
use crate::role::Role;

/// What happens when a thread makes another call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The process ends, with a message that names thread and call.
    #[default]
    Kill,
    /// The kernel logs the call (`type=1326` in its log), and makes it.
    Log,
    /// Nothing: there is no filter.
    Off,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[error("its filter of system calls cannot be set: {0}")]
pub struct FilterError(String);

impl FilterError {
    /// Of what the system answered.
    pub fn of(error: &std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Sets the filter of `role` for the calling thread.
pub fn enter(role: Role, seccomp: Seccomp) -> Result<(), FilterError> {
    for program in programs(role, seccomp)? {
        apply_filter(&program).map_err(|error| FilterError(error.to_string()))?;
    }
    Ok(())
}

/// The filters of `role`. The kernel runs all of them, and what forbids most counts.
pub fn programs(role: Role, seccomp: Seccomp) -> Result<Vec<BpfProgram>, FilterError> {
    let forbidden = match seccomp {
        // Not `KillProcess`: the handler names the call, and then ends the process in the same way.
        Seccomp::Kill => SeccompAction::Trap,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Off => return Ok(Vec::new()),
    };
    let Some(groups) = role.calls() else { return Ok(Vec::new()) };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let calls = || groups.iter().copied().flatten();
    for Call { number, tests } in calls() {
        let allowed = rules.entry(*number).or_default();
        for &(argument, test) in *tests {
            allowed.push(rule(argument, test)?);
        }
    }
    // A call that one group allows with any arguments.
    for Call { number, .. } in calls().filter(|call| call.tests.is_empty()) {
        rules.insert(*number, Vec::new());
    }
    let mut programs = vec![compile(rules, forbidden, SeccompAction::Allow)?];
    if role.starts_threads() {
        let refused = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let errno = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        programs.push(compile(refused, SeccompAction::Allow, errno)?);
    }
    Ok(programs)
}

fn rule(argument: u8, test: Test) -> Result<SeccompRule, FilterError> {
    let (operator, value) = match test {
        Test::Is(value) => (SeccompCmpOp::Eq, value),
        Test::Without(bits) => (SeccompCmpOp::MaskedEq(bits), 0),
        Test::With(bits) => (SeccompCmpOp::MaskedEq(bits), bits),
        Test::Own => (SeccompCmpOp::Eq, std::process::id().into()),
    };
    let fail = |error: seccompiler::BackendError| FilterError(error.to_string());
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    SeccompRule::new(vec![condition.map_err(fail)?]).map_err(fail)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, FilterError> {
    let fail = |error: seccompiler::BackendError| FilterError(error.to_string());
    let target = TargetArch::try_from(std::env::consts::ARCH).map_err(fail)?;
    SeccompFilter::new(rules, otherwise, matched, target)
        .and_then(BpfProgram::try_from)
        .map_err(fail)
}
