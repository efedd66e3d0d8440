#!/usr/bin/env bash
#
# What snapshots and restores of a large cell cost the daemons that have them made: how far their own memory grows.
#
# usage: scripts/bench snapshots [--rounds N] [--mb N]
#
# Starts a bucket, a coordinator, a node agent and an ingress (release builds) on loopback, fills one cell of the test image, and
# then in each round has some of it changed, has a snapshot taken, and the cell restored to it. The work is a
# worker's, a child that ends with it (docs/decisions/0006): what is measured is that the daemons' memory does not move with it.
#
#   rss     before the round (VmRSS of /proc/PID/status)
#   delta   how far above that it ever was in the round (VmHWM, which clear_refs has set back; proc(5)), of the agent and of the
#           coordinator, each for the snapshot and for the restore
#   still   the same over as many seconds without either, as the control
#
#   --rounds N   how often (default 5)
#   --mb N       what is in the cell: N/10 MB in small files of 10 kB, the rest in files of 20 MB (default 200)
#   --help       this text
#
# Prints `name value` per line, and as the last line all of it as one line of JSON: medians, and the most of each.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../stack.sh
. "$BERTH_ROOT/scripts/stack.sh"

rounds=5
mb=200
while (($#)); do
    case $1 in
    --rounds) number "$1" "${2-}" 1 && rounds=$2 && shift ;;
    --mb) number "$1" "${2-}" 40 && mb=$2 && shift ;;
    --help | -h)
        print_header "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) usage_fail "$1" ;;
    esac
    shift
done

readonly DAEMONS=(agent coordinator)

# of_status NAME FIELD: kB of a daemon, from its /proc/PID/status.
of_status() { awk -v field="$2:" '$1 == field { print $2 }' "/proc/${PID_OF[$1]}/status"; }

# grows WHAT COMMAND...: how far each daemon grew while the command ran, as lines of $samples. Its seconds are in took_s.
grows() {
    local what=$1 name begun=$EPOCHREALTIME
    local -A before
    shift
    for name in "${DAEMONS[@]}"; do
        echo 5 >"/proc/${PID_OF[$name]}/clear_refs"
        before[$name]=$(of_status "$name" VmRSS)
    done
    "$@"
    took_s=$(jq -n --argjson begun "$begun" --argjson ended "$EPOCHREALTIME" '$ended - $begun')
    for name in "${DAEMONS[@]}"; do
        jq -cn --arg what "$what" --arg name "$name" --argjson before "${before[$name]}" \
            --argjson most "$(of_status "$name" VmHWM)" --argjson took "$took_s" \
            '{what: $what, name: $name, rss_mb: ($before / 1024), delta_mb: (($most - $before) / 1024), took_s: $took}'
    done >>"$samples"
}

fill() {
    local n
    mkdir "$folder/small" "$folder/large"
    head -c $((mb * 100000)) /dev/urandom | split -b 10000 -a 5 - "$folder/small/"
    for ((n = 0; n < mb * 9 / 10 / 20; n++)); do head -c 20000000 /dev/urandom >"$folder/large/$n"; done
    chown -R --reference="$folder" "$folder/small" "$folder/large"
}

change() {
    head -c 20000000 /dev/urandom >"$folder/large/0"
    find "$folder/small" -type f | sort | sed -n 1,200p | while read -r file; do head -c 10000 /dev/urandom >"$file"; done
}

snapshot() { berth --json snapshot now bench >"$run_dir/snapshot.json"; }
restore() { berth snapshot restore bench "$(jq -er .id "$run_dir/snapshot.json")" --yes >"$run_dir/restore.log"; }

need_root "the bench (containers, packet rules and disk quotas)"
need_docker
have jq || fail "jq is missing" "apt-get install jq"
need_free_mb $((6 * mb + 1000)) /var/tmp
say "building Berth, release"
stack_build release
image=$("$BERTH_ROOT/scripts/image" test | tail -n 1 | cut -d' ' -f1)

stack_alone
stack_open berth-bench
samples=$run_dir/samples.jsonl
stack_bucket
say "starting the front door, the coordinator and the node agent on loopback"
stack_start "$image" 0 false
berth --json user create bench --workload openclaw --memory 128MiB --disk "$((3 * mb + 100))MiB" --rest stop --idle-after 1d \
    >"$run_dir/user.json"
wait_for "the first start" 120 cell_is bench running
folder=$(find "$run_dir/agent/cells" -mindepth 2 -maxdepth 2 -name data | sed -n 1p)
say "filling the cell: $mb MB"
fill
snapshot

for ((n = 1; n <= rounds; n++)); do
    change
    grows snapshot snapshot
    snapshot_s=$took_s
    grows restore restore
    wait_for "the cell, after its restore," 60 cell_is bench running
    grows still sleep "$snapshot_s"
    step "round $n of $rounds: $(jq -rs --argjson n 6 '.[-$n:] | map("\(.what) \(.name) \(.delta_mb * 10 | round / 10)") | join(", ")' "$samples") MB"
done

result=$(jq -cs --argjson mb "$mb" --argjson rounds "$rounds" --argjson load "$(cut -d' ' -f1 /proc/loadavg)" \
    --arg revision "$(revision)" '
    def tenth: . * 10 | round / 10;
    def median: sort | .[(length - 1) / 2 | floor];
    (group_by([.what, .name]) | map(
        (map(.delta_mb)) as $deltas | "\(.[0].name)_\(.[0].what)" as $key
        | {"\($key)_delta_mb": ($deltas | median | tenth), "\($key)_delta_max_mb": ($deltas | max | tenth)}) | add)
    + {agent_rss_mb: (map(select(.name == "agent").rss_mb) | median | tenth),
       snapshot_s: (map(select(.what == "snapshot").took_s) | median | tenth),
       restore_s: (map(select(.what == "restore").took_s) | median | tenth),
       mb: $mb, rounds: $rounds, load_avg: $load, revision: $revision}' "$samples")
jq -r 'to_entries[] | "\(.key) \(.value)"' <<<"$result"
printf '%s\n' "$result"
