//! Gives memory back that was needed for a moment only: code that ran once at the start, and heap that a burst left free.

use std::time::Duration;

/// After the start, when what belongs to it has run.
const SETTLED: Duration = Duration::from_secs(5);
/// Between two looks at how busy the process is.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks a process that has little to do uses less processor time than this.
const LITTLE: Duration = Duration::from_millis(100);
/// Between two returns of memory to which no burst gave rise.
const INTERVAL: Duration = Duration::from_secs(120);

/// Looks after the process's memory for as long as it runs.
pub async fn keep_small() {
    tokio::time::sleep(SETTLED).await;
    loop {
        unmap_code();
        // The allocator keeps what was freed; walking its lists takes a few milliseconds.
        let trimmed = tokio::task::spawn_blocking(|| {
            // SAFETY: `malloc_trim` takes the allocator's own locks and touches only free memory.
            unsafe { libc::malloc_trim(0) }
        });
        drop(trimmed.await);
        after_burst().await;
    }
}

/// Waits for a burst of work and for its end, or for a while if there is none.
async fn after_burst() {
    let begun = tokio::time::Instant::now();
    let (mut used, mut busy) = (processor_time(), false);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = processor_time();
        let little = now.saturating_sub(used) < LITTLE;
        used = now;
        if busy && little || begun.elapsed() >= INTERVAL {
            return;
        }
        busy |= !little;
    }
}

/// Processor time of this process so far.
fn processor_time() -> Duration {
    use nix::sys::time::TimeValLike;
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or(Duration::ZERO, |usage| {
        let sum = usage.user_time() + usage.system_time();
        Duration::from_micros(u64::try_from(sum.num_microseconds()).unwrap_or(0))
    })
}

/// Drops the code pages of the executable from this process's memory; those that are used come back from the page cache.
fn unmap_code() {
    let (Ok(maps), Ok(own)) =
        (std::fs::read_to_string("/proc/self/maps"), std::fs::read_link("/proc/self/exe"))
    else {
        return;
    };
    let own = own.display().to_string();
    for (start, end) in maps.lines().filter_map(|line| code(line, &own)) {
        // SAFETY: the range is a mapping of this executable that is not writable and never was (code in a static executable
        // holds no relocations), so that each page reads the same when it is next touched.
        let done = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        if done != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "code pages stay in memory");
        }
    }
}

/// The addresses of a line of `/proc/self/maps` that maps code of a file.
fn code(line: &str, file: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions) = (words.next()?, words.next()?);
    let path = words.nth(3)?;
    if permissions != "r-xp" || path != file {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[test]
fn only_own_code_is_let_go() {
    for (line, expect) in [
        ("7f00-7f10 r-xp 00001000 08:01 77   /usr/bin/carrack", Some((0x7f00, 0x7f10))),
        ("7f00-7f10 r--p 00001000 08:01 77   /usr/bin/carrack", None),
        ("7f00-7f10 rwxp 00001000 08:01 77   /usr/bin/carrack", None),
        ("7f00-7f10 r-xp 00001000 08:01 77   /usr/lib/other.so", None),
        ("7f00-7f10 r-xp 00000000 00:00 0    [vdso]", None),
        ("7f00-7f10 r-xp 00000000 00:00 0", None),
    ] {
        assert_eq!(code(line, "/usr/bin/carrack"), expect, "{line}");
    }
}
