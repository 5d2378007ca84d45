//! Evaluates a plan, and counts its cost step by step as cel-go's interpreter with cost tracking does.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::cost;
use crate::error::EvalError;
use crate::library;
use crate::parse::ast::op;
use crate::plan::{Attr, By, Call, Loop, Node, Root, Step};
use crate::program::{Activation, Budget};
use crate::value::{self, Key, Map, Struct, Value};

type Result<T> = std::result::Result<T, EvalError>;

/// Evaluates a plan; what it costs goes to the budget.
pub(crate) fn run<'a>(
    root: &Node,
    activation: &Activation<'a>,
    budget: &mut Budget<'_>,
) -> Result<Value<'a>> {
    let mut machine = Machine { activation, slots: Vec::new(), budget, cost: 0 };
    let result = machine.eval(root);
    let cost = machine.cost;
    budget.spent = budget.spent.saturating_add(cost);
    result
}

/// The longest list that a function takes; a request cannot hold a tenth of it.
const MAX_LIST: usize = 1 << 24;

/// The value of a fold's variable.
enum Slot<'p, 'a> {
    /// An accumulator that nobody asked for yet.
    Lazy(&'p Node),
    Value(Result<Value<'a>>),
}

struct Machine<'m, 'b, 'p, 'a> {
    activation: &'m Activation<'a>,
    slots: Vec<Slot<'p, 'a>>,
    budget: &'m mut Budget<'b>,
    cost: u64,
}

impl<'p, 'a> Machine<'_, '_, 'p, 'a> {
    fn charge(&mut self, cost: u64) -> Result<()> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.budget.limit { Err(EvalError::CostExceeded) } else { Ok(()) }
    }

    fn eval(&mut self, node: &'p Node) -> Result<Value<'a>> {
        match node {
            Node::Const(value) => Ok(value.clone()),
            Node::Attr(attr) => self.attribute(attr),
            Node::And(terms) => self.logic(terms, false),
            Node::Or(terms) => self.logic(terms, true),
            Node::Equal { negate, args } => self.equal(*negate, args),
            Node::Call(call) => self.call(call),
            Node::OptionalOr { value, args } => match self.eval(&args[0])? {
                Value::Optional(Some(some)) if *value => Ok((*some).clone()),
                Value::Optional(None) => self.eval(&args[1]),
                other => Ok(other),
            },
            Node::List { elements, optional } => {
                let result = self.list(elements, optional);
                self.made(cost::CREATE_LIST, result)
            }
            Node::Map(entries) => {
                let result = self.map(entries);
                self.made(cost::CREATE_MAP, result)
            }
            Node::Object { name, fields } => {
                let result = self.object(name, fields);
                self.made(cost::CREATE_OBJECT, result)
            }
            Node::Fold(fold) => self.fold(fold),
            Node::Member { arg, set } => {
                let value = self.eval(arg)?;
                Ok(Value::Bool(Key::of(&value).is_ok_and(|key| set.contains(&key))))
            }
        }
    }

    /// `||` or `&&`: the deciding value wins over errors, whatever the order.
    fn logic(&mut self, terms: &'p [Node], decides: bool) -> Result<Value<'a>> {
        let mut fault = None;
        for term in terms {
            match self.eval(term) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(value)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => fault = fault.or_else(|| Some(EvalError::no_such_overload())),
                Err(why) if why.is_final() => return Err(why),
                Err(why) => fault = fault.or(Some(why)),
            }
        }
        fault.map_or(Ok(Value::Bool(!decides)), Err)
    }

    /// The values of one or two arguments. An error of either comes after both are evaluated, with null in its place
    /// for what the call costs.
    fn arguments(&mut self, args: &'p [Node]) -> Result<(Vec<Value<'a>>, Option<EvalError>)> {
        let mut values = Vec::with_capacity(args.len());
        let mut fault = None;
        for arg in args {
            match self.eval(arg) {
                Ok(value) => values.push(value),
                Err(why) if why.is_final() => return Err(why),
                Err(why) => {
                    fault = fault.or(Some(why));
                    values.push(Value::Null);
                }
            }
        }
        Ok((values, fault))
    }

    fn equal(&mut self, negate: bool, args: &'p [Node; 2]) -> Result<Value<'a>> {
        let (mut values, fault) = self.arguments(args)?;
        let (right, left) = (values.pop().unwrap_or(Value::Null), values.pop().unwrap_or(Value::Null));
        if let Some(why) = fault {
            self.charge(cost::equality(&left, &right, negate))?;
            return Err(why);
        }
        self.charge(cost::equality(&left, &right, negate))?;
        match value::equal(&left, &right) {
            Ok(equal) => Ok(Value::Bool(equal != negate)),
            Err(_) if negate => Ok(Value::Bool(true)),
            Err(why) => Err(why),
        }
    }

    fn call(&mut self, call: &'p Call) -> Result<Value<'a>> {
        if call.function.name == op::NOT_STRICTLY_FALSE {
            let value = match self.eval(&call.args[0]) {
                Ok(Value::Bool(value)) => value,
                Err(why) if why.is_final() => return Err(why),
                _ => true,
            };
            self.charge(1)?;
            return Ok(Value::Bool(value));
        }
        if let Some(slot) = call.grows {
            return self.grow(call, slot);
        }
        let (args, fault) = match &call.args[..] {
            few @ ([_] | [_, _]) => self.arguments(few)?,
            many => (many.iter().map(|arg| self.eval(arg)).collect::<Result<_>>()?, None),
        };
        if let Some(why) = fault {
            self.charge(cost::after(call.function.name, call.overload, &args, None))?;
            return Err(why);
        }
        // Joining makes lists that are longer than anything could go through.
        let endless = |value: &Value<'_>| matches!(value, Value::List(list) if list.len() > MAX_LIST);
        if !matches!(call.function.name, "size" | op::ADD | "dyn" | "type") && args.iter().any(endless) {
            return Err(EvalError::CostExceeded);
        }
        // What follows from the arguments' sizes is charged before the work is done.
        let before = cost::before(call.function.name, call.overload, &args);
        if let Some(before) = before {
            self.charge(before)?;
        }
        let result = match (&call.pattern, &args[..]) {
            (Some(pattern), [Value::String(text), _]) if call.function.name == "matches" => {
                Ok(Value::Bool(pattern.is_match(text)))
            }
            (Some(pattern), [Value::String(text), _]) if call.function.name == "find" => {
                Ok(Value::string(pattern.find(text).map_or("", |found| found.as_str())))
            }
            (Some(pattern), [Value::String(text), _]) => Ok(library::find_all(pattern, text, None)),
            (Some(pattern), [Value::String(text), _, Value::Int(most)]) => {
                Ok(library::find_all(pattern, text, Some(*most)))
            }
            _ => (call.native)(&args),
        };
        if before.is_none() {
            self.charge(cost::after(call.function.name, call.overload, &args, result.as_ref().ok()))?;
        }
        result
    }

    /// Adds to the accumulator of the fold around, in place.
    fn grow(&mut self, call: &'p Call, slot: usize) -> Result<Value<'a>> {
        let (mut rest, mut fault) = self.arguments(&call.args[1..])?;
        self.settle(slot)?;
        self.charge(1)?;
        let accu = match &mut self.slots[slot] {
            Slot::Value(value) => std::mem::replace(value, Ok(Value::Null)),
            Slot::Lazy(_) => return Err(EvalError::no_such_overload()),
        };
        let accu = accu.unwrap_or_else(|why| {
            fault = Some(why);
            Value::Null
        });
        if let Some(why) = fault {
            self.charge(1)?;
            return Err(why);
        }
        match (accu, &mut rest[..]) {
            (Value::List(mut list), [Value::List(added)]) => {
                self.charge(1)?;
                if added.len() == 1 {
                    if let Some(one) = added.get(0) {
                        list.push(one?);
                    }
                    return Ok(Value::List(list));
                }
                list.concat(added).map(Value::List)
            }
            (Value::Map(mut map), [key, value]) => {
                self.charge(1)?;
                map.insert(Key::of(key)?, std::mem::replace(value, Value::Null))?;
                Ok(Value::Map(map))
            }
            (Value::Map(mut map), [Value::Map(added)]) => {
                self.charge(1)?;
                for key in added.keys() {
                    if let Some(value) = added.get(&key) {
                        map.insert(key, value?)?;
                    }
                }
                Ok(Value::Map(map))
            }
            (accu, rest) => {
                let mut args = vec![accu];
                args.extend(rest.iter().cloned());
                let result = (call.native)(&args);
                self.charge(cost::after(call.function.name, call.overload, &args, result.as_ref().ok()))?;
                result
            }
        }
    }

    fn list(&mut self, elements: &'p [Node], optional: &[bool]) -> Result<Value<'a>> {
        let mut made = Vec::with_capacity(elements.len());
        for (element, optional) in elements.iter().zip(optional) {
            let value = self.eval(element)?;
            let what = || "cannot initialize optional list element".to_owned();
            made.extend(unwrap_optional(value, *optional, what)?);
        }
        Ok(Value::list(made))
    }

    /// Adds what making a value costs, whether it was made or not.
    fn made(&mut self, cost: u64, result: Result<Value<'a>>) -> Result<Value<'a>> {
        match &result {
            Err(why) if why.is_final() => {}
            _ => self.charge(cost)?,
        }
        result
    }

    fn object(&mut self, name: &Arc<str>, fields: &'p [(Arc<str>, Node, bool)]) -> Result<Value<'a>> {
        let mut made = Struct { name: name.clone(), fields: indexmap::IndexMap::new() };
        for (name, node, optional) in fields {
            let value = self.eval(node)?;
            match unwrap_optional(value, *optional, || format!("cannot initialize optional entry '{name}'"))?
            {
                Some(value) => made.fields.insert(name.clone(), value),
                None => made.fields.shift_remove(name),
            };
        }
        Ok(Value::Struct(made.into()))
    }

    fn map(&mut self, entries: &'p [(Node, Node, bool)]) -> Result<Value<'a>> {
        let mut made = indexmap::IndexMap::with_capacity(entries.len());
        for (key, node, optional) in entries {
            let key = Key::of(&self.eval(key)?)?;
            let value = self.eval(node)?;
            match unwrap_optional(value, *optional, || format!("cannot initialize optional entry '{key}'"))? {
                Some(value) => made.insert(key, value),
                None => made.shift_remove(&key),
            };
        }
        Ok(Value::Map(Map::Owned(made.into())))
    }

    fn fold(&mut self, fold: &'p Loop) -> Result<Value<'a>> {
        let range = self.eval(&fold.range)?;
        let depth = self.slots.len();
        // Places are counted from the outermost fold on; a lazy accumulator may be evaluated with more in force.
        while self.slots.len() < fold.slot {
            self.slots.push(Slot::Value(Ok(Value::Null)));
        }
        let saved: Vec<Slot<'p, 'a>> = self.slots.drain(fold.slot..).collect();
        self.slots.push(Slot::Lazy(&fold.init));
        let result = self.iterate(fold, &range);
        self.slots.truncate(fold.slot);
        self.slots.extend(saved);
        self.slots.truncate(depth.max(fold.slot));
        result
    }

    fn iterate(&mut self, fold: &'p Loop, range: &Value<'a>) -> Result<Value<'a>> {
        match range {
            Value::List(list) => {
                for (at, element) in list.iter().enumerate() {
                    let going = if fold.two {
                        self.once(fold, Ok(Value::Int(at as i64)), Some(element))?
                    } else {
                        self.once(fold, element, None)?
                    };
                    if !going {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let value = if fold.two { map.get(&key) } else { None };
                    if !self.once(fold, Ok(key.value()), value)? {
                        break;
                    }
                }
            }
            other => {
                let of = other.type_of();
                return Err(EvalError::new(format!("got '{}', expected iterable type", of.name())));
            }
        }
        self.slots.truncate(fold.slot + 1);
        self.eval(&fold.result)
    }

    /// One turn of a fold; whether to go on.
    fn once(
        &mut self,
        fold: &'p Loop,
        first: Result<Value<'a>>,
        second: Option<Result<Value<'a>>>,
    ) -> Result<bool> {
        if self.budget.interrupted() {
            return Err(EvalError::Interrupted);
        }
        self.slots.truncate(fold.slot + 1);
        self.slots.push(Slot::Value(first));
        if fold.two {
            self.slots.push(Slot::Value(second.unwrap_or(Ok(Value::Null))));
        }
        match self.eval(&fold.condition) {
            Ok(Value::Bool(false)) => return Ok(false),
            Err(why) if why.is_final() => return Err(why),
            _ => {}
        }
        let step = self.eval(&fold.step);
        if let Err(why) = &step
            && why.is_final()
        {
            return Err(why.clone());
        }
        self.slots[fold.slot] = Slot::Value(step);
        Ok(true)
    }

    /// Evaluates a lazy accumulator.
    fn settle(&mut self, slot: usize) -> Result<()> {
        if let Slot::Lazy(init) = self.slots[slot] {
            let value = self.eval(init);
            if let Err(why) = &value
                && why.is_final()
            {
                return Err(why.clone());
            }
            self.slots[slot] = Slot::Value(value);
        }
        Ok(())
    }

    fn attribute(&mut self, attr: &'p Attr) -> Result<Value<'a>> {
        let result = self.resolve(attr);
        if let Err(why) = &result
            && why.is_final()
        {
            return result;
        }
        let conditional = matches!(attr.root, Root::Conditional(_));
        self.charge(u64::from(!conditional && !attr.test))?;
        result
    }

    /// The value of an attribute without the cost of its own.
    fn resolve(&mut self, attr: &'p Attr) -> Result<Value<'a>> {
        let mut value = match &attr.root {
            Root::Variable(name) => match self.activation.get(name) {
                Some(value) => value.clone(),
                None => return Err(EvalError::new(format!("no such attribute(s): {name}"))),
            },
            Root::Slot(slot) => {
                self.settle(*slot)?;
                match &self.slots[*slot] {
                    Slot::Value(value) => value.clone()?,
                    Slot::Lazy(_) => Value::Null,
                }
            }
            Root::Operand(node) => self.eval(node)?,
            Root::Conditional(branches) => match self.eval(&branches.test)? {
                Value::Bool(true) => self.resolve(&branches.yes)?,
                Value::Bool(false) => self.resolve(&branches.no)?,
                _ => return Err(EvalError::no_such_overload()),
            },
        };
        if attr.steps.is_empty() {
            return Ok(value);
        }
        let mut optional = false;
        if let Value::Optional(inner) = &value {
            match inner {
                None if attr.test => return Ok(Value::Bool(false)),
                None => return Ok(Value::Optional(None)),
                Some(inner) => {
                    let inner = (**inner).clone();
                    value = inner;
                    optional = true;
                }
            }
        }
        let last = attr.steps.len() - 1;
        for (at, step) in attr.steps.iter().enumerate() {
            optional |= step.optional;
            let test = attr.test && at == last;
            let found = self.step(&value, step, optional || test, test)?;
            if test {
                return Ok(Value::Bool(found.is_some()));
            }
            match found {
                Some(next) => value = next,
                None => return Ok(Value::Optional(None)),
            }
        }
        Ok(if optional { Value::some(value) } else { value })
    }

    /// What a step leads to; `None` where it is absent and that is no fault.
    fn step(
        &mut self,
        value: &Value<'a>,
        step: &'p Step,
        lenient: bool,
        test: bool,
    ) -> Result<Option<Value<'a>>> {
        let found = match &step.by {
            By::Key(key) => self.pick(value, key, lenient),
            By::Attr(attr) => {
                let by = self.resolve(attr)?;
                match Key::of(&by) {
                    Ok(key) => self.pick(value, &key, lenient),
                    Err(_) => Err(EvalError::new(format!("invalid qualifier type: {}", by.type_of().name()))),
                }
            }
        };
        if test || !matches!(found, Ok(None)) {
            self.charge(1)?;
        }
        found
    }

    fn pick(&mut self, value: &Value<'a>, key: &Key<'a>, lenient: bool) -> Result<Option<Value<'a>>> {
        let found = match value {
            Value::Map(map) => map.get(key),
            Value::List(list) => {
                let Some(at) = key.whole() else {
                    if let Key::Double(value) = key {
                        return Err(EvalError::new(format!("unsupported index value {value} in list")));
                    }
                    return Err(EvalError::new(format!("unsupported index type '{}' in list", kind(key))));
                };
                let found = usize::try_from(at).ok().and_then(|at| list.get(at));
                if found.is_none() && !lenient {
                    return Err(EvalError::new(format!("index out of bounds: {at}")));
                }
                found
            }
            Value::Struct(one) => {
                let name = key.text().unwrap_or_default();
                let plain = crate::escape::unescape(name);
                one.fields.get(plain.as_deref().unwrap_or(name)).cloned().map(Ok)
            }
            Value::Lazy(name) => {
                let field = key.text().unwrap_or_default();
                self.activation.lazy_field(name, field, self.budget)
            }
            _ => None,
        };
        match found {
            Some(value) => value.map(Some),
            None if lenient => Ok(None),
            None => Err(EvalError::new(format!("no such key: {key}"))),
        }
    }
}

fn kind(key: &Key<'_>) -> &'static str {
    match key {
        Key::Bool(_) => "bool",
        Key::Int(_) => "int",
        Key::Uint(_) => "uint",
        Key::Double(_) => "double",
        Key::String(_) => "string",
    }
}

/// The content of an optional value where the expression says that it is one.
fn unwrap_optional<'a>(
    value: Value<'a>,
    optional: bool,
    what: impl FnOnce() -> String,
) -> Result<Option<Value<'a>>> {
    if !optional {
        return Ok(Some(value));
    }
    match value {
        Value::Optional(inner) => Ok(inner.map(|inner| (*inner).clone())),
        other => {
            Err(EvalError::new(format!("{} from non-optional value of type {}", what(), other.type_of())))
        }
    }
}

/// Whether an order is one of those that a comparison wants.
pub(crate) fn ordered(left: &Value<'_>, right: &Value<'_>, wants: &[Ordering]) -> Result<bool> {
    value::compare(left, right).map(|order| wants.contains(&order))
}
