//! The UnixFS `Data` message inside a DAG-PB node (ipfs/specs UNIXFS.md, version 1.5).
//!
//! Unknown fields are skipped, as protobuf asks; known ones with the wrong type are refused.

use bytes::Bytes;

use super::{
    DagError, Metadata,
    pb::{self, Reader, Value},
};

/// The murmur3-x64-64 of the multicodec table: the only hash of directory shards.
pub(super) const MURMUR3_X64_64: u64 = 0x22;

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Type {
    /// A leaf of a file, wrapped (old layouts).
    Raw,
    Directory,
    File,
    Symlink,
    HamtShard,
}

impl Type {
    fn code(self) -> u64 {
        match self {
            Self::Raw => 0,
            Self::Directory => 1,
            Self::File => 2,
            Self::Symlink => 4,
            Self::HamtShard => 5,
        }
    }

    fn from_code(code: u64) -> Result<Self, DagError> {
        match code {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Directory),
            2 => Ok(Self::File),
            3 => Err(DagError::UnixFs("its type is the retired Metadata")),
            4 => Ok(Self::Symlink),
            5 => Ok(Self::HamtShard),
            _ => Err(DagError::UnixFs("its type is unknown")),
        }
    }
}

/// The message. `None` is an absent field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub(super) kind: Type,
    pub(super) data: Option<Bytes>,
    pub(super) file_size: Option<u64>,
    pub(super) block_sizes: Vec<u64>,
    pub(super) hash_type: Option<u64>,
    pub(super) fanout: Option<u64>,
    pub(super) metadata: Metadata,
}

impl Message {
    /// With nothing but a type.
    pub(super) fn new(kind: Type) -> Self {
        Self {
            kind,
            data: None,
            file_size: None,
            block_sizes: Vec::new(),
            hash_type: None,
            fanout: None,
            metadata: Metadata::default(),
        }
    }

    /// The fields in their order, block sizes unpacked: as other implementations write them.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        pb::put_number(&mut out, 1, self.kind.code());
        if let Some(data) = &self.data {
            pb::put_bytes(&mut out, 2, data);
        }
        if let Some(size) = self.file_size {
            pb::put_number(&mut out, 3, size);
        }
        for size in &self.block_sizes {
            pb::put_number(&mut out, 4, *size);
        }
        if let Some(hash_type) = self.hash_type {
            pb::put_number(&mut out, 5, hash_type);
        }
        if let Some(fanout) = self.fanout {
            pb::put_number(&mut out, 6, fanout);
        }
        if let Some(mode) = self.metadata.mode {
            pb::put_number(&mut out, 7, u64::from(mode & MODE_BITS));
        }
        if let Some((seconds, nanoseconds)) = self.metadata.mtime {
            let mut time = Vec::new();
            pb::put_number(&mut time, 1, seconds as u64);
            if nanoseconds != 0 {
                pb::put_fixed32(&mut time, 2, nanoseconds.min(MAX_NANOSECONDS));
            }
            pb::put_bytes(&mut out, 8, &time);
        }
        out
    }

    /// Reads a message with at most `max_blocks` block sizes (the node's number of links).
    pub(super) fn decode(bytes: &Bytes, max_blocks: usize) -> Result<Self, DagError> {
        let mut kind = None;
        let mut message = Self::new(Type::Raw);
        let block = |message: &mut Self, size| {
            if message.block_sizes.len() == max_blocks {
                return Err(DagError::Sizes("there are more block sizes than links"));
            }
            message.block_sizes.push(size);
            Ok(())
        };
        let mut reader = Reader::new(bytes, DagError::UnixFs);
        while let Some((field, value)) = reader.field()? {
            match (field, value) {
                (1, Value::Varint(code)) => kind = Some(Type::from_code(code)?),
                (2, Value::Bytes(data)) => message.data = Some(data),
                (3, Value::Varint(size)) => message.file_size = Some(size),
                (4, Value::Varint(size)) => block(&mut message, size)?,
                (4, Value::Bytes(packed)) => {
                    let mut sizes = Reader::new(&packed, DagError::UnixFs);
                    while let Some(size) = sizes.packed()? {
                        block(&mut message, size)?;
                    }
                }
                (5, Value::Varint(hash_type)) => message.hash_type = Some(hash_type),
                (6, Value::Varint(fanout)) => message.fanout = Some(fanout),
                // A uint32 in the message's definition: the low bits of a longer number count.
                (7, Value::Varint(mode)) => message.metadata.mode = Some(mode as u32 & MODE_BITS),
                (8, Value::Bytes(time)) => message.metadata.mtime = Some(decode_time(&time)?),
                (1..=8, _) => return Err(DagError::UnixFs("a field has the wrong type")),
                _ => {}
            }
        }
        message.kind = kind.ok_or(DagError::UnixFs("it has no type"))?;
        Ok(message)
    }
}

const MODE_BITS: u32 = 0o7777;
const MAX_NANOSECONDS: u32 = 999_999_999;

fn decode_time(bytes: &Bytes) -> Result<(i64, u32), DagError> {
    let (mut seconds, mut nanoseconds) = (None, 0);
    let mut reader = Reader::new(bytes, DagError::UnixFs);
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Value::Varint(number)) => seconds = Some(number as i64),
            (2, Value::Fixed32(number)) if number <= MAX_NANOSECONDS => nanoseconds = number,
            (1 | 2, _) => return Err(DagError::UnixFs("its time is not one")),
            _ => {}
        }
    }
    Ok((seconds.ok_or(DagError::UnixFs("its time has no seconds"))?, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let message = Message {
            data: Some(Bytes::from_static(b"inline")),
            file_size: Some(306),
            block_sizes: vec![200, 100],
            hash_type: Some(MURMUR3_X64_64),
            fanout: Some(256),
            metadata: Metadata { mode: Some(0o4755), mtime: Some((-1, 999_999_999)) },
            ..Message::new(Type::File)
        };
        assert_eq!(Message::decode(&Bytes::from(message.encode()), 2), Ok(message.clone()));
        assert!(Message::decode(&Bytes::from(message.encode()), 1).is_err(), "a block size with no link");
    }

    #[test]
    fn packed_block_sizes_and_unknown_fields_are_read() {
        let bytes = Bytes::from_static(&[0x08, 2, 0x22, 3, 1, 0x80, 1, 0x7a, 1, 9, 0x79, 1, 2, 3, 4, 5, 6, 7, 8]);
        let message = Message { block_sizes: vec![1, 128], ..Message::new(Type::File) };
        assert_eq!(Message::decode(&bytes, 2), Ok(message));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let decode = |bytes: &'static [u8]| Message::decode(&Bytes::from_static(bytes), 9);
        assert!(decode(&[]).is_err(), "no type");
        assert!(decode(&[0x08, 3]).is_err(), "a retired type");
        assert!(decode(&[0x08, 6]).is_err(), "an unknown type");
        assert!(decode(&[0x0a, 0]).is_err(), "a type of the wrong type");
        assert!(decode(&[0x08, 2, 0x42, 0]).is_err(), "a time with no seconds");
        assert!(decode(&[0x08, 2, 0x42, 7, 8, 1, 0x15, 0, 0xca, 0x9a, 0x3b]).is_err(), "a whole second of nanoseconds");
    }
}
