//! The CEL expressions of admission: what they may use, what they must result in, and how they are compiled. Webhooks' match
//! conditions and admission policies are checked with it when they are written, and evaluated with it when they are in force.

use std::sync::{Arc, LazyLock};

use cel::{Decl, Env, Errors, Program, Type};

/// What an expression may use beside `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// `params`
    pub params: bool,
    /// `authorizer` and `authorizer.requestResource`
    pub authorizer: bool,
    /// The types `Object` and `JSONPatch`, and `jsonpatch.escapeKey`.
    pub patch: bool,
}

/// What an expression must result in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    Bool,
    String,
    StringOrNull,
    /// `Object{...}`
    Object,
    /// A list of `JSONPatch{...}`.
    Patches,
    Anything,
}

impl Returns {
    fn types(self) -> Vec<Type> {
        match self {
            Self::Bool => vec![Type::Bool],
            Self::String => vec![Type::String],
            Self::StringOrNull => vec![Type::String, Type::Null],
            Self::Object => vec![Type::object("Object")],
            Self::Patches => vec![Type::list(Type::object("JSONPatch"))],
            Self::Anything => Vec::new(),
        }
    }
}

/// Compiles the expressions of one webhook or policy. Variables of a policy become known to the expressions after them.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    /// Name and type; only a policy has variables.
    variables: Option<Vec<(String, Decl)>>,
    /// Instead of what an expression may usually use.
    env: Option<Env>,
}

impl Compiler {
    /// For expressions without `variables`.
    pub fn plain() -> Self {
        Self::default()
    }

    /// For the expressions of a policy.
    pub fn with_variables() -> Self {
        Self { variables: Some(Vec::new()), env: None }
    }

    /// For checking a policy's expressions against the kinds that it is for: `object` and `oldObject` are of this type
    /// (none: of any), and so is `params`, if the policy has parameters.
    pub fn typed(object: Option<Arc<Decl>>, params: Option<Option<Arc<Decl>>>) -> Self {
        Self { variables: Some(Vec::new()), env: Some(typed(object, params)) }
    }

    /// Compiles an expression, whatever it results in.
    pub fn check(&self, expression: &str, uses: Uses) -> Result<Program, Errors> {
        let mut env = self.env.as_ref().unwrap_or_else(|| environment(uses)).clone();
        if let Some(variables) = &self.variables {
            let fields = variables.iter().map(|(name, decl)| (name.as_str(), decl.clone()));
            env = env.with_data("variables", Arc::new(Decl::object("kubernetes.variables", fields)));
        }
        env.compile(expression)
    }

    /// Compiles an expression that must result in something. The error is what a field's error tells.
    pub fn compile(&self, expression: &str, uses: Uses, returns: Returns) -> Result<Program, String> {
        let program =
            self.check(expression, uses).map_err(|errors| format!("compilation failed: {errors}"))?;
        let (wanted, got) = (returns.types(), program.result_type());
        if wanted.is_empty() || wanted.contains(got) {
            return Ok(program);
        }
        let names: Vec<String> = wanted.iter().map(name).collect();
        Err(match names.as_slice() {
            [one] => format!("must evaluate to {one} but got {}", name(got)),
            many => format!("must evaluate to one of [{}] but got {}", many.join(" "), name(got)),
        })
    }

    /// Compiles a variable and makes it known. One that does not compile is known as well, with any type.
    pub fn variable(&mut self, variable: &str, expression: &str, uses: Uses) -> Result<Program, String> {
        let program = self.compile(expression, uses, Returns::Anything);
        let decl = program.as_ref().map_or_else(|_| Decl::dynamic(), |p| declared(p.result_type()));
        let known = self.variables.get_or_insert_default();
        known.retain(|(name, _)| name != variable);
        known.push((variable.to_owned(), decl));
        program
    }
}

/// The declaration that a variable of a type has: of object types nothing is known any more.
fn declared(of: &Type) -> Decl {
    match of {
        Type::Bool
        | Type::Bytes
        | Type::Double
        | Type::Duration
        | Type::Int
        | Type::Null
        | Type::String
        | Type::Timestamp
        | Type::Uint => Decl::plain(of.clone()),
        Type::List(element) => Decl::list(declared(element)),
        Type::Map(key, value) if **key == Type::String => Decl::map(declared(value)),
        Type::Map(..) => Decl::plain(of.clone()),
        _ => Decl::dynamic(),
    }
}

/// The name of a type as cel-go prints it.
fn name(of: &Type) -> String {
    match of {
        Type::List(element) => format!("list({})", name(element)),
        Type::Map(key, value) => format!("map({}, {})", name(key), name(value)),
        Type::Type(Some(inner)) => format!("type({})", name(inner)),
        Type::Opaque(opaque, of) if !of.is_empty() => {
            let of: Vec<String> = of.iter().map(name).collect();
            format!("{opaque}({})", of.join(", "))
        }
        other => other.name().to_owned(),
    }
}

/// The environment of a combination; each is made once.
fn environment(uses: Uses) -> &'static Env {
    static ALL: LazyLock<Vec<Env>> = LazyLock::new(|| {
        let flag = |at: usize, bit: usize| at & bit != 0;
        (0..8).map(|at| make(flag(at, 1), flag(at, 2), flag(at, 4))).collect()
    });
    &ALL[usize::from(uses.params) + 2 * usize::from(uses.authorizer) + 4 * usize::from(uses.patch)]
}

fn make(params: bool, authorizer: bool, patch: bool) -> Env {
    let env = base(authorizer, patch).with("object", Type::Dyn).with("oldObject", Type::Dyn);
    if params { env.with("params", Type::Dyn) } else { env }
}

fn base(authorizer: bool, patch: bool) -> Env {
    let mut env =
        Env::new().with_data("namespaceObject", NAMESPACE.clone()).with_data("request", REQUEST.clone());
    if authorizer {
        env = env
            .with("authorizer", cel::authorizer_type())
            .with("authorizer.requestResource", cel::resource_check_type());
    }
    if patch {
        env = env.with_json_patch();
    }
    env
}

fn typed(object: Option<Arc<Decl>>, params: Option<Option<Arc<Decl>>>) -> Env {
    let mut env = base(true, false);
    for name in ["object", "oldObject"] {
        env = match &object {
            Some(decl) => env.with_data(name, decl.clone()),
            None => env.with(name, Type::Dyn),
        };
    }
    match params {
        Some(Some(decl)) => env.with_data("params", decl),
        Some(None) => env.with("params", Type::Dyn),
        None => env,
    }
}

static REQUEST: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let text = || Decl::plain(Type::String);
    let named = |object: &str, last: &'static str| {
        Decl::object(object, [("group", text()), ("version", text()), (last, text())])
    };
    let kind = || named("kubernetes.GroupVersionKind", "kind");
    let resource = || named("kubernetes.GroupVersionResource", "resource");
    let user = Decl::object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", Decl::list(text())),
            ("extra", Decl::map(Decl::list(text()))),
        ],
    );
    Arc::new(Decl::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Decl::plain(Type::Bool)),
            ("options", Decl::dynamic()),
        ],
    ))
});

static NAMESPACE: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let text = || Decl::plain(Type::String);
    let time = || Decl::plain(Type::Timestamp);
    let number = || Decl::plain(Type::Int);
    let spec = Decl::object("kubernetes.NamespaceSpec", [("finalizers", Decl::list(text()))]);
    let condition = Decl::object(
        "kubernetes.NamespaceCondition",
        [
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", time()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let status = Decl::object(
        "kubernetes.NamespaceStatus",
        [("conditions", Decl::list(condition)), ("phase", text())],
    );
    let metadata = Decl::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", Decl::map(text())),
            ("annotations", Decl::map(text())),
            ("UID", text()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", number()),
            ("deletionTimestamp", time()),
            ("generation", number()),
            ("resourceVersion", text()),
            ("finalizers", Decl::list(text())),
        ],
    );
    Arc::new(Decl::object(
        "kubernetes.Namespace",
        [("metadata", metadata), ("spec", spec), ("status", status)],
    ))
});

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, uses: Uses, returns: Returns, want: &str) {
        let got = Compiler::plain().compile(expression, uses, returns).err().unwrap_or_default();
        assert!(got.starts_with(want) && got.is_empty() == want.is_empty(), "{expression}: {got}");
    }

    #[test]
    fn expressions_use_what_they_may_and_result_in_what_they_must() {
        let (none, all) = (Uses::default(), Uses { params: true, authorizer: true, patch: true });
        check("object.spec.replicas > 1", none, Returns::Bool, "");
        check("request.userInfo.groups", none, Returns::Bool, "must evaluate to bool but got list(string)");
        check("object.x", none, Returns::Bool, "must evaluate to bool but got dyn");
        check("1", none, Returns::StringOrNull, "must evaluate to one of [string null_type] but got int");
        check(
            "params.x == 1",
            none,
            Returns::Bool,
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'params'",
        );
        check("params.x == 1", all, Returns::Bool, "");
        check(
            "request.nothing == ''",
            none,
            Returns::Bool,
            "compilation failed: ERROR: <input>:1:8: undefined field 'nothing'",
        );
        check("authorizer.requestResource.check('get').allowed()", all, Returns::Bool, "");
        check("Object{spec: Object.spec{replicas: 1}}", all, Returns::Object, "");
        check("[JSONPatch{op: 'add', path: '/a', value: 1}]", all, Returns::Patches, "");
        check("Object{}", none, Returns::Object, "compilation failed");
    }

    #[test]
    fn variables_are_known_in_order() {
        let mut compiler = Compiler::with_variables();
        let uses = Uses::default();
        compiler.variable("n", "size(object.items)", uses).expect("compiles");
        compiler.variable("m", "variables.n + 1", uses).expect("compiles");
        compiler.variable("bad", "nothing", uses).expect_err("unknown");
        for (expression, wrong) in [
            ("variables.m > 2", ""),
            ("variables.m > 'a'", "found no matching overload"),
            ("variables.bad > 'a'", ""),
            ("variables.later", "undefined field 'later'"),
        ] {
            let got = compiler.compile(expression, uses, Returns::Bool).err().unwrap_or_default();
            assert!(got.contains(wrong) && got.is_empty() == wrong.is_empty(), "{expression}: {got}");
        }
    }
}
