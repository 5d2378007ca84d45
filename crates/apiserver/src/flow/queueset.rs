//! Fair queuing of one priority level as a pure state machine: it is told the time and holds no lock, clock or waker.
//!
//! Requests of a flow go to the least loaded queue of the flow's hand; of the queues' heads the one that would finish
//! first in a virtual world is served next, in which every queue that has work gets the same number of seats. Work is
//! measured in seats times time (upstream: `util/flowcontrol/fairqueuing/queueset/doc.go`, KEP-1040).

use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::config::Queuing;
use super::integrator::Integrator;
use super::shuffle::deal;

/// How long a request is taken to last before it has; what it really took is settled when it ends.
const SERVICE: Duration = Duration::from_millis(3);

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Seats while it is served.
    pub seats: usize,
    /// Seats that stay taken afterwards, for what it causes (events that watchers are told).
    pub final_seats: usize,
    pub linger: Duration,
}

impl Work {
    /// What nearly all requests cost.
    pub const ONE: Self = Self { seats: 1, final_seats: 0, linger: Duration::ZERO };

    /// The seats that must be free for it to begin.
    pub fn most_seats(&self) -> usize {
        self.seats.max(self.final_seats)
    }

    /// In seat-nanoseconds.
    fn total(&self) -> i128 {
        seat_time(self.seats, SERVICE) + seat_time(self.final_seats, self.linger)
    }
}

/// Seat-nanoseconds: a signed number that does not overflow in the lifetime of a machine.
fn seat_time(seats: usize, time: Duration) -> i128 {
    seats as i128 * time.as_nanos() as i128
}

/// Names a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    queue: usize,
    id: u64,
}

/// A request that is served; to be given back to [`QueueSet::finish`].
#[derive(Debug, PartialEq, Eq)]
pub struct Seat {
    queue: Option<usize>,
    pub work: Work,
    started: Duration,
}

/// What becomes of a request at its arrival.
#[derive(Debug)]
pub enum Offered {
    /// It may begin.
    Served(Seat),
    /// It waits; its payload comes back with a seat. The length is that of its queue with it.
    Waiting { ticket: Ticket, length: usize },
    /// Why not, in the words of the metrics.
    Rejected(&'static str),
}

struct Waiting<T> {
    id: u64,
    work: Work,
    /// The virtual time of its arrival, before which it cannot be served.
    arrival: i128,
    payload: T,
}

struct Queue<T> {
    waiting: VecDeque<Waiting<T>>,
    /// Work of what waits.
    work: i128,
    executing: usize,
    seats: usize,
    /// When the next request begins in the virtual world.
    next: i128,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), work: 0, executing: 0, seats: 0, next: 0 }
    }
}

impl<T> Queue<T> {
    fn active(&self) -> bool {
        !self.waiting.is_empty() || self.executing > 0
    }

    /// A queue that uses less than its share must not save the rest up: its next request begins at its arrival or later.
    fn bound(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.next = self.next.max(first.arrival);
        }
    }
}

/// Seats that stay taken until a time.
#[derive(PartialEq, Eq)]
struct Lingering {
    until: Duration,
    queue: Option<usize>,
    seats: usize,
}

impl Ord for Lingering {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The earliest is the greatest: a heap gives the greatest first.
        other.until.cmp(&self.until)
    }
}

impl PartialOrd for Lingering {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The queues and seats of one level. Times count from any fixed point and do not go back.
pub struct QueueSet<T> {
    exempt: bool,
    queuing: Option<Queuing>,
    limit: usize,
    /// Queues that are no longer wanted stay at the end until they are empty.
    queues: Vec<Queue<T>>,
    active: usize,
    /// The virtual time, as seat-nanoseconds that each active queue has been given.
    virtual_time: i128,
    now: Duration,
    robin: usize,
    enqueued: usize,
    next_id: u64,
    waiting: usize,
    waiting_seats: usize,
    executing: usize,
    seats: usize,
    lingering: BinaryHeap<Lingering>,
    demand: Integrator,
}

impl<T> QueueSet<T> {
    /// An exempt set serves everything at once; without queuing what finds no seat is rejected.
    pub fn new(exempt: bool, queuing: Option<Queuing>, limit: usize, now: Duration) -> Self {
        let mut set = Self {
            exempt,
            queuing: None,
            limit,
            queues: Vec::new(),
            active: 0,
            virtual_time: 0,
            now,
            robin: 0,
            enqueued: 0,
            next_id: 0,
            waiting: 0,
            waiting_seats: 0,
            executing: 0,
            seats: 0,
            lingering: BinaryHeap::new(),
            demand: Integrator::new(now),
        };
        drop(set.configure(now, queuing));
        set
    }

    /// Requests that are served, without those that linger.
    #[cfg(test)]
    pub fn executing(&self) -> usize {
        self.executing
    }

    /// Requests that wait.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Seats wanted since the last call: those taken and those waited for.
    pub fn take_demand(&mut self, now: Duration) -> super::integrator::Summary {
        self.demand.take(now)
    }

    /// Changes the queues. What waits stays where it is and is served in its turn.
    pub fn configure(&mut self, now: Duration, queuing: Option<Queuing>) -> Vec<(T, Seat)> {
        self.advance_to(now);
        self.queuing = queuing;
        let wanted = queuing.map_or(0, |q| q.queues);
        if wanted > self.queues.len() {
            self.queues.resize_with(wanted, Queue::default);
        }
        self.trim();
        self.dispatch()
    }

    /// Changes the number of seats; what may now begin is returned.
    pub fn set_limit(&mut self, now: Duration, limit: usize) -> Vec<(T, Seat)> {
        self.advance_to(now);
        self.limit = limit;
        self.dispatch()
    }

    /// Takes in a request of a flow. `payload` comes back when it may begin, unless it may at once or is refused.
    pub fn offer(&mut self, now: Duration, flow: u64, work: Work, payload: T) -> (Offered, Vec<(T, Seat)>) {
        self.advance_to(now);
        let Some(queuing) = self.queuing else {
            return if self.fits(work.most_seats()) {
                let seat = Seat { queue: None, work, started: now };
                self.occupy(&seat);
                (Offered::Served(seat), Vec::new())
            } else {
                (Offered::Rejected("concurrency-limit"), Vec::new())
            };
        };
        let index = self.choose(flow, queuing);
        let queue = &mut self.queues[index];
        if self.seats >= self.limit && queue.waiting.len() >= queuing.length {
            return (Offered::Rejected("queue-full"), Vec::new());
        }
        if !queue.active() {
            queue.next = self.virtual_time;
            self.active += 1;
        }
        self.next_id += 1;
        let id = self.next_id;
        queue.work += work.total();
        queue.waiting.push_back(Waiting { id, work, arrival: self.virtual_time, payload });
        queue.bound();
        let length = queue.waiting.len();
        self.waiting += 1;
        self.waiting_seats += work.most_seats();
        self.note_demand();
        let begun = self.dispatch();
        (Offered::Waiting { ticket: Ticket { queue: index, id }, length }, begun)
    }

    /// Takes a request that waits out of its queue; `None` if it is already served.
    pub fn cancel(&mut self, now: Duration, ticket: Ticket) -> (Option<T>, Vec<(T, Seat)>) {
        self.advance_to(now);
        let Some(queue) = self.queues.get_mut(ticket.queue) else { return (None, Vec::new()) };
        let Some(at) = queue.waiting.iter().position(|w| w.id == ticket.id) else {
            return (None, Vec::new());
        };
        let Some(gone) = queue.waiting.remove(at) else { return (None, Vec::new()) };
        queue.work -= gone.work.total();
        queue.bound();
        if !queue.active() {
            self.active -= 1;
        }
        self.waiting -= 1;
        self.waiting_seats -= gone.work.most_seats();
        self.note_demand();
        self.trim();
        // What stood behind it may be small enough to begin.
        (Some(gone.payload), self.dispatch())
    }

    /// A request has been served; its seats are free at once or after they have lingered.
    pub fn finish(&mut self, now: Duration, seat: Seat) -> Vec<(T, Seat)> {
        self.advance_to(now);
        self.executing -= 1;
        if let Some(index) = seat.queue {
            let queue = &mut self.queues[index];
            queue.executing -= 1;
            // It was charged for the usual time; now it is known how long it took.
            let took = now.saturating_sub(seat.started);
            queue.next += seat_time(seat.work.seats, took) - seat_time(seat.work.seats, SERVICE);
            queue.bound();
            if !queue.active() {
                self.active -= 1;
            }
        }
        let (seats, queue) = (seat.work.most_seats(), seat.queue);
        if seat.work.linger.is_zero() {
            self.release(queue, seats);
        } else {
            self.lingering.push(Lingering { until: now + seat.work.linger, queue, seats });
        }
        self.trim();
        self.dispatch()
    }

    /// When [`QueueSet::advance`] is next needed: seats become free then, and somebody waits for them.
    pub fn next_wake(&self) -> Option<Duration> {
        if self.waiting == 0 { None } else { self.lingering.peek().map(|l| l.until) }
    }

    /// Lets time pass; what may now begin is returned.
    pub fn advance(&mut self, now: Duration) -> Vec<(T, Seat)> {
        self.advance_to(now);
        self.dispatch()
    }

    fn advance_to(&mut self, now: Duration) {
        while self.lingering.peek().is_some_and(|l| l.until <= now) {
            let Some(done) = self.lingering.pop() else { break };
            self.tick(done.until);
            self.release(done.queue, done.seats);
        }
        self.tick(now);
    }

    fn tick(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        if self.active > 0 {
            let used = (self.seats + self.waiting_seats).min(self.limit);
            self.virtual_time += seat_time(used, passed) / self.active as i128;
        }
    }

    fn note_demand(&mut self) {
        self.demand.set(self.now, (self.seats + self.waiting_seats) as f64);
    }

    fn release(&mut self, queue: Option<usize>, seats: usize) {
        self.seats -= seats;
        // A queue that was trimmed has taken its count along.
        if let Some(queue) = queue.and_then(|index| self.queues.get_mut(index)) {
            queue.seats -= seats;
        }
        self.note_demand();
    }

    fn occupy(&mut self, seat: &Seat) {
        self.executing += 1;
        self.seats += seat.work.most_seats();
        self.note_demand();
    }

    fn choose(&mut self, flow: u64, queuing: Queuing) -> usize {
        let hand: Vec<usize> = deal(flow, queuing.queues, queuing.hand).collect();
        // The order of the hand must not favour a queue that several flows share.
        let offset = self.enqueued % hand.len().max(1);
        self.enqueued = self.enqueued.wrapping_add(1);
        let order = hand[offset..].iter().chain(&hand[..offset]);
        order.copied().min_by_key(|index| self.queues[*index].work).unwrap_or(0)
    }

    fn fits(&self, seats: usize) -> bool {
        if self.exempt {
            return true;
        }
        // What wants more than there is gets all there is.
        if seats > self.limit { self.executing == 0 } else { self.seats + seats <= self.limit }
    }

    fn dispatch(&mut self) -> Vec<(T, Seat)> {
        let mut begun = Vec::new();
        while self.waiting > 0 && self.seats < self.limit {
            let Some(index) = self.pick() else { break };
            let queue = &mut self.queues[index];
            let Some(mut first) = queue.waiting.pop_front() else { break };
            queue.work -= first.work.total();
            queue.next += first.work.total();
            self.waiting -= 1;
            self.waiting_seats -= first.work.most_seats();
            if first.work.final_seats > self.limit.max(1) {
                // The same work on fewer seats takes longer.
                let work = seat_time(first.work.final_seats, first.work.linger);
                first.work.final_seats = self.limit.max(1);
                let nanos = work / first.work.final_seats as i128;
                first.work.linger = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            }
            queue.executing += 1;
            queue.seats += first.work.most_seats();
            queue.bound();
            let seat = Seat { queue: Some(index), work: first.work, started: self.now };
            self.occupy(&seat);
            begun.push((first.payload, seat));
        }
        begun
    }

    /// The queue whose head finishes first in the virtual world, if its head can begin now.
    fn pick(&mut self) -> Option<usize> {
        let count = self.queues.len();
        let mut best: Option<(i128, usize)> = None;
        for step in 1..=count {
            let index = (self.robin + step) % count;
            let queue = &self.queues[index];
            let Some(first) = queue.waiting.front() else { continue };
            let finish = queue.next + first.work.total();
            if best.is_none_or(|(least, _)| finish < least) {
                best = Some((finish, index));
            }
            if self.waiting == queue.waiting.len() {
                break;
            }
        }
        let (_, index) = best?;
        let seats = self.queues[index].waiting.front()?.work.most_seats();
        if !self.fits(seats) {
            return None;
        }
        self.robin = index;
        Some(index)
    }

    /// Takes away queues that are no longer wanted and have nothing left.
    fn trim(&mut self) {
        let wanted = self.queuing.map_or(0, |q| q.queues);
        while self.queues.len() > wanted && self.queues.last().is_some_and(|q| !q.active() && q.seats == 0) {
            self.queues.pop();
        }
        if self.robin >= self.queues.len() {
            self.robin = 0;
        }
    }
}
