//! What an expression may use: variables with their types, object types, and the language's libraries.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::check;
use crate::decl::Decl;
use crate::deep;
use crate::error::Errors;
use crate::functions::{self, Function};
use crate::parse::{self, Syntax};
use crate::plan;
use crate::program::Program;
use crate::types::Type;

/// The environment of expressions. Cheap to clone; make one for a kind of expression and keep it.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: HashMap<Arc<str>, Variable>,
    objects: HashMap<Arc<str>, Arc<Decl>>,
    /// Functions that not every environment has.
    extra: HashSet<&'static str>,
    bind: bool,
    /// `Object` and `Object.path.of.fields` are types whose fields can be anything.
    loose_objects: bool,
    /// The first data that was declared.
    root: Option<Arc<Decl>>,
}

#[derive(Clone, Debug)]
struct Variable {
    of: Type,
    /// How large its parts can become.
    sizes: Option<Arc<Decl>>,
}

/// Functions that an environment must be given by [`Env::with_json_patch`].
const EXTRA: [&str; 1] = ["jsonpatch.escapeKey"];

impl Env {
    /// The language as Kubernetes v1.36 has it, with all libraries, and no variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a variable of a type.
    #[must_use]
    pub fn with(mut self, name: &str, of: Type) -> Self {
        self.variables.insert(name.into(), Variable { of, sizes: None });
        self
    }

    /// Declares a variable of data. The object types inside become known.
    #[must_use]
    pub fn with_data(mut self, name: &str, decl: Arc<Decl>) -> Self {
        self = self.with_types(&decl);
        self.root.get_or_insert_with(|| decl.clone());
        self.variables.insert(name.into(), Variable { of: decl.type_of(), sizes: Some(decl) });
        self
    }

    /// Declares a variable that is an `optional` of data.
    #[must_use]
    pub fn with_optional_data(mut self, name: &str, decl: Arc<Decl>) -> Self {
        self = self.with_types(&decl);
        let of = Type::optional(decl.type_of());
        self.variables.insert(name.into(), Variable { of, sizes: Some(decl) });
        self
    }

    /// Makes the object types inside a declaration known, so that expressions can name and make them.
    #[must_use]
    pub fn with_types(mut self, decl: &Arc<Decl>) -> Self {
        decl.objects(&mut |name, decl| {
            self.objects.insert(name.clone(), decl.clone());
        });
        self
    }

    /// Switches `cel.bind` on (device selectors have it).
    #[must_use]
    pub fn with_bind(mut self) -> Self {
        self.bind = true;
        self
    }

    /// Switches on what mutations have: `jsonpatch.escapeKey`, the type `JSONPatch`, and the types `Object`,
    /// `Object.spec.template` and so on, which have any fields.
    #[must_use]
    pub fn with_json_patch(mut self) -> Self {
        self.extra.extend(EXTRA);
        self.loose_objects = true;
        let patch = Arc::new(Decl::object(
            "JSONPatch",
            [
                ("op", Decl::plain(Type::String)),
                ("path", Decl::plain(Type::String)),
                ("from", Decl::plain(Type::String)),
                ("value", Decl::dynamic()),
            ],
        ));
        self.with_types(&patch)
    }

    /// Parses, checks and plans an expression.
    ///
    /// # Errors
    /// Everything that is wrong with it, in cel-go's words.
    pub fn compile(&self, source: &str) -> Result<Program, Errors> {
        deep::run(deep::is_deep(source), || {
            let ast = parse::parse(source, Syntax { bind: self.bind })?;
            let checked = check::check(source, ast, self)?;
            let cost = crate::cost::estimate(&checked, self);
            plan::plan(source, checked, cost, self)
        })
    }

    pub(crate) fn variable(&self, name: &str) -> Option<(&Arc<str>, &Type)> {
        self.variables.get_key_value(name).map(|(name, variable)| (name, &variable.of))
    }

    pub(crate) fn sizes(&self, variable: &str) -> Option<&Decl> {
        self.variables.get(variable)?.sizes.as_deref()
    }

    pub(crate) fn root(&self) -> Option<&Decl> {
        self.root.as_deref()
    }

    pub(crate) fn named_type(&self, name: &str) -> Option<Type> {
        if self.objects.contains_key(name) || self.is_loose(name) {
            return Some(Type::object(name));
        }
        Type::named(name).or_else(|| crate::library::named_type(name))
    }

    /// Whether an object type is one whose fields can be anything.
    pub(crate) fn is_loose(&self, name: &str) -> bool {
        self.loose_objects
            && name.strip_prefix("Object").is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    pub(crate) fn object(&self, name: &str) -> Option<&Decl> {
        self.objects.get(name).map(|decl| &**decl)
    }

    pub(crate) fn function(&self, name: &str) -> Option<&'static Function> {
        if EXTRA.contains(&name) && !self.extra.contains(name) {
            return None;
        }
        functions::find(name)
    }

    /// The JSON name of a field that an expression names.
    pub(crate) fn json_name(&self, object: &str, field: &str) -> Arc<str> {
        let decl = self.object(object);
        let name = decl.and_then(|decl| decl.entry(field)).and_then(|(name, _)| name);
        name.unwrap_or(field).into()
    }
}
