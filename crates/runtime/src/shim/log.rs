//! Writes a container's output to its log file in the format that CRI prescribes:
//! `<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <line>`.
//!
//! A line longer than [`MAX_LINE`], or one without an end when the output ends, is marked `P` (partial).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// The longest piece of a line written at once.
pub const MAX_LINE: usize = 16 << 10;

/// An open log file; writes to a log that cannot be written are dropped, for the container must go on.
pub struct LogFile {
    path: String,
    file: Option<File>,
}

impl LogFile {
    /// Opens `path` for appending; an empty path is a log that keeps nothing.
    pub fn open(path: &str) -> std::io::Result<Self> {
        let file = if path.is_empty() {
            None
        } else {
            if let Some(parent) = Path::new(path).parent() {
                std::fs::create_dir_all(parent)?;
            }
            Some(open(path)?)
        };
        Ok(Self { path: path.to_owned(), file })
    }

    /// Opens the file anew, as after it was renamed away. The old one stays in use when that fails.
    pub fn reopen(&mut self) -> std::io::Result<()> {
        if !self.path.is_empty() {
            self.file = Some(open(&self.path)?);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(bytes);
        }
    }
}

fn open(path: &str) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Cuts one stream into lines.
pub struct LineWriter {
    stream: &'static str,
    pending: Vec<u8>,
}

impl LineWriter {
    /// `stream` is `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes output as it was read at `now` (nanoseconds since 1970).
    pub fn push(&mut self, mut data: &[u8], now: i64, log: &mut LogFile) {
        if log.file.is_none() {
            return;
        }
        let mut out = Vec::with_capacity(data.len() + 64);
        while !data.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let window = &data[..data.len().min(room)];
            if let Some(end) = window.iter().position(|b| *b == b'\n') {
                self.entry(&mut out, now, 'F', &window[..end]);
                data = &data[end + 1..];
            } else if window.len() == room {
                self.entry(&mut out, now, 'P', window);
                data = &data[room..];
            } else {
                self.pending.extend_from_slice(window);
                break;
            }
        }
        log.write(&out);
    }

    /// Writes what is left when the stream has ended.
    pub fn finish(&mut self, now: i64, log: &mut LogFile) {
        if !self.pending.is_empty() {
            let mut out = Vec::new();
            self.entry(&mut out, now, 'P', &[]);
            log.write(&out);
        }
    }

    fn entry(&mut self, out: &mut Vec<u8>, now: i64, tag: char, rest: &[u8]) {
        out.extend_from_slice(timestamp(now).as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.as_bytes());
        out.extend_from_slice(&[b' ', tag as u8, b' ']);
        out.append(&mut self.pending);
        out.extend_from_slice(rest);
        out.push(b'\n');
        // A container that once wrote a long line does not keep its buffer for good.
        self.pending.shrink_to(256);
    }
}

/// `now` as RFC 3339 in UTC with nine digits of a second. Days are turned into a date by the usual era arithmetic of the
/// proleptic Gregorian calendar.
fn timestamp(now: i64) -> String {
    let (seconds, nanos) = (now.div_euclid(1_000_000_000), now.rem_euclid(1_000_000_000));
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(pieces: &[&[u8]]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods/a/0.log");
        let mut log = LogFile::open(path.to_str().unwrap()).unwrap();
        let mut lines = LineWriter::new("stdout");
        for piece in pieces {
            lines.push(piece, 0, &mut log);
        }
        lines.finish(0, &mut log);
        let text = std::fs::read_to_string(&path).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_cut_at_their_ends_wherever_they_were_read() {
        assert_eq!(
            written(&[b"one\ntw", b"o\n\nrest"]),
            ["stdout F one", "stdout F two", "stdout F ", "stdout P rest"]
        );
    }

    #[test]
    fn long_lines_are_partial() {
        let long = vec![b'x'; MAX_LINE + 3];
        let lines = written(&[&long, b"\n"]);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), "stdout P ".len() + MAX_LINE);
        assert_eq!(lines[1], "stdout F xxx");
    }

    #[test]
    fn times_are_utc_with_nanoseconds() {
        for (at, expect) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_798_761_599_999_999_999, "2026-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(timestamp(at), expect);
        }
    }
}
