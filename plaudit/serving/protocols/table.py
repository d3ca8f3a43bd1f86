"""The protocols that the server speaks. To add one, write a file and add its row."""

from __future__ import annotations

from plaudit import registry
from plaudit.serving.protocols.classify import CLASSIFY, ENCODE
from plaudit.serving.protocols.pooling import EMBEDDINGS, POOLING
from plaudit.serving.protocols.records import Protocol
from plaudit.serving.protocols.rerank import RERANK
from plaudit.serving.protocols.rewards import COMPARE, REWARDS
from plaudit.serving.protocols.score import SCORE

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        REWARDS,
        COMPARE,
        *registry.every("protocol").values(),
        CLASSIFY,
        ENCODE,
        POOLING,
        EMBEDDINGS,
        SCORE,
        RERANK,
    )
}
