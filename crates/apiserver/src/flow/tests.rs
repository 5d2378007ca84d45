//! The queue set under load, in simulated time, and the levels of a whole configuration.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::json;

use super::config::{LevelConfig, Queuing, Schema};
use super::queueset::{Offered, QueueSet, Seat, Work};
use super::{Fairness, mandatory_level};
use crate::testing::{ask, user};

const MS: Duration = Duration::from_millis(1);

/// A flow and the time at which it came.
type Who = (&'static str, Duration);

/// A simulated server: requests last a fixed time.
struct World {
    set: QueueSet<Who>,
    now: Duration,
    lasts: Duration,
    running: VecDeque<(Duration, Seat)>,
    begun: Vec<(Who, Duration)>,
    rejected: BTreeMap<&'static str, usize>,
}

impl World {
    fn new(queuing: Option<Queuing>, limit: usize, lasts: Duration) -> Self {
        let now = Duration::ZERO;
        let set = QueueSet::new(false, queuing, limit, now);
        Self { set, now, lasts, running: VecDeque::new(), begun: Vec::new(), rejected: BTreeMap::new() }
    }

    fn begin(&mut self, begun: Vec<(Who, Seat)>) {
        for (who, seat) in begun {
            self.begun.push((who, self.now));
            self.running.push_back((self.now + self.lasts, seat));
        }
    }

    fn arrive(&mut self, flow: &'static str, work: Work) {
        let who = (flow, self.now);
        let (offered, begun) = self.set.offer(self.now, hash(flow), work, who);
        match offered {
            Offered::Served(seat) => self.begin(vec![(who, seat)]),
            Offered::Waiting { .. } => {}
            Offered::Rejected(_) => *self.rejected.entry(flow).or_default() += 1,
        }
        self.begin(begun);
    }

    /// Lets time pass, ending what ends until then.
    fn pass(&mut self, until: Duration) {
        while let Some(at) = self.running.front().map(|(at, _)| *at).filter(|at| *at <= until) {
            let (_, seat) = self.running.pop_front().expect("looked at");
            self.now = at;
            let begun = self.set.finish(at, seat);
            self.begin(begun);
        }
        self.now = until;
        let begun = self.set.advance(until);
        self.begin(begun);
    }

    fn waits(&self, flow: &str) -> Vec<Duration> {
        self.begun.iter().filter(|((own, _), _)| *own == flow).map(|((_, came), at)| *at - *came).collect()
    }
}

fn hash(flow: &str) -> u64 {
    use sha2::{Digest, Sha256};
    u64::from_le_bytes(Sha256::digest(flow)[..8].try_into().expect("eight bytes"))
}

const QUEUES: Queuing = Queuing { queues: 64, hand: 6, length: 50 };

#[test]
fn a_flood_by_one_user_does_not_keep_another_waiting() {
    let mut world = World::new(Some(QUEUES), 10, 10 * MS);
    // The elephant sends ten times what can be served, from the start; the mouse sends a request now and then.
    for ms in 0..2000u32 {
        world.pass(MS * ms);
        for _ in 0..10 {
            world.arrive("elephant", Work::ONE);
        }
        if ms % 20 == 7 {
            world.arrive("mouse", Work::ONE);
        }
    }
    world.pass(Duration::from_secs(10));
    let waits = world.waits("mouse");
    assert_eq!(waits.len(), 100, "every request of the mouse was served");
    assert!(world.rejected["elephant"] > 1000, "the elephant was held back");
    assert_eq!(world.rejected.get("mouse"), None);
    let longest = waits.iter().max().expect("there are some");
    assert!(*longest <= 10 * MS, "the mouse waited {longest:?}, longer than for the next free seat");
    assert_eq!(world.set.executing() + world.set.waiting(), 0);
}

#[test]
fn flows_share_evenly_whatever_they_send() {
    let mut world = World::new(Some(QUEUES), 8, 4 * MS);
    for ms in 0..3000u32 {
        world.pass(MS * ms);
        for _ in 0..8 {
            world.arrive("greedy", Work::ONE);
        }
        // Each of the two could fill the server.
        for _ in 0..4 {
            world.arrive("modest", Work::ONE);
        }
    }
    let (greedy, modest) = (world.waits("greedy").len() as f64, world.waits("modest").len() as f64);
    assert!((greedy + modest) > 5900.0, "the server was kept busy: {greedy} and {modest}");
    assert!((greedy / modest - 1.0).abs() < 0.25, "greedy {greedy}, modest {modest}");
}

#[test]
fn wide_requests_count_for_their_seats() {
    let mut world = World::new(Some(QUEUES), 10, 5 * MS);
    let wide = Work { seats: 5, ..Work::ONE };
    for ms in 0..2000u32 {
        world.pass(MS * ms);
        world.arrive("lists", wide);
        world.arrive("lists", wide);
        for _ in 0..4 {
            world.arrive("gets", Work::ONE);
        }
    }
    let (lists, gets) = (world.waits("lists").len() as f64, world.waits("gets").len() as f64);
    let seats = lists * 5.0 / gets;
    assert!((0.6..1.7).contains(&seats), "{lists} lists and {gets} gets: {seats}");
}

#[test]
fn a_request_wider_than_the_level_is_served_alone() {
    let mut world = World::new(Some(QUEUES), 3, 5 * MS);
    world.arrive("a", Work::ONE);
    world.arrive("b", Work { seats: 10, ..Work::ONE });
    assert_eq!(world.begun.len(), 1);
    world.pass(5 * MS);
    assert_eq!(world.begun.len(), 2);
    world.arrive("a", Work::ONE);
    assert_eq!(world.begun.len(), 2);
    world.pass(10 * MS);
    assert_eq!(world.begun.len(), 3);
}

#[test]
fn seats_linger_for_what_a_write_causes() {
    let mut world = World::new(Some(Queuing { queues: 1, hand: 1, length: 10 }), 2, MS);
    world.arrive("w", Work { seats: 1, final_seats: 2, linger: 20 * MS });
    world.arrive("w", Work::ONE);
    assert_eq!(world.begun.len(), 1);
    world.pass(5 * MS);
    assert_eq!(world.begun.len(), 1, "its seats are still taken");
    assert_eq!(world.set.next_wake(), Some(21 * MS));
    world.pass(21 * MS);
    assert_eq!(world.begun.len(), 2);
    assert_eq!(world.set.next_wake(), None);
}

#[test]
fn what_waits_can_leave() {
    let mut set: QueueSet<u32> = QueueSet::new(false, Some(Queuing { queues: 1, hand: 1, length: 2 }), 1, MS);
    let (_, mut begun) = set.offer(MS, 0, Work::ONE, 1);
    let (one, seat) = begun.pop().expect("the first begins");
    assert_eq!(one, 1);
    let (Offered::Waiting { ticket, length: 1 }, _) = set.offer(MS, 0, Work::ONE, 2) else {
        panic!("it waits")
    };
    let (Offered::Waiting { length: 2, .. }, _) = set.offer(MS, 0, Work::ONE, 3) else { panic!("it waits") };
    let (Offered::Rejected("queue-full"), _) = set.offer(MS, 0, Work::ONE, 4) else { panic!("it is full") };
    assert_eq!(set.cancel(2 * MS, ticket).0, Some(2));
    assert_eq!(set.cancel(2 * MS, ticket).0, None);
    let begun = set.finish(3 * MS, seat);
    assert_eq!(begun.iter().map(|(who, _)| *who).collect::<Vec<_>>(), [3]);
    for (_, seat) in begun {
        set.finish(4 * MS, seat);
    }
    assert_eq!((set.executing(), set.waiting()), (0, 0));
}

#[test]
fn queues_come_and_go_while_requests_wait() {
    let mut world = World::new(Some(QUEUES), 1, MS);
    let flows = ["a", "b", "c", "d", "e", "f"];
    for flow in flows.iter().cycle().take(60) {
        world.arrive(flow, Work::ONE);
    }
    let begun = world.set.configure(world.now, Some(Queuing { queues: 2, hand: 1, length: 50 }));
    world.begin(begun);
    let begun = world.set.configure(world.now, None);
    world.begin(begun);
    world.arrive("a", Work::ONE);
    assert_eq!(world.rejected["a"], 1, "without queues what finds no seat is refused");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.begun.len(), 60, "what waited was served");
    assert_eq!((world.set.executing(), world.set.waiting()), (0, 0));
}

#[test]
fn an_exempt_set_serves_everything() {
    let mut world = World::new(None, 0, MS);
    world.set = QueueSet::new(true, None, 0, Duration::ZERO);
    for _ in 0..1000 {
        world.arrive("a", Work::ONE);
    }
    assert_eq!(world.begun.len(), 1000);
}

fn level(name: &str, shares: u64, lendable: u64) -> LevelConfig {
    let queuing = json!({"queues": 4, "handSize": 1, "queueLengthLimit": 10});
    let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable,
        "limitResponse": {"type": "Queue", "queuing": queuing}});
    let object =
        json!({"metadata": {"name": name, "uid": name}, "spec": {"type": "Limited", "limited": limited}});
    LevelConfig::read(&object).expect("a level")
}

fn schema(name: &str, level: &str, precedence: i64, user: &str) -> Schema {
    Schema::read(&json!({
        "metadata": {"name": name, "uid": name},
        "spec": {
            "priorityLevelConfiguration": {"name": level},
            "matchingPrecedence": precedence,
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": user}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}],
            }],
        },
    }))
}

#[test]
fn the_first_schema_by_precedence_and_name_is_a_requests_own() {
    let fairness = Fairness::new(100);
    let levels = || vec![level("l", 50, 0), level("m", 50, 0)];
    let schemas = vec![schema("b", "m", 7, "*"), schema("a", "l", 7, "*"), schema("lost", "none", 2, "*")];
    fairness.configure(levels(), schemas);
    let check = |name: &str, groups: &[&str], expect: &str| {
        let entry = fairness.classify(&ask(&user(name, groups), "get", "/pods", "n", "p"));
        assert_eq!(entry.schema.name, expect, "{name} {groups:?}");
    };
    check("u", &["system:authenticated"], "a");
    check("root", &["system:masters"], "exempt");
    fairness.configure(levels(), Vec::new());
    check("u", &["system:authenticated"], "catch-all");
    check("in no group", &[], "catch-all");
}

#[test]
fn seats_follow_shares_and_demand() {
    let fairness = Fairness::new(600);
    fairness.configure(vec![level("busy", 45, 50), level("idle", 50, 50)], Vec::new());
    let current = |name: &str| fairness.state.load().levels[name].numbers.lock().current;
    let numbers = |name: &str| *fairness.state.load().levels[name].numbers.lock();
    assert_eq!((numbers("busy").nominal, numbers("busy").lower), (270, 135));
    assert_eq!((numbers("idle").nominal, numbers("idle").lower), (300, 150));
    assert_eq!(numbers("catch-all").nominal, 30);
    // Everything that the busy level can get it gets, and the idle one keeps what it does not lend.
    let series = std::sync::Arc::new(super::Series::new("s", "busy"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let busy = fairness.state.load().levels["busy"].clone();
    let permits: Vec<_> = runtime.block_on(async {
        let mut permits = Vec::new();
        for _ in 0..current("busy") {
            permits.push(busy.admit(0, Work::ONE, &series, false, Duration::ZERO).await.expect("a seat"));
        }
        permits
    });
    for _ in 0..3 {
        // Use is averaged over the time between two looks.
        runtime.block_on(async { tokio::time::sleep(2 * MS).await });
        fairness.rebalance();
    }
    assert!(current("busy") > 270, "it borrows: {}", current("busy"));
    assert!(current("idle") >= 150, "it keeps what it does not lend: {}", current("idle"));
    assert_eq!(busy.load(), (permits.len(), 0));
    drop(permits);
    assert_eq!(busy.load(), (0, 0));
}

#[test]
fn mandatory_levels_can_be_read() {
    assert!(LevelConfig::read(&mandatory_level("exempt")).expect("a level").exempt);
    assert_eq!(LevelConfig::read(&mandatory_level("catch-all")).expect("a level").queuing, None);
}

#[tokio::test]
async fn a_waiter_is_served_when_a_seat_is_free_and_gives_up_after_its_time() {
    let config = level("l", 1, 0);
    let level = super::Level::new(&config, Instant::now());
    level.set_limit(1);
    let series = std::sync::Arc::new(super::Series::new("s", "waiters"));
    let admit = |patience| level.admit(0, Work::ONE, &series, false, patience);
    let first = admit(MS).await.expect("a seat");
    let refused = admit(MS).await.map(drop).expect_err("no seat");
    assert_eq!((refused.why, refused.retry_after), ("time-out", 1));
    let (second, ()) = tokio::join!(admit(Duration::from_secs(5)), async {
        tokio::time::sleep(MS).await;
        drop(first);
    });
    let second = second.expect("the seat that became free");
    // A waiter that is dropped leaves the queue.
    drop(tokio::time::timeout(MS, admit(Duration::from_secs(5))).await);
    assert_eq!(level.load(), (1, 0));
    drop(second);
    assert_eq!(level.load(), (0, 0));
}
