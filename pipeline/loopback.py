"""Where the processes of a group listen for each other."""

import os
import socket

_NAMES = ("lo", "lo0")  # of Linux, of macOS and the BSDs
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def listen_on_loopback() -> None:
    """Lets gloo and NCCL open their ports on the loopback, where all processes of a group are on this machine.

    Gloo would take the address that the host's name has, which other machines may reach, even for one process alone.
    It holds for all later groups of this process and of those that it starts; what the user has set stays.
    """
    os.environ.update({name: value for name, value in loopback_variables().items() if name not in os.environ})


def loopback_variables() -> dict[str, str]:
    """The variables that say so, for processes that are started with them; none where there is no loopback."""
    found = [name for _, name in socket.if_nameindex() if name in _NAMES]
    return dict.fromkeys(_VARIABLES, found[0]) if found else {}
