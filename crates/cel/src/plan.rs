//! A checked expression to a plan: names resolved, functions bound, constants made, as cel-go's planner does it
//! with constant folding on. What the plan folds costs nothing at run time.

use std::collections::HashSet;
use std::sync::Arc;

use regex::Regex;

use crate::check::{Checked, Reference};
use crate::env::Env;
use crate::error::{Errors, EvalError};
use crate::functions::{Function, Native};
use crate::parse::ast::{Expr, Fold, Kind, Literal, op};
use crate::program::Program;
use crate::value::{Key, Text, Value};

#[derive(Debug)]
pub(crate) enum Node {
    Const(Value<'static>),
    Attr(Box<Attr>),
    And(Vec<Node>),
    Or(Vec<Node>),
    Equal {
        negate: bool,
        args: Box<[Node; 2]>,
    },
    Call(Box<Call>),
    /// `or` and `orValue` of optional values, which evaluate their argument only if it is needed.
    OptionalOr {
        value: bool,
        args: Box<[Node; 2]>,
    },
    List {
        elements: Vec<Node>,
        optional: Vec<bool>,
    },
    Map(Vec<(Node, Node, bool)>),
    Object {
        name: Arc<str>,
        fields: Vec<(Arc<str>, Node, bool)>,
    },
    Fold(Box<Loop>),
    /// `in` a list of constants.
    Member {
        arg: Box<Node>,
        set: HashSet<Key<'static>>,
    },
}

/// A variable or another operand with the fields and indices selected from it in a row.
#[derive(Debug)]
pub(crate) struct Attr {
    pub root: Root,
    pub steps: Vec<Step>,
    /// Whether the last step only asks whether the field is there.
    pub test: bool,
}

#[derive(Debug)]
pub(crate) enum Root {
    Variable(Arc<str>),
    /// A variable of a fold, by its place among those in force.
    Slot(usize),
    Operand(Node),
    Conditional(Box<Conditional>),
}

#[derive(Debug)]
pub(crate) struct Conditional {
    pub test: Node,
    pub yes: Attr,
    pub no: Attr,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub by: By,
    pub optional: bool,
}

#[derive(Debug)]
pub(crate) enum By {
    Key(Key<'static>),
    Attr(Box<Attr>),
}

#[derive(Debug)]
pub(crate) struct Call {
    pub function: &'static Function,
    pub native: Native,
    /// The overload, if the checker found exactly one.
    pub overload: &'static str,
    pub args: Vec<Node>,
    /// The pattern, compiled, where it is constant.
    pub pattern: Option<Regex>,
    /// Whether the first argument is the accumulator of the fold around, which may be changed in place.
    pub grows: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Loop {
    pub range: Node,
    pub two: bool,
    pub init: Node,
    pub condition: Node,
    pub step: Node,
    pub result: Node,
    /// The place of the accumulator; the variables follow it.
    pub slot: usize,
}

/// Plans a checked expression.
pub(crate) fn plan(source: &str, checked: Checked, max_cost: u64, env: &Env) -> Result<Program, Errors> {
    let mut planner = Planner {
        checked: &checked,
        env,
        scopes: Vec::new(),
        variables: HashSet::new(),
        depth: 0,
        deepest: 0,
    };
    let root = planner.node(&checked.ast.root).map_err(|why| Errors::instantiation(source, &why))?;
    let deep = planner.deepest > MAX_SHALLOW;
    let variables = planner.variables;
    let result = checked.type_of(&checked.ast.root).clone();
    Ok(Program { source: source.into(), root, result, max_cost, variables, deep })
}

struct Planner<'c> {
    checked: &'c Checked,
    env: &'c Env,
    /// The variables of folds in force; the same name may come again.
    scopes: Vec<Arc<str>>,
    variables: HashSet<Arc<str>>,
    /// How deep the nodes nest, here and at most.
    depth: usize,
    deepest: usize,
}

/// Plans that nest deeper are evaluated on a stack of their own.
const MAX_SHALLOW: usize = 40;

type Planned<T> = Result<T, EvalError>;

impl Planner<'_> {
    fn nodes(&mut self, exprs: &[Expr]) -> Planned<Vec<Node>> {
        exprs.iter().map(|expr| self.node(expr)).collect()
    }

    fn node(&mut self, expr: &Expr) -> Planned<Node> {
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
        let node = self.shallow(expr);
        self.depth -= 1;
        node
    }

    fn shallow(&mut self, expr: &Expr) -> Planned<Node> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(Node::Const(constant(literal))),
            Kind::Ident(_) => Ok(self.name(expr)),
            Kind::Select { operand, field, test } => {
                if self.checked.reference(expr).is_some() {
                    return Ok(self.name(expr));
                }
                let operand = self.node(operand)?;
                let mut attr = attribute(operand);
                let key = Key::String(Text::Shared(field.clone()));
                attr.steps.push(Step { by: By::Key(key), optional: false });
                attr.test = *test;
                Ok(Node::Attr(Box::new(attr)))
            }
            Kind::Call { target, function, args } => self.call(expr, target.as_deref(), function, args),
            Kind::List { elements, optional } => {
                let elements = self.nodes(elements)?;
                if !optional.contains(&true) && elements.iter().all(is_const) {
                    return Ok(Node::Const(Value::list(
                        elements.into_iter().filter_map(into_const).collect(),
                    )));
                }
                Ok(Node::List { elements, optional: optional.clone() })
            }
            Kind::Map(entries) => {
                let mut planned = Vec::with_capacity(entries.len());
                for entry in entries {
                    planned.push((self.node(&entry.key)?, self.node(&entry.value)?, entry.optional));
                }
                if planned.iter().all(|(key, value, optional)| is_const(key) && is_const(value) && !optional)
                {
                    let mut map = Vec::new();
                    for (key, value, _) in planned {
                        if let (Some(key), Some(value)) = (into_const(key), into_const(value)) {
                            map.push((Key::of(&key)?, value));
                        }
                    }
                    return Ok(Node::Const(Value::map(map)));
                }
                Ok(Node::Map(planned))
            }
            Kind::Object { fields, .. } => {
                let Some(Reference::Type(of)) = self.checked.reference(expr) else {
                    return Err(EvalError::new("unknown type"));
                };
                let mut planned = Vec::with_capacity(fields.len());
                for field in fields {
                    let name = self.env.json_name(of.name(), &field.name);
                    planned.push((name, self.node(&field.value)?, field.optional));
                }
                Ok(Node::Object { name: of.name().into(), fields: planned })
            }
            Kind::Fold(fold) => self.fold(fold),
            Kind::Missing => Err(EvalError::new("unsupported expression")),
        }
    }

    fn name(&mut self, expr: &Expr) -> Node {
        let root = match self.checked.reference(expr) {
            Some(Reference::Type(of)) => return Node::Const(Value::Type(of.clone())),
            Some(Reference::Variable(name)) => {
                let global = matches!(&expr.kind, Kind::Ident(written) if written.starts_with('.'));
                match self.scopes.iter().rposition(|one| one == name).filter(|_| !global) {
                    Some(slot) => Root::Slot(slot),
                    None => {
                        self.variables.insert(name.clone());
                        Root::Variable(name.clone())
                    }
                }
            }
            _ => Root::Variable("".into()),
        };
        Node::Attr(Box::new(Attr { root, steps: Vec::new(), test: false }))
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, name: &str, args: &[Expr]) -> Planned<Node> {
        let (function, overload) = match self.checked.reference(expr) {
            Some(Reference::OptionalField) => return self.index(args, true),
            Some(Reference::Function { function, overloads }) => {
                (*function, if let [one] = overloads[..] { one } else { "" })
            }
            _ => return Err(EvalError::new(format!("no such overload: {name}"))),
        };
        match function.name {
            op::AND => return Ok(Node::And(self.nodes(args)?)),
            op::OR => return Ok(Node::Or(self.nodes(args)?)),
            op::INDEX => return self.index(args, false),
            op::OPT_INDEX => return self.index(args, true),
            op::CONDITIONAL => {
                let [test, yes, no] = args else { return Err(EvalError::no_such_overload()) };
                let test = self.node(test)?;
                let (yes, no) = (branch(self.node(yes)?), branch(self.node(no)?));
                let root = Root::Conditional(Box::new(Conditional { test, yes, no }));
                return Ok(Node::Attr(Box::new(Attr { root, steps: Vec::new(), test: false })));
            }
            _ => {}
        }
        // A namespaced function takes no receiver.
        let receiver = target.filter(|_| !function.name.contains('.') || function.name == name);
        let mut planned = Vec::with_capacity(args.len() + 1);
        if let Some(receiver) = receiver {
            planned.push(self.node(receiver)?);
        }
        for arg in args {
            planned.push(self.node(arg)?);
        }
        let two = |planned: Vec<Node>| -> Planned<Box<[Node; 2]>> {
            planned.into_boxed_slice().try_into().map_err(|_| EvalError::no_such_overload())
        };
        match (function.name, overload) {
            (op::EQUALS | op::NOT_EQUALS, _) => {
                let negate = function.name == op::NOT_EQUALS;
                return Ok(Node::Equal { negate, args: two(planned)? });
            }
            ("or", "" | "optional_or_optional") => {
                return Ok(Node::OptionalOr { value: false, args: two(planned)? });
            }
            ("orValue", "" | "optional_orValue_value") => {
                return Ok(Node::OptionalOr { value: true, args: two(planned)? });
            }
            ("@in", "in_list") => return Ok(membership(function, overload, planned)),
            _ => {}
        }
        if is_conversion(function.name)
            && let [Node::Const(value)] = &planned[..]
        {
            return Ok(Node::Const((function.native)(std::slice::from_ref(value))?));
        }
        let mut pattern = None;
        if matches!(function.name, "matches" | "find" | "findAll")
            && let Some(Node::Const(Value::String(text))) = planned.get(1)
        {
            pattern = Some(crate::pattern::compile(text).map_err(EvalError::new)?);
        }
        let grows = match (function.name, planned.first()) {
            (op::ADD | op::MAP_INSERT, Some(Node::Attr(attr))) if attr.steps.is_empty() => match attr.root {
                // Only macros can name this accumulator, and they use what they add to nowhere else.
                Root::Slot(slot) if &*self.scopes[slot] == crate::parse::ast::ACCU => Some(slot),
                _ => None,
            },
            _ => None,
        };
        let native =
            if function.name == "sum" { crate::library::lists::sum_of(overload) } else { function.native };
        Ok(Node::Call(Box::new(Call { function, native, overload, args: planned, pattern, grows })))
    }

    fn index(&mut self, args: &[Expr], optional: bool) -> Planned<Node> {
        let [operand, index] = args else { return Err(EvalError::no_such_overload()) };
        let operand = self.node(operand)?;
        let mut attr = attribute(operand);
        let by = match self.node(index)? {
            Node::Const(value) => match Key::of(&value) {
                Ok(key) => By::Key(key),
                Err(_) => {
                    return Err(EvalError::new(format!(
                        "invalid qualifier type: {}",
                        value.type_of().name()
                    )));
                }
            },
            other => By::Attr(Box::new(attribute(other))),
        };
        attr.steps.push(Step { by, optional });
        Ok(Node::Attr(Box::new(attr)))
    }

    fn fold(&mut self, fold: &Fold) -> Planned<Node> {
        let range = self.node(&fold.range)?;
        let init = self.node(&fold.init)?;
        let slot = self.scopes.len();
        self.scopes.push(fold.accu.clone());
        self.scopes.push(fold.var.clone());
        self.scopes.extend(fold.var2.clone());
        let condition = self.node(&fold.condition)?;
        let step = self.node(&fold.step)?;
        self.scopes.truncate(slot + 1);
        let result = self.node(&fold.result)?;
        self.scopes.truncate(slot);
        let two = fold.var2.is_some();
        Ok(Node::Fold(Box::new(Loop { range, two, init, condition, step, result, slot })))
    }
}

fn constant(literal: &Literal) -> Value<'static> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::String(Text::Shared(text.clone())),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

fn is_const(node: &Node) -> bool {
    matches!(node, Node::Const(_))
}

fn into_const(node: Node) -> Option<Value<'static>> {
    match node {
        Node::Const(value) => Some(value),
        _ => None,
    }
}

/// What steps can be added to.
fn attribute(node: Node) -> Attr {
    match node {
        // After a test there is nothing to select from but its result.
        Node::Attr(attr) if !attr.test => *attr,
        other => Attr { root: Root::Operand(other), steps: Vec::new(), test: false },
    }
}

/// A branch of a conditional: an attribute costs nothing there of its own.
fn branch(node: Node) -> Attr {
    match node {
        Node::Attr(attr) => *attr,
        other => Attr { root: Root::Operand(other), steps: Vec::new(), test: false },
    }
}

fn membership(function: &'static Function, overload: &'static str, mut args: Vec<Node>) -> Node {
    let set = match args.get(1) {
        Some(Node::Const(Value::List(list))) => {
            if list.is_empty() {
                return Node::Const(Value::Bool(false));
            }
            let keys = list.iter().map(|one| one.ok().and_then(|one| Key::of(&one).ok()));
            keys.collect::<Option<HashSet<_>>>()
        }
        _ => None,
    };
    match set {
        Some(set) => Node::Member { arg: Box::new(args.swap_remove(0)), set },
        None => Node::Call(Box::new(Call {
            function,
            native: function.native,
            overload,
            args,
            pattern: None,
            grows: None,
        })),
    }
}

fn is_conversion(name: &str) -> bool {
    matches!(
        name,
        "bool" | "bytes" | "double" | "duration" | "dyn" | "int" | "string" | "timestamp" | "type" | "uint"
    )
}
