"""Sockets as the reactor wants them: non-blocking, unable to be inherited, without Nagle's delay, and quick to notice a dead peer."""

from __future__ import annotations

import errno
import fcntl
import socket
import termios
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from typing import Any

from dynamo.config import join_address, split_address
from dynamo.errors import ConfigError

BACKLOG = 1024
SocketAddress = tuple[int, Any]  # address family, address in the form of that family
# A peer that vanished (power, cable) sends no reset. Unacknowledged data or unanswered probes for this long end the connection.
PEER_SILENCE_MS = 5_000
_INT = Struct("i")
# Documentation addresses; nothing is sent there.
_ANYWHERE: dict[int, tuple[str, int]] = {socket.AF_INET: ("192.0.2.1", 9), socket.AF_INET6: ("2001:db8::1", 9)}


def listen(address: str) -> socket.socket:
    """A listening socket on `host:port`; port 0 takes a free one. Raises ConfigError where that cannot be."""
    host, port = split_address(address, where="listen", port_min=0)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"listen: {address}: {error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException as error:
        sock.close()
        if not isinstance(error, OSError):  # an interruption
            raise
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"listen: {address} is in use by another process; stop it or choose another port (0 takes a free one)") from None
        raise ConfigError(f"listen: {address}: {error.strerror}") from None
    return sock


def advertised(address: str, listener: socket.socket, advertise: str | None = None) -> str:
    """What other nodes are told: `advertise`, or else the host as configured, with the port really bound where they name none (0).

    For "every interface" without it, that is the interface the default route leaves by, which is right on most machines with one network. Raises
    ConfigError where there is none, or only a loopback one: others would meet themselves at such an address.
    """
    bound = listener.getsockname()
    host, port = split_address(advertise or address, where="advertise" if advertise else "listen", port_min=0)
    port = port if advertise and port else bound[1]
    if not advertise and is_unspecified(bound[0]):
        families = [listener.family]
        if listener.family == socket.AF_INET6 and not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            families.append(socket.AF_INET)
        found = next(filter(None, map(_own_host, families)), None)
        if found is None:
            raise ConfigError(
                f"listen: {address} is every address of this machine, and no route tells by which one other nodes reach it; "
                f"say so: advertise = HOST:{port} (--advertise), or listen on one address"
            )
        host = found
    return join_address(host, port)


def bound(listener: socket.socket) -> str:
    """Where it listens, as numbers."""
    return join_address(*listener.getsockname()[:2])


def is_loopback(address: str) -> bool:
    """Whether `host:port` is written as one that no other machine reaches."""
    host, _ = split_address(address)
    parsed = _parsed(host)
    return host == "localhost" if parsed is None else parsed.is_loopback


def is_remote(address: str) -> bool:
    """Whether `host:port` is written as numbers that other machines reach."""
    parsed = _parsed(split_address(address)[0])
    return parsed is not None and not parsed.is_loopback


def is_unspecified(host: str) -> bool:
    """Whether that stands for every address of a machine."""
    parsed = _parsed(host)
    return parsed is not None and parsed.is_unspecified


def _parsed(host: str) -> IPv4Address | IPv6Address | None:
    """The address in a host written as numbers; of an IPv4 address in IPv6 form, that."""
    try:
        parsed = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def numeric(host: str, port: int) -> SocketAddress | None:
    """The address, if `host` is written as numbers; None for a name, which has to be looked up."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
    except (OSError, UnicodeError):  # the latter for what is no name either
        return None
    return found[0][0], found[0][4]


def begin_connect(target: SocketAddress) -> socket.socket:
    """A socket on its way to `target`: writable once it is connected or has failed. Raises OSError."""
    sock = socket.socket(target[0], socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        result = sock.connect_ex(target[1])
        if result not in (0, errno.EINPROGRESS):
            raise OSError(result, errno.errorcode.get(result, "connect"))
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """Settings of every connection."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def tune_peer(sock: socket.socket) -> None:
    """Further settings of a connection between nodes."""
    for option, value in (
        ("TCP_USER_TIMEOUT", PEER_SILENCE_MS),
        ("TCP_KEEPIDLE", 2),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", 3),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def untaken_bytes(sock: socket.socket) -> int:
    """How much of what was sent the other side's kernel has not acknowledged; 0 where ours does not tell."""
    try:
        return _INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT.size)))[0]  # type: ignore[no-any-return]
    except OSError:
        return 0


def _own_host(family: int) -> str | None:
    """This machine's address on the default route, which others reach; connecting a datagram socket picks it and sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(_ANYWHERE[family])
            host = str(probe.getsockname()[0])
    except OSError:
        return None
    parsed = _parsed(host)
    return host if parsed is not None and not (parsed.is_loopback or parsed.is_unspecified or parsed.is_link_local) else None
