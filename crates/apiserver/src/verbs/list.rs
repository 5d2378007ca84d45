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
    rv: u64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

fn encode_token(revision: u64, start: String) -> String {
    let token = Token { v: TOKEN_VERSION.to_owned(), rv: revision, start };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn decode_token(text: &str) -> Result<Token, Status> {
    let bad = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| bad(&e.to_string()))?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
    if token.v != TOKEN_VERSION || token.start.is_empty() {
        return Err(bad("incorrect encoded version or start"));
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
    let (items, revision, start) = match exact {
        At::Token(token) => {
            let start = Some(token.start);
            match token.rv {
                rv if served.cache.changed() <= rv && registry.applied() >= rv => {
                    (served.cache.list(&prefix, start.as_deref()).0, rv, start)
                }
                rv => (history(call, served, &prefix, start.as_deref(), rv, true).await?, rv, start),
            }
        }
        At::Exact(rv) => {
            registry.reach(rv).await?;
            if served.cache.changed() <= rv {
                (served.cache.list(&prefix, None).0, rv, None)
            } else {
                (history(call, served, &prefix, None, rv, false).await?, rv, None)
            }
        }
        At::Newest | At::Any | At::NotOlder(_) => {
            let revision = match exact {
                At::NotOlder(rv) => registry.reach(rv).await?,
                At::Any => registry.applied(),
                _ => registry.fresh().await?,
            };
            let (items, changed) = served.cache.list(&prefix, None);
            (items, revision.max(changed), None)
        }
    };
    drop(start);
    let unlimited = matches!(at_revision(options)?, At::Any) || options.limit == 0;
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
        Some(last) if more => Some(encode_token(revision, format!("{}\0", last.key))),
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
    continued: bool,
) -> Result<Vec<Arc<Object>>, Status> {
    let (group, plural) = (served.storage.0.as_str(), served.storage.1.as_str());
    let registry = &call.server.registry;
    let from: Option<Bytes> = start.map(|start| feed::join(group, plural, start));
    let before = std::time::Instant::now();
    let range = registry.store.range(feed::join(group, plural, prefix), from, 0, Some(revision)).await;
    crate::registry::count(served, "list", before, range.is_ok());
    let range = range.map_err(|error| match error {
        store::Error::Compacted { .. } if continued => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter.",
        ),
        store::Error::Compacted { .. } => {
            Status::expired(format!("The resourceVersion for the provided list is too old: {revision}"))
        }
        other => store_error(other),
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
