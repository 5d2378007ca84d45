//! The Common Expression Language as Kubernetes v1.36 uses it: parser, type checker, cost estimate and evaluation,
//! with all libraries. Pure: no I/O, no clocks, no kinds.
//!
//! An [`Env`] declares variables and types; it compiles an expression's text to a [`Program`], or to [`Errors`] in
//! cel-go's words. A program is evaluated with an [`Activation`] (the variables' values) and a [`Budget`] (what it may
//! cost) to a [`Value`].
//!
//! ```
//! use cel::{Activation, Budget, Env, Type, Value};
//! use serde_json::json;
//!
//! let env = Env::new().with("object", Type::Dyn);
//! let program = env.compile("object.spec.replicas > 1 && has(object.metadata.name)")?;
//! assert_eq!(*program.result_type(), Type::Bool);
//!
//! let object = json!({"metadata": {"name": "a"}, "spec": {"replicas": 3}});
//! let activation = Activation::new().with("object", Value::json(&object));
//! let mut budget = Budget::per_call();
//! let result = program.eval(&activation, &mut budget)?;
//! assert_eq!(result.as_bool(), Some(true));
//! assert_eq!(budget.spent, 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - **Data with a schema**: make a [`Decl`] of a [`Schema`] ([`JsonSchema`] for OpenAPI as JSON), declare a variable by
//!   [`Env::with_data`], and wrap values by [`Value::typed`]. [`Program::max_cost`] is then the static estimate.
//! - **Data without**: [`Type::Dyn`] and [`Value::json`]. JSON is borrowed, never copied.
//! - **`variables.x`**: declare the object type by hand ([`Decl::object`] with [`Decl::plain`] of each program's
//!   [`Program::result_type`]) and give the programs to [`Activation::lazy`].
//! - **Making objects** (`Object{spec: Object.spec{...}}`): [`Env::with_types`] of a declaration named `Object`; the
//!   result's [`Value::to_json`] has the JSON names. [`Env::with_json_patch`] adds `JSONPatch{...}`.
//! - **Optional variables**: [`Env::with_optional_data`] and [`Value::Optional`].
//! - **Authorization checks**: implement [`Authorizer`] and give a variable the value of [`authorizer`].
//! - A budget counts all evaluations it is given to in `spent`; each of them alone may cost `limit`.
#![forbid(unsafe_code)]

mod check;
mod cost;
mod decl;
mod deep;
mod env;
mod error;
mod escape;
mod eval;
mod functions;
mod library;
mod parse;
mod pattern;
mod plan;
mod program;
mod schema;
mod types;
mod value;

pub use decl::Decl;
pub use env::Env;
pub use error::{Errors, EvalError, Issue};
pub use escape::{escape, is_reserved, unescape};
pub use library::authz::{
    Authorizer, Decision, Question, ResourceSubject, Subject, authorizer, authorizer_type, resource_check,
    resource_check_type,
};
pub use pattern::compile as compile_pattern;
pub use program::{Activation, Budget, PER_CALL_LIMIT, Program};
pub use schema::{JsonSchema, Schema};
pub use types::Type;
pub use value::{Key, List, Map, Object, Struct, Text, Timestamp, Value};
