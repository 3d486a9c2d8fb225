//! Which names and labels a publication may carry.

use crate::{Cid, CidError, PeerId};

/// The most bytes of a name or a label: what file systems allow for one path component.
pub const MAX_NAME_BYTES: usize = 255;

/// From this many bytes on, text that parses as a CID or a peer id is one. Shorter text is not taken for an
/// address (the word "11" decodes to an empty peer id), and no real one of either is shorter: a 20-byte digest in
/// base32 is the shortest in use.
const MIN_ADDRESS_BYTES: usize = 40;

/// Whether a label (a file's name, for people) can be published: a single path component.
pub fn check_label(label: &str) -> Result<(), NameError> {
    match label {
        "" => return Err(NameError::Empty),
        "." | ".." => return Err(NameError::Dots),
        _ => {}
    }
    if label.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { bytes: label.len() });
    }
    match label.chars().find(|&c| forbidden(c)) {
        Some(character) => Err(NameError::Character { character }),
        None => Ok(()),
    }
}

/// Whether a name can be published under: a label that nobody can take for a CID or a peer id.
pub fn check_name(name: &str) -> Result<(), NameError> {
    check_label(name)?;
    if name.len() >= MIN_ADDRESS_BYTES {
        if !matches!(name.parse::<Cid>(), Err(CidError::Malformed)) {
            return Err(NameError::Cid);
        }
        if name.parse::<PeerId>().is_ok() {
            return Err(NameError::Peer);
        }
    }
    Ok(())
}

/// A label that can be published, made of any file name: what is forbidden becomes `_`, what is too long is cut;
/// where nothing is left (standard input has no name), it is `otherwise`, which must be a valid label.
pub fn label_from(file_name: &str, otherwise: &str) -> String {
    let mut label = String::with_capacity(file_name.len().min(MAX_NAME_BYTES));
    for character in file_name.chars() {
        let character = if forbidden(character) { '_' } else { character };
        if label.len() + character.len_utf8() > MAX_NAME_BYTES {
            break;
        }
        label.push(character);
    }
    if check_label(&label).is_ok() { label } else { otherwise.to_owned() }
}

fn forbidden(character: char) -> bool {
    character == '/' || character.is_control()
}

/// Why a name or a label was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
    /// `.` or `..`.
    #[error("`.` and `..` are not names")]
    Dots,
    /// Over [`MAX_NAME_BYTES`].
    #[error("it has {bytes} bytes, and {MAX_NAME_BYTES} are the most")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// A slash, NUL or another control character.
    #[error("it contains {character:?}, which no name may")]
    Character {
        /// The first such character.
        character: char,
    },
    /// It reads as a content address.
    #[error("it reads as a CID, and would be taken for one")]
    Cid,
    /// It reads as a peer id.
    #[error("it reads as a peer id, and would be taken for one")]
    Peer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_path_component() {
        for good in ["a", "report.txt", "…", ".hidden", "a b", "11", "922347776", "a\\b", &"x".repeat(255)] {
            assert_eq!(check_name(good), Ok(()), "{good:?}");
        }
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name("."), Err(NameError::Dots));
        assert_eq!(check_name(".."), Err(NameError::Dots));
        assert_eq!(check_name(&"x".repeat(256)), Err(NameError::TooLong { bytes: 256 }));
        for (bad, character) in
            [("a/b", '/'), ("a\0", '\0'), ("a\nb", '\n'), ("\u{7f}", '\u{7f}'), ("\u{85}", '\u{85}')]
        {
            assert_eq!(check_name(bad), Err(NameError::Character { character }), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_never_an_address() {
        for cid in [
            "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku",
            "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn",
            // A CID of a hash function that is not stored here is one all the same.
            "bafybgqgsm3fxzyqmb25u4vsuqw2rylkxv3nrjgh4j26lqyhrbwgmnrxmohgvmovg4ck6gzuvnbxthc5mpkdysuyxjznzwqdxd2ygnbl4vmvne",
        ] {
            assert_eq!(check_label(cid), Ok(()));
            if !matches!(cid.parse::<Cid>(), Err(CidError::Malformed)) {
                assert_eq!(check_name(cid), Err(NameError::Cid), "{cid}");
            }
        }
        let peer = libp2p_identity::Keypair::ed25519_from_bytes([1; 32]).expect("32 bytes").public().to_peer_id();
        assert_eq!(check_name(&peer.to_string()), Err(NameError::Peer));
    }

    #[test]
    fn any_file_name_gives_a_label() {
        assert_eq!(label_from("report.txt", "x"), "report.txt");
        assert_eq!(label_from("a\nb/c", "x"), "a_b_c");
        assert_eq!(label_from("", "x"), "x");
        assert_eq!(label_from("..", "x"), "x");
        let long = label_from(&"é".repeat(200), "x");
        assert_eq!(long.len(), 254);
        assert_eq!(check_label(&long), Ok(()));
    }
}
