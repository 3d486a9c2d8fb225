//! Round trips over a real socket, against a node that answers as each test wants.

use std::{
    any::Any,
    collections::BTreeMap,
    future::ready,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use p2p_protocol::{Cid, Codec};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
    task::JoinHandle,
};

use super::{
    answer::Piece,
    client::Client,
    server::{Stop, serve},
    socket::Socket,
    wire::{self, WirePath},
};
use crate::{
    error::{Error, Kind, Result},
    front::verbs::{
        Answering, Answers, Call, Items, Verb,
        add::{AddRequest, AddStreamRequest},
        cat::CatRequest,
        connect::ConnectRequest,
        get::GetRequest,
        ls::LsRequest,
        stat::{StatLocalRequest, StatPart, StatRequest},
        watch::WatchRequest,
    },
    report::{AddOptions, Added, CatalogueLine, Copies, EntryKind, Got, LocalChunk, Update},
    service::{
        inspect::{self, Survey},
        worker::Layer,
    },
};

/// What the fake remembers of what was asked.
#[derive(Default)]
struct Seen {
    options: Option<AddOptions>,
    get: Option<GetRequest>,
}

/// A node without a store or a network.
#[derive(Clone)]
struct Fake {
    tasks: Layer,
    seen: Arc<std::sync::Mutex<Seen>>,
    /// Verbs that never end by themselves and are running now.
    running: Arc<AtomicUsize>,
    started: Arc<Notify>,
    failing: Arc<AtomicBool>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            tasks: Layer::alone(),
            seen: Arc::default(),
            running: Arc::default(),
            started: Arc::default(),
            failing: Arc::default(),
        }
    }
}

/// Counts a verb for as long as it is not dropped.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn run(&self) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.started.notify_one();
        Running(self.running.clone())
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn added(path: String, size: u64) -> Added {
    Added {
        cid: "bafy".to_owned(),
        path,
        size,
        chunks: 1,
        chunks_new: 1,
        replicas: Copies { wanted: 3, min: 2 },
        seconds: 0.5,
        warnings: vec!["two of three".to_owned()],
        short: None,
    }
}

impl Answers for Fake {
    fn tasks(&self) -> &Layer {
        &self.tasks
    }

    /// By the request's type; the answer's follows from that.
    fn answer<V: Verb>(&self, verb: V, call: Call) -> Answering<V::Answer> {
        let answering = self.any(&verb, call);
        async move {
            let items = answering.await?;
            let typed = |item: Box<dyn Any + Send>| *item.downcast().expect("an answer of this verb");
            Ok(items.map(move |item| item.map(typed)).boxed())
        }
        .boxed()
    }
}

type Anything = Box<dyn Any + Send>;

fn any<T: Send + 'static>(item: T) -> Anything {
    Box::new(item)
}

fn items<T: Send + 'static>(items: Vec<T>) -> Items<Anything> {
    stream::iter(items.into_iter().map(|item| Ok(any(item)))).boxed()
}

fn at_once<T: Send + 'static>(answer: Vec<T>) -> Answering<Anything> {
    ready(Ok(items(answer))).boxed()
}

impl Fake {
    fn any(&self, verb: &dyn Any, call: Call) -> Answering<Anything> {
        let fake = self.clone();
        if let Some(add) = verb.downcast_ref::<AddRequest>() {
            let add = add.clone();
            return async move { fake.add(add, call).await.map(|added| items(vec![added])) }.boxed();
        }
        if let Some(add) = verb.downcast_ref::<AddStreamRequest>() {
            let options = add.options.clone();
            return async move { fake.add_stream(options, call).await.map(|added| items(vec![added])) }.boxed();
        }
        if let Some(get) = verb.downcast_ref::<GetRequest>() {
            self.seen().get = Some(get.clone());
            let from = BTreeMap::new();
            return at_once(vec![Got {
                cid: "c".into(),
                path: "/p".into(),
                size: 1,
                seconds: 0.1,
                chunks: 1,
                from,
                labels: BTreeMap::new(),
            }]);
        }
        if let Some(CatRequest { reference, offset, length, .. }) = verb.downcast_ref() {
            let piece = || any(Piece(vec![b'x'; 3 << 20].into()));
            let content: Result<Items<Anything>> = match reference.as_str() {
                "absent" => Err(Error::not_found("nobody has it")),
                "breaks" => Ok(stream::iter([Ok(piece()), Err(Error::not_found("nobody has the rest"))]).boxed()),
                "panics" => Ok(stream::iter([0]).map(|_| panic!("a bug")).boxed()),
                _ => Ok(stream::iter([Ok(any(Piece(format!("{offset} {length:?}").into()))), Ok(piece())]).boxed()),
            };
            return ready(content).boxed();
        }
        if verb.is::<LsRequest>() {
            let line = |n| CatalogueLine {
                name: format!("n{n}"),
                cid: "c".into(),
                kind: EntryKind::File,
                size: n,
                publisher: "p".into(),
                publisher_label: None,
                version: 1,
                updated: "t".into(),
                pinned: None,
            };
            return at_once((0..1000).map(line).collect());
        }
        if let Some(StatRequest { reference, placement, .. }) = verb.downcast_ref() {
            let root = Cid::of(Codec::Raw, reference.as_bytes());
            let row = |bytes| inspect::Copies { cid: root, bytes, holders: Vec::new(), cached: Vec::new() };
            let survey = Survey {
                root,
                kind: p2p_protocol::catalogue::Kind::Directory,
                size: 9,
                chunks: 5000,
                wanted: 3,
                min: 1,
                max: 3,
                holders: BTreeMap::new(),
                placement: placement.then(|| (0..5000).map(row).collect()),
            };
            return at_once(StatPart::of(survey, |_| None).collect());
        }
        if verb.is::<StatLocalRequest>() {
            let row = |n: u64| LocalChunk { cid: "c".into(), size: n, role: "replica".into(), wanted: 3 };
            let failure = stream::once(ready(Err(Error::failed("the disk failed"))));
            return ready(Ok(items((0..1000).map(row).collect()).chain(failure).boxed())).boxed();
        }
        if verb.is::<WatchRequest>() {
            let running = self.run();
            let update = Update {
                event: "added".into(),
                cid: "c".into(),
                name: "n".into(),
                size: 1,
                publisher: "p".into(),
                publisher_label: None,
                version: 1,
                time: "t".into(),
                position: 1,
            };
            let endless = items(vec![update]).chain(stream::pending()).map(move |u| (u, &running).0);
            return ready(Ok(endless.boxed())).boxed();
        }
        ready(Err(Error::failed("no test asks this"))).boxed()
    }

    async fn add(&self, add: AddRequest, call: Call) -> Result<Added> {
        self.seen().options = Some(add.options);
        match add.shown.as_str() {
            "panic" => panic!("a bug"),
            "slow" => {
                let _running = self.run();
                call.progress.send_modify(|p| p.bytes = 7);
                std::future::pending().await
            }
            "chatty" => {
                let _running = self.run();
                for round in 0..20 {
                    call.progress.send_modify(|p| p.current = Some(format!("{round}{}", "x".repeat(1 << 20))));
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Ok(added(add.shown, 5))
            }
            "missing" => Err(Error::failed("there is no such file").hint("look again")),
            _ => Ok(added(add.shown, 5)),
        }
    }

    async fn add_stream(&self, options: AddOptions, call: Call) -> Result<Added> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(Error::refused("there is no room"));
        }
        self.seen().options = Some(options);
        let _running = self.run();
        let mut content = call.content.expect("it was sent");
        let mut size = 0;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = content.read(&mut buffer).await.map_err(|error| Error::failed(error.to_string()))?;
            if read == 0 {
                return Ok(added("-".to_owned(), size));
            }
            size += read as u64;
            call.progress.send_modify(|p| p.bytes = size);
        }
    }
}

/// A served fake.
struct Served {
    fake: Fake,
    client: Client,
    stop: Stop,
    task: JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Served {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let socket = Socket::bind(dir.path()).await.expect("a fresh directory has room for a socket");
        let (fake, stop) = (Fake::default(), Stop::default());
        let task = tokio::spawn(serve(socket, fake.clone(), stop.clone(), Duration::from_millis(100)));
        Self { fake, client: Client::new(dir.path()), stop, task, dir }
    }

    async fn add(&self, shown: &str) -> Result<Added> {
        let request = AddRequest {
            path: WirePath(PathBuf::from("/a")),
            shown: shown.to_owned(),
            options: AddOptions { name: Some("grün\u{7f}".to_owned()), ..AddOptions::default() },
        };
        let mut events = self.client.call(&request).await?;
        events.next(|_| {}).await?.ok_or_else(|| Error::failed("no result"))
    }

    /// Waits until no endless verb runs any more.
    async fn idle(&self) {
        tokio::time::timeout(Duration::from_secs(20), async {
            while self.fake.running.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the verb is cancelled");
    }
}

#[tokio::test]
async fn add_carries_its_options_and_its_outcome() {
    let served = Served::start().await;
    let added = served.add("a.txt").await.expect("the fake adds it");
    assert_eq!((added.path.as_str(), added.warnings.len()), ("a.txt", 1));
    let options = served.fake.seen().options.clone();
    assert_eq!(options.and_then(|o| o.name).as_deref(), Some("grün\u{7f}"));
    let failed = served.add("missing").await;
    assert_eq!(failed, Err(Error::failed("there is no such file").hint("look again")));
    let bug = served.add("panic").await;
    assert!(
        bug.is_err_and(|e| e.kind == Kind::Failed && e.message.contains("unexpected") && !e.message.contains("a bug"))
    );
    assert!(served.add("still").await.is_ok(), "the daemon goes on serving");
}

#[tokio::test]
async fn paths_that_are_not_utf8_arrive() {
    use std::os::unix::ffi::OsStringExt as _;
    let served = Served::start().await;
    let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/d/\xff\xfe".to_vec()));
    let request = GetRequest {
        reference: "r".into(),
        output: Some(WirePath(odd.clone())),
        directory: WirePath("/plain".into()),
        force: true,
        fresh: true,
    };
    let mut events = served.client.call(&request).await.expect("it answers");
    assert!(events.next(|_| {}).await.is_ok_and(|got| got.is_some()));
    let seen = served.fake.seen().get.clone().expect("it was asked");
    assert_eq!((seen.output, seen.directory, seen.force), (Some(WirePath(odd)), WirePath("/plain".into()), true));
}

#[tokio::test]
async fn progress_is_told_and_hanging_up_cancels() {
    let served = Served::start().await;
    let request = AddRequest { path: WirePath("/a".into()), shown: "slow".into(), options: AddOptions::default() };
    let mut events = served.client.call(&request).await.expect("it answers");
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    {
        let mut next = Box::pin(events.next(|now| {
            let _first = told.try_send(now.bytes);
        }));
        tokio::select! {
            _ = next.as_mut() => panic!("it never ends"),
            bytes = heard.recv() => assert_eq!(bytes, Some(7)),
        }
    }
    assert_eq!(served.fake.running.load(Ordering::SeqCst), 1);
    drop(events);
    served.idle().await;
}

#[tokio::test]
async fn a_caller_that_stops_reading_does_not_hold_up_its_verb() {
    let served = Served::start().await;
    let request = AddRequest { path: WirePath("/a".into()), shown: "chatty".into(), options: AddOptions::default() };
    let mut events = served.client.call(&request).await.expect("it answers");
    served.fake.started.notified().await;
    // Many megabytes of progress later, of which nobody read any.
    served.idle().await;
    let added = events.next(|_| {}).await.expect("it was added").expect("there is a result");
    assert_eq!(added.path, "chatty");
}

#[tokio::test]
async fn a_streamed_body_arrives_whole_or_fails() {
    let served = Served::start().await;
    let options = AddOptions { name: Some("日本\u{1b}".into()), replicas: Some(2), ..AddOptions::default() };
    let pieces = (0..64).map(|_| Ok(Bytes::from(vec![1; 100_000])));
    let mut events = served
        .client
        .call_with(&AddStreamRequest { options: options.clone() }, stream::iter(pieces))
        .await
        .expect("it answers");
    let added = events.next(|_| {}).await.expect("it is added").expect("there is a result");
    assert_eq!(added.size, 6_400_000);
    assert_eq!(events.next(|_| {}).await, Ok(None));
    assert_eq!(served.fake.seen().options.clone(), Some(options));
}

#[tokio::test]
async fn a_sender_that_fails_in_the_middle_cancels_its_add() {
    let served = Served::start().await;
    let pieces = stream::iter([Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("the pipe broke"))]);
    let outcome = match served.client.call_with(&AddStreamRequest { options: AddOptions::default() }, pieces).await {
        Ok(mut events) => events.next(|_| {}).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(outcome.is_err());
    served.idle().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_sender_that_has_not_finished() {
    let served = Served::start().await;
    served.fake.failing.store(true, Ordering::SeqCst);
    let endless = stream::repeat_with(|| Ok(Bytes::from(vec![1; 100_000])));
    let mut events = served
        .client
        .call_with(&AddStreamRequest { options: AddOptions::default() }, endless)
        .await
        .expect("the answer begins");
    assert_eq!(events.next(|_| {}).await, Err(Error::refused("there is no room")));
}

#[tokio::test]
async fn cat_gives_the_bytes_and_says_how_it_ended() {
    let served = Served::start().await;
    let read = async |reference: &str| {
        let request = CatRequest { reference: reference.to_owned(), offset: 5, length: Some(6), fresh: false };
        let mut content = served.client.content(&request).await?;
        let mut out = Vec::new();
        loop {
            match content.next().await {
                Ok(Some(bytes)) => out.extend_from_slice(&bytes),
                Ok(None) => return Ok::<_, Error>((out, None)),
                Err(error) => return Ok((out, Some(error))),
            }
        }
    };
    let (bytes, end) = read("whole").await.expect("it answers");
    assert!(bytes.starts_with(b"5 Some(6)xxx") && bytes.len() == (3 << 20) + 9 && end.is_none());
    let (bytes, end) = read("breaks").await.expect("it answers");
    assert_eq!((bytes.len(), end.map(|e| e.kind)), (3 << 20, Some(Kind::NotFound)));
    let (bytes, end) = read("absent").await.expect("it answers");
    assert_eq!((bytes.len(), end.map(|e| e.kind)), (0, Some(Kind::NotFound)));
    let (_, end) = read("panics").await.expect("it answers");
    assert_eq!(end.map(|e| e.kind), Some(Kind::Failed));
}

#[tokio::test]
async fn lists_come_whole_and_failures_after_them() {
    let served = Served::start().await;
    let mut lines = served.client.call(&LsRequest {}).await.expect("it answers");
    let mut sizes = 0;
    while let Some(line) = lines.next(|_| {}).await.expect("it does not fail") {
        assert_eq!(line.size, sizes);
        sizes += 1;
    }
    assert_eq!(sizes, 1000);
    let mut chunks = served.client.call(&StatLocalRequest {}).await.expect("it answers");
    let mut seen = 0;
    let failed = loop {
        match chunks.next(|_| {}).await {
            Ok(Some(_)) => seen += 1,
            other => break other,
        }
    };
    assert_eq!((seen, failed), (1000, Err(Error::failed("the disk failed"))));
}

#[tokio::test]
async fn stat_comes_in_parts() {
    let served = Served::start().await;
    for placement in [true, false] {
        let request = StatRequest { reference: "r".into(), placement, fresh: true };
        let mut parts = served.client.call(&request).await.expect("it answers");
        let Ok(Some(StatPart::Stat(stat))) = parts.next(|_| {}).await else { panic!("the summary is first") };
        assert_eq!(stat.placement, placement.then(Vec::new));
        let mut rows = 0;
        while let Some(part) = parts.next(|_| {}).await.expect("it does not fail") {
            assert!(matches!(part, StatPart::Placement(_)));
            rows += 1;
        }
        assert_eq!(rows, if placement { 5000 } else { 0 });
    }
}

#[tokio::test]
async fn stopping_ends_watches_and_cancels_what_takes_too_long() {
    let served = Served::start().await;
    let mut watching = served.client.call(&WatchRequest::default()).await.expect("it answers");
    assert!(watching.next(|_| {}).await.is_ok_and(|update| update.is_some()));
    let request = AddRequest { path: WirePath("/a".into()), shown: "slow".into(), options: AddOptions::default() };
    let mut adding = served.client.call(&request).await.expect("it answers");
    while served.fake.running.load(Ordering::SeqCst) < 2 {
        served.fake.started.notified().await;
    }
    served.stop.stopping.cancel();
    let ended = watching.next(|_| {}).await;
    assert_eq!(ended.map_err(|e| e.kind), Err(Kind::NoDaemon));
    let cancelled = adding.next(|_| {}).await;
    assert!(cancelled.is_err_and(|e| e.message.contains("stopped before")));
    served.idle().await;
    served.task.await.expect("the server ends");
    let gone = served.client.check().await;
    assert_eq!(gone.map_err(|e| e.kind), Err(Kind::NoDaemon));
    assert!(!served.dir.path().join("socket").exists());
}

/// Sends bytes as they are and gives the answer, as text.
async fn raw(dir: &Path, bytes: &[u8]) -> String {
    let mut stream = super::socket::connect(dir).await.expect("it is served");
    // What is refused may be refused before all of it is sent.
    let _refused = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _cut = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_others_are_still_served() {
    let served = Served::start().await;
    let dir = served.dir.path();
    let close = "Connection: close\r\nHost: x\r\nContent-Type: application/json\r\n";
    let unknown = raw(dir, format!("POST /v1/fly HTTP/1.1\r\n{close}Content-Length: 2\r\n\r\n{{}}").as_bytes()).await;
    assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains(wire::VERSION_HEADER), "{unknown}");
    let malformed = raw(dir, format!("POST /v1/add HTTP/1.1\r\n{close}Content-Length: 2\r\n\r\n{{}}").as_bytes()).await;
    assert!(malformed.starts_with("HTTP/1.1 4") && malformed.contains("cannot read this request"), "{malformed}");
    let long = format!("POST /v1/cat HTTP/1.1\r\n{close}Content-Length: 10000000\r\n\r\n{}", "x".repeat(10_000_000));
    assert!(raw(dir, long.as_bytes()).await.starts_with("HTTP/1.1 413"));
    let headers: String = (0..100).map(|n| format!("h{n}: x\r\n")).collect();
    let many = raw(dir, format!("POST /v1/ls HTTP/1.1\r\n{headers}\r\n").as_bytes()).await;
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    assert!(raw(dir, b"\x16\x03\x01 garbage\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let missing = raw(dir, b"POST /v1/add-stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(missing.contains("options"), "{missing}");
    assert!(served.add("still").await.is_ok());
}

#[tokio::test]
async fn a_daemon_of_another_version_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let socket = Socket::bind(dir.path()).await.expect("a fresh directory has room for a socket");
    let server = tokio::spawn(async move {
        for answer in [
            "HTTP/1.1 404 Not Found\r\np2p-node-version: 0.0.9\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\np2p-node-version: 0.0.9\r\ncontent-length: 12\r\n\r\n{\"odd\":true}",
            "HTTP/1.1 200 OK\r\np2p-node-version: 0.0.9\r\ncontent-length: 28\r\n\r\n{\"result\":\"id\"}\n{\"end\":{}}\n\n",
        ] {
            let mut stream = socket.accept().await.expect("it is asked");
            let mut head = vec![0; 4096];
            let _read = stream.read(&mut head).await;
            stream.write_all(answer.as_bytes()).await.expect("it is read");
        }
    });
    let client = Client::new(dir.path());
    let says = |error: Error| error.to_string().contains("the daemon is version 0.0.9");
    let unknown = client.call(&ConnectRequest { address: String::new() }).await.map(|_| ());
    assert!(unknown.is_err_and(says));
    let mut unread = client.call(&ConnectRequest { address: String::new() }).await.expect("it answers");
    assert!(unread.version_difference().is_some());
    assert!(unread.next(|_| {}).await.is_err());
    let mut fine = client.call(&ConnectRequest { address: String::new() }).await.expect("it answers");
    assert_eq!(fine.next(|_| {}).now_or_never(), Some(Ok(Some("id".to_owned()))));
    server.await.expect("it served all");
}
