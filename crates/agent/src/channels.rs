//! `channels`: what `ethtool -l` and `ethtool -L` do, in guests that have no ethtool.

use std::io;

use host_links::ethtool::{Amount, Channels};
use host_links::link::Link;

use crate::{Error, print_json};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network interface.
    interface: String,
    /// Number of queue pairs to use; without it, only show them.
    combined: Option<u32>,
}

pub fn run(args: &Args) -> Result<(), Error> {
    let failed = |doing| {
        let interface = args.interface.clone();
        move |source| Error::Channels { doing, interface, source }
    };
    let missing = || io::Error::from_raw_os_error(libc::ENODEV);
    let link = Link::named(&args.interface).and_then(|link| link.ok_or_else(missing));
    let index = link.map_err(failed("read"))?.index;
    let mut found = combined_of(index).map_err(failed("read"))?;
    if let Some(combined) = args.combined {
        if combined == 0 || combined > found.max {
            return Err(Error::Usage {
                flag: "COMBINED",
                expected: format!("1 to {}, which the device has", found.max),
                found: combined.to_string(),
            });
        }
        if combined != found.now {
            Channels::set_combined(index, combined).map_err(failed("set"))?;
            found = combined_of(index).map_err(failed("read"))?;
        }
    }
    print_json(&serde_json::json!({
        "interface": args.interface,
        "combined": found.now,
        "max_combined": found.max,
    }))
}

/// The combined channels: a virtio-net device has one for each queue pair.
fn combined_of(index: u32) -> io::Result<Amount> {
    let channels = Channels::of(index)?;
    let channels = channels.ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
    Ok(channels.combined.unwrap_or_default())
}
