//! The driver over peers of a test, under the paused clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use bytes::Bytes;
use libp2p::identity::Keypair;
use p2p_protocol::Codec;

use super::*;

#[derive(Clone, Default, Debug)]
struct Behaviour {
    chunks: BTreeSet<Cid>,
    silent: bool,
    lies: bool,
}

#[derive(Default)]
struct Model {
    ranked: Vec<PeerId>,
    others: Vec<PeerId>,
    behaviour: BTreeMap<PeerId, Behaviour>,
    chunks: BTreeMap<Cid, Chunk>,
    asked: Mutex<Vec<(PeerId, Cid)>>,
    /// Asks that are under way: what is dropped is counted out.
    under_way: Arc<Mutex<usize>>,
}

struct Count(Arc<Mutex<usize>>);

impl Drop for Count {
    fn drop(&mut self) {
        *self.0.lock().expect("no test panics with it") -= 1;
    }
}

impl Peers for Model {
    async fn ranked(&self, _: Multihash, most: usize) -> Vec<PeerId> {
        self.ranked.iter().take(most).copied().collect()
    }

    async fn others(&self, _: Multihash) -> Vec<PeerId> {
        self.others.clone()
    }

    async fn ask(&self, peer: PeerId, cid: Cid) -> Result<Option<Chunk>, Refusal> {
        *self.under_way.lock().expect("no test panics with it") += 1;
        let _count = Count(self.under_way.clone());
        self.asked.lock().expect("no test panics with it").push((peer, cid));
        let behaviour = self.behaviour.get(&peer).cloned().unwrap_or_default();
        if behaviour.silent {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        if behaviour.lies {
            return Err(Refusal::Wrong);
        }
        Ok(behaviour.chunks.contains(&cid).then(|| self.chunks[&cid].clone()))
    }
}

fn peers(count: u8) -> Vec<PeerId> {
    (1..=count)
        .map(|seed| Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id())
        .collect()
}

fn chunk(number: u32) -> Chunk {
    Chunk::new(Codec::Raw, Bytes::copy_from_slice(&number.to_be_bytes())).expect("it is short")
}

fn start(model: Model) -> (Arc<Model>, mpsc::Sender<Order>) {
    let model = Arc::new(model);
    let (orders, inbox) = mpsc::channel(ORDERS);
    tokio::spawn(drive(model.clone(), 3, inbox));
    (model, orders)
}

#[tokio::test(start_paused = true)]
async fn chunks_come_from_whoever_has_them_around_the_silent_and_the_liars() {
    let ids = peers(6);
    let chunks: BTreeMap<Cid, Chunk> = (0..200).map(chunk).map(|chunk| (*chunk.cid(), chunk)).collect();
    let all: BTreeSet<Cid> = chunks.keys().copied().collect();
    let behaviour = BTreeMap::from([
        (ids[0], Behaviour { silent: true, ..Behaviour::default() }),
        (ids[1], Behaviour { lies: true, ..Behaviour::default() }),
        (ids[2], Behaviour { chunks: all.iter().copied().take(100).collect(), ..Behaviour::default() }),
        (ids[5], Behaviour { chunks: all.clone(), ..Behaviour::default() }),
    ]);
    let model = Model {
        ranked: ids[..5].to_vec(),
        others: vec![ids[5]],
        behaviour,
        chunks: chunks.clone(),
        ..Model::default()
    };
    let (model, orders) = start(model);
    let got = futures::future::join_all(all.iter().map(|cid| order(&orders, *cid, 4))).await;
    for (cid, got) in all.iter().zip(got) {
        let (chunk, from) = got.expect("somebody has it");
        assert_eq!(&chunk, &chunks[cid]);
        assert!(from == ids[2] || from == ids[5]);
    }
    let lies = model.asked.lock().expect("all is quiet").iter().filter(|(peer, _)| *peer == ids[1]).count();
    assert!(lies <= 4, "a liar was asked {lies} times: more than its first window");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_is_not_found_and_equal_orders_are_one() {
    let ids = peers(3);
    let (model, orders) = start(Model { ranked: ids.clone(), ..Model::default() });
    let cid = *chunk(1).cid();
    let got = futures::future::join_all((0..10).map(|_| order(&orders, cid, 4))).await;
    for got in got {
        assert_eq!(got, Err(FetchError::NotFound { cid, asked: 3 }));
    }
    assert_eq!(model.asked.lock().expect("all is quiet").len(), 3, "each peer was asked once for all ten");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_his_asks_with_him() {
    let ids = peers(1);
    let behaviour = BTreeMap::from([(ids[0], Behaviour { silent: true, ..Behaviour::default() })]);
    let (model, orders) = start(Model { ranked: ids, behaviour, ..Model::default() });
    let cid = *chunk(1).cid();
    let waited = tokio::time::timeout(Duration::from_millis(50), order(&orders, cid, 4)).await;
    assert!(waited.is_err());
    let under_way = model.under_way.clone();
    tokio::time::timeout(Duration::from_secs(1), async {
        while *under_way.lock().expect("all is quiet") > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the ask was let go");
}
