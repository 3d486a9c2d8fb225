#!/usr/bin/env bash
# What a network costs that nobody uses, and what a restart of one node costs the others:
#
#   N daemons of one network meet on the loopback of a network namespace of their own, over TCP, and are left alone;
#   the kernel counts every byte that they send, headers and acknowledgements included, and the CPU time that they take.
#   Then one is killed and started again, and the bytes are counted until there is quiet.
#
# Needs Linux, unshare (util-linux), ip (iproute2), and root or user namespaces; where it may not make a namespace it says
# so and skips. Nothing is left behind. Exit codes: 0 measured or skipped, 1 failed, 2 usage.

set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/idle.sh [-n N] [--seconds S] [--settle S] [PROGRAM]

  -n N          how many daemons, 2 to 100 (default 50)
  --seconds S   how long they are left alone (default 660: what happens every ten minutes is seen, what happens every
                twelve hours is not)
  --settle S    how long they may take to become quiet before that (default 90; the looks around of 10 s, 1 and 5 minutes
                after the start cost 1, 1 and 0.05 MB a node)
  --restarts R  how many restarts are measured, one after another; the median counts (default 3)
  PROGRAM       the daemon (default: p2p-node, built for release)
TEXT
}

count=50 seconds=660 settle=90 restarts=3 program=
while (($# > 0)); do
    case $1 in
    -n) count=${2-} && shift ;;
    --seconds) seconds=${2-} && shift ;;
    --settle) settle=${2-} && shift ;;
    --restarts) restarts=${2-} && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) program=$1 ;;
    esac
    # An option without its number has nothing left to shift.
    shift || true
done
number() {
    if ! [[ $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
        echo "idle: $1 takes a number from $3 to $4" >&2
        exit 2
    fi
}
number -n "$count" 2 100
number --seconds "$seconds" 1 100000
number --settle "$settle" 0 100000
number --restarts "$restarts" 0 100

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z $program ]]; then
    (cd -- "$root" && cargo build --release --locked -p p2p-node)
    target=${CARGO_TARGET_DIR:-target}
    program=$(cd -- "$root" && cd -- "$target/release" && pwd)/p2p-node
fi

# Once more, in a namespace whose only traffic is this network's.
if [[ ${IDLE_INSIDE-} != yes ]]; then
    inside=(unshare --net)
    ((EUID == 0)) || inside=(unshare --map-root-user --net)
    if ! reason=$("${inside[@]}" ip link set lo up 2>&1); then
        echo "idle: skipped: a network namespace cannot be made here: $reason"
        exit 0
    fi
    export IDLE_INSIDE=yes
    exec "${inside[@]}" "$0" -n "$count" --seconds "$seconds" --settle "$settle" --restarts "$restarts" "$program"
fi
ip link set lo up

work=$(mktemp -d -- "${TMPDIR:-/tmp}/p2p-idle.XXXXXX")
pids=()
fail() {
    echo "idle: failed: $*" >&2
    exit 1
}
clean_up() {
    local code=$?
    trap - EXIT
    # What this script started, and nothing else: the namespace goes with the last of them.
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf -- "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# start PLACE PORT [OPTION...]: a daemon, ready when this returns.
start() {
    local place=$1 port=$2 tries
    shift 2
    : >"$work/ready$place"
    "$program" --data-dir "$work/node$place" daemon --listen "/ip4/127.0.0.1/tcp/$port" --no-mdns --capacity 1GiB "$@" \
        >"$work/ready$place" 2>>"$work/log$place" </dev/null &
    pids[place]=$!
    for ((tries = 0; tries < 1200; tries++)); do
        [[ -s $work/ready$place ]] && return
        kill -0 "${pids[place]}" 2>/dev/null || fail "daemon $place ended: $(tail -n 3 -- "$work/log$place")"
        sleep 0.05
    done
    fail "daemon $place did not get ready"
}
listen_of() {
    local line
    read -r line <"$work/ready$1"
    line=${line##*listen=}
    printf '%s' "${line%%,*}"
}
known_to() {
    local status
    status=$("$program" --data-dir "$work/node$1" status --json) || return 1
    [[ $status =~ \"known_peers\":([0-9]+) ]] && printf '%s' "${BASH_REMATCH[1]}"
}
meet() {
    local tries
    for ((tries = 0; tries < 1200; tries++)); do
        (($(known_to "$1" || echo 0) >= count - 1)) && return
        sleep 0.1
    done
    fail "daemon $1 knows $(known_to "$1") of $((count - 1)) others after two minutes"
}
# All that was sent on the loopback: here, what the daemons sent to each other, in bytes of IP packets (the 14 bytes of each
# packet's link header are left out). /proc/net is this namespace's; /sys may still be that of the machine.
sent() { awk '$1 == "lo:" { print $10 - 14 * $11 }' /proc/net/dev; }
packets() { awk '$1 == "lo:" { print $11 }' /proc/net/dev; }
# CPU time of all daemons, in clock ticks.
ticks() {
    local pid stat fields all=0
    for pid in "${pids[@]}"; do
        stat=$(<"/proc/$pid/stat")
        read -ra fields <<<"${stat##*) }"
        all=$((all + fields[11] + fields[12]))
    done
    printf '%s' "$all"
}
# quiet BYTES: waits until under BYTES are sent in 3 s, a minute at the most.
quiet() {
    local before now tries
    for ((tries = 0; tries < 20; tries++)); do
        before=$(sent)
        sleep 3
        now=$(sent)
        ((now - before < $1)) && return
    done
}

bootstrap=()
for ((place = 0; place < count; place++)); do
    start "$place" 0 "${bootstrap[@]}"
    if ((place == 0)); then bootstrap=(--bootstrap "$(listen_of 0)"); fi
done
for ((place = 0; place < count; place++)); do meet "$place"; done
echo "idle: $count daemons know each other after $SECONDS s, $(sent) bytes" >&2
sleep "$settle"

bytes=$(sent) frames=$(packets) cpu=$(ticks) began=$EPOCHREALTIME
for ((second = 0; second < seconds; second += 30)); do
    here=$(sent)
    sleep $((seconds - second < 30 ? seconds - second : 30))
    [[ -n ${IDLE_TRACE-} ]] && echo "idle: $second s: $(($(sent) - here)) bytes" >&2
done
bytes=$(($(sent) - bytes)) frames=$(($(packets) - frames)) cpu=$(($(ticks) - cpu)) ended=$EPOCHREALTIME
awk -v b="$bytes" -v f="$frames" -v c="$cpu" -v n="$count" -v hz="$(getconf CLK_TCK)" \
    -v s0="${began/,/.}" -v s1="${ended/,/.}" 'BEGIN {
    s = s1 - s0
    printf "sent_bytes_per_node_day=%.0f\n", b / s * 86400 / n
    printf "packets_per_node_day=%.0f\n", f / s * 86400 / n
    printf "cpu_percent_per_node=%.3f\n", c / hz / s * 100 / n
}'

# The rate at rest, for three seconds of all: a restart is over when there is no more than a few times that.
rest=$((bytes * 3 / seconds))
costs=()
for ((round = 0; round < restarts; round++)); do
    place=$((1 + round % (count - 1)))
    port=$(listen_of "$place")
    port=${port##*/tcp/}
    quiet $((rest * 3 + 2000))
    began=$EPOCHREALTIME
    bytes=$(sent)
    kill -9 "${pids[place]}"
    wait "${pids[place]}" 2>/dev/null || true
    sleep 2
    start "$place" "${port%%/*}" "${bootstrap[@]}"
    meet "$place"
    # Catch-up, identify pushes and the first looks around come within twelve seconds.
    sleep 15
    quiet $((rest * 3 + 2000))
    bytes=$(($(sent) - bytes))
    ended=$EPOCHREALTIME
    costs+=("$(awk -v b="$bytes" -v n="$count" -v r="$rest" -v s0="${began/,/.}" -v s1="${ended/,/.}" 'BEGIN {
        printf "%.0f %.0f %.0f\n", (b - r / 3 * (s1 - s0)) / (n - 1), b / (n - 1), s1 - s0 }')")
    echo "idle: restart of node $place: $(tail -n 1 <<<"${costs[-1]}") (net, gross bytes a neighbour; seconds)" >&2
done
if ((restarts > 0)); then
    printf '%s\n' "${costs[@]}" | sort -g | sed -n "$(((restarts + 1) / 2))p" | {
        read -r net gross _
        echo "restart_bytes_per_neighbour=$net"
        echo "restart_bytes_per_neighbour_with_rest=$gross"
    }
fi
