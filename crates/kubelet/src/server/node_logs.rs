//! `/logs/`: the files below `/var/log`, and with `query` the logs of the node's services: from the journal where there is one,
//! else from the files that services usually write.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http::{Response, StatusCode};
use jiff::Timestamp;
use tokio::io::AsyncReadExt;

use super::{Body, Call, Refusal, answer};

/// Where a node's logs lie.
const DIR: &str = "/var/log";
const MAX_SERVICES: usize = 4;
const MAX_TAIL: i64 = 100_000;
/// An answer of services' logs is cut off here.
const MAX_ANSWER: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    services: Vec<String>,
    file: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail: Option<i64>,
    boot: Option<i64>,
    pattern: String,
}

fn invalid(field: &str, value: &str, why: &str) -> String {
    format!("{field}: Invalid value: {value:?}: {why}")
}

impl Query {
    /// Reads and checks the parameters; all that is wrong is told at once.
    fn parse(call: &Call<'_>) -> Result<Self, String> {
        let mut wrong = Vec::new();
        let mut query = Query::default();
        let words = [call.values("query"), call.values("unit")].concat();
        let mut files = Vec::new();
        for word in &words {
            if word.contains(['/', '\\']) {
                files.push(word.clone());
            } else if !word.trim().is_empty() {
                query.services.push(word.clone());
            }
        }
        if query.services.is_empty() && files.is_empty() {
            wrong.push(invalid("unit", &words.join(","), "unit cannot be empty"));
        }
        let mut time = |name: &str| {
            let text = call.value(name).filter(|text| !text.is_empty())?;
            let parsed = text.parse::<Timestamp>();
            if parsed.is_err() {
                wrong.push(invalid(name, text, "invalid time format"));
            }
            parsed.ok()
        };
        (query.since, query.until) = (time("sinceTime"), time("untilTime"));
        let mut number = |names: &[&str]| {
            let text = names.iter().find_map(|name| call.value(name)).filter(|text| !text.is_empty())?;
            let parsed = text.parse::<i64>();
            if parsed.is_err() {
                wrong.push(invalid(names[0], text, "must be a whole number"));
            }
            parsed.ok()
        };
        (query.tail, query.boot) = (number(&["tailLines", "tail"]), number(&["boot"]));
        query.pattern = call.value("pattern").or(call.value("grep")).unwrap_or_default().to_owned();
        for service in &query.services {
            let safe = |c: char| c.is_ascii_alphanumeric() || "._@:-".contains(c);
            if !service.chars().all(safe) || service.starts_with('-') {
                wrong.push(invalid("query", service, "input contains unsupported characters"));
            }
        }
        if query.services.len() > MAX_SERVICES {
            wrong.push(format!(
                "query: Too many: {}: must have at most {MAX_SERVICES} items",
                query.services.len()
            ));
        }
        let options = query.since.is_some()
            || query.until.is_some()
            || query.tail.is_some()
            || query.boot.is_some()
            || !query.pattern.is_empty();
        match files.as_slice() {
            [] => {}
            _ if !query.services.is_empty() => {
                wrong.push(invalid("query", &words.join(", "), "cannot specify a file and service"));
            }
            [file] if options => wrong.push(invalid("query", file, "cannot specify file with options")),
            [file] => query.file = Some(file.clone()),
            _ => wrong.push(invalid("query", &files.join(", "), "cannot specify more than one file")),
        }
        if query.since.zip(query.until).is_some_and(|(since, until)| since > until) {
            let until = call.value("untilTime").unwrap_or_default();
            wrong.push(invalid("untilTime", until, "must be after `sinceTime`"));
        }
        if let Some(boot) = query.boot.filter(|boot| *boot > 0) {
            wrong.push(invalid("boot", &boot.to_string(), "must be less than 1"));
        }
        if let Some(tail) = query.tail.filter(|tail| !(0..=MAX_TAIL).contains(tail)) {
            wrong.push(invalid("tailLines", &tail.to_string(), "must be between 0 and 100000, inclusive"));
        }
        if wrong.is_empty() { Ok(query) } else { Err(wrong.join(", ")) }
    }

    /// What `journalctl` is told.
    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["--utc", "--no-pager", "--output=short-precise"].map(str::to_owned).into();
        let time = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S").to_string();
        arguments.extend(self.since.map(|since| format!("--since={}", time(since))));
        arguments.extend(self.until.map(|until| format!("--until={}", time(until))));
        arguments.extend(self.tail.map(|tail| format!("--lines={tail}")));
        arguments.extend(self.boot.map(|boot| format!("--boot={boot}")));
        arguments.extend(self.services.iter().map(|service| format!("--unit={service}")));
        if !self.pattern.is_empty() {
            arguments.push(format!("--grep={}", self.pattern));
            arguments.push("--case-sensitive=false".to_owned());
        }
        arguments
    }
}

/// Serves a request below `/logs`.
pub(super) async fn serve(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    if call.value("query").is_none() && call.value("unit").is_none() {
        return file(Path::new(DIR), &call.parts[1..].join("/")).await;
    }
    let query = Query::parse(call).map_err(Refusal::bad_request)?;
    if let Some(path) = &query.file {
        return file(Path::new(DIR), path.trim_start_matches('/')).await;
    }
    let text = "text/plain; charset=utf-8";
    if let Some(journal) = journal(&query).await {
        return Ok(answer(StatusCode::OK, text, journal));
    }
    let mut out = Vec::new();
    for service in &query.services {
        of_service(Path::new(DIR), service, &mut out).await;
    }
    Ok(answer(StatusCode::OK, text, out))
}

/// The journal's entries; none where there is no journal, or nothing about the services in it.
async fn journal(query: &Query) -> Option<Vec<u8>> {
    let mut command = tokio::process::Command::new("journalctl");
    command.args(query.arguments()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().ok()?;
    let mut out = Vec::new();
    let read = child.stdout.take()?.take(MAX_ANSWER);
    let mut read = std::pin::pin!(read);
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut out)).await.ok()?.ok()?;
    let empty = out.is_empty() || out.starts_with(b"-- No entries --");
    (!empty).then_some(out)
}

/// Looks for a service's file, as upstream does: its name, with `.log`, and the latter in a folder of its name.
async fn of_service(dir: &Path, service: &str, out: &mut Vec<u8>) {
    for name in [service.to_owned(), format!("{service}.log"), format!("{service}/{service}.log")] {
        let Ok(path) = within(dir, &name) else { continue };
        if !path.is_file() {
            continue;
        }
        let Ok(file) = tokio::fs::File::open(&path).await else { continue };
        if file.take(MAX_ANSWER).read_to_end(out).await.is_ok() {
            return;
        }
    }
    out.extend_from_slice(format!("\nlog not found for {service}\n").as_bytes());
}

/// The real place of `path` below `dir`; what leads out of it is not there.
fn within(dir: &Path, path: &str) -> std::io::Result<PathBuf> {
    let root = dir.canonicalize()?;
    let found = root.join(path.trim_start_matches('/')).canonicalize()?;
    if found.starts_with(&root) { Ok(found) } else { Err(std::io::ErrorKind::NotFound.into()) }
}

/// A file's content, or a folder's as a page of links.
async fn file(dir: &Path, path: &str) -> Result<Response<Body>, Refusal> {
    let missing = |_| Refusal::not_found("404 page not found");
    let found = within(dir, path).map_err(missing)?;
    if !found.is_dir() {
        let mut content = Vec::new();
        let file = tokio::fs::File::open(&found).await.map_err(missing)?;
        file.take(MAX_ANSWER).read_to_end(&mut content).await.map_err(missing)?;
        return Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", content));
    }
    let mut names: Vec<String> = std::fs::read_dir(&found)
        .map_err(missing)?
        .flatten()
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() { format!("{name}/") } else { name }
        })
        .collect();
    names.sort();
    let mut page =
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in names {
        let shown =
            name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        page.push_str(&format!("<a href=\"{shown}\">{shown}</a>\n"));
    }
    page.push_str("</pre>\n");
    Ok(answer(StatusCode::OK, "text/html; charset=utf-8", page))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, String> {
        Query::parse(&Call { parts: vec!["logs"], query: super::super::decode_query(text) })
    }

    #[test]
    fn queries_are_checked() {
        let good = query("query=kubelet&tailLines=5&pattern=x").unwrap();
        assert_eq!((good.services.as_slice(), good.tail), (&["kubelet".to_owned()][..], Some(5)));
        assert!(good.arguments().contains(&"--unit=kubelet".to_owned()));
        assert_eq!(query("query=/a.log").unwrap().file.as_deref(), Some("/a.log"));
        for (text, why) in [
            ("query=%20", "unit cannot be empty"),
            ("query=a%3Bb", "unsupported characters"),
            ("query=--flag", "unsupported characters"),
            ("query=a&query=b&query=c&query=d&query=e", "must have at most 4"),
            ("query=a&query=/b", "cannot specify a file and service"),
            ("query=/a&query=/b", "cannot specify more than one file"),
            ("query=/a&tailLines=1", "cannot specify file with options"),
            ("query=a&sinceTime=noon", "invalid time format"),
            ("query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", "must be after"),
            ("query=a&boot=1", "must be less than 1"),
            ("query=a&tailLines=100001", "between 0 and 100000"),
        ] {
            let error = query(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn files_stay_within_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let log = dir.path().join("log");
        std::fs::write(log.join("app.log"), "hello").unwrap();
        std::fs::write(dir.path().join("secret"), "no").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), log.join("link")).unwrap();
        let mut out = Vec::new();
        of_service(&log, "app", &mut out).await;
        assert_eq!(out, b"hello");
        of_service(&log, "link", &mut out).await;
        assert!(String::from_utf8_lossy(&out).contains("log not found for link"));
        assert_eq!(file(&log, "app.log").await.unwrap().status(), StatusCode::OK);
        assert_eq!(file(&log, "").await.unwrap().status(), StatusCode::OK);
        for bad in ["../secret", "link", "nothing"] {
            assert_eq!(file(&log, bad).await.expect_err(bad).status, StatusCode::NOT_FOUND);
        }
    }
}
