//! Asks the daemon: one connection a verb, so that dropping it cancels that verb and no other.

use std::{
    marker::PhantomData,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt as _};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::task::AbortOnDropHandle;

use super::{
    answer::Piece,
    frames::{self, Next},
    socket,
    wire::{self, Event},
};
use crate::{
    error::{Error, Kind, Result},
    front::verbs::Verb,
};

/// The longest line of an answer that is read: a result is a few KiB, and one that names every peer of a big network
/// a few hundred.
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;
/// How long the daemon may take to begin an answer; it begins at once, whatever the verb.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Where the daemon is.
#[derive(Clone, Debug)]
pub struct Client {
    data_dir: PathBuf,
}

impl Client {
    /// The daemon of a data directory, which is absolute. Nothing is sent yet.
    pub fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned() }
    }

    /// Whether a daemon answers; fails with [`Kind::NoDaemon`] if none does.
    pub async fn check(&self) -> Result<()> {
        socket::connect(&self.data_dir).await.map(drop)
    }

    /// Asks; the answer's events follow.
    pub async fn call<V: Verb<Answer: DeserializeOwned>>(&self, verb: &V) -> Result<Events<V::Answer>> {
        self.ask(verb).await.map(Events::new)
    }

    /// Asks, and sends `content` as it comes. A failure of `content` cancels the verb.
    pub async fn call_with<V: Verb<Answer: DeserializeOwned>>(
        &self,
        verb: &V,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Events<V::Answer>> {
        let options = ascii_json(verb)?;
        let body = BodyExt::boxed_unsync(StreamBody::new(content.map_ok(Frame::data)));
        let request = post::<V>().header(wire::OPTIONS_HEADER, options).body(body).map_err(malformed)?;
        self.send(request).await.map(Events::new)
    }

    /// Asks for content.
    pub async fn content<V: Verb<Answer = Piece>>(&self, verb: &V) -> Result<Content> {
        let answer = self.ask(verb).await?;
        Ok(Content { answer, reader: frames::Reader::default() })
    }

    async fn ask<V: Verb>(&self, verb: &V) -> Result<Answer> {
        let body = serde_json::to_vec(verb).map_err(malformed)?;
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        let request = post::<V>().header(header::CONTENT_TYPE, "application/json").body(body).map_err(malformed)?;
        self.send(request).await
    }

    async fn send(&self, request: Request<RequestBody>) -> Result<Answer> {
        let stream = socket::connect(&self.data_dir).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the daemon ended early");
            }
        }));
        let response = tokio::time::timeout(HEAD_TIMEOUT, sender.send_request(request)).await.map_err(|_| {
            Error::new(Kind::NoDaemon, format!("The daemon on {} does not answer", self.data_dir.display()))
                .hint("look at its log; it may have to be started again")
        })?;
        let response = response.map_err(broken)?;
        let version = response
            .headers()
            .get(wire::VERSION_HEADER)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("an unknown version")
            .to_owned();
        let answer = Answer { body: response, version, _connection: connection };
        if answer.body.status() == StatusCode::OK { Ok(answer) } else { Err(answer.refusal().await) }
    }
}

fn post<V: Verb>() -> hyper::http::request::Builder {
    Request::post([wire::PREFIX, V::PATH].concat())
        .header(header::HOST, "localhost")
        .header(wire::VERSION_HEADER, wire::VERSION)
}

/// JSON that a header may hold: ASCII only, what is not being escaped.
fn ascii_json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value).map_err(malformed)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if (' '..='~').contains(&c) {
            out.push(c);
        } else {
            let mut units = [0; 2];
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    Ok(out)
}

fn malformed(error: impl std::fmt::Display) -> Error {
    Error::failed(format!("The request to the daemon cannot be made: {error}"))
}

fn broken(error: hyper::Error) -> Error {
    tracing::debug!(%error, "the daemon's answer broke off");
    Error::failed("The daemon closed the connection before it had answered").hint("its log says why")
}

/// An answer that is being read; dropping it hangs up.
#[derive(Debug)]
struct Answer {
    body: Response<Incoming>,
    version: String,
    _connection: AbortOnDropHandle<()>,
}

impl Answer {
    /// The next piece of the body; `None`: it is over.
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.body.body_mut().frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// What an answer that is not OK says.
    async fn refusal(mut self) -> Error {
        let mut text = BytesMut::new();
        while let Ok(Some(piece)) = self.piece().await {
            text.extend_from_slice(&piece);
            if text.len() > MAX_LINE_BYTES {
                break;
            }
        }
        let said = match wire::decode::<()>(&text) {
            Ok(Event::Error(error)) => error,
            _ => Error::failed(format!("The daemon does not know this request ({})", self.body.status().as_u16())),
        };
        self.explain(said)
    }

    /// A failure of understanding between different versions is explained by that.
    fn explain(&self, error: Error) -> Error {
        match version_difference(&self.version) {
            Some(difference) => Error::failed(error.message).hint(difference),
            None => error,
        }
    }
}

fn version_difference(daemon: &str) -> Option<String> {
    (daemon != wire::VERSION).then(|| {
        format!(
            "the daemon is version {}, this command is version {}: start the daemon again with the program you run now",
            daemon.escape_debug(),
            wire::VERSION
        )
    })
}

/// The events of an answer, in order.
#[derive(Debug)]
pub struct Events<T> {
    answer: Answer,
    input: BytesMut,
    /// Bytes of `input` that hold no newline.
    searched: usize,
    ended: bool,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Events<T> {
    fn new(answer: Answer) -> Self {
        Self { answer, input: BytesMut::new(), searched: 0, ended: false, kind: PhantomData }
    }

    /// Where the daemon is of another version than this program: a sentence that says so.
    pub fn version_difference(&self) -> Option<String> {
        version_difference(&self.answer.version)
    }

    /// The next result; progress goes to `progress`. `None`: that was all. Not cancel-safe in the middle of a line.
    pub async fn next(&mut self, mut progress: impl FnMut(&crate::report::Progress)) -> Result<Option<T>> {
        while !self.ended {
            let line = self.line().await?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match wire::decode(&line) {
                Ok(Event::Progress(now)) => progress(&now),
                Ok(Event::Result(result)) => return Ok(Some(result)),
                Ok(Event::Error(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Ok(Event::End {}) => self.ended = true,
                Err(error) => {
                    tracing::debug!(%error, "a line of the daemon's answer cannot be read");
                    return Err(self.answer.explain(Error::failed("The daemon's answer cannot be read")));
                }
            }
        }
        Ok(None)
    }

    async fn line(&mut self) -> Result<BytesMut> {
        loop {
            let fresh = self.input.get(self.searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.input.split_to(self.searched + at + 1);
                self.searched = 0;
                return Ok(line);
            }
            self.searched = self.input.len();
            if self.searched > MAX_LINE_BYTES {
                return Err(Error::failed("The daemon's answer cannot be read: a line of it has no end"));
            }
            match self.answer.piece().await? {
                Some(piece) => self.input.extend_from_slice(&piece),
                None => {
                    return Err(
                        Error::failed("The daemon's answer ended before it was complete").hint("its log says why")
                    );
                }
            }
        }
    }
}

/// The content that `cat` streams, in order.
#[derive(Debug)]
pub struct Content {
    answer: Answer,
    reader: frames::Reader,
}

impl Content {
    /// Where the daemon is of another version than this program: a sentence that says so.
    pub fn version_difference(&self) -> Option<String> {
        version_difference(&self.answer.version)
    }

    /// The next bytes; `None`: that was all.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.reader.next()? {
                Next::Bytes(bytes) if bytes.is_empty() => {}
                Next::Bytes(bytes) => return Ok(Some(bytes)),
                Next::End => return Ok(None),
                Next::Starved => match self.answer.piece().await? {
                    Some(piece) => self.reader.push(piece),
                    None => {
                        return Err(Error::failed("The content ended before it was complete")
                            .hint("the daemon's log says why; repeat the command"));
                    }
                },
            }
        }
    }
}
