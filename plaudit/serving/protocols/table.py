"""The protocols that the server speaks. To add one, declare its row and name it here.

Apart from the rows, since those of other tools import what the rows are made of.
"""

from __future__ import annotations

from plaudit import registry
from plaudit.serving.protocols.inference_servers import INFERENCE_SERVERS
from plaudit.serving.protocols.records import Protocol
from plaudit.serving.protocols.rewards import COMPARE, REWARDS

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (REWARDS, COMPARE, *registry.every("protocol").values(), *INFERENCE_SERVERS)
}
