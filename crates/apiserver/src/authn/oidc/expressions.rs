//! CEL in the authentication configuration: over `claims` of a token, or over the `user` that was made of them
//! (upstream: `apiserver/pkg/authentication/cel`).

use std::sync::LazyLock;

use cel::{Activation, Budget, Decl, Env, Program, Type, Value as CelValue};
use serde_json::{Value, json};

use crate::UserInfo;

static CLAIMS: LazyLock<Env> =
    LazyLock::new(|| Env::new().with("claims", Type::map(Type::String, Type::Dyn)));

static USER_TYPE: LazyLock<std::sync::Arc<Decl>> = LazyLock::new(|| {
    let text = || Decl::plain(Type::String);
    std::sync::Arc::new(Decl::object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", Decl::list(text())),
            ("extra", Decl::map(Decl::list(text()))),
        ],
    ))
});

static USER: LazyLock<Env> = LazyLock::new(|| Env::new().with_data("user", USER_TYPE.clone()));

/// What an expression must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    Text,
    /// A string or a list of strings.
    Texts,
    Truth,
}

impl Gives {
    fn allows(self, of: &Type) -> bool {
        match self {
            Self::Truth => *of == Type::Bool,
            Self::Text | Self::Texts if *of == Type::String || *of == Type::Dyn => true,
            Self::Texts => *of == Type::list(Type::String) || *of == Type::list(Type::Dyn),
            Self::Text => false,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Text => "must evaluate to string",
            Self::Texts => "must evaluate to one of [string list(string)]",
            Self::Truth => "must evaluate to bool",
        }
    }
}

/// A compiled expression.
pub struct Expression(Program);

impl Expression {
    /// Over `claims`. The error is text for people.
    pub fn over_claims(source: &str, gives: Gives) -> Result<Self, String> {
        Self::compile(&CLAIMS, source, gives)
    }

    /// Over `user`.
    pub fn over_user(source: &str) -> Result<Self, String> {
        Self::compile(&USER, source, Gives::Truth)
    }

    fn compile(env: &Env, source: &str, gives: Gives) -> Result<Self, String> {
        let program = env.compile(source).map_err(|e| format!("compilation failed: {e}"))?;
        // A dynamic result is looked at when it is there; a rule must be known to give a bool.
        if !gives.allows(program.result_type()) {
            return Err(gives.words().to_owned());
        }
        Ok(Self(program))
    }

    /// The value for these claims.
    pub fn claims(&self, claims: &Value) -> Result<Value, String> {
        self.eval("claims", CelValue::json(claims))
    }

    /// Whether the user passes.
    pub fn user(&self, user: &UserInfo) -> Result<bool, String> {
        let value =
            json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        let typed = CelValue::typed(&value, &USER_TYPE).map_err(|e| e.to_string())?;
        self.eval("user", typed).map(|v| v.as_bool() == Some(true))
    }

    fn eval(&self, name: &str, value: CelValue<'_>) -> Result<Value, String> {
        let activation = Activation::new().with(name, value);
        let result = self.0.eval(&activation, &mut Budget::per_call()).map_err(|e| e.to_string())?;
        result.to_json().map_err(|e| e.to_string())
    }

    /// The text of the expression.
    pub fn source(&self) -> &str {
        self.0.source()
    }
}

/// A value as a list of strings: empty ones do not count.
pub fn texts(value: &Value) -> Result<Vec<String>, String> {
    let wrong = || "expression must return a string or a list of strings".to_owned();
    let one = |v: &Value| v.as_str().map(str::to_owned).ok_or_else(wrong);
    let all = match value {
        Value::Null => Vec::new(),
        Value::Array(list) => list.iter().map(one).collect::<Result<_, _>>()?,
        other => vec![one(other)?],
    };
    Ok(all.into_iter().filter(|text| !text.is_empty()).collect())
}
