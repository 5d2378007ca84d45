//! Response bodies, and request bodies with a limit.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use futures::stream::BoxStream;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::Status;
use crate::registry::object::Object;

/// The largest request body.
pub const LIMIT: usize = 3 << 20;
const BLOCK: usize = 64 << 10;

/// What the server sends.
pub enum Body {
    Empty,
    Full(Bytes),
    List(ListBody),
    Stream(BoxStream<'static, Bytes>),
}

/// A list, written from shared objects block by block, or in blocks that all readers of the list share.
pub struct ListBody {
    head: Bytes,
    items: VecDeque<Arc<Object>>,
    /// The items as blocks, and how many of them are written.
    blocks: Option<(Arc<[Bytes]>, usize)>,
    first: bool,
    done: bool,
    left: u64,
    /// Items carry their kind and version.
    whole: bool,
}

const ITEM_HEAD: &[u8] = b"{";
const TAIL: &[u8] = b"]}\n";

/// An item behind its opening brace.
fn rest(item: &Object, whole: bool) -> &[u8] {
    if whole { item.whole() } else { item.item() }
}

impl ListBody {
    /// `head` ends with the opening bracket of the items.
    pub fn new(head: Bytes, items: Vec<Arc<Object>>, whole: bool) -> Self {
        let each: usize = items.iter().map(|i| ITEM_HEAD.len() + rest(i, whole).len()).sum();
        let left = head.len() + each + items.len().saturating_sub(1) + TAIL.len();
        let blocks = None;
        Self { head, items: items.into(), blocks, first: true, done: false, left: left as u64, whole }
    }

    /// The items in blocks, with commas between them.
    pub fn shared(head: Bytes, blocks: Arc<[Bytes]>) -> Self {
        let left = head.len() + blocks.iter().map(Bytes::len).sum::<usize>() + TAIL.len();
        let (items, blocks) = (VecDeque::new(), Some((blocks, 0)));
        Self { head, items, blocks, first: true, done: false, left: left as u64, whole: false }
    }

    fn block(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        if let Some((blocks, written)) = &mut self.blocks {
            let block = if std::mem::take(&mut self.first) {
                std::mem::take(&mut self.head)
            } else if let Some(block) = blocks.get(*written) {
                *written += 1;
                block.clone()
            } else {
                self.done = true;
                Bytes::from_static(TAIL)
            };
            self.left -= block.len() as u64;
            return Some(block);
        }
        let mut out = BytesMut::with_capacity(BLOCK.min(usize::try_from(self.left).unwrap_or(BLOCK)));
        out.put_slice(&std::mem::take(&mut self.head));
        while let Some(item) = self.items.front() {
            let item_bytes = rest(item, self.whole);
            if !out.is_empty() && out.len() + item_bytes.len() + 2 > BLOCK {
                break;
            }
            if !std::mem::take(&mut self.first) {
                out.put_u8(b',');
            }
            out.put_slice(ITEM_HEAD);
            out.put_slice(item_bytes);
            self.items.pop_front();
        }
        if self.items.is_empty() {
            out.put_slice(TAIL);
            self.done = true;
        }
        self.left -= out.len() as u64;
        Some(out.freeze())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match &mut *self {
            Self::Empty => None,
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Some(bytes)
            }
            Self::List(list) => list.block(),
            Self::Stream(stream) => match Pin::new(stream).poll_next(cx) {
                Poll::Ready(chunk) => chunk,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::List(list) => list.done,
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::List(list) => SizeHint::with_exact(list.left),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Full(bytes)
    }
}

impl Body {
    /// The whole of a body that is no stream.
    pub fn collect_now(self) -> Option<Bytes> {
        match self {
            Self::Empty => Some(Bytes::new()),
            Self::Full(bytes) => Some(bytes),
            Self::List(mut list) => {
                let mut out = BytesMut::with_capacity(usize::try_from(list.left).unwrap_or(0));
                while let Some(block) = list.block() {
                    out.put_slice(&block);
                }
                Some(out.freeze())
            }
            Self::Stream(_) => None,
        }
    }

    /// The body compressed, if it is large enough to be worth it.
    pub fn gzip(self) -> (Self, bool) {
        let size = http_body::Body::size_hint(&self).exact().unwrap_or(0);
        if size < 128 << 10 {
            return (self, false);
        }
        let Some(plain) = self.collect_now() else { return (Self::Empty, false) };
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        match encoder.write_all(&plain).and_then(|()| encoder.finish()) {
            Ok(packed) => (Self::Full(packed.into()), true),
            Err(_) => (Self::Full(plain), false),
        }
    }
}

/// Takes in the rest of a body that is refused, within bounds: a client that still writes would not see the answer.
async fn drain<B: http_body::Body + Unpin>(body: &mut B) {
    let mut left = 8 * LIMIT;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, bytes::Buf::remaining);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Reads a request body, at most [`LIMIT`] bytes.
pub async fn read<B>(body: B) -> Result<Bytes, Status>
where
    B: http_body::Body + Unpin,
    B::Error: std::fmt::Display + Send,
{
    let too_large =
        || Status::too_large(format!("Request entity too large: limit is {LIMIT}")).with_causes(Vec::new());
    let mut body = body;
    if body.size_hint().lower() > LIMIT as u64 {
        drain(&mut body).await;
        return Err(too_large());
    }
    let mut first: Option<Bytes> = None;
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Status::bad_request(format!("the body could not be read: {e}")))?;
        let Ok(mut data) = frame.into_data() else { continue };
        let length = bytes::Buf::remaining(&data);
        let data = bytes::Buf::copy_to_bytes(&mut data, length);
        if first.as_ref().map_or(0, Bytes::len) + all.len() + data.len() > LIMIT {
            drain(&mut body).await;
            return Err(too_large());
        }
        match first {
            None => first = Some(data),
            Some(ref head) => {
                if all.is_empty() {
                    all.put_slice(head);
                    first = Some(Bytes::new());
                }
                all.put_slice(&data);
            }
        }
    }
    Ok(if all.is_empty() { first.unwrap_or_default() } else { all.freeze() })
}
