//! The target `cbor` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(target) = fuzzing::target("cbor") {
        (target.run)(data);
    }
});
