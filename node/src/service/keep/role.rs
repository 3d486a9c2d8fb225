//! What the keeper says when it is asked: what a chunk is to this node, and what may be freed.
//!
//! It alone knows: who is near, who is full, who was found to lack what. It answers between two inputs.

use std::time::Duration;

use p2p_protocol::{
    Key, Multihash,
    duty::{Keeper, Moment, Row, SCAN_ROWS, keeper::Role},
};
use tokio::{sync::oneshot, time::timeout};

use super::{Keep, KeepError};
use crate::{runner::now, store::StoreError};

/// The keeper answers between two inputs, once the first round of discovery is over, which has ten seconds; without an
/// answer there is no table.
const ANSWERING: Duration = Duration::from_secs(30);

/// What a chunk that is here is to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// It is this node's duty to hold it, or a user pinned it here.
    Replica,
    /// Something lists it, and others should hold it.
    Cache,
    /// Nothing lists it: not yet, or not any more.
    Pending,
}

impl From<Role> for Part {
    fn from(role: Role) -> Self {
        match role {
            Role::Duty => Self::Replica,
            Role::Cached => Self::Cache,
            Role::Unlisted => Self::Pending,
        }
    }
}

/// What the keeper is asked, and where the answer goes.
#[derive(Debug)]
pub(super) enum Question {
    /// What was unlisted before which time may be freed; `None`: nothing may.
    Freeable(oneshot::Sender<Option<Moment>>),
    /// What these rows are to this node, in their order.
    Roles(Vec<Row>, oneshot::Sender<Vec<Role>>),
}

impl Question {
    /// Answers it; whoever asked may be gone.
    pub(super) fn answer(self, keeper: &Keeper) {
        let now = now();
        match self {
            Self::Freeable(answer) => drop(answer.send(keeper.freeable_before(now))),
            Self::Roles(rows, answer) => {
                let role = |row: &Row| keeper.role(now, &row.entry.key(), row);
                drop(answer.send(rows.iter().map(role).collect()));
            }
        }
    }
}

impl Keep {
    /// What each of these chunks is to this node, and how many copies are wanted of it (0 where nothing lists it).
    ///
    /// # Errors
    /// Of the store; and where the table is being made.
    pub async fn parts(&self, hashes: Vec<Multihash>) -> Result<Vec<(Part, u8)>, KeepError> {
        let wanted = self.around.wanted.clone();
        let step = move || hashes.iter().map(|hash| wanted.row(&Key::from(hash))).collect::<Result<Vec<_>, _>>();
        let rows = self.around.blocking.run(step).await.map_err(StoreError::from)??;
        let listed: Vec<Row> = rows.iter().flatten().filter(|row| row.is_needed()).cloned().collect();
        let mut roles = self.roles(listed).await?.into_iter();
        let part = |row: Option<Row>| match row {
            Some(row) if row.is_needed() => (roles.next().map_or(Part::Pending, Part::from), row.copies()),
            _ => (Part::Pending, 0),
        };
        Ok(rows.into_iter().map(part).collect())
    }

    /// What rows are to this node, in their order.
    pub(super) async fn roles(&self, rows: Vec<Row>) -> Result<Vec<Role>, KeepError> {
        let (mut roles, mut rows) = (Vec::with_capacity(rows.len()), rows.into_iter().peekable());
        while rows.peek().is_some() {
            // So that the keeper is not held up for long.
            let page = rows.by_ref().take(SCAN_ROWS).collect();
            roles.extend(self.ask(|answer| Question::Roles(page, answer)).await?);
        }
        Ok(roles)
    }

    /// Has the keeper answer; cancel-safe.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, KeepError> {
        let (asking, answer) = oneshot::channel();
        let asked = async {
            self.questions.send(question(asking)).await.ok()?;
            answer.await.ok()
        };
        timeout(ANSWERING, asked).await.ok().flatten().ok_or(KeepError::NoTable)
    }
}
