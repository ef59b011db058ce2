//! What looks at the guests and changes them from outside, beside their front ends: metrics, the control socket, and SIGHUP.

use burst_trace::Clock;
use confine::Role;
use metrics::{Address, Metrics, MetricsError};

use crate::announce;
use crate::clock;
use crate::control::{Control, Operator, Subject, Ways};
use crate::error::Error;
use crate::manager::Manager;
use crate::plan::{GuestPlan, Plan};
use crate::reload::Reload;
use crate::stop::Stop;

/// The services that the plan asks for. Dropping it ends them.
#[derive(Debug)]
pub struct Services {
    _reload: Option<Reload>,
    _control: Option<Control>,
    _metrics: Option<Metrics>,
}

impl Services {
    /// Starts them. The guests' recorders exist already.
    ///
    /// # Errors
    /// When one cannot start.
    pub fn start(plan: &Plan, ways: &Ways, clock: Clock, stop: &Stop) -> Result<Self, Error> {
        let metrics = measure(plan, clock)?;
        let control = control(plan, ways, clock, stop)?;
        let reload = reload(plan, ways, clock, stop)?;
        Ok(Self { _reload: reload, _control: control, _metrics: metrics })
    }

    /// Starts those that can start, and logs why others cannot: the guests are served already.
    pub fn start_late(plan: &Plan, ways: &Ways, clock: Clock, stop: &Stop) -> Self {
        let metrics = measure(plan, clock)
            .inspect_err(|error| log::error!("there are no metrics: {error}"))
            .unwrap_or_default();
        let control = control(plan, ways, clock, stop)
            .inspect_err(|error| log::error!("there is no control socket: {error}"))
            .unwrap_or_default();
        let reload = reload(plan, ways, clock, stop)
            .inspect_err(|error| log::error!("SIGHUP changes nothing: {error}"))
            .unwrap_or_default();
        Self { _reload: reload, _control: control, _metrics: metrics }
    }
}

/// Serves the metrics of guests that other processes serve, until `stop`.
///
/// # Errors
/// When they cannot be served.
pub fn serve_metrics_only(plan: &Plan, stop: &Stop) -> Result<(), Error> {
    let _metrics = measure(plan, clock::of(&plan.guests))?;
    if let Some(manager) = Manager::find(true) {
        manager.ready(plan.guests.len());
        confine::enter(Role::Main);
        manager.attend(&[], stop, stop);
    }
    Ok(())
}

fn measure(plan: &Plan, clock: Clock) -> Result<Option<Metrics>, MetricsError> {
    let Some(address) = &plan.metrics else { return Ok(None) };
    let metrics = serve_metrics(address, &plan.guests, clock)?;
    announce::metrics(address, plan.guests.len() == 1);
    Ok(Some(metrics))
}

fn serve_metrics(
    address: &Address,
    guests: &[GuestPlan],
    clock: Clock,
) -> Result<Metrics, MetricsError> {
    let open = |guest: &GuestPlan| metrics::Guest::open(&guest.name, &guest.recorder, clock);
    Metrics::serve(address, guests.iter().map(open).collect::<Result<_, _>>()?)
}

fn reload(plan: &Plan, ways: &Ways, clock: Clock, stop: &Stop) -> Result<Option<Reload>, Error> {
    let asked = stop.hangups().map_err(Error::Descriptors)?;
    let (Some(asked), Some(config)) = (asked, &plan.config) else { return Ok(None) };
    Reload::on(asked, config, plan, ways, clock).map(Some)
}

fn control(plan: &Plan, ways: &Ways, clock: Clock, stop: &Stop) -> Result<Option<Control>, Error> {
    let Some(path) = &plan.control else { return Ok(None) };
    let subject = |guest: &GuestPlan| {
        Subject::new(guest, ways.get(&guest.name).cloned().unwrap_or_default(), clock)
    };
    let subjects = plan.guests.iter().map(subject).collect();
    let stop = stop.asking().map_err(Error::Descriptors)?;
    Ok(Some(Control::serve(path, Operator::new(subjects, stop))?))
}
