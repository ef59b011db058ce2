//! Which probe packets are joined end to end.

use std::path::PathBuf;

use burst_trace::Source;
use clap::ValueEnum;
use host_files::FileId;
use report::Initiator;
use report::journey::Journeys;
use report::journey::stamps::{Stamps, StampsError};

/// The flags of who joins them.
#[derive(Debug, clap::Args)]
pub struct Probes {
    /// What ringscope agent udp-ping --stamps wrote of its probes, which the daemon recorded (--trace-probe): the way of
    /// each, from application to application
    #[arg(long, value_name = "FILE")]
    probes: Option<PathBuf>,
    /// What ringscope agent udp-echo --stamps wrote of the same probes
    #[arg(long, value_name = "FILE", requires = "probes")]
    echo: Option<PathBuf>,
    /// Where the round trips were begun
    #[arg(long, value_name = "SIDE", default_value = "host")]
    initiator: Side,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Side {
    Host,
    Guest,
}

impl Probes {
    /// Whether they are asked for.
    pub const fn are_asked_for(&self) -> bool {
        self.probes.is_some()
    }

    pub const fn initiator(&self) -> Initiator {
        match self.initiator {
            Side::Host => Initiator::Host,
            Side::Guest => Initiator::Guest,
        }
    }

    /// The files that are read for them.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        [&self.probes, &self.echo].into_iter().flatten().filter_map(|path| FileId::of_path(path))
    }

    /// Those of `source`, if they are asked for.
    ///
    /// # Errors
    /// When a file of stamps cannot be used.
    pub fn join(&self, source: &Source) -> Result<Option<Journeys>, StampsError> {
        let Some(file) = &self.probes else { return Ok(None) };
        let sender = Stamps::read(file)?;
        let echo = self.echo.as_deref().map(Stamps::read).transpose()?;
        Ok(Some(Journeys::join(source, self.initiator(), &sender, echo.as_ref())))
    }
}
