//! How many seats a request takes: lists by the bytes that they hold at once, writes by the watchers that they have to tell
//! (upstream: `util/flowcontrol/request`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::level::Level;
use super::queueset::Work;
use crate::query::Query;
use crate::registry::Served;
use crate::request::RequestInfo;

const BYTES_PER_SEAT: u64 = 100_000;
/// A list is sent object by object out of the cache and holds no more at once, however long it is.
const STREAMED: u64 = 1_000_000;
const MOST_LIST_SEATS: usize = 100;
const MOST_WRITE_SEATS: usize = 10;
const WATCHES_PER_SEAT: usize = 10;
/// What telling one seat's worth of watchers takes.
const EVENT: Duration = Duration::from_millis(5);

/// Open watches by what they look at: `GROUP/RESOURCE/NAMESPACE/NAME`.
#[derive(Default)]
pub struct Watches(Arc<Mutex<HashMap<String, usize>>>);

/// An open watch; dropping it ends the count.
pub struct Watching {
    watches: Arc<Mutex<HashMap<String, usize>>>,
    key: String,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut watches = self.watches.lock();
        if let Some(count) = watches.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                watches.remove(&self.key);
            }
        }
    }
}

impl Watches {
    /// Counts a watch. One of a single node's pods sees only a small part of the events and is left out.
    pub fn open(&self, info: &RequestInfo, query: &Query) -> Option<Watching> {
        let selector = query.text("fieldSelector");
        if info.resource == "pods" && selector.split(',').any(|term| term.starts_with("spec.nodeName=")) {
            return None;
        }
        let key = format!("{}/{}/{}/{}", info.group, info.resource, info.namespace, info.name);
        *self.0.lock().entry(key.clone()).or_default() += 1;
        Some(Watching { watches: self.0.clone(), key })
    }

    /// The watches that a write has to tell.
    pub fn interested(&self, info: &RequestInfo) -> usize {
        let watches = self.0.lock();
        if watches.is_empty() {
            return 0;
        }
        let mut key = format!("{}/{}/", info.group, info.resource);
        let at = |key: &str| watches.get(key).copied().unwrap_or(0);
        key.push('/');
        let mut count = at(&key);
        key.pop();
        if !info.namespace.is_empty() {
            key.push_str(&info.namespace);
            key.push('/');
            count += at(&key);
        } else {
            key.push('/');
        }
        if !info.name.is_empty() {
            key.push_str(&info.name);
            count += at(&key);
        }
        count
    }
}

/// What a list of a resource holds.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    pub objects: u64,
    /// The mean size of one.
    pub bytes: u64,
}

impl Stored {
    pub fn of(served: &Served) -> Self {
        Self { objects: served.cache.count() as u64, bytes: served.cache.mean_size() as u64 }
    }
}

/// The work of a request at a level. `stored` is asked only for lists.
pub fn estimate(
    info: &RequestInfo,
    query: &Query,
    level: &Level,
    watchers: usize,
    stored: impl FnOnce() -> Option<Stored>,
) -> Work {
    match info.verb.as_str() {
        "list" => list(info, query, level, stored()),
        "watch" => {
            let state = query.flag("sendInitialEvents").unwrap_or(false)
                || matches!(query.text("resourceVersion"), "" | "0");
            if state { list(info, query, level, stored()) } else { Work::ONE }
        }
        "create" | "update" | "patch" | "delete" if watchers >= WATCHES_PER_SEAT => {
            if info.resource == "serviceaccounts" && info.subresource == "token" {
                return Work::ONE;
            }
            let wanted = watchers.div_ceil(WATCHES_PER_SEAT);
            let seats = wanted.min(level.bound(MOST_WRITE_SEATS));
            // The same work on fewer seats takes longer.
            let linger = EVENT.mul_f64(wanted as f64 / seats.max(1) as f64);
            Work { seats: 1, final_seats: seats, linger }
        }
        _ => Work::ONE,
    }
}

fn list(info: &RequestInfo, query: &Query, level: &Level, stored: Option<Stored>) -> Work {
    let Some(stored) = stored.filter(|_| info.name.is_empty()) else { return Work::ONE };
    let limit = query.integer("limit").ok().flatten().and_then(|l| u64::try_from(l).ok()).filter(|l| *l > 0);
    let objects = limit.unwrap_or(u64::MAX).min(stored.objects);
    let exact = query.get("resourceVersionMatch") == Some("Exact") || query.get("continue").is_some();
    let mut bytes = objects.saturating_mul(stored.bytes);
    if !exact {
        bytes = bytes.min(STREAMED);
    }
    let most = level.bound(MOST_LIST_SEATS).max(1);
    let seats = usize::try_from(bytes.div_ceil(BYTES_PER_SEAT)).unwrap_or(most);
    Work { seats: seats.clamp(1, most), ..Work::ONE }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::Method;

    use super::*;
    use crate::flow::config::LevelConfig;

    fn level(most: usize) -> Arc<Level> {
        let config = LevelConfig {
            name: "l".to_owned(),
            uid: String::new(),
            exempt: false,
            shares: 1,
            lendable_percent: 0,
            borrowing_percent: None,
            queuing: None,
        };
        let level = Level::new(&config, Instant::now());
        level.most_seats.store(most, std::sync::atomic::Ordering::Relaxed);
        level
    }

    fn check(method: Method, uri: &str, (objects, bytes): (u64, u64), most: usize, expect: Work) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let query = Query::parse(query);
        let info = RequestInfo::parse(&method, path, &query);
        let got = estimate(&info, &query, &level(most), 0, || Some(Stored { objects, bytes }));
        assert_eq!(got, expect, "{method} {uri}");
    }

    #[test]
    fn lists_cost_by_the_bytes_that_they_hold_at_once() {
        let seats = |seats| Work { seats, ..Work::ONE };
        let path = "/api/v1/pods";
        check(Method::GET, path, (0, 0), 0, seats(1));
        check(Method::GET, path, (1000, 500), 0, seats(5));
        check(Method::GET, path, (100_000, 3000), 0, seats(10));
        check(Method::GET, path, (100_000, 3000), 4, seats(4));
        check(Method::GET, "/api/v1/pods?limit=100", (100_000, 3000), 0, seats(3));
        check(
            Method::GET,
            "/api/v1/pods?resourceVersionMatch=Exact&resourceVersion=7",
            (100_000, 3000),
            0,
            seats(100),
        );
        check(Method::GET, "/api/v1/namespaces/a/pods/x", (100_000, 3000), 0, seats(1));
        check(Method::GET, "/api/v1/pods?watch=1", (1000, 500), 0, seats(5));
        check(Method::GET, "/api/v1/pods?watch=1&resourceVersion=9", (1000, 500), 0, seats(1));
        check(Method::POST, "/api/v1/namespaces/a/pods", (1000, 500), 0, Work::ONE);
    }

    #[test]
    fn writes_cost_by_the_watchers_that_they_tell() {
        let watches = Watches::default();
        let ask = |method: Method, uri: &str| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let query = Query::parse(query);
            (RequestInfo::parse(&method, path, &query), query)
        };
        let mut open = Vec::new();
        for i in 0..120 {
            let uri = match i % 4 {
                0 => "/api/v1/pods?watch=1",
                1 => "/api/v1/namespaces/a/pods?watch=1",
                2 => "/api/v1/namespaces/b/pods?watch=1",
                _ => "/api/v1/pods?watch=1&fieldSelector=spec.nodeName=n",
            };
            let (info, query) = ask(Method::GET, uri);
            open.extend(watches.open(&info, &query));
        }
        let (info, query) = ask(Method::POST, "/api/v1/namespaces/a/pods");
        assert_eq!(watches.interested(&info), 60);
        let work = estimate(&info, &query, &level(0), 60, || None);
        assert_eq!(work, Work { seats: 1, final_seats: 6, linger: Duration::from_millis(5) });
        let work = estimate(&info, &query, &level(2), 60, || None);
        assert_eq!(work, Work { seats: 1, final_seats: 2, linger: Duration::from_millis(15) });
        drop(open);
        assert_eq!(watches.interested(&info), 0);
        assert!(watches.0.lock().is_empty());
    }
}
