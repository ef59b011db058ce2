# A far host as the talker, for `variant up --peer`; sourced by qemu-scripts/variant. The wire is an interface of this host.
#
# One ssh connection lasts from `up` to `down`, and all commands share it. The far host needs a shell, iproute2 and what
# every Linux has. It gets a temporary directory with the agent, its libraries and far.sh. When the connection ends, however
# that happens, the far host ends the agent, undoes everything, and removes the directory.
# shellcheck shell=bash disable=SC2154

# What the far host does until the connection ends: its input is a line now and then. None for a minute is an end, too: the
# network is gone. Signals are ignored, so that nothing stops it before all is undone.
# shellcheck disable=SC2016
GUARD='sh -c '\''
    dir=$(mktemp -d "${TMPDIR:-/tmp}/ringscope.XXXXXX") && dir=$(cd "$dir" && pwd -P) || exit
    trap "" HUP INT TERM PIPE
    echo "machine $(uname -sm)"
    echo "directory $dir"
    while [ -n "$(timeout -s KILL 60 head -c 1 | tr "\n" x)" ]; do :; done
    [ ! -e "$dir/far.sh" ] || sh "$dir/far.sh" clean
    rm -rf "$dir"'\'

# by_ssh CONTROL COMMAND: runs a command on the far host, in the connection that is open. It never makes a new one.
by_ssh() { ssh -T -o BatchMode=yes -o ControlMaster=no -o ControlPath="$1" -o ProxyCommand=false peer "sh -c ${2@Q}"; }

# A value that the far host has printed: far_value NAME.
far_value() { sed -n "s/^$1 //p" "$dir/peer.log" | head -1; }

# Undoes everything on the far host, and waits for it.
leave_peer() {
    local far
    far=$(far_value directory)
    [ -z "$far" ] || by_ssh "$dir/ssh" "sh $far/far.sh clean"
}

# far ORDER...: runs an order of far.sh on the far host.
far() {
    local said
    said=$(by_ssh "$dir/ssh" "sh $(far_value directory)/far.sh $*" 2>&1 </dev/null) || die "on the far host: $said"
}

# Connects to the far host, and copies the agent.
connect_peer() {
    local far machine seconds=$((SECONDS + 40))
    need ssh
    start peer bash -c 'exec ssh "$@" < <(while sleep 10; do echo; done)' bash \
        -T -o BatchMode=yes -o ConnectTimeout=10 -o ControlMaster=yes -o ControlPath="$dir/ssh" -o ControlPersist=no \
        -o ServerAliveInterval=10 -o ServerAliveCountMax=3 -o ClearAllForwardings=yes -o LogLevel=ERROR \
        "ssh://${peer#ssh:}" "$GUARD"
    at_down leave_peer
    until [ -n "$(far_value directory)" ]; do
        kill -0 "$started" 2>/dev/null && [ $SECONDS -lt $seconds ] ||
            die "expected ssh to log in at ${peer#ssh:} without a question, found: $(tail -n 1 "$dir/peer.log" | tr -d '\r'); try \`ssh -o BatchMode=yes ssh://${peer#ssh:} true\` as root"
        sleep 0.05
    done
    far=$(far_value directory) machine=$(far_value machine)
    [[ $far =~ ^/[A-Za-z0-9/._-]+$ ]] || die "expected the far host to name a directory, found $far"
    [ "$machine" = "$(uname -sm)" ] ||
        die "expected a far host on which this host's programs run, $(uname -sm), found $machine"
    send "$variants/far.sh" far.sh
    send_agent "$far"
}

# send FILE NAME: copies a file to the far directory.
send() { by_ssh "$dir/ssh" "cat >$(far_value directory)/$2 && chmod 755 $(far_value directory)/$2" <"$1"; }

# send_agent DIRECTORY: copies the agent with the libraries that it loads: the far host may have others.
send_agent() {
    local said name path agent=$bin/ringscope
    if command -v strip >/dev/null && strip -o "$dir/agent" "$agent" 2>/dev/null; then agent=$dir/agent; fi
    if is_static "$agent"; then
        send "$agent" ringscope
    else
        send "$agent" agent
        while read -r name path; do send "$path" "$name"; done < <(libraries_of "$agent")
        send <(printf '#!/bin/sh\nexec %s/ld.so --library-path %s %s/agent "$@"\n' "$1" "$1" "$1") ringscope
    fi
    said=$(by_ssh "$dir/ssh" "$1/ringscope --version" 2>&1 </dev/null) ||
        die "expected the agent to run on the far host, in $1, found: $said"
}

# The shared libraries of a program: a line `NAME PATH` for each. The loader has the name ld.so.
libraries_of() { ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 } $1 ~ /^\// { print "ld.so", $1 }'; }

# Refuses an interface that is in use: what uses it would be cut off.
expect_unused() {
    local found advice="the lab takes the whole interface: free it, or give another one"
    [ -e "/sys/class/net/$iface" ] ||
        die "--iface: expected an interface of this host, found $iface; there are $(cd /sys/class/net && echo *)"
    [ "$(<"/sys/class/net/$iface/type")" = 1 ] || die "--iface: expected an Ethernet interface, found $iface"
    found=$(ip -o address show dev "$iface" scope global | awk '{ print $4 }' | xargs)
    [ -z "$found" ] || die "--iface: expected an interface without addresses, found $found on $iface; $advice"
    found=$({ ip route show dev "$iface"; ip -6 route show dev "$iface"; } | awk '!/^(fe80:|ff00:|multicast )/ { print $1 }' | xargs)
    [ -z "$found" ] || die "--iface: expected an interface without routes, found routes to $found by $iface; $advice"
    found=$(cd "/sys/class/net/$iface" && find . -maxdepth 1 \( -name master -o -name 'upper_*' \) -printf '%f\n' | xargs)
    [ -z "$found" ] || die "--iface: expected an interface of its own, found that another one is built on $iface ($found); $advice"
    ! ip -o link show dev "$iface" | grep -q ' xdp' ||
        die "--iface: expected an interface without an XDP program, found one on $iface; $advice"
}

# Makes the interface the wire of this variant, for all frames, on one queue.
take_wire() {
    local flags setting=/proc/sys/net/ipv6/conf/$iface/disable_ipv6 queues
    wire=$iface
    flags=$(<"/sys/class/net/$wire/flags")
    # It also comes down when it moves to another namespace and back.
    if [ $((flags & 0x1)) = 0 ]; then at_down "ip link set $wire down"; else at_down "ip link set $wire up"; fi
    [ $((flags & 0x100)) != 0 ] || at_down "ip link set $wire promisc off"
    [ ! -e "$setting" ] || at_down "echo $(<"$setting") >$setting"
    at_down "ip link set $wire xdp off"
    at_down "ip link set $wire nomaster"
    quieten "$wire"
    # Frames of other queues would not reach an AF_XDP socket. Without ethtool, or channels, there is nothing to set.
    queues=$(ethtool -l "$wire" 2>/dev/null | awk '/^Current/ { is_now = 1 } is_now && /^Combined:/ { print $2 }') || true
    if [[ $queues =~ ^[0-9]+$ ]] && [ "$queues" -gt 1 ]; then
        at_down "ethtool -L $wire combined $queues"
        run ethtool -L "$wire" combined 1
    fi
    # The guest's address is another one than the card's.
    run ip link set "$wire" promisc on up
}

# Finds out whether the far host and both interfaces can be used. Changes nothing yet.
try_peer() {
    expect_unused
    connect_peer
    far check "$peer_iface"
}

# The talker: the far host, whose interface is the other end of the wire.
make_far_talker() {
    try_peer
    take_wire
    far take "$peer_iface" "$TALKER/24"
    await "a link on $iface: is the other end of its cable $peer_iface of the far host?" 15 grep -qx 1 "/sys/class/net/$iface/carrier"
    echo "ssh $dir/ssh $(far_value directory)" >"$dir/talker"
    count_udp talker talker
}

# count_udp PLACE END: counts the UDP packets of an end. Cards count their frames, too, but some show it only seconds later.
count_udp() {
    count "$1.sent" "udp_of $2 OutDatagrams"
    count "$1.received" "udp_of $2 InDatagrams"
}

# The number of UDP packets of an end, from /proc/net/snmp: udp_of END FIELD.
udp_of() {
    at_end "$1" cat /proc/net/snmp |
        awk -v name="$2" '$1 == "Udp:" && at { print $at; exit } $1 == "Udp:" { for (i = 2; i <= NF; i++) if ($i == name) at = i }'
}

# give_back NAMESPACE LINK ADDRESS: moves the wire back from the responder's namespace, before that is deleted.
give_back() { ip -n "$1" link set eth0 down && ip -n "$1" link set eth0 netns $$ name "$2" address "$3"; }
