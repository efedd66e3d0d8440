#!/usr/bin/env bash
#
# Snapshots of a cell and restores of them, beside restic and rclone: how long, how many bytes, how many requests.
#
# usage: scripts/bench sync [--server NAME] [--rounds N] [--delay MS] [--chunk BYTES]... [--times N] [--without TOOL]...
#
# A cell of 200 MB: 4,000 small files, three SQLite databases and five files of 20 MB. In each round each tool, in turn,
# against the same S3 server on loopback, with a copy of the cell of its own: first snapshot, one without a change, one
# after an active hour (20 appends, 30 edits, one row of a hundred of each database, a new file of 2 MB), and a restore
# into an empty folder. All pass through a small relay of our own, which counts. Of Berth a worker per step, started by a
# process that does as a daemon does and whose memory is watched. Before each step all that waits to be written is
# (sync(2)). What was restored is compared: of Berth and restic the tree hash, of rclone, which keeps no modes, names and
# contents. Nothing is cached by Berth but hashes of files; restic has its cache.
#
#   --server NAME   `embedded`: that of our tests, in the bench's own process (default); `garage`: Garage, a real one, which
#                   is built first where it is missing (a quarter of an hour)
#   --rounds N      how often (default 5)
#   --delay MS      added each way by the relay (default none)
#   --chunk BYTES   how large Berth's chunks are on average, a power of two (default 262144). Said again: another
#                   arm of Berth with that size, whose figures begin with `chunkBYTES_`
#   --times N       a cell N times as large, with the same changes (default 1)
#   --without TOOL  without restic, or without rclone
#   --help          this text
#
# What the goals ask for is `scripts/bench sync --server garage`, and the same with `--delay 30`, on a machine that does
# nothing else. Expect a quarter of an hour each on two cores, by the trial's times, and ten minutes more for the first build.
#
# Prints one line of JSON. Each figure is the median of the rounds, `NAME_range` the least and the most; Berth's have plain
# names, the others' begin with `restic_` and `rclone_`; `ratio_STEP_vs_TOOL` are medians of the rounds' own ratios;
# `restore_durable_s` is until what was restored would outlive a power cut (syncfs(2)), as Berth's restore alone is at its end;
# `worker_rss_mb` is the most that any worker held, `daemon_rss_delta_mb` by how much whoever started them ever grew. On
# stderr: each round, and at the end which goals were met. Needs restic, rclone and 800 MB in /var/tmp for each arm of each
# round, since nothing is removed before the end: ext4 makes new files slowly for five minutes where many were removed. So do
# not begin sooner behind another run.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../stack.sh
. "$BERTH_ROOT/scripts/stack.sh"

without=()
chunks=()
export SYNC_SERVER=embedded
while (($#)); do
    case $1 in
    --server)
        [[ ${2-} == embedded || ${2-} == garage ]] || fail "--server takes embedded or garage" "$0 --help"
        SYNC_SERVER=$2
        shift
        ;;
    --rounds)
        [[ ${2-} =~ ^[1-9][0-9]{0,2}$ ]] || fail "--rounds takes a number from 1 to 999" "$0 --help"
        export SYNC_ROUNDS=$2
        shift
        ;;
    --chunk)
        [[ ${2-} =~ ^[1-9][0-9]{3,8}$ ]] || fail "--chunk takes a number of bytes, such as 65536" "$0 --help"
        chunks+=("$2")
        shift
        ;;
    --delay)
        [[ ${2-} =~ ^[0-9]{1,4}$ ]] || fail "--delay takes milliseconds, such as 30" "$0 --help"
        export SYNC_DELAY_MS=$2
        shift
        ;;
    --times)
        [[ ${2-} =~ ^[1-9][0-9]?$ ]] || fail "--times takes a number from 1 to 99" "$0 --help"
        export SYNC_TIMES=$2
        shift
        ;;
    --without)
        [[ ${2-} == restic || ${2-} == rclone ]] || fail "--without takes restic or rclone" "$0 --help"
        without+=("$2")
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

have jq || fail "jq is missing" "apt-get install jq"
for tool in restic rclone; do
    [[ " ${without[*]-} " == *" $tool "* ]] || have "$tool" || fail "$tool is missing" "apt-get install $tool"
done
[[ $SYNC_SERVER == embedded || -x $BERTH_CACHE/garage/bin/garage ]] || "$BERTH_ROOT/scripts/setup" --garage
SYNC_WITHOUT=$(IFS=,; echo "${without[*]-}")
SYNC_CHUNK_BYTES=$(IFS=,; echo "${chunks[*]-}")
export SYNC_WITHOUT SYNC_CHUNK_BYTES BERTH_CACHE
# Each arm of a round has its copy of the cell, what is restored, and its part of the bucket, which stay until the end.
arms=$((${#chunks[@]} > 1 ? ${#chunks[@]} : 1))
for tool in restic rclone; do
    [[ " ${without[*]-} " == *" $tool "* ]] || arms=$((arms + 1))
done
need_mb=$((500 + 800 * arms * ${SYNC_ROUNDS:-5}))
need_free_mb $((need_mb * ${SYNC_TIMES:-1})) /var/tmp
cd "$BERTH_ROOT"
say "building, release"
cargo bench --quiet --locked -p berth-snapshot --bench sync --no-run
load_before=$(cut -d' ' -f1 /proc/loadavg)
say "measuring against the $SYNC_SERVER server, ${SYNC_ROUNDS:-5} rounds; load $load_before, $(nproc) cores"
figures=$(cargo bench --quiet --locked -p berth-snapshot --bench sync)
jq -c --argjson before "$load_before" --argjson after "$(cut -d' ' -f1 /proc/loadavg)" --arg revision "$(revision)" \
    '. + {load_avg_before: $before, load_avg_after: $after, revision: $revision}' <<<"$figures"
