# What the scripts of this folder share; sourced, not run.
# shellcheck shell=bash

RINGSCOPE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RINGSCOPE_CACHE=${RINGSCOPE_CACHE:-$RINGSCOPE_ROOT/target/guest-image}
QEMU=qemu-system-x86_64
QEMU_MAJOR_MIN=8

# Everything but results goes to standard error, so that results can be captured.
note() { printf '%s\n' "${0##*/}: $*" >&2; }
die() { note "$*"; exit 1; }
usage_error() { note "$*; see --help"; exit 2; }

# A script's --help is its head: the comment from line 2 to the first line that is none.
print_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# "10.0" of "QEMU emulator version 10.0.2 (Debian ...)"; nothing when QEMU is not there.
qemu_version() { "$QEMU" --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\.[0-9]*\).*/\1/p'; }

# ldd fails on a plain static program and says so of a position-independent one.
is_static() { [[ $(ldd "$1" 2>&1) =~ 'not a dynamic executable'|'statically linked' ]]; }

# Rust may be installed for a user whose PATH does not show it, as under sudo.
find_cargo() {
    command -v cargo >/dev/null && return
    local home
    for home in "${CARGO_HOME:-}" "$HOME/.cargo" ${SUDO_USER:+"$(getent passwd "$SUDO_USER" | cut -d: -f6)/.cargo"}; do
        if [ -n "$home" ] && [ -x "$home/bin/cargo" ]; then PATH=$home/bin:$PATH; return; fi
    done
    die "expected cargo, found none: install Rust (https://rustup.rs, the default profile) and run this again"
}
