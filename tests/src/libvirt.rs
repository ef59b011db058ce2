//! A host with a libvirtd of its own, in namespaces: all that libvirt keeps and runs there ends with it, and nothing of this
//! host changes.
//!
//! ```text
//! outside 10.77.0.1 - bridge - tap - ringscoped === /run/ringscope/vm0.sock === QEMU, started by libvirtd
//! ```
//!
//! Domains have what the guide's XML says. Their QEMU is the user `libvirt-qemu`, as Debian's libvirt runs it.

use std::fs::{self, Permissions};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::process::Process;
use tempfile::NamedTempFile;

use crate::eventually::eventually;
use crate::guides::{self, Block};
use crate::qemu::{Failure, SOON, image, said};

/// The name of the domain.
pub const DOMAIN: &str = "vm0";
/// Its UUID, which has to be the same in each definition of it.
const UUID: &str = "6a2c5a3e-0b5c-4a54-9c40-000000000001";
/// Number of the user and of the group `libvirt-qemu`: Debian's own.
pub const QEMU_USER: u32 = 64055;
/// Its name, as the guide has it.
const QEMU_USER_NAME: &str = "libvirt-qemu";
/// How much of libvirtd's log an error shows, bytes.
const LOG_BYTES: usize = 2000;
/// Longest that virsh may take, seconds.
const VIRSH_MAX: &str = "60";

/// Makes the host. Its first process is this shell, which waits for every process that loses its parent: libvirtd takes a QEMU
/// that nobody waits for to be running.
/// Arguments: directory that it has as `/run/ringscope`, guest image, host name, number of QEMU's user, UUID.
const MAKE: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$1" /mnt
for directory in /etc/libvirt /var/lib /var/cache /var/log /run /sys/fs/cgroup; do mount -t tmpfs tmpfs "$directory"; done
mkdir -p /run/ringscope /run/ringscope-qemu /run/image /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt/qemu
mount --bind /mnt /run/ringscope
mount --move /mnt /run/ringscope-qemu
mount --bind "$2" /run/image
for file in passwd group; do sed '/^libvirt-qemu:/d' "/etc/$file" >"/run/$file"; done
echo "libvirt-qemu:x:$4:$4::/var/lib/libvirt:/usr/sbin/nologin" >>/run/passwd
echo "libvirt-qemu:x:$4:" >>/run/group
for file in passwd group; do mount --bind "/run/$file" "/etc/$file"; done
# Domains are emulated. libvirt finds out again and again what QEMU can do, while QEMU may use KVM and its user may not.
if [ -e /dev/kvm ]; then
    install -m 0 /dev/null /run/no-kvm
    mount --bind /run/no-kvm /dev/kvm
fi
hostname "$3"
ip link set lo up
cat >/etc/libvirt/libvirtd.conf <<END
unix_sock_dir = "/run/ringscope"
unix_sock_rw_perms = "0700"
unix_sock_ro_perms = "0700"
auth_unix_rw = "none"
host_uuid = "$5"
END
cat >/etc/libvirt/qemu.conf <<END
security_driver = "none"
dynamic_ownership = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
END
libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirtd.pid &
wait $!
"#;

/// What every domain has. `@...@` is filled in.
const TEMPLATE: &str = "\
<domain type='qemu'>
  <name>@NAME@</name>
  <uuid>@UUID@</uuid>
  <memory unit='MiB'>256</memory>
  @MEMORY@
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/run/image/kernel</kernel>
    <initrd>/run/image/initramfs</initrd>
    <cmdline>quiet loglevel=4 ringscope.ip=10.77.0.2/24 ringscope.queues=2 mitigations=off nokaslr tsc=reliable \
no_timer_check cryptomgr.notests initcall_blacklist=jent_mod_init</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'>
    <feature policy='disable' name='erms'/>
    <feature policy='disable' name='fsrm'/>
    <feature policy='disable' name='la57'/>
  </cpu>
  <devices>
    @INTERFACE@
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
";

/// Who makes the vhost-user socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The daemon: QEMU is the client.
    Client,
    /// QEMU.
    Server,
}

impl Mode {
    /// The word of libvirt.
    const fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What the guide says of libvirt.
#[derive(Debug)]
pub struct Guide(Vec<Block>);

impl Guide {
    /// Reads it.
    ///
    /// # Errors
    /// When there is no such section.
    pub fn read() -> Result<Self, Failure> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        let mut blocks = guides::blocks(&root)?;
        blocks.retain(|block| block.guide == "backend/README.md" && block.heading == "libvirt");
        if blocks.is_empty() {
            Err("the guide has no section on libvirt".into())
        } else {
            Ok(Self(blocks))
        }
    }

    /// A domain whose memory and interface are those of the guide.
    ///
    /// # Errors
    /// When the guide has none.
    pub fn domain(&self, mode: Mode) -> Result<String, Failure> {
        let interface = self.block(&["<interface ", &format!("mode='{}'", mode.word())])?;
        let memory = self.block(&["<memoryBacking>"])?;
        let filled = [
            ("@NAME@", DOMAIN),
            ("@UUID@", UUID),
            ("@MEMORY@", &memory),
            ("@INTERFACE@", &interface),
        ];
        Ok(filled.iter().fold(TEMPLATE.to_owned(), |xml, (mark, text)| xml.replace(mark, text)))
    }

    /// The flags that the guide gives `ringscoped` for this, besides those that a test chooses itself.
    ///
    /// # Errors
    /// When the guide has no such command.
    pub fn flags(&self, mode: Mode) -> Result<Vec<String>, Failure> {
        let user = QEMU_USER.to_string();
        let is_client = |line: &&str| line.contains("--client") == (mode == Mode::Server);
        let lines = self.0.iter().flat_map(|block| &block.lines).map(String::as_str);
        let line = lines.filter(|line| line.starts_with("ringscoped ")).find(is_client);
        let mut words = line.ok_or("no command in the guide")?.split(' ').skip(1);
        let mut flags = Vec::new();
        while let Some(word) = words.next() {
            match word {
                "--socket-path" | "--datapath" | "--queue-pairs" => drop(words.next()),
                "--client" => {}
                _ => flags.push(word.replace(QEMU_USER_NAME, &user)),
            }
        }
        Ok(flags)
    }

    /// The block that has all of these words.
    fn block(&self, words: &[&str]) -> Result<String, Failure> {
        let texts = self.0.iter().map(|block| block.lines.join("\n"));
        let mut found = texts.filter(|text| words.iter().all(|word| text.contains(word)));
        found.next().ok_or_else(|| format!("no block with {words:?} in the guide").into())
    }
}

/// The host. Dropping it ends all of its processes.
#[derive(Debug)]
pub struct Host {
    directory: PathBuf,
    process: Process,
}

impl Host {
    /// Makes a host that has `directory` as `/run/ringscope`, and waits until its libvirtd answers. In mode server QEMU makes a
    /// socket there.
    ///
    /// # Errors
    /// Without root or libvirt; the message says which.
    pub fn start(directory: &Path, name: &str, mode: Mode) -> Result<Self, Failure> {
        match mode {
            Mode::Client => fs::set_permissions(directory, Permissions::from_mode(0o711))?,
            Mode::Server => give_to_qemu(directory)?,
        }
        // Also when the test is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--uts", "--net", "--pid"]);
        command.args(["--fork", "--kill-child", "--mount-proc", "bash", "-c", MAKE, "bash"]);
        command.arg(directory).arg(image()?.canonicalize()?);
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        command.args([name, &QEMU_USER.to_string(), uuid.trim()]);
        let process = Process::spawn(&mut command, &directory.join("libvirtd.log"))?;
        let mut host = Self { directory: directory.to_owned(), process };
        let is_up = eventually(SOON, "libvirtd to answer", || {
            match (host.process.ended(), host.virsh(&["version"])) {
                (Ok(Some(_)), _) => Ok(false),
                (_, Ok(_)) => Ok(true),
                (_, Err(error)) => Err(error.to_string()),
            }
        });
        if is_up { Ok(host) } else { Err(format!("it has ended: {}", host.log()).into()) }
    }

    /// Where its libvirtd listens.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}/libvirt-sock", self.directory.display())
    }

    /// The end of libvirtd's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log_tail(LOG_BYTES)
    }

    /// What virsh prints.
    ///
    /// # Errors
    /// When it fails; the message is libvirt's.
    pub fn virsh(&self, words: &[&str]) -> Result<String, Failure> {
        said(&mut self.command(words))
    }

    /// Defines a domain.
    ///
    /// # Errors
    /// When libvirt refuses it; the message is its own.
    pub fn define(&self, xml: &str) -> Result<(), Failure> {
        let file = NamedTempFile::new()?;
        fs::write(&file, xml)?;
        let mut command = self.command(&["define", "--validate"]);
        said(command.arg(file.path()))?;
        Ok(())
    }

    /// Moves the running domain to `target`, with all that is defined of it. Both hosts see `socket`, through which QEMU goes to
    /// QEMU.
    ///
    /// # Errors
    /// When libvirt refuses it or it fails; the message is its own.
    pub fn migrate(&self, target: &Self, socket: &Path) -> Result<(), Failure> {
        let through = format!("unix://{}", socket.display());
        let words = ["migrate", "--live", "--persistent", "--undefinesource", DOMAIN];
        let mut command = self.command(&words);
        said(command.args([&target.uri(), "--migrateuri", &through]))?;
        Ok(())
    }

    /// The state of the domain in libvirt's words, such as `running`.
    ///
    /// # Errors
    /// When it is not defined here.
    pub fn state(&self) -> Result<String, Failure> {
        Ok(self.virsh(&["domstate", DOMAIN])?.trim().to_owned())
    }

    fn command(&self, words: &[&str]) -> Command {
        // It waits without a message while QEMU cannot connect to its back end.
        let mut command = Command::new("timeout");
        command.args([VIRSH_MAX, "virsh", "--connect", &self.uri()]).args(words);
        command
    }
}

/// Lets QEMU make files in a directory of this host.
///
/// # Errors
/// Without root.
pub fn give_to_qemu(directory: &Path) -> Result<(), Failure> {
    chown(directory, Some(QEMU_USER), Some(QEMU_USER))?;
    Ok(fs::set_permissions(directory, Permissions::from_mode(0o750))?)
}

/// What the AppArmor profile of a domain allows beside its template: what `virt-aa-helper` writes into it.
///
/// # Errors
/// When the helper refuses the domain; the message is its own.
pub fn apparmor_profile(xml: &str) -> Result<String, Failure> {
    let mut input = tempfile::tempfile()?;
    input.write_all(xml.as_bytes())?;
    input.rewind()?;
    let mut command = Command::new("/usr/lib/libvirt/virt-aa-helper");
    // It only prints what it would write.
    command.args(["--create", "--dryrun", "--uuid", &format!("libvirt-{UUID}")]);
    let output = command.stdin(input).output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(text) } else { Err(text.into()) }
}
