//! Times of the parts that touch every message: the wire alone, and the reader and the writer over memory.
//!
//! `cargo bench -p buffstreams-bench --bench wire`; a word behind `--` selects the benchmarks that have it in their name.
//! Each iteration is about 64 KiB of frames, which is what one read or one write of a busy socket holds. On a machine that
//! does something else as well, the instruction counts of `costs` say more.

#[path = "../src/bin/costs/memory.rs"]
mod memory;

use std::hint::black_box;
use std::time::Duration;

use buffstreams::wire::{Decoder, Encoder};
use buffstreams::{Bytes, Config, Reader, WireFormat, Writer};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::executor::block_on;
use futures::{SinkExt, StreamExt};

use memory::{Sink, Source};

/// How many bytes of frames an iteration has at least.
const BATCH: usize = 64 * 1024;
const SIZES: [(&str, usize); 4] = [("16 B", 16), ("110 B", 110), ("4 KiB", 4096), ("64 KiB", 64 * 1024)];

fn formats() -> [(&'static str, WireFormat); 3] {
    [("buffstreams", WireFormat::buffstreams()), ("u32_be", WireFormat::u32_be()), ("varint", WireFormat::varint())]
}

/// The default limit where it is large enough: it sets the width of the header.
fn limit(len: usize) -> usize {
    len.max(4096)
}

/// Messages of one length in one format.
struct Sample {
    id: BenchmarkId,
    encoder: Encoder,
    decoder: Decoder,
    config: Config,
    message: Bytes,
    /// Whole frames.
    wire: Bytes,
    messages: usize,
}

fn samples() -> impl Iterator<Item = Sample> {
    formats().into_iter().flat_map(|(name, format)| {
        SIZES.into_iter().map(move |(size, len)| {
            let encoder = Encoder::new(format, limit(len)).unwrap();
            let message = Bytes::from(vec![7; len]);
            let mut wire = Vec::new();
            let mut messages = 0;
            while wire.len() < BATCH {
                encoder.encode(&message, &mut wire).unwrap();
                messages += 1;
            }
            Sample {
                id: BenchmarkId::new(name, size),
                encoder,
                decoder: Decoder::new(format, limit(len)).unwrap(),
                config: Config::new().wire_format(format).max_message_size(limit(len)),
                message,
                wire: wire.into(),
                messages,
            }
        })
    })
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    // There are many, and on a quiet machine they settle quickly.
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(50);
    group
}

/// Messages and their bytes, without headers.
fn throughput(sample: &Sample) -> Throughput {
    let (elements, len) = (sample.messages as u64, sample.message.len() as u64);
    Throughput::ElementsAndBytes { elements, bytes: elements * len }
}

fn header(criterion: &mut Criterion) {
    let mut group = group(criterion, "header");
    for sample in samples() {
        group.throughput(Throughput::Elements(sample.messages as u64));
        group.bench_function(sample.id.clone(), |bencher| {
            bencher.iter(|| {
                let mut at = 0;
                while let Some(header) = sample.decoder.header(&sample.wire[at..]).unwrap() {
                    at += header.frame();
                }
                at
            });
        });
    }
}

fn encode(criterion: &mut Criterion) {
    let mut group = group(criterion, "encode");
    for sample in samples() {
        let mut out = Vec::new();
        group.throughput(throughput(&sample));
        group.bench_function(sample.id.clone(), |bencher| {
            bencher.iter(|| {
                out.clear();
                for _ in 0..sample.messages {
                    sample.encoder.encode(black_box(&sample.message), &mut out).unwrap();
                }
                black_box(&out);
            });
        });
    }
}

fn decode(criterion: &mut Criterion) {
    let mut group = group(criterion, "decode");
    for sample in samples() {
        group.throughput(throughput(&sample));
        group.bench_function(sample.id.clone(), |bencher| {
            bencher.iter(|| {
                let mut input = sample.wire.clone();
                while let Some(message) = sample.decoder.decode(&mut input).unwrap() {
                    black_box(message);
                }
            });
        });
    }
}

fn read(criterion: &mut Criterion) {
    let mut group = group(criterion, "Reader");
    for sample in samples() {
        // It goes on from iteration to iteration, as a connection does, so the buffers are the same ones.
        let mut reader = Reader::new(Source::new(sample.wire.to_vec()), &sample.config).unwrap();
        group.throughput(throughput(&sample));
        group.bench_function(sample.id.clone(), |bencher| {
            bencher.iter(|| {
                block_on(async {
                    for _ in 0..sample.messages {
                        black_box(reader.next().await.unwrap().unwrap());
                    }
                });
            });
        });
    }
}

fn write(criterion: &mut Criterion) {
    let mut group = group(criterion, "Writer");
    for sample in samples() {
        let mut writer = Writer::new(Sink, &sample.config).unwrap();
        group.throughput(throughput(&sample));
        group.bench_function(sample.id.clone(), |bencher| {
            bencher.iter(|| {
                block_on(async {
                    for _ in 0..sample.messages {
                        writer.feed(sample.message.clone()).await.unwrap();
                    }
                    writer.flush().await.unwrap();
                });
            });
        });
    }
}

criterion_group!(benches, header, encode, decode, read, write);
criterion_main!(benches);
