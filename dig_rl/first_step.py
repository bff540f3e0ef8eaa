"""What the first step of every run, fresh or continued, makes sure of: sampler and learner work on the same things."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from dig_rl.actors.fleet import Fleet
from dig_rl.errors import PolicyError
from dig_rl.types import Example, PolicyInput

_log = logging.getLogger(__name__)


class FirstStep:
    """The checks of one run; each is made once, and costs nothing afterwards."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pictures_are_known = False
        self._sync_is_known = False

    def same_weights(self) -> None:
        """Compare what the engines hold with the learner's weights, before anything is sampled from them.

        Raises:
            PolicyError: they differ; names the weights.
        """
        self._fleet.check_weights()

    def same_weights_after_sync(self) -> None:
        """Compare them again once learning has changed the weights and they have been sent.

        Raises:
            PolicyError: they differ; names the weights.
        """
        if not self._sync_is_known:
            self._fleet.check_weights()
            self._sync_is_known = True

    @contextlib.contextmanager
    def same_pictures(self) -> Iterator[None]:
        """Compare the pictures of all pairs sampled meanwhile with what the learner makes of them.

        Raises:
            PolicyError: they differ; names the pair.
        """
        if self._pictures_are_known:
            yield
            return
        self._fleet.rollouts.watch_inputs()
        yield
        sampled = self._fleet.rollouts.policy_inputs()
        learned = self._fleet.learner.policy_inputs(list(sampled), [found.dtype for found in sampled.values()])
        compare_inputs(sampled, dict(zip(sampled, learned, strict=True)))
        _log.info("the pictures of the first %d pairs are the same for sampler and learner", len(sampled))
        self._pictures_are_known = True


def compare_inputs(sampled: Mapping[Example, PolicyInput], learned: Mapping[Example, PolicyInput]) -> None:
    """Make sure that the pictures of every pair reach sampler and learner as the same tensors.

    Raises:
        PolicyError: names the first pair that differs, and what either side has of it.
    """
    different = [example for example, found in sampled.items() if found != learned[example]]
    if not different:
        return
    example = different[0]
    sampler, learner = _in_words(sampled[example]), _in_words(learned[example])
    raise PolicyError(
        f"pair {example.pair_id}: sampler and learner see different pictures ({len(different)} of the {len(sampled)} "
        f"pairs of the first step): the sampler {sampler}, the learner {learner}. Nothing was learned. Look at "
        f"{example.image_a_path} and {example.image_b_path} on the machines of both, at policy.path's "
        "preprocessor files, at rollout.vllm.mm_processor_kwargs, and whether both have one version of transformers"
    )


def _in_words(found: PolicyInput) -> str:
    grids = " and ".join("x".join(map(str, row)) for row in found.grid)
    scale = f" scaled by {found.level_scale}" if found.level_scale else ""
    return (
        f"{'x'.join(map(str, found.shape))} {found.dtype} values of {grids} patches{scale}, sha256 {found.sha256[:16]}"
    )
