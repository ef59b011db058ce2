//! How a plan is split (`--isolate process`).

use std::path::{Path, PathBuf};

use super::{Plan, PlanError, switches};
use crate::part::Part;

impl Plan {
    /// Its parts: the guests of a switch together, each other guest by itself, and the metrics, if there are any.
    ///
    /// # Errors
    /// When it cannot be split.
    pub fn parts(&self) -> Result<Vec<Part>, PlanError> {
        if self.take_over.is_some() {
            return Err(PlanError::Isolated("--take-over"));
        }
        if self.wires().any(|wire| wire.descriptor().is_some()) {
            return Err(PlanError::Isolated("a descriptor (fd=) as datapath"));
        }
        let mut parts = Vec::new();
        for (n, guest) in self.guests.iter().enumerate() {
            match self.switches.iter().find(|switch| switch.guests.contains(&n)) {
                None => parts.push(Part::Guests(vec![guest.name.clone()])),
                Some(switch) if switch.guests[0] == n => {
                    let names = switch.guests.iter().map(|&n| self.guests[n].name.clone());
                    parts.push(Part::Guests(names.collect()));
                }
                Some(_) => {}
            }
        }
        parts.extend(self.metrics.as_ref().map(|_| Part::Metrics));
        Ok(parts)
    }

    /// What of it is for one process.
    ///
    /// # Errors
    /// When the file has no such guests any more.
    pub fn only(mut self, part: Part) -> Result<Self, PlanError> {
        match &part {
            Part::Guests(names) => {
                self.guests.retain(|guest| part.serves(&guest.name));
                if self.guests.len() != names.len() {
                    return Err(PlanError::NoPart(part.to_string()));
                }
                self.switches = switches(&self.guests)?;
                self.metrics = None;
                let first = &self.guests[0].name;
                self.control = self.control.map(|path| control_of(&path, first));
            }
            Part::Metrics => self.control = None,
        }
        self.part = Some(part);
        Ok(self)
    }
}

/// The control socket of one process, `PATH-NAME`. No other one has a guest of that name.
fn control_of(path: &Path, name: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push("-");
    path.push(name);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use clap::Parser as _;

    fn plan(guests: &[&str]) -> Plan {
        let args = guests.iter().enumerate().map(|(n, datapath)| {
            let socket = format!("/tmp/vm{n}.sock");
            let line = ["ringscoped", "--socket-path", &socket, "--datapath", datapath];
            Args::parse_from(line)
        });
        Plan::new(args.collect(), Some("/r".into())).unwrap()
    }

    #[test]
    fn guests_of_a_switch_are_together_and_others_apart() {
        let metrics = Some("unix:/r/metrics".parse().unwrap());
        let all = Plan {
            metrics,
            control: Some("/r/control".into()),
            ..plan(&["switch:lan", "reflect", "switch:lan", "switch:wan"])
        };
        let parts = all.parts().unwrap();
        let names: Vec<_> = parts.iter().map(Part::to_string).collect();
        assert_eq!(names, ["vm0,vm2", "vm1", "vm3", "metrics:"]);
        assert!(names.iter().zip(&parts).all(|(name, part)| name.parse() == Ok(part.clone())));
        let of = |n: usize| all.clone().only(parts[n].clone()).unwrap();
        let lan = of(0);
        assert_eq!(lan.guests.len(), 2);
        assert_eq!(lan.switches[0].guests, [0, 1]);
        assert_eq!((lan.control, lan.metrics), (Some("/r/control-vm0".into()), None));
        assert_eq!(of(1).control, Some("/r/control-vm1".into()));
        let measured = of(3);
        assert_eq!((measured.guests.len(), measured.control), (4, None));
        assert!(measured.metrics.is_some());
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        let handed = plan(&["tap:fd=7", "reflect"]);
        assert!(handed.parts().unwrap_err().to_string().contains("descriptor"));
        let gone = Part::Guests(vec!["vm0".into(), "vm9".into()]);
        let error = plan(&["reflect"]).only(gone).unwrap_err().to_string();
        assert!(error.contains("vm0,vm9"), "{error}");
    }
}
