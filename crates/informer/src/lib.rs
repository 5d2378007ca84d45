//! What every client of the API that reacts to changes needs: shared watches with an indexed cache, a
//! deduplicating work queue with back-off, and an event recorder. Nothing here polls; it relies only on
//! `kube::Client`, so that it runs equally in the one process and against a remote server.

mod cache;
mod events;
mod factory;
mod follow;
mod lease;
mod meters;
mod queue;

pub use cache::{Change, Informer, Key, Object};
pub use events::{EventType, Recorder, reference};
pub use factory::Factory;
pub use follow::follow;
pub use lease::{LeaderElection, while_leading};
pub use meters::{CountRequests, Counted};
pub use queue::Queue;
