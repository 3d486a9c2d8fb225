//! Which versions of which protocol there are, what they are called, and what a greeting says of them (`SPEC.md`, "How
//! this may change").

/// The versions of one protocol that a node accepts: its newest, and the one before if there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Versions {
    newest: u8,
}

impl Versions {
    /// Those of a node whose newest is `newest`, at least 1.
    pub const fn up_to(newest: u8) -> Self {
        Self { newest: if newest == 0 { 1 } else { newest } }
    }

    /// The newest.
    pub const fn newest(self) -> u8 {
        self.newest
    }

    /// All of them, the newest first. Versions begin with 1.
    pub fn accepted(self) -> impl Iterator<Item = u8> {
        [self.newest, self.newest - 1].into_iter().filter(|version| *version > 0)
    }
}

/// What a node speaks. [`Dialect::default`] is what this program speaks; tests start nodes of a later one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialect {
    /// Moving chunks.
    pub transfer: Versions,
    /// Catching up on the catalogue.
    pub catalogue: Versions,
    /// Comparing with neighbours, and proofs.
    pub audit: Versions,
    /// The features that its greetings offer; none has a bit yet.
    pub features: u64,
}

impl Default for Dialect {
    fn default() -> Self {
        Self { transfer: Versions::up_to(1), catalogue: Versions::up_to(1), audit: Versions::up_to(1), features: 0 }
    }
}

/// The name of a protocol of `network`: `/p2p-node/<network>/<protocol>/<version>`.
pub fn protocol_name(network: &str, protocol: &str, version: u8) -> String {
    format!("/p2p-node/{network}/{protocol}/{version}")
}

/// One protocol of one network in every version that a node accepts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spoken {
    /// Version and name, the newest first.
    names: Vec<(u8, String)>,
}

impl Spoken {
    /// The names of `protocol` in `network`.
    pub fn new(network: &str, protocol: &str, versions: Versions) -> Self {
        let named = |version| (version, protocol_name(network, protocol, version));
        Self { names: versions.accepted().map(named).collect() }
    }

    /// Version and name, the newest first; at most two.
    pub fn names(&self) -> impl Iterator<Item = (u8, &str)> {
        self.names.iter().map(|(version, name)| (*version, name.as_str()))
    }

    /// Whether a peer that lists these protocols speaks it in a version that is accepted here.
    pub fn is_listed(&self, listed: &[String]) -> bool {
        self.names.iter().any(|(_, name)| listed.contains(name))
    }

    /// What to try with a peer that lists these protocols, in this order: what both speak, the newest first; everything
    /// where it lists none of them, because it may not have said yet what it speaks.
    pub fn to_try(&self, listed: &[String]) -> impl Iterator<Item = (u8, &str)> {
        let known = self.is_listed(listed);
        self.names().filter(move |(_, name)| !known || listed.iter().any(|other| other == name))
    }
}

/// What every greeting begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The newest version of the protocol that the sender speaks, at least 1. Which one is spoken on this stream, the
    /// stream's name says.
    pub version: u8,
    /// What the sender can do beyond that version, a bit each. A feature is used where both offer it; bits that are not
    /// known here mean nothing here.
    pub features: u64,
}

impl Hello {
    /// Its bytes: version, features (big-endian).
    pub const BYTES: usize = 9;

    /// Appends the nine bytes.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.push(self.version);
        out.extend_from_slice(&self.features.to_be_bytes());
    }

    /// Reads nine bytes; `None` for version 0, which no node speaks.
    pub fn decode(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let [version, features @ ..] = bytes;
        (version > 0).then(|| Self { version, features: u64::from_be_bytes(features) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_node_accepts_its_newest_version_and_the_one_before() {
        assert_eq!(Versions::up_to(1).accepted().collect::<Vec<_>>(), [1]);
        assert_eq!(Versions::up_to(2).accepted().collect::<Vec<_>>(), [2, 1]);
        assert_eq!(Versions::up_to(9).accepted().collect::<Vec<_>>(), [9, 8]);
        assert_eq!(Versions::up_to(0), Versions::up_to(1));
        let spoken = Spoken::new("home", "transfer", Versions::up_to(2));
        assert_eq!(
            spoken.names().map(|(_, name)| name).collect::<Vec<_>>(),
            ["/p2p-node/home/transfer/2", "/p2p-node/home/transfer/1"]
        );
    }

    #[test]
    fn neighbours_in_age_find_the_newest_version_that_both_speak() {
        let versions = |newest| Spoken::new("home", "transfer", Versions::up_to(newest));
        let [one, two, three] = [1, 2, 3].map(versions);
        let names = |spoken: &Spoken| spoken.names().map(|(_, name)| name.to_owned()).collect::<Vec<_>>();
        let tried = |spoken: &Spoken, listed: &[String]| spoken.to_try(listed).map(|(v, _)| v).collect::<Vec<_>>();
        assert_eq!((tried(&two, &names(&one)), tried(&one, &names(&two))), (vec![1], vec![1]));
        assert_eq!((tried(&three, &names(&two)), tried(&two, &names(&three))), (vec![2], vec![2]));
        assert_eq!(tried(&three, &names(&three)), [3, 2]);
        assert!(!one.is_listed(&names(&three)) && two.is_listed(&names(&three)));
        // Nothing is known of it yet.
        assert_eq!(tried(&two, &listed(&["/p2p-node/home/catalogue/1"])), [2, 1]);
    }

    #[test]
    fn the_beginning_of_a_greeting_is_the_specification() {
        let hello = Hello { version: 2, features: 0x0102_0304_0506_0708 };
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        assert_eq!(bytes, [2, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Hello::decode([2, 1, 2, 3, 4, 5, 6, 7, 8]), Some(hello));
        assert_eq!(Hello::decode([0; 9]), None);
    }
}
