//! The steps from one ruleset to another, in an order in which every step is valid, to be committed as one transaction.

use crate::nft::{Chain, Hook, Key, Rule, Ruleset, Set, Value};
use std::collections::BTreeMap;

/// Steps on one table, all or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The table.
    pub table: String,
    /// In order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the table unless it is there.
    AddTable,
    /// Removes the table with all that is in it.
    DeleteTable,
    /// Makes an empty chain.
    AddChain(String, Option<Hook>),
    /// Makes an empty set: the one given, without its elements.
    AddSet(String, Set),
    /// Adds elements to a set.
    AddElements(String, Vec<(Key, Value)>),
    /// Removes elements of a set.
    DeleteElements(String, Vec<Key>),
    /// Removes all rules of a chain.
    FlushChain(String),
    /// Appends a rule to a chain.
    AddRule(String, Rule),
    /// Removes an empty chain that nothing points to.
    DeleteChain(String),
    /// Removes a set that no rule uses.
    DeleteSet(String),
}

impl Transaction {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Puts `new` in force whatever is there now.
    pub fn replace(new: &Ruleset) -> Self {
        let mut steps = vec![Step::AddTable, Step::DeleteTable, Step::AddTable];
        steps.extend(changes(&Ruleset::new(new.table.as_str()), new));
        Self { table: new.table.clone(), steps }
    }

    /// Removes the table, be it there or not.
    pub fn remove(table: &str) -> Self {
        Self { table: table.to_owned(), steps: vec![Step::AddTable, Step::DeleteTable] }
    }
}

/// The steps that turn `old` (which must be in force) into `new`.
pub fn diff(old: &Ruleset, new: &Ruleset) -> Transaction {
    let reshaped = |(name, set): (&String, &Set)| old.sets.get(name).is_some_and(|was| !was.same_shape(set));
    let rehooked =
        |(name, chain): (&String, &Chain)| old.chains.get(name).is_some_and(|was| was.hook != chain.hook);
    if old.table != new.table || new.sets.iter().any(reshaped) || new.chains.iter().any(rehooked) {
        return Transaction::replace(new);
    }
    Transaction { table: new.table.clone(), steps: changes(old, new) }
}

fn changes(old: &Ruleset, new: &Ruleset) -> Vec<Step> {
    let empty = BTreeMap::new();
    let mut steps = Vec::new();
    for (name, chain) in &new.chains {
        if !old.chains.contains_key(name) {
            steps.push(Step::AddChain(name.clone(), chain.hook));
        }
    }
    for (name, set) in &new.sets {
        if !old.sets.contains_key(name) {
            let shape = Set {
                key: set.key.clone(),
                holds: set.holds,
                timeout: set.timeout,
                elements: BTreeMap::new(),
            };
            steps.push(Step::AddSet(name.clone(), shape));
        }
    }
    // A changed element is a removal and an addition, so all removals come first.
    for (name, set) in &old.sets {
        let Some(now) = new.sets.get(name) else {
            // References from a verdict map to chains must be gone before the chains are.
            let keys: Vec<Key> = set.elements.keys().cloned().collect();
            if !keys.is_empty() {
                steps.push(Step::DeleteElements(name.clone(), keys));
            }
            continue;
        };
        let gone: Vec<Key> = set
            .elements
            .iter()
            .filter(|(key, value)| now.elements.get(*key) != Some(*value))
            .map(|(key, _)| key.clone())
            .collect();
        if !gone.is_empty() {
            steps.push(Step::DeleteElements(name.clone(), gone));
        }
    }
    for (name, set) in &new.sets {
        let was = old.sets.get(name).map_or(&empty, |set| &set.elements);
        let fresh: Vec<(Key, Value)> = set
            .elements
            .iter()
            .filter(|(key, value)| was.get(*key) != Some(*value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !fresh.is_empty() {
            steps.push(Step::AddElements(name.clone(), fresh));
        }
    }
    for (name, chain) in &new.chains {
        let was = old.chains.get(name);
        if was.is_some_and(|was| was.rules == chain.rules) {
            continue;
        }
        if was.is_some_and(|was| !was.rules.is_empty()) {
            steps.push(Step::FlushChain(name.clone()));
        }
        steps.extend(chain.rules.iter().map(|rule| Step::AddRule(name.clone(), rule.clone())));
    }
    let gone = || old.chains.keys().filter(|name| !new.chains.contains_key(*name));
    // Chains that go may point to each other.
    steps.extend(gone().filter(|name| !old.chains[*name].rules.is_empty()).cloned().map(Step::FlushChain));
    steps.extend(gone().cloned().map(Step::DeleteChain));
    steps.extend(old.sets.keys().filter(|name| !new.sets.contains_key(*name)).cloned().map(Step::DeleteSet));
    steps
}
