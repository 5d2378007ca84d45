//! CEL selectors of devices: `device.driver`, `device.attributes["domain"].name`, `device.capacity["domain"].name`,
//! `device.allowMultipleAllocations`, in the environment that they are validated in.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cel::{Activation, Budget, Key, Program, Value};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};

/// What a selector may cost (`CELSelectorExpressionMaxCost`).
const MOST_COST: u64 = 1_000_000;
/// Compiled selectors that are kept.
const MOST_KEPT: usize = 256;

type Compiled = Arc<Result<Program, String>>;

/// Selectors by their text, compiled once; for all attempts.
#[derive(Debug, Default)]
pub struct Selectors(Mutex<HashMap<String, Compiled>>);

impl Selectors {
    fn compiled(&self, expression: &str) -> Compiled {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.get(expression) {
            return found.clone();
        }
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        let program = api::kinds::selector_env().compile(expression);
        let program = Arc::new(program.map_err(|errors| errors.to_string()));
        kept.insert(expression.to_owned(), program.clone());
        program
    }

    /// Whether the device, as [`value`] makes it, matches, and what it cost to know.
    ///
    /// # Errors
    /// If the selector cannot be compiled or fails, as one does that asks for an attribute that is not there.
    pub(super) fn matches(&self, expression: &str, device: &Value<'static>) -> Result<(bool, u64), String> {
        let program = self.compiled(expression);
        let program = program.as_ref().as_ref().map_err(|why| format!("CEL compile error: {why}"))?;
        let activation = Activation::new().with("device", device.clone());
        let mut budget = Budget::new(MOST_COST);
        let answer = program.eval(&activation, &mut budget);
        let answer = answer.map_err(|why| format!("CEL runtime error: {why}"))?;
        let matches = answer.as_bool().ok_or_else(|| {
            let of = answer.type_of();
            format!("CEL runtime error: CEL result of type {of} could not be converted to bool")
        })?;
        Ok((matches, budget.spent))
    }
}

/// The variable `device`.
///
/// # Errors
/// If the device has an attribute of a kind that is not known here.
pub(super) fn value(driver: &str, device: &Device) -> Result<Value<'static>, String> {
    let mut attributes = Domains::default();
    for (name, one) in device.attributes.iter().flatten() {
        let value = attribute(one).map_err(|why| format!("CEL runtime error: attribute {name}: {why}"))?;
        attributes.add(driver, name, value);
    }
    let mut capacity = Domains::default();
    for (name, one) in device.capacity.iter().flatten() {
        let value = Value::quantity(&one.value.0);
        let value = value.map_err(|why| format!("CEL runtime error: capacity {name}: {why}"))?;
        capacity.add(driver, name, value);
    }
    Ok(Value::map([
        (key("driver"), Value::string(driver)),
        (key("allowMultipleAllocations"), Value::Bool(device.allow_multiple_allocations == Some(true))),
        (key("attributes"), attributes.value()),
        (key("capacity"), capacity.value()),
    ]))
}

fn key(text: &str) -> Key<'static> {
    Key::String(cel::Text::Shared(text.into()))
}

fn attribute(attribute: &DeviceAttribute) -> Result<Value<'static>, String> {
    if let Some(number) = attribute.int {
        return Ok(Value::Int(number));
    }
    if let Some(flag) = attribute.bool {
        return Ok(Value::Bool(flag));
    }
    if let Some(text) = &attribute.string {
        return Ok(Value::string(text));
    }
    match &attribute.version {
        Some(text) => Value::semver(text).map_err(|why| format!("parse semantic version: {why}")),
        None => Err("unsupported attribute value".to_owned()),
    }
}

/// Names by domain; one without a domain is of the driver's.
#[derive(Default)]
struct Domains(BTreeMap<String, Vec<(Key<'static>, Value<'static>)>>);

impl Domains {
    fn add(&mut self, driver: &str, name: &str, value: Value<'static>) {
        let (domain, plain) = name.split_once('/').unwrap_or((driver, name));
        self.0.entry(domain.to_owned()).or_default().push((key(plain), value));
    }

    /// A map in which a domain that is not there is empty.
    fn value(self) -> Value<'static> {
        let entries = self.0.into_iter().map(|(domain, list)| (key(&domain), Value::map(list)));
        Value::defaulting(entries, Value::map([]))
    }
}
