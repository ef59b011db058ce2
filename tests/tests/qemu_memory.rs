//! Linux guests in QEMU whose memory grows and shrinks under traffic: DIMMs that are plugged in and pulled out, virtio-mem, and
//! a balloon.

use std::fs;
use std::time::{Duration, Instant};

use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::monitor::Monitor;
use ringscope_tests::qemu::{Failure, Place, despite_qemu};
use ringscope_tests::traffic::{self, Check, From, Transfer};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const DIMM: u64 = 128 * MIB;
const ELASTIC_MIB: u32 = 256;
/// Memory that a balloon takes.
const TAKEN: u64 = 128 * MIB;
const MEMORY: u64 = 512 * MIB;
/// Bytes of one transfer.
const BYTES: u64 = 16 << 20;
/// Time for a change, in an emulated guest on a machine that is busy.
const CHANGED: Duration = Duration::from_secs(60);
/// How often each kind of memory comes and goes.
const ROUNDS: usize = 2;

/// Transfers both ways without a pause.
struct Load([Transfer; 2], u64);

impl Load {
    fn start(place: &Place) -> Result<Self, Failure> {
        let start = |from| Transfer::start(place, from, BYTES, Check::Hash);
        Ok(Self([start(From::Outside)?, start(From::Guest)?], 0))
    }

    /// Checks those that have ended, and starts others.
    fn go_on(&mut self, place: &Place) -> Result<(), Failure> {
        for (transfer, from) in self.0.iter_mut().zip([From::Outside, From::Guest]) {
            if !transfer.is_running()? {
                transfer.finish()?;
                *transfer = Transfer::start(place, from, BYTES, Check::Hash)?;
                self.1 += BYTES;
            }
        }
        Ok(())
    }

    /// Checks all, and returns the number of bytes.
    fn finish(mut self) -> Result<u64, Failure> {
        self.0.iter_mut().try_for_each(|transfer| transfer.finish().map(drop))?;
        Ok(self.1 + 2 * BYTES)
    }
}

/// A guest under load, and its monitor.
struct Scene {
    place: Place,
    monitor: Monitor,
    load: Load,
}

impl Scene {
    fn new(mut place: Place, packed: bool) -> Result<Self, Failure> {
        place.spawn(&[])?;
        let mut options = place.options()?;
        options.packed = packed;
        options.memory_slots = 2;
        options.virtio_mem_mib = ELASTIC_MIB;
        options.balloon = true;
        place.attach(options)?;
        let monitor = Monitor::connect(&place)?;
        let load = Load::start(&place)?;
        Ok(Self { place, monitor, load })
    }

    /// How the guest's kernel uses memory that comes from now on: `online` for anything, network buffers first;
    /// `online_movable` for what can move away again.
    fn bring(&mut self, how: &str) -> Result<(), Failure> {
        let file = "/sys/devices/system/memory/auto_online_blocks";
        self.place.guest().check(&format!("echo {how} >{file}"))?;
        Ok(())
    }

    /// Waits for a state of the monitor's, under load.
    fn wait(
        &mut self,
        what: &str,
        command: &str,
        arguments: &Value,
        is_reached: impl Fn(&Value) -> bool,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            let found = self.monitor.execute(command, arguments)?;
            if is_reached(&found) {
                return Ok(());
            }
            if begun.elapsed() > CHANGED {
                return Err(format!("expected {what}, found {found}").into());
            }
            self.load.go_on(&self.place)?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Mappings of guest memory in the daemon.
    fn mappings(&self) -> Result<usize, Failure> {
        let daemon = self.place.daemon.as_ref().ok_or("no daemon was spawned")?;
        let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid()))?;
        Ok(maps.lines().filter(|line| line.contains("memfd:memory-backend-memfd")).count())
    }

    fn expect_mappings(&self, expected: usize) {
        eventually(CHANGED, &format!("{expected} mappings of guest memory"), || {
            let found = self.mappings().unwrap();
            when(found == expected, found)
        });
    }

    fn plug_dimm(&mut self, id: &str) -> Result<(), Failure> {
        let before = self.mappings()?;
        let backend =
            json!({"qom-type": "memory-backend-memfd", "id": id, "size": DIMM, "share": true});
        self.monitor.execute("object-add", &backend)?;
        let dimm = json!({"driver": "pc-dimm", "id": format!("dimm-{id}"), "memdev": id});
        self.monitor.execute("device_add", &dimm)?;
        self.expect_mappings(before + 1);
        Ok(())
    }

    /// The guest's kernel has to agree.
    fn unplug_dimm(&mut self, id: &str) -> Result<(), Failure> {
        let before = self.mappings()?;
        let dimm = format!("dimm-{id}");
        self.monitor.execute("device_del", &json!({"id": dimm}))?;
        self.wait("the DIMM to be gone", "query-memory-devices", &json!({}), |devices| {
            !devices.to_string().contains(&dimm)
        })?;
        self.monitor.execute("object-del", &json!({"id": id}))?;
        self.expect_mappings(before - 1);
        Ok(())
    }

    /// Memory of the virtio-mem device; the guest may keep what it cannot give back.
    fn elastic(&mut self, bytes: u64, kept: u64) -> Result<(), Failure> {
        let path = "/machine/peripheral/elastic";
        let set = json!({"path": path, "property": "requested-size", "value": bytes});
        self.monitor.execute("qom-set", &set)?;
        let get = json!({"path": path, "property": "size"});
        self.wait(&format!("{bytes} bytes of virtio-mem"), "qom-get", &get, |size| {
            size.as_u64().is_some_and(|size| (bytes..=bytes + kept).contains(&size))
        })
    }

    /// The balloon leaves the guest this much.
    fn balloon(&mut self, bytes: u64) -> Result<(), Failure> {
        self.monitor.execute("balloon", &json!({"value": bytes}))?;
        self.wait(&format!("{bytes} bytes left"), "query-balloon", &json!({}), |state| {
            state["actual"].as_u64() == Some(bytes)
        })
    }
}

fn memory_comes_and_goes(place: Place, packed: bool) -> Result<(), Failure> {
    let mut scene = Scene::new(place, packed)?;
    scene.bring("online_movable")?;
    for _ in 0..ROUNDS {
        scene.plug_dimm("pulled")?;
        scene.balloon(MEMORY + DIMM - TAKEN)?;
        scene.elastic(u64::from(ELASTIC_MIB) * MIB, 0)?;
        scene.balloon(MEMORY + DIMM)?;
        scene.unplug_dimm("pulled")?;
        scene.elastic(0, 0)?;
    }
    // From here on there are network buffers in it, so it cannot go as a whole.
    scene.bring("online")?;
    scene.plug_dimm("used")?;
    scene.elastic(u64::from(ELASTIC_MIB) * MIB, 0)?;
    scene.balloon(MEMORY + DIMM - TAKEN)?;
    scene.elastic(0, u64::from(ELASTIC_MIB) * MIB)?;
    scene.balloon(MEMORY + DIMM)?;
    let Scene { mut place, load, .. } = scene;
    let bytes = load.finish()?;
    let drops = place.drops()?;
    println!("packed {packed}: {} MiB while memory came and went, drops {drops:?}", bytes >> 20);
    assert!(!drops.iter().any(|(_, cause, _)| cause.ends_with("unmapped_buffer")), "{drops:?}");
    traffic::everything_a_little(&mut place)?;
    let log = place.daemon().log();
    assert!(!log.contains("refused"), "{log}");
    Ok(())
}

#[test]
fn memory_comes_and_goes_under_traffic_on_a_tap() -> Result<(), Failure> {
    despite_qemu(|| memory_comes_and_goes(Place::new(1)?, false))
}

#[test]
fn memory_comes_and_goes_under_traffic_with_packed_rings_on_af_xdp() -> Result<(), Failure> {
    despite_qemu(|| memory_comes_and_goes(Place::on_wire(1, "")?, true))
}

#[test]
#[ignore = "takes minutes"]
fn memory_comes_and_goes_on_the_other_rings() -> Result<(), Failure> {
    despite_qemu(|| memory_comes_and_goes(Place::on_tap(1, ",engine=uring")?, true))?;
    despite_qemu(|| memory_comes_and_goes(Place::new(1)?, true))?;
    despite_qemu(|| memory_comes_and_goes(Place::on_wire(1, "")?, false))
}
