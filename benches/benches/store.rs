//! The store, beside plain file access: publishing 1,000 certificates, and finding that nothing is due.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use phoenix_benches::{Files, authority, disk, wanted, with_setup};
use time::OffsetDateTime;

const LEAVES: usize = 1_000;

fn store(criterion: &mut Criterion) {
    let (directory, wanted, now) = (disk(), wanted(LEAVES), OffsetDateTime::now_utc());
    let authority_held = authority(directory.path());
    authority_held.ensure_all(&wanted, now).unwrap();
    let store = directory.path().join("store");
    let files = Files::below(&store).unwrap();

    let mut group = criterion.benchmark_group("publish 1000 leaves");
    group.sample_size(10);
    group.bench_function("the same bytes written plainly, without fsync", |bencher| {
        bencher.iter_custom(|rounds| with_setup(rounds, disk, |empty| files.write(empty.path()).unwrap()));
    });
    group.bench_function("ensure_all, durable", |bencher| {
        let fresh = || {
            let directory = disk();
            let authority = authority(directory.path());
            (directory, authority)
        };
        bencher.iter_custom(|rounds| with_setup(rounds, fresh, |(_, it)| it.ensure_all(&wanted, now).unwrap()));
    });
    group.finish();

    let mut group = criterion.benchmark_group("nothing due among 1000 leaves");
    group.sample_size(20);
    group.bench_function("the same files opened and read", |bencher| {
        bencher.iter(|| files.read(&store).unwrap());
    });
    group.bench_function("plan", |bencher| bencher.iter(|| authority_held.plan(&wanted, now).unwrap()));
    group.bench_function("ensure_all", |bencher| {
        bencher.iter_batched(|| (), |()| authority_held.ensure_all(&wanted, now).unwrap(), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);
