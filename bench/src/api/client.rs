//! A load generator that costs little itself: HTTP/1.1 over TLS on connections that stay open, requests built beforehand,
//! answers counted and not parsed.

use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How a server is reached, and as whom.
#[derive(Clone)]
pub struct Access {
    pub address: std::net::SocketAddr,
    http1: TlsConnector,
    http2: TlsConnector,
}

impl Access {
    /// PEM texts: the authority, the client's certificate and its key.
    pub fn new(
        address: std::net::SocketAddr,
        ca: &str,
        certificate: &str,
        key: &str,
    ) -> anyhow::Result<Access> {
        let connector = |protocol: &[u8]| -> anyhow::Result<TlsConnector> {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
                roots.add(certificate?)?;
            }
            let chain =
                CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?;
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(TlsConnector::from(Arc::new(config)))
        };
        Ok(Access { address, http1: connector(b"http/1.1")?, http2: connector(b"h2")? })
    }

    async fn open(&self, connector: &TlsConnector) -> anyhow::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(connector.connect(ServerName::from(self.address.ip()), stream).await?)
    }

    /// A connection for requests one after another.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = self.open(&self.http1).await?;
        Ok(Connection { stream, buffer: vec![0; 64 << 10], filled: 0 })
    }

    /// A connection for many streams.
    pub async fn connect_http2(
        &self,
    ) -> anyhow::Result<hyper::client::conn::http2::SendRequest<http_body_util::Empty<bytes::Bytes>>> {
        let stream = hyper_util::rt::TokioIo::new(self.open(&self.http2).await?);
        let (sender, connection) =
            hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                .handshake(stream)
                .await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A request as it goes over the wire.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = match body.len() {
        0 => String::new(),
        length => format!("content-type: application/json\r\ncontent-length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\nhost: bench\r\naccept: application/json\r\n{length}\r\n{body}")
        .into_bytes()
}

/// One connection, used by one client.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
    filled: usize,
}

/// How the length of a body is told.
enum Length {
    Exactly(usize),
    Chunked,
}

impl Connection {
    /// Sends a request and reads its answer to the end; the status and the length of the body.
    pub async fn call(&mut self, request: &[u8]) -> anyhow::Result<(u16, usize)> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let (status, length) = self.head().await?;
        let size = match length {
            Length::Exactly(length) => {
                self.skip(length).await?;
                length
            }
            Length::Chunked => self.skip_chunks().await?,
        };
        Ok((status, size))
    }

    /// Sends a request that must succeed.
    pub async fn must(&mut self, request: &[u8]) -> anyhow::Result<usize> {
        let (status, size) = self.call(request).await?;
        ensure!((200..300).contains(&status), "the server answered {status}");
        Ok(size)
    }

    /// The whole text of an answer.
    pub async fn text(&mut self, request: &[u8]) -> anyhow::Result<String> {
        Ok(self.answer(request).await?.1)
    }

    /// The status and the whole text of an answer.
    pub async fn answer(&mut self, request: &[u8]) -> anyhow::Result<(u16, String)> {
        self.stream.write_all(request).await?;
        let (status, length) = self.head().await?;
        let Length::Exactly(length) = length else { anyhow::bail!("the answer's length is not told") };
        while self.filled < length {
            self.fill().await?;
        }
        let text = String::from_utf8_lossy(&self.buffer[..length]).into_owned();
        self.consume(length);
        Ok((status, text))
    }

    /// Sends a watch and reads the answer's head; what follows is for [`Connection::lines`].
    pub async fn watch(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request).await?;
        let (status, _) = self.head().await?;
        ensure!(status == 200, "the server answered {status} to a watch");
        Ok(())
    }

    /// Reads until so many events have come. Each ends with a line feed; those of the chunks follow a carriage return.
    pub async fn lines(&mut self, wanted: usize) -> anyhow::Result<()> {
        let (mut seen, mut before) = (0, 0u8);
        loop {
            for byte in &self.buffer[..self.filled] {
                seen += usize::from(*byte == b'\n' && before != b'\r');
                before = *byte;
            }
            self.filled = 0;
            if seen >= wanted {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn head(&mut self) -> anyhow::Result<(u16, Length)> {
        let end = loop {
            let text = &self.buffer[..self.filled];
            match text.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.fill().await?,
            }
        };
        let head = std::str::from_utf8(&self.buffer[..end])?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        let mut length = Length::Exactly(0);
        for line in head.lines().skip(1) {
            let Some((name, value)) = line.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("content-length") {
                length = Length::Exactly(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                length = Length::Chunked;
            }
        }
        self.consume(end);
        Ok((status, length))
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        let read = self.stream.read(&mut self.buffer[self.filled..]).await?;
        ensure!(read > 0, "the server closed the connection");
        self.filled += read;
        Ok(())
    }

    fn consume(&mut self, length: usize) {
        self.buffer.copy_within(length..self.filled, 0);
        self.filled -= length;
    }

    async fn skip(&mut self, mut length: usize) -> anyhow::Result<()> {
        loop {
            let taken = length.min(self.filled);
            self.consume(taken);
            length -= taken;
            if length == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn skip_chunks(&mut self) -> anyhow::Result<usize> {
        let mut total = 0;
        loop {
            let end = loop {
                match self.buffer[..self.filled].iter().position(|byte| *byte == b'\n') {
                    Some(end) => break end,
                    None => self.fill().await?,
                }
            };
            let text = std::str::from_utf8(&self.buffer[..end])?.trim();
            let length = usize::from_str_radix(text, 16).context("no length of a chunk")?;
            self.consume(end + 1);
            self.skip(length + 2).await?;
            total += length;
            if length == 0 {
                return Ok(total);
            }
        }
    }
}
