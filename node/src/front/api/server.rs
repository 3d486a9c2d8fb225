//! Serves the local API until it is told to stop.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{routes, socket::Socket};
use crate::front::verbs::Answers;

/// Connections at once: a script that starts a command for each of its files, many at a time, still fits (a guess).
const MAX_CONNECTIONS: usize = 256;
/// Headers of a request: the command line sends six.
const MAX_HEADERS: usize = 32;
/// Bytes that are read ahead of a connection: a head of [`super::wire::OPTIONS_HEADER`] with the longest name fits well.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long is waited after the system refused a connection (out of file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// When the API stops.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// No new verbs, and those that run until they are stopped (`watch`) end; others go on.
    pub stopping: CancellationToken,
    /// Every verb is cancelled.
    pub cancelled: CancellationToken,
}

/// Serves what `node` answers on `socket` until `stop.stopping`; verbs that are under way then get `grace` to end, and those that do
/// not are cancelled, and say so to their callers. The socket is gone when this returns.
pub async fn serve<N: Answers>(socket: Socket, node: N, stop: Stop, grace: Duration) {
    let router = routes::router(node, stop.clone());
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.stopping.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            // The semaphore is never closed, so a permit always comes.
            accepted = async { (permits.clone().acquire_owned().await.ok(), socket.accept().await) } => accepted,
        };
        match accepted {
            (permit, Ok(stream)) => {
                let (router, stopping) = (router.clone(), stop.stopping.clone());
                connections.spawn(async move {
                    let _held_until_the_end = permit;
                    connection(stream, router, stopping).await;
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "the local socket refused a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(socket);
    drain(&mut connections, grace).await;
    stop.cancelled.cancel();
    // Long enough for the cancelled to tell their callers.
    drain(&mut connections, Duration::from_secs(1)).await;
}

async fn drain(connections: &mut JoinSet<()>, within: Duration) {
    let deadline = Instant::now() + within;
    while let Ok(Some(_ended)) = timeout_at(deadline, connections.join_next()).await {}
}

async fn connection(stream: tokio::net::UnixStream, router: Router, stopping: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        // A caller that went away: nothing to do, it cancelled its verb by that.
        tracing::debug!(%error, "a local connection ended early");
    }
}
