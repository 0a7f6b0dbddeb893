//! Any bytes as a site file: parsing reports, never panics; what parses also compiles, its script renders, a
//! plan from nothing reaches it, and every assert can be judged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mwan::{KernelState, Links};

fuzz_target!(|text: &str| {
    match config::parse("fuzz.toml", text) {
        Err(problems) => drop(problems.to_string()),
        Ok(parsed) => {
            drop(parsed.warnings.to_string());
            let want = mwan::compile::compile(&parsed.config, &Default::default(), &Links::default());
            let mut have = KernelState::default();
            for step in have.plan_to(&want) {
                have.apply(&step);
            }
            assert!(have.plan_to(&want).is_empty());
            drop(mwan::asserts::broken(&parsed.config));
        }
    }
});
