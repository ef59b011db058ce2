# What the variants are built from; sourced by qemu-scripts/variant, which sets dir, bin, guest, worker_cpu, other_cpus,
# kernel_stages, talker, option, peer, iface and peer_iface.
# shellcheck shell=bash disable=SC2154

TALKER=10.77.0.1 RESPONDER=10.77.0.2
TALKER_MAC=52:54:00:77:00:01 RESPONDER_MAC=52:54:00:77:00:02
# Ports of the agents that wait at the responder.
ECHO_PORT=7007 TCP_PORT=7008
# The longest path of a socket below DIR.
SOCKET_LONGEST=/guest-talker/console.sock

. "$RINGSCOPE_ROOT/qemu-scripts/variants/cards.sh"

# Names of interfaces and namespaces, apart from those of other runs.
outside=rl${$}o inside=rl${$}i bridge=rl${$}b tap=rl${$}t wire=rl${$}w macvtap=rl${$}m

# run COMMAND...: runs it, and writes it down for who builds this by hand.
run() {
    printf '%s ' "${@@Q}" | sed "s/'\([A-Za-z0-9_.,:=\/-]*\)'/\1/g; s/ $/\n/" >>"$dir/commands"
    "$@"
}

# at_down COMMAND: has `variant down` do this, before what was given earlier. Given before the thing is made, so that
# nothing is ever left. If `up` did not finish, the command runs a second time; it has to end by itself both times.
at_down() { printf '%s\n' "$*" >>"$dir/undo"; }

# need PROGRAM...: what the variant is built with.
need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || die "expected the program $program, found none: run qemu-scripts/setup --lab"
    done
}

# Where a variant runs that this host's kernel cannot have.
# shellcheck disable=SC2016 # a command, as people write it
IN_NESTED='`ringscope lab --nested` has them, in an emulated machine'

# need_driver MODULE COMMAND...: a driver of the kernel, which is there if the command succeeds.
need_driver() {
    local module=$1
    shift
    modprobe -q "$module" 2>/dev/null || true
    "$@" >/dev/null 2>&1 ||
        die "expected the kernel module $module, found none for Linux $(uname -r): use a kernel that has it, as Debian's; ${IN_NESTED/them/one}"
}

# count PLACE COMMAND: has `variant counters` print the number that the command prints. A frame that goes the variant's
# way, in either direction, passes each place.
count() { printf '%s %s\n' "$1" "$2" >>"$dir/counters"; }

# count_link PLACE LINK [NAMESPACE]: counts what an interface sent, and what it received.
count_link() {
    local statistics=/sys/class/net/$2/statistics within=${3:+ip netns exec $3 }
    count "$1.sent" "${within}cat $statistics/tx_packets"
    count "$1.received" "${within}cat $statistics/rx_packets"
}

# guest_counter rx|tx: a command that prints what the guest's eth0 has received or sent.
guest_counter() {
    echo "'$bin/ringscope' agent shell '$dir/guest/console.sock' --timeout 15 cat /sys/class/net/eth0/statistics/${1}_packets | grep -x '[0-9]*'"
}

# Time of a process's start, by which it is told from a later one with the same number. Nothing if it has ended, also if its
# parent does not know that yet.
started_at() { awk '{ sub(/.*\) /, ""); if ($1 != "Z") print $20 }' "/proc/$1/stat" 2>/dev/null; }

# end PID START: ends this process, and waits for its end. It may end by itself meanwhile.
end() {
    local i
    for ((i = 0; i < 200; i++)); do
        [ -n "$2" ] && [ "$(started_at "$1")" = "$2" ] || return 0
        case $i in
            0) kill "$1" || true ;;
            100) kill -9 "$1" || true ;;
        esac 2>/dev/null
        sleep 0.03
    done
}

# The processes of the variant in DIR. Each has RINGSCOPE_VARIANT=DIR in its environment, which it inherited from `up`. In a
# container, DIR is another directory, and what runs there is not ours. A process that sees no DIR has hidden it from itself.
processes() {
    local file pid here there
    here=$(stat -c %d:%i "$dir")
    grep -lzsxF "RINGSCOPE_VARIANT=$dir" /proc/[0-9]*/environ | while read -r file; do
        pid=${file#/proc/} pid=${pid%/environ}
        there=$(stat -c %d:%i "/proc/$pid/root$dir" 2>/dev/null || echo "$here")
        [ "$there" != "$here" ] || echo "$pid"
    done
}

# Ends all of them.
end_all() {
    local pid i
    for ((i = 0; i < 10; i++)); do
        [ -n "$(processes)" ] || return 0
        for pid in $(processes); do end "$pid" "$(started_at "$pid")"; done
    done
    die "expected that every process of $dir ends, found that these do not: $(processes | xargs)"
}

# start NAME COMMAND...: runs a command in the background until `variant down`; its output is in NAME.log.
start() {
    local log=$dir/$1.log
    shift
    printf '%s &\n' "$(printf '%s ' "${@@Q}" | sed "s/'\([A-Za-z0-9_.,:=\/-]*\)'/\1/g")" >>"$dir/commands"
    # A session of its own: Ctrl-C is for the lab, which then takes everything down in order.
    setsid "$@" >"$log" 2>&1 </dev/null &
    started=$!
    at_down "end $started $(started_at $started)"
}

# await WHAT SECONDS COMMAND...: waits until the command succeeds. RINGSCOPE_PATIENCE multiplies the time, for a machine that
# is emulated.
await() {
    local what=$1 end=$((SECONDS + $2 * ${RINGSCOPE_PATIENCE:-1}))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "expected $what, found none in time; $(last_words)"
        [ -z "${started:-}" ] || kill -0 "$started" 2>/dev/null || die "expected $what, found that its program has ended; $(last_words)"
        sleep 0.05
    done
}

# The ends of the logs.
last_words() {
    local log
    for log in "$dir"/*.log; do
        [ ! -s "$log" ] || printf 'the end of %s:\n%s\n' "$log" "$(tail -n 5 "$log")"
    done
}

# No neighbour discovery and no multicast reports on a link: only the experiment's frames.
quieten() {
    [ ! -e "/proc/sys/net/ipv6/conf/$1" ] || echo 1 >"/proc/sys/net/ipv6/conf/$1/disable_ipv6"
}

# make_end NAMESPACE LINK MAC ADDRESS: a namespace whose eth0 is the other end of LINK, which stays in the root namespace.
make_end() {
    at_down "ip netns delete $1"
    run ip netns add "$1"
    at_down "ip link delete $2"
    run ip link add "$2" type veth peer name eth0 address "$3" netns "$1"
    quieten "$2"
    run ip netns exec "$1" sh -c '[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
    run ip -n "$1" link set lo up
    run ip -n "$1" address add "$4/24" dev eth0
    run ip -n "$1" link set eth0 up
    run ip link set "$2" up
}

# The talker: a namespace whose wire ends at $wire in the root namespace. With --talker uml: a User Mode Linux guest, whose
# frames leave at the namespace's eth0. With --peer: the far host, and $wire is --iface.
make_talker() {
    if [ -n "$peer" ]; then
        make_far_talker
        return
    fi
    find_cards
    if [ -n "$card" ]; then make_card_end; else make_end "$outside" "$wire" $TALKER_MAC $TALKER; fi
    if [ "$talker" = uml ]; then
        make_uml_talker
    else
        echo "netns $outside" >"$dir/talker"
    fi
    count_link talker eth0 "$outside"
}

make_uml_talker() {
    local place=$dir/guest-talker
    run ip -n "$outside" address flush dev eth0
    start guest-talker ip netns exec "$outside" "$RINGSCOPE_ROOT/qemu-scripts/launch" --guest uml --agent "$bin/ringscope" \
        --interface eth0 --dir "$place" --address "$TALKER/24" --mac $TALKER_MAC ${other_cpus:+--cpu-list "$other_cpus"}
    await "the talker's console" 60 test -e "$place/console.sock"
    echo "console $place/console.sock" >"$dir/talker"
}

# complete_at_talker [FEATURE SETTING]...: the talker sends frames whose checksums are complete, and which need not be cut. A veth
# would leave that to the receiver; a network card does it.
complete_at_talker() {
    if [ -n "$peer" ]; then
        far complete "$peer_iface"
    else
        run ip netns exec "$outside" ethtool -K eth0 tx off "$@" >>"$dir/up.log"
    fi
}

# The responder: the namespace $inside, with the other end of the wire.
make_inside() {
    at_down "ip netns delete $inside"
    run ip netns add "$inside"
    [ -z "$peer$card" ] || at_down "give_back $inside $wire $(<"/sys/class/net/$wire/address")"
    run ip link set "$wire" netns "$inside" name eth0 address $RESPONDER_MAC
    run ip netns exec "$inside" sh -c '[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
    run ip -n "$inside" link set lo up
    run ip -n "$inside" address add $RESPONDER/24 dev eth0
    run ip -n "$inside" link set eth0 up
}

# The agents that a guest has, in a namespace: start_agents NAMESPACE.
start_agents() {
    start echo ip netns exec "$1" "$bin/ringscope" agent udp-echo --bind "0.0.0.0:$ECHO_PORT"
    start tcp ip netns exec "$1" "$bin/ringscope" agent tcp-serve --bind "0.0.0.0:$TCP_PORT"
}

# make_bridge LINK...: a bridge of these links.
make_bridge() {
    local link
    at_down "ip link delete $bridge"
    run ip link add "$bridge" type bridge stp_state 0 forward_delay 0 mcast_snooping 0
    quieten "$bridge"
    for link in "$@"; do run ip link set "$link" master "$bridge"; done
    run ip link set "$bridge" up
}

# A tap that a back end can open.
make_tap() {
    need_driver tun test -c /dev/net/tun
    at_down "ip link delete $tap"
    run ip tuntap add dev "$tap" mode tap vnet_hdr
    quieten "$tap"
    run ip link set "$tap" up
    count_link tap "$tap"
}

# start_ringscoped DATAPATH [FLAGS]: the daemon, whose socket is $dir/guest.sock. With the option trace=off its recorder has
# counters only, and nothing is recorded.
start_ringscoped() {
    local datapath=$1 tracing="--trace-probe 7010 $kernel_stages" trace=${option[trace]:-on}
    shift
    case $trace in
        on) echo guest >"$dir/recorder" ;;
        off) tracing='--trace off' ;;
        *) die "--option trace: expected on or off, found $trace" ;;
    esac
    # shellcheck disable=SC2086 # several words
    start ringscoped "$bin/ringscoped" --socket-path "$dir/guest.sock" --datapath "$datapath" --run-dir "$dir" \
        $tracing ${worker_cpu:+--cpus "$worker_cpu"} "$@"
    await "ringscoped's socket" 10 test -S "$dir/guest.sock"
    count_ringscoped guest
}

# count_ringscoped NAME: the packets from the guest NAME (tx) and to it (rx).
count_ringscoped() {
    local direction
    for direction in tx rx; do count "ringscoped.$1.$direction" "packets_of $1 $direction"; done
}

# The number of packets in the direction tx or rx that ringscoped has carried since its start: packets_of NAME DIRECTION.
# Records are overwritten, so those beside `counted` may become fewer.
packets_of() {
    "$(<"$dir/bin")/ringscope" stats --run-dir "$dir" --name "$1" --json |
        awk -v direction="\"$2\":" '
            $1 == direction { inside = 1 }
            inside && $1 == "\"counted\":" { counted = 1 }
            counted && $1 == "\"packets\":" { sub(/,/, "", $2); print $2; exit }'
}

# The number in the variable `frames` of an XDP program: xdp_frames ID.
xdp_frames() {
    local map
    for map in $(bpftool -j prog show id "$1" | sed 's/.*"map_ids":\[\([0-9,]*\)\].*/\1/; s/,/ /g'); do
        bpftool -j map dump id "$map"
    done | json_field frames
}

# start_guest FLAGS...: the responder, a guest; FLAGS are launch's.
start_guest() { start_guest_in guest responder "$RESPONDER" $RESPONDER_MAC "$@"; }

# start_plain_guest FLAGS...: as start_guest, but the guest sends only frames that need no more work: their checksums are
# complete, and none of them is to be cut into segments.
start_plain_guest() {
    if [ "$guest" = qemu ]; then
        start_guest --offloads off "$@"
    else
        start_guest "$@"
        await "the guest to answer on its console" 90 at_end responder true
        run "$bin/ringscope" agent shell "$dir/guest/console.sock" --timeout 90 ethtool -K eth0 tx off >>"$dir/up.log"
    fi
}

# start_guest_in DIRECTORY END ADDRESS MAC FLAGS... With a recorder, the clock of a QEMU guest can be compared with the
# host's by a page.
start_guest_in() {
    local place=$dir/$1 end=$2 own=()
    if [ "$guest" = uml ]; then
        own=(--agent "$bin/ringscope")
    elif [ -e "$dir/recorder" ]; then
        own=(--clock-page "$place/clock")
    fi
    start "$1" "$RINGSCOPE_ROOT/qemu-scripts/launch" --dir "$place" --address "$3/24" --mac "$4" \
        --guest "$guest" ${other_cpus:+--cpu-list "$other_cpus"} "${own[@]}" "${@:5}"
    await "the guest's console" 60 test -e "$place/console.sock"
    echo "console $place/console.sock" >"$dir/$end"
}

# Runs a command at the end of that name, talker or responder.
at_end() {
    local kind where directory
    read -r kind where <"$dir/$1"
    shift
    case $kind in
        ssh)
            directory=${where##* }
            [ "$1" != "${bin:-}/ringscope" ] || set -- "$directory/ringscope" "${@:2}"
            by_ssh "${where% *}" "$*" </dev/null
            ;;
        netns) ip netns exec "$where" "$@" ;;
        console) "$bin/ringscope" agent shell "$where" --timeout 90 "$@" ;;
    esac
}

# Waits until the talker reaches the responder.
await_answer() {
    local end
    for end in talker responder; do await "the $end to answer on its console" 90 at_end $end true; done
    # A far host may have no ping.
    local ping=(ping -c 1 -W 1 $RESPONDER)
    [ -z "$peer" ] || ping=("$bin/ringscope" agent udp-ping "$RESPONDER:$ECHO_PORT" --count 1 --warmup 0 --wait-ms 1000)
    await "an answer to a ping from $TALKER to $RESPONDER" 20 at_end talker "${ping[@]}"
}
