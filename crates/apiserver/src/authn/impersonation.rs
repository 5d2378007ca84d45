//! Acting as somebody else: the `Impersonate-*` headers, each of which the caller must be allowed to use
//! (upstream: `endpoints/filters/impersonation`).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;

use super::token::{account_user, split_account};
use crate::authz::{Authorizer, forbidden};
use crate::{Attributes, Status, UserInfo};

const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whether some header asks for impersonation.
pub(super) fn asked(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
}

/// The user to go on as: the one of the headers if there are such and the caller may, else the caller.
pub(super) fn impersonate(
    authorizer: &Authorizer,
    caller: UserInfo,
    headers: &HeaderMap,
) -> Result<UserInfo, Status> {
    let first = |name: &str| headers.get(name).map(text).unwrap_or_default();
    let user = first("impersonate-user");
    let uid = first("impersonate-uid");
    let groups: Vec<String> = headers.get_all("impersonate-group").iter().map(text).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            extra.entry(unescape(key)).or_default().push(text(value));
        }
    }
    if user.is_empty() {
        if groups.is_empty() && extra.is_empty() && uid.is_empty() {
            return Ok(caller);
        }
        return Err(Status::bad_request(
            "requested impersonation of groups, uid or extras without impersonating a user",
        ));
    }
    let caller = Arc::new(caller);
    let check = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            user: Arc::clone(&caller),
            verb: "impersonate".to_owned(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            resource_request: true,
            ..Attributes::default()
        };
        let decision = authorizer.decide(&attributes);
        if decision.allowed() { Ok(()) } else { Err(forbidden(&attributes, &decision.reason)) }
    };
    let mut target = match split_account(&user) {
        Some((namespace, name)) => {
            check("", "serviceaccounts", "", namespace, name)?;
            account_user(namespace, name, "")
        }
        None => {
            check("", "users", "", "", &user)?;
            UserInfo { name: user, ..UserInfo::default() }
        }
    };
    if !groups.is_empty() {
        target.groups = groups;
        for group in &target.groups {
            check("", "groups", "", "", group)?;
        }
    }
    for (key, values) in &extra {
        for value in values {
            check(AUTHENTICATION, "userextras", key, "", value)?;
        }
    }
    if !uid.is_empty() {
        check(AUTHENTICATION, "uids", "", "", &uid)?;
    }
    target.extra = extra;
    target.uid = uid;
    let (implied, excluding) = match target.name.as_str() {
        "system:anonymous" => ("system:unauthenticated", "system:unauthenticated"),
        _ => ("system:authenticated", "system:unauthenticated"),
    };
    if !target.in_group(implied) && !target.in_group(excluding) {
        target.groups.push(implied.to_owned());
    }
    Ok(target)
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
