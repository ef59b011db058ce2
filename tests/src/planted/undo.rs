//! The end of a fault.

use crate::qemu::Failure;

/// Ends a fault when it is dropped, whatever happened.
#[must_use]
pub struct Undo(Option<Box<dyn FnOnce() -> Result<(), Failure>>>);

impl Undo {
    /// The fault that ends by this.
    pub fn new(end: impl FnOnce() -> Result<(), Failure> + 'static) -> Self {
        Self(Some(Box::new(end)))
    }

    /// Ends the fault now.
    ///
    /// # Errors
    /// If the fault does not end.
    pub fn now(mut self) -> Result<(), Failure> {
        self.0.take().map_or(Ok(()), |end| end())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|end| end()) {
            eprintln!("a planted fault may still be there: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_fault_ends_once_whether_it_is_ended_or_dropped() {
        let ends = Rc::new(Cell::new(0));
        let fault = || {
            let ends = Rc::clone(&ends);
            Undo::new(move || {
                ends.set(ends.get() + 1);
                Ok(())
            })
        };
        fault().now().unwrap();
        assert_eq!(ends.get(), 1);
        drop(fault());
        assert_eq!(ends.get(), 2);
    }
}
