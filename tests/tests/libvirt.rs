//! Domains of a real libvirtd whose interface is served by the daemon. Their XML and the daemon's flags are those of the guide.

use std::fs;

use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::libvirt::{DOMAIN, Guide, Host, Mode, apparmor_profile, give_to_qemu};
use ringscope_tests::migration::port_of;
use ringscope_tests::qemu::{Failure, GUEST, Place, SOON};
use ringscope_tests::traffic::{self, Check, From, Transfer};

/// Queue pairs of the interface in the guide.
const QUEUE_PAIRS: u16 = 2;
/// The domain's Ethernet address in the guide.
const ADDRESS: &str = "52:54:00:77:00:02";

fn words(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

/// Starts the domain, and waits until the agents in its guest serve.
fn start(host: &Host, place: &mut Place) -> Result<(), Failure> {
    host.virsh(&["start", DOMAIN])?;
    let answers = |place: &mut Place| -> Result<(), Failure> {
        place.outside.exec(&format!("ping -q -c 1 -W 1 {GUEST}"))?;
        traffic::tcp(place, From::Outside, 1)?;
        traffic::ping_pong(place, 1)
    };
    eventually(SOON, "the guest's agents", || answers(place).map_err(|error| error.to_string()));
    Ok(())
}

/// Every virtqueue of the domain has carried packets since its daemon was started.
fn expect_all_queues(place: &Place) -> Result<(), Failure> {
    traffic::flows(place, 1 << 20)?;
    let packets = place.packets()?;
    assert!(packets.iter().all(|count| *count > 0), "packets of each virtqueue: {packets:?}");
    Ok(())
}

#[test]
fn a_domain_survives_its_daemon_is_saved_restored_and_migrated() -> Result<(), Failure> {
    let guide = Guide::read()?;
    let flags = guide.flags(Mode::Client)?;
    let mut place = Place::new(QUEUE_PAIRS)?;
    place.spawn(&words(&flags))?;
    let source = Host::start(place.directory(), "source", Mode::Client)?;
    source.define(&guide.domain(Mode::Client)?)?;
    start(&source, &mut place)?;
    traffic::everything_a_little(&mut place)?;
    expect_all_queues(&place)?;

    // Killed under load: QEMU connects again, and every byte arrives.
    let mut transfer = Transfer::start(&place, From::Guest, 64 << 20, Check::Hash)?;
    place.daemon = None;
    place.spawn(&words(&flags))?;
    transfer.finish()?;
    expect_all_queues(&place)?;

    source.virsh(&["managedsave", DOMAIN])?;
    assert_eq!(source.state()?, "shut off");
    start(&source, &mut place)?;
    traffic::everything_a_little(&mut place)?;

    // The other host has a socket of the same path, of a daemon with a tap of its own.
    let directory = place.directory().join("target");
    let between = place.directory().join("between");
    for made in [&directory, &between] {
        fs::create_dir(made)?;
    }
    give_to_qemu(&between)?;
    let tap = place.outside.add_tap(QUEUE_PAIRS)?;
    let (datapath, pairs) = (format!("tap:ifname={tap}"), QUEUE_PAIRS.to_string());
    let own = ["--datapath", &datapath, "--queue-pairs", &pairs];
    let daemon = Daemon::start(&directory, DOMAIN, &[&own, &words(&flags)[..]].concat())?;
    let target = Host::start(&directory, "target", Mode::Client)?;
    let start = |from| Transfer::start(&place, from, 96 << 20, Check::Hash);
    let mut transfers = [start(From::Outside)?, start(From::Guest)?];
    source.migrate(&target, &between.join("migration.sock"))?;
    for transfer in &mut transfers {
        assert!(transfer.is_running()?, "it ended before the domain had moved");
    }
    daemon.expect_log(&format!("the guest has moved here: {ADDRESS} was announced"));
    assert!(source.state().is_err(), "the domain is still defined at the source");
    assert_eq!(target.state()?, "running");
    place.daemon = None;
    transfers.iter_mut().try_for_each(|transfer| transfer.finish().map(drop))?;
    eventually(SOON, "the domain behind the other tap", || {
        let port = port_of(&place, ADDRESS).map_err(|error| error.to_string())?;
        when(port == tap, port)
    });
    traffic::everything_a_little(&mut place)
}

#[test]
fn a_daemon_connects_again_to_the_qemu_of_a_domain() -> Result<(), Failure> {
    let guide = Guide::read()?;
    let flags = guide.flags(Mode::Server)?;
    let mut place = Place::new(QUEUE_PAIRS)?;
    let host = Host::start(place.directory(), "host", Mode::Server)?;
    let xml = guide.domain(Mode::Server)?;

    // What the guide says about it is what libvirt says.
    let reconnect = "mode='server'><reconnect enabled='yes' timeout='1'/></source>";
    let refused = host.define(&xml.replacen("mode='server'/>", reconnect, 1)).unwrap_err();
    let why = "'reconnect' attribute unsupported 'server' mode for <interface type='vhostuser'>";
    assert!(refused.to_string().contains(why), "{refused}");

    host.define(&xml)?;
    place.spawn_client(&words(&flags))?;
    start(&host, &mut place)?;
    traffic::everything_a_little(&mut place)?;
    expect_all_queues(&place)?;

    place.daemon = None;
    place.spawn_client(&words(&flags))?;
    traffic::everything_a_little(&mut place)?;

    host.virsh(&["managedsave", DOMAIN])?;
    start(&host, &mut place)?;
    traffic::everything_a_little(&mut place)
}

/// libvirt's own helper puts the socket into the AppArmor profile of the domain.
#[test]
fn apparmor_lets_the_domain_use_its_socket() -> Result<(), Failure> {
    let guide = Guide::read()?;
    for (mode, socket) in
        [(Mode::Client, "/run/ringscope/vm0.sock"), (Mode::Server, "/run/ringscope-qemu/vm0.sock")]
    {
        let profile = apparmor_profile(&guide.domain(mode)?)?;
        assert!(profile.contains(&format!("\"{socket}\" rw,")), "{profile}");
    }
    let xml = guide.domain(Mode::Client)?.replace("/run/ringscope/vm0.sock", "/etc/vm0.sock");
    let refused = apparmor_profile(&xml).unwrap_err().to_string();
    assert!(refused.contains("skipped restricted file"), "{refused}");
    Ok(())
}
