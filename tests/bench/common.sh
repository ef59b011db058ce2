# Functions that the comparisons of this folder share. Source this file; it does not run by itself.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/qemu-scripts/common.sh"
bin=${CARGO_TARGET_DIR:-$root/target}/release

# read_flags FLAGS SWITCHES ARGUMENTS...: sets the variable with each flag's name to its value, that of a switch to 1.
read_flags() {
    local flags=" $1 " switches=" $2 " name
    shift 2
    while [ $# -gt 0 ]; do
        name=${1#--}
        case $1 in
            -h | --help) print_help; exit ;;
            --*)
                if [[ $switches == *" $name "* ]]; then
                    printf -v "$name" 1
                    shift
                    continue
                fi
                [[ $flags == *" $name "* ]] || usage_error "unknown option $1"
                [ $# -gt 1 ] || usage_error "$1 needs a value"
                printf -v "$name" %s "$2"
                shift 2
                ;;
            *) usage_error "unknown option $1" ;;
        esac
    done
}

pages=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
declare -A to_stdin

# begin PAGES PACKAGES...: builds, and takes a folder (run) and this number of huge pages while the script runs. At the
# end, everything that was started is stopped; the function `clean` removes the rest.
begin() {
    local wanted=$1
    shift
    [ "$(id -u)" = 0 ] || die "expected root, for interfaces and huge pages; found user $(id -un)"
    command -v dpdk-testpmd >/dev/null || die "expected dpdk-testpmd, found none: run qemu-scripts/setup"
    pages_before=$(<"$pages")
    run=$(mktemp -d /tmp/ringscope-bench.XXXXXX)
    : >"$run/pids"
    trap end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    find_cargo
    cargo build --quiet --release "${@/#/--package=}" --bins --manifest-path "$root/Cargo.toml"
    mkdir "$run/huge"
    ((pages_before >= wanted)) || echo "$wanted" >"$pages"
    (($(<"$pages") >= wanted)) || die "expected $wanted huge pages of 2 MiB, found that the kernel gives $(<"$pages")"
    mount -t hugetlbfs none "$run/huge"
}

end() {
    local status=$?
    trap '' INT TERM
    end_all
    clean
    umount "$run/huge" 2>/dev/null || true
    echo "$pages_before" >"$pages" || true
    rm -rf "$run"
    exit $status
}

# Removes nothing, unless a script redefines it.
clean() { :; }

# start NAME COMMAND...: runs the command in the background, with its output in a log of that name. Sets `started` to
# its process.
start() {
    local name=$1
    shift
    "$@" >"$run/$name.log" 2>&1 </dev/null &
    started=$!
    echo "$started" >>"$run/pids"
}

# start_testpmd NAME ARGUMENTS...: starts an interactive testpmd that takes orders.
start_testpmd() {
    local name=$1 fd
    shift
    mkfifo "$run/$name.in"
    stdbuf -oL dpdk-testpmd --no-pci -n 1 --huge-dir "$run/huge" --file-prefix="$name$$" "$@" \
        <"$run/$name.in" >"$run/$name.log" 2>&1 &
    echo $! >>"$run/pids"
    exec {fd}>"$run/$name.in"
    to_stdin[$name]=$fd
}

# end_all: stops everything that was started.
end_all() {
    local fd pid
    for fd in "${to_stdin[@]}"; do exec {fd}>&-; done
    to_stdin=()
    for pid in $(tac "$run/pids"); do
        kill -CONT "$pid" 2>/dev/null || true
        end_process "$pid"
    done
    : >"$run/pids"
    rm -rf "$run"/huge/* "$run"/*.in "$run"/*.sock
}

# await_socket NAME LOG: waits until the socket of that name exists.
await_socket() {
    local i
    for ((i = 0; i < 200; i++)); do
        [ ! -S "$run/$1.sock" ] || return 0
        sleep 0.05
    done
    die "expected the back end to open its socket, found: $(tail -n 5 "$run/$2.log")"
}

# said NAME PATTERN: prints how often the pattern is in the log of that name.
said() { { grep -o -- "$2" "$run/$1.log" || true; } | wc -l; }

# await NAME PATTERN COUNT: waits until the pattern is that often in the log.
await() {
    local i
    for ((i = 0; i < 1000; i++)); do
        [ "$(said "$1" "$2")" -lt "$3" ] || return 0
        sleep 0.02
    done
    die "expected $1 to say '$2', found: $(tail -n 5 "$run/$1.log")"
}

# order NAME WORDS...: gives testpmd an order and waits until it is done.
order() {
    local name=$1 before
    shift
    before=$(said "$name" 'testpmd>')
    echo "$*" >&"${to_stdin[$name]}"
    await "$name" 'testpmd>' $((before + 1))
}

# rate NAME KEY: prints the packets a second of all ports of that testpmd together, measured for `seconds`. testpmd
# prints the rate since it was last asked.
rate() {
    order "$1" show port stats all
    sleep "$seconds"
    order "$1" show port stats all
    awk -v key="$2:" '
        /NIC statistics for port 0/ { sum = 0 }
        $1 == key { sum += $2 }
        END { print sum + 0 }' "$run/$1.log"
}

# start_two_guests NAME PACKED FRAME: starts two guests as ports of one testpmd, at the sockets 0 and 1 of that name.
# The frames that one sends go to the other.
port_macs=(52:54:00:00:00:0a 52:54:00:00:00:0b)
start_two_guests() {
    local name=$1 packed=$2 frame=$3
    start_testpmd "guests-$name" --lcores '(0)@0,(1)@0' -m 512 --single-file-segments \
        --vdev "net_virtio_user0,path=$run/$name-0.sock,queues=1,queue_size=1024,packed_vq=$packed,mac=${port_macs[0]}" \
        --vdev "net_virtio_user1,path=$run/$name-1.sock,queues=1,queue_size=1024,packed_vq=$packed,mac=${port_macs[1]}" \
        -- -i --forward-mode=io --burst=32 --txd=1024 --rxd=1024 --txpkts="$frame" \
        --eth-peer=0,"${port_macs[1]}" --eth-peer=1,"${port_macs[0]}"
    await "guests-$name" 'testpmd>' 1
}

# make_bridge BRIDGE TAPS...: makes them and brings all of them up.
make_bridge() {
    local bridge=$1 link
    shift
    ip link add "$bridge" type bridge stp_state 0 mcast_snooping 0 forward_delay 0
    for link in "$@"; do
        ip tuntap add dev "$link" mode tap vnet_hdr
        ip link set "$link" master "$bridge" txqueuelen 4096
    done
    for link in "$bridge" "$@"; do
        # Allow only the experiment's packets: no neighbour discovery, no multicast reports.
        [ ! -e "/proc/sys/net/ipv6/conf/$link" ] || echo 1 >"/proc/sys/net/ipv6/conf/$link/disable_ipv6"
        ip link set "$link" up
    done
}

# ratios FILE: for lines with two figures, prints the median of each, then the median, the least and the greatest of
# their ratio.
ratios() {
    awk '{ if (!($1 > 0 && $2 > 0)) exit 1 }' "$1" ||
        die "expected figures of both sides, found: $(tr '\n' ';' <"$1")"
    local column
    for column in 1 2; do
        awk -v c=$column '{ print $c }' "$1" | sort -n | awk '{ v[NR] = $1 } END { printf "%s ", v[int((NR + 1) / 2)] }'
    done
    awk '{ print $1 / $2 }' "$1" | sort -n |
        awk '{ r[NR] = $1 } END { printf "%.3f %.3f %.3f\n", r[int((NR + 1) / 2)], r[1], r[NR] }'
}

# measure_circle FILE KEY FLAGS...: a daemon on core 1 with two guests on the taps `links`, in a bridge, which send frames in a
# circle. KEY, a line of TOML or nothing, is in each guest's table; FLAGS are the daemon's. Appends the packets a second that
# both guests receive to FILE. Uses `frame` and `seconds`.
measure_circle() {
    local file=$1 key=$2 i
    shift 2
    {
        echo "run-dir = \"$run\""
        for i in 0 1; do
            printf '[[guest]]\nsocket-path = "%s"\ndatapath = "tap:ifname=%s"\nmac = "%s"\ncpus = "1"\n%s\n' \
                "$run/tap-$i.sock" "${links[i]}" "${port_macs[i]}" "$key"
        done
    } >"$run/guests.toml"
    start daemon "$bin/ringscoped" --config "$run/guests.toml" "$@"
    await_socket tap-1 daemon
    await daemon 'recording to' 2
    start_two_guests tap 0 "$frame"
    order guests-tap start tx_first 8
    sleep 0.3
    rate guests-tap Rx-pps >>"$file"
    end_all
}
