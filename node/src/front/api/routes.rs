//! The routes: from a request to a verb of the node, and from its outcome to events or frames.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRequest, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use futures::{
    FutureExt as _, Stream, StreamExt as _, TryFutureExt as _, TryStreamExt as _,
    future::ready,
    stream::{self, BoxStream},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::{io::StreamReader, task::AbortOnDropHandle};

use super::{
    frames,
    server::Stop,
    verbs::Verbs,
    wire::{self, Event, StatPart},
};
use crate::{
    error::{Error, Kind, Result},
    report::{AddOptions, GetOptions, Progress},
    settings,
};

/// The longest JSON body of a request: paths and references, a few KiB each at the most.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Lines that go out as one piece, where they are ready at once.
const LINES: usize = 256;
/// Pieces that wait for a slow caller; `cat` and lists wait with them.
const PIECES: usize = 8;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How many such ticks pass before an empty line is sent where there is nothing to tell: it finds callers that are gone.
const TICKS_OF_SILENCE: u32 = 25;
/// How long the connection of a failed `add -` stays, for its caller to read why, where it still sends.
const LINGER: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Api<V> {
    verbs: V,
    stop: Stop,
}

/// A request's body, read as JSON; one that cannot be read is answered by itself.
struct Asked<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Asked<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> std::result::Result<Self, Response> {
        match Json::from_request(request, state).await {
            Ok(Json(request)) => Ok(Self(request)),
            Err(rejection) => Err(refused(rejection.status(), &rejection.body_text())),
        }
    }
}

/// The router of `/v1`.
pub(super) fn router<V: Verbs>(verbs: V, stop: Stop) -> Router {
    Router::new()
        .route(wire::ADD, post(add::<V>))
        .route(wire::ADD_STREAM, post(add_stream::<V>))
        .route(wire::GET, post(get::<V>))
        .route(wire::CAT, post(cat::<V>))
        .route(wire::LS, post(ls::<V>))
        .route(wire::LS_INSIDE, post(ls_inside::<V>))
        .route(wire::STAT, post(stat::<V>))
        .route(wire::STAT_LOCAL, post(stat_local::<V>))
        .route(wire::WATCH, post(watch_updates::<V>))
        .route(wire::PEERS, post(peers::<V>))
        .route(wire::CONNECT, post(connect::<V>))
        .route(wire::STATUS, post(status::<V>))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(axum::middleware::map_response(|mut response: Response| async move {
            let version = HeaderValue::from_static(wire::VERSION);
            response.headers_mut().insert(HeaderName::from_static(wire::VERSION_HEADER), version);
            response
        }))
        .with_state(Api { verbs, stop })
}

async fn add<V: Verbs>(State(api): State<Api<V>>, Asked(request): Asked<wire::AddRequest>) -> Response {
    let (sender, progress) = watch::channel(Progress::default());
    let verbs = api.verbs.clone();
    let work = async move { verbs.add_path(request.path.0, request.shown, request.options, sender).await };
    api.one(work, Some(progress))
}

async fn add_stream<V: Verbs>(State(api): State<Api<V>>, headers: HeaderMap, body: Body) -> Response {
    let options = headers.get(wire::OPTIONS_HEADER).map(|value| serde_json::from_slice::<AddOptions>(value.as_bytes()));
    let Some(Ok(options)) = options else {
        return refused(StatusCode::BAD_REQUEST, "its options are missing or malformed");
    };
    let (sender, progress) = watch::channel(Progress::default());
    let verbs = api.verbs.clone();
    // The body's end is only reached by a caller that sent all of it: one that dies in the middle gives an error here.
    let content = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let work = async move { verbs.add_stream(Box::new(content), options, sender).await };
    api.many(work.map_ok(|added| stream::once(ready(Ok(added)))), Some(progress), LINGER)
}

async fn get<V: Verbs>(State(api): State<Api<V>>, Asked(request): Asked<wire::GetRequest>) -> Response {
    let options = GetOptions {
        reference: request.reference,
        output: request.output.map(|path| path.0),
        directory: request.directory.0,
        force: request.force,
    };
    let (sender, progress) = watch::channel(Progress::default());
    let verbs = api.verbs.clone();
    api.one(async move { verbs.get(options, sender).await }, Some(progress))
}

async fn cat<V: Verbs>(State(api): State<Api<V>>, Asked(request): Asked<wire::CatRequest>) -> Response {
    let verbs = api.verbs.clone();
    let content = async move { verbs.cat(request.reference, request.offset, request.length).await };
    let content = caught(content.try_flatten_stream());
    let (pieces, receiver) = mpsc::channel(PIECES);
    let cancelled = api.stop.cancelled.clone();
    tokio::spawn(async move {
        let mut content = std::pin::pin!(content);
        loop {
            let next = tokio::select! {
                next = content.next() => next,
                () = cancelled.cancelled() => Some(Err(stopped())),
                () = pieces.closed() => return,
            };
            let (out, last) = match next {
                Some(Ok(bytes)) => (frames::content(bytes), false),
                Some(Err(error)) => (frames::error(&error), true),
                None => (vec![frames::end()], true),
            };
            for piece in out {
                if pieces.send(piece).await.is_err() {
                    return;
                }
            }
            if last {
                return;
            }
        }
    });
    answer("application/octet-stream", receiver)
}

async fn ls<V: Verbs>(State(api): State<Api<V>>, _: Asked<wire::Nothing>) -> Response {
    let verbs = api.verbs.clone();
    let lines = async move { Ok(stream::iter(verbs.ls().await.into_iter().map(Ok))) };
    api.many(lines, None, Duration::ZERO)
}

async fn ls_inside<V: Verbs>(State(api): State<Api<V>>, Asked(request): Asked<wire::ReferenceRequest>) -> Response {
    let verbs = api.verbs.clone();
    let lines = async move { Ok(stream::iter(verbs.ls_inside(request.reference).await?.into_iter().map(Ok))) };
    api.many(lines, None, Duration::ZERO)
}

async fn stat<V: Verbs>(State(api): State<Api<V>>, Asked(request): Asked<wire::StatRequest>) -> Response {
    let verbs = api.verbs.clone();
    let parts = async move {
        let mut stat = verbs.stat(request.reference, request.placement).await?;
        let placement = stat.placement.as_mut().map(std::mem::take).unwrap_or_default();
        let rows = placement.into_iter().map(StatPart::Placement);
        Ok(stream::iter(std::iter::once(StatPart::Stat(stat)).chain(rows).map(Ok)))
    };
    api.many(parts, None, Duration::ZERO)
}

async fn stat_local<V: Verbs>(State(api): State<Api<V>>, _: Asked<wire::Nothing>) -> Response {
    let verbs = api.verbs.clone();
    api.many(async move { Ok(verbs.stat_local()) }, None, Duration::ZERO)
}

async fn watch_updates<V: Verbs>(State(api): State<Api<V>>, _: Asked<wire::Nothing>) -> Response {
    // Subscribed before the answer begins: whoever has read its head misses nothing from then on.
    let updates = api.verbs.watch().map(Ok).take_until(api.stop.stopping.clone().cancelled_owned());
    let end = stream::once(ready(Err(Error::new(Kind::NoDaemon, "The daemon was stopped"))));
    api.many(ready(Ok(updates.chain(end))), None, Duration::ZERO)
}

async fn peers<V: Verbs>(State(api): State<Api<V>>, _: Asked<wire::Nothing>) -> Response {
    let lines = api.verbs.peers();
    api.many(ready(Ok(stream::iter(lines.into_iter().map(Ok)))), None, Duration::ZERO)
}

async fn connect<V: Verbs>(State(api): State<Api<V>>, Asked(request): Asked<wire::ConnectRequest>) -> Response {
    let verbs = api.verbs.clone();
    let work = async move {
        let address = settings::multiaddr(&request.address).map_err(Error::usage)?;
        verbs.connect(address).await
    };
    api.one(work, None)
}

async fn status<V: Verbs>(State(api): State<Api<V>>, _: Asked<wire::Nothing>) -> Response {
    let verbs = api.verbs.clone();
    api.one(async move { Ok(verbs.status().await) }, None)
}

fn refused(status: StatusCode, why: &str) -> Response {
    let error = Error::usage(format!("The daemon (version {}) cannot read this request: {why}", wire::VERSION));
    let mut body = Vec::new();
    // An error is text: it always encodes.
    let _encoded = wire::encode(&Event::<()>::Error(error), &mut body);
    (status, body).into_response()
}

fn stopped() -> Error {
    Error::failed("The daemon was stopped before this was finished").hint("start it again and repeat the command")
}

/// The same stream, in which a panic (a bug) becomes a failure of this verb only.
fn caught<T>(stream: impl Stream<Item = Result<T>>) -> impl Stream<Item = Result<T>> {
    AssertUnwindSafe(stream).catch_unwind().map(|item| {
        item.unwrap_or_else(|_| {
            Err(Error::failed("The daemon failed in an unexpected way")
                .hint("this is a bug; the daemon's log says where"))
        })
    })
}

impl<V: Verbs> Api<V> {
    /// An answer of one result.
    fn one<T: Serialize + Send + 'static>(
        self,
        work: impl Future<Output = Result<T>> + Send + 'static,
        progress: Option<watch::Receiver<Progress>>,
    ) -> Response {
        self.many(work.map_ok(|result| stream::once(ready(Ok(result)))), progress, Duration::ZERO)
    }

    /// An answer of many results. `linger`: how long the connection is kept after a failure.
    fn many<T, S>(
        self,
        work: impl Future<Output = Result<S>> + Send + 'static,
        progress: Option<watch::Receiver<Progress>>,
        linger: Duration,
    ) -> Response
    where
        T: Serialize + Send + 'static,
        S: Stream<Item = Result<T>> + Send + 'static,
    {
        // In a task of its own: a caller that stops reading (Ctrl-Z) holds up the events, and a verb that is no longer polled
        // would keep its places in the queues that it shares with all others.
        let work = AbortOnDropHandle::new(tokio::spawn(work));
        let work = async move {
            match work.await {
                Ok(done) => done,
                Err(why) if why.is_panic() => resume_unwind(why.into_panic()),
                Err(_) => Err(stopped()),
            }
        };
        let results: BoxStream<'static, _> = caught(work.try_flatten_stream()).boxed();
        let (pieces, receiver) = mpsc::channel(PIECES);
        tokio::spawn(pump(results, progress, pieces, self.stop, linger));
        answer("application/x-ndjson", receiver)
    }
}

fn answer(content_type: &'static str, pieces: mpsc::Receiver<Bytes>) -> Response {
    let body = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), pieces))
    });
    ([(axum::http::header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response()
}

/// Sends results and progress until the last result, a failure, the stop of the daemon, or the caller's going away,
/// which drops `results` and so aborts the verb.
async fn pump<T: Serialize + Send>(
    results: BoxStream<'static, Result<T>>,
    mut progress: Option<watch::Receiver<Progress>>,
    pieces: mpsc::Sender<Bytes>,
    stop: Stop,
    linger: Duration,
) {
    let mut results = results.ready_chunks(LINES);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent = 0;
    loop {
        let mut out = Vec::new();
        let mut failed = false;
        let mut last = false;
        tokio::select! {
            biased;
            () = pieces.closed() => return,
            () = stop.cancelled.cancelled() => {
                failed = true;
                let _encoded = wire::encode(&Event::<T>::Error(stopped()), &mut out);
            }
            next = results.next() => match next {
                None => {
                    last = true;
                    let _encoded = wire::encode(&Event::<T>::End {}, &mut out);
                }
                Some(items) => {
                    for item in items {
                        let event = item.map_or_else(Event::Error, Event::Result);
                        failed = matches!(event, Event::Error(_));
                        if let Err(error) = wire::encode(&event, &mut out) {
                            tracing::error!(%error, "an answer could not be written as JSON");
                            return;
                        }
                        if failed {
                            break;
                        }
                    }
                }
            },
            _ = ticks.tick() => {
                silent += 1;
                match progress.as_mut().filter(|p| p.has_changed().unwrap_or(false)) {
                    Some(progress) => {
                        let now = progress.borrow_and_update().clone();
                        let _encoded = wire::encode(&Event::<T>::Progress(now), &mut out);
                    }
                    None if silent >= TICKS_OF_SILENCE => out.push(b'\n'),
                    None => {}
                }
            }
        }
        if !out.is_empty() {
            silent = 0;
            if pieces.send(Bytes::from(out)).await.is_err() {
                return;
            }
        }
        if failed {
            // While the caller still sends, closing now could lose it the reason. It hangs up once it has read it.
            let _gone = tokio::time::timeout(linger, pieces.closed().map(|()| ())).await;
        }
        if failed || last {
            return;
        }
    }
}
