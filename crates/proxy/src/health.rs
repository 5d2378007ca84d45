//! The small HTTP servers on `healthCheckNodePort`, by which an outside load balancer learns whether this node has endpoints of a service.

use crate::state::{HealthCheck, Key};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Requests served at once per service; more wait in the listener's queue.
const CONNECTIONS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(5);

struct Server {
    port: u16,
    count: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All servers of the node.
pub(crate) struct Servers {
    running: HashMap<Key, Server>,
}

impl Servers {
    pub(crate) fn new() -> Self {
        Self { running: HashMap::new() }
    }

    /// Starts, stops and updates servers.
    pub(crate) async fn sync(&mut self, wanted: Vec<HealthCheck>) {
        self.running.retain(|service, server| {
            wanted.iter().any(|check| check.service == *service && check.port == server.port)
        });
        for check in wanted {
            if let Some(server) = self.running.get(&check.service) {
                server.count.store(check.local_endpoints, Ordering::Relaxed);
                continue;
            }
            let listener = match listen(check.port).await {
                Ok(listener) => listener,
                Err(error) => {
                    let (namespace, name) = &check.service;
                    tracing::warn!(%namespace, %name, port = check.port, %error, "health check port cannot be opened");
                    continue;
                }
            };
            let count = Arc::new(AtomicUsize::new(check.local_endpoints));
            let task = tokio::spawn(serve(listener, check.service.clone(), count.clone())).abort_handle();
            self.running.insert(check.service, Server { port: check.port, count, task });
        }
    }
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        // A host without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    }
}

async fn serve(listener: TcpListener, service: Key, count: Arc<AtomicUsize>) {
    let mut open = JoinSet::new();
    loop {
        if open.len() >= CONNECTIONS {
            open.join_next().await;
        }
        while open.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let text = answer(&service, count.load(Ordering::Relaxed));
                open.spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, exchange(stream, text)).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "health check connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn exchange(mut stream: TcpStream, text: String) -> io::Result<()> {
    let mut head: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < 16 << 10 {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => head.extend(&buffer[..length]),
        }
    }
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

fn answer((namespace, name): &Key, count: usize) -> String {
    let status = if count > 0 { "200 OK" } else { "503 Service Unavailable" };
    // Names of objects need no escaping.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
         \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {count}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
