# shellcheck shell=bash
#
# A whole Berth on loopback for the script that sources this: a front door, a coordinator, a node agent, and a model
# that answers without an account. Started, waited for, ended and removed.
#
# Source it after lib.sh. In this order: stack_build, stack_alone where something is measured, stack_open, stack_swap where
# cells are frozen, stack_bucket where snapshots are taken, stack_start. What it sets for the script:
#   bin       folder of the programs             run_dir   folder of everything else, gone at the end
#   api       IP:PORT of the coordinator's API   front     IP:PORT of the front door; port is its port
#   pids      the daemons' pids; PID_OF[NAME] is one's

# The ingress runs as this uid, which owns nothing else on the machine.
readonly INGRESS_UID=64222
# A node with the default names of bridges and packet rules: one lives on a machine at a time. The end-to-end tests' nodes
# have other names.
readonly NODE_LOCK=/var/tmp/berth-node.lock
# Held by whoever measures, alone, and shared by the worlds of the end-to-end tests (tests/src/world/place.rs).
readonly WORLD_LOCK=/var/tmp/berth-world.lock
readonly NEXT_LOCK=/var/tmp/berth-world-next.lock
run_dir=
bin=
pids=()
agent_settings=()
coordinator_settings=()
declare -A PID_OF=()

# stack_build debug|release: builds the programs.
stack_build() {
    local profile=$1
    # Debug builds as the tests have them, so that nothing is built twice; release builds as they are shipped.
    local -a flags=(--workspace --bins)
    if [[ $profile == release ]]; then
        flags=(--release -p berth-coordinator -p berth-node-agent -p berth-ingress -p berth-fake-model -p berth-test-s3)
    fi
    (cd "$BERTH_ROOT" && cargo build --quiet --locked "${flags[@]}")
    bin=${CARGO_TARGET_DIR:-$BERTH_ROOT/target}/$profile
}

# stack_lock FILE: waits until it is this script's, for as long as it or one of its daemons lives.
stack_lock() {
    local fd
    exec {fd}>>"$1"
    flock -n "$fd" && return
    step "waiting for another Berth on this machine ($1)"
    flock -w "$BERTH_LOCK_WAIT_S" "$fd" ||
        fail "another Berth was there for $BERTH_LOCK_WAIT_S s" "lslocks | grep berth   # shows whose"
}

# stack_alone: waits until no end-to-end test runs, and keeps them waiting: for whoever measures. Before stack_open.
stack_alone() {
    local next
    # Whoever waits for the world's lock holds this one, so that those who share it do not pass by for ever.
    exec {next}>>"$NEXT_LOCK"
    flock "$next"
    stack_lock "$WORLD_LOCK"
    exec {next}>&-
}

# stack_open NAME: waits until no other such Berth is on this machine, makes the folder, and cleans up at the script's end,
# however that comes.
stack_open() {
    stack_lock "$NODE_LOCK"
    # The ingress's own uid has to reach its program and its socket: not below anybody's home.
    run_dir=$(mktemp -d "/var/tmp/$1.XXXXXX")
    chmod 711 "$run_dir"
    trap stack_close EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# stack_swap MIB: the machine has so much swap free, or gets it for as long as this script runs. After stack_open.
stack_swap() { make_swap "$run_dir/swap" "$1"; }

# Ends what was started, newest first, and removes what was made. Runs at every exit.
stack_close() {
    local code=$? pid i container network mount log
    trap '' INT TERM
    [[ -n $run_dir ]] || exit "$code"
    if ((code != 0)); then
        for log in "$run_dir"/*.log; do
            [[ -s $log ]] || continue
            printf '\n--- the end of %s\n' "${log##*/}" >&2
            tail -n 25 "$log" >&2
        done
    fi
    say "cleaning up"
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        pid=${pids[i]}
        kill -TERM "$pid" 2>/dev/null || continue
        # A stopped one would never hear it.
        kill -CONT "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [[ -s $run_dir/node-id ]]; then
        # The engine finishes what it was asked for, also when whoever asked is gone: it is looked at until two looks in
        # a row find nothing more.
        local quiet=0 found
        for ((i = 0; i < 20 && quiet < 2; i++)); do
            ((i == 0)) || sleep 0.5
            found=false
            while read -r container; do
                [[ -n $container ]] && found=true && docker rm -f "$container" >/dev/null
            done < <(docker ps -aq --filter "label=berth.node=$(<"$run_dir/node-id")")
            while read -r network; do
                [[ -n $network ]] && found=true && docker network rm "$network" >/dev/null
            done < <(docker network ls -q --filter "label=berth.node=$(<"$run_dir/node-id")")
            if $found; then quiet=0; else quiet=$((quiet + 1)); fi
        done
    fi
    while read -r mount; do
        [[ -n $mount ]] && umount "$mount"
    done < <(awk -v dir="$run_dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo)
    nft delete table inet berth 2>/dev/null || true
    end_swap "$run_dir/swap"
    rm -rf -- "$run_dir"
    exit "$code"
}

# daemons_live: stops the script if one of the daemons has ended.
daemons_live() {
    local pid
    for pid in "${pids[@]}"; do
        kill -0 "$pid" 2>/dev/null || fail "a daemon ended" "see the logs above"
    done
}

# wait_for WHAT SECONDS COMMAND...: polls until the command succeeds; stops the script after that many seconds.
wait_for() {
    local what=$1 limit=$2 until=$((SECONDS + $2))
    shift 2
    until "$@"; do
        ((SECONDS < until)) || fail "$what did not happen within $limit s" "see the logs above"
        daemons_live
        sleep 0.1
    done
}

berth() { "$bin/berth" --api "http://$api" --key-file "$run_dir/operator.key" "$@"; }

# cell_is USER STATE
cell_is() { [[ $(berth --json cell show "$1" | jq -r '.status.state // "none"') == "$2" ]]; }

node_connected() { [[ $(berth --json node show node-1 | jq -r .connected) == true ]]; }

# stack_daemon NAME COMMAND...: starts a daemon of ours; its words go to NAME.log.
stack_daemon() {
    local name=$1
    shift
    "$@" >"$run_dir/$name.log" 2>&1 &
    pids+=($!)
    # shellcheck disable=SC2034 # read by the script that sources this
    PID_OF[$name]=$!
}

# forget_daemon NAME: it was ended on purpose and is not waited for any more.
forget_daemon() {
    local pid kept=()
    for pid in "${pids[@]}"; do
        [[ $pid == "${PID_OF[$1]}" ]] || kept+=("$pid")
    done
    pids=("${kept[@]}")
    unset "PID_OF[$1]"
}

# stack_agent: starts the node agent, once more after it was ended.
stack_agent() { stack_daemon agent "$bin/berth-node-agent" run "${agent_settings[@]}"; }

# revision: what the working tree holds, for a bench to print.
revision() {
    local revision
    revision=$(git -C "$BERTH_ROOT" rev-parse --short=12 HEAD 2>/dev/null) || revision=unknown
    [[ -z $(git -C "$BERTH_ROOT" status --porcelain 2>/dev/null) ]] || revision+=-dirty
    printf '%s' "$revision"
}

# stack_bucket: an S3 server of the tests, in a folder that goes at the end, and the coordinator's keys for it. Snapshots
# go there.
stack_bucket() {
    mkdir -p "$run_dir/s3"
    # It ends with whoever holds this open.
    mkfifo "$run_dir/s3-open"
    # shellcheck disable=SC2034 # held open, not used
    exec {s3_fd}<>"$run_dir/s3-open"
    # shellcheck disable=SC2016 # expanded by the inner shell
    stack_daemon bucket bash -c 'exec "$1" "$2" <"$3"' bash "$bin/berth-test-s3" "$run_dir/s3" "$run_dir/s3-open"
    wait_for "the bucket" 10 grep -qs '^endpoint=' "$run_dir/bucket.log"
    local endpoint credential
    endpoint=$(grep -o 'endpoint=[^ ]*' "$run_dir/bucket.log" | cut -d= -f2)
    credential=$(grep -o 'node=[^ ]*' "$run_dir/bucket.log" | cut -d= -f2)
    (umask 077 && printf 'aws_access_key_id = %s\naws_secret_access_key = %s\n' "${credential%%:*}" "${credential#*:}" >"$run_dir/bucket-credential")
    "$bin/berth-coordinator" keys init --recovery-key-file "$run_dir/recovery-key" \
        --set "data_dir=$run_dir/coordinator" --set link_address=127.0.0.1:0 >"$run_dir/keys.log" 2>&1 ||
        fail "the keys were not made: $(tail -n 3 "$run_dir/keys.log")" "see the logs above"
    coordinator_settings+=(
        --set snapshots.bucket=berth --set "snapshots.endpoint=$endpoint" --set snapshots.path_style=true
        --set "snapshots.credential_file=$run_dir/bucket-credential"
    )
}

# stack_start IMAGE PORT MODEL: starts everything and waits for the node. IMAGE is what users get who ask for none;
# PORT is the front door's, 0 for a free one; with MODEL=true a model runs, too, and the cells know of it.
stack_start() {
    local image=$1 wanted_port=$2 with_model=$3 model
    mkdir -m 711 "$run_dir/door" "$run_dir/bin"
    install -d -m 700 -o $INGRESS_UID -g $INGRESS_UID "$run_dir/ingress"
    install -m 755 "$bin/berth-ingress" "$run_dir/bin/"
    stack_daemon ingress setpriv --reuid $INGRESS_UID --regid $INGRESS_UID --clear-groups \
        "$run_dir/bin/berth-ingress" run \
        --set "listen=127.0.0.1:$wanted_port" --set metrics_listen=127.0.0.1:0 \
        --set "door_socket=$run_dir/door/door.sock" --set "state_dir=$run_dir/ingress" \
        --set "port_file=$run_dir/ingress/port" --set "metrics_port_file=$run_dir/ingress/metrics-port"
    wait_for "the front door" 20 test -s "$run_dir/ingress/port"
    front=$(<"$run_dir/ingress/port")
    port=${front##*:}

    stack_daemon coordinator "$bin/berth-coordinator" serve --operator-key-file "$run_dir/operator.key" \
        --set "data_dir=$run_dir/coordinator" --set api_listen=127.0.0.1:0 --set "api_port_file=$run_dir/api-port" \
        --set link_listen=127.0.0.1:0 --set link_address=127.0.0.1:0 \
        --set domain=localhost --set "public_port=$port" --set "default_image=$image" "${coordinator_settings[@]}"
    wait_for "the coordinator" 20 test -s "$run_dir/api-port"
    api=$(<"$run_dir/api-port")
    wait_for "the operator's key" 5 test -s "$run_dir/operator.key"

    agent_settings=(
        --set insecure_swap=true --set "data_dir=$run_dir/agent" --set "door_socket=$run_dir/door/door.sock" --set "ingress_uid=$INGRESS_UID"
        --set metrics_listen=127.0.0.1:0 --set "metrics_port_file=$run_dir/agent-metrics" --set "public_port=$port"
    )
    if $with_model; then
        # A model that answers without any account: it says back what it was told so far. It listens on the address of
        # Docker's default bridge, which cells may not reach unless the node allows it.
        stack_daemon model "$bin/berth-fake-model" --listen 172.17.0.1:0 --port-file "$run_dir/model-port"
        wait_for "the model" 10 test -s "$run_dir/model-port"
        model=$(<"$run_dir/model-port")
        (umask 077 && printf 'demo-key' >"$run_dir/llm.key")
        agent_settings+=(
            --set "egress_allow=['$model/tcp']" --set "cell_env_files={PLATFORM_LLM_KEY='$run_dir/llm.key'}"
            --set "provider={base_url='http://$model/v1', model='demo'}"
        )
    fi
    berth --json token create node-1 | jq -r .token >"$run_dir/join-token"
    "$bin/berth-node-agent" join --token-file "$run_dir/join-token" "${agent_settings[@]}" >"$run_dir/join.log" 2>&1 ||
        fail "the node did not join: $(tail -n 3 "$run_dir/join.log")" "see the logs above"
    rm -f "$run_dir/join-token"
    berth --json node show node-1 | jq -r .id >"$run_dir/node-id"
    stack_agent
    wait_for "the node" 20 node_connected
}
