#!/usr/bin/env bash
#
# What a node with many sleeping cells costs: memory and CPU of node agent and ingress, and how long a restart takes.
#
# usage: scripts/bench agent [--cells N] [--settle SECONDS] [--span SECONDS] [--rest stop|freeze]
#
# Starts a coordinator, a node agent and an ingress (release builds) on loopback, makes N cells of the small test image, wakes each
# through the front door with a page and its WebSocket, puts it to sleep again, and then lets the node alone:
#
#   rss      PSS of agent and ingress together (/proc/PID/smaps_rollup), after --settle seconds. What they had with no cell,
#            measured in the same run, stands beside it. Nothing of it may be swapped: swapped bytes count, too
#   idle     their CPU time over --span seconds, in percent of one core: with the coordinator there, and with it gone.
#            Their metrics are read every 15 s meanwhile, as Prometheus would. Beside it, again, the same with no cell
#   adopt    the agent is killed and started again: from its start until it has looked at every cell and reconciled it
#
#   --cells N          cells (default 200)
#   --settle SECONDS   from the last sleep to the look at memory (default 600)
#   --span SECONDS     how long CPU time is counted, each time (default 300)
#   --rest KIND        how the cells sleep (default stop)
#   --help             this text
#
# Prints `name value unit` per line, and as the last line all of it as one line of JSON. Half an hour.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../stack.sh
. "$BERTH_ROOT/scripts/stack.sh"

cells=200
settle_s=600
span_s=300
rest=stop
readonly SCRAPE_EVERY_S=15
readonly ADOPT_ROUNDS=5

while (($#)); do
    case $1 in
    --cells) number "$1" "${2-}" 1 && cells=$2 && shift ;;
    --settle) number "$1" "${2-}" 0 && settle_s=$2 && shift ;;
    --span) number "$1" "${2-}" 1 && span_s=$2 && shift ;;
    --rest)
        [[ ${2-} =~ ^(stop|freeze)$ ]] || fail "--rest takes stop or freeze" "$0 --help"
        rest=$2
        shift
        ;;
    --help | -h)
        print_header "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) usage_fail "$1" ;;
    esac
    shift
done

sleeping=stopped
[[ $rest == freeze ]] && sleeping=frozen

# What the two daemons show of themselves, as Prometheus would read it.
agent_metrics() { curl -fsS --max-time 5 "http://$(<"$run_dir/agent-metrics")/metrics"; }
ingress_metrics() { curl -fsS --max-time 5 "http://$(<"$run_dir/ingress/metrics-port")/metrics"; }

# in_state STATE: how many cells the agent says are in it.
in_state() { agent_metrics | awk -v want="berth_agent_cells{kind=\"$1\"}" '$1 == want { print $2; found = 1 } END { if (!found) print 0 }'; }

all_sleep() { [[ $(in_state "$sleeping") == "$cells" ]]; }

# pss_kb NAME: proportional memory of a daemon, with what is swapped out (proc(5), smaps_rollup).
pss_kb() { awk '/^Pss:|^SwapPss:/ { sum += $2 } END { print sum }' "/proc/${PID_OF[$1]}/smaps_rollup"; }

# cpu_ticks NAME: user and system time of a daemon since its start (proc(5), stat; the name in it holds no blank).
cpu_ticks() { awk '{ print $14 + $15 }' "/proc/${PID_OF[$1]}/stat"; }

# idle_pct SECONDS: CPU of agent and ingress in percent of a core, over so many seconds with their metrics on.
idle_pct() {
    local begun=$EPOCHREALTIME before after left=$1 step_s
    before=$(($(cpu_ticks agent) + $(cpu_ticks ingress)))
    while ((left > 0)); do
        step_s=$((left < SCRAPE_EVERY_S ? left : SCRAPE_EVERY_S))
        sleep "$step_s"
        left=$((left - step_s))
        agent_metrics >/dev/null
        ingress_metrics >/dev/null
    done
    after=$(($(cpu_ticks agent) + $(cpu_ticks ingress)))
    jq -n --argjson ticks $((after - before)) --argjson hz "$(getconf CLK_TCK)" --argjson begun "$begun" \
        --argjson ended "$EPOCHREALTIME" '$ticks / $hz / ($ended - $begun) * 10000 | round / 100'
}

# memory_mb: PSS of agent and ingress together.
memory_mb() { jq -n --argjson kb $(($(pss_kb agent) + $(pss_kb ingress))) '$kb / 1024 * 10 | round / 10'; }

make_and_wake() { # NUMBER
    local user=u$1
    berth --json user create "$user" --workload openclaw --memory 64MiB --disk 32MiB --rest "$rest" --idle-after 1d \
        >"$run_dir/user.json"
    wait_for "the first start of $user" 120 cell_is "$user" running
    (umask 077 && berth --json user bearer create "$user" | jq -r .token >"$run_dir/bearer")
    falls_asleep "$user"
    "$bin/berth-bench-probe" websocket --host "$user.localhost:$port" --front "$front" \
        --bearer-file "$run_dir/bearer" >>"$samples"
    falls_asleep "$user"
}

try_sleep() { berth cell sleep "$1" "${sleep_flags[@]}" >>"$run_dir/sleep.log" 2>&1; }

# Refused while the cell says that it is busy, as it may be just after its start.
falls_asleep() { wait_for "the sleep of $1" 60 try_sleep "$1"; }

# adopt_s: kills the agent, starts it again, and tells how long it took until it knew every cell.
adopt_s() {
    local begun
    kill -KILL "${PID_OF[agent]}"
    wait "${PID_OF[agent]}" 2>/dev/null || true
    forget_daemon agent
    rm -f "$run_dir/agent-metrics"
    begun=$EPOCHREALTIME
    stack_agent
    wait_for "the agent" 60 test -s "$run_dir/agent-metrics"
    wait_for "the agent's look at $cells cells" 300 all_sleep
    jq -n --argjson begun "$begun" --argjson ended "$EPOCHREALTIME" '$ended - $begun'
}

need_root "the bench (containers, packet rules and disk quotas)"
need_docker
sleep_flags=()
[[ $rest == freeze ]] && sleep_flags=(--freeze)
say "building Berth, release"
stack_build release
(cd "$BERTH_ROOT" && cargo build --quiet --locked --release -p berth-bench-probe)
image=$("$BERTH_ROOT/scripts/image" test | tail -n 1 | cut -d' ' -f1)

stack_alone
stack_open berth-bench
samples=$run_dir/samples.jsonl
say "starting the front door, the coordinator and the node agent on loopback"
stack_start "$image" 0 false

say "with no cell: $((span_s < 60 ? span_s : 60)) s"
idle_pct_0=$(idle_pct $((span_s < 60 ? span_s : 60)))
rss_mb_0=$(memory_mb)
step "$rss_mb_0 MB, $idle_pct_0 % of a core"

say "$cells cells, each woken by a page with a WebSocket and asleep again"
for ((n = 1; n <= cells; n++)); do
    make_and_wake "$n"
    ((n % 20)) || step "$n of $cells"
done
wait_for "the sleep of all" 60 all_sleep

say "settling: $settle_s s"
sleep "$settle_s"
rss_mb=$(memory_mb)
agent_mb=$(jq -n --argjson kb "$(pss_kb agent)" '$kb / 1024 * 10 | round / 10')
ingress_mb=$(jq -n --argjson kb "$(pss_kb ingress)" '$kb / 1024 * 10 | round / 10')
step "$rss_mb MB: agent $agent_mb, ingress $ingress_mb"

say "idle, with the coordinator: $span_s s"
idle_pct=$(idle_pct "$span_s")
step "$idle_pct % of a core"

say "a restart of the agent, $ADOPT_ROUNDS times"
for ((n = 1; n <= ADOPT_ROUNDS; n++)); do
    adopt_s >>"$run_dir/adopt"
    step "$(tail -n 1 "$run_dir/adopt") s"
done

say "idle, without the coordinator: $span_s s"
kill -TERM "${PID_OF[coordinator]}"
wait "${PID_OF[coordinator]}" 2>/dev/null || true
forget_daemon coordinator
idle_pct_alone=$(idle_pct "$span_s")
step "$idle_pct_alone % of a core"

result=$(jq -cs --slurpfile adopt "$run_dir/adopt" --argjson rss "$rss_mb" --argjson rss0 "$rss_mb_0" \
    --argjson agent "$agent_mb" --argjson ingress "$ingress_mb" --argjson idle "$idle_pct" --argjson idle0 "$idle_pct_0" \
    --argjson alone "$idle_pct_alone" --argjson n "$cells" --argjson settle "$settle_s" --argjson span "$span_s" \
    --arg rest "$rest" --argjson load "$(cut -d' ' -f1 /proc/loadavg)" --arg revision "$(revision)" '
    def at(p): sort | .[((length - 1) * p | round)] | . * 100 | round / 100;
    (map(.echo_ms)) as $echo
    | {"rss_mb_\($n)": $rss, "agent_mb_\($n)": $agent, "ingress_mb_\($n)": $ingress, rss_mb_0: $rss0,
       "idle_cpu_pct_\($n)": $idle, "idle_cpu_pct_alone_\($n)": $alone, idle_cpu_pct_0: $idle0,
       "adopt_s_\($n)": ($adopt | at(0.5)), adopt_min_s: ($adopt | at(0)), adopt_max_s: ($adopt | at(1)),
       websocket_wake_p50_ms: ($echo | at(0.5)), websocket_wake_p10_ms: ($echo | at(0.1)),
       websocket_wake_p90_ms: ($echo | at(0.9)), cells: $n, rest: $rest, settle_s: $settle, span_s: $span,
       load_avg: $load, revision: $revision}' "$samples")
jq -r 'to_entries[] | "\(.key) \(.value)"' <<<"$result"
printf '%s\n' "$result"
