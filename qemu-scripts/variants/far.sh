#!/bin/sh
# What `variant up --peer` does on the far host, from a temporary directory there that has this script.
#
#   far.sh check NIC          whether the interface can be used
#   far.sh take NIC ADDRESS   gives it the address, and switches it on
#   far.sh complete NIC       has a virtual interface send complete frames
#   far.sh clean              ends the agent, undoes everything, and removes the directory
#   far.sh clocks             what the clock of this host follows: a line `NAME VALUE` for each fact
dir=$(cd "$(dirname "$0")" && pwd -P) || exit

fail() {
    echo "$*" >&2
    exit 1
}

# Runs a program if it is there, for 3 s at most.
ask() { if command -v "$1" >/dev/null; then timeout 3 "$@" 2>/dev/null </dev/null; fi; }

# Names of processes.
running() { cat /proc/[0-9]*/comm 2>/dev/null | sort -u; }

check() {
    [ "$(id -u)" = 0 ] ||
        fail "expected ssh to log in as root, who may give an interface an address, found user $(id -un): use --peer ssh:root@HOST"
    command -v ip >/dev/null || fail "expected the program ip, found none: install iproute2"
    [ -e "/sys/class/net/$1" ] ||
        fail "--peer-iface: expected an interface of the far host, found $1; there are $(cd /sys/class/net && echo *)"
    [ ! -e "/sys/class/net/$1/master" ] ||
        fail "--peer-iface: expected an interface that can have an address, found that $1 is a port of $(basename "$(readlink "/sys/class/net/$1/master")"): give another one"
    used=$(ip -o address show to 10.77.0.0/24 | awk '{ print $4, "on", $2 }' | xargs)
    [ -n "$used" ] || used=$(ip route show root 10.77.0.0/24 | awk '{ print "a route to", $1 }' | xargs)
    [ -z "$used" ] || fail "expected no address of 10.77.0.0/24, which the lab uses, found $used; does another lab use this host?"
}

take() {
    [ $(($(cat "/sys/class/net/$1/flags") & 1)) != 0 ] || echo "ip link set $1 down" >>"$dir/undo"
    echo "ip address delete $2 dev $1" >>"$dir/undo"
    ip address add "$2" dev "$1" && ip link set "$1" up
}

# A veth leaves checksums and segments to the receiver, and takes frames from an XDP program only with GRO. A network card
# needs neither.
complete() {
    [ ! -e "/sys/class/net/$1/device" ] || return 0
    command -v ethtool >/dev/null || fail "expected the program ethtool, for the virtual interface $1, found none: install ethtool"
    echo "ethtool -K $1 tx on gro off" >>"$dir/undo"
    ethtool -K "$1" tx off gro on
}

# May run twice at once: by the order to do so, and because the connection has ended.
clean() {
    # What is starting just now would be missed below. It needs its files.
    for file in "$dir"/*; do
        case $file in */far.sh | */undo) ;; *) rm -f "$file" ;; esac
    done
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe") in "$dir"/*) kill -KILL "${process#/proc/}" ;; esac
    done
    [ ! -e "$dir/undo" ] || sed '1!G;h;$!d' "$dir/undo" | sh
    rm -rf "$dir"
} 2>/dev/null

clocks() {
    echo "kernel $(uname -r)"
    sed -n 's/^model name[^:]*: /cpu /p' /proc/cpuinfo | head -n 1
    echo "cpus $(grep -c ^processor /proc/cpuinfo)"
    echo "source $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    # The kernel cuts names off at 15 bytes.
    running | grep -x -e ptp4l -e phc2sys -e chronyd -e ntpd -e systemd-timesyn -e timemaster | sed 's/^/daemon /'
    if running | grep -qx ptp4l; then
        ask pmc -u -b 0 'GET PORT_DATA_SET' | awk '$1 == "portState" { print "ptp-port", $2 }' | head -n 1
        ask pmc -u -b 0 'GET TIME_STATUS_NP' |
            awk '$1 == "master_offset" { print "ptp-offset-ns", $2 } $1 == "gmIdentity" { print "ptp-grandmaster", $2 }'
    fi
    ! running | grep -qx chronyd || ask chronyc -n -c tracking | awk -F , 'NF > 4 { print "ntp-offset-s", $5 }'
}

order=$1
shift
case $order in
    check | take | complete | clean | clocks) "$order" "$@" ;;
    *) fail "expected check, take, complete, clean or clocks, found $order" ;;
esac
