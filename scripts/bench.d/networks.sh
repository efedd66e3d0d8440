#!/usr/bin/env bash
#
# Compares the two ways to give cells a network: one bridge per cell, and one bridge for all without traffic between
# containers. What came out and what was chosen: docs/decisions/0001-one-bridge-per-cell.md.
#
# usage: scripts/bench networks [ROUNDS]
#
#   ROUNDS     how often each is made and removed, alternating (default 12)
#   --help     this text
#
# Prints `name value unit` per line on stdout: the median (and the slowest) of each step, packet rules and interfaces
# per cell, kernel memory per bridge, and whether a neighbour's name can be resolved. Needs dockerd and the test image.
# Removes what it made, by id, also when it is interrupted.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly IMAGE=berth/test-cell:dev
# Bridges that are made at once in order to see what one costs.
readonly MANY=40
readonly RUN=berth.bench=$$

cleanup() {
    local id
    for id in $(docker ps -aq --no-trunc --filter "label=$RUN"); do docker rm -fv "$id" >/dev/null 2>&1 || true; done
    for id in $(docker network ls -q --no-trunc --filter "label=$RUN"); do docker network rm "$id" >/dev/null 2>&1 || true; done
}

# timed STEP COMMAND...: runs the command, keeps its milliseconds under the step's name, its output in REPLY.
declare -A TIMES=()
timed() {
    local step=$1 begin end
    shift
    begin=$(date +%s%N)
    REPLY=$("$@")
    end=$(date +%s%N)
    TIMES[$step]+=" $(((end - begin) / 1000))"
}

# show STEP: median and slowest in milliseconds.
show() {
    tr ' ' '\n' <<<"${TIMES[$1]}" | grep . | sort -n | awk -v name="$1" '
        { value[NR] = $1 / 1000 }
        END { printf "%s_p50 %.1f ms\n%s_max %.1f ms\n", name, value[int((NR + 1) / 2)], name, value[NR] }'
}

make_network() { # SUBNET
    docker network create --driver bridge --subnet "$1" --label "$RUN" \
        --opt com.docker.network.bridge.enable_icc=false "berth-bench-$$-${1//[.\/]/-}"
}

make_cell() { # NETWORK
    docker create --network "$1" --label "$RUN" --init --read-only --cap-drop ALL --user 20001:20001 \
        --tmpfs /tmp --tmpfs /home/node/.openclaw:uid=20001,gid=20001 "$IMAGE"
}

rules() { { iptables-save; ip6tables-save; } 2>/dev/null | grep -c '^-A' || true; }
links() { find /sys/class/net -mindepth 1 -maxdepth 1 | wc -l; }
# Kernel memory, not that of processes: slabs, per-CPU memory, and what pages tables take.
kernel_kb() {
    sync
    awk '/^(Slab|Percpu|PageTables|KernelStack):/ { sum += $2 } END { print sum }' /proc/meminfo
}

# resolves PID NAME: does Docker's name server tell the network of this process where the name lives?
resolves() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    nsenter --net --target "$1" unshare --mount sh -c '
        file=$(mktemp) && echo "nameserver 127.0.0.11" >"$file" && mount --bind "$file" /etc/resolv.conf
        rm -f "$file"
        timeout 5 getent ahostsv4 "$1" >/dev/null' - "$2"
}

# one PREFIX NETWORK: one cell's life in that network.
one() {
    local id
    timed "$1_create" make_cell "$2"
    id=$REPLY
    timed "$1_start" docker start "$id"
    timed "$1_remove" docker rm -fv "$id"
}

main() {
    local rounds=${1:-12} shared own n before after before_rules before_links id other
    [[ $rounds == --help ]] && { print_header "${BASH_SOURCE[0]}" && exit 0; }
    [[ $rounds =~ ^[1-9][0-9]{0,3}$ ]] || usage_fail "$rounds"
    need_docker
    docker image inspect "$IMAGE" >/dev/null 2>&1 || fail "the image $IMAGE is missing" "scripts/image test"
    trap cleanup EXIT

    say "one cell's life, $rounds times each, alternating"
    shared=$(make_network 10.63.0.0/16)
    one warmup "$shared"
    for ((n = 0; n < rounds; n++)); do
        one shared "$shared"
        timed own_network make_network "10.62.0.$((n % 32 * 8))/29"
        own=$REPLY
        one own "$own"
        timed own_network_remove docker network rm "$own"
    done
    for n in shared_create shared_start shared_remove own_network own_create own_start own_remove own_network_remove; do
        show "$n"
    done

    say "what stands for each cell while it runs"
    before_rules=$(rules) before_links=$(links)
    id=$(make_cell "$shared") && docker start "$id" >/dev/null
    echo "shared_rules_per_cell $(($(rules) - before_rules)) rules"
    echo "shared_links_per_cell $(($(links) - before_links)) interfaces"
    docker rm -fv "$id" >/dev/null
    before_rules=$(rules) before_links=$(links)
    own=$(make_network 10.62.1.0/29)
    id=$(make_cell "$own") && docker start "$id" >/dev/null
    echo "own_rules_per_cell $(($(rules) - before_rules)) rules"
    echo "own_links_per_cell $(($(links) - before_links)) interfaces"
    docker rm -fv "$id" >/dev/null
    docker network rm "$own" >/dev/null

    say "$MANY bridges at once"
    before=$(kernel_kb) before_rules=$(rules)
    for ((n = 0; n < MANY; n++)); do timed nth_network make_network "10.62.$((2 + n / 32)).$((n % 32 * 8))/29"; done
    after=$(kernel_kb)
    echo "bridge_kernel_memory $(((after - before) / MANY)) kB"
    echo "bridge_rules $((($(rules) - before_rules) / MANY)) rules"
    echo "network_number_${MANY}_took $(($(awk '{ print $NF }' <<<"${TIMES[nth_network]}") / 1000)) ms"
    one "start_beside_$MANY" "$shared"
    show "start_beside_${MANY}_start"

    say "what neighbours on a shared bridge learn of each other"
    id=$(make_cell "$shared") && docker start "$id" >/dev/null
    other=$(docker inspect --format '{{.State.Pid}}' "$id")
    n=$(make_cell "$shared") && docker rename "$n" "berth-bench-$$-neighbour" && docker start "$n" >/dev/null
    if resolves "$other" "berth-bench-$$-neighbour"; then
        echo "shared_neighbours_name_resolves 1 bool"
    else
        echo "shared_neighbours_name_resolves 0 bool"
    fi
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
