//! A compiled expression, what it is evaluated with, and what that may cost.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::EvalError;
use crate::eval;
use crate::plan::Node;
use crate::types::Type;
use crate::value::Value;

/// The most that one evaluation may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

/// An expression ready to be evaluated, any number of times and side by side.
#[derive(Debug)]
pub struct Program {
    pub(crate) source: Arc<str>,
    pub(crate) root: Node,
    pub(crate) result: Type,
    pub(crate) max_cost: u64,
    pub(crate) variables: HashSet<Arc<str>>,
    /// Whether it nests deeper than a worker's stack should hold.
    pub(crate) deep: bool,
}

impl Program {
    /// The expression's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The type of the result.
    pub fn result_type(&self) -> &Type {
        &self.result
    }

    /// The most it can cost for data as large as its declarations let it be; `u64::MAX` if unbounded.
    pub fn max_cost(&self) -> u64 {
        self.max_cost
    }

    /// Whether it uses a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Evaluates it.
    ///
    /// # Errors
    /// If the expression fails, or costs more than one evaluation may.
    pub fn eval<'a>(
        &self,
        activation: &Activation<'a>,
        budget: &mut Budget<'_>,
    ) -> Result<Value<'a>, EvalError> {
        crate::deep::run(self.deep, || eval::run(&self.root, activation, budget))
    }
}

/// What evaluations cost. One budget serves any number of them in a row.
#[derive(Default)]
pub struct Budget<'b> {
    /// The most that each evaluation may cost.
    pub limit: u64,
    /// What all evaluations have cost so far.
    pub spent: u64,
    interrupt: Option<&'b (dyn Fn() -> bool + Sync)>,
}

impl std::fmt::Debug for Budget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget")
            .field("limit", &self.limit)
            .field("spent", &self.spent)
            .finish_non_exhaustive()
    }
}

impl<'b> Budget<'b> {
    /// Each evaluation may cost [`PER_CALL_LIMIT`].
    pub fn per_call() -> Self {
        Self { limit: PER_CALL_LIMIT, spent: 0, interrupt: None }
    }

    /// Each evaluation may cost so much.
    pub fn new(limit: u64) -> Self {
        Self { limit, spent: 0, interrupt: None }
    }

    /// Asks, in loops, whether to stop.
    #[must_use]
    pub fn with_interrupt(mut self, interrupt: &'b (dyn Fn() -> bool + Sync)) -> Self {
        self.interrupt = Some(interrupt);
        self
    }

    pub(crate) fn interrupted(&self) -> bool {
        self.interrupt.is_some_and(|ask| ask())
    }
}

/// The values of variables for an evaluation. Lazy fields are evaluated once for all evaluations with it.
#[derive(Debug, Default)]
pub struct Activation<'a> {
    values: HashMap<Arc<str>, Value<'a>>,
    lazies: HashMap<Arc<str>, HashMap<Arc<str>, Lazy<'a>>>,
    /// How many lazy fields are being evaluated.
    depth: AtomicUsize,
}

/// How many lazy fields may ask for one another in a row.
const MAX_LAZY: usize = 64;

#[derive(Debug)]
struct Lazy<'a> {
    program: &'a Program,
    state: Mutex<State<'a>>,
}

#[derive(Debug)]
enum State<'a> {
    Waiting,
    Running,
    Done(Result<Value<'a>, EvalError>),
}

impl<'a> Activation<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a variable its value.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value<'a>) -> Self {
        self.set(name, value);
        self
    }

    /// Gives a variable its value.
    pub fn set(&mut self, name: &str, value: Value<'a>) {
        self.values.insert(name.into(), value);
    }

    /// Makes `field` of the variable `name` the result of a program, which is evaluated with this activation when
    /// the field is asked for first. Its cost goes to the budget of the evaluation that asked.
    pub fn lazy(&mut self, name: &str, field: &str, program: &'a Program) {
        let name: Arc<str> = name.into();
        self.values.entry(name.clone()).or_insert_with(|| Value::Lazy(name.clone()));
        let lazy = Lazy { program, state: Mutex::new(State::Waiting) };
        self.lazies.entry(name).or_default().insert(field.into(), lazy);
    }

    /// Makes a variable one with lazy fields, though it has none yet.
    pub fn lazies(&mut self, name: &str) {
        let name: Arc<str> = name.into();
        self.values.entry(name.clone()).or_insert_with(|| Value::Lazy(name.clone()));
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.values.get(name)
    }

    pub(crate) fn lazy_field(
        &self,
        name: &str,
        field: &str,
        budget: &mut Budget<'_>,
    ) -> Option<Result<Value<'a>, EvalError>> {
        let lazy = self.lazies.get(name)?.get(field)?;
        let set = |state: State<'a>| {
            std::mem::replace(&mut *lazy.state.lock().unwrap_or_else(PoisonError::into_inner), state)
        };
        match set(State::Running) {
            State::Done(result) => {
                set(State::Done(result.clone()));
                return Some(result);
            }
            State::Running => {
                return Some(Err(EvalError::new(format!("{name}.{field} is defined by itself"))));
            }
            State::Waiting => {}
        }
        if self.depth.fetch_add(1, Ordering::Relaxed) >= MAX_LAZY {
            self.depth.fetch_sub(1, Ordering::Relaxed);
            set(State::Waiting);
            let why = format!("{name}.{field} is defined by too many others in a row");
            return Some(Err(EvalError::new(why)));
        }
        let result = lazy.program.eval(self, budget).map_err(|why| match why {
            EvalError::Interrupted => why,
            _ => EvalError::new(format!("composited variable {field:?} fails to evaluate: {why}")),
        });
        self.depth.fetch_sub(1, Ordering::Relaxed);
        set(State::Done(result.clone()));
        Some(result)
    }
}
