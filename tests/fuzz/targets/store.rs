//! Runs the target `store` under libFuzzer; scripts/fuzz builds and starts it.
#![no_main]

use berth_fuzz::Target;

fn target() -> Target {
    berth_fuzz::target("store").expect("it is in the table")
}

libfuzzer_sys::fuzz_target!(init: target().prepare(), |input: &[u8]| {
    target().check(input);
});
