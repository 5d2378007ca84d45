//! Places where a test can end the process, as a power cut or `kill -9` would, between two steps that change what is kept
//! outside of it. A build without debug assertions has none of them.
//!
//! A debug build that is started with `CARRACK_FAIL_AT=<prefix>@<n>` kills itself at the n-th step whose name begins with
//! the prefix, with `<prefix>#<n>` when it comes to the n-th name of those. A test that counts n up from 1 until nothing is
//! killed any more has been everywhere. With `CARRACK_FAIL_AT=/a/file` the file holds the order, which may change meanwhile;
//! counting then begins anew. The names of all steps that were met are then added to `/a/file.met`.

/// Passes a step. `name` is `<area>.<operation>.<what comes next>`.
#[inline(always)]
pub fn step(name: &str) {
    #[cfg(debug_assertions)]
    armed::step(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// The variable with this process's orders, for a process that it starts with an environment of its own.
pub fn inherited() -> Option<(&'static str, std::ffi::OsString)> {
    #[cfg(debug_assertions)]
    return std::env::var_os(armed::VARIABLE).map(|value| (armed::VARIABLE, value));
    #[cfg(not(debug_assertions))]
    None
}

#[cfg(debug_assertions)]
mod armed {
    use std::collections::BTreeSet;
    use std::sync::{LazyLock, Mutex, PoisonError};

    pub(super) const VARIABLE: &str = "CARRACK_FAIL_AT";

    static ORDERS: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(VARIABLE).ok());
    static COUNT: Mutex<Count> =
        Mutex::new(Count { order: String::new(), passed: 0, names: BTreeSet::new() });

    /// How far the process has come with an order.
    pub(super) struct Count {
        pub(super) order: String,
        pub(super) passed: u64,
        pub(super) names: BTreeSet<String>,
    }

    impl Count {
        /// Whether the process ends at this step.
        pub(super) fn is_up(&mut self, order: &str, name: &str) -> bool {
            if self.order != order {
                *self = Count { order: order.to_owned(), passed: 0, names: BTreeSet::new() };
            }
            let Some(at) = order.rfind(['@', '#']) else { return false };
            let (prefix, number) = (&order[..at], &order[at + 1..]);
            if !name.starts_with(prefix) {
                return false;
            }
            let counts = order.as_bytes()[at] == b'@' || self.names.insert(name.to_owned());
            self.passed += u64::from(counts);
            counts && number.parse() == Ok(self.passed)
        }
    }

    pub(super) fn step(name: &str) {
        let Some(orders) = &*ORDERS else { return };
        let up = |order: &str| COUNT.lock().unwrap_or_else(PoisonError::into_inner).is_up(order, name);
        let up = if orders.starts_with('/') {
            note(orders, name);
            up(std::fs::read_to_string(orders).unwrap_or_default().trim())
        } else {
            up(orders)
        };
        if up {
            eprintln!("killed at {name}");
            // SAFETY: plain numbers; a process may kill itself.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            // The signal comes at once, but not necessarily within the call.
            loop {
                std::thread::park();
            }
        }
    }

    /// Adds a name that this process had not met before to the list beside the orders.
    fn note(orders: &str, name: &str) {
        use std::io::Write;
        static MET: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        if MET.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            let file = std::fs::File::options().append(true).create(true).open(format!("{orders}.met"));
            // A list that cannot be written lacks a name, which the test that reads it finds out.
            let _ = file.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()));
        }
    }

    #[test]
    fn orders_are_counted() {
        let check = |order: &str, names: &[&str], at: Option<usize>| {
            let mut count = Count { order: String::new(), passed: 0, names: BTreeSet::new() };
            assert_eq!(names.iter().position(|name| count.is_up(order, name)), at, "{order} {names:?}");
        };
        check("a.@2", &["a.x", "b.x", "a.x", "a.y"], Some(2));
        check("a.#2", &["a.x", "b.x", "a.x", "a.y"], Some(3));
        check("a.#3", &["a.x", "b.x", "a.x", "a.y"], None);
        for bad in ["", "a.", "a.@x", "a.#"] {
            check(bad, &["a.x", "a.y"], None);
        }
        // Another order begins anew.
        let mut count = Count { order: String::new(), passed: 0, names: BTreeSet::new() };
        assert!(!count.is_up("a.@2", "a.x") && !count.is_up("a.@3", "a.x") && !count.is_up("a.@3", "a.x"));
        assert!(count.is_up("a.@3", "a.x"));
    }
}
