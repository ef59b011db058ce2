//! The guest's thread hands the guest over to another daemon, or goes on with one of another daemon ([`crate::handover`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use crate::control::Settings;
use crate::handover::{Estate, FrontEnd, Handover, Manner, Order, Request, Stand};
use crate::message::session::Session;
use crate::message::{Relay, SetupMessage};
use crate::socket::Server;

/// What a conversation has around it.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'s> {
    /// Readable when the daemon is to stop.
    pub stop: BorrowedFd<'s>,
    /// The socket on which front ends are waited for.
    pub server: Option<&'s Server>,
    /// Where another daemon asks for the guest.
    pub handover: Option<&'s Handover>,
}

impl Surroundings<'_> {
    /// Readable when another daemon asks for the guest. Without that, as `stop`.
    pub fn asked(&self) -> BorrowedFd<'_> {
        self.handover.map_or(self.stop, AsFd::as_fd)
    }
}

/// Hands over a guest whose front end is connected, if that was asked for. Returns whether another daemon has it.
pub fn hand_over_front(around: Surroundings<'_>, relay: &mut Relay, session: &Session) -> bool {
    let Some(request) = around.handover.and_then(|handover| handover.take()) else { return false };
    let estate = share_listener(around).and_then(|listener| {
        relay.settle().map_err(|error| format!("its front end cannot be paused: {error}"))?;
        let mut front = relay.share()?;
        let Settings { pairs, switched_off, address } = session.settings();
        front.manner = Manner { pairs, switched_off, address, ..front.manner };
        // The receive rings, without the control queue.
        let rings = session.rings().iter().step_by(2);
        front.active = rings.map(|ring| ring.is_served()).collect();
        front.active.pop();
        Ok(Estate { listener, front: Some(front) })
    });
    // Where each ring stands that was released, if it ran.
    let mut released = Vec::new();
    let is_left = obey(&request, estate, || {
        let mut stands = Vec::new();
        for ring in session.rings() {
            let ran = ring.running_size().is_some();
            let stand = ring.release();
            released.push((ran, stand.clone().unwrap_or_default().heritage));
            stands.push(stand.ok_or("a worker does not answer")?);
        }
        Ok(stands)
    });
    if !is_left {
        let ran = session.rings().iter().zip(released).filter(|(_, (ran, _))| *ran);
        for (ring, (_, heritage)) in ran {
            ring.take_back(heritage);
        }
    }
    is_left
}

/// Hands over a guest without a front end, if that was asked for. Returns whether another daemon has it.
pub fn hand_over_alone(around: Surroundings<'_>) -> bool {
    let Some(request) = around.handover.and_then(|handover| handover.take()) else { return false };
    let estate = share_listener(around).map(|listener| Estate { listener, front: None });
    obey(&request, estate, || Ok(Vec::new()))
}

fn share_listener(around: Surroundings<'_>) -> Result<Option<OwnedFd>, String> {
    let shared = around.server.map(|server| server.share()).transpose();
    shared.map_err(|error| error.to_string())
}

/// Does what the thread that speaks with the other daemon says. Returns whether the other daemon has the guest.
fn obey(
    request: &Request,
    estate: Result<Estate, String>,
    release: impl FnOnce() -> Result<Vec<Stand>, String>,
) -> bool {
    let is_ready = estate.is_ok();
    if request.prepared.send(estate).is_err() || !is_ready {
        return false;
    }
    let mut release = Some(release);
    loop {
        match request.orders.recv() {
            Ok(Order::Release(done)) => {
                let stands = release.take().map_or_else(|| Ok(Vec::new()), |release| release());
                let _ = done.send(stands);
            }
            Ok(Order::Leave) => return true,
            Err(_) => return false,
        }
    }
}

/// A front end of the daemon before, without its connection.
#[derive(Debug)]
pub struct Inheritance {
    messages: Vec<SetupMessage>,
    partial: SetupMessage,
    manner: Manner,
    prepared: Sender<Result<(), String>>,
    start: Receiver<Vec<Stand>>,
    started: Sender<()>,
    begun: Arc<AtomicBool>,
}

impl Inheritance {
    /// Takes the connection out. `begun` is set when the front end is this daemon's.
    pub fn new(
        front: FrontEnd,
        prepared: Sender<Result<(), String>>,
        start: Receiver<Vec<Stand>>,
        started: Sender<()>,
        begun: &Arc<AtomicBool>,
    ) -> (OwnedFd, Self) {
        let FrontEnd { connection, messages, partial, manner, .. } = front;
        let begun = Arc::clone(begun);
        (connection, Self { messages, partial, manner, prepared, start, started, begun })
    }

    /// Goes on with the front end. Returns whether it is this daemon's.
    pub fn begin(self, relay: &mut Relay, session: &Session, around: Surroundings<'_>) -> bool {
        let Self { messages, partial, manner, prepared, start, started, begun } = self;
        let Manner { pairs, switched_off, address, .. } = manner;
        let settings = Settings { pairs, switched_off, address };
        let repeated = relay.repeat(messages, partial, &manner);
        let (kicks, result) = match repeated {
            Ok(kicks) => (kicks, Ok(())),
            Err(why) => {
                (Vec::new(), Err(session.refused().map_or(why, |private| private.to_string())))
            }
        };
        session.set_settings(settings);
        let is_ready = result.is_ok();
        if prepared.send(result).is_err() || !is_ready {
            return false;
        }
        let Ok(stands) = start.recv() else { return false };
        for (ring, stand) in session.rings().iter().zip(&stands) {
            ring.inherit(stand.heritage.clone());
        }
        if let Err(why) = relay.start(kicks, &stands) {
            log::error!("a ring of the daemon before cannot be started: {why}");
        }
        // A control queue that starts at its beginning has the settings of a new guest.
        session.set_settings(settings);
        if let Some(server) = around.server {
            server.set_left(false);
        }
        begun.store(true, Ordering::Relaxed);
        let _ = started.send(());
        true
    }
}
