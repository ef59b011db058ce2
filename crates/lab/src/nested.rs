//! The lab in an emulated machine that plays the host (`qemu-scripts/nested`), for variants that this host's kernel cannot
//! have. In it runs the same `ringscope lab`.
//!
//! ```text
//! this host                the machine (QEMU without KVM, Debian's kernel)
//!   ringscope lab --nested   ringscope lab --out DIR/nested     a card === cable === a card
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{CommandError, PATIENCE, Stop, run, run_told};
use crate::guest::scripts;
use crate::kept::{Kept, KeptError, MANIFEST, NESTED, Tried};
use crate::variant::{Claim, VariantError};

/// Variants of the emulated machine, unless others are asked for: those that need its kernel, and others to compare them
/// with.
pub const VARIANTS: [&str; 7] =
    ["host-host", "vfio", "macvtap", "tap-bridge", "vhost-net", "kernel-ovs", "af-xdp"];

/// Longest time of one machine.
const LIMIT: Duration = Duration::from_secs(1800);
/// Longest time without a line of its own: it hangs.
const SILENCE: Duration = Duration::from_secs(300);
/// Most machines. The emulation of a processor that has a hypervisor is not free of faults: about one machine in four ends by
/// itself, or hangs, seen with QEMU 10.0.
const MACHINES_MAX: usize = 4;
/// Longest time for downloading and unpacking the guests' kernel.
const IMAGE_LIMIT: Duration = Duration::from_secs(900);
/// Two cards with a cable between them: QEMU's model of the Intel 82576, which a guest can have, and a virtual one for the
/// talker. They are the wire of each variant.
const CARDS: &str = "-netdev hubport,id=card,hubid=0 -device igb,netdev=card,romfile=,mac=52:54:00:77:00:03,addr=0x8 \
     -netdev hubport,id=far,hubid=0 -device virtio-net-pci,netdev=far,romfile=,mac=52:54:00:77:00:01,addr=0x9";
/// Where a machine after the first one keeps what it measures, until that is joined with the rest.
const FURTHER: &str = "nested.further";
/// How the script says that the machine has ended by itself, or QEMU.
const DIED: [&str; 2] = ["the machine ended before the command did", "QEMU ended with exit code"];
/// What QEMU says of a cable that does not lead out of it.
const CABLE_WARNING: &str = "hub 0 is not connected to host network";
/// Where the machine has them, as the variants read it.
const PLACES: [&str; 2] = ["RINGSCOPE_CARD=0000:00:08.0", "RINGSCOPE_TALKER_CARD=0000:00:09.0"];
/// Memory of the machine. Half of it is for files; a guest in it has 512 MiB.
const MEMORY: &str = "4G";

/// A run in the emulated machine.
#[derive(Clone, Copy, Debug)]
pub struct Nested<'a> {
    /// Ends it early.
    pub stop: &'a Stop,
    /// The program that runs in the machine.
    pub ringscope: &'a Path,
    /// The variants, in the order of the table.
    pub variants: &'a [String],
    /// Further flags of `ringscope lab`.
    pub flags: &'a [String],
    /// The directory that keeps the outer run. What the machine measures is kept in a directory in it.
    pub kept: &'a Path,
}

/// Why there are no figures of the machine.
#[derive(Debug, thiserror::Error)]
pub enum NestedError {
    /// The machine failed, or the lab was interrupted.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Another lab runs.
    #[error(transparent)]
    Variant(#[from] VariantError),
    /// What it has measured cannot be kept.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// The directory cannot be made.
    #[error("cannot make {path}: {source}")]
    Directory {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl NestedError {
    /// Whether a signal ended it.
    #[must_use]
    pub const fn is_interruption(&self) -> bool {
        matches!(self, Self::Command(CommandError::Interrupted))
    }
}

impl Nested<'_> {
    /// Starts the machine, and runs the lab in it. If it ends by itself or hangs, another one measures what is left. Lines that
    /// the machine prints are given to `tell`.
    ///
    /// # Errors
    /// If the machine cannot be started or measures nothing, and when `stop` is set.
    pub fn run(&self, mut tell: impl FnMut(&str)) -> Result<(), NestedError> {
        // While it runs, a lab on this host would be measured with it.
        let _claim = Claim::take()?;
        let path = self.kept.join(NESTED);
        let make = |path: &Path| {
            let error = |source| NestedError::Directory { path: path.into(), source };
            // A machine that measured nothing may have left something.
            if path.exists() {
                fs::remove_dir_all(path).map_err(error)?;
            }
            fs::create_dir_all(path).map_err(error)
        };
        tell("preparing the emulated machine");
        let mut image = Command::new(scripts().join("guest-image"));
        image.args(["--cards", "--agent"]).arg(self.ringscope);
        let image = run(self.stop, &mut image, IMAGE_LIMIT)?;
        let mut left = self.variants.to_vec();
        for number in 1..=MACHINES_MAX {
            // The first one that measures anything writes the directory that is kept.
            let is_first = !path.join(MANIFEST).exists();
            let into = if is_first { path.clone() } else { self.kept.join(FURTHER) };
            make(&into)?;
            let died = self.measure(image.trim(), &into, &left, &mut tell)?;
            if !is_first {
                let (ours, mut manifest) = Kept::open(&path)?;
                ours.absorb(&mut manifest, &into)?;
            }
            let Some(why) = died else { return Ok(()) };
            let Ok((kept, mut manifest)) = Kept::open(&path) else {
                if number == MACHINES_MAX {
                    return Err(why.into());
                }
                tell("it ended by itself or hung; another one is started");
                continue;
            };
            left = kept.unfinished(&manifest);
            if left.is_empty() {
                return Ok(());
            }
            if number < MACHINES_MAX {
                let left = left.join(", ");
                tell(&format!(
                    "it ended by itself or hung; another one measures what is left: {left}"
                ));
                continue;
            }
            let is_left = |it: &&mut Tried| left.iter().any(|name| name == it.case.name());
            for tried in manifest.variants.iter_mut().filter(is_left) {
                tried.trouble =
                    Some(format!("{MACHINES_MAX} machines ended by themselves or hung: {why}"));
            }
            kept.write(&manifest)?;
        }
        Ok(())
    }

    /// One machine. Returns how it ended, if that was before its lab did.
    fn measure(
        &self,
        image: &str,
        into: &Path,
        variants: &[String],
        mut tell: impl FnMut(&str),
    ) -> Result<Option<CommandError>, NestedError> {
        let mut machine = self.machine(image, into, variants);
        let ended = run_told(self.stop, &mut machine, SILENCE, |line| {
            if !line.ends_with(CABLE_WARNING) {
                tell(line);
            }
        });
        match ended {
            Ok(()) => Ok(None),
            Err(error) if has_died(&error) => Ok(Some(error)),
            // The lab in the machine fails if one variant does. Its manifest says which.
            Err(CommandError::Failed { .. }) if into.join(MANIFEST).exists() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn machine(&self, image: &str, kept: &Path, variants: &[String]) -> Command {
        // The script ends the machine when the lab has ended, for whatever reason.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(scripts().join("nested"));
        command.arg("--shared").arg(kept).args(["--memory", MEMORY, "--qemu", CARDS]);
        command.args(["--timeout", &LIMIT.as_secs().to_string()]);
        // The machine has a KVM, whose hardware is emulated: much faster than a second emulator in the first one.
        let script =
            "modprobe -q kvm_amd && export RINGSCOPE_ACCEL=kvm; exec env \"$@\" >/dev/null";
        command.args(["sh", "-c", script, "sh"]).args(PLACES);
        command.arg(format!("{PATIENCE}=4")).arg(format!("RINGSCOPE_IMAGE={image}"));
        if let Ok(cache) = std::env::var("RINGSCOPE_CACHE") {
            command.arg(format!("RINGSCOPE_CACHE={cache}"));
        }
        command.arg(format!("RINGSCOPE_QEMU_SCRIPTS={}", scripts().display()));
        command.arg(self.ringscope).args(["lab", "--variants", &variants.join(",")]);
        command.args(self.flags).arg("--out").arg(kept);
        command
    }
}

/// Whether the machine ended by itself, or hung.
fn has_died(error: &CommandError) -> bool {
    match error {
        CommandError::Silent { .. } => true,
        CommandError::Failed { said, .. } => DIED.iter().any(|how| said.contains(how)),
        _ => false,
    }
}
