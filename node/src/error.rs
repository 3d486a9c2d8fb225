//! What a user is told when something fails: what, on what, why, and what to do next.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of a failure: its exit code, and `error.kind` in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Any other cause: exit code 1.
    Failed,
    /// A bad flag, CID, multiaddr or name: 2.
    Usage,
    /// No daemon answers on this data directory: 3.
    NoDaemon,
    /// No reachable peer has it, or there is no such path in it: 4.
    NotFound,
    /// Kept, but peers that should hold a copy did not take it: 5.
    UnderReplicated,
    /// No space, quota, not permitted: 6.
    Refused,
}

impl Kind {
    /// The exit code of the contract.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NoDaemon => 3,
            Self::NotFound => 4,
            Self::UnderReplicated => 5,
            Self::Refused => 6,
        }
    }
}

/// A failure as a user sees it. `message` is whole sentences without a final newline; `hint` says what to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Error {
    /// Which exit code it gives.
    pub kind: Kind,
    /// What failed, on what and why.
    pub message: String,
    /// What to do next, where there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Error {
    /// A failure of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// Any other cause.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// Bad input from the user.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Nobody has it.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Refused by policy.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// The same failure with what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// What the node's verbs give.
pub type Result<T, E = Error> = std::result::Result<T, E>;
