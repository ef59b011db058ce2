//! An interface that another daemon goes on with, without a frame being lost: both have the program's link and maps, the
//! sockets, and the memory of their frames. Only one of them uses a socket at a time.
//!
//! Where the rings stand is in memory that both have mapped, and so is which chunks are free (`ledger`). So nothing of that is
//! sent, and a daemon that takes a socket back only has to look again ([`Channel::resume`](super::channel::Channel::resume)).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::channel::Channel;
use super::open::Settings;
use super::program::Program;
use super::shared::{SharedInterface, SharedSocket};

/// What another daemon would get of an interface now, and the settings that were changed for it. The thread that follows the
/// interface puts them back at its end.
#[derive(Debug)]
pub struct Estate(Mutex<Inside>);

#[derive(Debug)]
struct Inside {
    settings: Settings,
    /// `None` while the interface is gone, or if its sockets send from a guest's memory, which another daemon maps elsewhere.
    served: Option<Served>,
}

#[derive(Debug)]
struct Served {
    name: String,
    index: u32,
    program: Arc<Program>,
    pairs: Vec<Vec<SharedSocket>>,
}

impl Estate {
    /// Of an interface that nothing is known of yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Inside { settings: Settings::default(), served: None }))
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interface with this name and number is served by the program and the sockets of these pairs.
    ///
    /// # Errors
    /// When this process has no descriptor left. Then another daemon gets nothing.
    pub(super) fn serve(
        &self,
        (name, index): (&str, u32),
        program: &Arc<Program>,
        pairs: &[Vec<Channel>],
    ) -> io::Result<()> {
        self.inside().served = None;
        let sockets = |pair: &Vec<Channel>| pair.iter().map(|it| it.socket.share()).collect();
        let pairs: io::Result<Option<Vec<Vec<SharedSocket>>>> = pairs.iter().map(sockets).collect();
        let served = pairs?.map(|pairs| {
            let (name, program) = (name.to_owned(), Arc::clone(program));
            Served { name, index, program, pairs }
        });
        self.inside().served = served;
        Ok(())
    }

    /// Pairs get one more socket each, some of them.
    ///
    /// # Errors
    /// As [`Estate::serve`].
    pub(super) fn add(&self, pairs: &[Vec<Channel>]) -> io::Result<()> {
        let mut inside = self.inside();
        let Some(mut served) = inside.served.take() else { return Ok(()) };
        for (known, new) in served.pairs.iter_mut().zip(pairs) {
            for channel in new {
                known.extend(channel.socket.share()?);
            }
        }
        inside.served = Some(served);
        Ok(())
    }

    /// The interface is called so now.
    pub(super) fn rename(&self, name: &str) {
        if let Some(served) = &mut self.inside().served {
            name.clone_into(&mut served.name);
        }
    }

    /// Whether another daemon has the interface: it comes from there, or went there.
    pub(super) fn stays(&self) -> bool {
        self.inside().settings.stays
    }

    /// The interface is gone. Its sockets are closed when their workers close them, too.
    pub(super) fn lose(&self) {
        self.inside().served = None;
    }

    /// Puts the settings before back, and will put these back.
    pub(super) fn keep(&self, mut settings: Settings) {
        let mut inside = self.inside();
        let before = std::mem::take(&mut inside.settings);
        settings.stays |= before.stays;
        drop(before);
        inside.settings = settings;
    }

    /// Another daemon has the interface from now on.
    pub fn leave(&self) {
        self.inside().settings.stays = true;
    }

    /// The interface is this daemon's from now on.
    ///
    /// # Errors
    /// As [`Program::take_place`]: then frames are stamped as in the daemon before.
    pub fn take_place(&self) -> io::Result<()> {
        let mut inside = self.inside();
        inside.settings.stays = false;
        inside.served.as_ref().map_or(Ok(()), |served| served.program.take_place())
    }

    /// The interface, for another daemon. `active`: of each queue pair, whether its guest takes frames.
    ///
    /// # Errors
    /// Why it cannot be handed over.
    pub fn share(&self, active: &[bool]) -> io::Result<SharedInterface> {
        let inside = self.inside();
        let served = inside.served.as_ref().ok_or_else(|| {
            io::Error::other("its interface is gone, or its sockets cannot be handed over")
        })?;
        let Served { name, index, program, pairs } = served;
        let sockets = |pair: &Vec<SharedSocket>| pair.iter().map(SharedSocket::try_clone).collect();
        Ok(SharedInterface {
            name: name.clone(),
            index: *index,
            program: program.share()?,
            settings: inside.settings.changed(),
            pairs: pairs.iter().map(sockets).collect::<io::Result<_>>()?,
            active: (0..pairs.len()).map(|n| active.get(n).copied().unwrap_or(false)).collect(),
        })
    }
}
