//! Issuing in memory, beside its limit: a key and a signature of aws-lc-rs without any encoding.
//!
//! `sign` verifies every leaf before it returns, so the limit stands here with and without one verification.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use phoenix_benches::{Raw, authority, memory, on_one_core, on_threads, to_pem, wanted};
use time::OffsetDateTime;

const LEAVES: usize = 100;

fn issue(criterion: &mut Criterion) {
    let (directory, raw, wanted) = (memory(), Raw::default(), wanted(LEAVES));
    let authority = authority(directory.path());
    let now = OffsetDateTime::now_utc();
    let mut group = criterion.benchmark_group("issue 100 leaves");
    group.throughput(Throughput::Elements(LEAVES as u64));
    on_one_core(|| {
        group.bench_function("raw key and signature, one thread", |bencher| {
            bencher.iter(|| (0..LEAVES).for_each(|_| drop(raw.issue())));
        });
        group.bench_function("raw key, signature and verification, one thread", |bencher| {
            bencher.iter(|| (0..LEAVES).for_each(|_| drop(raw.issue_verified())));
        });
        group.bench_function("sign and PEM, one thread", |bencher| {
            bencher.iter(|| to_pem(&authority.sign(&wanted, now).unwrap()));
        });
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    group.bench_function(format!("raw key, signature and verification, {threads} threads"), |bencher| {
        bencher.iter(|| on_threads(threads, || (0..LEAVES / threads).for_each(|_| drop(raw.issue_verified()))));
    });
    group.bench_function(format!("sign and PEM, {threads} threads"), |bencher| {
        bencher.iter(|| to_pem(&authority.sign(&wanted, now).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, issue);
criterion_main!(benches);
