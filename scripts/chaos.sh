#!/usr/bin/env bash
# Real daemons that are killed, wiped, cut off, filled up and damaged at random, while others add, read and remove:
#
#   never more than k - 1 copies' worth are destroyed within one repair; at the end every acknowledged root that was not
#   removed is read whole from every machine, what was removed is on no disk, all catalogues are equal, and replicas are
#   on exactly the k closest.
#
# Prints what it did and found, a name=value a line. With root (and iproute2) each machine has a cable that is pulled
# and one has a small disk that is really full; without, it says what stands in for them. Nothing is left behind.
# Exit codes: 0 the promise was kept, 1 it was not (the seed and all events are on standard error), 2 usage.

set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/chaos.sh [--minutes M] [--seed S] [-n N] [--sabotage] [--aloud] [--logs DIR] [--release]

  --minutes M   for how long harm is done (default 1); the end takes up to six minutes more
  --seed S      of all chance: the same seed decides the same, as far as processes allow (default 1)
  -n N          how many machines, 5 to 50 (default 6)
  --sabotage    a copy is destroyed behind the machines' backs on all of them: it must exit 1
  --logs DIR    what the machines logged is kept there, a file each (P2P_TEST_LOG=debug: more of it)
  --aloud       events are told as they come, not only where something was found
  --release     the release build; without, the one that is there, or else a debug build
TEXT
}

words=() profile=
while (($# > 0)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --release) profile=release ;;
    *) words+=("$1") ;;
    esac
    shift
done

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
if [[ -z $profile ]]; then
    profile=debug
    if [[ -x $target/release/chaos && ! -x $target/debug/chaos ]]; then profile=release; fi
fi
build=(cargo build --quiet --locked -p p2p-tests --bin chaos --bin p2p-node-tested)
if [[ $profile == release ]]; then build+=(--release); fi
"${build[@]}"
exec nice -n 5 "$target/$profile/chaos" "${words[@]}"
