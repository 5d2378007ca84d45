//! Answers on UDP and TCP.

use crate::forward::{Forwarder, records_for};
use crate::wire::{CLASS_IN, Data, Edns, Message, Question, Record, kind, rcode};
use crate::zone::{Answer, TTL, Zone};
use parking_lot::RwLock;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Largest UDP answer: fits into any path without fragments.
const PAYLOAD: u16 = 1232;
/// A resolver that says nothing about its size takes this much.
const PLAIN_PAYLOAD: usize = 512;
/// UDP queries waiting for others' answers, and TCP connections, at once.
const WAITING: usize = 1024;
const CONNECTIONS: usize = 128;
const IDLE: Duration = Duration::from_secs(10);
/// How long a query may wait for the first lists to arrive.
const START: Duration = Duration::from_secs(3);
/// Aliases followed within the cluster.
const ALIASES: usize = 8;

/// What all sockets share.
pub(crate) struct Server {
    pub(crate) zone: Arc<RwLock<Zone>>,
    pub(crate) forwarder: Forwarder,
    /// True once the zone is complete.
    pub(crate) ready: watch::Receiver<bool>,
    /// Turns answers of several records round, so that clients that take the first are spread.
    turn: AtomicUsize,
    waiting: Semaphore,
}

impl Server {
    pub(crate) fn new(
        zone: Arc<RwLock<Zone>>,
        upstreams: Vec<SocketAddr>,
        ready: watch::Receiver<bool>,
    ) -> Self {
        Self {
            zone,
            forwarder: Forwarder::new(upstreams),
            ready,
            turn: AtomicUsize::new(0),
            waiting: Semaphore::new(WAITING),
        }
    }

    /// Answers on one UDP socket until cancelled.
    pub(crate) async fn udp(self: Arc<Self>, socket: UdpSocket) -> io::Result<()> {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; 65536];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP error about an earlier answer.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            };
            let Some(query) = read(&buffer[..length]) else { continue };
            let limit = match &query {
                Ok(query) => {
                    query.edns.map_or(PLAIN_PAYLOAD, |edns| usize::from(edns.payload.clamp(512, PAYLOAD)))
                }
                Err(_) => PLAIN_PAYLOAD,
            };
            let at_once = match &query {
                Ok(query) if *self.ready.borrow() => self.own(query),
                Ok(_) => None,
                Err(answer) => Some((**answer).clone()),
            };
            if let Some(answer) = at_once {
                // A full socket buffer drops the answer, as the network might.
                let _ = socket.try_send_to(&fit(answer, limit), from);
                continue;
            }
            let Ok(query) = query else { continue };
            if self.waiting.available_permits() == 0 {
                let failure = reply(&query, rcode::SERVER_FAILURE);
                let _ = socket.try_send_to(&fit(failure, limit), from);
                continue;
            }
            let (server, socket) = (self.clone(), socket.clone());
            tokio::spawn(async move {
                let Ok(_slot) = server.waiting.try_acquire() else { return };
                let answer = server.answer(&query).await;
                let _ = socket.send_to(&fit(answer, limit), from).await;
            });
        }
    }

    /// Answers on one TCP listener until cancelled.
    pub(crate) async fn tcp(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let mut open = JoinSet::new();
        loop {
            while open.try_join_next().is_some() {}
            if open.len() >= CONNECTIONS {
                open.join_next().await;
            }
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    open.spawn(async move {
                        let _ = server.connection(stream).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = timeout(IDLE, stream.read_u16()).await??;
            let mut bytes = vec![0; usize::from(length)];
            timeout(IDLE, stream.read_exact(&mut bytes)).await??;
            let answer = match read(&bytes) {
                None => return Ok(()),
                Some(Err(answer)) => *answer,
                Some(Ok(query)) => self.answer(&query).await,
            };
            let bytes = fit(answer, usize::from(u16::MAX));
            let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
            framed.extend(bytes);
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// The answer to a query, be it ours or another's.
    async fn answer(&self, query: &Message) -> Message {
        let mut ready = self.ready.clone();
        let complete = timeout(START, ready.wait_for(|ready| *ready)).await.is_ok_and(|seen| seen.is_ok());
        if !complete {
            return reply(query, rcode::SERVER_FAILURE);
        }
        if let Some(answer) = self.own(query) {
            return answer;
        }
        let question = &query.questions[0];
        let dnssec_ok = query.edns.is_some_and(|edns| edns.dnssec_ok);
        // Either the whole question is another's, or an alias of ours leads out of the cluster.
        let (chain, last) = self.aliases(question);
        let outside = Question { name: last, ..question.clone() };
        let Some(found) = self.forwarder.ask(&outside, dnssec_ok).await else {
            let mut answer = reply(query, rcode::SERVER_FAILURE);
            if !chain.is_empty() {
                // The alias itself is good to know.
                answer.rcode = rcode::NO_ERROR;
                answer.authoritative = true;
                answer.answers = chain;
            }
            return answer;
        };
        let mut answer = reply(query, found.rcode);
        if chain.is_empty() {
            answer.answers = found.answers;
            answer.authority = found.authority;
            answer.additional = found.additional;
        } else {
            answer.authoritative = true;
            answer.rcode = rcode::NO_ERROR;
            answer.answers = chain;
            answer.answers.extend(records_for(found, question.kind));
        }
        answer
    }

    /// Aliases of ours from the question on, and the name they lead to.
    fn aliases(&self, question: &Question) -> (Vec<Record>, crate::wire::Name) {
        let zone = self.zone.read();
        let mut chain = Vec::new();
        let mut name = question.name.clone();
        while chain.len() < ALIASES
            && let Answer::Alias(target) = zone.lookup(&name, question.kind)
        {
            chain.push(Record { name, ttl: TTL, data: Data::Cname(target.clone()) });
            name = target;
        }
        (chain, name)
    }

    /// The answer from memory; `None` if others must be asked.
    fn own(&self, query: &Message) -> Option<Message> {
        let question = &query.questions[0];
        let (chain, last) = self.aliases(question);
        let zone = self.zone.read();
        let mut answer = reply(query, rcode::NO_ERROR);
        answer.authoritative = true;
        answer.answers = chain;
        if question.kind == kind::CNAME && !answer.answers.is_empty() {
            answer.answers.truncate(1);
            return Some(answer);
        }
        match zone.lookup(&last, question.kind) {
            Answer::NotOurs => return None,
            Answer::Records { answers, additional } => {
                let count = answers.len();
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count.max(1);
                let mut records: Vec<Record> =
                    answers.into_iter().map(|data| Record { name: last.clone(), ttl: TTL, data }).collect();
                records.rotate_left(turn);
                answer.answers.extend(records);
                answer.additional = additional;
            }
            // A circle of aliases ends here too.
            Answer::NoData | Answer::Alias(_) => {
                if answer.answers.is_empty() {
                    answer.authority.extend(zone.authority());
                }
            }
            Answer::NoName => {
                answer.rcode = rcode::NAME_ERROR;
                answer.authority.extend(zone.authority());
            }
        }
        Some(answer)
    }
}

/// A message that is a fit question, or what to answer to one that is not; `None` for what deserves no answer.
fn read(bytes: &[u8]) -> Option<Result<Message, Box<Message>>> {
    let query = match Message::decode(bytes) {
        Ok(query) => query,
        Err(_) => {
            let id = u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]);
            // Not to an answer, lest two servers send errors to each other for ever.
            if bytes.get(2)? & 0x80 != 0 {
                return None;
            }
            let answer = Message { id, response: true, rcode: rcode::FORMAT_ERROR, ..Message::default() };
            return Some(Err(Box::new(answer)));
        }
    };
    if query.response {
        return None;
    }
    let refuse = |code| Some(Err(Box::new(reply(&query, code))));
    if query.opcode != 0 {
        return refuse(rcode::NOT_IMPLEMENTED);
    }
    if query.questions.len() != 1 {
        return refuse(rcode::FORMAT_ERROR);
    }
    if query.edns.is_some_and(|edns| edns.version != 0) {
        let mut answer = reply(&query, rcode::NO_ERROR);
        if let Some(edns) = &mut answer.edns {
            // BADVERS is 16.
            edns.extended_rcode = 1;
        }
        return Some(Err(Box::new(answer)));
    }
    if query.questions[0].class != CLASS_IN {
        return refuse(rcode::REFUSED);
    }
    Some(Ok(query))
}

fn reply(query: &Message, code: u8) -> Message {
    Message {
        id: query.id,
        response: true,
        opcode: query.opcode,
        recursion_desired: query.recursion_desired,
        recursion_available: true,
        rcode: code,
        questions: query.questions.clone(),
        edns: query.edns.map(|edns| Edns {
            payload: PAYLOAD,
            version: 0,
            extended_rcode: 0,
            dnssec_ok: edns.dnssec_ok,
        }),
        ..Message::default()
    }
}

/// Encodes within a limit: first the extras go, then answers, and then the truncation bit tells.
fn fit(mut message: Message, limit: usize) -> Vec<u8> {
    let mut bytes = message.encode();
    if bytes.len() <= limit {
        return bytes;
    }
    message.additional.clear();
    bytes = message.encode();
    if bytes.len() <= limit {
        return bytes;
    }
    message.truncated = true;
    message.authority.clear();
    while bytes.len() > limit && !message.answers.is_empty() {
        let keep = (message.answers.len() * limit / bytes.len()).min(message.answers.len() - 1);
        message.answers.truncate(keep);
        bytes = message.encode();
    }
    bytes
}
