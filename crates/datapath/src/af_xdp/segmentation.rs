//! Segmentation at the far end of a veth in generic mode. There its stack leaves packets uncut, and the size of their
//! segments is lost on the way. So it is switched off at the far end while the interface is served, as the kernel itself
//! does for native mode (`veth_xdp_set` of `drivers/net/veth.c`), and on again at the end.

use std::io;

use host_links::ethtool;

/// The offloads that were switched off. Dropping this switches them on again.
#[derive(Debug)]
pub struct Segmentation {
    index: u32,
    name: String,
    off: Vec<String>,
}

impl Segmentation {
    /// Switches segmentation off at the interface numbered `index`, which is called `name`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn switch_off(index: u32, name: &str) -> io::Result<Self> {
        let off = ethtool::segmentation(index)?;
        ethtool::switch(index, &off, false)?;
        Ok(Self { index, name: name.into(), off: off.into_iter().map(str::to_owned).collect() })
    }

    /// What another daemon has switched off.
    pub const fn switched_off_before(index: u32, name: String, off: Vec<String>) -> Self {
        Self { index, name, off }
    }

    /// The interface's number and name, and what is off.
    pub fn switched_off(&self) -> (u32, String, Vec<String>) {
        (self.index, self.name.clone(), self.off.clone())
    }

    /// It stays off.
    pub fn leave(&mut self) {
        self.off.clear();
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Segmentation {
    fn drop(&mut self) {
        let off: Vec<&str> = self.off.iter().map(String::as_str).collect();
        match ethtool::switch(self.index, &off, true) {
            // It is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => log::warn!("{}: {} stay off: {error}", self.name, self.off.join(", ")),
            Ok(()) => {}
        }
    }
}
