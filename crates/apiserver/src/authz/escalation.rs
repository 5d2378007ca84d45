//! Nobody may grant what they do not have: the checks on writes of roles and bindings, unless the writer may `escalate`
//! the role or `bind` it (upstream: `pkg/registry/rbac/*/policybased`).

use serde_json::Value;

use super::rule::{Rule, missing, quoted_list};
use super::{Authorizer, MASTERS};
use crate::read::Read;
use crate::{Attributes, Status};

const GROUP: &str = "rbac.authorization.k8s.io";

impl Authorizer {
    /// Refuses a create (`old` is none) or update of an RBAC object that would grant more than the caller holds.
    pub async fn check_escalation(
        &self,
        request: &Attributes,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if request.group != GROUP || !request.subresource.is_empty() || request.user.in_group(MASTERS) {
            return Ok(());
        }
        match request.resource.as_str() {
            "roles" | "clusterroles" => self.check_role(request, object, old).await,
            "rolebindings" | "clusterrolebindings" => self.check_binding(request, object, old).await,
            _ => Ok(()),
        }
    }

    async fn check_role(
        &self,
        request: &Attributes,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let escalate = Attributes { verb: "escalate".to_owned(), version: "*".to_owned(), ..request.clone() };
        if self.all(&escalate).await.allowed() || old.is_some_and(|old| only_collection_fields(object, old)) {
            return Ok(());
        }
        let refuse = |why: String| Status::forbidden(GROUP, &request.resource, object.name(), why);
        self.confirm(request, &Rule::list(object)).map_err(refuse)?;
        let aggregates = |role: &Value| !role.items("aggregationRule.clusterRoleSelectors").is_empty();
        if aggregates(object) || old.is_some_and(aggregates) {
            let all = || vec!["*".to_owned()];
            let everything = [
                Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), urls: all(), ..Rule::default() },
            ];
            self.confirm(request, &everything).map_err(|_| {
                refuse("must have cluster-admin privileges to use the aggregationRule".to_owned())
            })?;
        }
        Ok(())
    }

    async fn check_binding(
        &self,
        request: &Attributes,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if old.is_some_and(|old| only_collection_fields(object, old)) {
            return Ok(());
        }
        let (kind, name) = (object.text("roleRef.kind"), object.text("roleRef.name"));
        let resource = match kind {
            "ClusterRole" => "clusterroles",
            "Role" => "roles",
            // Validation refuses it.
            _ => return Ok(()),
        };
        let bind = Attributes {
            user: request.user.clone(),
            verb: "bind".to_owned(),
            group: object.text("roleRef.apiGroup").to_owned(),
            version: "*".to_owned(),
            resource: resource.to_owned(),
            namespace: request.namespace.clone(),
            name: name.to_owned(),
            resource_request: true,
            ..Attributes::default()
        };
        if self.all(&bind).await.allowed() {
            return Ok(());
        }
        let rules = self
            .rbac
            .role_rules(kind, name, &request.namespace)
            // Upstream's lookup names the resource of the request.
            .ok_or_else(|| Status::not_found(GROUP, &request.resource, name))?;
        self.confirm(request, &rules)
            .map_err(|why| Status::forbidden(GROUP, &request.resource, object.name(), why))
    }

    fn confirm(&self, request: &Attributes, wanted: &[Rule]) -> Result<(), String> {
        let (own, errors) = self.rbac.rules_for(&request.user, &request.namespace);
        let missing = missing(&own, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut text = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            request.user.name,
            quoted_list(&request.user.groups),
            missing.join("\n")
        );
        if !errors.is_empty() {
            text.push_str(&format!("; resolution errors: [{}]", super::aggregate(&errors)));
        }
        Err(text)
    }
}

/// Whether an update touches only what the garbage collector must be able to change.
fn only_collection_fields(new: &Value, old: &Value) -> bool {
    let stripped = |value: &Value| {
        let mut copy = value.clone();
        if let Some(metadata) = copy.get_mut("metadata").and_then(Value::as_object_mut) {
            for key in ["ownerReferences", "finalizers", "selfLink", "managedFields"] {
                metadata.remove(key);
            }
        }
        copy
    };
    stripped(new) == stripped(old)
}
