//! The order in which a guest's kernel modules are inserted (`qemu-scripts/common.sh`, `modules_in_order`).

use std::fs;
use std::path::Path;
use std::process::Command;

use lab::guest::scripts;

/// A module's file as far as the order is concerned: a string of its section `.modinfo`.
fn add(directory: &Path, file: &str, depends: &str) {
    let content = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
    fs::write(directory.join(file), content).unwrap();
}

fn order(directory: &Path) -> Vec<String> {
    let script = r#". "$0"; modules_in_order "$1" virtio_pci virtio_net"#;
    let output = Command::new("bash")
        .args(["-euc", script])
        .args([&scripts().join("common.sh"), directory])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let name = |line: &str| line.rsplit('/').next().unwrap().to_owned();
    text.lines().map(name).collect()
}

#[test]
fn modules_come_after_those_that_they_depend_on() {
    // The dependencies of Debian's 6.1 and of its 6.12, where `virtio` and `virtio_ring` depend on each other the
    // other way round.
    for (ring, virtio) in [("", "virtio_ring"), ("virtio", "")] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        add(path, "virtio_net.ko", "net_failover,virtio_ring,virtio");
        add(path, "net_failover.ko", "failover");
        add(path, "failover.ko", "");
        add(path, "virtio.ko", virtio);
        add(path, "virtio_ring.ko", ring);
        // `virtio_pci_legacy_dev` is built in here, and a file's name may have dashes.
        add(path, "virtio-pci-modern-dev.ko", "");
        let pci = "virtio_ring,virtio,virtio_pci_legacy_dev,virtio_pci_modern_dev";
        add(path, "virtio_pci.ko", pci);
        add(path, "virtio_balloon.ko", "virtio");
        let found = order(path);
        let place = |name: &str| found.iter().position(|file| file == name).unwrap();
        assert_eq!(found.len(), 7, "{found:?}");
        assert_eq!(place("virtio.ko") < place("virtio_ring.ko"), virtio.is_empty(), "{found:?}");
        assert!(place("virtio-pci-modern-dev.ko") < place("virtio_pci.ko"), "{found:?}");
        assert!(place("failover.ko") < place("net_failover.ko"), "{found:?}");
        assert_eq!(place("virtio_net.ko"), 6, "{found:?}");
    }
}
