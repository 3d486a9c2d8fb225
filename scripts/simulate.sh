#!/usr/bin/env bash
# A large network of the repair loop through days of churn, on simulated time; prints one name=value a line.
#   scripts/simulate.sh [--nodes N] [--days D] [--seed S] [--replicas K]; --help tells the rest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec cargo run --quiet --locked --release -p p2p-simulator --bin simulate -- "$@"
