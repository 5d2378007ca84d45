//! Room for deep expressions: the language allows more nesting than the stack of a worker thread may hold.

/// Enough for the deepest expression that the parser lets through, in a build without optimizations.
const STACK: usize = 64 << 20;

/// Does the work, on a stack of its own if it goes deep.
pub(crate) fn run<T: Send>(deep: bool, work: impl FnOnce() -> T + Send) -> T {
    if !deep {
        return work();
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, work).map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // Threads have run out, and so has the process.
            Err(why) => panic!("starting a thread for an expression: {why}"),
        }
    })
}

/// Whether a text may nest deep.
pub(crate) fn is_deep(source: &str) -> bool {
    source.len() > 200 || source.bytes().filter(|b| matches!(b, b'(' | b'[' | b'{' | b'?')).count() > 16
}
