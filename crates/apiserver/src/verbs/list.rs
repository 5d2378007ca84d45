//! GET on a collection: selectors, pages at one revision, and the meanings of resourceVersion.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::read::invalid_version;
use super::{Answered, Call};
use crate::query::ListOptions;
use crate::registry::object::{Change, Object};
use crate::registry::{Served, feed, store_error};
use crate::selector::Selector;
use crate::{Status, render};

/// A page of a list.
pub struct Selected {
    pub items: Vec<Arc<Object>>,
    pub revision: u64,
    pub token: Option<String>,
    pub remaining: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// [`NEWEST`] goes on with the newest state.
    rv: i64,
    start: String,
}

/// The revision in a token that no longer shows the state in which its list began.
const NEWEST: i64 = -1;

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

fn encode_token(rv: i64, start: String) -> String {
    let token = Token { v: TOKEN_VERSION.to_owned(), rv, start };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn decode_token(text: &str) -> Result<Token, Status> {
    let bad = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| bad(&e.to_string()))?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
    if token.v != TOKEN_VERSION {
        return Err(bad("server does not recognize this encoded version"));
    }
    if token.rv == 0 || token.rv < NEWEST {
        return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
    }
    if token.start.is_empty() {
        return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
    }
    let key = token.start.strip_prefix('/').unwrap_or(&token.start);
    if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(bad(&token.start));
    }
    Ok(token)
}

pub async fn run(call: &Call, served: &Served) -> Answered {
    let options = ListOptions::read(&call.query, false)?;
    if let Some(shared) = whole(call, served, &options).await? {
        return Ok(shared);
    }
    let selected = select(call, served, &options).await?;
    answer(call, served, selected)
}

pub fn answer(call: &Call, served: &Served, selected: Selected) -> Answered {
    render::list(call, served, selected)
}

/// A list of everything under a prefix as it is now, which many ask for at once: sent from encoded blocks that they share.
async fn whole(
    call: &Call,
    served: &Served,
    options: &ListOptions,
) -> Result<Option<http::Response<crate::http::body::Body>>, Status> {
    if !options.label_selector.is_empty() || !options.field_selector.is_empty() || options.limit != 0 {
        return Ok(None);
    }
    let registry = &call.server.registry;
    let revision = match at_revision(options)? {
        At::Newest => registry.fresh().await?,
        At::Any => registry.applied(),
        At::NotOlder(version) => registry.reach(version).await?,
        At::Exact(_) | At::Token(_) => return Ok(None),
    };
    Ok(render::shared_list(call, served, &served.prefix(&call.info.namespace), revision))
}

/// Chooses the objects of a list or deletecollection.
pub async fn select(call: &Call, served: &Served, options: &ListOptions) -> Result<Selected, Status> {
    let selector = Selector::parse(served, &options.label_selector, &options.field_selector)?;
    let prefix = served.prefix(&call.info.namespace);
    let exact = at_revision(options)?;
    let registry = &call.server.registry;
    let unlimited = matches!(exact, At::Any) || options.limit == 0;
    let (items, revision) = match exact {
        At::Token(token) => {
            let start = Some(token.start.as_str());
            match u64::try_from(token.rv) {
                Err(_) => {
                    let revision = registry.fresh().await?;
                    let (items, changed) = served.cache.list(&prefix, start);
                    (items, revision.max(changed))
                }
                Ok(rv) if served.cache.changed() <= rv && registry.applied() >= rv => {
                    (served.cache.list(&prefix, start).0, rv)
                }
                Ok(rv) => (history(call, served, &prefix, start, rv).await?, rv),
            }
        }
        At::Exact(rv) => {
            registry.reach(rv).await?;
            if served.cache.changed() <= rv {
                (served.cache.list(&prefix, None).0, rv)
            } else {
                (history(call, served, &prefix, None, rv).await?, rv)
            }
        }
        At::Newest | At::Any | At::NotOlder(_) => {
            let revision = match exact {
                At::NotOlder(rv) => registry.reach(rv).await?,
                At::Any => registry.applied(),
                _ => registry.fresh().await?,
            };
            let (items, changed) = served.cache.list(&prefix, None);
            (items, revision.max(changed))
        }
    };
    page(served, items, revision, &selector, if unlimited { 0 } else { options.limit }).await
}

async fn page(
    served: &Served,
    items: Vec<Arc<Object>>,
    revision: u64,
    selector: &Selector,
    limit: usize,
) -> Result<Selected, Status> {
    let total = items.len();
    let mut chosen = Vec::with_capacity(if limit > 0 { limit.min(total) } else { total });
    let mut seen = 0;
    let mut more = false;
    let mut items = items.into_iter();
    while items.len() > 0 && !more {
        // What has to be converted before it is chosen is converted by the page.
        let pages = !served.selects_stored() && limit > 0;
        let next: Vec<_> = items.by_ref().take(if pages { limit } else { total }).collect();
        let next = if served.selects_stored() { next } else { served.views(next).await? };
        for object in next {
            if limit > 0 && chosen.len() == limit {
                more = true;
                break;
            }
            seen += 1;
            if selector.matches(served, &object) {
                chosen.push(object);
            }
        }
    }
    more |= limit > 0 && chosen.len() == limit && items.len() > 0;
    if served.selects_stored() {
        chosen = served.views(chosen).await?;
    }
    let token = match chosen.last() {
        Some(last) if more => {
            let revision = i64::try_from(revision).map_err(Status::internal)?;
            Some(encode_token(revision, format!("{}\0", last.key)))
        }
        _ => None,
    };
    let remaining = (more && selector.everything()).then(|| total - seen);
    Ok(Selected { items: chosen, revision, token, remaining })
}

enum At {
    /// As new as the store.
    Newest,
    /// Whatever the cache has.
    Any,
    NotOlder(u64),
    Exact(u64),
    Token(Token),
}

fn at_revision(options: &ListOptions) -> Result<At, Status> {
    let version = options.resource_version.as_str();
    if !options.token.is_empty() {
        if !matches!(version, "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        return Ok(At::Token(decode_token(&options.token)?));
    }
    match version {
        "" => Ok(At::Newest),
        "0" => Ok(At::Any),
        text => {
            let rv: u64 = text.parse().map_err(|_| invalid_version(text))?;
            let legacy = options.version_match.is_empty() && options.limit > 0;
            Ok(if options.version_match == "Exact" || legacy { At::Exact(rv) } else { At::NotOlder(rv) })
        }
    }
}

/// The objects at a past revision, out of the store.
async fn history(
    call: &Call,
    served: &Served,
    prefix: &str,
    start: Option<&str>,
    revision: u64,
) -> Result<Vec<Arc<Object>>, Status> {
    let (group, plural) = (served.storage.0.as_str(), served.storage.1.as_str());
    let registry = &call.server.registry;
    let from: Option<Bytes> = start.map(|start| feed::join(group, plural, start));
    let before = std::time::Instant::now();
    let range = registry.store.range(feed::join(group, plural, prefix), from, 0, Some(revision)).await;
    crate::registry::count(served, "list", before, range.is_ok());
    let range = range.map_err(|error| match (error, start) {
        (store::Error::Compacted { .. }, Some(start)) => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter, or use the continue token in this response to retrieve the remainder \
             of the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the \
             list.",
        )
        .with_continue(encode_token(NEWEST, start.to_owned())),
        (store::Error::Compacted { .. }, None) => {
            Status::expired(format!("The resourceVersion for the provided list is too old: {revision}"))
        }
        (other, _) => store_error(other),
    })?;
    registry.codec.ready(range.items.iter().map(|kv| &kv.value)).await;
    let mut items = Vec::with_capacity(range.items.len());
    for kv in &range.items {
        let Some((_, _, key)) = feed::split(&kv.key) else { continue };
        let object = registry.codec.object(
            (group, plural, key),
            &kv.key,
            &kv.value,
            kv.mod_revision,
            Change::Added,
        )?;
        items.push(Arc::new(object));
    }
    Ok(items)
}
