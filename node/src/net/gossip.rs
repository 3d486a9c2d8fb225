//! Gossip: topics, messages that wait for their verdict, and own messages that nobody could hear yet
//! (libp2p gossipsub v1.1).

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    PeerId,
    gossipsub::{self, IdentTopic, MessageAcceptance, MessageId, PublishError, TopicHash},
};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::{GossipMessage, NetError, Verdict, behaviour::MAX_GOSSIP_BYTES};

/// Messages without a verdict at once; with 64 KiB each at the most, and 4 KiB as a rule.
const MAX_UNDECIDED: usize = 512;
/// How long a verdict may take: gossipsub keeps the message for 12 s.
const VERDICT_WITHIN: Duration = Duration::from_secs(10);
/// Own messages that wait for their hearers; with 64 KiB each, 4 MiB.
const MAX_HELD: usize = 64;
/// How long a message waits for all connected peers to listen: gossipsub says it once, and their subscriptions follow
/// a connection within a round trip.
const HELD_FOR: Duration = Duration::from_millis(500);
/// How long it waits for anybody to listen; whoever comes later catches up.
const UNHEARD_FOR: Duration = Duration::from_secs(15);
/// Topics that this node joins.
const MAX_TOPICS: usize = 64;
/// What a verdict leads to.
#[derive(Debug)]
pub(super) struct Decided {
    message: MessageId,
    /// Who passed it on.
    pub from: PeerId,
    verdict: Verdict,
}

/// An own message that was not said yet.
struct Held {
    topic: IdentTopic,
    data: Bytes,
    /// Until then every connected peer should listen.
    all: Instant,
    /// Until then anybody should.
    until: Instant,
    /// It was not tried yet after [`all`](Self::all).
    waits: bool,
}

impl Held {
    /// Says it, if its hearers are there. True if it need not be said again.
    fn say(&self, gossipsub: &mut gossipsub::Behaviour, now: Instant) -> Result<bool, PublishError> {
        let topic = self.topic.hash();
        if now < self.all && gossipsub.all_peers().any(|(_, topics)| !topics.contains(&&topic)) {
            return Ok(false);
        }
        match gossipsub.publish(topic, self.data.clone()) {
            // What was said before need not be said again.
            Ok(_) | Err(PublishError::Duplicate) => Ok(true),
            Err(PublishError::NoPeersSubscribedToTopic) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Topics and messages.
#[derive(Default)]
pub(super) struct Gossip {
    topics: HashMap<TopicHash, mpsc::Sender<GossipMessage>>,
    undecided: FuturesUnordered<BoxFuture<'static, Decided>>,
    held: VecDeque<Held>,
}

impl Gossip {
    /// Joins a topic; a topic whose subscriber is gone can be joined again.
    pub fn subscribe(
        &mut self,
        gossipsub: &mut gossipsub::Behaviour,
        topic: &str,
        messages: mpsc::Sender<GossipMessage>,
    ) -> Result<(), NetError> {
        let refused = |reason: &str| NetError::Unreachable { subject: topic.to_owned(), reason: reason.to_owned() };
        let name = IdentTopic::new(topic);
        if self.topics.get(&name.hash()).is_some_and(|subscriber| !subscriber.is_closed()) {
            return Err(refused("it has a subscriber already"));
        }
        if self.topics.len() >= MAX_TOPICS && !self.topics.contains_key(&name.hash()) {
            return Err(refused("too many topics"));
        }
        gossipsub.subscribe(&name).map_err(|error| refused(&error.to_string()))?;
        self.topics.insert(name.hash(), messages);
        Ok(())
    }

    /// Says something. Nobody listening is not an error: it is said to the first who does within seconds.
    pub fn publish(
        &mut self,
        gossipsub: &mut gossipsub::Behaviour,
        topic: &str,
        data: Bytes,
        now: Instant,
    ) -> Result<(), NetError> {
        let refused = |reason: String| NetError::Unreachable { subject: topic.to_owned(), reason };
        if data.len() > MAX_GOSSIP_BYTES {
            return Err(refused(format!("a message of {} bytes is over {MAX_GOSSIP_BYTES}", data.len())));
        }
        let (all, until) = (now + HELD_FOR, now + UNHEARD_FOR);
        let held = Held { topic: IdentTopic::new(topic), data, all, until, waits: true };
        if !held.say(gossipsub, now).map_err(|error| refused(error.to_string()))? {
            if self.held.len() == MAX_HELD
                && let Some(mut oldest) = self.held.pop_front()
            {
                // Its time is up: to whoever listens now.
                oldest.all = now;
                let _ = oldest.say(gossipsub, now);
            }
            self.held.push_back(held);
        }
        Ok(())
    }

    /// An event of gossipsub.
    pub fn on_event(&mut self, gossipsub: &mut gossipsub::Behaviour, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                self.on_message(gossipsub, propagation_source, message_id, message);
            }
            gossipsub::Event::Subscribed { .. } => self.say_held(gossipsub, Instant::now()),
            _ => {}
        }
    }

    fn on_message(
        &mut self,
        gossipsub: &mut gossipsub::Behaviour,
        from: PeerId,
        id: MessageId,
        message: gossipsub::Message,
    ) {
        let (verdict, answer) = oneshot::channel();
        let heard = GossipMessage { data: message.data.into(), from, verdict };
        let full = self.undecided.len() >= MAX_UNDECIDED;
        let taken = match self.topics.get(&message.topic) {
            Some(subscriber) if !full => match subscriber.try_send(heard) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => false,
                Err(TrySendError::Closed(_)) => {
                    self.topics.remove(&message.topic);
                    gossipsub.unsubscribe(&IdentTopic::new(message.topic.into_string()));
                    false
                }
            },
            _ => false,
        };
        if !taken {
            gossipsub.report_message_validation_result(&id, &from, MessageAcceptance::Ignore);
            return;
        }
        self.undecided.push(
            async move {
                let verdict = match tokio::time::timeout(VERDICT_WITHIN, answer).await {
                    Ok(Ok(verdict)) => verdict,
                    _ => Verdict::Ignore,
                };
                Decided { message: id, from, verdict }
            }
            .boxed(),
        );
    }

    /// The next verdict; never, while none is waited for. Cancel-safe.
    pub async fn decided(&mut self) -> Decided {
        match self.undecided.next().await {
            Some(decided) => decided,
            None => std::future::pending().await,
        }
    }

    /// Acts on a verdict. True if the peer that passed the message on is at fault: whether a message is valid does not depend
    /// on who looks or when, so that nobody honest passes on what is not.
    pub fn on_decided(&mut self, gossipsub: &mut gossipsub::Behaviour, decided: &Decided) -> bool {
        let acceptance = match decided.verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        gossipsub.report_message_validation_result(&decided.message, &decided.from, acceptance);
        decided.verdict == Verdict::Reject
    }

    /// When [`say_held`](Self::say_held) has something to do.
    pub fn due(&self) -> Option<Instant> {
        // What is still held when its hearers should all be there waits for the first that comes.
        let due = |held: &Held| if held.waits { held.all } else { held.until };
        self.held.iter().map(due).min()
    }

    /// Says what waited long enough, and drops what nobody came to hear.
    pub fn say_held(&mut self, gossipsub: &mut gossipsub::Behaviour, now: Instant) {
        self.held.retain_mut(|held| {
            held.waits &= now < held.all;
            match held.say(gossipsub, now) {
                Ok(said) => !said && held.until > now,
                Err(error) => {
                    tracing::warn!(topic = %held.topic, "a message could not be said: {error}");
                    false
                }
            }
        });
    }
}
