//! What the operator says about the network: addresses, the listening port, who may connect.
#![forbid(unsafe_code)]

use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::str::FromStr;

use heapless::Vec;

/// Entries of an allow list.
pub const MAX_ALLOWED: usize = 16;

/// A range of IPv4 addresses, written `ADDR/LEN` or `ADDR` (a single one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// Any address of the range (or, for an interface, its own).
    pub address: Ipv4Addr,
    /// Leading bits that count, 0 to 32.
    pub prefix: u8,
}

impl Cidr {
    /// Whether `address` lies in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0);
        (address.to_bits() ^ self.address.to_bits()) & mask == 0
    }
}

impl FromStr for Cidr {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, prefix.parse().map_err(|_| ())?),
            None => (text, 32),
        };
        if prefix > 32 {
            return Err(());
        }
        Ok(Self {
            address: address.parse().map_err(|_| ())?,
            prefix,
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Where the interface's address comes from: `dhcp`, `ADDR/LEN[,GW]` or `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpConfig {
    /// No network.
    Off,
    /// From a DHCP server, asked until it answers.
    #[default]
    Dhcp,
    /// As given.
    Static {
        /// Our address and the network's prefix.
        address: Cidr,
        /// The router for all other networks.
        gateway: Option<Ipv4Addr>,
    },
}

impl FromStr for IpConfig {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "off" => Ok(Self::Off),
            "dhcp" => Ok(Self::Dhcp),
            _ => {
                let (address, gateway) = match text.split_once(',') {
                    Some((address, gateway)) => (address, Some(gateway.parse().map_err(|_| ())?)),
                    None => (text, None),
                };
                let address: Cidr = address.parse()?;
                let unicast =
                    |a: Ipv4Addr| !(a.is_unspecified() || a.is_multicast() || a.is_broadcast());
                if !text.contains('/') || !unicast(address.address) || !gateway.is_none_or(unicast)
                {
                    return Err(());
                }
                Ok(Self::Static { address, gateway })
            }
        }
    }
}

/// Who may connect: everyone, or the addresses of these ranges (of none: nobody).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList(pub Option<Vec<Cidr, MAX_ALLOWED>>);

impl AllowList {
    /// Everyone.
    pub const fn everyone() -> Self {
        Self(None)
    }

    /// Whether a peer at `address` may connect.
    pub fn admits(&self, address: Ipv4Addr) -> bool {
        self.0
            .as_ref()
            .is_none_or(|ranges| ranges.iter().any(|range| range.contains(address)))
    }
}

impl FromStr for AllowList {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut list = Vec::new();
        for range in text.split(',') {
            list.push(range.parse()?).map_err(|_| ())?;
        }
        Ok(Self(Some(list)))
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Our address.
    pub ip: IpConfig,
    /// Where the first port listens; the unspecified address is any of ours.
    pub listen: SocketAddrV4,
    /// The fence of every port.
    pub allow: AllowList,
    /// Something that differs from boot to boot (sequence numbers and DHCP transactions start from it).
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range: Cidr = "10.0.2.0/24".parse().unwrap();
        assert!(range.contains(Ipv4Addr::new(10, 0, 2, 77)));
        assert!(!range.contains(Ipv4Addr::new(10, 0, 3, 77)));
        assert!(
            "0.0.0.0/0"
                .parse::<Cidr>()
                .unwrap()
                .contains(Ipv4Addr::new(1, 2, 3, 4))
        );
        assert!(
            "1.2.3.4"
                .parse::<Cidr>()
                .unwrap()
                .contains(Ipv4Addr::new(1, 2, 3, 4))
        );
        assert!(
            !"1.2.3.4"
                .parse::<Cidr>()
                .unwrap()
                .contains(Ipv4Addr::new(1, 2, 3, 5))
        );
        for bad in ["", "1.2.3", "1.2.3.4/33", "1.2.3.4/", "x/8", "1.2.3.4/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!("dhcp".parse(), Ok(IpConfig::Dhcp));
        assert_eq!("off".parse(), Ok(IpConfig::Off));
        assert_eq!(
            "10.0.2.15/24,10.0.2.2".parse(),
            Ok(IpConfig::Static {
                address: Cidr {
                    address: Ipv4Addr::new(10, 0, 2, 15),
                    prefix: 24
                },
                gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            })
        );
        for bad in [
            "10.0.2.15",
            "10.0.2.15/24,",
            "0.0.0.0/8",
            "224.0.0.1/8",
            "10.0.0.1/8,255.255.255.255",
            "on",
        ] {
            assert!(bad.parse::<IpConfig>().is_err(), "{bad}");
        }
    }

    #[test]
    fn fence() {
        let list: AllowList = "10.0.0.0/8,192.168.1.7".parse().unwrap();
        assert!(list.admits(Ipv4Addr::new(10, 9, 9, 9)));
        assert!(list.admits(Ipv4Addr::new(192, 168, 1, 7)));
        assert!(!list.admits(Ipv4Addr::new(192, 168, 1, 8)));
        assert!(!AllowList(Some(Vec::new())).admits(Ipv4Addr::new(10, 0, 0, 1)));
        assert!(AllowList::everyone().admits(Ipv4Addr::new(8, 8, 8, 8)));
        assert!("10.0.0.0/8,,".parse::<AllowList>().is_err());
    }
}
