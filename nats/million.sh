#!/usr/bin/env bash
# A million messages from 16 client processes, through two ingress processes, into a cluster of three servers, while a server, an
# ingress and a client are killed. It takes some three minutes, and needs nats-server on the PATH. Another number: ./million.sh 200000
set -euo pipefail
cd "$(dirname "$0")"
export BUFFSTREAMS_NATS_MESSAGES=${1:-1000000}
cargo test --locked --release --test it -- --nocapture --test-threads=1 cluster::no
