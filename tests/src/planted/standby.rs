//! A thread that gets ready before anything is recorded, and then waits for orders.

use std::fmt::Debug;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use crate::qemu::Failure;

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Standby<Order> {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl<Order: Debug + Send + 'static> Standby<Order> {
    /// Starts a thread of this name. It has to end when there are no more orders.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn start(
        name: &str,
        obey: impl FnOnce(Receiver<Order>) + Send + 'static,
    ) -> Result<Self, Failure> {
        let (orders, next) = channel();
        let thread = Builder::new().name(name.to_owned()).spawn(move || obey(next))?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Gives it an order.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn order(&self, order: Order) -> Result<(), Failure> {
        let orders = self.orders.as_ref().ok_or("the thread has no orders")?;
        orders.send(order).map_err(|error| format!("the thread has ended: {error:?}").into())
    }
}

impl<Order> Drop for Standby<Order> {
    fn drop(&mut self) {
        drop(self.orders.take());
        // A panic there was reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
