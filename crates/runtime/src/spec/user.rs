//! Who a container's process is: from CRI's numbers and names and the image's `/etc/passwd` and `/etc/group`.

use cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

/// A process's identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or("/") })
    })
}

/// Group name, number and members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// Resolves what the security context asks for, or else the image's `user[:group]`.
pub fn resolve(
    context: &LinuxContainerSecurityContext,
    image_user: &str,
    passwd: &str,
    group: &str,
) -> Result<User, String> {
    let mut user = User { home: "/".into(), ..User::default() };
    let mut name = None;
    let (wanted_user, wanted_group) = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => (uid.value.to_string(), None),
        (None, "") => match image_user.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
            None => (image_user.to_owned(), None),
        },
        (None, name) => (name.to_owned(), None),
    };
    let number = |text: &str| text.parse::<u32>().ok();
    if !wanted_user.is_empty() {
        let uid = number(&wanted_user);
        let by_name = accounts(passwd).find(|a| a.name == wanted_user);
        match by_name.or_else(|| accounts(passwd).find(|a| Some(a.uid) == uid)) {
            Some(account) => {
                (user.uid, user.gid, user.home) = (account.uid, account.gid, account.home.to_owned());
                name = Some(account.name);
            }
            None => {
                user.uid = uid.ok_or_else(|| {
                    format!("unable to find user {wanted_user}: no matching entries in passwd file")
                })?
            }
        }
    } else if let Some(root) = accounts(passwd).find(|a| a.uid == 0) {
        (user.gid, user.home) = (root.gid, root.home.to_owned());
        name = Some(root.name);
    }
    if let Some(wanted) = wanted_group {
        let by_name = groups(group).find(|(n, ..)| *n == wanted).map(|(_, gid, _)| gid);
        user.gid = by_name
            .or_else(|| number(&wanted))
            .ok_or_else(|| format!("unable to find group {wanted}: no matching entries in group file"))?;
    }
    if let Some(gid) = &context.run_as_group {
        user.gid = u32::try_from(gid.value).map_err(|_| format!("invalid group {}", gid.value))?;
    }
    user.groups.push(user.gid);
    if context.supplemental_groups_policy != SupplementalGroupsPolicy::Strict as i32
        && let Some(name) = name
    {
        let member = |list: &str| list.split(',').any(|m| m == name);
        user.groups.extend(groups(group).filter(|(.., members)| member(members)).map(|(_, gid, _)| gid));
    }
    for gid in &context.supplemental_groups {
        user.groups.push(u32::try_from(*gid).map_err(|_| format!("invalid group {gid}"))?);
    }
    let mut seen = std::collections::BTreeSet::new();
    user.groups.retain(|gid| seen.insert(*gid));
    Ok(user)
}

#[cfg(test)]
mod tests {
    use cri::v1::Int64Value;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:app,other\napp:x:1001:\n";

    fn check(context: LinuxContainerSecurityContext, image: &str) -> Result<(u32, u32, Vec<u32>), String> {
        resolve(&context, image, PASSWD, GROUP).map(|u| (u.uid, u.gid, u.groups))
    }

    #[test]
    fn users_come_from_the_image_or_the_pod() {
        let none = LinuxContainerSecurityContext::default;
        let value = |value| Some(Int64Value { value });
        assert_eq!(check(none(), "").unwrap(), (0, 0, vec![0]));
        assert_eq!(check(none(), "app").unwrap(), (1000, 1001, vec![1001, 10]));
        assert_eq!(check(none(), "1000:wheel").unwrap(), (1000, 10, vec![10]));
        assert_eq!(check(none(), "77").unwrap(), (77, 0, vec![0]));
        assert!(check(none(), "nobody").is_err());
        let context = LinuxContainerSecurityContext {
            run_as_user: value(1000),
            run_as_group: value(5),
            supplemental_groups: vec![7, 10],
            ..none()
        };
        assert_eq!(check(context.clone(), "root").unwrap(), (1000, 5, vec![5, 10, 7]));
        let strict = LinuxContainerSecurityContext {
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
            supplemental_groups: vec![7],
            ..context
        };
        assert_eq!(check(strict, "root").unwrap(), (1000, 5, vec![5, 7]));
    }
}
