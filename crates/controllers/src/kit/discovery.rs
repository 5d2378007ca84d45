//! The resources that the server has, each in its preferred version.

use std::time::{Duration, Instant};

use kube::Client;
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope};

use super::Result;

/// One listable resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

impl Kind {
    /// A kind that can do nothing, for tests.
    #[cfg(test)]
    pub(crate) fn new(resource: ApiResource, namespaced: bool) -> Self {
        Self { resource, namespaced, verbs: Vec::new() }
    }

    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|one| one == verb)
    }
}

/// All resources, by group.
pub(crate) async fn kinds(client: &Client) -> Result<Vec<Kind>> {
    let found = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(found) => found,
        // A server from before aggregated discovery.
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let all = found.groups_alphabetical().into_iter().flat_map(|group| group.recommended_resources());
    Ok(all
        .map(|(resource, able)| Kind {
            resource,
            namespaced: able.scope == Scope::Namespaced,
            verbs: able.operations,
        })
        .collect())
}

/// Discovery that is asked for single kinds, and remembers the answer for a while.
pub(crate) struct Known {
    client: Client,
    found: tokio::sync::Mutex<Option<(Instant, Vec<Kind>)>>,
}

/// For how long an answer of discovery is taken to hold.
const FRESH: Duration = Duration::from_secs(30);

impl Known {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, found: tokio::sync::Mutex::default() }
    }

    /// The kind of this name in a group. One that is not known may be new: the server is asked once more.
    pub(crate) async fn find(&self, group: &str, kind: &str) -> Result<Option<Kind>> {
        let mut found = self.found.lock().await;
        let look = |all: &[Kind]| {
            let is = |one: &&Kind| one.resource.group == group && one.resource.kind == kind;
            all.iter().find(is).cloned()
        };
        if let Some((at, all)) = found.as_ref()
            && at.elapsed() < FRESH
            && let Some(kind) = look(all)
        {
            return Ok(Some(kind));
        }
        let all = kinds(&self.client).await?;
        let kind = look(&all);
        *found = Some((Instant::now(), all));
        Ok(kind)
    }
}
