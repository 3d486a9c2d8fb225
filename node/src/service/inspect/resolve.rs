//! What a reference means: an address or a published name, perhaps of an earlier version, and the path inside.

use p2p_protocol::{
    Chunk, Cid, CidError, PeerId,
    catalogue::Publication,
    dag::{Lookup, NameLookup, Node, decode},
};

use super::{ReadError, Result, dag_error, fetch_error, measure::NODE_BYTES};
use crate::service::{
    catalogue::Catalogue,
    fetch::{ChunkSource, FetchJob},
};

/// From so many bytes on, text that parses as a CID or a peer id is one: shorter text never is (a digest of 32 bytes
/// has more), though the word "11" would decode to an empty peer id.
const MIN_ADDRESS_BYTES: usize = 40;

/// What was found behind a reference.
#[derive(Clone, Debug)]
pub struct Resolved<S = FetchJob> {
    /// Its root chunk, and who gave it.
    pub chunk: Chunk,
    /// The peer that gave `chunk`.
    pub from: PeerId,
    /// What to call it: the last name of the path, or the publication's label or name, or the CID. A valid file name.
    pub label: String,
    /// Content bytes as its publisher says, where nothing but the root was named. Only for progress.
    pub stated_bytes: Option<u64>,
    /// Copies that its publisher wanted.
    pub wanted: Option<u8>,
    /// Where the rest of it comes from.
    pub source: S,
    node: Node,
}

impl<S> Resolved<S> {
    /// The root chunk, decoded.
    pub fn node(&self) -> &Node {
        &self.node
    }
}

/// What a reference says, before anything is fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Meaning {
    pub(super) root: Cid,
    pub(super) publishers: Vec<PeerId>,
    pub(super) wanted: Option<u8>,
    label: String,
    stated_bytes: Option<u64>,
    path: Vec<String>,
}

/// What of the catalogue it takes to understand a reference.
pub(super) trait Names {
    /// Live publications of a root.
    fn by_root(&self, root: &Cid) -> Vec<Publication>;
    /// What is current under a name, removals left out.
    fn by_name(&self, name: &str) -> Vec<Publication>;
    /// The versions that stand beside a current one, newest first, removals too.
    fn versions(&self, current: &Publication) -> Vec<Publication>;
}

impl Names for Catalogue {
    fn by_root(&self, root: &Cid) -> Vec<Publication> {
        self.by_root(root)
    }

    fn by_name(&self, name: &str) -> Vec<Publication> {
        self.by_name(name)
    }

    fn versions(&self, current: &Publication) -> Vec<Publication> {
        self.history(&current.publisher, &current.key())
    }
}

/// A reference, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reference {
    pub(super) what: What,
    /// Inside of it.
    pub(super) path: Vec<String>,
}

/// What a reference begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// A CID.
    Root(Cid),
    /// `NAME` or `PEER/NAME`, perhaps `NAME@VERSION`.
    Name {
        /// Whose it is to be.
        peer: Option<PeerId>,
        /// As it was written, with what may be a version.
        text: String,
    },
}

/// A name and a version, where `text` can be read so.
pub(super) fn versioned(text: &str) -> Option<(&str, u64)> {
    let (name, version) = text.rsplit_once('@')?;
    let digits = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    if name.is_empty() || !digits { None } else { Some((name, version.parse().ok()?)) }
}

/// Takes a reference apart.
pub(super) fn parse(reference: &str) -> Result<Reference> {
    let text = reference.strip_prefix("ipfs://").or_else(|| reference.strip_prefix("/ipfs/")).unwrap_or(reference);
    let mut parts = text.split('/');
    let first = parts.next().unwrap_or_default();
    if first.is_empty() {
        return Err(ReadError::NamesNothing(reference.to_owned()));
    }
    let mut path: Vec<String> = parts.filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let address = first.len() >= MIN_ADDRESS_BYTES;
    let what = match first.parse::<Cid>() {
        Ok(root) => What::Root(root),
        Err(why) if !matches!(why, CidError::Malformed) => {
            return Err(ReadError::BadCid { text: first.to_owned(), why: why.to_string() });
        }
        Err(_) => match first.parse::<PeerId>() {
            Ok(_) if address && path.is_empty() => return Err(ReadError::OnlyPeer(first.to_owned())),
            Ok(peer) if address => What::Name { peer: Some(peer), text: path.remove(0) },
            _ => What::Name { peer: None, text: first.to_owned() },
        },
    };
    if let Some(dots) = path.iter().find(|part| matches!(part.as_str(), "." | "..")) {
        return Err(ReadError::Dots { reference: reference.to_owned(), part: dots.clone() });
    }
    Ok(Reference { what, path })
}

/// Reads a reference.
pub(super) fn mean(reference: &str, names: &impl Names) -> Result<Meaning> {
    let Reference { what, path } = parse(reference)?;
    let meaning = match what {
        What::Root(root) => of_root(root, names),
        What::Name { peer, text } => of_publication(&named(peer, &text, names)?, names),
    };
    Ok(Meaning { path, ..meaning })
}

/// The publication that a name means. A name that is published as it is written goes before one with a version.
pub(super) fn named(peer: Option<PeerId>, text: &str, names: &impl Names) -> Result<Publication> {
    let published = |name: &str| -> Vec<Publication> {
        names.by_name(name).into_iter().filter(|entry| peer.is_none_or(|peer| entry.publisher == peer)).collect()
    };
    let whole = published(text);
    let (Some((name, version)), true) = (versioned(text), whole.is_empty()) else {
        return one(peer, text, None, whole);
    };
    let current = published(name);
    let standing: Vec<Publication> = current.iter().flat_map(|current| names.versions(current)).collect();
    let (removals, kept): (Vec<_>, Vec<_>) = standing.into_iter().partition(|entry| entry.removed);
    let versions: Vec<Publication> = kept.iter().filter(|entry| entry.version == version).cloned().collect();
    if versions.is_empty() && removals.iter().any(|entry| entry.version == version) {
        return Err(ReadError::Removal { name: name.to_owned(), version });
    }
    if versions.is_empty() && !current.is_empty() {
        let mut kept: Vec<u64> = kept.iter().map(|entry| entry.version).collect();
        kept.sort_unstable();
        kept.dedup();
        return Err(ReadError::NoVersion { name: name.to_owned(), version, kept });
    }
    one(peer, name, Some(version), versions)
}

/// The one that is meant, where there is something to choose.
fn one(peer: Option<PeerId>, name: &str, version: Option<u64>, published: Vec<Publication>) -> Result<Publication> {
    let behind = version.map_or_else(String::new, |version| format!("@{version}"));
    let full = |publisher: &PeerId| format!("{publisher}/{name}{behind}");
    match published.as_slice() {
        [] if peer.is_none() && looks_like_cid(name) => Err(ReadError::NoCid(name.to_owned())),
        [] => Err(ReadError::UnknownName(peer.map_or_else(|| format!("{name}{behind}"), |peer| full(&peer)))),
        // The same content under the same name leaves nothing to choose.
        [first, rest @ ..] if rest.iter().all(|other| other.root == first.root) => Ok(first.clone()),
        several => Err(ReadError::Ambiguous {
            name: name.to_owned(),
            choices: several.iter().map(|publication| full(&publication.publisher)).collect(),
        }),
    }
}

fn of_root(root: Cid, names: &impl Names) -> Meaning {
    let publications = names.by_root(&root);
    let first = publications.first();
    Meaning {
        root,
        publishers: publications.iter().map(|publication| publication.publisher).collect(),
        wanted: publications.iter().map(|publication| publication.replicas).max(),
        label: first.map_or_else(|| root.to_string(), |publication| publication.label.clone()),
        stated_bytes: first.map(|publication| publication.size),
        path: Vec::new(),
    }
}

fn of_publication(publication: &Publication, names: &impl Names) -> Meaning {
    let label = publication.name.clone().unwrap_or_else(|| publication.label.clone());
    // Whoever else published the same root has it too.
    let mut meaning = Meaning { label, ..of_root(publication.root, names) };
    if !meaning.publishers.contains(&publication.publisher) {
        meaning.publishers.insert(0, publication.publisher);
    }
    meaning.wanted = meaning.wanted.max(Some(publication.replicas));
    meaning.stated_bytes = Some(publication.size);
    meaning
}

/// Whether somebody who wrote this meant a CID: CIDv1 in base32 begins so, and CIDv0.
fn looks_like_cid(text: &str) -> bool {
    let alphanumeric = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    alphanumeric && (text.starts_with("baf") || (text.starts_with("Qm") && text.len() >= MIN_ADDRESS_BYTES))
}

/// What a test names by its root.
#[cfg(test)]
pub(crate) async fn resolved<S: ChunkSource>(root: Cid, path: &[&str], label: &str, source: S) -> Result<Resolved<S>> {
    let path = path.iter().map(|&name| name.to_owned()).collect();
    let meaning =
        Meaning { root, publishers: Vec::new(), wanted: None, label: label.to_owned(), stated_bytes: None, path };
    follow("it", meaning, source).await
}

/// Goes down the path of what a reference means.
pub(super) async fn follow<S: ChunkSource>(reference: &str, meaning: Meaning, source: S) -> Result<Resolved<S>> {
    let Meaning { root, wanted, mut label, mut stated_bytes, path, .. } = meaning;
    let get = async |cid: Cid| source.chunk(cid, NODE_BYTES).await.map_err(|why| fetch_error(reference, &why));
    let (mut chunk, mut from) = get(root).await?;
    for (depth, name) in path.iter().enumerate() {
        let node = decode(&chunk).map_err(|why| dag_error(reference, why))?;
        let here = || if depth == 0 { label.clone() } else { path[..depth].join("/") };
        match node {
            Node::Leaf(_) | Node::File { .. } => {
                return Err(ReadError::InFile { name: name.clone(), above: here() });
            }
            Node::Symlink { .. } => return Err(ReadError::ThroughLink { name: name.clone(), above: here() }),
            Node::Directory { .. } | Node::Shard { .. } => {}
        }
        let mut lookup = NameLookup::new(&chunk, name).map_err(|why| dag_error(reference, why))?;
        let entry = loop {
            match lookup.state() {
                Lookup::Wanted(cid) => {
                    let (shard, _) = get(*cid).await?;
                    lookup.supply(&shard).map_err(|why| dag_error(reference, why))?;
                }
                Lookup::Found(entry) => break entry.clone(),
                Lookup::Absent => return Err(ReadError::NoEntry { name: name.clone(), above: here() }),
            }
        };
        (chunk, from) = get(entry.cid).await?;
        label = entry.name;
        stated_bytes = None;
    }
    let node = decode(&chunk).map_err(|why| dag_error(reference, why))?;
    Ok(Resolved { chunk, from, label, stated_bytes, wanted, source, node })
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use p2p_protocol::{
        Codec,
        catalogue::Kind as RootKind,
        manifest::{Entry, Listing},
    };

    use super::*;
    use crate::error::{Error, Kind};

    /// Current and earlier versions.
    struct Published(Vec<Publication>);

    impl Names for Published {
        fn by_root(&self, root: &Cid) -> Vec<Publication> {
            self.0.iter().filter(|publication| publication.root == *root).cloned().collect()
        }

        fn by_name(&self, name: &str) -> Vec<Publication> {
            let named = self.0.iter().filter(|publication| publication.name.as_deref() == Some(name));
            named.filter(|publication| self.versions(publication)[0] == **publication).cloned().collect()
        }

        fn versions(&self, current: &Publication) -> Vec<Publication> {
            let mut versions: Vec<_> = self.0.iter().filter(|other| other.key() == current.key()).cloned().collect();
            versions.sort_by_key(|version| std::cmp::Reverse(version.version));
            versions
        }
    }

    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
    }

    fn publication(seed: u8, name: Option<&str>, content: &[u8]) -> Publication {
        Publication {
            publisher: peer(seed),
            name: name.map(str::to_owned),
            label: "label".to_owned(),
            root: Cid::of(Codec::Raw, content),
            kind: RootKind::File,
            size: content.len() as u64,
            replicas: 3,
            chunks: 1,
            listing: Listing::Inline(vec![Entry { cid: Cid::of(Codec::Raw, content), length: content.len() as u32 }]),
            version: 1,
            floor: 1,
            time_milliseconds: 0,
            removed: false,
        }
    }

    #[test]
    fn references_mean_what_they_say() {
        let names = Published(vec![
            publication(1, Some("photos"), b"one"),
            publication(2, Some("photos"), b"two"),
            publication(3, Some("film"), b"three"),
            publication(1, None, b"four"),
        ]);
        let root = Cid::of(Codec::Raw, b"four");
        let meaning = mean(&format!("{root}/a//b/"), &names).expect("a CID with a path");
        assert_eq!((meaning.root, meaning.path.len(), meaning.label.as_str()), (root, 2, "label"));
        assert_eq!(meaning.publishers, [peer(1)]);
        assert_eq!(mean(&format!("/ipfs/{root}"), &names).expect("a path of IPFS").root, root);
        let other = Cid::of(Codec::Raw, b"unpublished");
        let meaning = mean(&other.to_string(), &names).expect("any CID will do");
        assert_eq!((meaning.label, meaning.wanted), (other.to_string(), None));
        let meaning = mean("film/inside", &names).expect("a name");
        assert_eq!((meaning.label.as_str(), meaning.path.as_slice()), ("film", &["inside".to_owned()][..]));
        let meaning = mean(&format!("{}/photos/x", peer(2)), &names).expect("a peer's name");
        assert_eq!((meaning.root, meaning.path.len()), (Cid::of(Codec::Raw, b"two"), 1));
    }

    #[test]
    fn a_version_is_named_behind_the_name() {
        let version = |seed, name: &str, content: &[u8], version| Publication {
            version,
            ..publication(seed, Some(name), content)
        };
        let names = Published(vec![
            version(1, "site", b"one", 1),
            version(1, "site", b"two", 2),
            version(1, "site@2", b"three", 1),
            version(1, "notes", b"four", 4),
            version(1, "notes", b"five", 5),
            version(2, "notes", b"six", 5),
            version(2, "notes", b"seven", 6),
        ]);
        let root = |reference: &str| mean(reference, &names).map(|meaning| meaning.root);
        let of = |content: &[u8]| Cid::of(Codec::Raw, content);
        assert_eq!(root("site"), Ok(of(b"two")));
        assert_eq!(root("site@1"), Ok(of(b"one")));
        assert_eq!(mean("site@1/inside", &names).expect("it is kept").path, ["inside".to_owned()]);
        assert_eq!(root(&format!("{}/site@1", peer(1))), Ok(of(b"one")));
        assert_eq!(root("site@2"), Ok(of(b"three")), "a name that is written so goes first");
        assert_eq!(root("site@2@1"), Ok(of(b"three")));
        assert_eq!(root("notes@4"), Ok(of(b"four")), "only one publisher has it");
        assert!(
            matches!(root("notes@5"), Err(ReadError::Ambiguous { choices, .. }) if choices[0].ends_with("/notes@5"))
        );
        let mut names = names;
        names.0.push(Publication { removed: true, ..version(1, "back", b"eight", 2) });
        names.0.push(version(1, "back", b"nine", 3));
        let root = |reference: &str| mean(reference, &names).map(|meaning| meaning.root);
        assert_eq!(root("back@3"), Ok(of(b"nine")));
        assert_eq!(root("back@2"), Err(ReadError::Removal { name: "back".to_owned(), version: 2 }));
        let only_nine = ReadError::NoVersion { name: "back".to_owned(), version: 1, kept: vec![3] };
        assert_eq!(root("back@1"), Err(only_nine), "a removal is no version that is kept");
        let missing = ReadError::NoVersion { name: "site".to_owned(), version: 3, kept: vec![1, 2] };
        assert_eq!(root("site@3"), Err(missing));
        for unknown in ["site@", "site@x", "other@1", "site@99999999999999999999", "@1"] {
            assert!(matches!(root(unknown), Err(ReadError::UnknownName(_))), "{unknown}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused_with_the_right_kind() {
        let names = Published(vec![publication(1, Some("photos"), b"one"), publication(2, Some("photos"), b"two")]);
        let kind = |reference: &str| Error::from(mean(reference, &names).expect_err("it means nothing")).kind;
        let error = Error::from(mean("photos", &names).expect_err("two publishers"));
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.message.contains(&format!("{}/photos", peer(1))), "{error}");
        assert!(error.message.contains(&format!("{}/photos", peer(2))), "{error}");
        let good = Cid::of(Codec::Raw, b"x").to_string();
        assert_eq!(kind(""), Kind::Usage);
        assert_eq!(kind("/"), Kind::Usage);
        assert_eq!(kind(&good[..good.len() - 3]), Kind::Usage);
        assert_eq!(kind("bafynotacid"), Kind::Usage);
        assert_eq!(kind("bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"), Kind::Usage);
        assert_eq!(kind(&format!("{good}/../x")), Kind::Usage);
        assert_eq!(kind(&peer(1).to_string()), Kind::Usage);
        assert_eq!(kind("holidays"), Kind::NotFound);
        assert_eq!(kind("11"), Kind::NotFound);
        assert_eq!(kind(&format!("{}/film", peer(1))), Kind::NotFound);
    }
}
