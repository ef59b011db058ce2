//! Reports addresses that more than one port sends from: counts their moves, and logs the sender.

use burst_trace::DropCause;
use datapath::Datapath;
use datapath::switch::{News, Port};

use super::Fabric;
use crate::pair::{Pair, Shared};

impl<U: Datapath> Fabric<U> {
    /// Counts the addresses that moved, and logs `news`.
    #[cold]
    pub(super) fn report(&mut self, news: News, pairs: &[Pair<Port>], shared: &mut Shared<'_>) {
        for port in 0..self.uplink_port {
            let moves = self.switch.take_moves(port);
            if moves > 0 {
                let pair = &pairs[self.ports[usize::from(port)].start];
                shared.of(pair.guest).tracer.moved(pair.rings()[1], moves);
            }
        }
        self.log(news, pairs);
    }

    /// One line, within the log limit of the sending port.
    fn log(&self, news: News, pairs: &[Pair<Port>]) {
        let guest = |port: u8| self.ports.get(usize::from(port)).map(|own| &pairs[own.start]);
        let name = |port: u8| match guest(port) {
            None => "the uplink",
            Some(_) if self.ports.len() == 1 => "the guest",
            Some(pair) => pair.log.prefix().trim_end_matches(": "),
        };
        let (News::Moved { to: sender, .. } | News::Refused { port: sender, .. }) = news;
        let of_uplink = || self.uplink.as_ref().map(|uplink| &uplink.log);
        let Some(log) = guest(sender).map(|pair| &*pair.log).or_else(of_uplink) else { return };
        let cause = DropCause::TxSpoofedSource.name();
        match news {
            News::Moved { address, from, to } => {
                log_limit::warn!(
                    log,
                    "the address {address} moved from {} to {}",
                    name(from),
                    name(to)
                );
            }
            News::Refused { address, port, holder: Some(holder) } if guest(port).is_none() => {
                log_limit::warn!(
                    log,
                    "the address {address} of {} is heard at the uplink too, and stays with the guest",
                    name(holder)
                );
            }
            News::Refused { address, holder: Some(holder), .. } => log_limit::warn!(
                log,
                "sends from {address}, which is in use at {}: such frames are dropped ({cause})",
                name(holder)
            ),
            News::Refused { address, holder: None, .. } => log_limit::warn!(
                log,
                "sends from {address}, which it may not have: such frames are dropped ({cause})"
            ),
        }
    }
}
