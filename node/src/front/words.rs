//! What a user is told of the failures of the rooms: which exit code, and what to do next.
//!
//! The rooms say what failed and why, in sentences of their own; here stands how each is told, and nowhere else.

use crate::{
    error::{Error, Kind},
    identity::IdentityError,
    net::NetError,
    node::NodeError,
    service::{
        blocking::Unfinished,
        catalogue::{PublishError, SinceError, StartError},
        export::WriteError,
        ingest::AddError,
        inspect::ReadError,
        keep::KeepError,
        pin::PinError,
        scrub::VerifyError,
    },
    store::StoreError,
};

/// Of what cannot be read because the index has no room.
const FREE_SPACE: &str = "free some space on the disk of the data directory: what is there can be read again then";

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        let message = error.to_string();
        match error {
            ReadError::NamesNothing(_) => {
                Self::usage(message).hint("give a CID, CID/path/inside, NAME, NAME@VERSION or PEER/NAME")
            }
            ReadError::BadCid { .. } | ReadError::Dots { .. } => Self::usage(message),
            ReadError::NoCid(_) => Self::usage(message).hint("check that all of it was copied"),
            ReadError::OnlyPeer(_) => {
                Self::usage(message).hint("write PEER/NAME; `p2p-node ls` shows what each peer published")
            }
            ReadError::Ambiguous { .. } => Self::usage(message).hint("write one of these"),
            ReadError::UnknownName(_) => {
                Self::not_found(message).hint("`p2p-node ls` shows what there is; a CID works without a name")
            }
            ReadError::OnlyLabel { .. } => Self::not_found(message)
                .hint("what has no name goes by its CID; `p2p-node add --name` publishes under a name"),
            ReadError::UnknownRoot(_) => Self::not_found(message).hint("`p2p-node ls` shows what there is"),
            ReadError::Removal { .. } => {
                Self::not_found(message).hint("`p2p-node history` shows which versions are kept")
            }
            ReadError::FreshRoot(_) => Self::usage(message).hint("leave --fresh out"),
            ReadError::NotFresh { .. } => Self::not_found(message).hint(
                "try again when they are back; for PEER/NAME that peer's own answer is enough; without --fresh the \
                 newest version that is known here is used",
            ),
            ReadError::NoVersion { .. } => Self::not_found(message).hint("`p2p-node history` shows which are kept"),
            ReadError::Inside(_) => {
                Self::usage(message).hint("name the whole of it; `p2p-node ls` shows what there is")
            }
            ReadError::OneVersion(_) => Self::usage(message)
                .hint("earlier versions go with `p2p-node add --keep`, all of them with `p2p-node rm NAME`"),
            ReadError::OneOfHistory { name, .. } => Self::usage(message).hint(format!("run `p2p-node history {name}`")),
            ReadError::Foreign { .. } => {
                Self::refused(message).hint("run the same command on the machine that published it")
            }
            ReadError::OnlyEarlier { .. } => {
                Self::not_found(message).hint("earlier versions go with `p2p-node add --keep`")
            }
            ReadError::NoEntry { .. } => {
                Self::not_found(message).hint("`p2p-node ls` of the directory shows what there is")
            }
            ReadError::InFile { .. } | ReadError::ThroughLink { .. } => Self::not_found(message),
            ReadError::Missing { .. } => Self::not_found(message)
                .hint("see with `p2p-node peers` who is connected, and try again when a peer that holds it is back"),
            ReadError::NoSpace { .. } => Self::refused(message).hint(FREE_SPACE),
            ReadError::Store { .. }
            | ReadError::Stopped(_)
            | ReadError::Refused { .. }
            | ReadError::Scratch { .. }
            | ReadError::Unfinished(_) => Self::failed(message),
            ReadError::TooDeep { .. } => Self::refused(message),
            ReadError::TooWide { .. } => Self::refused(message).hint("name a directory inside"),
            ReadError::TooManyEntries { .. } => {
                Self::refused(message).hint("name a directory or a file inside, or `p2p-node get` it")
            }
            ReadError::TooManyChunks { .. } => Self::refused(message).hint("ask with --no-placement"),
        }
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        let message = error.to_string();
        match error {
            WriteError::Read(why) => why.into(),
            WriteError::Incomplete { partial, .. } => Self::not_found(message).hint(format!(
                "try again when a peer that holds it is back; what came so far is kept in {partial} and used then"
            )),
            WriteError::Taken(_) => {
                Self::failed(message).hint("name another place with -o, or replace it with --force")
            }
            WriteError::NoDirectory(_) => Self::failed(message).hint("make it first"),
            WriteError::NoName(_) => Self::usage(message),
            WriteError::Busy(_) => Self::failed(message).hint("wait for it"),
            WriteError::NotOurs { .. } => Self::failed(message).hint("remove it"),
            WriteError::Full { partial, .. } => Self::refused(message).hint(format!(
                "free some room and run the same command again: what came so far is kept in {partial} and used then"
            )),
            WriteError::NoRoom { .. } => {
                Self::refused(message).hint("free some room, or name a place on another disk with -o")
            }
            WriteError::NoInodes { partial, .. } => Self::refused(message)
                .hint(format!("remove {partial} or other files, or name a place on another disk with -o")),
            WriteError::TooWide { .. } => Self::refused(message).hint("get a directory inside it instead"),
            WriteError::TooMany { partial, .. } => Self::refused(message)
                .hint(format!("remove {partial}; if you trust the tree, get the directories inside it one by one")),
            WriteError::TooDeep { .. } => Self::refused(message),
            WriteError::IsDirectory(_) => Self::failed(message)
                .hint("use `p2p-node get`, or name a file inside; `p2p-node ls` shows what there is"),
            WriteError::IsLink(_) => Self::failed(message).hint("use `p2p-node get`"),
            WriteError::Directory { .. }
            | WriteError::Io { .. }
            | WriteError::Scratch(_)
            | WriteError::Unfinished(_) => Self::failed(message),
        }
    }
}

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Store(why) => why.into(),
            VerifyError::Keep(why) => why.into(),
            VerifyError::Unfinished(why) => why.into(),
        }
    }
}

impl From<AddError> for Error {
    fn from(error: AddError) -> Self {
        let message = error.to_string();
        match error {
            AddError::BadChunker { .. } => Self::usage(message),
            AddError::OwnData(_) => Self::failed(message).hint("add what you want to share from where it was before"),
            AddError::NoSuchPath(_) => Self::failed(message).hint("check the path"),
            AddError::Faults(_) => Self::failed(message).hint("put that right, or leave it out, and add again"),
            AddError::Full { .. } => {
                Self::refused(message).hint("free some room or start the daemon with a larger --capacity")
            }
            AddError::Failed { .. } | AddError::Stream(_) | AddError::Scratch(_) | AddError::Unfinished(_) => {
                Self::failed(message)
            }
        }
    }
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        let message = error.to_string();
        match error {
            PublishError::Share(_) => Self::refused(message).hint(
                "remove what is not needed with `p2p-node rm`, keep fewer versions with `add --keep`, or, where all \
                 members are trusted, start each daemon with more `--catalogue-entries`",
            ),
            PublishError::Invalid { .. } => Self::usage(message),
            PublishError::Nothing => Self::not_found(message).hint("`p2p-node ls` shows what there is"),
            PublishError::Stands(_) => Self::usage(message)
                .hint("NAME@VERSION brings an earlier version back; `p2p-node history` shows which are kept"),
            PublishError::Store(why) => why.into(),
        }
    }
}

impl From<SinceError> for Error {
    fn from(error: SinceError) -> Self {
        let message = error.to_string();
        match error {
            SinceError::Ahead { .. } => {
                Self::usage(message).hint("positions are this node's own: use one that `p2p-node watch` gave here")
            }
            SinceError::Store(why) => why.into(),
        }
    }
}

impl From<KeepError> for Error {
    fn from(error: KeepError) -> Self {
        let message = error.to_string();
        match error {
            KeepError::NoTable => Self::failed(message).hint("try again in a moment"),
            KeepError::Alone => {
                Self::failed(message).hint("connect a peer with `p2p-node connect`; this node remembers that it leaves")
            }
            KeepError::Stays | KeepError::Unpinnable => Self::failed(message),
            KeepError::TooManyPins => {
                Self::refused(message).hint("end some with `p2p-node unpin`; a directory is one pin, whatever is in it")
            }
            KeepError::Store(why) => why.into(),
        }
    }
}

impl From<PinError> for Error {
    fn from(error: PinError) -> Self {
        let message = error.to_string();
        match error {
            PinError::Read(why) => why.into(),
            PinError::Keep(why) => why.into(),
            PinError::Unfinished(why) => why.into(),
            PinError::NoRoom { .. } => {
                Self::refused(message).hint("free some space, or give the daemon a larger --capacity")
            }
            PinError::Full { .. } => Self::refused(message)
                .hint("what is missing is fetched when there is room; `p2p-node unpin` gives it up"),
            PinError::Missing { .. } => Self::not_found(message)
                .hint("what is missing is fetched when somebody who has it is back; `p2p-node unpin` gives it up"),
            PinError::Ended(_) => Self::failed(message),
            PinError::NotPinned(_) => Self::not_found(message).hint("`p2p-node ls --pinned` shows what is"),
            PinError::ByName { .. } => Self::not_found(message).hint("unpin the name"),
        }
    }
}

impl From<NodeError> for Error {
    fn from(error: NodeError) -> Self {
        let message = error.to_string();
        match error {
            NodeError::Directory { .. } => Self::failed(message).hint("choose another with --data-dir"),
            NodeError::NotClosed => Self::failed(message)
                .hint("nothing that was acknowledged is lost: the log is replayed at the next start"),
            NodeError::Opening => Self::failed(message),
            NodeError::Store(why) => why.into(),
            NodeError::Identity(why) => why.into(),
            NodeError::Net(why) => why.into(),
            NodeError::Catalogue(StartError::Load(_) | StartError::Join { .. }) => Self::failed(message),
        }
    }
}

impl From<IdentityError> for Error {
    fn from(error: IdentityError) -> Self {
        let message = error.to_string();
        match error {
            IdentityError::Open { path, .. } => {
                Self::refused(message).hint(format!("run `chmod 600 {}` if nobody else has had it", path.display()))
            }
            IdentityError::Damaged(_) => {
                Self::failed(message).hint("restore it from a backup, or move it away to start as a new peer")
            }
            IdentityError::Encoding(_) => Self::failed(message),
            IdentityError::Io { .. } => {
                Self::failed(message).hint("check that the data directory belongs to you and that its disk is well")
            }
        }
    }
}

impl From<Unfinished> for Error {
    fn from(error: Unfinished) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NoSpace { .. } => {
                Self::refused(message).hint("free some space on this disk, or give the daemon a larger --capacity")
            }
            StoreError::Locked(_) => {
                Self::failed(message).hint("use that one, stop it first, or give this one another --data-dir")
            }
            StoreError::TooNew { .. } => Self::failed(message).hint("run the newer version of p2p-node on it"),
            StoreError::TooOld { .. } => Self::failed(message).hint("move it aside, and add again what is to be kept"),
            StoreError::Io { .. } | StoreError::Index(_) => {
                Self::failed(message).hint("check the disk and its permissions, then try again")
            }
            StoreError::Closed => Self::failed("the daemon is stopping"),
        }
    }
}

impl From<NetError> for Error {
    fn from(error: NetError) -> Self {
        let message = error.to_string();
        match error {
            NetError::Listen { .. } => Self::failed(message)
                .hint("stop what uses that port, or choose another with --listen (port 0 = any free one)"),
            NetError::Unreachable { .. } | NetError::Timeout { .. } => {
                Self::new(Kind::Failed, message).hint("check the address, and that a daemon of this network runs there")
            }
            NetError::WrongNetwork { .. } => Self::failed(message).hint("start both with the same --network"),
            NetError::Unsupported { .. } | NetError::Stopped => Self::failed(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{fetch::FetchError, inspect::fetch_error};

    #[test]
    fn a_read_that_fails_for_want_of_space_is_refused_as_a_write_is() {
        let full = || StoreError::NoSpace { needed: 0, reason: "the disk is full (the index failed: a test)".into() };
        let told = |why: StoreError| Error::from(fetch_error("notes/today", &FetchError::from(why)));
        let refused = told(full());
        assert_eq!((refused.kind, Error::from(full()).kind), (Kind::Refused, Kind::Refused));
        assert_eq!(refused.message, "cannot read notes/today: the disk is full (the index failed: a test)");
        assert_eq!(refused.hint.as_deref(), Some(FREE_SPACE));
        assert_eq!(told(StoreError::Index("a test".into())).kind, Kind::Failed);
    }
}
