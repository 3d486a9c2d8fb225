//! From a request to a verb, and from its outcome to events: one way for all of them.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRequest as _, Request, State},
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use futures::{FutureExt as _, Stream, StreamExt as _, TryFutureExt as _, TryStreamExt as _, future::ready, stream};
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::{io::StreamReader, task::AbortOnDropHandle};

use super::{
    answer::Answer,
    server::Stop,
    wire::{self, Event},
};
use crate::{
    error::{Error, Kind, Result},
    front::verbs::{self, Answers, Call, Content, Items, Table, Verb},
    report,
    service::progress::Progress,
};

/// The longest JSON body of a request: paths and references, a few KiB each at the most.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Pieces that wait for a slow caller; `cat` and lists wait with them.
const PIECES: usize = 8;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How many such ticks pass before something is sent where there is nothing to tell: it finds callers that are gone.
const TICKS_OF_SILENCE: u32 = 25;
/// How long the connection of a failed `add -` stays, for its caller to read why, where it still sends.
const LINGER: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Api<N> {
    node: N,
    stop: Stop,
}

/// Puts each verb under its path.
struct Routes<N>(Router<Api<N>>);

impl<N: Answers> Table for Routes<N> {
    fn verb<V: Verb>(&mut self) {
        let path = [wire::PREFIX, V::PATH].concat();
        self.0 = std::mem::take(&mut self.0).route(&path, post(serve::<V, N>));
    }
}

/// The router of every verb, answered by `node`.
pub(super) fn router<N: Answers>(node: N, stop: Stop) -> Router {
    let mut routes = Routes(Router::new());
    verbs::table(&mut routes);
    routes
        .0
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(axum::middleware::map_response(|mut response: Response| async move {
            let version = HeaderValue::from_static(wire::VERSION);
            response.headers_mut().insert(HeaderName::from_static(wire::VERSION_HEADER), version);
            response
        }))
        .with_state(Api { node, stop })
}

/// Reads a request and what comes with it; one that cannot be read is answered by itself.
async fn read<V: Verb>(request: Request) -> std::result::Result<(V, Option<Content>), Response> {
    if !V::SENDS_CONTENT {
        return match Json::from_request(request, &()).await {
            Ok(Json(verb)) => Ok((verb, None)),
            Err(rejection) => Err(refused(rejection.status(), &rejection.body_text())),
        };
    }
    let options = request.headers().get(wire::OPTIONS_HEADER);
    let Some(Ok(verb)) = options.map(|value| serde_json::from_slice(value.as_bytes())) else {
        return Err(refused(StatusCode::BAD_REQUEST, "its options are missing or malformed"));
    };
    // The body's end is only reached by a caller that sent all of it: one that dies in the middle gives an error here.
    let content = StreamReader::new(request.into_body().into_data_stream().map_err(std::io::Error::other));
    Ok((verb, Some(Box::new(content))))
}

async fn serve<V: Verb, N: Answers>(State(api): State<Api<N>>, request: Request) -> Response {
    let (verb, content) = match read::<V>(request).await {
        Ok(read) => read,
        Err(refusal) => return refusal,
    };
    let (sender, progress) = watch::channel(Progress::default());
    let Api { node, stop } = api;
    let work = node.answer(verb, Call { progress: sender, content });
    let tasks = node.tasks().clone();
    // In a task of its own: a caller that stops reading (Ctrl-Z) holds up the events, and a verb that is no longer polled
    // would keep its places in the queues that it shares with all others.
    let work = AbortOnDropHandle::new(tasks.task(work));
    let work = async move {
        match work.await {
            Ok(Some(done)) => done,
            Err(why) if why.is_panic() => resume_unwind(why.into_panic()),
            Ok(None) | Err(_) => Err(stopped()),
        }
    };
    let mut items: Items<V::Answer> = caught(work.try_flatten_stream()).boxed();
    if V::UNTIL_STOPPED {
        let end = stream::once(ready(Err(Error::new(Kind::NoDaemon, "The daemon was stopped"))));
        items = items.take_until(stop.stopping.clone().cancelled_owned()).chain(end).boxed();
    }
    let linger = if V::SENDS_CONTENT { LINGER } else { Duration::ZERO };
    let (pieces, receiver) = mpsc::channel(PIECES);
    drop(tasks.task(pump(items, progress, pieces, stop, linger)));
    answer(V::Answer::CONTENT_TYPE, receiver)
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

fn answer(content_type: &'static str, pieces: mpsc::Receiver<Bytes>) -> Response {
    let body = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), pieces))
    });
    ([(axum::http::header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response()
}

/// Sends items and progress until the last item, a failure, the stop of the daemon, or the caller's going away, which
/// drops `items` and so ends the verb. `linger`: how long the connection is kept after a failure.
async fn pump<T: Answer>(
    items: Items<T>,
    mut progress: watch::Receiver<Progress>,
    pieces: mpsc::Sender<Bytes>,
    stop: Stop,
    linger: Duration,
) {
    let mut items = items.ready_chunks(T::AT_ONCE);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent = 0;
    loop {
        let mut events = Vec::new();
        tokio::select! {
            biased;
            () = pieces.closed() => return,
            () = stop.cancelled.cancelled() => events.push(Event::Error(stopped())),
            next = items.next() => match next {
                None => events.push(Event::End {}),
                Some(items) => {
                    for item in items {
                        let event = item.map_or_else(Event::Error, Event::Result);
                        let failed = matches!(event, Event::Error(_));
                        events.push(event);
                        if failed {
                            break;
                        }
                    }
                }
            },
            _ = ticks.tick() => {
                silent += 1;
                if progress.has_changed().unwrap_or(false) {
                    events.push(Event::Progress(report::Progress::of(&progress.borrow_and_update())));
                } else if silent < TICKS_OF_SILENCE {
                    continue;
                }
            }
        }
        silent = 0;
        let failed = matches!(events.last(), Some(Event::Error(_)));
        let last = failed || matches!(events.last(), Some(Event::End {}));
        let out = match T::encode(events) {
            Ok(out) => out,
            Err(error) => {
                tracing::error!(%error, "an answer could not be written as JSON");
                return;
            }
        };
        for piece in out {
            if pieces.send(piece).await.is_err() {
                return;
            }
        }
        if failed {
            // While the caller still sends, closing now could lose it the reason. It hangs up once it has read it.
            let _gone = tokio::time::timeout(linger, pieces.closed().map(|()| ())).await;
        }
        if last {
            return;
        }
    }
}
