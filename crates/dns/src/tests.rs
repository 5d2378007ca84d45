//! The server as clients see it, on loopback and with a scripted upstream.

use super::*;
use crate::wire::{Data, Edns, Message, Name, Record, kind, rcode};
use crate::zone::{Endpoint, Zone};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Running {
    address: SocketAddr,
    zone: Arc<RwLock<Zone>>,
    ready: watch::Sender<bool>,
    _tasks: JoinSet<std::io::Result<()>>,
}

async fn start(upstreams: Vec<SocketAddr>) -> Running {
    let mut zone = Zone::new("cluster.local", Vec::new());
    let endpoints = (1..=100)
        .map(|host| Endpoint {
            address: Ipv4Addr::new(10, 244, 0, host).into(),
            hostname: None,
            ports: vec![],
        })
        .collect();
    let key = |name: &str| ("default".to_owned(), name.to_owned());
    zone.put_service(key("many"), Some(zone::Service::Headless));
    zone.put_endpoints(key("many"), "many-1".into(), Some(endpoints));
    let addresses = vec![Ipv4Addr::new(10, 96, 0, 1).into()];
    zone.put_service(key("web"), Some(zone::Service::Cluster { addresses, ports: vec![] }));
    zone.put_service(key("out"), Some(zone::Service::External("example.com".into())));
    zone.put_service(key("in"), Some(zone::Service::External("web.default.svc.cluster.local".into())));
    zone.put_service(key("loop"), Some(zone::Service::External("loop.default.svc.cluster.local".into())));
    let zone = Arc::new(RwLock::new(zone));
    let (ready, seen) = watch::channel(true);
    let server = Arc::new(Server::new(zone.clone(), upstreams, seen));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.clone().udp(UdpSocket::bind(address).await.unwrap()));
    tasks.spawn(server.tcp(tcp));
    Running { address, zone, ready, _tasks: tasks }
}

impl Running {
    async fn send(&self, query: &Message) -> Message {
        let bytes = self.send_bytes(&query.encode()).await;
        Message::decode(&bytes).unwrap()
    }

    async fn send_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(bytes, self.address).await.unwrap();
        let mut buffer = vec![0; 4096];
        let length =
            tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await.unwrap().unwrap();
        buffer.truncate(length);
        buffer
    }

    async fn ask(&self, name: &str, kind: u16) -> Message {
        self.send(&Message::query(42, Name::parse(name).unwrap(), kind)).await
    }
}

/// Knows `example.com` and nothing else; counts what it is asked.
async fn upstream() -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut message = Message::decode(&buffer[..length]).unwrap();
            message.response = true;
            let name = message.questions[0].name.clone();
            if name.lower() == "example.com" {
                message.answers.push(Record { name, ttl: 60, data: Data::A(Ipv4Addr::new(192, 0, 2, 7)) });
            } else {
                message.rcode = rcode::NAME_ERROR;
            }
            socket.send_to(&message.encode(), from).await.unwrap();
        }
    });
    (address, count)
}

fn first(message: &Message) -> Option<&Data> {
    message.answers.last().map(|record| &record.data)
}

#[tokio::test]
async fn answers_keep_id_case_and_say_who_is_responsible() {
    let server = start(Vec::new()).await;
    let answer = server.ask("Web.default.svc.CLUSTER.local", kind::A).await;
    assert!(answer.response && answer.authoritative && answer.recursion_available);
    assert_eq!((answer.id, answer.rcode), (42, rcode::NO_ERROR));
    assert_eq!(answer.questions[0].name.to_string(), "Web.default.svc.CLUSTER.local.");
    assert_eq!(answer.answers[0].name.to_string(), "Web.default.svc.CLUSTER.local.");
    assert_eq!(first(&answer), Some(&Data::A(Ipv4Addr::new(10, 96, 0, 1))));

    let none = server.ask("web.default.svc.cluster.local", kind::AAAA).await;
    assert_eq!((none.rcode, none.answers.len()), (rcode::NO_ERROR, 0));
    assert!(matches!(none.authority[0].data, Data::Soa { .. }));
    let missing = server.ask("nope.default.svc.cluster.local", kind::A).await;
    assert_eq!(missing.rcode, rcode::NAME_ERROR);
    assert!(missing.authoritative && matches!(missing.authority[0].data, Data::Soa { .. }));
}

#[tokio::test]
async fn what_does_not_fit_is_cut_and_comes_whole_by_tcp() {
    let server = start(Vec::new()).await;
    let query = Message::query(1, Name::parse("many.default.svc.cluster.local").unwrap(), kind::A);
    let plain = Message { edns: None, ..query.clone() };
    let bytes = server.send_bytes(&plain.encode()).await;
    assert!(bytes.len() <= 512);
    let cut = Message::decode(&bytes).unwrap();
    assert!(cut.truncated && !cut.answers.is_empty() && cut.edns.is_none());
    let bytes = server.send_bytes(&query.encode()).await;
    assert!(bytes.len() > 512 && bytes.len() <= 1232);

    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    // Two queries in one go, on one connection.
    let bytes = plain.encode();
    let framed = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
    stream.write_all(&[framed.clone(), framed].concat()).await.unwrap();
    for _ in 0..2 {
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        let whole = Message::decode(&answer).unwrap();
        assert_eq!((whole.answers.len(), whole.truncated), (100, false));
    }
}

#[tokio::test]
async fn other_names_are_forwarded_and_remembered() {
    let (address, count) = upstream().await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let refusing = {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        gone.local_addr().unwrap()
    };
    let server = start(vec![refusing, address, silent.local_addr().unwrap()]).await;
    for _ in 0..3 {
        let answer = server.ask("example.com", kind::A).await;
        assert_eq!(first(&answer), Some(&Data::A(Ipv4Addr::new(192, 0, 2, 7))));
        assert!(!answer.authoritative);
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(server.ask("nowhere.example", kind::A).await.rcode, rcode::NAME_ERROR);
}

#[tokio::test]
async fn aliases_are_followed_inside_and_outside() {
    let (address, _) = upstream().await;
    let server = start(vec![address]).await;
    let outside = server.ask("out.default.svc.cluster.local", kind::A).await;
    assert_eq!(outside.answers[0].data, Data::Cname(Name::parse("example.com").unwrap()));
    assert_eq!(first(&outside), Some(&Data::A(Ipv4Addr::new(192, 0, 2, 7))));
    let inside = server.ask("in.default.svc.cluster.local", kind::A).await;
    assert_eq!(inside.answers.len(), 2);
    assert_eq!(first(&inside), Some(&Data::A(Ipv4Addr::new(10, 96, 0, 1))));
    let alone = server.ask("out.default.svc.cluster.local", kind::CNAME).await;
    assert_eq!(alone.answers.len(), 1);
    assert!(server.ask("loop.default.svc.cluster.local", kind::A).await.answers.len() <= 8);
    // Without anyone to ask, the alias itself is still told.
    let server = start(Vec::new()).await;
    assert_eq!(server.ask("out.default.svc.cluster.local", kind::A).await.answers.len(), 1);
    assert_eq!(server.ask("example.com", kind::A).await.rcode, rcode::SERVER_FAILURE);
}

#[tokio::test]
async fn malformed_and_strange_queries_get_the_right_error() {
    let server = start(Vec::new()).await;
    let query = Message::query(9, Name::parse("web.default.svc.cluster.local").unwrap(), kind::A);
    let code = |message: Message| (message.id, message.rcode);
    let bytes = server.send_bytes(&query.encode()[..20]).await;
    assert_eq!(code(Message::decode(&bytes).unwrap()), (9, rcode::FORMAT_ERROR));
    let two = Message { questions: vec![query.questions[0].clone(); 2], ..query.clone() };
    assert_eq!(code(server.send(&two).await), (9, rcode::FORMAT_ERROR));
    assert_eq!(code(server.send(&Message { opcode: 5, ..query.clone() }).await), (9, rcode::NOT_IMPLEMENTED));
    let mut chaos = query.clone();
    chaos.questions[0].class = 3;
    assert_eq!(code(server.send(&chaos).await), (9, rcode::REFUSED));
    let edns = Edns { payload: 1232, version: 1, extended_rcode: 0, dnssec_ok: false };
    let answer = server.send(&Message { edns: Some(edns), ..query }).await;
    assert_eq!(answer.edns.unwrap().extended_rcode, 1);
}

#[tokio::test]
async fn queries_wait_for_the_first_lists_and_see_changes_at_once() {
    let server = start(Vec::new()).await;
    server.ready.send_replace(false);
    let (answer, ()) = tokio::join!(server.ask("web.default.svc.cluster.local", kind::A), async {
        tokio::task::yield_now().await;
        server.ready.send_replace(true);
    });
    assert_eq!(answer.answers.len(), 1);
    let key = ("default".to_owned(), "web".to_owned());
    server.zone.write().put_service(key, None);
    assert_eq!(server.ask("web.default.svc.cluster.local", kind::A).await.rcode, rcode::NAME_ERROR);
}
