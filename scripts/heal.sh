#!/usr/bin/env bash
# What healing and removing cost, measured with real daemons on the loopback; prints a name=value a line.
#
#   scripts/heal.sh lost [NODES [MEBIBYTES [RATE]]]      one of NODES (10) that hold MEBIBYTES (600) is gone for good: payload
#                                                        moved for a byte lost (at most 1.05), and the time after the delay
#                                                        beside the largest share at RATE (4) MiB a second (at most 1.3)
#   scripts/heal.sh removed [NODES [MEBIBYTES [GRACE]]]  a tree of MEBIBYTES (1024) is removed from NODES (5): its room is back
#                                                        within GRACE (20 s) and two minutes, while adds and gets go on at 0.8
#                                                        of their speed or more
#
# Exit codes: 0 within these bounds, 1 not, 2 usage. Nothing is left behind.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
case ${1-} in
lost) words=(lost "${2:-10}" "${3:-600}" "${4:-4}") ;;
removed) words=(removed "${2:-5}" "${3:-1024}" "${4:-20}") ;;
-h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0" && exit 0 ;;
*) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
target=${CARGO_TARGET_DIR:-target}
profile=release build=(--release)
if [[ ${HEAL_DEBUG-} == yes ]]; then profile=debug build=(); fi
cargo build --quiet --locked "${build[@]}" -p p2p-tests --bin heal --bin p2p-node-tested
exec "$target/$profile/heal" "${words[@]}"
