//! The rows that the flags of `ringscope lab` ask for.

use lab::case::{Case, CaseError, Change, has};
use lab::variant::{Variant, VariantError};

use super::{Experiment, Switch};

/// The variant whose program --xdp-printk changes.
const XDP: &str = "tap-xdp";
/// The variant that is measured without tracing, too, if it is measured at all.
const TRACED: &str = "tap-bridge";

/// Flags that ask for no row that can be built.
#[derive(Debug, thiserror::Error)]
pub enum CasesError {
    /// A name of --variants.
    #[error("--variants: {0}")]
    Variants(CaseError),
    /// A variant that is named twice.
    #[error("--variants: expected each name once, found {0} again")]
    Twice(String),
    /// A name of --against.
    #[error("--against: {0}")]
    Against(CaseError),
    /// Not two names.
    #[error(
        "--against: expected two names with a comma between them, as in tap-bridge,af-xdp, found {0}"
    )]
    NotTwo(usize),
    /// No tap-xdp.
    #[error("--xdp-printk is for the variant tap-xdp, which --variants leaves out")]
    NoPrintk,
    /// No ringscoped.
    #[error("--untraced on is for variants of ringscoped, all of which --variants leaves out")]
    NoTraced,
    /// The scripts cannot be asked.
    #[error(transparent)]
    Script(#[from] VariantError),
}

/// The cases, in the order of the table.
pub fn cases(flags: &Experiment, all: &[Variant]) -> Result<Vec<Case>, CasesError> {
    if !flags.against.is_empty() {
        return against(&flags.against, all);
    }
    let mut cases = Vec::new();
    for name in &flags.variants {
        let case = Case::parse(name, all).map_err(CasesError::Variants)?;
        if cases.contains(&case) {
            return Err(CasesError::Twice(name.clone()));
        }
        cases.push(case);
    }
    if flags.variants.is_empty() {
        cases.extend(all.iter().map(Case::of));
    }
    if flags.xdp_printk {
        let at = cases.iter().position(|it| it.name() == XDP).ok_or(CasesError::NoPrintk)?;
        add(&mut cases, at, Change::Printk);
    }
    if flags.untraced.map_or(!flags.quick, |it| it == Switch::On) {
        match traced(&cases)? {
            Some(at) => add(&mut cases, at, Change::Untraced),
            None if flags.untraced.is_some() => return Err(CasesError::NoTraced),
            None => {}
        }
    }
    Ok(cases)
}

/// The two cases that are compared; the second one has another name, if it is the same.
fn against(names: &[String], all: &[Variant]) -> Result<Vec<Case>, CasesError> {
    let [first, second] = names else { return Err(CasesError::NotTwo(names.len())) };
    let parse = |name: &str| Case::parse(name, all).map_err(CasesError::Against);
    let (first, second) = (parse(first)?, parse(second)?);
    let second = if second == first { second.with(Change::Again) } else { second };
    Ok(vec![first, second])
}

/// Adds the changed case after the plain one, if it is not there.
fn add(cases: &mut Vec<Case>, at: usize, change: Change) {
    let changed = cases[at].clone().with(change);
    if !cases.contains(&changed) {
        cases.insert(at + 1, changed);
    }
}

/// The case whose cost of tracing is measured.
fn traced(cases: &[Case]) -> Result<Option<usize>, VariantError> {
    let preferred = cases.iter().position(|it| it.name() == TRACED);
    for at in preferred.into_iter().chain(0..cases.len()) {
        let case = &cases[at];
        if !has(case.name(), Change::Untraced) && Change::Untraced.suits(case.variant())? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        flags: Experiment,
    }

    /// The names of the cases, or the error.
    fn named(line: &str) -> String {
        let words = ["lab"].into_iter().chain(line.split_whitespace());
        let flags = Command::try_parse_from(words).unwrap().flags;
        match cases(&flags, &lab::variant::all().unwrap()) {
            Ok(cases) => cases.iter().map(Case::name).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn rows_are_in_the_order_of_the_flags() {
        for (line, expected) in [
            ("--quick --variants af-xdp,host-host", "af-xdp host-host"),
            (
                "--variants host-host,tap-bridge,af-xdp",
                "host-host tap-bridge tap-bridge+untraced af-xdp",
            ),
            ("--variants af-xdp,macvtap", "af-xdp af-xdp+untraced macvtap"),
            ("--variants host-host,qemu-tap", "host-host qemu-tap"),
            ("--untraced off --variants tap-bridge", "tap-bridge"),
            ("--quick --untraced on --variants tap-bridge", "tap-bridge tap-bridge+untraced"),
            ("--variants tap-bridge+untraced,tap-bridge", "tap-bridge+untraced tap-bridge"),
            ("--quick --xdp-printk --variants tap-xdp,af-xdp", "tap-xdp tap-xdp+printk af-xdp"),
            ("--against tap-xdp+printk,tap-xdp", "tap-xdp+printk tap-xdp"),
            ("--against af-xdp,af-xdp", "af-xdp af-xdp+again"),
        ] {
            assert_eq!(named(line), expected, "{line}");
        }
        let all = named("--quick");
        assert!(all.starts_with("host-host ") && all.contains(" tap-bridge tap-ovs "), "{all}");
    }

    #[test]
    fn flags_that_do_not_fit_are_refused() {
        for (line, said) in [
            ("--against tap-bridge", "expected two names"),
            ("--against a,b,c", "found 3"),
            (
                "--against tap-bridge,tap-brigde",
                "--against: expected names of `ringscope lab list`",
            ),
            ("--variants af-xdp,af-xdp", "found af-xdp again"),
            ("--xdp-printk --variants af-xdp", "--variants leaves out"),
            ("--untraced on --variants host-host", "--untraced on is for variants of ringscoped"),
        ] {
            assert!(named(line).contains(said), "{line}: {}", named(line));
        }
    }
}
