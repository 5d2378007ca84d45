//! Authorization checks from expressions: `authorizer.group('apps').resource('deployments').check('get').allowed()`.
//! Who decides is the caller's [`Authorizer`].

use std::any::Any;
use std::sync::Arc;

use super::{Result, text};
use crate::error::EvalError;
use crate::functions::Def;
use crate::types::Type;
use crate::value::{Object, Value};

const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
const PATH: &str = "kubernetes.authorization.PathCheck";
const GROUP: &str = "kubernetes.authorization.GroupCheck";
const RESOURCE: &str = "kubernetes.authorization.ResourceCheck";
const DECISION: &str = "kubernetes.authorization.Decision";

/// Decides what expressions ask.
pub trait Authorizer: std::fmt::Debug + Send + Sync + 'static {
    fn authorize(&self, question: &Question) -> Decision;
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The namespace and name of the service account to ask for; `None` for the user of the request.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    pub subject: Subject,
}

/// What it is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A path that is no resource.
    Path(String),
    Resource(ResourceSubject),
}

impl Default for Subject {
    fn default() -> Self {
        Self::Path(String::new())
    }
}

/// A resource; empty strings where the expression says nothing. Selectors are as the expression wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceSubject {
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// The value of the variable `authorizer`, of the type [`authorizer_type`].
pub fn authorizer(by: Arc<dyn Authorizer>) -> Value<'static> {
    Value::object(Stage { by, service_account: None, about: About::Anything })
}

/// The value of the variable `authorizer.requestResource`, of the type [`resource_check_type`].
pub fn resource_check(by: Arc<dyn Authorizer>, resource: ResourceSubject) -> Value<'static> {
    Value::object(Stage { by, service_account: None, about: About::Resource(resource) })
}

/// The type of `authorizer`.
pub fn authorizer_type() -> Type {
    Type::object(AUTHORIZER)
}

/// The type of `authorizer.requestResource`.
pub fn resource_check_type() -> Type {
    Type::object(RESOURCE)
}

pub(super) const FUNCTIONS: &[Def] = &[
    Def(
        "path",
        &[
            "authorizer_path: kubernetes.authorization.Authorizer.(string) -> kubernetes.authorization.PathCheck",
        ],
        |args| {
            let path = text(args.get(1))?;
            if path.trim().is_empty() {
                return Err(EvalError::new("path must not be empty"));
            }
            stage(args)?.with(About::Path(path.to_string()))
        },
    ),
    Def(
        "group",
        &[
            "authorizer_group: kubernetes.authorization.Authorizer.(string) -> kubernetes.authorization.GroupCheck",
        ],
        |args| stage(args)?.with(About::Group(text(args.get(1))?.to_string())),
    ),
    Def(
        "serviceAccount",
        &["authorizer_serviceaccount: kubernetes.authorization.Authorizer.(string, string) -> \
           kubernetes.authorization.Authorizer"],
        |args| {
            let (namespace, name) = (text(args.get(1))?, text(args.get(2))?);
            let label = |text: &str| {
                !text.is_empty()
                    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && !text.starts_with('-')
                    && !text.ends_with('-')
            };
            if name.len() > 253 || !name.split('.').all(label) {
                return Err(EvalError::new("Invalid service account name"));
            }
            if namespace.len() > 63 || !label(namespace) {
                return Err(EvalError::new("Invalid service account namespace"));
            }
            let stage = stage(args)?;
            Ok(Value::object(Stage {
                by: stage.by.clone(),
                service_account: Some((namespace.to_string(), name.to_string())),
                about: About::Anything,
            }))
        },
    ),
    Def(
        "resource",
        &["groupcheck_resource: kubernetes.authorization.GroupCheck.(string) -> \
           kubernetes.authorization.ResourceCheck"],
        |args| {
            let resource = text(args.get(1))?;
            if resource.trim().is_empty() {
                return Err(EvalError::new("resource must not be empty"));
            }
            let stage = stage(args)?;
            let About::Group(group) = &stage.about else { return Err(EvalError::no_such_overload()) };
            stage.with(About::Resource(ResourceSubject {
                group: group.clone(),
                resource: resource.to_string(),
                ..ResourceSubject::default()
            }))
        },
    ),
    Def(
        "subresource",
        &["resourcecheck_subresource: kubernetes.authorization.ResourceCheck.(string) -> \
           kubernetes.authorization.ResourceCheck"],
        |args| narrow(args, |subject, text| subject.subresource = text),
    ),
    Def(
        "namespace",
        &["resourcecheck_namespace: kubernetes.authorization.ResourceCheck.(string) -> \
           kubernetes.authorization.ResourceCheck"],
        |args| narrow(args, |subject, text| subject.namespace = text),
    ),
    Def(
        "name",
        &["resourcecheck_name: kubernetes.authorization.ResourceCheck.(string) -> \
           kubernetes.authorization.ResourceCheck"],
        |args| narrow(args, |subject, text| subject.name = text),
    ),
    Def(
        "fieldSelector",
        &["authorizer_fieldselector: kubernetes.authorization.ResourceCheck.(string) -> \
           kubernetes.authorization.ResourceCheck"],
        |args| narrow(args, |subject, text| subject.field_selector = text),
    ),
    Def(
        "labelSelector",
        &["authorizer_labelselector: kubernetes.authorization.ResourceCheck.(string) -> \
           kubernetes.authorization.ResourceCheck"],
        |args| narrow(args, |subject, text| subject.label_selector = text),
    ),
    Def(
        "check",
        &[
            "pathcheck_check: kubernetes.authorization.PathCheck.(string) -> kubernetes.authorization.Decision",
            "resourcecheck_check: kubernetes.authorization.ResourceCheck.(string) -> \
             kubernetes.authorization.Decision",
        ],
        |args| {
            let stage = stage(args)?;
            let subject = match &stage.about {
                About::Path(path) => Subject::Path(path.clone()),
                About::Resource(resource) => Subject::Resource(resource.clone()),
                _ => return Err(EvalError::no_such_overload()),
            };
            let verb = text(args.get(1))?.to_string();
            let question = Question { service_account: stage.service_account.clone(), verb, subject };
            let decision = stage.by.authorize(&question);
            stage.with(About::Decision(decision))
        },
    ),
    Def("errored", &["decision_errored: kubernetes.authorization.Decision.() -> bool"], |args| {
        Ok(Value::Bool(decision(args)?.error.is_some()))
    }),
    Def("error", &["decision_error: kubernetes.authorization.Decision.() -> string"], |args| {
        Ok(Value::string(decision(args)?.error.as_deref().unwrap_or_default()))
    }),
    Def("allowed", &["decision_allowed: kubernetes.authorization.Decision.() -> bool"], |args| {
        Ok(Value::Bool(decision(args)?.allowed))
    }),
    Def("reason", &["decision_reason: kubernetes.authorization.Decision.() -> string"], |args| {
        Ok(Value::string(&decision(args)?.reason))
    }),
];

/// How far an expression has come with its question.
#[derive(Clone, Debug)]
struct Stage {
    by: Arc<dyn Authorizer>,
    service_account: Option<(String, String)>,
    about: About,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum About {
    Anything,
    Path(String),
    Group(String),
    Resource(ResourceSubject),
    Decision(Decision),
}

impl Stage {
    fn with<'a>(&self, about: About) -> Result<'a> {
        Ok(Value::object(Self { about, ..self.clone() }))
    }
}

impl Object for Stage {
    fn type_of(&self) -> Type {
        Type::object(match self.about {
            About::Anything => AUTHORIZER,
            About::Path(_) => PATH,
            About::Group(_) => GROUP,
            About::Resource(_) => RESOURCE,
            About::Decision(_) => DECISION,
        })
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other
            .as_any()
            .downcast_ref::<Self>()
            .is_some_and(|other| self.about == other.about && self.service_account == other.service_account)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn stage<'v>(args: &'v [Value<'_>]) -> std::result::Result<&'v Stage, EvalError> {
    args[0].downcast::<Stage>().ok_or_else(EvalError::no_such_overload)
}

fn decision<'v>(args: &'v [Value<'_>]) -> std::result::Result<&'v Decision, EvalError> {
    match &stage(args)?.about {
        About::Decision(decision) => Ok(decision),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn narrow<'a>(args: &[Value<'a>], set: fn(&mut ResourceSubject, String)) -> Result<'a> {
    let stage = stage(args)?;
    let About::Resource(subject) = &stage.about else { return Err(EvalError::no_such_overload()) };
    let mut subject = subject.clone();
    set(&mut subject, text(args.get(1))?.to_string());
    stage.with(About::Resource(subject))
}
