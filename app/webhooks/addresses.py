"""Which addresses a message may go to: the public internet, and networks that the operator names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = ip_network("64:ff9b::/96")
_REFUSED: tuple[Network, ...] = (
    ip_network("192.0.0.0/24"),  # protocol assignments, of which Python holds some for global; metadata of a cloud
    ip_network("64:ff9b:1::/48"),  # local-use NAT64 (RFC 8215), which leads into private IPv4 networks
    ip_network("168.63.129.16/32"),  # metadata of a cloud, although the address is a public one
)


@dataclass(frozen=True)
class AddressPolicy:
    """Refuses what is not on the public internet, unless it lies in one of `allowed`."""

    allowed: Sequence[Network] = ()

    def permits(self, text: str) -> bool:
        """Whether a connection may go to this address, given as digits; an IPv6 scope is looked through."""
        return all(self._permits(address) for address in _meant(ip_address(text.partition("%")[0])))

    def permits_host(self, host: str) -> bool:
        """Whether a URL may name this host. A name that is not obviously local is judged when it is resolved."""
        try:
            return self.permits(host.strip("[]"))
        except ValueError:
            is_local = f".{host.rstrip('.').lower()}".endswith(".localhost")
            return not is_local or self.permits("127.0.0.1")

    def _permits(self, address: Address) -> bool:
        if any(address in network for network in self.allowed if network.version == address.version):
            return True
        public = address.is_global and not (address.is_multicast or address.is_reserved)
        local = isinstance(address, IPv6Address) and address.is_site_local
        return public and not local and not any(address in each for each in _REFUSED if each.version == address.version)


def _meant(address: Address) -> list[Address]:
    """The IPv4 addresses inside an IPv6 address that is translated or tunnelled to them, else the address itself."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address.sixtofour:
        return [address.sixtofour]
    if address.teredo:
        return [*address.teredo]
    return [IPv4Address(int(address) & 0xFFFFFFFF)] if address in _NAT64 else [address]
