# Open vSwitch for the variants that use it, in DIR/ovs, apart from one that the system may have.
# shellcheck shell=bash disable=SC2154

# ovs PROGRAM ARGUMENTS...: runs a program of Open vSwitch, and writes it down.
ovs() {
    local program=$1
    shift
    run "$(find_openvswitch "$program")" "$@"
}

# configure ARGUMENTS...: runs ovs-vsctl, which waits until the switch has done it.
configure() {
    ovs ovs-vsctl --timeout=20 "$@" || die "expected Open vSwitch to do \`$*\`, found that ovs-vsctl failed; $(last_words)"
}

need_openvswitch() {
    local program
    for program in ovs-vswitchd-dpdk ovsdb-server ovsdb-tool ovs-vsctl ovs-ofctl ovs-appctl ovs-dpctl; do
        find_openvswitch "$program" >/dev/null || die "expected $program, found none: run qemu-scripts/setup --lab"
    done
}

# start_openvswitch netdev|system [SETTING...]: its database, its switch with these settings in other_config, and the bridge,
# whose datapath is in user space (netdev) or in the kernel (system).
start_openvswitch() {
    local program schema datapath=$1 remove="ip link delete ovs-netdev"
    shift
    need_openvswitch
    [ "$datapath" = netdev ] || remove="$(find_openvswitch ovs-dpctl) del-dp ovs-system"
    # The name is the same for every Open vSwitch.
    [ ! -e "/sys/class/net/ovs-$datapath" ] ||
        die "expected no Open vSwitch with a datapath of the type $datapath, found its interface ovs-$datapath: end that Open vSwitch, or delete what it left with \`$remove\`"
    program=$(find_openvswitch ovs-vsctl)
    schema=${program%/bin/ovs-vsctl}/share/openvswitch/vswitch.ovsschema
    run mkdir -p "$dir/ovs"
    run export OVS_RUNDIR="$dir/ovs" OVS_LOGDIR="$dir/ovs" OVS_DBDIR="$dir/ovs" OVS_SYSCONFDIR="$dir/ovs" RUNTIME_DIRECTORY="$dir/ovs"
    # Without it, libxdp may pin its programs in the file system of BPF, where they would stay.
    run export LIBXDP_SKIP_DISPATCHER=1
    ovs ovsdb-tool create "$dir/ovs/conf.db" "$schema"
    start ovsdb "$(find_openvswitch ovsdb-server)" "$dir/ovs/conf.db" --remote="punix:$dir/ovs/db.sock" --unixctl="$dir/ovs/ovsdb.ctl"
    await "the database of Open vSwitch" 20 test -S "$dir/ovs/db.sock"
    [ $# = 0 ] || configure --no-wait set Open_vSwitch . "${@/#/other_config:}"
    # Open vSwitch leaves both when it ends.
    at_down "$remove"
    at_down "ip link delete $bridge"
    start vswitchd "$(find_openvswitch ovs-vswitchd-dpdk)" "unix:$dir/ovs/db.sock" --unixctl="$dir/ovs/vswitchd.ctl"
    await "the answer of Open vSwitch" 30 test -S "$dir/ovs/vswitchd.ctl"
    configure add-br "$bridge" -- set bridge "$bridge" "datapath_type=$datapath"
}

# Ports to guests connect to the front end; those that listen are deprecated.
need_listening_guest() {
    [ "$guest" = qemu ] ||
        die "expected --guest qemu, found uml: Open vSwitch connects to the guest's front end, and User Mode Linux cannot listen"
}

# start_openvswitch_dpdk: the same with DPDK, whose memory is that of the process, not huge pages. The thread that polls
# its ports has the CPU --worker-cpu.
start_openvswitch_dpdk() {
    local mask=()
    [ -z "$worker_cpu" ] || mask=("pmd-cpu-mask=0x$((1 << worker_cpu % 4))$(printf '%*s' $((worker_cpu / 4)) '' | tr ' ' 0)")
    # Without per-port-memory it takes 262144 buffers at once, which are more than 256 MiB.
    start_openvswitch netdev dpdk-init=true per-port-memory=true 'dpdk-extra="--no-pci --no-huge --legacy-mem -m 256"' "${mask[@]}"
}

# add_guest_port: the port to the guest, which has to be started with --server.
add_guest_port() {
    add_port ovs.guest guest type=dpdkvhostuserclient "options:vhost-server-path=$dir/guest.sock"
}

# add_port PLACE PORT SETTING...: a port of the bridge, and its counters. What an interface of the kernel sent and received
# is counted by the kernel, also if Open vSwitch did not see it. So a flow for each port counts what was forwarded from it.
add_port() {
    local place=$1 port=$2 program error wait
    shift 2
    configure add-port "$bridge" "$port" -- set interface "$port" "$@"
    error=$("$(find_openvswitch ovs-vsctl)" --timeout=10 get interface "$port" error)
    [ "$error" = '[]' ] || die "expected Open vSwitch to open the port $port, found $error; $(last_words)"
    ovs ovs-ofctl add-flow "$bridge" "in_port=$port,actions=normal"
    program="OVS_RUNDIR=${OVS_RUNDIR@Q} $(find_openvswitch ovs-ofctl)"
    # The counters of flows are brought up to date twice a second; this waits for it.
    wait="$(find_openvswitch ovs-appctl) --timeout=10 --target=${OVS_RUNDIR@Q}/vswitchd.ctl revalidator/wait"
    # Some network cards show their counters only seconds later.
    if [ -z "$peer" ] || [ "$port" != "$wire" ]; then
        count "$place.sent" "$program dump-ports $bridge $port | sed -n 's/.*tx pkts=\([0-9]\+\).*/\1/p' | grep ."
        count "$place.received" "$program dump-ports $bridge $port | sed -n 's/.*rx pkts=\([0-9]\+\).*/\1/p' | grep ."
    fi
    count "$place.forwarded" "$wait; $program dump-flows $bridge in_port=$port | sed -n 's/.*n_packets=\([0-9]\+\).*/\1/p' | grep ."
}
