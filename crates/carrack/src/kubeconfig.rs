//! Merging the cluster into the user's own kubeconfig.

use std::path::{Path, PathBuf};

use anyhow::Context;
use kube::config::Kubeconfig;

/// Adds the cluster of `from` to `~/.kube/config`. A context that is there already under this name and means another
/// cluster is kept; the new one then gets a name of its own. Tells the context's name.
pub fn merge(from: &Path) -> anyhow::Result<(String, PathBuf)> {
    let home = std::env::var_os("HOME").context("$HOME is not set: which kubeconfig?")?;
    let path = Path::new(&home).join(".kube/config");
    let new = Kubeconfig::read_from(from).with_context(|| format!("reading {}", from.display()))?;
    let old = match path.exists() {
        true => Kubeconfig::read_from(&path)
            .with_context(|| format!("reading {}; it was left as it is", path.display()))?,
        false => Kubeconfig::default(),
    };
    let (name, merged) = combine(old, new)?;
    let text = serde_saphyr::to_string(&merged).context("writing YAML")?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    write_private(&path, &text)?;
    Ok((name, path))
}

fn combine(mut old: Kubeconfig, new: Kubeconfig) -> anyhow::Result<(String, Kubeconfig)> {
    let (cluster, user) = (new.clusters.first(), new.auth_infos.first());
    let (Some(cluster), Some(user)) = (cluster.cloned(), user.cloned()) else {
        anyhow::bail!("the cluster's kubeconfig names no cluster and user")
    };
    let ours = |config: &Kubeconfig, name: &str| {
        let same = |a: &kube::config::NamedCluster| {
            let server =
                |one: &kube::config::NamedCluster| one.cluster.as_ref().and_then(|one| one.server.clone());
            let authority = |one: &kube::config::NamedCluster| {
                one.cluster.as_ref().and_then(|one| one.certificate_authority_data.clone())
            };
            server(a) == server(&cluster) && authority(a) == authority(&cluster)
        };
        let taken = config.contexts.iter().any(|one| one.name == name);
        let known = config.clusters.iter().find(|one| one.name == name);
        !taken || known.is_some_and(same)
    };
    let names = std::iter::once("carrack".to_owned()).chain((2..).map(|number| format!("carrack-{number}")));
    let name = names.into_iter().find(|name| ours(&old, name)).context("no free name")?;
    old.clusters.retain(|one| one.name != name);
    old.auth_infos.retain(|one| one.name != name);
    old.contexts.retain(|one| one.name != name);
    old.clusters.push(kube::config::NamedCluster { name: name.clone(), ..cluster });
    old.auth_infos.push(kube::config::NamedAuthInfo { name: name.clone(), ..user });
    old.contexts.push(kube::config::NamedContext {
        name: name.clone(),
        context: Some(kube::config::Context {
            cluster: name.clone(),
            user: Some(name.clone()),
            ..kube::config::Context::default()
        }),
        ..kube::config::NamedContext::default()
    });
    old.current_context.get_or_insert_with(|| name.clone());
    Ok((name, old))
}

/// Writes a node's kubeconfig: the cluster of the one that it was bootstrapped with, and its own certificate. One that is
/// there is kept.
pub fn of_node(bootstrap: &Path, to: &Path, certificate: &Path) -> anyhow::Result<()> {
    if to.exists() {
        return Ok(());
    }
    let from =
        Kubeconfig::read_from(bootstrap).with_context(|| format!("reading {}", bootstrap.display()))?;
    let current = from.current_context.clone().unwrap_or_default();
    let context = from.contexts.iter().find(|one| one.name == current).and_then(|one| one.context.clone());
    let cluster = context.map(|context| context.cluster).unwrap_or_default();
    let mut cluster =
        from.clusters.into_iter().find(|one| one.name == cluster).context("it names no cluster")?;
    cluster.name = "default-cluster".to_owned();
    let file = Some(certificate.to_string_lossy().into_owned());
    let name = || "default-auth".to_owned();
    let config = Kubeconfig {
        clusters: vec![cluster],
        auth_infos: vec![kube::config::NamedAuthInfo {
            name: name(),
            auth_info: Some(kube::config::AuthInfo {
                client_certificate: file.clone(),
                client_key: file,
                ..kube::config::AuthInfo::default()
            }),
            ..kube::config::NamedAuthInfo::default()
        }],
        contexts: vec![kube::config::NamedContext {
            name: "default-context".to_owned(),
            context: Some(kube::config::Context {
                cluster: "default-cluster".to_owned(),
                user: Some(name()),
                ..kube::config::Context::default()
            }),
            ..kube::config::NamedContext::default()
        }],
        current_context: Some("default-context".to_owned()),
        ..Kubeconfig::default()
    };
    let text = serde_saphyr::to_string(&config).context("writing YAML")?;
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    write_private(to, &text)
}

/// Replaces a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file =
            std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, server: &str) -> Kubeconfig {
        let text = format!(
            "clusters: [{{name: {name}, cluster: {{server: \"{server}\"}}}}]\nusers: [{{name: {name}, user: {{token: t}}}}]\n\
             contexts: [{{name: {name}, context: {{cluster: {name}, user: {name}}}}}]\ncurrent-context: {name}\n"
        );
        Kubeconfig::from_yaml(&text).expect("a valid kubeconfig")
    }

    #[test]
    fn a_context_of_another_cluster_is_never_overwritten() {
        let ours = config("carrack", "https://127.0.0.1:6443");
        let (name, merged) = combine(Kubeconfig::default(), ours.clone()).expect("merges");
        assert_eq!((name.as_str(), merged.current_context.as_deref()), ("carrack", Some("carrack")));
        let (name, again) = combine(merged, ours.clone()).expect("merges");
        assert_eq!((name.as_str(), again.contexts.len()), ("carrack", 1));
        let (name, both) = combine(config("carrack", "https://elsewhere:6443"), ours).expect("merges");
        assert_eq!((name.as_str(), both.contexts.len()), ("carrack-2", 2));
        assert_eq!(both.current_context.as_deref(), Some("carrack"));
    }
}
