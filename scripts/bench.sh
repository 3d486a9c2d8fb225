#!/usr/bin/env bash
# What the node reaches, against what this machine can do, in one run on loopback.
#
#   scripts/bench.sh [-s SIZE_MIB] [-f FILES]
#
# SIZE_MIB is that of the incompressible file (1024), FILES the number of small files (20000). Needs bash, awk, coreutils and
# Linux's /proc. Figures vary from run to run and from machine to machine: trust the ratios inside one table.
set -euo pipefail

size_mib=1024
files=20000
while getopts 's:f:h' option; do
  case "$option" in
    s) size_mib=$OPTARG ;;
    f) files=$OPTARG ;;
    *) sed -n '2,8p' "$0" | cut -c3-; exit 2 ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# One by one: built together, the daemon would get the features that only tests ask for.
cargo build --release --locked -q -p p2p-tests --bin bench-reference
cargo build --release --locked -q -p p2p-node
target=${CARGO_TARGET_DIR:-target}/release
node=$(realpath "$target/p2p-node")
reference=$(realpath "$target/bench-reference")

work=$(mktemp -d "${TMPDIR:-/tmp}/p2p-bench.XXXXXX")
declare -A pids=() address=()
cleanup() {
  for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

fail() { echo "bench: $*" >&2; exit 1; }
# since START: seconds since then, by $EPOCHREALTIME
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f", b - a }'; }
# timed COMMAND...: its wall time in seconds, its output thrown away
timed() {
  local began=$EPOCHREALTIME
  "$@" >/dev/null 2>"$work/err" || fail "$* failed: $(tail -n 3 "$work/err")"
  since "$began"
}
slower() { awk -v a="$1" -v b="$2" 'BEGIN { print (a > b) ? a : b }'; }
rate() { awk -v m="$1" -v s="$2" 'BEGIN { if (s > 0) printf "%.0f MiB/s", m / s; else printf "-" }'; }
# row NAME SECONDS RATE REFERENCE_NAME REFERENCE_SECONDS
row() {
  awk -v n="$1" -v s="$2" -v w="$3" -v rn="$4" -v rs="$5" 'BEGIN {
    ratio = (rn == "") ? "" : sprintf("%.2f x %s", s / rs, rn)
    printf "%-36s %9.3f s  %12s  %s\n", n, s, w, ratio }'
}
notes=()
note() { notes+=("$(printf '%-36s %s' "$1" "$2")"); }

# start NAME [OPTION...]: a daemon on loopback, its multiaddr in ${address[NAME]}
start() {
  local name=$1 line=""
  shift
  # Here, not by the redirection below: a daemon of this name may have run before, and its line must not be taken for this one's.
  : >"$work/$name.ready"
  "$node" daemon --data-dir "$work/$name" --listen /ip4/127.0.0.1/tcp/0 --no-mdns -q "$@" \
    >"$work/$name.ready" 2>"$work/$name.log" &
  pids[$name]=$!
  for _ in $(seq 600); do
    line=$(head -n 1 "$work/$name.ready" 2>/dev/null || true)
    [ -n "$line" ] && break
    kill -0 "${pids[$name]}" 2>/dev/null || fail "daemon $name ended: $(tail -n 3 "$work/$name.log")"
    sleep 0.05
  done
  [ -n "$line" ] || fail "daemon $name did not get ready"
  line=${line##*listen=}
  address[$name]=${line%%,*}
}
# stop NAME...: ends daemons and removes their disks
stop() {
  local name
  for name in "$@"; do
    kill -9 "${pids[$name]}" 2>/dev/null || true
    wait "${pids[$name]}" 2>/dev/null || true
    unset "pids[$name]"
    rm -rf "${work:?}/$name"
  done
}
# on NAME VERB...: the command line on a daemon
on() {
  local name=$1
  shift
  "$node" --data-dir "$work/$name" "$@"
}
# meet NAME COUNT: waits until NAME knows so many storing peers
meet() {
  local known
  for _ in $(seq 600); do
    known=$(on "$1" status --json | sed -n 's/.*"known_peers":\([0-9]*\).*/\1/p')
    [ "${known:-0}" -ge "$2" ] && return
    sleep 0.05
  done
  fail "daemon $1 did not meet $2 peers"
}
memory() { awk -v f="$2:" '$1 == f { printf "%.0f", $2 / 1024 }' "/proc/${pids[$1]}/status"; }
peaks() {
  local name
  for name in "$@"; do printf '%s ' "$(memory "$name" VmHWM)"; done
}
# processor NAME...: CPU seconds so far, of all of them
processor() {
  local name ticks=0 stat fields
  for name in "$@"; do
    stat=$(<"/proc/${pids[$name]}/stat")
    read -ra fields <<<"${stat##*) }"
    ticks=$((ticks + fields[11] + fields[12]))
  done
  awk -v t="$ticks" -v h="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", t / h }'
}
per_gib() { awk -v a="$1" -v b="$2" -v m="$size_mib" 'BEGIN { printf "%.2f CPU s/GiB", (b - a) * 1024 / m }'; }

echo "making $size_mib MiB in one file and $files small files…" >&2
"$reference" make-file "$work/file" $((size_mib * 1024 * 1024))
"$reference" make-tree "$work/tree" "$files"
tree_mib=$(du -sm --apparent-size "$work/tree" | cut -f1)
sync -f "$work"

printf '%-36s %11s  %12s  %s\n' "$(nproc) cores, $(uname -sm)" "wall" "rate" "time against its reference"
printf -- '-%.0s' {1..100}
echo

# warm TIMES: has the system bring in as much memory as TIMES the file, and gives it back. In a virtual machine pages that come fresh
# from the host cost several times what writing into them does (measured: `cp` of 1 GiB took 0.5 s into warm pages, 2.9 s into
# fresh ones, all of it kernel time); whoever is timed next, reference or node, is to find the same.
warm() {
  local times
  for times in $(seq "$1"); do cp "$work/file" "$work/warm.$times"; done
  rm -f "$work"/warm.*
}

# The references and `add --local`, in turn: what the disk and the page cache do drifts, so the medians of three are compared.
median() { printf '%s\n' "$@" | sort -g | sed -n 2p; }
copy_file() { cp "$work/file" "$work/copy" && sync "$work/copy"; }
hashes=() copies=() adds=()
for round in 1 2 3; do
  hashes+=("$("$reference" hash "$work/file")")
  warm 1
  copies+=("$(timed copy_file)")
  rm -f "$work/copy"
  start one
  [ "$round" = 1 ] && note "idle daemon" "$(memory one VmRSS) MiB resident"
  warm 1
  cpu=$(processor one)
  adds+=("$(timed on one add --local "$work/file")")
  [ "$round" = 3 ] && note "add --local" "$(per_gib "$cpu" "$(processor one)"), peak $(peaks one)MiB"
  stop one
done
hash_s=$(median "${hashes[@]}")
copy_s=$(median "${copies[@]}")
row "BLAKE3, 1 thread" "$hash_s" "$(rate "$size_mib" "$hash_s")" "" 0
row "copy + fsync" "$copy_s" "$(rate "$size_mib" "$copy_s")" "" 0
seconds=$(median "${adds[@]}")
row "add --local" "$seconds" "$(rate "$size_mib" "$seconds")" "slower of hash and copy + fsync" "$(slower "$hash_s" "$copy_s")"

# raw_stream: seconds that the file's bytes take through a libp2p stream between two processes
raw_stream() {
  : >"$work/stream.address"
  "$reference" serve $((size_mib * 1024 * 1024)) >"$work/stream.address" 2>/dev/null &
  pids[stream]=$!
  for _ in $(seq 200); do
    [ -s "$work/stream.address" ] && break
    sleep 0.05
  done
  stream_seconds=$("$reference" receive "$(<"$work/stream.address")")
  wait "${pids[stream]}" 2>/dev/null || true
  unset "pids[stream]"
}

# One holder that has it all, and a reader that joins later and keeps nothing.
start holder
cid=$(on holder add --replicas 1 "$work/file" 2>/dev/null)
start reader --bootstrap "${address[holder]}" --capacity 0
meet reader 1
streams=() gets=()
for round in 1 2 3; do
  raw_stream
  streams+=("$stream_seconds")
  warm 1
  cpu=$(processor holder reader)
  gets+=("$(timed on reader get "$cid" -o "$work/out")")
  [ "$round" = 3 ] && note "get from one holder" \
    "$(per_gib "$cpu" "$(processor holder reader)") in both, peaks of holder and reader $(peaks holder reader)MiB"
  cmp -s "$work/file" "$work/out" || fail "what came back differs"
  rm -f "$work/out"
done
stream_s=$(median "${streams[@]}")
wire_reference=$(slower "$stream_s" "$copy_s")
row "raw libp2p stream, TCP" "$stream_s" "$(rate "$size_mib" "$stream_s")" "" 0
seconds=$(median "${gets[@]}")
row "get from one holder" "$seconds" "$(rate "$size_mib" "$seconds")" "slower of stream and copy + fsync" "$wire_reference"
stop reader holder

# Three holders that have it all, and such a reader.
start h1
start h2 --bootstrap "${address[h1]}"
start h3 --bootstrap "${address[h1]}"
for name in h1 h2 h3; do meet "$name" 2; done
cid=$(on h1 add "$work/file" 2>/dev/null)
start reader --bootstrap "${address[h1]}" --capacity 0
meet reader 3
warm 1
cpu=$(processor h1 h2 h3 reader)
seconds=$(timed on reader get "$cid" -o "$work/out")
row "get from three holders" "$seconds" "$(rate "$size_mib" "$seconds")" "slower of stream and copy + fsync" "$wire_reference"
note "get from three holders" "$(per_gib "$cpu" "$(processor h1 h2 h3 reader)") in all four, peak of the reader $(peaks reader)MiB"
cmp -s "$work/file" "$work/out" || fail "what came back differs"
rm -f "$work/out"
stop reader h1 h2 h3

# Five peers, three copies.
peers=(p1 p2 p3 p4 p5)
start p1
for name in p2 p3 p4 p5; do start "$name" --bootstrap "${address[p1]}"; done
for name in "${peers[@]}"; do meet "$name" 4; done
warm 4
cpu=$(processor "${peers[@]}")
seconds=$(timed on p1 add "$work/file")
# What a disk shared by five daemons must at least write: the adder's copy and the replicas elsewhere.
row "add, k = 3 among five peers" "$seconds" "$(rate "$size_mib" "$seconds")" "three times copy + fsync" \
  "$(awk -v c="$copy_s" 'BEGIN { print 3 * c }')"
note "add, k = 3 among five peers" "$(per_gib "$cpu" "$(processor "${peers[@]}")") in all five, peaks $(peaks "${peers[@]}")MiB"
stop "${peers[@]}"

# The tree.
copy_tree() { cp -r "$work/tree" "$work/copy" && sync -f "$work/copy"; }
tree_copies=() tree_adds=()
for round in 1 2 3; do
  # What was removed before is not this one's to write down.
  sync -f "$work"
  tree_copies+=("$(timed copy_tree)")
  rm -rf "$work/copy"
  start one
  tree_adds+=("$(timed on one add --local "$work/tree")")
  [ "$round" = 3 ] || stop one
done
tree_copy_s=$(median "${tree_copies[@]}")
row "tree of $files: cp -r + sync" "$tree_copy_s" "$(rate "$tree_mib" "$tree_copy_s")" "" 0
seconds=$(median "${tree_adds[@]}")
row "tree: add --local" "$seconds" "$(rate "$tree_mib" "$seconds")" "cp -r + sync" "$tree_copy_s"
cid=$(on one add --local "$work/tree" 2>/dev/null)
start reader --bootstrap "${address[one]}" --capacity 0
meet reader 1
seconds=$(timed on reader get "$cid" -o "$work/out")
row "tree: get from one holder" "$seconds" "$(rate "$tree_mib" "$seconds")" "cp -r + sync" "$tree_copy_s"
note "tree" "peaks of the adder and of the reader $(peaks one reader)MiB"
diff -r "$work/tree" "$work/out" >/dev/null || fail "the tree that came back differs"

# Placement: the seven nearest of a thousand peers, for each of 100,000 chunks.
read -r all_s nearest_s < <("$reference" rank 1000 100000)
row "place 100000 chunks, look at all 1000" "$all_s" "" "" 0
row "place 100000 chunks among 1000 peers" "$nearest_s" "" "a look at every peer" "$all_s"

printf '\n'
printf '%s\n' "${notes[@]}"
