# dpdk-testpmd for the variants that use it.
# shellcheck shell=bash disable=SC2154

# start_testpmd EAL-FLAGS... -- FLAGS...: starts it. It reads orders from the FIFO testpmd.in, and has ordinary memory, not
# huge pages.
start_testpmd() {
    local cpus cpu
    cpus=$(nproc --all)
    cpu=${worker_cpu:-$((cpus - 1))}
    run mkfifo "$dir/testpmd.in"
    # It ends at the end of its input, so it has the FIFO open for both directions.
    # shellcheck disable=SC2016 # for sh
    RUNTIME_DIRECTORY=$dir start testpmd sh -c 'exec "$@" <>"$0"' "$dir/testpmd.in" stdbuf -oL dpdk-testpmd \
        --no-pci --no-huge -m 256 --lcores "(0)@$(((cpu + 1) % cpus)),(1)@$cpu" "$@" -i --auto-start --total-num-mbufs=32768
}

# count_testpmd PLACE PORT: counts what a port sent and received.
count_testpmd() {
    count "$1.sent" ". '$variants/testpmd.sh'; testpmd_packets $2 TX"
    count "$1.received" ". '$variants/testpmd.sh'; testpmd_packets $2 RX"
}

# testpmd_packets PORT RX|TX: the number of packets that the port has carried, as testpmd prints it.
testpmd_packets() {
    local lines i
    lines=$(wc -l <"$dir/testpmd.log")
    # Both ways: it does not wait for a reader.
    echo "show port stats $1" 1<>"$dir/testpmd.in"
    for ((i = 0; i < 100; i++)); do
        tail -n "+$((lines + 1))" "$dir/testpmd.log" | grep -o "$2-packets: *[0-9]*" && return
        sleep 0.02
    done | awk '{ print $2 } END { exit !NR }'
}
