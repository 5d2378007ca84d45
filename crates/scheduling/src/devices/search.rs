//! The search: device after device for request after request, each choice checked against selectors, taints, constraints,
//! capacity and counters, and taken back when it leads nowhere. The first solution counts. How far it goes is bounded.

use std::collections::{BTreeMap, HashMap};

use cel::Value;

use super::capacity::{self, Amounts};
use super::inventory::{Candidate, CounterId, Pool, PoolState, uses};
use super::requests::{Amount, Asked, MOST_RESULTS, Wanted, is_tainted};
use super::selectors::{self, Selectors};
use super::{DeviceId, Exact, Taken};

/// What a selector may cost to count as no more than one device looked at.
const COST_OF_STEP: u64 = 100;

/// A device that was chosen.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    pub claim: usize,
    pub request: usize,
    pub alternative: usize,
    pub pool: usize,
    pub candidate: Candidate<'a>,
    pub id: DeviceId,
    /// What it gives of its capacity; set for one that can be allocated several times.
    pub consumed: Option<Amounts>,
    pub admin: bool,
    counted: bool,
}

/// Why the search stopped before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Claim or class are faulty: no other node need be asked.
    Fault(String),
    /// This node cannot do.
    Node(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Yes,
    No,
    /// More devices than a claim can have, whichever they are.
    TooMany,
}

/// Which device is looked for: the claim, the request, its alternative, and how many it has by now.
#[derive(Clone, Copy)]
struct At {
    claim: usize,
    request: usize,
    alternative: usize,
    device: usize,
}

/// Where a device is: its pool, and its place there.
type Place = (usize, usize);

/// One search, for one node.
pub(super) struct Search<'a> {
    asked: &'a [Asked<'a>],
    pools: &'a [Pool<'a>],
    taken: &'a Taken,
    selectors: &'a Selectors,
    /// What is left of each pool's counters, once they are asked for.
    counters: HashMap<usize, BTreeMap<CounterId<'a>, Exact>>,
    values: HashMap<Place, Value<'static>>,
    matching: HashMap<(usize, usize, usize, Place), bool>,
    /// Devices of requests for all.
    all: HashMap<(usize, usize, usize), Vec<Place>>,
    steps: usize,
    pub chosen: Vec<Chosen<'a>>,
}

impl<'a> Search<'a> {
    /// A search that looks at `steps` devices at most.
    pub(super) fn new(
        asked: &'a [Asked<'a>],
        pools: &'a [Pool<'a>],
        taken: &'a Taken,
        selectors: &'a Selectors,
        steps: usize,
    ) -> Self {
        Self {
            asked,
            pools,
            taken,
            selectors,
            counters: HashMap::new(),
            values: HashMap::new(),
            matching: HashMap::new(),
            all: HashMap::new(),
            steps,
            chosen: Vec::new(),
        }
    }

    /// How many more devices it may look at.
    pub(super) fn left(&self) -> usize {
        self.steps
    }

    /// Whether all is found; what, is in `chosen`.
    pub(super) fn run(&mut self) -> Result<bool, Stop> {
        self.gather_all()?;
        if self.request(0, 0)? == Found::Yes {
            return Ok(true);
        }
        let fault = self.pools.iter().find_map(|pool| match &pool.state {
            PoolState::Invalid(why) => Some((pool, why)),
            _ => None,
        });
        fault.map_or(Ok(false), |(pool, why)| {
            let (driver, name) = (pool.driver, pool.name);
            Err(Stop::Node(format!("invalid resource pools were encountered: {driver}/{name}: {why}")))
        })
    }

    /// Counts work, and ends the search when it was enough.
    fn step(&mut self, count: usize) -> Result<(), Stop> {
        let left = self.steps.checked_sub(count);
        self.steps = left.unwrap_or_default();
        left.map(drop).ok_or_else(|| {
            Stop::Node("there are too many ways to allocate the devices of the claims".to_owned())
        })
    }

    fn wanted(&self, at: At) -> &'a Wanted<'a> {
        &self.asked[at.claim].requests[at.request].alternatives[at.alternative]
    }

    /// Finds out how many "all" are: that is only known where every pool is whole.
    fn gather_all(&mut self) -> Result<(), Stop> {
        let (asked, pools) = (self.asked, self.pools);
        for (claim, one) in asked.iter().enumerate() {
            for (request, requested) in one.requests.iter().enumerate() {
                for (alternative, wanted) in requested.alternatives.iter().enumerate() {
                    if wanted.amount != Amount::All {
                        continue;
                    }
                    let at = At { claim, request, alternative, device: 0 };
                    let mut places = Vec::new();
                    for (index, pool) in pools.iter().enumerate() {
                        let state = match &pool.state {
                            PoolState::Ready => None,
                            PoolState::Incomplete => Some("being updated"),
                            PoolState::Invalid(_) => Some("invalid"),
                        };
                        if let Some(state) = state {
                            return Err(Stop::Node(format!(
                                "claim {}, request {}: asks for all devices, but resource pool {}/{} is currently {state}",
                                one.claim.metadata.name.as_deref().unwrap_or_default(),
                                wanted.name,
                                pool.driver,
                                pool.name
                            )));
                        }
                        for device in 0..pool.devices.len() {
                            if self.is_selected(at, (index, device))?
                                && self.room(wanted, (index, device)).is_some()
                            {
                                places.push((index, device));
                            }
                        }
                    }
                    self.all.insert((claim, request, alternative), places);
                }
            }
        }
        Ok(())
    }

    /// Goes on with a request, by the first of its alternatives that leads to the end.
    fn request(&mut self, claim: usize, request: usize) -> Result<Found, Stop> {
        let asked = self.asked;
        let Some(one) = asked.get(claim) else { return Ok(Found::Yes) };
        let Some(requested) = one.requests.get(request) else {
            // Another choice for this claim may make the next one need fewer.
            let found = self.request(claim + 1, 0)?;
            return Ok(if found == Found::TooMany { Found::No } else { found });
        };
        let mut all_too_many = true;
        for alternative in 0..requested.alternatives.len() {
            let found = self.device(At { claim, request, alternative, device: 0 }, (0, 0))?;
            if found == Found::Yes {
                return Ok(Found::Yes);
            }
            all_too_many &= found == Found::TooMany;
        }
        Ok(if all_too_many { Found::TooMany } else { Found::No })
    }

    /// Finds the next device of a request, from a place on, so that no set of devices is tried in two orders.
    fn device(&mut self, at: At, from: Place) -> Result<Found, Stop> {
        self.step(1)?;
        let wanted = self.wanted(at);
        let all = self.all.get(&(at.claim, at.request, at.alternative));
        let count = match wanted.amount {
            Amount::Exactly(count) => count,
            Amount::All => all.map_or(0, Vec::len),
        };
        if wanted.amount == Amount::All && count == 0 {
            return Ok(Found::No);
        }
        if at.device >= count {
            return self.request(at.claim, at.request + 1);
        }
        let before = self.chosen.iter().filter(|one| one.claim == at.claim).count();
        if (before + count).saturating_sub(at.device) > MOST_RESULTS {
            return Ok(Found::TooMany);
        }
        if wanted.amount == Amount::All {
            let place = all.and_then(|all| all.get(at.device)).copied();
            let Some(place) = place.filter(|place| self.can_take(at, *place)) else { return Ok(Found::No) };
            return self.take_and_go_on(at, place, from);
        }
        let pools = self.pools;
        for (index, pool) in pools.iter().enumerate().skip(from.0) {
            if !matches!(pool.state, PoolState::Ready) {
                continue;
            }
            let first = if index == from.0 { from.1 } else { 0 };
            for device in first..pool.devices.len() {
                let place = (index, device);
                self.step(1)?;
                // What is cheap goes first.
                if self.is_in_use(wanted, place, at.claim)
                    || !self.is_selected(at, place)?
                    || !self.can_take(at, place)
                {
                    continue;
                }
                match self.take_and_go_on(at, place, (index, device + 1))? {
                    Found::No => {}
                    done => return Ok(done),
                }
            }
        }
        Ok(Found::No)
    }

    fn take_and_go_on(&mut self, at: At, place: Place, next: Place) -> Result<Found, Stop> {
        self.take(at, place);
        let found = self.device(At { device: at.device + 1, ..at }, next)?;
        if found != Found::Yes {
            self.give_back();
        }
        Ok(found)
    }

    fn is_in_use(&self, wanted: &Wanted<'_>, place: Place, claim: usize) -> bool {
        let pool = &self.pools[place.0];
        let device = pool.devices[place.1].device;
        let shares = device.allow_multiple_allocations == Some(true);
        let chosen = self.chosen.iter().filter(|one| self.is_at(one, place));
        if wanted.admin {
            return !shares && chosen.into_iter().any(|one| one.claim == claim);
        }
        self.taken.devices.contains(&pool.id(device)) || (!shares && chosen.count() > 0)
    }

    fn is_at(&self, chosen: &Chosen<'_>, place: Place) -> bool {
        chosen.pool == place.0
            && std::ptr::eq(chosen.candidate.device, self.pools[place.0].devices[place.1].device)
    }

    /// Whether the device matches the selectors of the class and of the request.
    fn is_selected(&mut self, at: At, place: Place) -> Result<bool, Stop> {
        let key = (at.claim, at.request, at.alternative, place);
        if let Some(known) = self.matching.get(&key) {
            return Ok(*known);
        }
        let wanted = self.wanted(at);
        let (pools, claim) = (self.pools, self.asked[at.claim].claim);
        let device = pools[place.0].devices[place.1].device;
        let of_class = wanted.class.spec.selectors.as_deref().unwrap_or_default();
        let class = wanted.class.metadata.name.as_deref().unwrap_or_default();
        let class = format!("class {class}");
        let own = format!("claim {}", claim.metadata.name.as_deref().unwrap_or_default());
        let of_class = of_class.iter().enumerate().map(|(at, one)| (&class, at, one));
        let mut answer = true;
        for (whose, number, selector) in
            of_class.chain(wanted.selectors.iter().enumerate().map(|(at, one)| (&own, at, one)))
        {
            let fault = |why: String| Stop::Fault(format!("{whose}: selector #{number}: {why}"));
            let Some(cel) = &selector.cel else { return Err(fault("CEL expression empty".to_owned())) };
            let value = match self.values.get(&place) {
                Some(value) => value.clone(),
                None => {
                    let value = selectors::value(pools[place.0].driver, device).map_err(fault)?;
                    self.values.insert(place, value.clone());
                    value
                }
            };
            let (matches, cost) = self.selectors.matches(&cel.expression, &value).map_err(fault)?;
            self.step(usize::try_from(1 + cost / COST_OF_STEP).unwrap_or(usize::MAX))?;
            if !matches {
                answer = false;
                break;
            }
        }
        self.matching.insert(key, answer);
        Ok(answer)
    }

    /// What the request would take of the device's capacity, if there is so much.
    fn room(&self, wanted: &Wanted<'_>, place: Place) -> Option<Amounts> {
        let pool = &self.pools[place.0];
        let device = pool.devices[place.1].device;
        let amounts = capacity::consumed(wanted.capacity, device)?;
        let chosen = self.chosen.iter().filter(|one| self.is_at(one, place)).map(|one| one.consumed.as_ref());
        let mut others: Vec<Option<&Amounts>> = chosen.collect();
        others.push(self.taken.capacity.get(&pool.id(device)));
        capacity::fits(&amounts, &others, device).then_some(amounts)
    }

    /// Whether the device, which is selected, can be taken beside those that are.
    fn can_take(&mut self, at: At, place: Place) -> bool {
        let wanted = self.wanted(at);
        let (asked, pools) = (self.asked, self.pools);
        let pool = &pools[place.0];
        let device = pool.devices[place.1].device;
        if self.is_in_use(wanted, place, at.claim)
            || is_tainted(device, wanted.tolerations)
            || self.room(wanted, place).is_none()
        {
            return false;
        }
        let holds = asked[at.claim].constraints.iter().all(|constraint| {
            let chosen = self.chosen.iter().filter(|one| one.claim == at.claim).map(|one| {
                let of = &asked[one.claim].requests[one.request].alternatives[one.alternative];
                (of.name.as_str(), pools[one.pool].driver, one.candidate.device)
            });
            constraint.allows(&wanted.name, pool.driver, device, chosen)
        });
        holds && (!self.counts(place) || self.has_counters(place))
    }

    /// Whether the device takes of its pool's counters: once, also if it is allocated several times.
    fn counts(&self, place: Place) -> bool {
        let pool = &self.pools[place.0];
        let device = pool.devices[place.1].device;
        let consumes = device.consumes_counters.as_ref().is_some_and(|all| !all.is_empty());
        let shared = device.allow_multiple_allocations == Some(true)
            && (self.taken.has(&pool.id(device)) || self.chosen.iter().any(|one| self.is_at(one, place)));
        consumes && !shared
    }

    fn has_counters(&mut self, place: Place) -> bool {
        let device = self.pools[place.0].devices[place.1].device;
        let left = self.counters_of(place.0);
        let mut sums: BTreeMap<CounterId<'_>, Exact> = BTreeMap::new();
        for (id, amount) in uses(device) {
            let sum = sums.get(&id).map_or_else(|| amount.clone(), |sum| sum.add(&amount));
            sums.insert(id, sum);
        }
        sums.iter().all(|(id, amount)| left.get(id).is_some_and(|left| amount <= left))
    }

    /// What is left of a pool's counters.
    fn counters_of(&mut self, pool: usize) -> &mut BTreeMap<CounterId<'a>, Exact> {
        let (pools, taken) = (self.pools, self.taken);
        self.counters.entry(pool).or_insert_with(|| {
            let mut left = pools[pool].counters.clone();
            for device in pools[pool].users.iter().filter(|device| taken.has(&pools[pool].id(device))) {
                for (id, amount) in uses(device) {
                    left.entry(id).and_modify(|left| *left = left.sub(&amount));
                }
            }
            left
        })
    }

    fn take(&mut self, at: At, place: Place) {
        let wanted = self.wanted(at);
        let pools = self.pools;
        let candidate = pools[place.0].devices[place.1];
        let shares = candidate.device.allow_multiple_allocations == Some(true);
        let consumed = shares.then(|| self.room(wanted, place).unwrap_or_default());
        let counted = self.counts(place);
        if counted {
            let left = self.counters_of(place.0);
            for (id, amount) in uses(candidate.device) {
                left.entry(id).and_modify(|left| *left = left.sub(&amount));
            }
        }
        self.chosen.push(Chosen {
            claim: at.claim,
            request: at.request,
            alternative: at.alternative,
            pool: place.0,
            candidate,
            id: pools[place.0].id(candidate.device),
            consumed,
            admin: wanted.admin,
            counted,
        });
    }

    fn give_back(&mut self) {
        let Some(last) = self.chosen.pop() else { return };
        if last.counted {
            let left = self.counters_of(last.pool);
            for (id, amount) in uses(last.candidate.device) {
                left.entry(id).and_modify(|left| *left = left.add(&amount));
            }
        }
    }
}
