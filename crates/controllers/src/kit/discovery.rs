//! The resources that the server has, each in its preferred version.

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
