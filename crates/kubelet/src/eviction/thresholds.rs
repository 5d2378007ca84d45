//! Eviction thresholds as the configuration gives them (`evictionHard`, `evictionSoft`, ...). Upstream's notation and rules.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::configuration::Configuration;
use crate::quantity;

/// What is watched, in the order in which shortages are looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Signal {
    Memory,
    /// Memory that pods may use in all, less what they use.
    AllocatableMemory,
    NodeFs,
    ImageFs,
    ContainerFs,
    NodeInodes,
    ImageInodes,
    ContainerInodes,
    Pids,
}

impl Signal {
    const NAMES: [(&'static str, Signal); 8] = [
        ("memory.available", Signal::Memory),
        ("nodefs.available", Signal::NodeFs),
        ("nodefs.inodesFree", Signal::NodeInodes),
        ("imagefs.available", Signal::ImageFs),
        ("imagefs.inodesFree", Signal::ImageInodes),
        ("containerfs.available", Signal::ContainerFs),
        ("containerfs.inodesFree", Signal::ContainerInodes),
        ("pid.available", Signal::Pids),
    ];

    /// Upstream's name of it.
    pub(crate) fn name(self) -> &'static str {
        let known = Self::NAMES.iter().find(|(_, signal)| *signal == self);
        known.map_or("allocatableMemory.available", |(name, _)| *name)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, signal)| *signal)
    }
}

/// A level: a part of the whole, or an amount.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Level {
    Part(f64),
    Amount(u64),
}

impl Level {
    /// The level of a whole.
    pub(crate) fn of(self, whole: u64) -> u64 {
        match self {
            Level::Part(part) => (whole as f64 * part) as u64,
            Level::Amount(amount) => amount,
        }
    }
}

/// Below which level of a signal pods have to go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Threshold {
    pub signal: Signal,
    pub level: Level,
    /// How long it has to be crossed; nothing for a hard threshold.
    pub grace: Option<Duration>,
    /// By how much more than the threshold there has to be before it counts as no longer crossed.
    pub reclaim: Option<Level>,
}

/// What is in force unless the file says otherwise. A tenth of a large disk is no need: see `docs/resources.md`.
const STANDARD: [(&str, &str); 6] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
    ("pid.available", "5%"),
];
/// With this much free a node is never short of disk by the thresholds that nobody asked for.
pub(crate) const ENOUGH_DISK: u64 = 10 << 30;

type Wrong = (&'static str, String);

fn level(field: &'static str, name: &str, text: &str) -> Result<Option<Level>, Wrong> {
    let bad = |why: &str| Err((field, format!("{name}: {text:?} {why}")));
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.parse::<f64>() {
            // Upstream's way to switch a threshold off.
            Ok(percent) if percent == 0.0 || percent == 100.0 => Ok(None),
            Ok(percent) if (0.0..100.0).contains(&percent) => Ok(Some(Level::Part(percent / 100.0))),
            _ => bad("is no percentage from 0% to 100%"),
        };
    }
    match quantity::value(&Quantity(text.to_owned())).map(u64::try_from) {
        Some(Ok(amount)) if amount > 0 || field == "evictionMinimumReclaim" => {
            Ok(Some(Level::Amount(amount)))
        }
        _ => bad("is neither a positive amount such as 100Mi nor a percentage"),
    }
}

fn levels(
    field: &'static str,
    list: &BTreeMap<String, String>,
) -> Result<BTreeMap<Signal, Option<Level>>, Wrong> {
    let one = |(name, text): (&String, &String)| {
        let signal = Signal::parse(name).ok_or_else(|| {
            let known = Signal::NAMES.map(|(name, _)| name).join(", ");
            (field, format!("unknown signal {name:?}; there are {known}"))
        })?;
        Ok((signal, level(field, name, text)?))
    };
    list.iter().map(one).collect()
}

/// The hard thresholds in the file's notation.
pub(crate) fn hard(configuration: &Configuration) -> BTreeMap<String, String> {
    let standard = || STANDARD.iter().map(|(name, level)| ((*name).to_owned(), (*level).to_owned()));
    match &configuration.eviction_hard {
        None => standard().collect(),
        Some(own) if configuration.merge_default_eviction_settings => {
            standard().chain(own.iter().map(|(name, level)| (name.clone(), level.clone()))).collect()
        }
        Some(own) => own.clone(),
    }
}

/// The thresholds in force; an error names the field.
pub(crate) fn of(configuration: &Configuration) -> Result<Vec<Threshold>, Wrong> {
    let hard = levels("evictionHard", &hard(configuration))?;
    let soft = levels("evictionSoft", &configuration.eviction_soft)?;
    let reclaim = levels("evictionMinimumReclaim", &configuration.eviction_minimum_reclaim)?;
    let mut graces = BTreeMap::new();
    for (name, grace) in &configuration.eviction_soft_grace_period {
        let field = "evictionSoftGracePeriod";
        let signal = Signal::parse(name).ok_or_else(|| (field, format!("unknown signal {name:?}")))?;
        graces.insert(signal, grace.0);
    }
    let mut found = Vec::new();
    let reclaim_of = |signal| reclaim.get(&signal).copied().flatten();
    for (signal, level) in hard {
        let Some(level) = level else { continue };
        found.push(Threshold { signal, level, grace: None, reclaim: reclaim_of(signal) });
        let pods = configuration.enforce_node_allocatable.iter().any(|one| one == "pods");
        if signal == Signal::Memory && pods {
            let signal = Signal::AllocatableMemory;
            found.push(Threshold { signal, level, grace: None, reclaim: reclaim_of(Signal::Memory) });
        }
    }
    for (signal, level) in soft {
        let Some(level) = level else { continue };
        let Some(grace) = graces.get(&signal) else {
            let name = Signal::NAMES.iter().find(|(_, one)| *one == signal).map_or("", |(name, _)| *name);
            let why = format!("must name a grace period for evictionSoft's {name}");
            return Err(("evictionSoftGracePeriod", why));
        };
        found.push(Threshold { signal, level, grace: Some(*grace), reclaim: reclaim_of(signal) });
    }
    // The containers' file system has the thresholds of the images' one, with which it is one here.
    found.retain(|one| !matches!(one.signal, Signal::ContainerFs | Signal::ContainerInodes));
    let copies = found.iter().filter_map(|one| {
        let signal = match one.signal {
            Signal::ImageFs => Signal::ContainerFs,
            Signal::ImageInodes => Signal::ContainerInodes,
            _ => return None,
        };
        Some(Threshold { signal, ..*one })
    });
    let copies: Vec<Threshold> = copies.collect();
    found.extend(copies);
    found.sort_by_key(|one| (one.signal, one.grace));
    Ok(found)
}

/// The memory that the hard threshold keeps free of a machine with `memory` bytes.
pub(crate) fn kept(configuration: &Configuration, name: &str, whole: u64) -> u64 {
    let text = hard(configuration).remove(name).unwrap_or_default();
    let level = level("evictionHard", name, &text).ok().flatten();
    level.map_or(0, |level| level.of(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read() {
        let plain = Configuration::default();
        let count = |signal| of(&plain).expect("good").iter().filter(|one| one.signal == signal).count();
        assert_eq!(
            [Signal::Memory, Signal::AllocatableMemory, Signal::ContainerFs, Signal::Pids].map(count),
            [1; 4]
        );
        assert_eq!(kept(&plain, "memory.available", 1 << 40), 100 << 20);
        let own = |hard: &[(&str, &str)]| Configuration {
            eviction_hard: Some(hard.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()),
            ..Configuration::default()
        };
        assert!(of(&own(&[])).expect("good").is_empty(), "no thresholds at all");
        assert!(of(&own(&[("nodefs.available", "0%")])).expect("good").is_empty(), "switched off");
        let merged =
            Configuration { merge_default_eviction_settings: true, ..own(&[("memory.available", "5%")]) };
        assert_eq!(kept(&merged, "memory.available", 1000), 50);
        assert_eq!(hard(&merged).len(), STANDARD.len());
        let mut soft = own(&[]);
        soft.eviction_soft = [("nodefs.available".to_owned(), "1Gi".to_owned())].into();
        assert_eq!(of(&soft).expect_err("no grace").0, "evictionSoftGracePeriod");
        let grace = crate::configuration::Span::seconds(90);
        soft.eviction_soft_grace_period = [("nodefs.available".to_owned(), grace)].into();
        let found = of(&soft).expect("good");
        assert_eq!((found.len(), found[0].grace), (1, Some(Duration::from_secs(90))));
    }
}
