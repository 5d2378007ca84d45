//! Security contexts of pods and containers.

use serde_json::Value;

use super::common;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

fn id(errors: &mut Errors, holder: &Value, path: &Path<'_>, key: &str) {
    if let Some(id) = holder.int(key) {
        number(errors, id, &path.child(key));
    }
}

fn number(errors: &mut Errors, id: i64, path: &Path<'_>) {
    if !(0..=i64::from(i32::MAX)).contains(&id) {
        errors.invalid(path, id, names::range(0, i32::MAX.into()));
    }
}

/// A pod's security context.
pub(crate) fn pod(errors: &mut Errors, context: &Value, spec: &Value, path: &Path<'_>) {
    if !context.is_object() {
        return;
    }
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errors, context, path, key);
    }
    let groups = path.child("supplementalGroups");
    for (index, group) in context.items("supplementalGroups").iter().enumerate() {
        number(errors, group.as_i64().unwrap_or_default(), &groups.index(index));
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        errors.invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(errors, context, spec, &path.child("sysctls"));
    choice(errors, context, path, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    choice(errors, context, path, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    choice(errors, context, path, "seLinuxChangePolicy", &["MountOption", "Recursive"]);
    profiles(errors, context, path);
}

fn choice(errors: &mut Errors, holder: &Value, path: &Path<'_>, key: &str, supported: &[&str]) {
    if holder.has(key) && !supported.contains(&holder.text(key)) {
        errors.not_supported(&path.child(key), holder.text(key), supported);
    }
}

fn sysctls(errors: &mut Errors, context: &Value, spec: &Value, path: &Path<'_>) {
    let mut seen = Vec::new();
    for (index, sysctl) in context.items("sysctls").iter().enumerate() {
        let at = path.index(index);
        let name = sysctl.text("name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if !is_sysctl(name) {
            errors.invalid(
                &at.child("name"),
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if seen.contains(&name) {
            errors.duplicate(&at.child("name"), name);
        }
        seen.push(name);
        let dotted = name.replace('/', ".");
        let ipc = ["kernel.shm_rmid_forced", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem"];
        if spec.flag("hostNetwork") && dotted.starts_with("net.") {
            errors.invalid(&at.child("name"), name, "may not be specified when 'hostNetwork' is true");
        } else if spec.flag("hostIPC")
            && (ipc.contains(&dotted.as_str())
                || dotted.starts_with("kernel.shm")
                || dotted.starts_with("kernel.msg")
                || dotted.starts_with("fs.mqueue."))
        {
            errors.invalid(&at.child("name"), name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().copied().is_some_and(edge)
                && bytes.last().copied().is_some_and(edge)
                && bytes.iter().all(|b| edge(*b) || matches!(b, b'-' | b'_'))
        })
}

/// A container's security context.
pub(crate) fn container(errors: &mut Errors, context: &Value, path: &Path<'_>, host_users: bool) {
    if !context.is_object() {
        return;
    }
    id(errors, context, path, "runAsUser");
    id(errors, context, path, "runAsGroup");
    if context.has("procMount") {
        choice(errors, context, path, "procMount", &["Default", "Unmasked"]);
        if host_users && context.text("procMount") == "Unmasked" {
            errors.invalid(
                &path.child("procMount"),
                "Unmasked",
                "`hostUsers` must be false to use `Unmasked`",
            );
        }
    }
    if context.at("allowPrivilegeEscalation").as_bool() == Some(false) {
        if context.flag("privileged") {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let added = context.at("capabilities").items("add");
        for _ in added.iter().filter(|capability| *capability == "CAP_SYS_ADMIN") {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    profiles(errors, context, path);
}

/// Seccomp, AppArmor and Windows options.
fn profiles(errors: &mut Errors, context: &Value, path: &Path<'_>) {
    let seccomp = context.at("seccompProfile");
    if seccomp.is_object() {
        let path = path.child("seccompProfile");
        let local = path.child("localhostProfile");
        let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
        match seccomp.text("type") {
            "" => errors.required(&path.child("type"), "type is required when seccompProfile is set"),
            kind if kinds.contains(&kind) => {}
            kind => errors.not_supported(&path.child("type"), kind, &kinds),
        }
        match (seccomp.text("type") == "Localhost", seccomp.at("localhostProfile").as_str()) {
            (true, None) => errors.required(&local, "must be set when seccomp type is Localhost"),
            (true, Some(profile)) => common::local_path(errors, profile, &local),
            (false, Some(_)) => {
                errors.invalid(&local, seccomp.clone(), "can only be set when seccomp type is Localhost");
            }
            (false, None) => {}
        }
    }
    let armor = context.at("appArmorProfile");
    if armor.is_object() {
        let path = path.child("appArmorProfile");
        let local = path.child("localhostProfile");
        match (armor.text("type"), armor.at("localhostProfile").as_str()) {
            ("Localhost", None | Some("")) => {
                errors.required(&local, "must be set when AppArmor type is Localhost");
            }
            ("Localhost", Some(profile)) if profile.trim() != profile => {
                errors.invalid(&local, profile, "must not be padded with whitespace");
            }
            ("Localhost", Some(profile)) if profile.len() > 4095 => errors.too_long(&local, 4095),
            ("RuntimeDefault" | "Unconfined", Some(profile)) => {
                errors.invalid(&local, profile, "can only be set when AppArmor type is Localhost");
            }
            ("Localhost" | "RuntimeDefault" | "Unconfined", _) => {}
            ("", _) => {
                errors.required(&path.child("type"), "type is required when appArmorProfile is set");
            }
            (kind, _) => errors.not_supported(
                &path.child("type"),
                kind,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            ),
        }
    }
}
