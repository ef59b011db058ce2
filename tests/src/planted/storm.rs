//! A flood of packets on an interface that has nothing to do with the guest. The kernel handles them on the worker's CPU.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use lab::outside::Outside;

use super::standby::Standby;
use super::undo::Undo;
use crate::beside::{run_on, set_policy};
use crate::qemu::{Failure, said};

/// The addresses of both ends: of the network for benchmarks (RFC 2544).
const FROM: &str = "198.18.0.1";
const TO: &str = "198.18.0.2";

/// A wire, and a thread that waits for its next flood.
#[derive(Debug)]
pub struct Storm {
    // Field order is drop order: the flood ends before the wire.
    thread: Standby<Arc<AtomicBool>>,
    _outside: Outside,
}

impl Storm {
    /// Makes the wire. Packets will be sent on the CPU `from`, and handled on the CPU `to`, each also by this XDP program.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn prepare(from: usize, to: usize, program: &str) -> Result<Self, Failure> {
        let outside = Outside::on_wire("storm", 1)?;
        let address = format!("{FROM}/30");
        said(Command::new("ip").args(["address", "add", &address, "dev", outside.wire()]))?;
        // Receive packet steering (Documentation/networking/scaling.rst).
        let steer = format!("echo {:x} >/sys/class/net/eth0/queues/rx-0/rps_cpus", 1_u64 << to);
        outside.exec(&format!("ip address add {TO}/30 dev eth0 && {steer}"))?;
        outside.exec(&format!("ip link set dev eth0 xdpgeneric object {program} section xdp"))?;
        let socket = UdpSocket::bind((FROM, 0))?;
        // Nobody listens on the port for discarding.
        socket.connect((TO, 9))?;
        let thread = Standby::start("flood", move |next: Receiver<Arc<AtomicBool>>| {
            run_on(from);
            // Any other program gets that CPU at once.
            set_policy(&["--idle", "--pid", "0"]);
            for is_over in next {
                while !is_over.load(Ordering::Relaxed) {
                    // The other end may say that nobody listens.
                    let _ = socket.send(&[0; 64]);
                }
            }
        })?;
        Ok(Self { thread, _outside: outside })
    }

    /// Floods until it is undone.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn begin(&self) -> Result<Undo, Failure> {
        let is_over = Arc::new(AtomicBool::new(false));
        self.thread.order(Arc::clone(&is_over))?;
        Ok(Undo::new(move || {
            is_over.store(true, Ordering::Relaxed);
            Ok(())
        }))
    }
}
