//! The interface's address: as configured, or by DHCP for as long as the lease lasts.
#![forbid(unsafe_code)]

use core::net::Ipv4Addr;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::time::Duration;
use smoltcp::wire::{IpCidr, Ipv4Cidr};

use super::config::{Cidr, IpConfig};
use super::status::{AddressInfo, Status};

/// After so long without an answer the operator is told, once.
const PATIENCE_NS: u64 = 10_000_000_000;

/// Seconds after which an unanswered DISCOVER is repeated.
const DISCOVER_SECONDS: u64 = 2;

/// Where the address comes from and whether it is there.
pub struct Addressing {
    dhcp: Option<SocketHandle>,
    /// When to complain; `u64::MAX` once done.
    complain_at: u64,
    status: &'static Status,
    card: &'static str,
}

impl Addressing {
    /// Sets a static address, or begins to ask for one.
    pub fn new(
        ip: IpConfig,
        interface: &mut Interface,
        control: &mut SocketSet<'static>,
        status: &'static Status,
        card: &'static str,
        now_ns: u64,
    ) -> Self {
        let mut new = Self {
            dhcp: None,
            complain_at: u64::MAX,
            status,
            card,
        };
        match ip {
            IpConfig::Off => {}
            IpConfig::Static { address, gateway } => new.set(interface, Some(address), gateway),
            IpConfig::Dhcp => {
                let mut socket = dhcpv4::Socket::new();
                let mut retry = socket.get_retry_config();
                retry.discover_timeout = Duration::from_secs(DISCOVER_SECONDS);
                retry.initial_request_timeout = Duration::from_secs(DISCOVER_SECONDS);
                socket.set_retry_config(retry);
                new.dhcp = Some(control.add(socket));
                new.complain_at = now_ns.saturating_add(PATIENCE_NS);
                status.set_address(AddressInfo {
                    dhcp: true,
                    ..AddressInfo::default()
                });
            }
        }
        new
    }

    fn set(&mut self, interface: &mut Interface, address: Option<Cidr>, gateway: Option<Ipv4Addr>) {
        interface.update_ip_addrs(|addresses| {
            addresses.clear();
            if let Some(address) = address {
                // Room for two, and it was just emptied.
                let _ =
                    addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address.address, address.prefix)));
            }
        });
        interface.routes_mut().remove_default_ipv4_route();
        if let Some(gateway) = gateway {
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        let dhcp = self.dhcp.is_some();
        self.status.set_address(AddressInfo {
            address,
            gateway,
            dhcp,
        });
        let card = self.card;
        match (address, gateway) {
            // A static address is the operator's own word.
            _ if !dhcp => {}
            (Some(address), Some(gateway)) => {
                log::info!("{card}: {address} by DHCP, gateway {gateway}");
            }
            (Some(address), None) => log::info!("{card}: {address} by DHCP"),
            (None, _) => log::warn!("{card}: the lease is lost; asking again"),
        }
    }

    /// Takes news from the DHCP socket. True: the address changed.
    pub fn look(
        &mut self,
        interface: &mut Interface,
        control: &mut SocketSet<'static>,
        now_ns: u64,
    ) -> bool {
        let Some(handle) = self.dhcp else {
            return false;
        };
        if now_ns >= self.complain_at {
            self.complain_at = u64::MAX;
            log::warn!(
                "{}: no answer from a DHCP server in 10 s; trying on",
                self.card
            );
        }
        let event = control.get_mut::<dhcpv4::Socket>(handle).poll();
        match event {
            None => false,
            Some(dhcpv4::Event::Deconfigured) => {
                // Also the first thing it says.
                let had = interface.ipv4_addr().is_some();
                if had {
                    self.set(interface, None, None);
                }
                had
            }
            Some(dhcpv4::Event::Configured(lease)) => {
                let address = Cidr {
                    address: lease.address.address(),
                    prefix: lease.address.prefix_len(),
                };
                // smoltcp asserts that a next hop is unicast, and a server may say anything.
                let unicast =
                    |a: &Ipv4Addr| !(a.is_unspecified() || a.is_multicast() || a.is_broadcast());
                self.complain_at = u64::MAX;
                self.set(interface, Some(address), lease.router.filter(unicast));
                true
            }
        }
    }

    /// When [`Addressing::look`] has something to say of its own accord (ns).
    pub fn deadline(&self) -> u64 {
        self.complain_at
    }
}
