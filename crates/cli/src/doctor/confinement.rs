//! What confines QEMU on this host besides its user: AppArmor or SELinux, by libvirt's profiles and labels. Facts, and their
//! judgement.

use super::checks::{Check, change, note, ok};
use super::files::Files;

/// The kernel's security modules in force, in their order (`security/inode.c`).
const MODULES: &str = "/sys/kernel/security/lsm";
/// `Y` if AppArmor is enabled (`security/apparmor/lsm.c`).
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
/// The profiles that are loaded, a line each: `NAME (MODE)`. Only root reads it (`security/apparmor/apparmorfs.c`).
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// What all profiles of libvirt's domains include.
const ABSTRACTION: &str = "/etc/apparmor.d/abstractions/libvirt-qemu";
/// How the name of a domain's profile begins; its UUID follows (`AA_PREFIX`, src/security/security_apparmor.h of libvirt).
const DOMAIN_PREFIX: &str = "libvirt-";
/// Length of a UUID as text.
const UUID_CHARS: usize = 36;
/// `1` if SELinux refuses, `0` if it only logs (`security/selinux/selinuxfs.c`).
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// There if libvirt's driver for QEMU is installed.
const LIBVIRT: &str = "/etc/libvirt/qemu.conf";

/// What allows the connection after it was refused once.
const ALLOW: &str = "ausearch -m avc -c qemu-system-x86 --raw | audit2allow -M ringscope-local && \
                     semodule -i ringscope-local.pp  # after `virsh start` was refused once";

/// The security modules that may confine QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// AppArmor is in force.
    has_apparmor: bool,
    /// It has libvirt's profiles.
    has_profiles: bool,
    /// Number of domains whose profiles are loaded; `None` if that cannot be read.
    domains: Option<usize>,
    /// SELinux has a policy: whether it refuses, or only logs.
    selinux_refuses: Option<bool>,
    /// libvirt is installed.
    has_libvirt: bool,
}

impl Confinement {
    /// Looks at this host.
    pub fn look() -> Self {
        Self::from_files(&Files::of_this_host())
    }

    fn from_files(files: &Files) -> Self {
        let modules = files.text(MODULES);
        let is_listed = modules.map(|list| list.split(',').any(|module| module == "apparmor"));
        let is_enabled = files.text(APPARMOR).as_deref() == Some("Y");
        Self {
            // The list is not there without securityfs; the module's parameter says the same.
            has_apparmor: is_listed.unwrap_or(is_enabled),
            has_profiles: files.exists(ABSTRACTION),
            domains: files
                .text(PROFILES)
                .map(|profiles| profiles.lines().filter(is_domain).count()),
            selinux_refuses: files.parse(ENFORCE).map(|enforce: u8| enforce == 1),
            has_libvirt: files.exists(LIBVIRT),
        }
    }
}

/// Whether a line of the loaded profiles is a domain's.
fn is_domain(line: &&str) -> bool {
    let name = line.split(' ').next().unwrap_or_default();
    name.strip_prefix(DOMAIN_PREFIX).is_some_and(|uuid| uuid.len() == UUID_CHARS)
}

/// The judgement.
pub fn check(confinement: &Confinement) -> Check {
    Check { check: "confined QEMU", ..judged(confinement) }
}

fn judged(confinement: &Confinement) -> Check {
    match confinement.selinux_refuses {
        // virt.te of Fedora's selinux-policy (fd1d99621): svirt_t may connect to openvswitch_t and unconfined_t, and svirt_tcg_t to
        // neither.
        Some(true) if confinement.has_libvirt => change(
            "SELinux: the policy does not let libvirt's QEMU (svirt_t) connect to a daemon that systemd started \
             (unconfined_service_t)",
            ALLOW,
        ),
        Some(true) => note("SELinux, without libvirt, which gives QEMU the label that confines it"),
        Some(false) => note("SELinux is permissive: it logs what it would refuse"),
        None => apparmor(confinement),
    }
}

fn apparmor(confinement: &Confinement) -> Check {
    if !confinement.has_apparmor {
        return ok("by neither AppArmor nor SELinux");
    }
    if !confinement.has_profiles {
        return ok("AppArmor, without libvirt's profiles: QEMU is not confined");
    }
    let loaded = confinement.domains.map(|count| format!(" ({count} loaded)")).unwrap_or_default();
    ok(format!(
        "AppArmor, with a profile for each of libvirt's domains{loaded}: it has the vhost-user sockets of the domain's XML"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::checks::Verdict;
    use super::super::files::tests::Pretended;
    use super::*;

    fn found(files: &[(&str, &str)]) -> (Verdict, String) {
        let check = check(&Confinement::from_files(&Pretended::new(files).files()));
        assert_eq!(check.change.is_some(), check.verdict == Verdict::Change, "{check:?}");
        (check.verdict, check.found)
    }

    #[test]
    fn without_a_security_module_nothing_confines_qemu() {
        let expected = (Verdict::Ok, "by neither AppArmor nor SELinux".to_owned());
        assert_eq!(found(&[]), expected);
        // Built into the kernel, and not in force.
        assert_eq!(
            found(&[(MODULES, "lockdown,capability,landlock,yama"), (APPARMOR, "N\n")]),
            expected
        );
    }

    #[test]
    fn apparmor_confines_the_domains_of_libvirt() {
        let profiles = "libvirt-6a2c5a3e-0b5c-4a54-9c40-000000000001 (enforce)\nlibvirtd (enforce)\n\
                        libvirt-6a2c5a3e-0b5c-4a54-9c40-000000000001//passt (enforce)\nvirt-aa-helper (enforce)\n";
        let (verdict, text) =
            found(&[(MODULES, "capability,apparmor"), (ABSTRACTION, ""), (PROFILES, profiles)]);
        assert_eq!(verdict, Verdict::Ok);
        assert!(text.contains("each of libvirt's domains (1 loaded): it has"), "{text}");
        // Without root, and without securityfs.
        let (_, text) = found(&[(APPARMOR, "Y\n"), (ABSTRACTION, "")]);
        assert!(text.contains("each of libvirt's domains: it has"), "{text}");
        let (_, text) = found(&[(APPARMOR, "Y\n")]);
        assert!(text.contains("without libvirt's profiles"), "{text}");
    }

    #[test]
    fn selinux_needs_a_rule_only_where_it_refuses_and_libvirt_is_there() {
        assert_eq!(found(&[(ENFORCE, "1"), (LIBVIRT, "")]).0, Verdict::Change);
        assert_eq!(found(&[(ENFORCE, "1")]).0, Verdict::Note);
        let (verdict, text) = found(&[(ENFORCE, "0"), (LIBVIRT, "")]);
        assert_eq!(verdict, Verdict::Note);
        assert!(text.contains("permissive"), "{text}");
    }
}
