#!/bin/sh
# Makes a Berth node of a bare Debian or Ubuntu machine: packages, firewall, encrypted swap, programs, units, and, where
# asked for, a coordinator beside it. cloud-init runs it (cloud-init/render wraps it), so does a provider's post-install
# script, so can a person. Every step looks first: run it again after whatever went wrong.
#
# usage: first-node.sh [SETTINGS]      settings: cloud-init/first-node.settings; default /root/berth/settings
set -eu
umask 022
settings=${1:-/root/berth/settings}
token=/run/berth-join/token

step() { printf 'berth: [%ss] %s\n' "$(cut -d. -f1 /proc/uptime)" "$*"; }
fail() {
    printf 'berth: FAILED: %s\n' "$*" >&2
    exit 1
}
# wipe FILE...: what is there is overwritten and removed.
wipe() { for file; do [ ! -f "$file" ] || shred -fu "$file" 2>/dev/null || rm -f "$file"; done; }

[ "$(id -u)" = 0 ] || fail "this needs root"

# 1. The join token leaves the disk before anything can fail: it waits in memory, and cloud-init's copies of what it was
# delivered in go. They would come back at the next boot, so cloud-init has done its work here.
hide_secrets() {
    mkdir -p /run/berth-join
    chmod 700 /run/berth-join
    if [ -s /root/berth/token ]; then
        (umask 077 && cat /root/berth/token >$token)
        wipe /root/berth/token
    fi
    [ -z "${BERTH_TOKEN:-}" ] || { (umask 077 && printf '%s\n' "$BERTH_TOKEN" >$token) && unset BERTH_TOKEN; }
    # A running script may be removed and not overwritten.
    rm -f /post_install
    for copy in /var/lib/cloud/instances/*; do
        wipe "$copy/user-data.txt" "$copy/user-data.txt.i" "$copy/cloud-config.txt" "$copy/obj.pkl"
    done
    for copy in /run/cloud-init/instance-data-sensitive.json /run/cloud-init/combined-cloud-config.json; do wipe "$copy"; done
    [ ! -d /etc/cloud ] || touch /etc/cloud/cloud-init.disabled
}

# 2. With recommended packages left out docker.io lacks AppArmor's tools, and no container would start.
install_packages() {
    missing=
    for package in apparmor ca-certificates cryptsetup curl docker.io e2fsprogs iptables jq nftables; do
        dpkg-query -W -f='${Status}' $package 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    for try in 1 2 3 4 5; do
        # shellcheck disable=SC2086 # one word each
        apt-get -qq -o DPkg::Lock::Timeout=300 update && apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing && return 0
        step "packages: try $try failed, again in 15 s"
        sleep 15
    done
    fail "packages could not be installed:$missing"
}

# 3. The programs, proven by their hash; already unpacked where a person runs this from a release.
fetch_release() {
    release=/opt/berth/$BERTH_RELEASE_SHA256
    [ -x "$release/systemd/install" ] && return 0
    mkdir -p /opt/berth
    curl -fsSL --retry 5 --retry-all-errors --max-time 900 -o /opt/berth/new.tar.gz "$BERTH_RELEASE_URL" ||
        fail "the release could not be fetched"
    echo "$BERTH_RELEASE_SHA256  /opt/berth/new.tar.gz" | sha256sum -c --quiet || fail "the release is not the one that was asked for"
    rm -rf /opt/berth/new && mkdir /opt/berth/new
    tar -xzf /opt/berth/new.tar.gz -C /opt/berth/new --no-same-owner
    rm -f /opt/berth/new.tar.gz
    mv /opt/berth/new "$release"
}

firewall=/etc/berth/firewall.nft
# The ports that sshd listens at have to be in the packet filter, else nobody gets in any more. What is said for one interface
# only does not count.
ssh_is_let_in() {
    PATH=$PATH:/usr/sbin:/sbin command -v sshd >/dev/null || return 0
    # It wants its folder also where it is only asked; systemd makes that when it starts it.
    mkdir -p /run/sshd
    ports=$(PATH=$PATH:/usr/sbin:/sbin sshd -T 2>/dev/null |
        awk '$1 == "listenaddress" { sub(/.*:/, "", $2); at[$2] } $1 == "port" { port[$2] }
            END { for (p in at) { any = 1; print p } if (!any) for (p in port) print p }')
    lines=$(sed 's/#.*//' $firewall | grep 'tcp dport .*accept' | grep -v iif) || lines=
    for port in $ports; do
        printf '%s\n' "$lines" | sed 's/comment .*//' | grep -qw "$port" ||
            fail "sshd listens at port $port, and the packet filter would lock you out: add it in $firewall to the line \`$(printf '%s\n' "$lines" | sed -n '1s/^[[:space:]]*//p')\`, and run this again"
    done
}

# 4. Swap under a key that nobody ever sees: random at each boot. Frozen cells live there.
encrypted_swap() {
    # Frozen cells may be in it: what is right already is not touched.
    if [ -n "${BERTH_SWAP_DEVICE:-}" ]; then
        berth-node-agent swap setup --partition "$BERTH_SWAP_DEVICE" || fail "there is no encrypted swap"
    else
        berth-node-agent swap setup --size "${BERTH_SWAP_MB}MiB" || fail "there is no encrypted swap"
    fi
}

# The address that this machine has towards the world, else the first that is not a bridge of Docker's.
own_address() {
    ip -4 route get 192.0.2.1 2>/dev/null | sed -n 's/.* src \([0-9.]*\).*/\1/p' | grep . ||
        ip -4 -o addr show scope global | grep -v ' docker\| br-' | sed -n '1s/.* inet \([0-9.]*\).*/\1/p'
}

has() { case " $BERTH_ROLES " in *" $1 "*) true ;; *) false ;; esac; }

# 5. Config that only this machine knows, in the release's own, with all its words; what is there already is the operator's.
write_config() {
    mkdir -p /etc/berth
    if has coordinator && [ ! -e /etc/berth/coordinator.toml ]; then
        sed -e "s|^link_address = .*|link_address = \"$BERTH_ADDRESS:7443\"|" -e "s|^domain = .*|domain = \"$BERTH_DOMAIN\"|" \
            -e "s|^default_image = .*|default_image = \"$BERTH_IMAGE\"|" "$release/systemd/coordinator.toml" >/etc/berth/.new
        mv /etc/berth/.new /etc/berth/coordinator.toml
    fi
}

start_coordinator() {
    systemctl enable -q --now berth-coordinator.service || fail "the coordinator did not start: journalctl -u berth-coordinator"
    made=/var/lib/berth-coordinator/operator.key
    if [ -e $made ]; then
        (umask 077 && cat $made >/etc/berth/operator.key)
        wipe $made
    fi
}

# Whether it has joined is the agent's own knowledge: without that it ends with code 78.
join_node() {
    systemctl enable -q berth-ingress.socket berth-ingress.service berth-node-agent.service
    systemctl start berth-ingress.socket berth-ingress.service || fail "the front door did not start: journalctl -u berth-ingress"
    systemctl start berth-node-agent.service 2>/dev/null && return 0
    [ "$(systemctl show -P ExecMainStatus berth-node-agent.service)" = 78 ] || fail "the agent did not start: journalctl -u berth-node-agent"
    if [ ! -s $token ] && has coordinator; then
        (umask 077 && BERTH_KEY_FILE=/etc/berth/operator.key berth --json token create "$BERTH_NODE_NAME" | jq -er .token >$token)
    fi
    [ -s $token ] || fail "there is no join token: put one of \`berth token create $BERTH_NODE_NAME\` into /root/berth/token and run this again"
    berth-node-agent join --config /etc/berth/node-agent.toml --token-file $token || fail "the node did not join"
    wipe $token
    systemctl start berth-node-agent.service || fail "the agent did not start: journalctl -u berth-node-agent"
}

main() {
    hide_secrets
    # shellcheck source=/dev/null
    [ ! -r "$settings" ] || . "$settings"
    : "${BERTH_ROLES:=node}" "${BERTH_RELEASE_URL:?}" "${BERTH_RELEASE_SHA256:?}" "${BERTH_NODE_NAME:=node-1}"
    : "${BERTH_DOMAIN:=localhost}" "${BERTH_IMAGE:=berth/openclaw:2026.9.6}" "${BERTH_SWAP_MB:=4096}"
    : "${BERTH_ADDRESS:=$(own_address)}"
    step "packages"
    install_packages
    step "programs and units"
    fetch_release
    write_config
    # shellcheck disable=SC2086 # a list of words
    "$release/systemd/install" --bin "$release/bin" $BERTH_ROLES
    if has node; then
        step "firewall"
        ssh_is_let_in
        systemctl enable -q --now berth-firewall.service || fail "the firewall did not start: journalctl -u berth-firewall"
        step "encrypted swap"
        encrypted_swap
        [ "$(docker info -f '{{.LiveRestoreEnabled}}' 2>/dev/null)" = true ] || systemctl restart docker ||
            fail "Docker did not start: journalctl -u docker"
    fi
    if has coordinator; then
        step "coordinator"
        start_coordinator
    fi
    if has node; then
        step "node"
        join_node
    fi
    wipe $token /post_install.log
    if has coordinator && ! grep -q '^bucket' /etc/berth/coordinator.toml; then
        step "there are no snapshots until a bucket is named: /usr/local/share/doc/berth/INSTALL.md, The bucket and its keys"
    fi
    step "this machine is ready: $BERTH_ROLES"
}

# On one line: nothing of this file is read after it began.
main; exit
