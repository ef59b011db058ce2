//! `channels`: what `ethtool -l` and `ethtool -L` do, in guests that have no ethtool.

use crate::sys;
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
    let mut found = sys::channels(&args.interface).map_err(failed("read"))?;
    if let Some(combined) = args.combined {
        if combined == 0 || combined > found.max_combined {
            return Err(Error::Usage {
                flag: "COMBINED",
                expected: format!("1 to {}, which the device has", found.max_combined),
                found: combined.to_string(),
            });
        }
        if combined != found.combined_count {
            sys::set_combined(&args.interface, found, combined).map_err(failed("set"))?;
            found = sys::channels(&args.interface).map_err(failed("read"))?;
        }
    }
    print_json(&serde_json::json!({
        "interface": args.interface,
        "combined": found.combined_count,
        "max_combined": found.max_combined,
    }))
}
