//! `--config FILE`: several guests in one daemon. The keys of a table `[[guest]]` are the flags of one guest, and the values
//! are read in the same way.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, CommandFactory as _, Parser as _, ValueEnum as _};
use toml::{Table, Value};

use crate::args::{Args, Isolation};
use crate::logging::{LogFormat, LogLevel};

/// Keys of the daemon, above the first guest.
const DAEMON_KEYS: [&str; 6] =
    ["run-dir", "metrics", "control", "isolate", "log-level", "log-format"];
/// Flags that are not keys of a guest.
const NOT_FOR_GUESTS: [&str; 22] = [
    "config",
    "isolate",
    "part",
    "run-dir",
    "metrics",
    "control",
    "log-level",
    "log-format",
    "take-over",
    "user",
    "socket-user",
    "socket-group",
    "socket-mode",
    "sandbox",
    "seccomp",
    "fd",
    "print-capabilities",
    "print-man",
    "print-privileges",
    "print-completions",
    "help",
    "version",
];

/// The contents of the file.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `run-dir`.
    pub run_dir: Option<PathBuf>,
    /// `metrics`.
    pub metrics: Option<metrics::Address>,
    /// `control`.
    pub control: Option<PathBuf>,
    /// `isolate`.
    pub isolate: Option<Isolation>,
    /// `log-level`.
    pub log_level: Option<LogLevel>,
    /// `log-format`.
    pub log_format: Option<LogFormat>,
    /// The guests, in the file's order.
    pub guests: Vec<Args>,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// One line with the file, the key, what was expected and what was found.
    pub fn read(path: &Path) -> Result<Self, String> {
        let at = |error: String| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
        Self::parse(&text).map_err(at)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut table: Table =
            toml::from_str(text).map_err(|error| one_line(&error.to_string()))?;
        let guests = match table.remove("guest") {
            Some(Value::Array(guests)) if !guests.is_empty() => guests,
            Some(other) => return Err(wrong("guest", "tables [[guest]]", &other)),
            None => return Err("expected a table [[guest]] for each guest, found none".into()),
        };
        let mut path = |key| match table.remove(key) {
            None => Ok(None),
            Some(Value::String(path)) => Ok(Some(PathBuf::from(path))),
            Some(other) => Err(wrong(key, "a path in quotes", &other)),
        };
        let (run_dir, control) = (path("run-dir")?, path("control")?);
        let metrics = match table.remove("metrics") {
            None => None,
            Some(Value::String(address)) => {
                Some(address.parse().map_err(|error| format!("metrics: {error}"))?)
            }
            Some(other) => return Err(wrong("metrics", "an address in quotes", &other)),
        };
        let mut word = |key| match table.remove(key) {
            None => Ok(None),
            Some(Value::String(word)) => Ok(Some(word)),
            Some(other) => Err(wrong(key, "a word in quotes", &other)),
        };
        let (log_level, log_format) = (word("log-level")?, word("log-format")?);
        let isolate = word("isolate")?.map(|word| Isolation::from_str(&word, false)).transpose();
        let isolate = isolate.map_err(|_| "isolate: expected process or none")?;
        let log_level = log_level.map(|level| level.parse()).transpose();
        let log_level = log_level.map_err(|error| format!("log-level: {error}"))?;
        let log_format = log_format.map(|format| LogFormat::from_str(&format, false)).transpose();
        let log_format = log_format.map_err(|_| "log-format: expected text, json or journal")?;
        if let Some(key) = table.keys().next() {
            let known = DAEMON_KEYS.join(", ");
            return Err(format!("expected the keys {known} and tables [[guest]], found '{key}'"));
        }
        let guests = (1..).zip(guests).map(|(n, guest)| match guest {
            Value::Table(guest) => {
                let name = guest.get("name").and_then(Value::as_str);
                let name = name.map_or(String::new(), |name| format!(" '{name}'"));
                flags(&guest).map_err(|error| format!("guest {n}{name}: {error}"))
            }
            other => Err(wrong("guest", "tables [[guest]]", &other)),
        });
        Ok(Self {
            run_dir,
            metrics,
            control,
            isolate,
            log_level,
            log_format,
            guests: guests.collect::<Result<_, _>>()?,
        })
    }
}

/// The flags of a guest's table.
fn flags(guest: &Table) -> Result<Args, String> {
    let command = Args::command();
    let known: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| arg.get_long().is_some_and(|long| !NOT_FOR_GUESTS.contains(&long)))
        .collect();
    for needed in ["socket-path", "datapath"] {
        if !guest.contains_key(needed) {
            return Err(format!("{needed} is missing"));
        }
    }
    let mut line = vec!["ringscoped".to_owned()];
    for (key, value) in guest {
        let Some(arg) = known.iter().find(|arg| arg.get_long() == Some(key)) else {
            let known: Vec<_> = known.iter().filter_map(|arg| arg.get_long()).collect();
            return Err(format!("expected the keys {}, found '{key}'", known.join(", ")));
        };
        match (arg.get_action(), value) {
            (ArgAction::SetTrue, Value::Boolean(false)) => {}
            (ArgAction::SetTrue, Value::Boolean(true)) => line.push(format!("--{key}")),
            (ArgAction::SetTrue, other) => return Err(wrong(key, "true or false", other)),
            (ArgAction::Append, Value::Array(values)) => {
                for value in values {
                    line.push(format!("--{key}={}", text(key, value)?));
                }
            }
            (_, value) => line.push(format!("--{key}={}", text(key, value)?)),
        }
    }
    Args::try_parse_from(line).map_err(|error| {
        let text = error.to_string();
        let text = text.split("\n\n").next().unwrap_or_default();
        one_line(text.trim_start_matches("error: "))
    })
}

/// A value as it would be on the command line.
fn text(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        other => Err(wrong(key, &format!("a text in quotes or a number, as --{key} takes"), other)),
    }
}

fn wrong(key: &str, expected: &str, found: &Value) -> String {
    format!("{key}: expected {expected}, found {}", found.type_str())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
        run-dir = '/r'\n\
        [[guest]]\n\
        socket-path = '/tmp/vm0.sock'\n\
        datapath = 'null'\n\
        queue-pairs = 2\n\
        [[guest]]\n\
        name = 'vm1'\n\
        socket-path = '/tmp/vm1.sock'\n\
        client = true\n\
        datapath = 'reflect'\n\
        fault = ['delay:egress=5', 'delay:place=5']\n";

    #[test]
    fn tables_are_read_as_flags() {
        let Config { run_dir, guests, .. } = Config::parse(TWO).unwrap();
        assert_eq!(run_dir, Some("/r".into()));
        let [vm0, vm1] = guests.try_into().unwrap();
        assert_eq!((vm0.queue_pairs, vm0.queue_size, vm0.client, vm0.name), (2, 1024, false, None));
        assert_eq!((vm1.name, vm1.client, vm1.fault.len()), (Some("vm1".into()), true, 2));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let with = |from: &str, to: &str| Config::parse(&TWO.replace(from, to)).unwrap_err();
        for (from, to, expected) in [
            (
                "run-dir",
                "run-dri",
                "the keys run-dir, metrics, control, isolate, log-level, log-format and tables [[guest]], found 'run-dri'",
            ),
            ("'/r'", "5", "run-dir: expected a path in quotes, found integer"),
            (
                "queue-pairs = 2",
                "queue-pairs = 0",
                "guest 1: invalid value '0' for '--queue-pairs <N>'",
            ),
            ("queue-pairs", "queue-pears", "found 'queue-pears'"),
            ("queue-pairs = 2", "fd = 5", "found 'fd'"),
            (
                "'reflect'",
                "'mirror'",
                "guest 2 'vm1': invalid value 'mirror' for '--datapath <SPEC>'",
            ),
            ("true", "'yes'", "guest 2 'vm1': client: expected true or false, found string"),
            ("datapath = 'null'", "", "guest 1: datapath is missing"),
            ("'/r'", "/r", "TOML parse error at line 1"),
        ] {
            let error = with(from, to);
            assert!(error.contains(expected) && !error.contains('\n'), "{to}: {error}");
        }
        assert!(Config::parse("").unwrap_err().contains("[[guest]]"));
        assert!(Config::parse("guest = 5").unwrap_err().contains("found integer"));
    }

    #[test]
    fn the_example_is_what_the_guide_shows() {
        let example = include_str!("../examples/two-guests.toml");
        assert_eq!(Config::parse(example).unwrap().guests.len(), 3);
        let indented =
            |line: &str| if line.is_empty() { "\n".into() } else { format!("    {line}\n") };
        let shown: String = example.lines().map(indented).collect();
        assert!(
            include_str!("../README.md").contains(&shown),
            "not in backend/README.md:\n{shown}"
        );
    }
}
