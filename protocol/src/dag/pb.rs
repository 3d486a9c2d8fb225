//! DAG-PB (ipld.io/specs/codecs/dag-pb): the protobuf of a node with links, and the wire primitives it shares with UnixFS.
//!
//! Written canonically: links first, then the data. Read strictly: only the fields that DAG-PB has, each once, in any order.

use bytes::Bytes;

use super::DagError;
use crate::{Cid, cid::CID_BYTES};

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// A link of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PbLink {
    pub(super) cid: Cid,
    /// Empty when there is none.
    pub(super) name: Bytes,
    /// 0 when there is none.
    pub(super) tsize: u64,
}

/// A node: its links and its data.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct PbNode {
    pub(super) links: Vec<PbLink>,
    pub(super) data: Option<Bytes>,
}

/// Reads a node. What it allocates is in proportion to `bytes`: a link has 36 bytes or more.
pub(super) fn decode(bytes: &Bytes) -> Result<PbNode, DagError> {
    let mut node = PbNode::default();
    let mut reader = Reader::new(bytes, DagError::DagPb);
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Value::Bytes(data)) if node.data.is_none() => node.data = Some(data),
            (2, Value::Bytes(link)) => node.links.push(decode_link(&link)?),
            (1, Value::Bytes(_)) => return Err(DagError::DagPb("its data stands there twice")),
            _ => return Err(DagError::DagPb("it has an unknown field")),
        }
    }
    Ok(node)
}

fn decode_link(bytes: &Bytes) -> Result<PbLink, DagError> {
    let (mut cid, mut name, mut tsize) = (None, None, None);
    let mut reader = Reader::new(bytes, DagError::DagPb);
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Value::Bytes(hash)) if cid.is_none() => cid = Some(Cid::from_bytes(&hash)?),
            (2, Value::Bytes(text)) if name.is_none() => name = Some(text),
            (3, Value::Varint(size)) if tsize.is_none() => tsize = Some(size),
            _ => return Err(DagError::DagPb("a link has an unknown or repeated field")),
        }
    }
    let cid = cid.ok_or(DagError::DagPb("a link has no address"))?;
    Ok(PbLink { cid, name: name.unwrap_or_default(), tsize: tsize.unwrap_or_default() })
}

/// Appends a link to the bytes of a node.
pub(super) fn put_link(out: &mut Vec<u8>, cid: &Cid, name: &[&str], tsize: u64) {
    let name_bytes = name.iter().map(|part| part.len()).sum();
    out.push(2 << 3 | LENGTH);
    put_varint(out, link_bytes(name_bytes, tsize) as u64);
    put_bytes(out, 1, &cid.to_bytes());
    out.push(2 << 3 | LENGTH);
    put_varint(out, name_bytes as u64);
    for part in name {
        out.extend_from_slice(part.as_bytes());
    }
    put_number(out, 3, tsize);
}

/// Appends the data to the bytes of a node.
pub(super) fn put_data(out: &mut Vec<u8>, data: &[u8]) {
    put_bytes(out, 1, data);
}

/// How many bytes [`put_link`] appends.
pub(super) fn framed_link_bytes(name_bytes: usize, tsize: u64) -> usize {
    let link = link_bytes(name_bytes, tsize);
    1 + varint_bytes(link as u64) + link
}

/// How many bytes [`put_data`] appends.
pub(super) fn framed_data_bytes(data_bytes: usize) -> usize {
    1 + varint_bytes(data_bytes as u64) + data_bytes
}

fn link_bytes(name_bytes: usize, tsize: u64) -> usize {
    (2 + CID_BYTES) + (1 + varint_bytes(name_bytes as u64) + name_bytes) + (1 + varint_bytes(tsize))
}

/// Appends a varint field.
pub(super) fn put_number(out: &mut Vec<u8>, field: u8, number: u64) {
    out.push(field << 3 | VARINT);
    put_varint(out, number);
}

/// Appends a field of bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | LENGTH);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a field of four bytes, little-endian.
pub(super) fn put_fixed32(out: &mut Vec<u8>, field: u8, number: u32) {
    out.push(field << 3 | FIXED32);
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint_bytes(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// A field's value.
pub(super) enum Value {
    Varint(u64),
    Fixed32(u32),
    /// Read over: nothing here has such fields.
    Fixed64,
    Bytes(Bytes),
}

/// Reads fields one after the other; `error` says whose format is broken.
pub(super) struct Reader<'a> {
    whole: &'a Bytes,
    at: usize,
    error: fn(&'static str) -> DagError,
}

impl<'a> Reader<'a> {
    pub(super) fn new(whole: &'a Bytes, error: fn(&'static str) -> DagError) -> Self {
        Self { whole, at: 0, error }
    }

    /// The next field's number and value; `None` at the end.
    pub(super) fn field(&mut self) -> Result<Option<(u64, Value)>, DagError> {
        if self.at == self.whole.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match (tag & 7) as u8 {
            VARINT => Value::Varint(self.varint()?),
            FIXED64 => {
                self.take(8)?;
                Value::Fixed64
            }
            LENGTH => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            FIXED32 => {
                let mut number = [0; 4];
                number.copy_from_slice(&self.take(4)?);
                Value::Fixed32(u32::from_le_bytes(number))
            }
            _ => return Err((self.error)("a field has an unknown type")),
        };
        Ok(Some((tag >> 3, value)))
    }

    /// The next bare varint of a packed field; `None` at the end.
    pub(super) fn packed(&mut self) -> Result<Option<u64>, DagError> {
        if self.at == self.whole.len() { Ok(None) } else { self.varint().map(Some) }
    }

    fn varint(&mut self) -> Result<u64, DagError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.whole.get(self.at).ok_or((self.error)("it ends in the middle of a number"))?;
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err((self.error)("a number is over 64 bits long"))
    }

    fn take(&mut self, length: u64) -> Result<Bytes, DagError> {
        let left = self.whole.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => {
                let start = self.at;
                self.at += length;
                Ok(self.whole.slice(start..self.at))
            }
            _ => Err((self.error)("a field is longer than what is there")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_counted_as_they_are_written() {
        for number in [0, 1, 127, 128, 16383, 16384, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, number);
            assert_eq!(out.len(), varint_bytes(number), "{number}");
            let out = Bytes::from(out);
            assert_eq!(Reader::new(&out, DagError::DagPb).varint(), Ok(number));
        }
    }

    #[test]
    fn numbers_over_64_bits_are_refused() {
        for long in [&[0xff; 10][..], &[0xff; 11], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]] {
            let long = Bytes::copy_from_slice(long);
            assert!(Reader::new(&long, DagError::DagPb).varint().is_err());
        }
    }

    #[test]
    fn a_node_is_read_as_it_was_written() {
        let cid = Cid::of(crate::Codec::Raw, b"x");
        let mut out = Vec::new();
        put_link(&mut out, &cid, &["0A", "name"], 300);
        assert_eq!(out.len(), framed_link_bytes(6, 300));
        put_data(&mut out, b"data");
        assert_eq!(out.len(), framed_link_bytes(6, 300) + framed_data_bytes(4));
        let link = PbLink { cid, name: Bytes::from_static(b"0Aname"), tsize: 300 };
        let node = PbNode { links: vec![link], data: Some(Bytes::from_static(b"data")) };
        assert_eq!(decode(&Bytes::from(out)), Ok(node));
    }

    #[test]
    fn what_dag_pb_does_not_have_is_refused() {
        let decode = |bytes: &'static [u8]| decode(&Bytes::from_static(bytes));
        assert!(decode(&[0x0a, 0, 0x0a, 0]).is_err(), "the data twice");
        assert!(decode(&[0x1a, 0]).is_err(), "a third field");
        assert!(decode(&[0x12, 0]).is_err(), "a link with no address");
        assert!(decode(&[0x0a, 5, 1]).is_err(), "a length over the end");
        assert!(decode(&[0x08, 1]).is_err(), "the data as a number");
        assert!(decode(&[0x0b]).is_err(), "a group");
    }
}
