"""Two ways to take pairs from a list: in shuffled passes, or weighted by how much their answers disagree.

Both are functions of their seed, of the draws so far and, if weighted, of the rewards seen; the state is JSON values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from dig_rl.curriculum.stages import MAX_SPREAD
from dig_rl.types import Example

REPLAY, WEIGHTED = 1, 2
"""Last word of a generator's seed, so that streams of one stage differ; a stage's own passes end with nothing."""


class Passes:
    """Every pair once in shuffled order, then all again in another order."""

    def __init__(self, examples: Sequence[Example], seed: tuple[int, int], *purpose: int) -> None:
        """Args: `seed` of run and stage; `purpose` sets streams of one stage apart."""
        self.examples = tuple(examples)
        self._seed, self._purpose = seed, purpose
        self._start_pass(0)
        self._deferred: list[int] = []  # passed over because the step held them already: they come first next time

    def draw(self, count: int, held: Collection[str] = ()) -> list[Example]:
        """Take the next `count` pairs, none twice and none of `held` as long as others are left in the list.

        Args:
            count: pairs to take.
            held: ids of pairs that the step has already.
        """
        held = set(held)
        barred = {index for index, example in enumerate(self.examples) if example.pair_id in held} if held else set()
        taken: list[int] = []
        skipped: list[int] = []
        while len(taken) < count:
            if len(barred) == len(self.examples):
                self._deferred, skipped, barred = skipped + self._deferred, [], set()
            index = self._pop()
            if index in barred:
                skipped.append(index)
            else:
                taken.append(index)
                barred.add(index)
        self._deferred = skipped + self._deferred
        return [self.examples[index] for index in taken]

    def state_dict(self) -> dict[str, Any]:
        """Where in which pass the stream is."""
        return {"pass": self._pass, "offset": self._offset, "deferred": list(self._deferred)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._start_pass(state["pass"])
        self._offset, self._deferred = state["offset"], list(state["deferred"])

    def _start_pass(self, index: int) -> None:
        self._pass, self._offset = index, 0
        rng = np.random.default_rng([*self._seed, index, *self._purpose])
        self._order: list[int] = rng.permutation(len(self.examples)).tolist()

    def _pop(self) -> int:
        if self._deferred:
            return self._deferred.pop(0)
        if self._offset == len(self._order):
            self._start_pass(self._pass + 1)
        self._offset += 1
        return self._order[self._offset - 1]


class WeightedDraws:
    """Pairs drawn without replacement within a step, with probability proportional to their last reward spread."""

    def __init__(
        self, examples: Sequence[Example], seed: tuple[int, int], floor: float, spreads: Mapping[str, float]
    ) -> None:
        """Args:
        examples: the pairs.
        seed: of run and stage.
        floor: least weight, over 0.
        spreads: last observed spread by pair id, looked up at each draw.
        """
        self.examples = tuple(examples)
        self._seed, self._floor, self._spreads = seed, floor, spreads
        self._num_draws = 0

    def draw(self, count: int, held: Collection[str] = ()) -> list[Example]:
        """Take `count` pairs, none twice and none of `held` as long as others are left in the list."""
        rng = np.random.default_rng([*self._seed, self._num_draws, WEIGHTED])
        self._num_draws += 1
        weights = self.weights()
        left = np.array([example.pair_id not in held for example in self.examples])
        taken: list[int] = []
        while len(taken) < count:
            if not left.any():
                left[:] = True
            odds = weights * left / (weights * left).sum()
            wanted = min(count - len(taken), int(left.sum()))
            chosen = rng.choice(len(odds), wanted, replace=False, p=odds)
            left[chosen] = False
            taken += chosen.tolist()
        return [self.examples[index] for index in taken]

    def weights(self) -> np.ndarray:
        """`[N]` weights of the pairs, in [floor, 0.5]."""
        spreads = [self._spreads.get(example.pair_id, MAX_SPREAD) for example in self.examples]
        return np.maximum(spreads, self._floor)

    def state_dict(self) -> dict[str, Any]:
        """How often was drawn."""
        return {"num_draws": self._num_draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._num_draws = state["num_draws"]
