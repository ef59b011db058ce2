//! What the daemon said of its run: JSON text in the recorder's header.

use burst_trace::CyclicFrames;
use burst_trace::cyclic::CYCLIC_MAX;
use serde_json::Value;

/// The facts that reports show. Each may be missing: an older or newer daemon says less or more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The daemon's `--name`.
    pub name: Option<String>,
    /// The datapath, as it was asked for.
    pub datapath: Option<String>,
    /// The poll policy.
    pub poll: Option<String>,
    /// The daemon's version.
    pub version: Option<String>,
    /// What was asked for in the host kernel: stages by their name, and `on`, until when it was on, or why not. Empty when nothing was.
    pub kernel_stages: Vec<(String, String)>,
    /// When that was measured.
    pub measured: Measured,
    /// Whether the host is a virtual machine; `None` where nobody has looked, as in the facts of a daemon that runs.
    pub is_virtual: Option<bool>,
    /// The layer-2 frames with a counter that are recorded, by the numbers in their records.
    pub cyclic: Vec<CyclicFrames>,
}

impl Facts {
    /// Reads what can be read; text that is no JSON object has no facts.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let facts: Value = serde_json::from_str(text).unwrap_or_default();
        let fact = |name: &str| match facts.get(name)? {
            Value::Null => None,
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => Some(without_controls(text)),
            other => Some(without_controls(&other.to_string())),
        };
        Self {
            name: fact("name"),
            datapath: fact("datapath"),
            poll: fact("poll"),
            version: fact("version"),
            kernel_stages: kernel_stages(facts.get("kernel_stages")),
            measured: Measured::read(&facts["kernel_windows"]),
            is_virtual: facts["host"]["is_virtual"].as_bool(),
            cyclic: cyclic(facts.get("trace_probe")),
        }
    }

    /// Whether the times are recorded in which a thread did not run, of all causes or of some.
    #[must_use]
    pub fn has_interruptions(&self) -> bool {
        self.kernel_state("interruptions").is_some_and(|state| state.starts_with("on"))
    }

    /// Whether something was measured in the host kernel, `on`, until when it was on, or why not; `None` if nobody asked for it. `name`: of a stage,
    /// `interruptions`, or `kvm` for the exits of KVM among them.
    #[must_use]
    pub fn kernel_state(&self, name: &str) -> Option<&str> {
        let mut states = self.kernel_stages.iter();
        states.find(|(stage, _)| stage == name).map(|(_, state)| state.as_str())
    }
}

/// When the host kernel was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured(Option<Vec<[u64; 2]>>);

impl Measured {
    /// From a list of begins and ends, ticks, of which the last end may be missing. Anything else: all the time.
    fn read(facts: &Value) -> Self {
        let window =
            |window: &Value| Some([window[0].as_u64()?, window[1].as_u64().unwrap_or(u64::MAX)]);
        Self(facts.as_array().map(|all| all.iter().filter_map(window).collect()))
    }

    /// Whether it was measured at `ticks`, if it was measured at all.
    #[must_use]
    pub fn covers(&self, ticks: u64) -> bool {
        let is_in = |[from, to]: &[u64; 2]| (*from..=*to).contains(&ticks);
        self.0.as_ref().is_none_or(|windows| windows.iter().any(is_in))
    }
}

fn kernel_stages(facts: Option<&Value>) -> Vec<(String, String)> {
    let stages = facts.and_then(Value::as_object).into_iter().flatten();
    stages
        .filter_map(|(stage, state)| {
            Some((without_controls(stage), without_controls(state.as_str()?)))
        })
        .collect()
}

/// Those of the probes that are descriptions of cyclic frames; the others are UDP ports.
fn cyclic(probes: Option<&Value>) -> Vec<CyclicFrames> {
    let probes = probes.and_then(Value::as_array).into_iter().flatten();
    probes.filter_map(|probe| probe.as_str()?.parse().ok()).take(CYCLIC_MAX).collect()
}

/// The same text without control characters, which could change a terminal's state: any user can write a recorder.
#[must_use]
pub fn without_controls(text: &str) -> String {
    text.chars().map(printable).collect()
}

fn printable(character: char) -> char {
    if character.is_control() { '\u{fffd}' } else { character }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_taken_as_far_as_they_are_there() {
        let facts = Facts::parse(r#"{"name":"vm0","poll":{"adaptive":50},"datapath":null}"#);
        assert_eq!(facts.name.as_deref(), Some("vm0"));
        assert_eq!(facts.poll.as_deref(), Some(r#"{"adaptive":50}"#));
        assert_eq!((facts.datapath, facts.version), (None, None));
        let facts = Facts::parse(r#"{"kernel_stages":{"wakeup":"on","inject":"n/a: no\u0007"}}"#);
        let stages = [("inject", "n/a: no\u{fffd}"), ("wakeup", "on")];
        assert_eq!(facts.kernel_stages, stages.map(|(stage, state)| (stage.into(), state.into())));
        assert!(!facts.has_interruptions());
        for (state, is_on) in
            [("on", true), ("on, without interrupts", true), ("n/a: no BTF", false)]
        {
            let facts = format!(r#"{{"kernel_stages":{{"interruptions":"{state}"}}}}"#);
            assert_eq!(Facts::parse(&facts).has_interruptions(), is_on);
        }
        let facts =
            Facts::parse(r#"{"trace_probe":["7010","ethertype:0x8892,counter@2/4",5,"x"]}"#);
        assert_eq!(facts.cyclic, ["ethertype:0x8892,counter@2/4".parse().unwrap()]);
        for text in ["", "{", "[1]", "7"] {
            assert_eq!(Facts::parse(text), Facts::default(), "{text}");
        }
    }

    #[test]
    fn it_is_known_when_the_kernel_was_measured() {
        let at = |facts: &str| {
            let measured = Facts::parse(facts).measured;
            [5, 10, 15, 25, u64::MAX].map(|ticks| measured.covers(ticks))
        };
        assert_eq!(at("{}"), [true; 5]);
        assert_eq!(at(r#"{"kernel_windows":null}"#), [true; 5]);
        assert_eq!(at(r#"{"kernel_windows":[]}"#), [false; 5]);
        let some = at(r#"{"kernel_windows":[[10,15],[20,null],"x",[1]]}"#);
        assert_eq!(some, [true, true, true, true, true]);
        assert_eq!(at(r#"{"kernel_windows":[[10,15]]}"#), [false, true, true, false, false]);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let facts = Facts::parse(r#"{"name":"vm\u001b[2J"}"#);
        assert_eq!(facts.name.as_deref(), Some("vm\u{fffd}[2J"));
    }
}
