//! How long the pure core takes: the customer's site and a site of 200 VLANs with 5,000 matrix entries.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mwan::decide::Decision;
use mwan::{KernelState, Links};

fn parse(c: &mut Criterion) {
    let customer = include_str!("../../config/examples/spectrum-site.toml");
    c.bench_function("parse/customer", |b| b.iter(|| config::parse("site.toml", black_box(customer))));
    let large = bench::site(200, 4, 5000);
    c.bench_function("parse/200-vlans-5000-rules", |b| b.iter(|| config::parse("site.toml", black_box(&large))));
}

fn compile_and_plan(c: &mut Criterion) {
    for (name, text) in [
        ("customer", include_str!("../../config/examples/spectrum-site.toml").to_owned()),
        ("200-vlans-5000-rules", bench::site(200, 4, 5000)),
    ] {
        let Ok(parsed) = config::parse("site.toml", &text) else { panic!("the bench site is well-formed") };
        let config = parsed.config;
        c.bench_function(&format!("compile+plan/{name}"), |b| {
            b.iter(|| {
                let want = mwan::compile::compile(black_box(&config), &Decision::default(), &Links::default());
                black_box(KernelState::default().plan_to(&want))
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = parse, compile_and_plan
}
criterion_main!(benches);
