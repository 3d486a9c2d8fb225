#!/usr/bin/env bash
# A network of equal peers on this machine, from nothing to the proof that it keeps what it was given:
#
#   N daemons meet, a real tree is added on one of them and spread over the others, that one is killed
#   and its disk removed, and the tree comes back from another, byte for byte.
#
# Needs bash, coreutils, diffutils and Rust. Nothing is left behind unless --keep asks for it.
# Exit codes: 0 all of it is so, 1 something is not (the reason is the last line), 2 usage.

set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/local-network.sh [-n N] [--keep] [PATH]

Builds p2p-node, starts N daemons on the loopback, adds PATH on one, kills that one with its disk, gets PATH back
from another, and compares.

  -n N      how many daemons, 2 to 50 (default 5)
  --keep    leave the network running afterwards, and say how to talk to it and how to stop it
  PATH      a file or directory (default: a part of the Rust toolchain, over 100 MB)
TEXT
}

count=5
keep=false
source=
while (($# > 0)); do
    case $1 in
    -n)
        count=${2-}
        shift
        ;;
    -n*) count=${1#-n} ;;
    --keep) keep=true ;;
    -h | --help)
        usage
        exit 0
        ;;
    --)
        shift
        break
        ;;
    -*)
        usage >&2
        exit 2
        ;;
    *)
        if [[ -n $source ]]; then
            usage >&2
            exit 2
        fi
        source=$1
        ;;
    esac
    # `-n` without a number has nothing left to shift.
    shift || true
done
source=${source:-${1-}}
if ! [[ $count =~ ^[0-9]+$ ]] || ((10#$count < 2 || 10#$count > 50)); then
    echo "local-network: -n takes a number from 2 to 50" >&2
    exit 2
fi
count=$((10#$count))
if [[ -n $source && ! -e $source && ! -L $source ]]; then
    echo "local-network: there is no $source" >&2
    exit 2
fi

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
base=
pids=()

say() { printf '%s\n' "$*"; }

fail() {
    say "local-network: failed: $*" >&2
    exit 1
}

# Stops every daemon and removes everything, unless the network is to be kept.
clean_up() {
    local code=$? pid
    trap - EXIT
    if $keep && ((${#pids[@]} > 0)); then
        tell_how
        exit "$code"
    fi
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    # They may take ten seconds to stop; then they are made to.
    local tries=0
    for pid in "${pids[@]}"; do
        while kill -0 "$pid" 2>/dev/null; do
            if ((tries++ > 110)); then kill -9 "$pid" 2>/dev/null || true; fi
            sleep 0.1
        done
    done
    if [[ -n $base ]]; then rm -rf -- "$base"; fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

tell_how() {
    local place
    say
    say "The network is still running. Talk to it with"
    for place in "${!pids[@]}"; do say "  $program --data-dir $base/node$place status"; done
    say "add another peer with"
    say "  $program --data-dir DIR daemon --bootstrap ADDRESS      (an address from \`status\`; the loopback has no mDNS)"
    say "and stop it with"
    say "  kill ${pids[*]}; rm -rf $base"
}

# Seconds since an $EPOCHREALTIME, with a decimal.
since() {
    local now=${EPOCHREALTIME/[.,]/} then=${1/[.,]/}
    local tenths=$(((now - then) / 100000))
    printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# One number of a line of JSON: field LINE NAME.
field() {
    [[ $1 =~ \"$2\":([0-9]+) ]] && printf '%s' "${BASH_REMATCH[1]}"
}

human() { numfmt --to=iec-i --suffix=B --format=%.1f -- "$1"; }

node() {
    local place=$1
    shift
    "$program" --data-dir "$base/node$place" "$@"
}

# Tries a command every 0.1 s for a minute: wait_for WHAT COMMAND…
wait_for() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 600; tries++)); do
        if "$@"; then return 0; fi
        sleep 0.1
    done
    fail "$what did not happen within a minute"
}

is_ready() {
    kill -0 "${pids[$1]}" 2>/dev/null || fail "node $1 ended by itself: $(tail -n 3 -- "$base/node$1.log")"
    grep -qs '^ready ' -- "$base/node$1.out"
}

knows_all() {
    local known
    known=$(field "$(node "$1" status --json)" known_peers) && ((known == $2))
}

has_entry() {
    local lines
    lines=$(node "$1" ls --json) && [[ $lines == *"\"$cid\""* ]]
}

# A part of the toolchain that is large enough, of many files if the documentation is installed.
toolchain_part() {
    local sysroot part kilobytes
    sysroot=$(cd -- "$root" && rustc --print sysroot) || fail "rustc does not say where its toolchain is; name a PATH"
    for part in share/doc/rust/html/std share/doc/rust/html/core lib/rustlib lib .; do
        [[ -d $sysroot/$part ]] || continue
        kilobytes=$(du -sk -- "$sysroot/$part" | cut -f1)
        if ((kilobytes >= 100000)); then
            printf '%s' "$sysroot/$part"
            return
        fi
    done
    fail "the toolchain in $sysroot is under 100 MB; name a PATH"
}

say "Building p2p-node (release)"
(cd -- "$root" && cargo build --release --locked -p p2p-node) || fail "it does not build"
target=${CARGO_TARGET_DIR:-target}
program=$(cd -- "$root" && cd -- "$target/release" && pwd)/p2p-node

source=${source:-$(toolchain_part)}
[[ -d $source && ! -L $source ]] && source=$(cd -- "$source" && pwd)
files=$(find "$source" ! -type d | wc -l)

base=$(mktemp -d -- "${TMPDIR:-/tmp}/p2p-network.XXXXXX")
say "Starting $count daemons on the loopback (mDNS leaves it alone, so they meet through --bootstrap)"
bootstrap=()
for ((place = 0; place < count; place++)); do
    nohup "$program" --data-dir "$base/node$place" daemon --listen /ip4/127.0.0.1/tcp/0 --no-mdns "${bootstrap[@]}" \
        >"$base/node$place.out" 2>"$base/node$place.log" </dev/null &
    pids[place]=$!
    disown
    wait_for "the start of node $place" is_ready "$place"
    if ((place == 0)); then
        read -r line <"$base/node0.out"
        listen=${line##*listen=}
        bootstrap=(--bootstrap "${listen%%,*}")
    fi
done
for place in "${!pids[@]}"; do
    wait_for "that node $place knows the others" knows_all "$place" $((count - 1))
done

say "Adding $source ($files files) on node 0"
start=$EPOCHREALTIME
added=$(node 0 add --json -- "$source") || fail "add: exit code $?: $added"
add_seconds=$(since "$start")
[[ $added =~ \"cid\":\"([a-z0-9]+)\" ]] || fail "add printed no CID: $added"
cid=${BASH_REMATCH[1]}
size=$(field "$added" size)
chunks=$(field "$added" chunks)
copies=$(field "$added" min)
say "  $cid"
say "  $(human "$size") in $chunks chunks, each safe on $copies peers, after $add_seconds s"

say
stat=$(node 0 stat "$cid" --no-placement --json) || fail "stat: exit code $?: $stat"
printf '%-6s %-54s %10s %12s %12s\n' node peer replicas 'in store' bytes
for place in "${!pids[@]}"; do
    status=$(node "$place" status --json)
    [[ $status =~ \"peer_id\":\"([A-Za-z0-9]+)\" ]] || fail "status of node $place has no peer_id: $status"
    peer=${BASH_REMATCH[1]}
    held=$(field "$stat" "$peer" || printf 0)
    printf '%-6s %-54s %10s %12s %12s\n' \
        "$place" "$peer" "$held" "$(field "$status" chunks)" "$(human "$(field "$status" bytes)")"
done
say

say "Killing node 0, which added it, with kill -9, and removing its disk"
kill -9 "${pids[0]}"
while kill -0 "${pids[0]}" 2>/dev/null; do sleep 0.1; done
unset 'pids[0]'
rm -rf -- "$base/node0"

reader=$((count - 1))
say "Getting it from node $reader"
start=$EPOCHREALTIME
got=$(node "$reader" get "$cid" -o "$base/copy" --json) || fail "get: exit code $?: $got"
get_seconds=$(since "$start")
differences=$(diff -r --no-dereference -- "$source" "$base/copy" 2>&1 | head -n 5) || true
[[ -z $differences ]] || fail "what came back differs: $differences"
copied=$(find "$base/copy" ! -type d | wc -l)
((copied == files)) || fail "$copied of $files files came back"
say "  the same, byte for byte, after $get_seconds s"

for place in "${!pids[@]}"; do
    wait_for "that the catalogue of node $place has it" has_entry "$place"
    say "Catalogue of node $place: has it"
done
rm -rf -- "$base/copy"

say
say "ok: $count peers, $files files, $(human "$size"): added in $add_seconds s on $copies peers each," \
    "the adder killed with its disk, got back from another in $get_seconds s, identical; all $((count - 1)) catalogues have it"
