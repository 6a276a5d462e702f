"""Which page of the cache belongs to whom.

A page holds the keys and values of `page_size` tokens in every layer. Requests that begin alike share the full pages of
what is alike while one of them lives: a page's key is the page before it and its tokens, so equal keys mean equal
prefixes. A page that nobody holds is forgotten at once, so nothing outlives a change of the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

SCRATCH = 0
"""The page that rows without a request write to. It is never given out."""
_Key = tuple[int, tuple[int, ...]]


class Pages:
    """The pages of one cache.

    Args:
        count: pages to give out, numbered from 1. page_size: tokens a page.
    """

    def __init__(self, count: int, page_size: int) -> None:
        self.count, self.page_size = count, page_size
        self._free = deque(range(1, count + 1))
        self._holders = [0] * (count + 1)
        self._by_key: dict[_Key, int] = {}
        self._keys: dict[int, _Key] = {}

    @property
    def free(self) -> int:
        """How many are left."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Pages that so many tokens take."""
        return -(-tokens // self.page_size)

    def take(self) -> int:
        """A free page; there must be one."""
        page = self._free.popleft()
        self._holders[page] = 1
        return page

    def shared(self, tokens: Sequence[int]) -> list[int]:
        """The pages that hold the beginning of `tokens` already, in order; they are not taken by this."""
        found: list[int] = []
        before = SCRATCH
        for start in range(0, len(tokens) - self.page_size + 1, self.page_size):
            page = self._by_key.get((before, tuple(tokens[start : start + self.page_size])))
            if page is None:
                break
            found.append(page)
            before = page
        return found

    def hold(self, pages: Sequence[int]) -> None:
        """Adds a holder to pages that have one."""
        for page in pages:
            self._holders[page] += 1

    def publish(self, pages: Sequence[int], first: int, tokens: Sequence[int]) -> None:
        """Offers pages for sharing: `pages` from index `first` on are full of the `tokens` of their request."""
        size = self.page_size
        for index in range(first, len(tokens) // size):
            page = pages[index]
            key = (pages[index - 1] if index else SCRATCH, tuple(tokens[index * size : (index + 1) * size]))
            if key not in self._by_key:
                self._by_key[key] = page
                self._keys[page] = key

    def give_back(self, pages: Sequence[int]) -> None:
        """Takes a holder away from each; those without one are free again."""
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page] == 0:
                key = self._keys.pop(page, None)
                if key is not None:
                    del self._by_key[key]
                self._free.append(page)
