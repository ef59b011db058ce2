//! An XDP program at the far end's interface that writes debug messages.
//!
//! It is loaded before anything is recorded. While the kernel checks such a program, it does work of its own for each call that
//! prints, in a kernel thread (`__set_printk_clr_event`, kernel/trace/bpf_trace.c): some 30 ms in all. That, and the check itself,
//! would disturb a recording.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use lab::outside::Outside;
use libbpf_rs::{ObjectBuilder, Xdp, XdpFlags};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::standby::Standby;
use super::undo::Undo;
use crate::qemu::Failure;

/// A thread in the outside host's namespace that has the loaded program.
#[derive(Debug)]
pub struct Messages(Arc<Standby<Order>>);

/// What is to be done with the program.
#[derive(Clone, Copy, Debug)]
enum Action {
    Attach,
    Detach,
}

/// An action, and whom to tell its result.
type Order = (Action, Sender<Result<(), String>>);

impl Messages {
    /// Loads the program of this object file.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn prepare(outside: &Outside, object: &str) -> Result<Self, Failure> {
        let namespace = Path::new("/run/netns").join(outside.namespace());
        let object = PathBuf::from(object);
        let (told, loaded) = channel();
        let thread = Standby::start("messages", move |next: Receiver<Order>| {
            if let Err(error) = serve(&namespace, &object, &next, &told) {
                // Nobody may wait for it any more.
                let _ = told.send(Err(error.to_string()));
            }
        })?;
        loaded.recv()??;
        Ok(Self(Arc::new(thread)))
    }

    /// Attaches it until it is undone.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn begin(&self) -> Result<Undo, Failure> {
        ask(&self.0, Action::Attach)?;
        let thread = Arc::clone(&self.0);
        Ok(Undo::new(move || ask(&thread, Action::Detach)))
    }
}

fn ask(thread: &Standby<Order>, action: Action) -> Result<(), Failure> {
    let (told, result) = channel();
    thread.order((action, told))?;
    Ok(result.recv()??)
}

/// Loads the program, says so, and attaches and detaches it.
fn serve(
    namespace: &Path,
    object: &Path,
    orders: &Receiver<Order>,
    loaded: &Sender<Result<(), String>>,
) -> Result<(), Failure> {
    move_into_link_name_space(File::open(namespace)?.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let interface = netdevice::name_to_index(socket, "eth0")?.cast_signed();
    let object = ObjectBuilder::default().open_file(object)?.load()?;
    let program = object.progs().next().ok_or("expected a program in the object")?;
    let program = Xdp::new(program.as_fd());
    loaded.send(Ok(()))?;
    for (action, told) in orders {
        let done = match action {
            Action::Attach => program.attach(interface, XdpFlags::SKB_MODE),
            Action::Detach => program.detach(interface, XdpFlags::SKB_MODE),
        };
        // Nobody may wait for it any more.
        let _ = told.send(done.map_err(|error| error.to_string()));
    }
    Ok(())
}
