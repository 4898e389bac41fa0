//! The inbound guard for the fuzz targets; compiled under `--cfg fuzzing` alone.

use super::guard::Guard;
use super::wire::Wire;
use std::sync::Arc;
use std::task::Poll;

/// What passes the guard when `stream` comes in pieces of `piece_bytes` and is read into buffers of `buffer_bytes`.
pub fn through_the_guard(stream: &[u8], piece_bytes: usize, buffer_bytes: usize, frame_bytes_max: u32) -> Vec<u8> {
    let mut guard = Guard::new("fuzz".into(), frame_bytes_max, Arc::new(Wire::default()));
    let mut rest = stream;
    let mut buffer = vec![0; buffer_bytes];
    let mut out = Vec::new();
    loop {
        let filled = guard.poll_fill(&mut buffer, |space| {
            let bytes = piece_bytes.min(space.len()).min(rest.len());
            space[..bytes].copy_from_slice(&rest[..bytes]);
            rest = &rest[bytes..];
            Poll::Ready(Ok(bytes))
        });
        match filled {
            Poll::Ready(Ok(0)) => return out,
            Poll::Ready(Ok(bytes)) => out.extend_from_slice(&buffer[..bytes]),
            // The reader above never waits and never fails.
            Poll::Ready(Err(_)) | Poll::Pending => unreachable!("the reader is always ready"),
        }
    }
}
