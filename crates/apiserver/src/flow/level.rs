//! A priority level at work: its queue set behind a lock, and the futures that wait in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use exposition::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::config::LevelConfig;
use super::dropped::Dropped;
use super::queueset::{Offered, QueueSet, Seat, Ticket, Work};
use crate::metrics::metrics;

/// What is counted of one flow schema at one level.
pub struct Series {
    executing: Arc<Gauge>,
    executing_seats: Arc<Gauge>,
    waiting: Arc<Gauge>,
    waiting_seats: Arc<Gauge>,
    dispatched: Arc<Counter>,
    length: Arc<Histogram>,
    waited: [Arc<Histogram>; 2],
    execution: [Arc<Histogram>; 2],
    pub work: Arc<Histogram>,
    pub watchers: Arc<Histogram>,
    schema: String,
    level: String,
}

impl Series {
    pub fn new(schema: &str, level: &str) -> Self {
        let m = metrics();
        let flow = [schema, level];
        Self {
            executing: m.flow_executing.with(&flow),
            executing_seats: m.flow_executing_seats.with(&flow),
            waiting: m.flow_inqueue.with(&flow),
            waiting_seats: m.flow_inqueue_seats.with(&flow),
            dispatched: m.flow_dispatched.with(&flow),
            length: m.flow_queue_length.with(&flow),
            waited: ["false", "true"].map(|execute| m.flow_wait.with(&[execute, schema, level])),
            execution: ["regular", "watch"].map(|kind| m.flow_execution.with(&[schema, level, kind])),
            work: m.flow_work.with(&flow),
            watchers: m.flow_watch_count.with(&flow),
            schema: schema.to_owned(),
            level: level.to_owned(),
        }
    }

    fn rejected(&self, why: &str) {
        metrics().flow_rejected.with(&[&self.schema, &self.level, why]).increment();
    }

    fn begins(&self, seat: &Seat) {
        self.dispatched.increment();
        self.executing.add(1.0);
        self.executing_seats.add(seat.work.most_seats() as f64);
    }
}

/// Stands in the queue.
pub struct Waiter {
    send: oneshot::Sender<Permit>,
    series: Arc<Series>,
    watch: bool,
}

/// Seats of a level while a request is served; dropping it gives them back.
pub struct Permit {
    level: Arc<Level>,
    seat: Option<Seat>,
    series: Arc<Series>,
    begun: Instant,
    watch: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(seat) = self.seat.take() else { return };
        self.series.executing.add(-1.0);
        self.series.executing_seats.add(-(seat.work.most_seats() as f64));
        self.series.execution[usize::from(self.watch)].observe(self.begun.elapsed().as_secs_f64());
        let begun = self.level.set.lock().finish(self.level.now(), seat);
        self.level.start(begun);
    }
}

/// Why a request is not served.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// In the words of the metrics: `queue-full`, `concurrency-limit`, `time-out`.
    pub why: &'static str,
    /// Seconds after which it may be tried again.
    pub retry_after: u64,
}

/// The seats of a level, as the configuration and lending give them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Numbers {
    pub nominal: usize,
    pub lower: usize,
    pub upper: usize,
    pub current: usize,
    /// Demand, smoothed over the adjustment periods.
    pub smoothed: f64,
}

/// A priority level.
pub struct Level {
    pub name: String,
    pub exempt: bool,
    set: Mutex<QueueSet<Waiter>>,
    dropped: Mutex<Dropped>,
    pub numbers: Mutex<Numbers>,
    /// The most seats that one request may take here; 0: no bound of its own.
    pub most_seats: AtomicUsize,
    wake: Notify,
    base: Instant,
}

impl Level {
    /// A level without seats; [`Level::set_limit`] gives it some.
    pub fn new(config: &LevelConfig, base: Instant) -> Arc<Self> {
        let now = base.elapsed();
        Arc::new(Self {
            name: config.name.clone(),
            exempt: config.exempt,
            set: Mutex::new(QueueSet::new(config.exempt, config.queuing, 0, now)),
            dropped: Mutex::default(),
            numbers: Mutex::default(),
            most_seats: AtomicUsize::new(0),
            wake: Notify::new(),
            base,
        })
    }

    fn now(&self) -> Duration {
        self.base.elapsed()
    }

    /// Changes the queues.
    pub fn configure(self: &Arc<Self>, config: &LevelConfig) {
        let begun = self.set.lock().configure(self.now(), config.queuing);
        self.start(begun);
    }

    /// Changes the number of seats.
    pub fn set_limit(self: &Arc<Self>, limit: usize) {
        let begun = self.set.lock().set_limit(self.now(), limit);
        self.start(begun);
    }

    /// Demand since the last call.
    pub fn take_demand(&self) -> super::integrator::Summary {
        self.set.lock().take_demand(self.now())
    }

    /// Requests that are served and that wait.
    #[cfg(test)]
    pub fn load(&self) -> (usize, usize) {
        let set = self.set.lock();
        (set.executing(), set.waiting())
    }

    /// The lock must not be held: a waiter that has gone gives its seats back at once.
    fn start(self: &Arc<Self>, begun: Vec<(Waiter, Seat)>) {
        for (waiter, seat) in begun {
            let Waiter { send, series, watch } = waiter;
            let permit = self.permit(seat, series, watch);
            drop(send.send(permit));
        }
    }

    fn permit(self: &Arc<Self>, seat: Seat, series: Arc<Series>, watch: bool) -> Permit {
        series.begins(&seat);
        Permit { level: self.clone(), seat: Some(seat), series, begun: Instant::now(), watch }
    }

    /// Waits for seats, at most for `patience`.
    pub async fn admit(
        self: &Arc<Self>,
        flow: u64,
        work: Work,
        series: &Arc<Series>,
        watch: bool,
        patience: Duration,
    ) -> Result<Permit, Refused> {
        let (send, receive) = oneshot::channel();
        let waiter = Waiter { send, series: series.clone(), watch };
        let (offered, begun) = self.set.lock().offer(self.now(), flow, work, waiter);
        self.start(begun);
        match offered {
            Offered::Served(seat) => Ok(self.permit(seat, series.clone(), watch)),
            Offered::Rejected(why) => Err(self.refuse(series, why)),
            Offered::Waiting { ticket, length } => {
                series.length.observe(length as f64);
                self.wait(ticket, receive, work, series, patience).await
            }
        }
    }

    async fn wait(
        self: &Arc<Self>,
        ticket: Ticket,
        mut receive: oneshot::Receiver<Permit>,
        work: Work,
        series: &Arc<Series>,
        patience: Duration,
    ) -> Result<Permit, Refused> {
        if let Ok(permit) = receive.try_recv() {
            series.waited[1].observe(0.0);
            return Ok(permit);
        }
        let queued = Queued::new(self.clone(), ticket, work, series.clone());
        // Seats that linger become free without anybody's doing: the level's timer must know that somebody waits.
        self.wake.notify_one();
        let granted = tokio::time::timeout(patience, &mut receive).await;
        let waited = queued.since.elapsed().as_secs_f64();
        drop(queued);
        // It may have been served in the moment in which it gave up.
        let permit = match granted {
            Ok(Ok(permit)) => Some(permit),
            _ => receive.try_recv().ok(),
        };
        match permit {
            Some(permit) => {
                series.waited[1].observe(waited);
                Ok(permit)
            }
            None => {
                series.waited[0].observe(waited);
                Err(self.refuse(series, "time-out"))
            }
        }
    }

    fn refuse(&self, series: &Series, why: &'static str) -> Refused {
        series.rejected(why);
        let retry_after = self.dropped.lock().note(self.now().as_secs());
        Refused { why, retry_after }
    }

    /// Gives lingering seats on when their time has come. Runs until it is dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            let next = self.set.lock().next_wake();
            match next {
                None => self.wake.notified().await,
                Some(at) => {
                    let sleep = tokio::time::sleep(at.saturating_sub(self.now()));
                    tokio::select! {
                        () = sleep => {}
                        () = self.wake.notified() => continue,
                    }
                }
            }
            let begun = self.set.lock().advance(self.now());
            self.start(begun);
        }
    }

    /// The bound on one request's seats.
    pub fn bound(&self, most: usize) -> usize {
        match self.most_seats.load(Ordering::Relaxed) {
            0 => most,
            own => own.min(most),
        }
    }
}

/// A place in a queue; dropping it leaves the queue.
struct Queued {
    level: Arc<Level>,
    ticket: Ticket,
    work: Work,
    series: Arc<Series>,
    since: Instant,
}

impl Queued {
    fn new(level: Arc<Level>, ticket: Ticket, work: Work, series: Arc<Series>) -> Self {
        series.waiting.add(1.0);
        series.waiting_seats.add(work.most_seats() as f64);
        Self { level, ticket, work, series, since: Instant::now() }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.series.waiting.add(-1.0);
        self.series.waiting_seats.add(-(self.work.most_seats() as f64));
        let (gone, begun) = self.level.set.lock().cancel(self.level.now(), self.ticket);
        drop(gone);
        self.level.start(begun);
    }
}
