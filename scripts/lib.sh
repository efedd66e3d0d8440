# shellcheck shell=bash
#
# What every script in this folder shares: words for the user, bounded waits, one lock, one place for files.
#
# Source it, do not run it. It expects `set -euo pipefail` and bash 4.4 or newer. Words for the user go to
# stderr, so that stdout carries nothing but a script's result and can be read by another script.

# Without this, a command that fails inside $(...) would not stop the script.
shopt -s inherit_errexit

# The repository, and the folder that all scripts keep their files in. Nothing is written anywhere else,
# except by apt, cargo, npm and Docker in their own places.
BERTH_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
BERTH_CACHE=${BERTH_CACHE:-${HOME:-/root}/.cache/berth}
BERTH_LOG_DIR=$BERTH_CACHE/log
# shellcheck disable=SC2034 # read by the scripts that source this file
readonly BERTH_ROOT BERTH_CACHE BERTH_LOG_DIR

# A lock holder may build an image or install packages; twenty minutes is well above the slowest of them.
readonly BERTH_LOCK_WAIT_S=1200

# dockerd, iptables and nft live in sbin, which a user's PATH may lack; rustup installs into ~/.cargo/bin.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
[[ -d ${HOME:-/root}/.cargo/bin ]] && PATH=${HOME:-/root}/.cargo/bin:$PATH
export PATH

# A script that a test starts is told of the test's package. Build scripts of C code take that for a change (ring's watches
# CARGO_MANIFEST_DIR), and everything above them would be built anew, here and again in the next call from a terminal.
for name in "${!CARGO_PKG_@}" CARGO_MANIFEST_DIR CARGO_MANIFEST_LINKS CARGO_MANIFEST_PATH OUT_DIR; do unset "$name"; done

# A headline: what is being done now, with the seconds since the script began.
say() { printf '==> [%3ds] %s\n' "$SECONDS" "$*" >&2; }

# A detail below a headline.
step() { printf '    %s\n' "$*" >&2; }

# Something the user should know, which does not stop the script.
notice() { printf 'NOTICE: %s\n' "$*" >&2; }

# fail WHAT [NEXT]: stops the script with what is wrong and the command that would fix it.
fail() {
    printf '\nFAILED: %s\n' "$1" >&2
    [[ -n ${2-} ]] && printf 'What to do next: %s\n' "$2" >&2
    exit 1
}

# usage_fail WORD: for an argument that is not understood.
usage_fail() {
    printf 'FAILED: unknown argument "%s"\nWhat to do next: %s --help\n' "$1" "$0" >&2
    exit 64
}

# number NAME VALUE MIN: stops the script unless the option's value is a number from MIN to 9999.
number() {
    if ! [[ $2 =~ ^[0-9]{1,4}$ ]] || (($2 < $3)); then fail "$1 takes a number from $3 to 9999" "$0 --help"; fi
}

# make_swap FILE MIB: has the machine swap to this file, too, unless it has so much swap already. Whoever calls it ends that
# with end_swap. Without encryption: for tests and benches only.
make_swap() {
    local have_mib
    have_mib=$(awk 'NR > 1 { kib += $3 - $4 } END { print int(kib / 1024) }' /proc/swaps)
    ((have_mib >= $2)) && return 0
    if ! { fallocate -l "$2MiB" "$1" && chmod 600 "$1" && mkswap -q "$1" && swapon "$1"; }; then
        fail "no $2 MiB of swap could be made in $1" "swapon --show; df -h ${1%/*}"
    fi
    step "swapping to $1 for a while: $2 MiB"
}

# end_swap FILE: the opposite; nothing where there is none.
end_swap() {
    [[ -e $1 ]] || return 0
    swapoff "$1" 2>/dev/null || true
    rm -f "$1"
}

# print_header FILE: a script's help is the comment at its own top, so that the two cannot drift apart.
print_header() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$1"; }

have() { command -v "$1" >/dev/null 2>&1; }

# need_root WHY: stops unless run as root.
need_root() {
    ((EUID == 0)) || fail "$1 needs root" "sudo $0"
}

# retry TIMES PAUSE_S COMMAND...: runs the command until it succeeds, at most TIMES times.
# Its output is the command's own; the answer is the last try's exit code.
retry() {
    local times=$1 pause_s=$2 tries=0 code=0
    shift 2
    while true; do
        code=0
        "$@" || code=$?
        ((code == 0)) && return 0
        tries=$((tries + 1))
        ((tries >= times)) && return "$code"
        sleep "$pause_s"
    done
}

# with_lock NAME COMMAND...: runs the command while no other script holds the same lock, and waits for its
# turn with a bound. The kernel drops the lock when the script ends, however it ends. Locks are not nested.
with_lock() {
    local name=$1 fd
    shift
    mkdir -p "$BERTH_CACHE/lock"
    exec {fd}>"$BERTH_CACHE/lock/$name"
    if ! flock -n "$fd"; then
        step "waiting for another run that holds the lock \"$name\""
        flock -w "$BERTH_LOCK_WAIT_S" "$fd" ||
            fail "the lock \"$name\" was held for $BERTH_LOCK_WAIT_S s" "lslocks | grep berth   # shows who holds it"
    fi
    "$@"
    exec {fd}>&-
}

# detach LOG COMMAND...: starts a process that outlives the script and its terminal. Its pid is in DETACHED_PID.
# Every inherited descriptor is closed: an inherited lock would be held for as long as the process lives.
detach() {
    local log=$1
    shift
    (
        for fd in /proc/"$BASHPID"/fd/*; do
            fd=${fd##*/}
            ((fd > 2)) && eval "exec $fd>&-"
        done
        exec setsid "$@" </dev/null >>"$log" 2>&1
    ) &
    # shellcheck disable=SC2034 # read by the caller
    DETACHED_PID=$!
    disown "$DETACHED_PID"
}

# docker_answers: is there a Docker daemon, and does it speak within ten seconds?
docker_answers() { have docker && timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# need_docker: stops unless a Docker daemon answers.
need_docker() {
    docker_answers || fail "no Docker daemon answers at ${DOCKER_HOST:-its default socket}" "sudo $BERTH_ROOT/scripts/setup"
}

# need_free_mb MB FOLDER: stops unless the folder's file system has this much room.
need_free_mb() {
    local free_mb
    free_mb=$(df --output=avail -BM -- "$2" | tail -n 1 | tr -dc 0-9)
    ((free_mb >= $1)) || fail "$2 has $free_mb MB free, $1 MB are needed" "free some disk space, or set BERTH_CACHE to a folder on a larger disk"
}
