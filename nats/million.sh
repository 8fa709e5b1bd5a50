#!/usr/bin/env bash
# A million messages from 16 client processes, through two ingress processes, into a cluster of three servers, while an ingress, a
# client and a server are killed: without sessions, and with acknowledged ones. It prints the figures of both. It takes some three
# minutes on two cores with nothing else to do, and needs nats-server on the PATH. Another number: ./million.sh 200000
set -euo pipefail
cd "$(dirname "$0")"
export BUFFSTREAMS_NATS_MESSAGES=${1:-1000000}
cargo test --locked --release --test nats -- --nocapture --test-threads=1 \
    cluster::without_sessions cluster::with_sessions_every
