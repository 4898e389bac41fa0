//! The PROXY protocol, versions 1 and 2: the header with which a TCP proxy begins a connection to say whom it is from.
//!
//! Reads exactly the header and no byte behind it, so that TLS or HTTP follow untouched. Whether a header is expected is
//! decided by the caller: never by a look at the bytes, which only tells that a proxy was not announced.

use std::io;
use std::net::IpAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

/// A header of version 2 with its extensions; longer ones are refused. Version 1 has at most 107 bytes.
pub const HEADER_BYTES_MAX: usize = 2048;

const V1_BYTES_MAX: usize = 107;
/// Up to and including the length.
const V2_FIXED_BYTES: usize = 16;
const V1_PREFIX: &[u8] = b"PROXY ";

/// Whether what has come so far begins a header of either version. Takes nothing off the socket.
pub(super) async fn begins(socket: &TcpStream) -> bool {
    let mut first = [0; 16];
    let count = socket.peek(&mut first).await.unwrap_or_default();
    let first = &first[..count];
    first.starts_with(V1_PREFIX) || first.starts_with(ppp::v2::PROTOCOL_PREFIX)
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("no PROXY protocol header: is the proxy set to send one?")]
    Missing,
    #[error("the PROXY protocol header has {0} bytes, more than {HEADER_BYTES_MAX}")]
    TooLong(usize),
    #[error("the PROXY protocol header is wrong: {0}")]
    Malformed(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the header. None: the proxy speaks for itself, as for a health check, or does not know the address.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, HeaderError> {
    let mut header = Vec::with_capacity(V1_BYTES_MAX);
    // The shortest header of version 1 is longer than the prefix of version 2.
    fill(stream, &mut header, v2::PROTOCOL_PREFIX.len()).await?;
    if header == v2::PROTOCOL_PREFIX {
        fill(stream, &mut header, V2_FIXED_BYTES).await?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]])) + V2_FIXED_BYTES;
        if length > HEADER_BYTES_MAX {
            return Err(HeaderError::TooLong(length));
        }
        fill(stream, &mut header, length).await?;
        return v2_address(&header);
    }
    if !header.starts_with(V1_PREFIX) {
        return Err(HeaderError::Missing);
    }
    while header.last() != Some(&b'\n') {
        if header.len() >= V1_BYTES_MAX {
            return Err(HeaderError::Malformed("no end of line within 107 bytes".to_owned()));
        }
        // One at a time: what is behind the line is not ours to read.
        header.push(stream.read_u8().await?);
    }
    v1_address(&header)
}

/// Reads until there are `length` bytes; says what is missing as soon as it can't be a header any more.
async fn fill(stream: &mut (impl AsyncRead + Unpin), header: &mut Vec<u8>, length: usize) -> Result<(), HeaderError> {
    let begin = header.len();
    header.resize(length, 0);
    let mut filled = begin;
    while filled < length {
        let count = stream.read(&mut header[filled..]).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        filled += count;
        let seen = &header[..filled.min(v2::PROTOCOL_PREFIX.len())];
        let begins = |known: &[u8]| seen.iter().zip(known).all(|(a, b)| a == b);
        if !begins(v2::PROTOCOL_PREFIX) && !begins(V1_PREFIX) {
            return Err(HeaderError::Missing);
        }
    }
    Ok(())
}

fn v1_address(header: &[u8]) -> Result<Option<IpAddr>, HeaderError> {
    let header = v1::Header::try_from(header).map_err(|error| HeaderError::Malformed(error.to_string()))?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    })
}

fn v2_address(header: &[u8]) -> Result<Option<IpAddr>, HeaderError> {
    let header = v2::Header::try_from(header).map_err(|error| HeaderError::Malformed(error.to_string()))?;
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    if header.protocol == v2::Protocol::Datagram {
        return Err(HeaderError::Malformed("it is about UDP".to_owned()));
    }
    Ok(match header.addresses {
        v2::Addresses::IPv4(addresses) => Some(addresses.source_address.into()),
        v2::Addresses::IPv6(addresses) => Some(addresses.source_address.into()),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address or the error, and what is left for TLS or HTTP.
    async fn read_all(bytes: &[u8]) -> (Result<Option<IpAddr>, String>, Vec<u8>) {
        let mut rest = bytes;
        let address = read(&mut rest).await.map_err(|error| error.to_string());
        (address, rest.to_vec())
    }

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &length, payload].concat()
    }

    fn ipv4(tlv: &[u8]) -> Vec<u8> {
        [&[203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x34, 1, 0xbb], tlv].concat()
    }

    #[tokio::test]
    async fn good_headers_are_read_to_their_last_byte() {
        let mut ipv6 = [0; 36];
        ipv6[..16].copy_from_slice(&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let v4 = Some("203.0.113.7".parse().unwrap());
        let v6 = Some("2001:db8::7".parse().unwrap());
        for (header, expected) in [
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 4660 443\r\n".to_vec(), v4),
            (b"PROXY TCP6 2001:db8::7 ::1 4660 443\r\n".to_vec(), v6),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN 203.0.113.7 10.0.0.1 1 2\r\n".to_vec(), None),
            (v2(0x21, 0x11, &ipv4(&[])), v4),
            (v2(0x21, 0x11, &ipv4(&[4, 0, 1, 42])), v4),
            (v2(0x21, 0x11, &ipv4(&[0; HEADER_BYTES_MAX - 28])), v4),
            (v2(0x21, 0x21, &ipv6), v6),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &ipv4(&[])), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let (address, rest) = read_all(&[&header[..], b"\x16\x03\x01rest"].concat()).await;
            assert_eq!((address, &rest[..]), (Ok(expected), &b"\x16\x03\x01rest"[..]), "{header:?}");
        }
    }

    #[tokio::test]
    async fn a_header_may_come_byte_by_byte() {
        use tokio::io::AsyncWriteExt;
        for header in [v2(0x21, 0x11, &ipv4(&[])), b"PROXY TCP4 203.0.113.7 10.0.0.1 4660 443\r\n".to_vec()] {
            let (mut proxy, mut relay) = tokio::io::duplex(1);
            let writing = tokio::spawn(async move { proxy.write_all(&header).await });
            assert_eq!(read(&mut relay).await.unwrap(), Some("203.0.113.7".parse().unwrap()));
            writing.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn wrong_headers_are_refused() {
        let missing = "no PROXY protocol header";
        let wrong = "is wrong";
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(long.len(), V1_BYTES_MAX + 1);
        for (bytes, expected) in [
            (b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), missing),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00".to_vec(), missing),
            (b"G".to_vec(), missing),
            (b"proxy tcp4 203.0.113.7 10.0.0.1 1 2\r\n".to_vec(), missing),
            (b"PROXYTCP4 203.0.113.7 10.0.0.1 1 2\r\n".to_vec(), missing),
            (b"\r\n\r\n\0\r\nQUIT\r\n".to_vec(), missing),
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 4660 443\n".to_vec(), wrong),
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 4660\r\n".to_vec(), wrong),
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 4660 443 9\r\n".to_vec(), wrong),
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 99999 443\r\n".to_vec(), wrong),
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 -1 443\r\n".to_vec(), wrong),
            (b"PROXY TCP4 203.0.113 10.0.0.1 4660 443\r\n".to_vec(), wrong),
            (b"PROXY TCP4 2001:db8::7 ::1 4660 443\r\n".to_vec(), wrong),
            (b"PROXY TCP6 203.0.113.7 10.0.0.1 4660 443\r\n".to_vec(), wrong),
            (b"PROXY UDP4 203.0.113.7 10.0.0.1 4660 443\r\n".to_vec(), wrong),
            (b"PROXY TCP4  203.0.113.7 10.0.0.1 4660 443\r\n".to_vec(), wrong),
            (b"PROXY TCP4 localhost 10.0.0.1 4660 443\r\n".to_vec(), wrong),
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 4660 443\r\xc3\xa9\n".to_vec(), wrong),
            (b"PROXY \xff\xfe\xfd\xfc\xfb\xfa\r\n".to_vec(), wrong),
            (long.into_bytes(), "no end of line within 107 bytes"),
            (b"PROXY TCP4 ".to_vec(), "unexpected end of file"),
            (v2(0x11, 0x11, &ipv4(&[])), wrong),
            (v2(0x22, 0x11, &ipv4(&[])), wrong),
            (v2(0x21, 0x41, &ipv4(&[])), wrong),
            (v2(0x21, 0x13, &ipv4(&[])), wrong),
            (v2(0x21, 0x12, &ipv4(&[])), "UDP"),
            (v2(0x21, 0x11, &ipv4(&[])[..11]), wrong),
            (v2(0x21, 0x21, &ipv4(&[])), wrong),
            (v2(0x21, 0x11, &[0; HEADER_BYTES_MAX - 15]), "more than 2048"),
            (v2(0x21, 0x11, &ipv4(&[]))[..20].to_vec(), "unexpected end of file"),
            (v2::PROTOCOL_PREFIX.to_vec(), "unexpected end of file"),
            (Vec::new(), "unexpected end of file"),
        ] {
            let (address, _) = read_all(&bytes).await;
            let error = address.expect_err(&String::from_utf8_lossy(&bytes));
            assert!(error.contains(expected), "{:?}: {error}", String::from_utf8_lossy(&bytes));
        }
    }
}
