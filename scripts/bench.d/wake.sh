#!/usr/bin/env bash
#
# Wakes stopped cells, with Berth and without it, in turn: how long it takes, and what of that is Berth's own.
#
# usage: scripts/bench wake [--image openclaw|test|both] [--rounds N] [--http-rounds N] [--idle SECONDS]
#
# Starts a coordinator, a node agent and an ingress (release builds) on loopback, makes a cell of the real OpenClaw and one
# of the small test image, and wakes each again and again from the same stopped container:
#
#   berth   one GET /v1/models with a bearer token to the sleeping cell's host name at the front door, until the first
#           byte of its answer
#   floor   the container engine's start call, straight to its socket, until the cell is ready; then the same request
#           straight to the cell. The node agent stands still (SIGSTOP) meanwhile
#
# The two take turns, and every second round the other one begins. Both poll for readiness alike, 50 ms from one answer
# to the next probe. Both begin the same time after the container ended, so the page cache is in the same state.
# Berth's own part, `added`, is the sum of its spans: request read to the engine's start call, and ready seen to the
# request handed to the cell. Each is the growth of a histogram's sum, not a bucket.
#
#   --image           which cells (default: both)
#   --rounds N        counted wakes of OpenClaw in each way (default 9)
#   --http-rounds N   counted wakes of the test image in each way (default 20)
#   --idle SECONDS    between the container's end and the next wake (default 3)
#   --help            this text
#
# Prints `name p50 p10 p90 unit` per line, and as the last line all of it as one line of JSON. Ten minutes.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../stack.sh
. "$BERTH_ROOT/scripts/stack.sh"

which=both
rounds=9
http_rounds=20
idle_s=3

while (($#)); do
    case $1 in
    --image)
        [[ ${2-} =~ ^(openclaw|test|both)$ ]] || fail "--image takes openclaw, test or both" "$0 --help"
        which=$2
        shift
        ;;
    --rounds) number "$1" "${2-}" 1 && rounds=$2 && shift ;;
    --http-rounds) number "$1" "${2-}" 1 && http_rounds=$2 && shift ;;
    --idle) number "$1" "${2-}" 0 && idle_s=$2 && shift ;;
    --help | -h)
        print_header "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) usage_fail "$1" ;;
    esac
    shift
done

declare -A USER_ID CONTAINER

is_exited() { [[ $(docker inspect --format '{{.State.Status}}' "${CONTAINER[$1]}") == exited ]]; }

# Refused while the cell says that it is busy, as it may be just after its start.
falls_asleep() { berth cell sleep "$1" >>"$run_dir/sleep.log" 2>&1; }

sleeps() { # USER
    wait_for "the sleep of $1" 120 falls_asleep "$1"
    wait_for "the sleep of $1, as told" 60 cell_is "$1" stopped
    wait_for "the end of the container of $1" 10 is_exited "$1"
}

make_cell() { # USER IMAGE
    local user=$1
    berth --json user create "$user" --image "$2" --workload openclaw --rest stop --idle-after 1d >"$run_dir/$user.json"
    wait_for "the first start of $user" 240 cell_is "$user" running
    USER_ID[$user]=$(jq -r .id "$run_dir/$user.json")
    CONTAINER[$user]=$(docker ps -q --no-trunc --filter "label=berth.cell=$(jq -r .cell "$run_dir/$user.json")")
    (umask 077 && berth --json user bearer create "$user" | jq -r .token >"$run_dir/$user.bearer")
    sleeps "$user"
}

floor() { # USER
    kill -STOP "${PID_OF[agent]}"
    "$bin/berth-bench-probe" floor --container "${CONTAINER[$1]}" --host "$1.localhost:$port" --user "${USER_ID[$1]}" ||
        { kill -CONT "${PID_OF[agent]}" && return 1; }
    kill -CONT "${PID_OF[agent]}"
}

wake() { # USER
    "$bin/berth-bench-probe" wake --container "${CONTAINER[$1]}" --host "$1.localhost:$port" --front "$front" \
        --bearer-file "$run_dir/$1.bearer" --ingress-metrics "$(<"$run_dir/ingress/metrics-port")" \
        --agent-metrics "$(<"$run_dir/agent-metrics")"
}

# measure USER WAY NUMBER: one wake and the way back to sleep. Number 0 is the first since the cell was made: it fills
# caches and is not counted.
measure() {
    local told load
    sleep "$idle_s"
    load=$(cut -d' ' -f1 /proc/loadavg)
    told=$("$2" "$1") || fail "a wake of $1 ($2) failed" "see above"
    (($3 == 0)) || jq -c --arg cell "$1" --argjson load "$load" '. + {cell: $cell, load: $load}' <<<"$told" >>"$samples"
    step "$(jq -r --arg what "$1 $2 $3" \
        '"\($what): \(.first_byte_ms | round) ms" + if .added_ms then ", added \(.added_ms * 10 | round / 10) ms" else "" end' <<<"$told")"
    # The agent finds out about a start that was not its own by itself.
    wait_for "$1 as told" 60 cell_is "$1" running
    wait_for "the node" 60 node_connected
    sleeps "$1"
}

series() { # USER ROUNDS
    local n ways
    say "$1: $2 wakes in each way"
    for ((n = 0; n <= $2; n++)); do
        ways=(floor wake)
        ((n % 2)) && ways=(wake floor)
        measure "$1" "${ways[0]}" "$n"
        measure "$1" "${ways[1]}" "$n"
    done
}

# Everything that came out, as one object. Percentiles are samples, not interpolated.
# shellcheck disable=SC2016 # $ is jq's
readonly SUMMARY='
    def at(p): sort | .[((length - 1) * p | round)] | . * 100 | round / 100;
    def spread(name; unit): {
        "\(name)_p50_\(unit)": at(0.5), "\(name)_p10_\(unit)": at(0.1), "\(name)_p90_\(unit)": at(0.9) };
    def of(cell; prefix):
        map(select(.cell == cell)) as $all
        | ($all | map(select(.arm == "berth"))) as $berth | ($all | map(select(.arm == "floor"))) as $floor
        | if $berth == [] then {} else
            ($berth | map(.first_byte_ms) | spread("\(prefix)_wake"; "ms"))
            + ($floor | map(.ready_ms) | spread("\(prefix)_floor"; "ms"))
            + ($floor | map(.first_byte_ms) | spread("\(prefix)_floor_answer"; "ms"))
            + {"\(prefix)_cpu_s": ($floor | map(.cpu_s) | at(0.5)), "\(prefix)_added_ms": ($berth | map(.added_ms) | at(0.5))}
            + ($floor | map(.cpu_s) | spread("\(prefix)_cpu"; "s"))
            + ($berth | map(.cpu_s) | spread("\(prefix)_wake_cpu"; "s"))
            + ($berth | map(.added_ms) | spread("\(prefix)_added"; "ms"))
            + ([("wake_ask", "create", "wake_to_start", "engine_start", "await_ready", "ready_to_route", "release",
                 "first_answer", "between") as $span
                | ($berth | map(.["\($span)_ms"]) | spread("\(prefix)_\($span)"; "ms"))] | add)
            + ($floor | map(.engine_start_ms) | spread("\(prefix)_floor_engine_start"; "ms"))
            + {"\(prefix)_n": ($berth | length), "\(prefix)_floor_n": ($floor | length)}
        end;
    of("claw"; "cold") + of("small"; "http_cold")
    + {load_avg_p50: (map(.load) | at(0.5)), load_avg_max: (map(.load) | max), idle_s: $idle, revision: $revision}'

need_root "the bench (containers, packet rules and disk quotas)"
need_docker
images=()
[[ $which == test ]] || images+=(openclaw)
[[ $which == openclaw ]] || images+=(test)
say "building Berth, release"
stack_build release
(cd "$BERTH_ROOT" && cargo build --quiet --locked --release -p berth-bench-probe)
declare -A IMAGE
for image in "${images[@]}"; do
    IMAGE[$image]=$("$BERTH_ROOT/scripts/image" "$image" | tail -n 1 | cut -d' ' -f1)
done

stack_alone
stack_open berth-bench
samples=$run_dir/samples.jsonl
say "starting the front door, the coordinator and the node agent on loopback"
stack_start "${IMAGE[${images[0]}]}" 0 true
for image in "${images[@]}"; do
    user=small
    count=$http_rounds
    [[ $image == openclaw ]] && user=claw && count=$rounds
    say "a cell of ${IMAGE[$image]}"
    make_cell "$user" "${IMAGE[$image]}"
    series "$user" "$count"
done

result=$(jq -cs --argjson idle "$idle_s" --arg revision "$(revision)" "$SUMMARY" "$samples")
jq -r '. as $all | to_entries[] | select(.key | test("_p50_(ms|s)$"))
    | (.key | capture("^(?<name>.*)_p50_(?<unit>.*)$")) as $of
    | "\($of.name) \(.value) \($all["\($of.name)_p10_\($of.unit)"]) \($all["\($of.name)_p90_\($of.unit)"]) \($of.unit)"' \
    <<<"$result"
printf '%s\n' "$result"
