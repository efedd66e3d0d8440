#!/usr/bin/env bash
#
# Snapshots of a cell and restores of them, beside restic and rclone: how long, how many bytes, how many requests.
#
# usage: scripts/bench sync [--rounds N] [--chunk BYTES] [--delay MS] [--without TOOL]...
#
# A cell of 200 MB: 4,000 small files, three SQLite databases and five files of 20 MB. In each round each tool, in turn,
# against the same S3 server on loopback (tests/s3), with a copy of the cell of its own: first snapshot, one without a
# change, one after an active hour (20 appends, 30 edits, one row of a hundred of each database, a new file of 2 MB),
# and a restore into an empty folder. Of Berth a worker per step, started by a process that does as a daemon does and
# whose memory is watched. What Berth and restic restored is compared by its tree hash. Nothing is cached by Berth but
# hashes of files; restic has its cache.
#
#   --rounds N      how often (default 5)
#   --chunk BYTES   how large chunks are on average, a power of two (default 1048576, restic's)
#   --delay MS      added each way by a small relay of our own that all tools pass through (default none)
#   --without TOOL  without restic, or without rclone, which takes minutes for each step of a round
#   --help          this text
#
# Prints the medians as one line of JSON; `_range` are the least and the most, `ratio_…_vs_restic` medians of the rounds'
# ratios. Needs restic and rclone. Ten minutes, most of them the first build.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

without=()
while (($#)); do
    case $1 in
    --rounds)
        [[ ${2-} =~ ^[1-9][0-9]{0,2}$ ]] || fail "--rounds takes a number from 1 to 999" "$0 --help"
        export SYNC_ROUNDS=$2
        shift
        ;;
    --chunk)
        [[ ${2-} =~ ^[1-9][0-9]{3,8}$ ]] || fail "--chunk takes a number of bytes, such as 65536" "$0 --help"
        export SYNC_CHUNK_BYTES=$2
        shift
        ;;
    --delay)
        [[ ${2-} =~ ^[0-9]{1,4}$ ]] || fail "--delay takes milliseconds, such as 30" "$0 --help"
        export SYNC_DELAY_MS=$2
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

for tool in restic rclone; do
    [[ " ${without[*]-} " == *" $tool "* ]] || have "$tool" || fail "$tool is missing" "apt-get install $tool"
done
SYNC_WITHOUT=$(IFS=,; echo "${without[*]-}")
export SYNC_WITHOUT
cd "$BERTH_ROOT"
say "load $(cut -d ' ' -f 1-3 /proc/loadavg), $(nproc) cores"
cargo bench --quiet --locked -p berth-snapshot --bench sync
say "load $(cut -d ' ' -f 1-3 /proc/loadavg) at the end"
