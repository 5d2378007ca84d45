//! What the server serves: from aggregated discovery (v2), two requests in all.

use http::Request;
use kube::Client;
use serde_json::Value;

use crate::Error;

/// One resource as the server names it.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The collection's path, in a namespace or in all.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let base = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{base}/{}/namespaces/{namespace}/{}", self.version, self.plural),
            None => format!("{base}/{}/{}", self.version, self.plural),
        }
    }

    /// How kubectl names an object of this resource: `deployment.apps/web`.
    pub fn object_name(&self, name: &str) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        format!("{}{dot}{}/{name}", self.singular, self.group)
    }

    fn answers_to(&self, word: &str) -> bool {
        let (name, group) = word.split_once('.').map_or((word, None), |(name, group)| (name, Some(group)));
        let named = self.plural == name
            || self.singular == name
            || self.kind.eq_ignore_ascii_case(name)
            || self.short_names.iter().any(|short| short == name);
        let grouped = group
            .is_none_or(|group| group == self.group || *group == format!("{}.{}", self.version, self.group));
        named && grouped
    }
}

/// Everything served, preferred versions first.
pub(crate) struct Discovery {
    pub resources: Vec<Resource>,
}

impl Discovery {
    pub async fn load(client: &Client) -> Result<Discovery, Error> {
        let mut resources = Vec::new();
        for path in ["/api", "/apis"] {
            let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
            let request = Request::get(path).header("Accept", accept).body(Vec::new());
            let request = request.expect("a constant path makes a request");
            let document: Value = client.request(request).await?;
            resources.extend(parse(&document));
        }
        Ok(Discovery { resources })
    }

    /// The resource that a word such as `po`, `deployments` or `deploy.apps` names.
    pub fn find(&self, word: &str) -> Result<&Resource, Error> {
        let word = word.to_ascii_lowercase();
        let found = self.resources.iter().find(|resource| resource.answers_to(&word));
        found.ok_or_else(|| Error::NoResource(word.clone()))
    }

    /// The resource that serves a kind.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.resources.iter().find(|one| one.kind == kind && one.api_version() == api_version)
    }

    /// For a kind that is not served in the version asked for: where it is.
    pub fn hint(&self, kind: &str) -> String {
        let same = |resource: &&Resource| resource.kind.eq_ignore_ascii_case(kind);
        match self.resources.iter().find(same) {
            Some(found) if found.kind == kind => format!("; did you mean {}?", found.api_version()),
            Some(found) => format!("; did you mean kind {} of {}?", found.kind, found.api_version()),
            None => "\nensure CRDs are installed first".to_owned(),
        }
    }

    /// The resources of a category such as `all`.
    pub fn category(&self, word: &str) -> Vec<&Resource> {
        let listed = self.resources.iter().filter(|one| one.verbs.iter().any(|verb| verb == "list"));
        listed.filter(|one| one.categories.iter().any(|category| category == word)).collect()
    }
}

fn parse(document: &Value) -> Vec<Resource> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let mut resources = Vec::new();
    for group in document["items"].as_array().into_iter().flatten() {
        for version in group["versions"].as_array().into_iter().flatten() {
            for resource in version["resources"].as_array().into_iter().flatten() {
                resources.push(Resource {
                    group: text(&group["metadata"]["name"]),
                    version: text(&version["version"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    plural: text(&resource["resource"]),
                    singular: text(&resource["singularResource"]),
                    short_names: words(&resource["shortNames"]),
                    categories: words(&resource["categories"]),
                    namespaced: resource["scope"] == "Namespaced",
                    verbs: words(&resource["verbs"]),
                });
            }
        }
    }
    resources
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_find_resources_and_wrong_versions_get_a_hint() {
        let resource = json!({
            "resource": "deployments", "responseKind": {"kind": "Deployment"}, "scope": "Namespaced",
            "singularResource": "deployment", "shortNames": ["deploy"], "categories": ["all"], "verbs": ["get"],
        });
        let group =
            json!({"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": [resource]}]});
        let discovery = Discovery { resources: parse(&json!({"items": [group]})) };
        for word in ["deploy", "Deployment", "deployments.apps", "deployment.v1.apps"] {
            let found = discovery.find(word).expect(word);
            assert_eq!(found.path(Some("a")), "/apis/apps/v1/namespaces/a/deployments", "{word}");
        }
        assert!(discovery.find("deployments.other").is_err());
        assert_eq!(discovery.hint("Deployment"), "; did you mean apps/v1?");
        assert_eq!(discovery.hint("deployment"), "; did you mean kind Deployment of apps/v1?");
        assert!(discovery.by_kind("v1", "Deployment").is_none());
    }
}
