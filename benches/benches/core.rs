//! The pure core by the clock: `cargo bench -p benches --bench core [-- FILTER]`. The same work is counted by `--bin icounts`.

use benches::scenarios::{self, Unit};
use criterion::{Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for scenario in scenarios::all() {
        let mut group = criterion.benchmark_group(scenario.group());
        group.throughput(match scenario.unit {
            Unit::Elements(count) => Throughput::Elements(count),
            Unit::Bytes(count) => Throughput::Bytes(count),
        });
        let what = scenario.name.trim_start_matches(scenario.group()).trim_start_matches('/');
        // Prepared only where the filter wants it.
        group.bench_function(what, |bencher| {
            let mut run = scenario.prepare();
            bencher.iter(&mut run);
        });
        group.finish();
    }
    criterion.final_summary();
}
