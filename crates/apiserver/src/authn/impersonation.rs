//! Acting as somebody else: the `Impersonate-*` headers. Either each part of the wanted identity is allowed by the verb
//! `impersonate`, or, more narrowly, by `impersonate:<mode>` together with `impersonate-on:<mode>:<verb>` on what is
//! requested (KEP-5284; upstream: `endpoints/filters/impersonation`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::HeaderMap;
use parking_lot::Mutex;

use super::token::{account_user, split_account};
use crate::authz::forbidden;
use crate::{Attributes, Authorize, Status, UserInfo};

const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";
/// Callers whose way of impersonating is remembered.
const REMEMBERED: usize = 10_000;
/// From so many groups or extras on, one check for all is tried first.
const MANY: usize = 4;

/// The ways to be allowed, the narrow ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A ServiceAccount as the node that its pod runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

const MODES: [Mode; 5] =
    [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "",
        }
    }

    /// Whether the mode is for this wish at all.
    fn applies(self, caller: &UserInfo, wanted: &UserInfo) -> bool {
        let plain = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node(&wanted.name);
        match self {
            Self::AssociatedNode => {
                let own = caller.extra.get("authentication.kubernetes.io/node-name");
                let own = own.filter(|names| names.len() == 1).map(|names| names[0].as_str());
                plain && node.is_some() && node == own && split_account(&caller.name).is_some()
            }
            Self::ArbitraryNode => plain && node.is_some(),
            Self::ServiceAccount => plain && split_account(&wanted.name).is_some(),
            Self::UserInfo => node.is_none() && split_account(&wanted.name).is_none(),
            Self::Legacy => true,
        }
    }
}

/// The node of a node's user name.
fn node(user: &str) -> Option<&str> {
    let name = user.strip_prefix("system:node:")?;
    api::names::dns1123_subdomain(name).is_empty().then_some(name)
}

/// Decides on impersonation, trying first what worked last for a caller.
#[derive(Default)]
pub struct Impersonation {
    last: Mutex<HashMap<String, Mode>>,
}

impl Impersonation {
    /// The user to go on as: the one of the headers if there are such and the caller may, else the caller. The attributes
    /// are those of the request, with the caller as the user.
    pub async fn apply(
        &self,
        authorizer: &dyn Authorize,
        attributes: &Attributes,
        headers: &HeaderMap,
    ) -> Result<Arc<UserInfo>, Status> {
        let caller = &attributes.user;
        let Some(wanted) = wanted(headers)? else { return Ok(Arc::clone(caller)) };
        let last = self.last.lock().get(&caller.name).copied();
        let order = last.into_iter().chain(MODES.into_iter().filter(|mode| Some(*mode) != last));
        let mut first_error = None;
        for mode in order.filter(|mode| mode.applies(caller, &wanted)) {
            match check(authorizer, mode, attributes, &wanted).await {
                Ok(user) => {
                    self.remember(&caller.name, mode);
                    return Ok(Arc::new(user));
                }
                Err(status) => first_error = first_error.or(Some(status)),
            }
        }
        Err(first_error.unwrap_or_else(|| forbidden(attributes, "all impersonation modes failed")))
    }

    fn remember(&self, caller: &str, mode: Mode) {
        let mut last = self.last.lock();
        if last.len() >= REMEMBERED && !last.contains_key(caller) {
            last.clear();
        }
        last.insert(caller.to_owned(), mode);
    }
}

/// What the headers ask for, as they say it.
fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let first = |name: &str| headers.get(name).map(text).unwrap_or_default();
    let mut wanted = UserInfo {
        name: first("impersonate-user"),
        uid: first("impersonate-uid"),
        groups: headers.get_all("impersonate-group").iter().map(text).collect(),
        extra: BTreeMap::new(),
    };
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            wanted.extra.entry(unescape(key)).or_default().push(text(value));
        }
    }
    if !wanted.name.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty() {
        return Ok(None);
    }
    Err(Status::bad_request("requested groups, uid or extras without impersonating a user name"))
}

async fn allowed(authorizer: &dyn Authorize, attributes: &Attributes) -> Result<(), Status> {
    let decision = authorizer.authorize(attributes).await;
    if decision.allowed() { Ok(()) } else { Err(forbidden(attributes, &decision.reason)) }
}

async fn check(
    authorizer: &dyn Authorize,
    mode: Mode,
    request: &Attributes,
    wanted: &UserInfo,
) -> Result<UserInfo, Status> {
    let narrow = mode != Mode::Legacy;
    let mut caller = Arc::clone(&request.user);
    if mode == Mode::AssociatedNode {
        // Its node was compared already; the answer must not depend on which one it is.
        let keys = caller.extra.keys().cloned().collect();
        let key = "authentication.kubernetes.io/associated-node-keys".to_owned();
        caller = Arc::new(UserInfo { extra: BTreeMap::from([(key, keys)]), ..(*caller).clone() });
    }
    if narrow {
        let on = Attributes {
            user: Arc::clone(&caller),
            verb: format!("impersonate-on:{}:{}", mode.name(), request.verb),
            ..request.clone()
        };
        allowed(authorizer, &on).await?;
    }
    let part = |group: &str, resource: &str| Attributes {
        user: Arc::clone(&caller),
        verb: if narrow { format!("impersonate:{}", mode.name()) } else { "impersonate".to_owned() },
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        resource_request: true,
        ..Attributes::default()
    };
    let group = if narrow { AUTHENTICATION } else { "" };
    let mut user = wanted.clone();
    let account = split_account(&wanted.name);
    let name = match (account, node(&wanted.name).filter(|_| narrow)) {
        (Some((namespace, name)), _) => {
            if wanted.groups.is_empty() {
                user.groups = account_user(namespace, name, "").groups;
            }
            let namespace = namespace.to_owned();
            Attributes { namespace, name: name.to_owned(), ..part(group, "serviceaccounts") }
        }
        (None, Some(node)) => {
            user.groups = vec!["system:nodes".to_owned()];
            let name = if mode == Mode::AssociatedNode { "*" } else { node };
            Attributes { name: name.to_owned(), ..part(group, "nodes") }
        }
        (None, None) => Attributes { name: wanted.name.clone(), ..part(group, "users") },
    };
    allowed(authorizer, &name).await?;
    if !wanted.uid.is_empty() {
        let uid = Attributes { name: wanted.uid.clone(), ..part(AUTHENTICATION, "uids") };
        allowed(authorizer, &uid).await?;
    }
    check_groups(authorizer, narrow, &wanted.groups, part(group, "groups")).await?;
    check_extra(authorizer, narrow, &wanted.extra, part(AUTHENTICATION, "userextras")).await?;
    if user.name == "system:anonymous" {
        add_group(&mut user, "system:unauthenticated");
    } else if !user.in_group("system:unauthenticated") {
        add_group(&mut user, "system:authenticated");
    }
    Ok(user)
}

fn add_group(user: &mut UserInfo, group: &str) {
    if !user.in_group(group) {
        user.groups.push(group.to_owned());
    }
}

async fn check_groups(
    authorizer: &dyn Authorize,
    narrow: bool,
    groups: &[String],
    mut part: Attributes,
) -> Result<(), Status> {
    if narrow && groups.iter().any(String::is_empty) {
        return Err(forbidden(&part, "impersonating the empty string group is not allowed"));
    }
    if narrow && groups.iter().any(|group| group == "system:masters") {
        part.name = "system:masters".to_owned();
        return Err(forbidden(&part, "impersonating the system:masters group is not allowed"));
    }
    if narrow && groups.len() >= MANY {
        part.name = "*".to_owned();
        if allowed(authorizer, &part).await.is_ok() {
            return Ok(());
        }
    }
    for group in groups {
        part.name.clone_from(group);
        allowed(authorizer, &part).await?;
    }
    Ok(())
}

async fn check_extra(
    authorizer: &dyn Authorize,
    narrow: bool,
    extra: &BTreeMap<String, Vec<String>>,
    mut part: Attributes,
) -> Result<(), Status> {
    if narrow && extra.iter().any(|(key, values)| key.is_empty() || values.iter().any(String::is_empty)) {
        return Err(forbidden(&part, "impersonating an empty key or value in extra is not allowed"));
    }
    if narrow && extra.values().map(Vec::len).sum::<usize>() >= MANY {
        (part.subresource, part.name) = ("*".to_owned(), "*".to_owned());
        if allowed(authorizer, &part).await.is_ok() {
            return Ok(());
        }
    }
    for (key, values) in extra {
        part.subresource.clone_from(key);
        for value in values {
            part.name.clone_from(value);
            allowed(authorizer, &part).await?;
        }
    }
    Ok(())
}

fn text(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Undoes %-encoding; a key that is not well encoded stays as it is.
pub(super) fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 16).ok()) else { return key.to_owned() };
        bytes.push(byte);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).unwrap_or_else(|_| key.to_owned())
}
