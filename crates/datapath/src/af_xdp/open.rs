//! Opens an interface: the XDP program first, then a socket for each queue that the interface has then.

use std::io;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::device::Device;
use super::error::{AfXdpError, explain, refuse_unfit};
use super::napi::NapiSettings;
use super::program::Program;
use super::segmentation::Segmentation;
use super::shared::{ChangedSettings, SharedInterface};
use super::socket::BUSY_TIMEOUT;
use super::{Choice, Options, surroundings};

/// Time between two tries to attach the program.
const AGAIN: Duration = Duration::from_millis(5);

/// Settings of the host that are put back when this is dropped, unless they stay.
#[derive(Debug, Default)]
pub struct Settings {
    /// For busy polling.
    pub napi: Option<NapiSettings>,
    /// At the other end.
    pub segmentation: Option<Segmentation>,
    /// Another daemon has the interface.
    pub stays: bool,
}

impl Settings {
    /// Those that another daemon has changed. They stay, until they are this daemon's.
    pub fn of_another(name: &str, changed: ChangedSettings) -> Self {
        let ChangedSettings { napi, segmentation } = changed;
        let segmentation = segmentation
            .map(|(index, name, off)| Segmentation::switched_off_before(index, name, off));
        Self { napi: NapiSettings::changed_before(name, &napi), segmentation, stays: true }
    }

    /// What was changed, and how it was before.
    pub fn changed(&self) -> ChangedSettings {
        let napi = self.napi.as_ref().map(NapiSettings::before).unwrap_or_default();
        let segmentation = self.segmentation.as_ref().map(Segmentation::switched_off);
        ChangedSettings { napi, segmentation }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        if self.stays {
            self.napi.iter_mut().for_each(NapiSettings::leave);
            self.segmentation.iter_mut().for_each(Segmentation::leave);
        }
    }
}

/// An open interface.
#[derive(Debug)]
pub struct Opened {
    /// The interface, with the number of queues that it has with the program.
    pub device: Device,
    /// The program on it.
    pub program: Arc<Program>,
    /// What was changed for it.
    pub settings: Settings,
    /// The sockets of each queue pair.
    pub channels: Vec<Vec<Channel>>,
}

impl Opened {
    /// Opens `device` for `pairs` queue pairs. A pair gets one or more queues. All queues are bound: frames of an
    /// unbound one would go to the host's network stack.
    ///
    /// # Errors
    /// See [`AfXdpError`].
    pub fn new(device: Device, pairs: usize, options: &Options) -> Result<Self, AfXdpError> {
        refuse_unfit(&device, options.mode)?;
        if pairs > device.queues as usize {
            let Device { name, queues, .. } = device;
            return Err(AfXdpError::TooFewQueues { name, queues, pairs });
        }
        let fail = |step, error| explain(&device, options, step, error);
        let program =
            attach(&device, options).map_err(|error| fail("attaching the XDP program", error))?;
        let napi =
            (options.busy_poll == Choice::On).then(|| NapiSettings::make(&device.name)).transpose();
        let napi = napi.map_err(|error| fail("setting up busy polling", error))?;
        // Some drivers give an interface more queues for a native program (virtio_net: one for each CPU).
        let device = Device::find(&device.name).unwrap_or(device);
        let mut channels: Vec<Vec<Channel>> = (0..pairs).map(|_| Vec::new()).collect();
        for (queue, pair) in (0..device.queues).zip((0..pairs).cycle()) {
            let channel = Channel::open(&device, queue, options, None)
                .map_err(|error| explain(&device, options, "opening a socket", error))?;
            channels[pair].push(channel);
        }
        let (segmentation, losses) = surroundings::prepare(&device, &program);
        log_mode(&device, &program, &channels[0][0], segmentation.as_ref());
        if let Some(losses) = losses {
            losses.log(&device.name);
        }
        let settings = Settings { napi, segmentation, stays: false };
        Ok(Self { device, program: Arc::new(program), settings, channels })
    }

    /// Goes on with the interface of another daemon, which uses it until its sockets are resumed. Nothing of it changes.
    ///
    /// # Errors
    /// [`AfXdpError::Missing`] when it is gone; [`AfXdpError::System`].
    pub fn go_on(shared: SharedInterface, options: &Options) -> Result<Self, AfXdpError> {
        let SharedInterface { name, index, program, settings, pairs, active } = shared;
        let mut device = Device::find(&name)
            .filter(|device| device.index == index)
            .ok_or_else(|| AfXdpError::Missing(name.clone()))?;
        let fail = |step, error| explain(&device, options, step, error);
        let served = pairs.iter().zip(&active).filter(|(_, active)| **active);
        let served = served.flat_map(|(pair, _)| pair.iter().map(|socket| socket.queue)).collect();
        let number = i32::try_from(index).unwrap_or(i32::MAX);
        let program = Program::go_on(program, number, options.stamps, served)
            .map_err(|error| fail("going on with the XDP program", error))?;
        let channel = |socket| Channel::go_on(socket, &device, options);
        let channels = pairs.into_iter().map(|pair| pair.into_iter().map(channel).collect());
        let channels = channels.collect::<io::Result<Vec<Vec<Channel>>>>();
        let channels = channels.map_err(|error| fail("going on with its sockets", error))?;
        // One that has come since is served when the interface changes next.
        device.queues = channels.iter().map(|pair| pair.len() as u32).sum();
        let first = channels.iter().flatten().next();
        first.into_iter().for_each(|first| log_mode(&device, &program, first, None));
        let settings = Settings::of_another(&name, settings);
        Ok(Self { device, program: Arc::new(program), settings, channels })
    }
}

/// Attaches the program. The kernel takes that of a daemon that was killed off the interface a moment after the process is
/// gone, so it is tried again while there is another one.
fn attach(device: &Device, options: &Options) -> io::Result<Program> {
    let index = i32::try_from(device.index).unwrap_or(i32::MAX);
    let is_busy =
        |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
    let begun = Instant::now();
    loop {
        match Program::attach(index, options.mode, options.stamps) {
            Err(error) if is_busy(&error) && begun.elapsed() < BUSY_TIMEOUT => sleep(AGAIN),
            attached => return attached,
        }
    }
}

/// Logs how the interface is served.
fn log_mode(
    device: &Device,
    program: &Program,
    first: &Channel,
    segmentation: Option<&Segmentation>,
) {
    let socket = &first.socket;
    let why = program.why_generic().map(|why| format!(" (the driver runs no programs: {why})"));
    let off = segmentation.map(|it| format!("; segmentation is off at {}", it.name()));
    log::info!(
        "{}: XDP in {} mode{}, {}, {} queue(s), {} byte chunks{}{}{}",
        device.name,
        program.mode(),
        why.unwrap_or_default(),
        if socket.zero_copy { "zero copy" } else { "copied by the kernel" },
        device.queues,
        socket.umem.chunk(),
        if socket.need_wakeup { ", need_wakeup" } else { "" },
        if socket.multi_buffer { ", multi-buffer" } else { "" },
        off.unwrap_or_default(),
    );
}
