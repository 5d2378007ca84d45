//! Places where a test can end the process, as a power cut or `kill -9` would, between two steps that change what is kept
//! outside of it. A build without debug assertions has none of them.
//!
//! A debug build that is started with `CARRACK_FAIL_AT=<prefix>@<n>` kills itself at the n-th step whose name begins with
//! the prefix. A test that counts n up from 1 until nothing is killed any more has been everywhere.

/// Passes a step. `name` is `<area>.<operation>.<what comes next>`.
#[inline(always)]
pub fn step(name: &str) {
    #[cfg(debug_assertions)]
    armed::step(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static PLAN: LazyLock<Option<(String, u64)>> =
        LazyLock::new(|| plan(&std::env::var("CARRACK_FAIL_AT").ok()?));
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub(super) fn plan(text: &str) -> Option<(String, u64)> {
        let (prefix, count) = text.rsplit_once('@')?;
        Some((prefix.to_owned(), count.parse().ok()?))
    }

    pub(super) fn step(name: &str) {
        let Some((prefix, count)) = &*PLAN else { return };
        if name.starts_with(prefix.as_str()) && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *count {
            eprintln!("killed at {name}");
            // SAFETY: plain numbers; a process may kill itself.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            // The signal comes at once, but not necessarily within the call.
            loop {
                std::thread::park();
            }
        }
    }

    #[test]
    fn plans_are_a_prefix_and_a_number() {
        assert_eq!(plan("sandbox.@3"), Some(("sandbox.".into(), 3)));
        for bad in ["", "sandbox", "sandbox@x"] {
            assert_eq!(plan(bad), None);
        }
    }
}
