# Network cards in place of a veth; sourced by common.sh.
# shellcheck shell=bash disable=SC2154
card='' talker_card=''

# Two network cards of this host with a cable between them, by PCI address, in place of a veth: the option card and the
# option talker-card, or the environment. Sets card and talker_card.
find_cards() {
    card=${option[card]:-${RINGSCOPE_CARD:-}} talker_card=${option[talker-card]:-${RINGSCOPE_TALKER_CARD:-}}
    local name
    for name in "$card" "$talker_card"; do
        [ -n "$card$talker_card" ] || return 0
        [ -n "$name" ] && [ -e "/sys/bus/pci/devices/$name" ] ||
            die "expected two cards by PCI address, --option card=PCI and --option talker-card=PCI, found '$card' and '$talker_card'"
    done
}

# link_of PCI: the interface of this card. Nobody else may have loaded its driver.
link_of() {
    local device=/sys/bus/pci/devices/$1 alias link='' i
    for ((i = 0; i < 100; i++)); do
        # A card of virtio has a device of its own between card and interface.
        for alias in "$device"/modalias "$device"/virtio*/modalias; do
            [ ! -e "$alias" ] || modprobe -q "$(<"$alias")" || true
        done
        link=$(find "$device/" -maxdepth 3 -path '*/net/*' -printf '%f\n' -quit)
        [ -z "$link" ] || break
        sleep 0.1
    done
    [ -n "$link" ] || die "expected an interface of the card $1, found none: does the kernel have its driver?"
    echo "$link"
}

# make_card_end: as make_end, with the cards.
make_card_end() {
    local link
    iface=$(link_of "$card")
    link=$(link_of "$talker_card")
    take_wire
    at_down "ip netns delete $outside"
    run ip netns add "$outside"
    at_down "give_back $outside $link $(<"/sys/class/net/$link/address")"
    run ip link set "$link" netns "$outside" name eth0 address $TALKER_MAC
    run ip netns exec "$outside" sh -c '[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
    run ip -n "$outside" link set lo up
    run ip -n "$outside" address add $TALKER/24 dev eth0
    run ip -n "$outside" link set eth0 up
}
