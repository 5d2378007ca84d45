//! The target `websocket` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(target) = fuzzing::target("websocket") {
        (target.run)(data);
    }
});
