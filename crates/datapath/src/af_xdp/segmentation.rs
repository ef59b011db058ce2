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
    off: Vec<&'static str>,
}

impl Segmentation {
    /// Switches segmentation off at the interface numbered `index`, which is called `name`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn switch_off(index: u32, name: &str) -> io::Result<Self> {
        let off = ethtool::segmentation(index)?;
        ethtool::switch(index, &off, false)?;
        Ok(Self { index, name: name.into(), off })
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Segmentation {
    fn drop(&mut self) {
        match ethtool::switch(self.index, &self.off, true) {
            // It is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => log::warn!("{}: {} stay off: {error}", self.name, self.off.join(", ")),
            Ok(()) => {}
        }
    }
}
