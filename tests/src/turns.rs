//! The other side of a protocol by turns, written by hand: frames as they come, whatever was said before.

use std::io;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use p2p_node::net::Stream;
use p2p_protocol::wire::{
    frame::{HEADER_BYTES, Header},
    turns::Turn,
};

/// The next frame that a real service says, and its request.
///
/// # Errors
/// The stream broke, or ended.
///
/// # Panics
/// It is no frame, or over its bound.
pub async fn hear<T: Turn>(stream: &mut Stream) -> io::Result<(u32, T)> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let header = Header::decode(&header, T::limit).expect("honest peers keep to the bounds");
    let mut payload = vec![0; header.length as usize];
    stream.read_exact(&mut payload).await?;
    Ok((header.request, T::decode(header.kind, payload.into()).expect("honest peers speak well")))
}

/// Says a frame.
///
/// # Errors
/// The stream broke.
pub async fn say<T: Turn>(stream: &mut Stream, request: u32, frame: &T) -> io::Result<()> {
    stream.write_all(&frame.encode(request)).await?;
    stream.flush().await
}
