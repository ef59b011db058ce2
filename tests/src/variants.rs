//! The variants of `qemu-scripts/variant`, built on a host as after a boot, and what they leave on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lab::Signal;
use serde_json::Value;

use crate::eventually::{eventually, when};
use crate::fresh_host::{Ended, FreshHost};
use crate::qemu::{Failure, image};

/// Time that one command has: guests boot in it.
const LIMIT: Duration = Duration::from_secs(120);
/// Time after which what is gone is no longer seen: the kernel frees interfaces and programs a little later.
const FREED: Duration = Duration::from_secs(30);

/// Prints a line for each thing that a variant may leave. `ip netns` keeps its directory's mount. A process is of this host if
/// it has the host's `/run`, in whatever namespaces it is. A BPF program needs no line: it is there as long as an interface, a
/// process, or a file of a BPF file system has it, and such a file system is a mount.
const BELONGINGS: &str = r#"
ls /sys/class/net | sed 's/^/interface /'
ls /run/netns 2>/dev/null | sed 's/^/namespace /'
awk '$5 != "/run/netns" { print "mount", $5 }' /proc/self/mountinfo
for size in /sys/kernel/mm/hugepages/*; do
    echo "hugepages ${size##*-}: $(cat "$size/nr_hugepages"), free $(cat "$size/free_hugepages")"
done
here=$(stat -c %d /run)
all=(/proc/[0-9]*/root/run)
stat -c '%d %n' "${all[@]}" 2>/dev/null | while read -r device file; do
    [ "$device" != "$here" ] || echo "process $(tr '\0\n' '  ' <"${file%root/run}cmdline")"
done 2>/dev/null
"#;

/// Starts a variant, kills the script when it has written down this many commands, and takes the variant down. The last of
/// these commands still runs then, if it makes something, or reads when a process has started: it begins late. If there are
/// fewer commands, the script is killed while it waits for the guest.
const KILLED: &str = r#"
mkdir -p /mnt/slow
for program in ip awk; do
    cat >/mnt/slow/$program <<END
#!/bin/sh
[ "\$(wc -l <"\$RINGSCOPE_VARIANT/commands" || echo 0)" -lt "\$KILLED_AT" ] || sleep 0.2
exec $(command -v $program) "\$@"
END
    chmod +x /mnt/slow/$program
done
rm -rf "$DIR"
KILLED_AT=$2 PATH=/mnt/slow:$PATH qemu-scripts/variant up "$1" "$DIR" --guest uml --bin /mnt/bin &
moment=killed
while [ "$(wc -l 2>/dev/null <"$DIR/commands" || echo 0)" -lt "$2" ]; do
    [ ! -e "$DIR/responder" ] || { moment=built; break; }
    kill -0 $! 2>/dev/null || break
    sleep 0.002
done
kill -KILL $! && echo $moment
qemu-scripts/variant down "$DIR" && sleep 0.3
"#;

/// When a start was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// While a command ran.
    Command,
    /// When everything was built, and the guest booted.
    Built,
}

/// A host on which one variant at a time is built. Guests are User Mode Linux.
#[derive(Debug)]
pub struct Bench {
    host: FreshHost,
    /// The variant's directory on that host. No other test uses it.
    directory: String,
    before: BTreeSet<String>,
}

impl Bench {
    /// Makes the host.
    ///
    /// # Errors
    /// As [`FreshHost::new`].
    pub fn new() -> Result<Self, Failure> {
        let directory = format!("/tmp/variant-{}", std::process::id());
        let mut bench =
            Self { host: FreshHost::new(image()?)?, directory, before: BTreeSet::new() };
        bench.before = bench.belongings()?;
        Ok(bench)
    }

    /// The names of all variants.
    ///
    /// # Errors
    /// If the script fails.
    pub fn names(&mut self) -> Result<Vec<String>, Failure> {
        let lines = self.said("qemu-scripts/variant list")?;
        Ok(lines.lines().filter_map(|line| Some(line.split_whitespace().next()?.into())).collect())
    }

    /// Builds a variant, with these further options. Returns how that ended.
    ///
    /// # Errors
    /// If the script cannot be run.
    pub fn up(&mut self, name: &str, options: &str) -> Result<Ended, Failure> {
        let directory = &self.directory;
        let line = format!(
            "qemu-scripts/variant up {name} {directory} --guest uml --bin /mnt/bin {options}"
        );
        Ok(self.host.run(&line, LIMIT, Signal::TERM)?)
    }

    /// Starts a variant, and kills the script when it has begun this many commands. Then the variant is taken down.
    ///
    /// # Errors
    /// If the start fails, or taking it down.
    pub fn up_killed(&mut self, name: &str, commands: usize) -> Result<Moment, Failure> {
        let line = format!("set -- {name} {commands}\n{KILLED}");
        let text = self.said(&line)?;
        match text.lines().find(|line| matches!(*line, "killed" | "built")) {
            Some("killed") => Ok(Moment::Command),
            Some(_) => Ok(Moment::Built),
            None => Err(format!("expected that {name} starts, found:\n{text}").into()),
        }
    }

    /// Frames so far at each place.
    ///
    /// # Errors
    /// If the script fails, or prints something else.
    pub fn counters(&mut self) -> Result<BTreeMap<String, u64>, Failure> {
        let text = self.said("qemu-scripts/variant counters $DIR")?;
        let counter = |line: &str| {
            let (place, count) = line.split_once(' ')?;
            Some((place.to_owned(), count.parse().ok()?))
        };
        let counters = text.lines().map(|line| {
            counter(line).ok_or_else(|| format!("expected PLACE COUNT, found {line:?}").into())
        });
        counters.collect()
    }

    /// Sends pings from the talker to the responder; each has to be answered.
    ///
    /// # Errors
    /// If one is not.
    pub fn ping(&mut self, count: u64) -> Result<(), Failure> {
        self.at_talker(&format!("ping -q -c {count} -i 0.02 -W 5 10.77.0.2")).map(drop)
    }

    /// Runs a shell command on the host, which has to succeed.
    ///
    /// # Errors
    /// If it fails.
    pub fn run(&mut self, command: &str) -> Result<(), Failure> {
        self.said(command).map(drop)
    }

    /// Starts a shell command that goes on until the host ends, and waits until its output has `text`.
    ///
    /// # Errors
    /// If it ends before.
    pub fn start(&mut self, command: &str, text: &str) -> Result<(), Failure> {
        Ok(self.host.start(command, text)?)
    }

    /// Runs a command at the talker, which has to succeed. Returns what it prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn at_talker(&mut self, command: &str) -> Result<String, Failure> {
        self.said(&format!(
            "read -r kind where <$DIR/talker\n\
             case $kind in netns) ip netns exec $where {command} ;; console) ringscope agent shell $where {command} ;; esac"
        ))
    }

    /// The median of the stage `egress` of frames from the guest, nanoseconds.
    ///
    /// # Errors
    /// If ringscoped has recorded none.
    pub fn egress_ns(&mut self) -> Result<u64, Failure> {
        let text =
            self.said("ringscope stats --json --run-dir $DIR --name $(cat $DIR/recorder)")?;
        let stats: Value = serde_json::from_str(&text)?;
        let mut stages = stats["tx"]["stages"].as_array().into_iter().flatten();
        let egress = stages.find(|it| it["stage"] == "egress").and_then(|it| it["p50_ns"].as_u64());
        Ok(egress.ok_or_else(|| format!("expected the stage egress, found {text}"))?)
    }

    /// Takes the variant down.
    ///
    /// # Errors
    /// If the script fails.
    pub fn down(&mut self) -> Result<(), Failure> {
        self.said("qemu-scripts/variant down $DIR")?;
        Ok(())
    }

    /// Takes what the host has now for what it had before the first variant.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn begin_here(&mut self) -> Result<(), Failure> {
        self.before = self.belongings()?;
        Ok(())
    }

    /// Waits until the host has nothing that it had not before the first variant.
    ///
    /// # Panics
    /// If something is left; the message names it.
    pub fn expect_nothing_left(&mut self, after: &str) {
        eventually(FREED, &format!("nothing left after {after}"), || {
            let now = self.belongings().map_err(|error| error.to_string())?;
            let left: Vec<_> = now.difference(&self.before).cloned().collect();
            when(left.is_empty(), left.join("; "))
        });
    }

    /// Runs a shell command, and returns how it ended.
    ///
    /// # Errors
    /// If it cannot be run, or does not end in time.
    pub fn ended(&mut self, command: &str) -> Result<Ended, Failure> {
        Ok(self.host.run(command, LIMIT, Signal::TERM)?)
    }

    fn belongings(&mut self) -> Result<BTreeSet<String>, Failure> {
        Ok(self.said(BELONGINGS)?.lines().map(Into::into).collect())
    }

    /// Runs a shell command that has to succeed, with the variant's directory in `DIR`.
    fn said(&mut self, command: &str) -> Result<String, Failure> {
        let line = format!("DIR={}\n{command}", self.directory);
        let Ended { status, text } = self.host.run(&line, LIMIT, Signal::TERM)?;
        if status.success() {
            Ok(text)
        } else {
            Err(format!("{command}: {status}:\n{text}").into())
        }
    }
}
