#!/usr/bin/env bash
#
# What a frozen cell costs and how fast it wakes, with the real OpenClaw: frozen and pushed out, beside the same cells paused
# without the push (control) and stopped (cold), in one run.
#
# usage: scripts/bench sleep [--cells N] [--frozen SECONDS] [--idle SECONDS] [--cold N] [--control N] [--chat N]
#
# Starts a coordinator, a node agent, an ingress and a model (release builds) on loopback, makes N cells of OpenClaw and
# freezes all of them. After --frozen seconds, in which two of them are woken and freeze again, the others are woken one by
# one through the front door, each timed until the first byte of /v1/models: the first wakes after their first freeze. Then
# the same once more: later ones. Then some for a chat turn. The control arm, before all that, pauses and unpauses the
# container directly, with the node agent stopped (SIGSTOP) meanwhile; the cold arm stops and wakes. Berth's own part is the
# sum of its spans: `added_ms` is what Berth puts between, `added_with_read_back_ms` with the pages of the last wake that it
# reads back before the cell goes on (those reads are the cell's own page faults otherwise). What a frozen cell holds is told
# in whole (`frozen_resident_mb`), and apart as pages and what the kernel keeps for it.
#
#   --cells N          cells of OpenClaw, 3 or more (default 12: two are the others that are woken in between)
#   --frozen SECONDS   how long they stay frozen before they are woken, each time (default 300)
#   --idle SECONDS     how long cells of the other arms rest before they are woken (default 60)
#   --cold N, --control N, --chat N   wakes in these arms (default 3, 5, 5)
#   --help             this text
#
# Page cache: the same in all arms. Each rests for longer than the ten seconds after which some kernels push idle pages out.
# Makes a swap file for its own time where the machine has less swap than the cells need. Prints `name value` per line, and as
# the last line all of it as one line of JSON. Forty minutes.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../stack.sh
. "$BERTH_ROOT/scripts/stack.sh"

cells=12
frozen_s=300
idle_s=60
cold=3
control=5
chat=5

while (($#)); do
    case $1 in
    --cells) number "$1" "${2-}" 3 && cells=$2 && shift ;;
    --frozen) number "$1" "${2-}" 0 && frozen_s=$2 && shift ;;
    --idle) number "$1" "${2-}" 0 && idle_s=$2 && shift ;;
    --cold) number "$1" "${2-}" 1 && cold=$2 && shift ;;
    --control) number "$1" "${2-}" 1 && control=$2 && shift ;;
    --chat) number "$1" "${2-}" 1 && chat=$2 && shift ;;
    --help | -h)
        print_header "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) usage_fail "$1" ;;
    esac
    shift
done
readonly MEASURED=$((cells - 2))
((control <= MEASURED && cold <= MEASURED && chat <= MEASURED)) ||
    fail "an arm has more wakes than there are cells to wake ($MEASURED)" "$0 --help"

declare -A USER_ID CONTAINER
readonly CHAT='{"model":"openclaw/default","stream":true,"messages":[{"role":"user","content":"ping"}]}'

probe() { "$bin/berth-bench-probe" "$@"; }

# record ARM JSON: one line of what was measured.
record() { jq -c --arg kind "$1" --argjson load "$(cut -d' ' -f1 /proc/loadavg)" '. + {kind: $kind, load: $load}' <<<"$2" >>"$samples"; }

# Memory that is in use on the whole machine, in kB.
used_kb() { awk '$1 == "MemTotal:" { total = $2 } $1 == "MemAvailable:" { print total - $2 }' /proc/meminfo; }
pages_out() { awk '$1 == "pswpout" { print $2 }' /proc/vmstat; }

state_is() { [[ $(docker inspect --format '{{.State.Status}}' "${CONTAINER[$1]}") == "$2" ]]; }
falls_asleep() { berth cell sleep "$@" >>"$run_dir/sleep.log" 2>&1; }

# freezes USER TURN: puts it to sleep, reads back what it holds, and records what that cost. A gateway says that it is busy
# just after its start, and 30 questions in a minute are all that it answers: so it is asked every few seconds. What it cost
# counts from the first question on: a cell that then says that it is busy may have had memory pushed out already.
freezes() {
    local user=$1 used out begun asked=0 until=$((SECONDS + 180))
    used=$(used_kb) out=$(pages_out)
    while :; do
        begun=$EPOCHREALTIME asked=$((asked + 1))
        falls_asleep "$user" --freeze && break
        ((SECONDS < until)) || fail "$user did not fall asleep: $(tail -n 2 "$run_dir/sleep.log")" "berth cell why $user"
        sleep 3
    done
    record freeze "$(probe held --container "${CONTAINER[$user]}" | jq -c --arg turn "$2" --argjson used "$used" --argjson now "$(used_kb)" \
        --argjson out "$out" --argjson out_now "$(pages_out)" --argjson begun "$begun" --argjson ended "$EPOCHREALTIME" \
        --argjson page "$(getconf PAGESIZE)" --argjson asked "$asked" '. + {turn: $turn, asked: $asked, freed_mb: (($used - $now) / 1024), freeze_ms: (($ended - $begun) * 1000),
            written_mb: (($out_now - $out) * $page / 1048576)}')"
}

make_cell() { # USER
    local user=$1
    # Of the disk it uses some megabytes; a full-sized one each, beside the swap, is more than a small machine has.
    berth --json user create "$user" --workload openclaw --rest freeze --idle-after 1d --disk 1GiB >"$run_dir/$user.json"
    (umask 077 && berth --json user bearer create "$user" | jq -r .token >"$run_dir/$user.bearer")
}

knows_cell() { # USER
    USER_ID[$1]=$(jq -r .id "$run_dir/$1.json")
    CONTAINER[$1]=$(docker ps -q --no-trunc --filter "label=berth.cell=$(jq -r .cell "$run_dir/$1.json")")
}

wake_probe() { # WAY USER ARGUMENTS...
    local way=$1 user=$2
    shift 2
    probe "$way" --container "${CONTAINER[$user]}" --host "$user.localhost:$port" --front "$front" \
        --bearer-file "$run_dir/$user.bearer" --ingress-metrics "$(<"$run_dir/ingress/metrics-port")" \
        --agent-metrics "$(<"$run_dir/agent-metrics")" "$@"
}

told() { step "$1: $(jq -r '"\(.first_byte_ms | round) ms" + if .added_ms then ", added \(.added_ms * 10 | round / 10) ms" else "" end' <<<"$2")"; }

# rest_meanwhile: so long all stay frozen, but for two that are woken and freeze again.
rest_meanwhile() {
    local user
    say "frozen for $frozen_s s, with two others woken in between"
    sleep $((frozen_s / 2))
    for user in "c$((cells - 1))" "c$cells"; do
        wake_probe thaw "$user" >/dev/null
        freezes "$user" between
    done
    sleep $((frozen_s - frozen_s / 2))
}

wakes() { # TURN
    local n got
    say "woken: $1"
    for ((n = 1; n <= MEASURED; n++)); do
        record held "$(probe held --container "${CONTAINER[c$n]}" | jq -c --arg turn "$1" '. + {turn: $turn}')"
        got=$(wake_probe thaw "c$n")
        record thaw "$(jq -c --arg turn "$1" '. + {turn: $turn}' <<<"$got")"
        told "c$n" "$got"
        freezes "c$n" again
    done
}

need_root "the bench (containers, packet rules, disk quotas and swap)"
need_docker
say "building Berth, release"
stack_build release
(cd "$BERTH_ROOT" && cargo build --quiet --locked --release -p berth-bench-probe)
image=$("$BERTH_ROOT/scripts/image" openclaw | tail -n 1 | cut -d' ' -f1)

stack_alone
stack_open berth-bench
stack_swap $((cells * 1100))
samples=$run_dir/samples.jsonl
say "starting the front door, the coordinator, the model and the node agent on loopback"
stack_start "$image" 0 true

say "$cells cells of $image"
for ((n = 1; n <= cells; n++)); do make_cell "c$n"; done
for ((n = 1; n <= cells; n++)); do
    wait_for "the first start of c$n" 600 cell_is "c$n" running
    knows_cell "c$n"
done
# As long as a cell has to be idle by default before it is frozen: a gateway's first minutes have jobs of their own.
sleep 300

# Before anything was ever pushed out of them.
say "the control: paused without the push, $control times, for $idle_s s"
for ((n = 1; n <= control; n++)); do
    kill -STOP "${PID_OF[agent]}"
    probe pause --container "${CONTAINER[c$n]}" >/dev/null || { kill -CONT "${PID_OF[agent]}" && fail "c$n was not paused" "docker ps"; }
    sleep "$idle_s"
    record control_held "$(probe held --container "${CONTAINER[c$n]}")"
    got=$(probe unpause --container "${CONTAINER[c$n]}" --host "c$n.localhost:$port" --user "${USER_ID[c$n]}") || got=
    kill -CONT "${PID_OF[agent]}"
    [[ -n $got ]] || fail "c$n did not go on" "docker ps"
    record control "$got"
    told "c$n" "$got"
    wait_for "the node" 60 node_connected
done

say "all are frozen"
for ((n = 1; n <= cells; n++)); do freezes "c$n" first; done

rest_meanwhile
wakes first
rest_meanwhile
wakes later

say "a chat turn, $chat times, after $idle_s s"
sleep "$idle_s"
for ((n = 1; n <= chat; n++)); do
    got=$(wake_probe thaw "c$n" --path /v1/chat/completions --post "$CHAT")
    record chat "$got"
    told "c$n" "$got"
done

say "the cold arm: stopped, $cold times, for $idle_s s"
for ((n = 1; n <= cold; n++)); do
    until falls_asleep "c$n"; do sleep 3; done
    wait_for "the end of c$n" 60 state_is "c$n" exited
    sleep "$idle_s"
    got=$(wake_probe wake "c$n")
    record cold "$got"
    told "c$n" "$got"
done

# shellcheck disable=SC2016 # $ is jq's
readonly SUMMARY='
    def at(p): sort | if . == [] then null else .[((length - 1) * p | round)] | . * 100 | round / 100 end;
    def of(kind): map(select(.kind == kind));
    def mb: map(. / 1048576);
    . as $all
    | ($all | of("thaw")) as $thaw | ($all | of("cold") | map(.first_byte_ms)) as $cold
    | ($thaw | map(.first_byte_ms)) as $wake | ($all | of("control") | map(.first_byte_ms)) as $control
    | ($all | of("freeze")) as $freeze
    | {frozen_resident_mb: ($all | of("held") | map(.resident) | mb | at(0.5)),
       frozen_resident_max_mb: ($all | of("held") | map(.resident) | mb | at(1)),
       frozen_pages_mb: ($all | of("held") | map(.resident - .kernel) | mb | at(0.5)),
       frozen_kernel_mb: ($all | of("held") | map(.kernel) | mb | at(0.5)),
       frozen_swapped_mb: ($all | of("held") | map(.swapped) | mb | at(0.5)),
       control_resident_mb: ($all | of("control_held") | map(.resident) | mb | at(0.5)),
       ram_freed_mb: ($freeze | map(select(.turn == "first") | .freed_mb) | at(0.5)),
       freeze_p50_ms: ($freeze | map(.freeze_ms) | at(0.5)), freeze_first_p50_ms: ($freeze | map(select(.turn == "first") | .freeze_ms) | at(0.5)),
       frozen_wake_p50_ms: ($wake | at(0.5)), frozen_wake_p95_ms: ($wake | at(0.95)), frozen_wake_min_ms: ($wake | at(0)), frozen_wake_max_ms: ($wake | at(1)),
       frozen_wake_first_p50_ms: ($thaw | map(select(.turn == "first") | .first_byte_ms) | at(0.5)),
       frozen_wake_later_p50_ms: ($thaw | map(select(.turn == "later") | .first_byte_ms) | at(0.5)), frozen_wakes: ($wake | length),
       control_wake_p50_ms: ($control | at(0.5)), control_wakes: ($control | length),
       chat_first_byte_p50_ms: ($all | of("chat") | map(.first_byte_ms) | at(0.5)), chats: ($all | of("chat") | length),
       cold_wake_p50_ms: ($cold | at(0.5)), cold_wakes: ($cold | length),
       speedup: (if $wake == [] or $cold == [] then null else (($cold | at(0.5)) / ($wake | at(0.5)) * 10 | round / 10) end),
       added_ms: ($thaw | map(.added_ms) | at(0.5)), added_p95_ms: ($thaw | map(.added_ms) | at(0.95)),
       added_with_read_back_ms: ($thaw | map(.added_ms + .read_back_ms) | at(0.5)),
       resident_after_wake_mb: ($thaw | map(.resident) | mb | at(0.5)),
       swap_written_mb_per_sleep: ($freeze | map(select(.turn == "again") | .written_mb) | at(0.5)),
       swap_written_mb_first_sleep: ($freeze | map(select(.turn == "first") | .written_mb) | at(0.5))}
    + ([("wake_ask", "wake_to_unpause", "read_back", "engine_unpause", "unpause_confirmed", "resume", "await_ready", "ready_to_route", "release",
         "first_answer", "between") as $span | {"\($span)_p50_ms": ($thaw | map(.["\($span)_ms"]) | at(0.5))}] | add)
    + {cells: $cells, frozen_s: $frozen, idle_s: $idle, page_cache: "evicted when idle, the same in all arms",
       load_avg_p50: (map(.load) | at(0.5)), load_avg_max: (map(.load) | max), revision: $revision}'

result=$(jq -cs --argjson cells "$cells" --argjson frozen "$frozen_s" --argjson idle "$idle_s" --arg revision "$(revision)" "$SUMMARY" "$samples")
jq -r 'to_entries[] | "\(.key) \(.value)"' <<<"$result"
printf '%s\n' "$result"
