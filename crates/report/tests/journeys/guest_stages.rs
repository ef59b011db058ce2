//! How the guest's kernel received a probe: `--guest-stages`.

use report::Initiator;
use report::html::write_html;
use report::journey::stamps::{GuestStages, ProbeId, ReceptionStamps, Stamp, Stamps};
use report::journey::{Journeys, KnownClock, Side, to_json, to_text};

use super::{Known, RUN, expect_whole, from_the_host, part_us};

/// The guest's stack has it at 5000 us of the guest's clock, which is 33 us of the host's; the application at 5010 us.
const ECHO: Stamp = Stamp {
    received_kernel: Some(5_000_000),
    received: Some(5_010_000),
    sent: 5_022_000,
    sent_kernel: Some(5_030_000),
    stages: ReceptionStamps { interrupt: None, softirq: None, woken: None, running: None },
};

/// Times of the guest's clock, microseconds; 0 for none.
fn stages([interrupt, softirq, woken, running]: [u64; 4]) -> ReceptionStamps {
    let time = |us: u64| (us > 0).then_some(us * 1000);
    ReceptionStamps {
        interrupt: time(interrupt),
        softirq: time(softirq),
        woken: time(woken),
        running: time(running),
    }
}

fn join(known: &Known, echo: Stamp, guest_stages: GuestStages) -> Journeys {
    let sender = Stamp { sent: known.host(10), received: Some(known.host(90)), ..Stamp::default() };
    let stamps = |stamp: Stamp, guest_stages| Stamps {
        probes: [(ProbeId { run: RUN, sequence: 3 }, stamp)].into(),
        guest_stages,
        ..Stamps::default()
    };
    let (sender, echo) = (stamps(sender, GuestStages::NotWanted), stamps(echo, guest_stages));
    let known_clock = KnownClock::default();
    Journeys::join(&known.source(), Initiator::Host, &sender, Some(&echo), &known_clock)
}

#[test]
fn the_way_through_the_guests_kernel_is_taken_apart() {
    // What is before the interrupt: softirq, driver, stack, wake-up and the rest, and the daemon's signal.
    for (of_guest, expected, signal) in [
        ([4998, 4999, 5003, 5007], [Some(1), Some(1), Some(1), Some(3), Some(4), Some(3)], 2),
        // The application did not sleep.
        ([4998, 4999, 0, 0], [Some(1), Some(1), Some(1), None, None, Some(10)], 2),
        // No interrupt made the driver poll.
        ([0, 4999, 5003, 0], [Some(2), None, Some(1), Some(3), None, Some(7)], 2),
        // The driver polled before the probe was placed, at 24: nobody waited for the signal.
        ([4900, 4901, 5003, 5007], [Some(0), Some(0), Some(9), Some(3), Some(4), Some(3)], 0),
        // Nothing was seen of it.
        ([0, 0, 0, 0], [Some(3), None, None, None, None, Some(10)], 2),
    ] {
        let known = Known::new();
        from_the_host(&known);
        let echo = Stamp { stages: stages(of_guest), ..ECHO };
        let joined = join(&known, echo, GuestStages::Stamped);
        let of = |side, stage| part_us(&joined, side, stage);
        let guest =
            ["guest-softirq", "guest-driver", "guest-stack", "guest-wakeup", "guest-receive"];
        let found: Vec<_> = [of(Side::Between, "guest-interrupt")]
            .into_iter()
            .chain(guest.map(|stage| of(Side::Guest, stage)))
            .collect();
        assert_eq!(found, expected, "{of_guest:?}");
        assert_eq!(of(Side::Rx, "signal"), Some(signal), "{of_guest:?}");
        assert_eq!(of(Side::Guest, "guest-turn"), Some(12));
        expect_whole(&joined.journeys[0]);
        assert!(to_text(&joined).contains("until its interrupt"));
    }
}

#[test]
fn two_clocks_take_the_guests_way_apart_as_well() {
    let known = Known::new();
    from_the_host(&known);
    // The guest has it for longer than there is time between our bursts, so no offset fits.
    let late = |ns: u64| Some(ns + 200_000);
    let echo = Stamp {
        stages: stages([4998, 4999, 5003, 5007]),
        sent: ECHO.sent + 200_000,
        sent_kernel: ECHO.sent_kernel.and_then(late),
        ..ECHO
    };
    let joined = join(&known, echo, GuestStages::Stamped);
    assert_eq!(joined.clock, None);
    let of = |stage| part_us(&joined, Side::Guest, stage);
    assert_eq!(
        (of("guest-stack"), of("guest-wakeup"), of("guest-receive")),
        (Some(3), Some(4), Some(3))
    );
    expect_whole(&joined.journeys[0]);
}

#[test]
fn a_kernel_that_does_not_stamp_them_says_why() {
    let known = Known::new();
    from_the_host(&known);
    let joined = join(&known, ECHO, GuestStages::NotAvailable("no BTF".into()));
    expect_whole(&joined.journeys[0]);
    let text = to_text(&joined);
    assert!(text.contains("note: guest stages n/a: no BTF\n"), "{text}");
    let row = text.lines().find(|line| line.contains("guest-driver")).unwrap();
    assert!(row.trim_end().ends_with("n/a"), "{row}");
    let json: serde_json::Value = serde_json::from_str(&to_json(&joined)).unwrap();
    assert_eq!(json["guest_stages"], "n/a: no BTF");
    let stages = json["stages"].as_array().unwrap();
    let driver = stages.iter().find(|it| it["stage"] == "guest-driver").unwrap();
    assert!(driver["count"].is_null(), "{driver}");
    assert_eq!(part_us(&joined, Side::Guest, "guest-receive"), Some(10));
    let mut page = Vec::new();
    write_html(&mut page, &known.source(), None, Some(&joined), "vm0", || ()).unwrap();
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains(r#""guest_stages":"n/a: no BTF""#));
}
