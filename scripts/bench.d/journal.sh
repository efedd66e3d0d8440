#!/usr/bin/env bash
#
# Commits to the coordinator's journal, beside what the disk allows and what others do: how many, how fast, how many syncs.
#
# usage: scripts/bench journal [--dir DIR] [--rounds N] [--seconds S] [--callers N,N...] [--users N] [--events N]
#
# In turn, on the same file system, with 1, 8, 64 and 256 callers that each have one command under way:
#
#   floor         groups of as many records as there are callers, of the same length, by write and fdatasync alone
#   store         the coordinator's store: a join token made, then taken back, by each caller
#   store_users   the same in a fleet of many users
#   http          the same over HTTP, on the real coordinator (release build), connections kept open
#   one_each      the same journal without groups: one command, one fdatasync
#   sled          sled with a flush after each write, which does not survive power loss: sync_file_range, no fdatasync
#
# A command is done when its caller is told so. Then a journal of many events, each a commit of its own:
#
#   replay_s            a start without snapshots, until the state is there
#   replay_snapshot_s   a start at a snapshot with 5,000 events behind it
#   check_s             reading and checking every byte, without making a state
#
#   --dir DIR       where the files are made (default /var/tmp)
#   --rounds N      how often each is measured (default 9)
#   --seconds S     of each measure (default 1)
#   --callers N,…   how many callers at a time (default 1,8,64,256; 256 at the most)
#   --users N       users of store_users (default 2000)
#   --events N      events of the replayed journal (default 100000)
#   --help          this text
#
# Prints `name median least most unit` per line, and as the last line all of it as one line of JSON. Five minutes.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../stack.sh
. "$BERTH_ROOT/scripts/stack.sh"

dir=/var/tmp
rounds=9
seconds=1
pass=()

while (($#)); do
    case $1 in
    --dir)
        [[ -d ${2-} ]] || fail "--dir takes a folder that is there" "$0 --help"
        dir=$2
        shift
        ;;
    --rounds)
        [[ ${2-} =~ ^[1-9][0-9]{0,2}$ ]] || fail "--rounds takes a number from 1 to 999" "$0 --help"
        rounds=$2
        shift
        ;;
    --seconds)
        [[ ${2-} =~ ^[0-9]{1,3}(\.[0-9])?$ ]] || fail "--seconds takes a number, such as 0.5" "$0 --help"
        seconds=$2
        shift
        ;;
    --callers)
        [[ ${2-} =~ ^[0-9]{1,3}(,[0-9]{1,3})*$ ]] || fail "--callers takes numbers, such as 1,64" "$0 --help"
        pass+=(--callers "$2")
        shift
        ;;
    --users | --events)
        [[ ${2-} =~ ^[0-9]{1,8}$ ]] || fail "$1 takes a number" "$0 --help"
        pass+=("$1" "$2")
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

say "building Berth, release"
(cd "$BERTH_ROOT" && cargo build --quiet --locked --release -p berth-coordinator --bin berth-coordinator &&
    cargo build --quiet --locked --release -p berth-bench-probe --bin berth-bench-journal)
bin=${CARGO_TARGET_DIR:-$BERTH_ROOT/target}/release
run_dir=$(mktemp -d "$dir/berth-bench-journal.XXXXXX")
trap 'rm -rf -- "$run_dir"' EXIT
say "measuring on $(stat -f -c %T "$run_dir"), $rounds rounds"
load_before=$(cut -d' ' -f1 /proc/loadavg)
"$bin/berth-bench-journal" --dir "$run_dir" --coordinator "$bin/berth-coordinator" \
    --rounds "$rounds" --seconds "$seconds" "${pass[@]}" >"$run_dir/out"
head -n -1 "$run_dir/out"
tail -n 1 "$run_dir/out" | jq -c --argjson before "$load_before" --argjson after "$(cut -d' ' -f1 /proc/loadavg)" \
    --arg revision "$(revision)" --arg fs "$(stat -f -c %T "$run_dir")" \
    '. + {load_avg_before: $before, load_avg_after: $after, file_system: $fs, revision: $revision}'
