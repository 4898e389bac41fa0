//! What counts as one address and as one network: an IPv4 address, or the /64 network of an IPv6 address, since a single IPv6
//! client has all addresses of its network; and the larger network that addresses are given out in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits of an address by which networks are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkSize {
    /// At most 32.
    pub ipv4_bits: u8,
    /// At most 64: what is one address is one network.
    pub ipv6_bits: u8,
}

/// A customer of a provider has a whole /64 network (RFC 6177).
const ADDRESS: NetworkSize = NetworkSize { ipv4_bits: 32, ipv6_bits: 64 };

/// The address under which a client is counted.
pub(super) fn counted_as(address: IpAddr) -> IpAddr {
    network_of(address, ADDRESS)
}

/// The first address of the network.
pub(super) fn network_of(address: IpAddr, size: NetworkSize) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(size.ipv4_bits.min(32))).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(size.ipv6_bits.min(64))).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_counts_by_64_and_ipv4_by_address() {
        for (address, expected) in [
            ("203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
            ("::1", "::"),
        ] {
            assert_eq!(counted_as(address.parse().unwrap()), expected.parse::<IpAddr>().unwrap(), "{address}");
        }
    }

    #[test]
    fn a_network_is_as_large_as_configured() {
        for (address, bits, expected) in [
            ("203.0.113.7", (24, 48), "203.0.113.0"),
            ("203.0.113.7", (32, 48), "203.0.113.7"),
            ("203.0.113.7", (0, 0), "0.0.0.0"),
            ("::ffff:203.0.113.7", (16, 48), "203.0.0.0"),
            ("2001:db8:1:2:3:4:5:6", (24, 48), "2001:db8:1::"),
            ("2001:db8:1:2:3:4:5:6", (24, 64), "2001:db8:1:2::"),
            ("2001:db8:1:2:3:4:5:6", (24, 0), "::"),
        ] {
            let size = NetworkSize { ipv4_bits: bits.0, ipv6_bits: bits.1 };
            assert_eq!(
                network_of(address.parse().unwrap(), size),
                expected.parse::<IpAddr>().unwrap(),
                "{address} {bits:?}"
            );
        }
    }
}
