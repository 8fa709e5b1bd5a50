#!/usr/bin/env bash
# A million messages from 16 client processes, through two ingress processes, into a cluster of three servers, while an ingress, a
# client and a server are killed: without sessions, with acknowledged ones, and with these and `ordered()`. It prints the figures of
# each. It takes some six minutes, and needs nats-server on the PATH. Another number: ./million.sh 200000
set -euo pipefail
cd "$(dirname "$0")"
export BUFFSTREAMS_NATS_MESSAGES=${1:-1000000}
cargo test --locked --release --test it -- --nocapture --test-threads=1 cluster::with
