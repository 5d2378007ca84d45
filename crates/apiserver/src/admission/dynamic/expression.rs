//! Evaluation of an admission expression: the values of its variables, and what it may cost.

use std::sync::Arc;
use std::time::Instant;

use api::expressions::{Compiler, Returns, Uses};
use cel::{Activation, Budget, EvalError, Program, ResourceSubject, Subject};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Form;
use super::matching::Matched;
use crate::admission::Scene;
use crate::authz::Authorizer;
use crate::metrics::metrics;
use crate::read::Read;
use crate::{Attributes, Decision, UserInfo};

/// What all expressions of a policy with one binding may cost together.
pub(super) const POLICY_BUDGET: u64 = 10_000_000;
/// What all match conditions of one webhook or policy may cost together.
pub(super) const CONDITIONS_BUDGET: u64 = 2_500_000;

/// How often expressions are evaluated anew because webhook authorizers had to be asked; each round answers what the one
/// before asked.
const MOST_ROUNDS: usize = 16;

const OVER: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression and its compiled form. One that does not compile fails when it is evaluated: it was refused when it was
/// written, unless it was written to another version of the server.
#[derive(Debug)]
pub(super) struct Expression {
    pub text: String,
    program: Result<Program, String>,
}

impl Expression {
    pub fn new(compiler: &Compiler, text: &str, uses: Uses, returns: Returns) -> Self {
        let before = Instant::now();
        let program = compiler.compile(text, uses, returns);
        metrics().cel_compilation.with(&[]).observe(before.elapsed().as_secs_f64());
        Self { text: text.to_owned(), program }
    }

    /// Why it does not compile.
    pub fn wrong(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }
}

/// The variables of a policy, in order.
#[derive(Debug, Default)]
pub(super) struct Variables(Vec<(String, Expression)>);

impl Variables {
    /// Compiles them; they become known to the compiler.
    pub fn new(compiler: &mut Compiler, variables: &[Value], uses: Uses) -> Self {
        let compile = |variable: &Value| {
            let (name, text) = (variable.text("name").to_owned(), variable.text("expression").to_owned());
            let program = compiler.variable(&name, &text, uses);
            (name, Expression { text, program })
        };
        Self(variables.iter().map(compile).collect())
    }
}

/// Why an expression has no result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// This one failed.
    Failed(String),
    /// It does not compile.
    Broken(String),
    /// Too much was spent: nothing more is evaluated.
    Over(String),
}

impl Fault {
    /// How it is counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Failed(_) => "invalid_error",
            Self::Broken(_) => "compile_error",
            Self::Over(_) => "out_of_budget",
        }
    }

    /// What is told of it.
    pub fn text(self) -> String {
        match self {
            Self::Failed(why) | Self::Broken(why) | Self::Over(why) => why,
        }
    }
}

/// The values that expressions see, for one request, one version and one parameter object.
pub(super) struct Facts<'a> {
    pub object: &'a Value,
    pub old: &'a Value,
    pub request: &'a Value,
    pub namespace: &'a Value,
    /// None: the policy has no parameters.
    pub params: Option<&'a Value>,
    pub asker: Asker,
    pub operation: &'static str,
    pub variables: &'a Variables,
}

static NULL: Value = Value::Null;

impl<'a> Facts<'a> {
    pub fn of(scene: &Scene<'_>, form: &'a Form<'_>, request: &'a Value, namespace: &'a Value) -> Self {
        static NONE: Variables = Variables(Vec::new());
        Self {
            object: &form.object,
            old: form.old.as_deref().unwrap_or(&NULL),
            request,
            namespace,
            params: None,
            asker: Asker::of(scene, &form.object),
            operation: scene.operation().name(),
            variables: &NONE,
        }
    }

    /// What an evaluation results in. Expressions cannot wait; where one asks something that only a webhook authorizer
    /// knows, the webhook is asked and everything is evaluated anew.
    pub async fn settled<T>(&self, evaluate: impl Fn() -> T) -> T {
        for _ in 0..MOST_ROUNDS {
            let result = evaluate();
            if !self.waiting() {
                return result;
            }
            drop(result);
            self.asker.settle().await;
        }
        evaluate()
    }

    /// Whether the last evaluation asked what is not known yet.
    pub fn waiting(&self) -> bool {
        !self.asker.asked.lock().open.is_empty()
    }

    /// The values for a series of evaluations that share what variables result in.
    pub fn series(&self, budget: u64) -> Series<'a> {
        let mut activation = Activation::new()
            .with("object", cel::Value::json(self.object))
            .with("oldObject", cel::Value::json(self.old))
            .with("request", cel::Value::json(self.request))
            .with("namespaceObject", cel::Value::json(self.namespace));
        if let Some(params) = self.params {
            activation.set("params", cel::Value::json(params));
        }
        self.asker.add_to(&mut activation);
        activation.lazies("variables");
        let mut wrong = None;
        for (name, variable) in &self.variables.0 {
            match &variable.program {
                Ok(program) => activation.lazy("variables", name, program),
                Err(why) => wrong = wrong.or(Some((name.as_str(), why.as_str()))),
            }
        }
        Series { activation, left: budget, wrong }
    }
}

/// Evaluations one after the other on one budget.
pub(super) struct Series<'a> {
    activation: Activation<'a>,
    pub left: u64,
    /// The first variable that does not compile, and why.
    wrong: Option<(&'a str, &'a str)>,
}

impl<'a> Series<'a> {
    pub fn run(&mut self, expression: &'a Expression) -> Result<cel::Value<'a>, Fault> {
        let program =
            expression.program.as_ref().map_err(|why| Fault::Broken(format!("compilation error: {why}")))?;
        let failed = |why: &dyn std::fmt::Display| {
            Fault::Failed(format!("expression '{}' resulted in error: {why}", expression.text))
        };
        if let Some((name, why)) = self.wrong.filter(|_| program.uses("variables")) {
            let why = failed(&format!("composited variable {name:?} fails to compile: {why}"));
            return Err(Fault::Broken(why.text()));
        }
        let mut budget = Budget::per_call();
        let before = Instant::now();
        let result = program.eval(&self.activation, &mut budget);
        metrics().cel_evaluation.with(&[]).observe(before.elapsed().as_secs_f64());
        self.left = match self.left.checked_sub(budget.spent) {
            Some(left) => left,
            None => return Err(Fault::Over(OVER.to_owned())),
        };
        result.map_err(|error| match error {
            EvalError::Interrupted => Fault::Over(error.to_string()),
            error => failed(&error),
        })
    }
}

/// The `request` of expressions: an AdmissionRequest without the objects.
pub(super) fn request(scene: &Scene<'_>, matched: &Matched, object: &Value) -> Value {
    let mut request = super::review::base(scene, matched, object);
    if let Some(map) = request.as_object_mut().filter(|map| map.get("options").is_some_and(Value::is_null)) {
        map.remove("options");
    }
    request
}

/// The `namespaceObject` of expressions: null for what has no namespace.
pub(super) fn namespace_object(namespace: &Value) -> Value {
    if namespace.is_null() {
        return Value::Null;
    }
    let mut metadata = namespace.at("metadata").clone();
    if let Some(metadata) = metadata.as_object_mut() {
        for hidden in ["managedFields", "ownerReferences", "selfLink"] {
            metadata.remove(hidden);
        }
    }
    json!({"metadata": metadata, "spec": namespace.at("spec"), "status": namespace.at("status")})
}

/// Answers the authorization checks of expressions.
#[derive(Clone)]
pub(super) struct Asker {
    authorizer: Arc<Authorizer>,
    user: Arc<UserInfo>,
    own: ResourceSubject,
    asked: Arc<Mutex<Asked>>,
}

/// What webhook authorizers were asked for one request, and what is still to be asked.
#[derive(Default)]
struct Asked {
    known: Vec<(Attributes, Decision)>,
    open: Vec<Attributes>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Asker {
    /// Asks what is open.
    async fn settle(&self) {
        let open = std::mem::take(&mut self.asked.lock().open);
        for question in open {
            let decision = self.authorizer.all(&question).await;
            self.asked.lock().known.push((question, decision));
        }
    }

    fn decide(&self, question: Attributes) -> Decision {
        if let Some(decision) = self.authorizer.decide_here(&question) {
            return decision;
        }
        let mut asked = self.asked.lock();
        if let Some((_, decision)) = asked.known.iter().find(|(known, _)| *known == question) {
            return decision.clone();
        }
        if !asked.open.contains(&question) {
            asked.open.push(question);
        }
        Decision::no_opinion("")
    }

    fn of(scene: &Scene<'_>, object: &Value) -> Self {
        let attributes = scene.request.attributes;
        let own = ResourceSubject {
            group: attributes.group.clone(),
            resource: attributes.resource.clone(),
            subresource: attributes.subresource.clone(),
            namespace: scene.namespace_name(object).to_owned(),
            name: scene.object_name(object).to_owned(),
            ..ResourceSubject::default()
        };
        Self {
            authorizer: scene.authorizer.clone(),
            user: attributes.user.clone(),
            own,
            asked: Arc::default(),
        }
    }

    fn add_to(&self, activation: &mut Activation<'_>) {
        let asker = Arc::new(self.clone());
        activation.set("authorizer", cel::authorizer(asker.clone()));
        activation.set("authorizer.requestResource", cel::resource_check(asker, self.own.clone()));
    }
}

impl cel::Authorizer for Asker {
    fn authorize(&self, question: &cel::Question) -> cel::Decision {
        let user = match &question.service_account {
            None => self.user.clone(),
            Some((namespace, name)) => Arc::new(UserInfo {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_owned(),
                ],
                ..UserInfo::default()
            }),
        };
        let selector = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        let asked = match &question.subject {
            Subject::Path(path) => {
                Attributes { user, verb: question.verb.clone(), path: path.clone(), ..Attributes::default() }
            }
            Subject::Resource(resource) => Attributes {
                user,
                verb: question.verb.clone(),
                group: resource.group.clone(),
                version: "*".to_owned(),
                resource: resource.resource.clone(),
                subresource: resource.subresource.clone(),
                namespace: resource.namespace.clone(),
                name: resource.name.clone(),
                path: String::new(),
                resource_request: true,
                label_selector: selector(&resource.label_selector),
                field_selector: selector(&resource.field_selector),
            },
        };
        let decision = self.decide(asked);
        cel::Decision { allowed: decision.allowed(), reason: decision.reason, error: None }
    }
}
