//! The target `cel` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(target) = fuzzing::target("cel") {
        (target.run)(data);
    }
});
