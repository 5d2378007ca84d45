//! Names outside the cluster: asked of the node's own resolvers, with time-outs, a bound on what is under way and a bounded cache.

use crate::wire::{Data, Message, Question, Record, kind, rcode};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long all of them together may take: clients give up after five seconds, and should hear of the failure before.
const ALL_PATIENCE: Duration = Duration::from_secs(4);
/// How long a server that was silent is left alone.
const REST: Duration = Duration::from_secs(5);
/// Rounds through all servers.
const ROUNDS: usize = 2;
/// Queries under way at once; more are answered with a failure.
const UNDER_WAY: usize = 512;
const CACHED: usize = 4096;
const LONGEST: Duration = Duration::from_secs(300);
const LONGEST_NEGATIVE: Duration = Duration::from_secs(30);

type CacheKey = (String, u16, bool);

struct Cached {
    message: Message,
    stored: Instant,
    life: Duration,
}

/// Asks other servers.
pub(crate) struct Forwarder {
    servers: Vec<SocketAddr>,
    /// For each server, how often it was silent in a row, and when last.
    silent: Mutex<Vec<(u32, Instant)>>,
    slots: Semaphore,
    cache: Mutex<HashMap<CacheKey, Cached>>,
    id: AtomicU16,
}

impl Forwarder {
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        // Each query comes from a port of its own, chosen by the kernel; the id only adds to that.
        let seed = std::process::id() as u16 ^ Instant::now().elapsed().subsec_nanos() as u16;
        Self {
            silent: Mutex::new(vec![(0, Instant::now()); servers.len()]),
            servers,
            slots: Semaphore::new(UNDER_WAY),
            cache: Mutex::new(HashMap::new()),
            id: AtomicU16::new(seed),
        }
    }

    /// The answer for a question, without the asker's id. `None` if no server gave one.
    pub(crate) async fn ask(&self, question: &Question, dnssec_ok: bool) -> Option<Message> {
        let key = (question.name.lower(), question.kind, dnssec_ok);
        if let Some(message) = self.cached(&key, Instant::now()) {
            return Some(message);
        }
        let _slot = self.slots.try_acquire().ok()?;
        let message = timeout(ALL_PATIENCE, self.ask_all(question, dnssec_ok)).await.ok()??;
        self.store(key, &message, Instant::now());
        Some(message)
    }

    async fn ask_all(&self, question: &Question, dnssec_ok: bool) -> Option<Message> {
        for _ in 0..ROUNDS {
            for (index, server) in self.servers.iter().enumerate() {
                // Once may be a lost packet.
                let (count, last) = self.silent.lock()[index];
                if count >= 2 && last.elapsed() < REST {
                    continue;
                }
                let id = self.id.fetch_add(0x9e37, Ordering::Relaxed).rotate_left(3);
                let mut query = Message::query(id, question.name.clone(), question.kind);
                query.questions[0].class = question.class;
                if let Some(edns) = &mut query.edns {
                    edns.dnssec_ok = dnssec_ok;
                }
                let exchanged = exchange(*server, &query).await;
                let count = if exchanged.is_ok() { 0 } else { count + 1 };
                self.silent.lock()[index] = (count, Instant::now());
                match exchanged {
                    // A server that cannot answer is passed over.
                    Ok(message)
                        if message.rcode != rcode::SERVER_FAILURE && message.rcode != rcode::REFUSED =>
                    {
                        return Some(message);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%server, name = %question.name, %error, "no answer"),
                }
            }
        }
        None
    }

    fn cached(&self, key: &CacheKey, now: Instant) -> Option<Message> {
        let cache = self.cache.lock();
        let entry = cache.get(key)?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.life {
            return None;
        }
        let mut message = entry.message.clone();
        let age = age.as_secs() as u32;
        for record in message.answers.iter_mut().chain(&mut message.authority).chain(&mut message.additional)
        {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    fn store(&self, key: CacheKey, message: &Message, now: Instant) {
        let Some(life) = life(message).filter(|life| !life.is_zero()) else { return };
        let mut cache = self.cache.lock();
        if cache.len() >= CACHED {
            cache.retain(|_, entry| now.saturating_duration_since(entry.stored) < entry.life);
        }
        if cache.len() >= CACHED {
            // All are still good: make room by dropping an eighth, whichever.
            let mut count = 0usize;
            cache.retain(|_, _| {
                count += 1;
                !count.is_multiple_of(8)
            });
        }
        cache.insert(key, Cached { message: message.clone(), stored: now, life });
    }
}

/// How long an answer may be kept; `None` if it may not.
fn life(message: &Message) -> Option<Duration> {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    match message.rcode {
        rcode::NO_ERROR if !message.answers.is_empty() => {
            message.answers.iter().map(|record| seconds(record.ttl)).min().map(|life| life.min(LONGEST))
        }
        rcode::NO_ERROR | rcode::NAME_ERROR => {
            message.authority.iter().find_map(|record| match record.data {
                Data::Soa { times, .. } => Some(seconds(record.ttl.min(times[3])).min(LONGEST_NEGATIVE)),
                _ => None,
            })
        }
        _ => None,
    }
}

fn malformed(error: crate::wire::WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Whether `message` answers `query`.
fn fits(query: &Message, message: &Message) -> bool {
    let same = |(asked, told): (&Question, &Question)| {
        asked.kind == told.kind && asked.class == told.class && asked.name.lower() == told.name.lower()
    };
    message.response
        && message.id == query.id
        && message.questions.len() == query.questions.len()
        && query.questions.iter().zip(&message.questions).all(same)
}

async fn exchange(server: SocketAddr, query: &Message) -> io::Result<Message> {
    let bytes = query.encode();
    let message = timeout(PATIENCE, by_udp(server, query, &bytes)).await??;
    if !message.truncated {
        return Ok(message);
    }
    timeout(PATIENCE, by_tcp(server, query, &bytes)).await?
}

async fn by_udp(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything that does not fit may be forged; the real answer may still come.
        if let Ok(message) = Message::decode(&buffer[..length])
            && fits(query, &message)
        {
            return Ok(message);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend(bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    let message = Message::decode(&answer).map_err(malformed)?;
    if fits(query, &message) { Ok(message) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The records of an answer that follow an alias to `question`.
pub(crate) fn records_for(message: Message, wanted: u16) -> Vec<Record> {
    message.answers.into_iter().filter(|record| [wanted, kind::CNAME].contains(&record.data.kind())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{CLASS_IN, Name};

    fn question(name: &str) -> Question {
        Question { name: Name::parse(name).unwrap(), kind: kind::A, class: CLASS_IN }
    }

    fn answer(name: &str, ttl: u32) -> Message {
        let name = Name::parse(name).unwrap();
        Message {
            response: true,
            answers: vec![Record { name: name.clone(), ttl, data: Data::A(Ipv4Addr::LOCALHOST) }],
            ..Message::query(1, name, kind::A)
        }
    }

    #[test]
    fn answers_age_in_the_cache_and_go() {
        let forwarder = Forwarder::new(Vec::new());
        let key = ("a.example".to_owned(), kind::A, false);
        let now = Instant::now();
        forwarder.store(key.clone(), &answer("a.example", 30), now);
        let later = now + Duration::from_secs(10);
        assert_eq!(forwarder.cached(&key, later).unwrap().answers[0].ttl, 20);
        assert!(forwarder.cached(&key, now + Duration::from_secs(30)).is_none());
        for number in 0..2 * CACHED {
            let name = format!("{number}.example");
            forwarder.store((name.clone(), kind::A, false), &answer(&name, 30), now);
        }
        assert!(forwarder.cache.lock().len() <= CACHED);
    }

    #[test]
    fn only_an_answer_to_the_very_question_is_taken() {
        let query = Message::query(7, question("a.example").name, kind::A);
        let good = Message { id: 7, ..answer("A.Example", 1) };
        assert!(fits(&query, &good));
        assert!(!fits(&query, &Message { id: 8, ..good.clone() }));
        assert!(!fits(&query, &Message { id: 7, ..answer("b.example", 1) }));
        assert!(!fits(&query, &Message { response: false, ..good }));
    }
}
