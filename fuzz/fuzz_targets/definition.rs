//! The target `definition` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(target) = fuzzing::target("definition") {
        (target.run)(data);
    }
});
