//! The flags for joining probe packets from application to application.

use std::path::PathBuf;

use burst_trace::Source;
use clap::ValueEnum;
use host_files::FileId;
use report::Initiator;
use report::journey::Journeys;
use report::journey::stamps::{Stamps, StampsError};

/// Flags for probe packets.
#[derive(Debug, clap::Args)]
pub struct Probes {
    /// Join the probes in this file of `ringscope agent udp-ping --stamps`
    ///
    /// The daemon has to record them (--trace-probe). The report shows each
    /// probe's round trip, from application to application.
    #[arg(long, value_name = "FILE")]
    probes: Option<PathBuf>,
    /// The file of `ringscope agent udp-echo --stamps` for the same probes
    #[arg(long, value_name = "FILE", requires = "probes")]
    echo: Option<PathBuf>,
    /// Side that began the round trips
    #[arg(long, value_name = "SIDE", default_value = "host")]
    initiator: Side,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Side {
    Host,
    Guest,
}

impl Probes {
    /// Whether probes are to be joined.
    pub const fn are_asked_for(&self) -> bool {
        self.probes.is_some()
    }

    pub const fn initiator(&self) -> Initiator {
        match self.initiator {
            Side::Host => Initiator::Host,
            Side::Guest => Initiator::Guest,
        }
    }

    /// The files with stamps.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        [&self.probes, &self.echo].into_iter().flatten().filter_map(|path| FileId::of_path(path))
    }

    /// Joins the probes with the records of `source`, if that was asked for.
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
