"""The protocols that the server speaks. To add one, write a file and add its row."""

from __future__ import annotations

from plaudit.serve.protocols.classify import CLASSIFY, ENCODE
from plaudit.serve.protocols.llama_factory import SCORE_EVALUATION
from plaudit.serve.protocols.openrlhf import GET_REWARD
from plaudit.serve.protocols.pooling import EMBEDDINGS, POOLING
from plaudit.serve.protocols.records import Protocol
from plaudit.serve.protocols.rerank import RERANK
from plaudit.serve.protocols.rewards import COMPARE, REWARDS
from plaudit.serve.protocols.score import SCORE

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        REWARDS,
        COMPARE,
        GET_REWARD,
        SCORE_EVALUATION,
        CLASSIFY,
        ENCODE,
        POOLING,
        EMBEDDINGS,
        SCORE,
        RERANK,
    )
}
