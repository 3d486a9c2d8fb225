//! What a reference means: an address or a published name, and the path inside.

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
    fn by_root(&self, root: &Cid) -> Vec<Publication>;
    fn by_name(&self, name: &str) -> Vec<Publication>;
}

impl Names for Catalogue {
    fn by_root(&self, root: &Cid) -> Vec<Publication> {
        self.by_root(root)
    }

    fn by_name(&self, name: &str) -> Vec<Publication> {
        self.by_name(name)
    }
}

/// Reads a reference.
pub(super) fn mean(reference: &str, names: &impl Names) -> Result<Meaning> {
    let text = reference.strip_prefix("ipfs://").or_else(|| reference.strip_prefix("/ipfs/")).unwrap_or(reference);
    let mut parts = text.split('/');
    let first = parts.next().unwrap_or_default();
    if first.is_empty() {
        return Err(ReadError::NamesNothing(reference.to_owned()));
    }
    let mut path: Vec<String> = parts.filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let address = first.len() >= MIN_ADDRESS_BYTES;
    let meaning = match first.parse::<Cid>() {
        Ok(root) => Meaning { path, ..of_root(root, names) },
        Err(why) if !matches!(why, CidError::Malformed) => {
            return Err(ReadError::BadCid { text: first.to_owned(), why: why.to_string() });
        }
        Err(_) => match first.parse::<PeerId>() {
            Ok(peer) if address => {
                if path.is_empty() {
                    return Err(ReadError::OnlyPeer(first.to_owned()));
                }
                let name = path.remove(0);
                let published = names.by_name(&name);
                let publication = published.into_iter().find(|publication| publication.publisher == peer);
                let publication = publication.ok_or_else(|| ReadError::UnknownName(format!("{first}/{name}")))?;
                Meaning { path, ..of_publication(&publication, names) }
            }
            _ => Meaning { path, ..of_name(first, names)? },
        },
    };
    if let Some(dots) = meaning.path.iter().find(|part| matches!(part.as_str(), "." | "..")) {
        return Err(ReadError::Dots { reference: reference.to_owned(), part: dots.clone() });
    }
    Ok(meaning)
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

fn of_name(name: &str, names: &impl Names) -> Result<Meaning> {
    let published = names.by_name(name);
    match published.as_slice() {
        [] if looks_like_cid(name) => Err(ReadError::NoCid(name.to_owned())),
        [] => Err(ReadError::UnknownName(name.to_owned())),
        // The same content under the same name leaves nothing to choose.
        [first, rest @ ..] if rest.iter().all(|other| other.root == first.root) => Ok(of_publication(first, names)),
        several => Err(ReadError::Ambiguous {
            name: name.to_owned(),
            choices: several.iter().map(|publication| format!("{}/{name}", publication.publisher)).collect(),
        }),
    }
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
    use p2p_protocol::{Codec, catalogue::Kind as RootKind};

    use super::*;
    use crate::error::{Error, Kind};

    struct Published(Vec<Publication>);

    impl Names for Published {
        fn by_root(&self, root: &Cid) -> Vec<Publication> {
            self.0.iter().filter(|publication| publication.root == *root).cloned().collect()
        }

        fn by_name(&self, name: &str) -> Vec<Publication> {
            self.0.iter().filter(|publication| publication.name.as_deref() == Some(name)).cloned().collect()
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
            version: 1,
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
