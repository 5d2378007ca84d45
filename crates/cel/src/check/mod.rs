//! Types of a parsed expression: every node gets its type, names get their meaning, calls their overloads.

mod unify;
mod validate;

use std::sync::Arc;

use self::unify::{Mapping, most_general};
use crate::env::Env;
use crate::error::{Errors, Issue};
use crate::functions::{self, Function};
use crate::parse::ast::{Ast, Expr, Fold, Id, Kind, Literal, op, qualified_name};
use crate::types::Type;

/// What a name or call stands for.
#[derive(Clone, Debug)]
pub(crate) enum Reference {
    Variable(Arc<str>),
    /// The name of a type.
    Type(Type),
    Function {
        function: &'static Function,
        overloads: Vec<&'static str>,
    },
    /// `a.?b`
    OptionalField,
}

/// A parsed expression with its types.
#[derive(Debug)]
pub(crate) struct Checked {
    pub ast: Ast,
    types: Vec<Option<Type>>,
    references: Vec<Option<Reference>>,
}

impl Checked {
    pub(crate) fn type_of(&self, expr: &Expr) -> &Type {
        self.types.get(expr.id as usize).and_then(Option::as_ref).unwrap_or(&Type::Dyn)
    }

    pub(crate) fn reference(&self, expr: &Expr) -> Option<&Reference> {
        self.references.get(expr.id as usize).and_then(Option::as_ref)
    }

    pub(crate) fn overloads(&self, expr: &Expr) -> &[&'static str] {
        match self.reference(expr) {
            Some(Reference::Function { overloads, .. }) => overloads,
            Some(Reference::OptionalField) => &["select_optional_field"],
            _ => &[],
        }
    }
}

/// Checks the types of an expression.
pub(crate) fn check(source: &str, ast: Ast, env: &Env) -> Result<Checked, Errors> {
    let size = ast.offsets.len();
    let mut checker = Checker {
        env,
        offsets: &ast.offsets,
        types: vec![None; size],
        references: vec![None; size],
        issues: Vec::new(),
        mapping: Mapping::default(),
        free: 0,
        scopes: Vec::new(),
    };
    checker.check(&ast.root);
    let Checker { types, references, issues, mapping, .. } = checker;
    if !issues.is_empty() {
        return Err(Errors::new(source, issues));
    }
    let types = types.into_iter().map(|of| of.map(|of| mapping.substitute(&of, true))).collect();
    let checked = Checked { ast, types, references };
    let mut issues = Vec::new();
    validate::validate(&checked, &mut issues);
    if issues.is_empty() { Ok(checked) } else { Err(Errors::new(source, issues)) }
}

struct Checker<'c> {
    env: &'c Env,
    offsets: &'c [usize],
    types: Vec<Option<Type>>,
    references: Vec<Option<Reference>>,
    issues: Vec<Issue>,
    mapping: Mapping,
    free: usize,
    /// Variables of folds, innermost last.
    scopes: Vec<(Arc<str>, Type)>,
}

/// What an identifier means.
enum Meaning {
    Variable(Arc<str>, Type),
    Type(Type),
}

impl Checker<'_> {
    fn check(&mut self, expr: &Expr) {
        let of = match &expr.kind {
            Kind::Literal(literal) => literal_type(literal),
            Kind::Ident(name) => match self.meaning(name) {
                Some(meaning) => self.refer(expr, meaning),
                None => {
                    self.undeclared(expr.id, name);
                    Type::Error
                }
            },
            Kind::Select { operand, field, test } => self.select(expr, operand, field, *test),
            Kind::Call { target, function, args } => self.call(expr, target.as_deref(), function, args),
            Kind::List { elements, optional } => self.list(elements, optional),
            Kind::Map(_) => self.map(expr),
            Kind::Object { .. } => self.object(expr),
            Kind::Fold(fold) => self.fold(fold),
            Kind::Missing => Type::Error,
        };
        self.types[expr.id as usize] = Some(of);
    }

    fn issue(&mut self, id: Id, message: String) {
        self.issues.push(Issue { offset: Some(self.offsets[id as usize]), message });
    }

    fn undeclared(&mut self, id: Id, name: &str) {
        self.issue(id, format!("undeclared reference to '{name}' (in container '')"));
    }

    fn type_of(&self, expr: &Expr) -> Type {
        self.types[expr.id as usize].clone().unwrap_or(Type::Error)
    }

    fn meaning(&self, name: &str) -> Option<Meaning> {
        let global = name.strip_prefix('.');
        let name = global.unwrap_or(name);
        if global.is_none()
            && let Some((name, of)) = self.scopes.iter().rev().find(|(one, _)| **one == *name)
        {
            return Some(Meaning::Variable(name.clone(), of.clone()));
        }
        if let Some((name, of)) = self.env.variable(name) {
            return Some(Meaning::Variable(name.clone(), of.clone()));
        }
        self.env.named_type(name).map(Meaning::Type)
    }

    fn refer(&mut self, expr: &Expr, meaning: Meaning) -> Type {
        let (reference, of) = match meaning {
            Meaning::Variable(name, of) => (Reference::Variable(name), of),
            Meaning::Type(of) => (Reference::Type(of.clone()), Type::Type(Some(Arc::new(of)))),
        };
        self.references[expr.id as usize] = Some(reference);
        of
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &str, test: bool) -> Type {
        if !test
            && let Some(name) = qualified_name(expr)
            && let Some(meaning) = self.meaning(&name)
        {
            return self.refer(expr, meaning);
        }
        let of = self.field(expr.id, operand, field, false);
        if test { Type::Bool } else { self.mapping.substitute(&of, false) }
    }

    fn field(&mut self, id: Id, operand: &Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let of = self.mapping.substitute(&self.type_of(operand), false);
        let (target, was_optional) = match of.as_optional() {
            Some(inner) => (inner.clone(), true),
            None => (of, false),
        };
        let result = match &target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(name) => self.object_field(id, name, field).unwrap_or(Type::Error),
            Type::Param(_) => {
                self.mapping.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            _ => {
                if !target.is_dyn_or_error() {
                    self.issue(id, format!("type '{target}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if was_optional || optional { Type::optional(result) } else { result }
    }

    fn object_field(&mut self, id: Id, object: &str, field: &str) -> Option<Type> {
        if self.env.is_loose(object) {
            return Some(Type::Dyn);
        }
        let Some(decl) = self.env.object(object) else {
            self.issue(id, format!("unexpected failed resolution of '{object}'"));
            return None;
        };
        let found = decl.field(field).map(crate::Decl::type_of);
        if found.is_none() {
            self.issue(id, format!("undefined field '{field}'"));
        }
        found
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, name: &str, args: &[Expr]) -> Type {
        if name == op::OPT_SELECT {
            return self.optional_select(expr, args);
        }
        for arg in args {
            self.check(arg);
        }
        let mut receiver = target;
        let mut function = None;
        if let Some(target) = target {
            function =
                qualified_name(target).and_then(|prefix| self.env.function(&format!("{prefix}.{name}")));
            if function.is_some() {
                receiver = None;
            } else {
                self.check(target);
            }
        }
        let Some(function) = function.or_else(|| self.env.function(name.strip_prefix('.').unwrap_or(name)))
        else {
            self.undeclared(expr.id, name);
            return Type::Error;
        };
        self.resolve(expr, function, receiver, args)
    }

    fn optional_select(&mut self, expr: &Expr, args: &[Expr]) -> Type {
        let [operand, name] = args else { return Type::Error };
        let Kind::Literal(Literal::String(field)) = &name.kind else { return Type::Error };
        self.types[name.id as usize] = Some(Type::String);
        let of = self.field(expr.id, operand, field, true);
        self.references[expr.id as usize] = Some(Reference::OptionalField);
        self.mapping.substitute(&of, false)
    }

    fn resolve(
        &mut self,
        expr: &Expr,
        function: &'static Function,
        receiver: Option<&Expr>,
        args: &[Expr],
    ) -> Type {
        let given: Vec<Type> = receiver.into_iter().chain(args).map(|arg| self.type_of(arg)).collect();
        let mut found: Option<Type> = None;
        let mut overloads = Vec::new();
        if matches!(function.name, op::AND | op::OR) && receiver.is_none() {
            let mut fine = true;
            for (arg, of) in args.iter().zip(&given) {
                if !self.mapping.assignable(of, &Type::Bool) {
                    let of = self.mapping.substitute(of, false);
                    self.issue(arg.id, format!("expected type 'bool' but found '{of}'"));
                    fine = false;
                }
            }
            overloads.extend(function.overloads.iter().map(|one| one.id));
            self.references[expr.id as usize] = Some(Reference::Function { function, overloads });
            return if fine { Type::Bool } else { Type::Error };
        }
        for overload in &function.overloads {
            if overload.member != receiver.is_some() || overload.args.len() != given.len() {
                continue;
            }
            let (wanted, result) = self.instance(overload);
            if !self.mapping.assignable_all(&given, &wanted) {
                continue;
            }
            overloads.push(overload.id);
            let result = self.mapping.substitute(&result, false);
            found = Some(match found {
                None => result,
                Some(first) if !first.is_dyn() && result != first => Type::Dyn,
                Some(first) => first,
            });
        }
        let Some(result) = found else {
            let given: Vec<String> =
                given.iter().map(|of| self.mapping.substitute(of, true).to_string()).collect();
            let signature = match receiver {
                Some(_) => format!("{}.({})", given[0], given[1..].join(", ")),
                None => format!("({})", given.join(", ")),
            };
            let name = function.name;
            self.issue(expr.id, format!("found no matching overload for '{name}' applied to '{signature}'"));
            return Type::Error;
        };
        self.references[expr.id as usize] = Some(Reference::Function { function, overloads });
        result
    }

    /// An overload's arguments and result with type variables of their own.
    fn instance(&mut self, overload: &functions::Overload) -> (Vec<Type>, Type) {
        if overload.params.is_empty() {
            return (overload.args.clone(), overload.result.clone());
        }
        let mut fresh = Mapping::default();
        for name in &overload.params {
            let variable = self.variable();
            fresh.add(name, variable);
        }
        let args = overload.args.iter().map(|of| fresh.substitute(of, false)).collect();
        (args, fresh.substitute(&overload.result, false))
    }

    fn variable(&mut self) -> Type {
        self.free += 1;
        Type::Param(format!("_var{}", self.free - 1).into())
    }

    /// What an optional element or field holds.
    fn unwrap_optional(&mut self, value: &Expr, of: Type) -> Type {
        match of.as_optional() {
            Some(inner) => inner.clone(),
            None => {
                if !of.is_dyn() {
                    let expected = Type::optional(of.clone());
                    self.issue(value.id, format!("expected type '{expected}' but found '{of}'"));
                }
                of
            }
        }
    }

    /// The type of elements of which one more is of type `now`. That literals are of one type is looked at later.
    fn join(&mut self, before: Option<Type>, now: Type) -> Type {
        match before {
            None => now,
            Some(before) if self.mapping.assignable(&before, &now) => most_general(&before, &now).clone(),
            Some(_) => Type::Dyn,
        }
    }

    fn list(&mut self, elements: &[Expr], optional: &[bool]) -> Type {
        let mut of = None;
        for (element, optional) in elements.iter().zip(optional) {
            self.check(element);
            let mut now = self.type_of(element);
            if *optional {
                now = self.unwrap_optional(element, now);
            }
            of = Some(self.join(of, now));
        }
        let of = match of {
            Some(of) => of,
            None => self.variable(),
        };
        Type::list(of)
    }

    fn map(&mut self, expr: &Expr) -> Type {
        let Kind::Map(entries) = &expr.kind else { return Type::Error };
        let (mut key_type, mut value_type) = (None, None);
        for entry in entries {
            self.check(&entry.key);
            let now = self.type_of(&entry.key);
            key_type = Some(self.join(key_type, now));
            self.check(&entry.value);
            let mut now = self.type_of(&entry.value);
            if entry.optional {
                now = self.unwrap_optional(&entry.value, now);
            }
            value_type = Some(self.join(value_type, now));
        }
        match (key_type, value_type) {
            (Some(key), Some(value)) => Type::map(key, value),
            _ => {
                let key = self.variable();
                Type::map(key, self.variable())
            }
        }
    }

    fn object(&mut self, expr: &Expr) -> Type {
        let Kind::Object { name, fields } = &expr.kind else { return Type::Error };
        let result = match self.meaning(name) {
            None => {
                self.undeclared(expr.id, name);
                return Type::Error;
            }
            Some(Meaning::Variable(_, of)) => {
                self.issue(expr.id, format!("'{}' is not a type", of.name()));
                Type::Error
            }
            Some(Meaning::Type(of @ Type::Object(_))) => of,
            Some(Meaning::Type(of)) => {
                self.issue(expr.id, format!("'{}' is not a message type", of.name()));
                Type::Error
            }
        };
        self.references[expr.id as usize] = Some(Reference::Type(result.clone()));
        for field in fields {
            self.check(&field.value);
            let wanted = match &result {
                Type::Object(name) => self.object_field(field.id, name, &field.name).unwrap_or(Type::Error),
                _ => Type::Error,
            };
            let mut given = self.type_of(&field.value);
            if field.optional {
                given = self.unwrap_optional(&field.value, given);
            }
            if !self.mapping.assignable(&wanted, &given) {
                let name = &field.name;
                self.issue(
                    field.id,
                    format!("expected type of field '{name}' is '{wanted}' but provided type is '{given}'"),
                );
            }
        }
        result
    }

    fn fold(&mut self, fold: &Fold) -> Type {
        self.check(&fold.range);
        self.check(&fold.init);
        let range = self.mapping.substitute(&self.type_of(&fold.range), false);
        let accu = self.type_of(&fold.init);
        let depth = self.scopes.len();
        self.scopes.push((fold.accu.clone(), accu.clone()));
        let two = fold.var2.is_some();
        let (first, second) = match &range {
            Type::List(of) if two => (Type::Int, (**of).clone()),
            Type::List(of) => ((**of).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.mapping.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            _ => {
                let message = format!(
                    "expression of type '{range}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.issue(fold.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        self.scopes.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.scopes.push((var2.clone(), second));
        }
        self.check(&fold.condition);
        self.assert(&fold.condition, &Type::Bool);
        self.check(&fold.step);
        self.assert(&fold.step, &accu);
        self.scopes.truncate(depth + 1);
        self.check(&fold.result);
        self.scopes.truncate(depth);
        self.mapping.substitute(&self.type_of(&fold.result), false)
    }

    fn assert(&mut self, expr: &Expr, wanted: &Type) {
        let given = self.type_of(expr);
        if !self.mapping.assignable(wanted, &given) {
            self.issue(expr.id, format!("expected type '{wanted}' but found '{given}'"));
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}
