//! What stands in a URL: the path, the query and the selectors in it.

use api::fields::Selector as FieldSelector;
use api::labels::Selector;
use apiserver::{Query, RequestInfo};
use http::{HeaderMap, HeaderValue, Method};

/// Label and field selectors, read and matched.
pub fn selector(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(selector) = Selector::parse(&text) {
        selector.matches(|key| (key.len() % 2 == 0).then_some("value"));
    }
    if let Ok(selector) = FieldSelector::parse(&text) {
        selector.matches(|field| (field.len() % 2 == 0).then_some("value"));
    }
    if let Ok(value) = serde_json::from_slice(data) {
        let _ = Selector::from_json(&value);
    }
}

pub const SELECTORS: &[&[u8]] = &[
    b"a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2,n==o",
    b"metadata.name=a,status.phase!=Running,spec.x=a\\,b\\=c\\\\",
    b"{\"matchLabels\":{\"a\":\"b\"},\"matchExpressions\":[{\"key\":\"k\",\"operator\":\"In\",\"values\":[\"v\"]}]}",
    b" a in ( ),b notin(,)",
];

/// A request line and an Accept header: `METHOD PATH?QUERY` and a line break before the header.
pub fn route(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (line, accept) = text.split_once('\n').unwrap_or((&text, ""));
    let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = Query::parse(query);
    let info = RequestInfo::parse(&method, path, &query);
    info.attributes(&query);
    info.long_running();
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(accept) {
        headers.insert(http::header::ACCEPT, value.clone());
        headers.insert(http::header::CONTENT_TYPE, value);
    }
    apiserver::negotiable(&headers, &query);
}

pub const ROUTES: &[&[u8]] = &[
    b"GET /api/v1/namespaces/a/pods/b/log?follow=true&limit=1\n*/*",
    b"DELETE /apis/apps/v1/namespaces/a/deployments?labelSelector=a%3Db&fieldSelector=%zz\n",
    b"GET /apis/apps/v1/watch/namespaces/a/deployments/d?watch=1\napplication/json;as=Table;v=v1;g=meta.k8s.io,application/yaml;q=0.5",
    b"POST /api/v1/namespaces/a/pods/b/proxy/..%2f..//x?dryRun=All&dryRun=None\napplication/vnd.kubernetes.protobuf;q=x",
    b"GET //api//v1/\xc3\xa4?a=+%2B\n;;,",
];
