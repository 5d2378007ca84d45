//! The target `selector` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(target) = fuzzing::target("selector") {
        (target.run)(data);
    }
});
