"""Rewards of recent conversations, bounded; the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict

from plaudit.types import FloatArray, TokenTree, conversation_digests


class ScoreCache:
    """Reward by token ids. Used by the one thread that owns the model.

    A conversation is known by a 128-bit digest of its ids: 32 bytes of memory whatever its length.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._rewards: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rewards)

    def get(self, key: bytes) -> float | None:
        reward = self._rewards.get(key)
        if reward is not None:
            self._rewards.move_to_end(key)
        return reward

    def put(self, key: bytes, reward: float) -> None:
        if self._entries <= 0:
            return
        self._rewards[key] = reward
        self._rewards.move_to_end(key)
        if len(self._rewards) > self._entries:
            self._rewards.popitem(last=False)

    def settle(self, tree: TokenTree, rewards_K: FloatArray) -> FloatArray:
        """The reward that each conversation got before; else this one, which is kept."""
        settled_K = rewards_K.copy()
        for k, key in enumerate(conversation_digests(tree.branches, tree.prefix)):
            before = self.get(key)
            if before is None:
                self.put(key, float(rewards_K[k]))
            else:
                settled_K[k] = before
        return settled_K
