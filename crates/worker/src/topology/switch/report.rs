//! Reports addresses that more than one port sends from: counts their moves, and logs the sender.

use burst_trace::DropCause;

use super::Fabric;
use super::addresses::News;
use crate::pairs::Pairs;
use crate::view::View;

impl Fabric {
    /// Reports the latest event about an address, if there was one.
    #[inline]
    pub(super) fn report_news(&mut self, pairs: &Pairs, view: &mut View<'_>) {
        if let Some(news) = self.addresses.take_news() {
            self.report(news, pairs, view);
        }
    }

    /// Counts the addresses that moved, and logs `news`.
    #[cold]
    fn report(&mut self, news: News, pairs: &Pairs, view: &mut View<'_>) {
        for port in 0..self.uplink_port {
            let moves = self.addresses.take_moves(port);
            if moves > 0 {
                let tx = pairs.transmitter(self.ports[usize::from(port)].start);
                view.tracer(tx.guest()).moved(tx.index(), moves);
            }
        }
        self.log(news, pairs);
    }

    /// One line, within the log limit of the sending port.
    fn log(&self, news: News, pairs: &Pairs) {
        let guest =
            |port: u8| self.ports.get(usize::from(port)).map(|own| pairs.transmitter(own.start));
        let name = |port: u8| match guest(port) {
            None => "the uplink",
            Some(_) if self.ports.len() == 1 => "the guest",
            Some(tx) => tx.log().prefix().trim_end_matches(": "),
        };
        let (News::Moved { to: sender, .. } | News::Refused { port: sender, .. }) = news;
        let log = guest(sender).map_or(&self.uplink_log, |tx| tx.log());
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
