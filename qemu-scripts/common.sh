# Shared by the scripts of this folder; sourced, not run.
# shellcheck shell=bash

RINGSCOPE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RINGSCOPE_CACHE=${RINGSCOPE_CACHE:-$RINGSCOPE_ROOT/target/guest-image}
QEMU=qemu-system-x86_64
QEMU_MAJOR_MIN=8
# The CPU that software emulates: all that TCG can do, without what makes it slow. With erms and fsrm, kernel and libc copy by
# `rep movsb`, which is emulated byte by byte; with la57 each walk of the page tables has five steps.
TCG_CPU=max,-erms,-fsrm,-la57
# Options of a kernel that it runs. Without them, checks of emulated hardware take a quarter of the boot.
TCG_KERNEL='mitigations=off nokaslr tsc=reliable no_timer_check cryptomgr.notests rcupdate.rcu_expedited=1 initcall_blacklist=jent_mod_init'
# Where qemu-scripts/setup --lab unpacks the packages of Open vSwitch.
OPENVSWITCH=$RINGSCOPE_CACHE/openvswitch

# Messages go to standard error, so that results can be captured from standard output.
note() { printf '%s\n' "${0##*/}: $*" >&2; }
die() { note "$*"; exit 1; }
usage_error() { note "$*; see --help"; exit 2; }

# A script's --help is its head: the comment from line 2 on.
print_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# "10.0" of "QEMU emulator version 10.0.2 (Debian ...)"; empty without QEMU.
qemu_version() { "$QEMU" --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\.[0-9]*\).*/\1/p'; }

# find_openvswitch PROGRAM: prints the path of a program of Open vSwitch, the installed one or the unpacked one.
find_openvswitch() {
    local directory
    for directory in /usr/{,local/}{s,}bin /usr/lib/openvswitch-switch-dpdk "$OPENVSWITCH"/usr/{bin,sbin,lib/openvswitch-switch-dpdk}; do
        [ ! -x "$directory/$1" ] || { echo "$directory/$1"; return; }
    done
    return 1
}

# The ssh server, the installed one or the one that setup --tests has unpacked. Prints its path.
find_sshd() {
    local program
    for program in /usr/sbin/sshd "$RINGSCOPE_CACHE/openssh/usr/sbin/sshd"; do
        [ ! -x "$program" ] || { echo "$program"; return; }
    done
    return 1
}

# ldd fails on a plain static program, and reports a position-independent one.
is_static() { [[ $(ldd "$1" 2>&1) =~ 'not a dynamic executable'|'statically linked' ]]; }

# Rust may be installed for a user whose PATH does not have it, as under sudo.
find_cargo() {
    command -v cargo >/dev/null && return
    local home
    for home in "${CARGO_HOME:-}" "$HOME/.cargo" ${SUDO_USER:+"$(getent passwd "$SUDO_USER" | cut -d: -f6)/.cargo"}; do
        if [ -n "$home" ] && [ -x "$home/bin/cargo" ]; then PATH=$home/bin:$PATH; return; fi
    done
    die "expected cargo, found none: install Rust (https://rustup.rs, the default profile) and run this again"
}

# "PACKAGE VERSION" of the newest kernel that the package META depends on, by apt's lists.
newest_kernel() {
    apt-cache show "$1" 2>/dev/null |
        sed -n 's/^Version: //p; s/^Depends: \(linux-image-[^ ,]*\).*/\1/p' |
        paste -d' ' - - | awk '{ if ($1 ~ /^linux-image/) print $2, $1; else print }' |
        sort -V | tail -1 | awk '{print $2, $1}'
}

# fetch_kernel META: downloads the package of that kernel, if it is not there yet. Prints its path.
fetch_kernel() {
    local package version deb
    read -r package version < <(newest_kernel "$1") || true
    if [ -z "${package:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        note "updating the package lists, which have no $1"
        apt-get update -q >&2 || true
        read -r package version < <(newest_kernel "$1") || true
    fi
    [ -n "${package:-}" ] ||
        die "expected the package $1 in apt, found none: use Debian 12 or newer, or pass a Debian kernel package with --deb FILE"
    deb=$RINGSCOPE_CACHE/packages/${package}_${version//:/%3a}_amd64.deb
    if [ ! -e "$deb" ]; then
        note "downloading $package $version"
        mkdir -p "$RINGSCOPE_CACHE/packages"
        (cd "$RINGSCOPE_CACHE/packages" && apt-get download -q -o APT::Sandbox::User=root "$package=$version" >&2) ||
            die "apt-get download $package failed: is there a network? run \`apt-get update\` and try again"
        [ -e "$deb" ] || die "expected $deb after the download, found $(ls "$RINGSCOPE_CACHE/packages")"
    fi
    echo "$deb"
}

# The outside host: a namespace with 10.77.0.1, a bridge, and a tap for the guest's back end.
# Sets their names; outside_down removes them.
outside_up() {
    local queues=${1:-1} link multi_queue=
    namespace=ringscope-$$ bridge=rb$$ tap=rt$$ veth=rv$$
    if [ "$queues" -gt 1 ]; then multi_queue=multi_queue; fi
    ip netns add "$namespace"
    ip link add "$bridge" type bridge stp_state 0 forward_delay 0 mcast_snooping 0
    ip link add "$veth" type veth peer name eth0 netns "$namespace"
    ip tuntap add dev "$tap" mode tap $multi_queue vnet_hdr
    for link in "$veth" "$tap"; do ip link set "$link" master "$bridge"; done
    # Only the experiment's packets: no neighbour discovery, no multicast reports.
    for link in "$bridge" "$veth" "$tap"; do
        [ ! -e "/proc/sys/net/ipv6/conf/$link" ] || echo 1 >"/proc/sys/net/ipv6/conf/$link/disable_ipv6"
        ip link set "$link" up
    done
    ip netns exec "$namespace" sh -c '[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
    ip -n "$namespace" link set lo up
    ip -n "$namespace" address add 10.77.0.1/24 dev eth0
    ip -n "$namespace" link set eth0 up
}

outside_down() {
    local link
    for link in "${tap:-}" "${bridge:-}" "${veth:-}"; do
        [ -z "$link" ] || ip link delete "$link" 2>/dev/null || true
    done
    [ -z "${namespace:-}" ] || ip netns delete "$namespace" 2>/dev/null || true
}

outside() { ip netns exec "$namespace" "$@"; }

# end_process PID: sends SIGTERM, and SIGKILL after two seconds.
end_process() {
    local i
    kill "$1" 2>/dev/null || return 0
    for ((i = 0; i < 40; i++)); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.05
    done
    kill -9 "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

# json_field NAME: the first number or string of that name in the JSON on standard input.
json_field() { grep -o "\"$1\": *\"\?[^,\"}]*" | head -1 | sed 's/.*: *"\?//'; }

# module_bytes FILE: a kernel module's content, unpacked.
module_bytes() {
    case $1 in
        *.xz) xz -dc "$1" ;;
        *.zst) zstd -dcq "$1" ;;
        *) cat "$1" ;;
    esac
}

# modules_in_order DIRECTORY NAME...: the files of these modules and of all that they depend on, in the order in which
# insmod takes them. The package of a kernel has no modules.dep; each module has the same in its section .modinfo. A
# module that is not there is built into the kernel.
modules_in_order() {
    local directory=$1 seen=' '
    shift
    add_modules "$@"
}

# Uses `directory` and `seen` of modules_in_order.
add_modules() {
    local name file depends
    for name in "$@"; do
        name=${name//-/_}
        [[ $seen != *" $name "* ]] || continue
        seen+="$name "
        file=$(find "$directory" -name "${name//_/[-_]}.ko*" | head -1)
        [ -n "$file" ] || continue
        depends=$(module_bytes "$file" | tr '\0' '\n' | sed -n 's/^depends=//p')
        # shellcheck disable=SC2086 # a word for each module
        add_modules ${depends//,/ }
        printf '%s\n' "$file"
    done
}
