"""What a stage file may say, what is refused, and what the shipped ones hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dig_rl.config import Config, load_config
from dig_rl.curriculum import Curriculum, Stage, load_stages, open_curriculum, stage_config
from dig_rl.errors import ConfigError
from dig_rl.types import Example

ROOT = Path(__file__).resolve().parent.parent
STAGE = "[[stages]]\nname = 'a'\ndifferences = [1, 1]\n"
ENDLESS = STAGE + "promotion = {level = 0.5, window = 3}"


def example(*kinds: str, boxes: list[tuple[float, ...]] | None = None, seen: tuple[Any, ...] = ()) -> Example:
    targets = boxes or [(0.0, 0.0, 10.0, 10.0)] * len(kinds)
    return Example("p", "/a.png", "/b.png", (100, 50), tuple(targets), kinds, "train", seen)  # type: ignore[arg-type]


def stage(**keys: Any) -> Stage:
    return Stage.model_validate({"name": "a", "differences": [0, 4], "steps": 1, **keys})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stages"),
        ("stages = []", "at least 1 item"),
        ("stages = 3", "stages"),
        ("[[stages]", "not valid TOML"),
        (STAGE, "either steps or epochs or until_step as its length, found none of them"),
        (STAGE + "steps = 1\nepochs = 1", "found steps and epochs"),
        (STAGE + "steps = 1\nuntil_step = 1", "found steps and until_step"),
        (STAGE + "steps = 0", "greater than or equal to 1"),
        (STAGE + "steps = 1\n" + STAGE + "steps = 1", "names must differ, found a"),
        ("[[stages]]\nname = 'a'\ndifferences = [2, 1]\nsteps = 1", r"must be \[fewest, most\], found \[2, 1\]"),
        ("[[stages]]\nname = 'a'\ndifferences = [-1, 1]\nsteps = 1", "greater than or equal to 0"),
        ("[[stages]]\nname = 'a'\ndifferences = [1]\nsteps = 1", "stage 1"),
        ("[[stages]]\nname = ''\ndifferences = [1, 1]\nsteps = 1", "name: String should have at least 1 character"),
        ("[[stages]]\nname = '[/x]'\ndifferences = [1, 1]\nsteps = 1", r"name must consist of letters, .* '\[/x\]'"),
        ("[[stages]]\nname = '$a$'\ndifferences = [1, 1]\nsteps = 1", r"name must consist of letters, .* '\$a\$'"),
        (STAGE + "steps = true", "steps: Input should be a valid integer, found True"),
        (STAGE + "steps = '3'", "steps: Input should be a valid integer, found '3'"),
        ("[[stages]]\nname = 'a'\ndifferences = [false, true]\nsteps = 1", "differences.0: .* a valid integer"),
        ("[[stages]]\nname = 'a'\ndiferences = [1, 1]\nsteps = 1", "diferences: no such key; did you mean differences"),
        (STAGE + "steps = 1\nkinds = ['colour']", "kinds.0: Input should be 'color', "),
        (STAGE + "steps = 1\nkinds = []", "kinds: .* at least 1 item"),
        (STAGE + "steps = 1\nsize = [0.5, 0.1]", r"size must be \[least, greatest\], found \[0.5, 0.1\]"),
        (STAGE + "steps = 1\nsize = [0.0, 50]", "size.1: Input should be less than or equal to 1, found 50"),
        (STAGE + "steps = 1\nvisibility = [0.9, 0.1]", r"visibility must be \[least, greatest\]"),
        (STAGE + "steps = 1\nvisibility = [nan, 1]", "visibility.0"),
        (ENDLESS, "as its greatest length, since promotion may never come, found none of them"),
        (ENDLESS.replace("window", "windw") + "\nsteps = 3", "promotion.windw: .* did you mean promotion.window"),
        (ENDLESS.replace(", window = 3", "") + "\nsteps = 3", "promotion.window: Field required"),
        (ENDLESS.replace("0.5", "1.5") + "\nsteps = 3", "promotion.level: Input should be less than or equal to 1"),
        (ENDLESS.replace("0.5", "0") + "\nsteps = 3", "promotion.level: Input should be greater than 0"),
        (ENDLESS.replace("= 3", "= 0") + "\nsteps = 3", "promotion.window: Input should be greater than or equal to 1"),
        (STAGE + "steps = 1\nreplay = 1", "replay: Input should be less than 1, found 1"),
        (STAGE + "steps = 1\nreplay = -0.1", "replay: Input should be greater than or equal to 0"),
        (STAGE + "steps = 1\nreplay = 0.5", '"a" is the first, so it has no earlier pairs to replay, found'),
        (STAGE + "steps = 1\nadaptive = {floor = 0}", "adaptive.floor: Input should be greater than 0"),
        (STAGE + "steps = 1\nadaptive = {flor = 0.1}", "adaptive.flor: no such key; did you mean adaptive.floor"),
        (STAGE + "steps = 1\noverrides = {temprature = 1}", "temprature: .* did you mean overrides.temperature"),
        (STAGE + "steps = 1\noverrides = {temperature = 0}", "overrides.temperature: Input should be greater than or"),
        (STAGE + "steps = 1\noverrides = {group_size = 1}", "overrides.group_size: Input should be greater than or"),
        (STAGE + "steps = 1\noverrides = {kl_coef = 1}", "overrides.kl_coef: no such key"),
    ],
)  # fmt: skip
def test_mistakes_in_a_stage_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "stages.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_stages(path)
    assert "stages.toml" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3  # a misspelt key is also a missing one


def test_a_missing_stage_file_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no stage file at .*gone\.toml; the config's key `curriculum` names it"):
        load_stages(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("kinds", "right"),
    [("'add'", False), ("'color', 'remove'", False), ("'add', 'remove'", True)],
)
def test_a_stage_of_added_objects_alone_needs_pairs_that_are_not_swapped(
    tmp_path: Path, kinds: str, right: bool
) -> None:
    (tmp_path / "stages.toml").write_text(STAGE + f"steps = 1\nkinds = [{kinds}]", encoding="utf-8")

    def open_with(*looks: str) -> Curriculum:
        config = Config.model_validate({"curriculum": "stages.toml", "data": {"looks": looks}})
        return open_curriculum(config, [example("add"), example("remove")], tmp_path)

    open_with("mirror", "recolor")
    if right:
        open_with("swap")
    else:
        with pytest.raises(ConfigError, match=r'stage "a" wants only kinds .* name both kinds, or take swap out'):
            open_with("swap")


def test_a_pair_fits_if_every_change_does() -> None:
    # Boxes of 10x10 and 20x25 in a picture of 100x50: shares 0.02 and 0.1.
    pair = example("color", "add", boxes=[(0, 0, 10, 10), (50, 10, 70, 35)], seen=(0.5, 1.0))
    assert pair.area_shares == pytest.approx((0.02, 0.1))
    for keys, fits in [
        ({"differences": [2, 2]}, True),
        ({"differences": [1, 1]}, False),
        ({"kinds": ["add", "color", "move"]}, True),
        ({"kinds": ["color"]}, False),
        ({"size": [0.02, 0.1]}, True),
        ({"size": [0.03, 0.1]}, False),
        ({"size": [0.02, 0.09]}, False),
        ({"visibility": [0.5, 1]}, True),
        ({"visibility": [0.6, 1]}, False),
        ({"visibility": [0, 0.9]}, False),
        ({"kinds": ["add", "color"], "size": [0, 0.05], "visibility": [0.5, 1]}, False),
    ]:
        assert stage(**keys).admits(pair) is fits, keys


def test_what_is_not_known_of_a_pair_fits_no_filter_on_it() -> None:
    for seen in ((), (None,), (None, 1.0)):
        pair = example(*["color"] * max(len(seen), 1), seen=seen)
        assert stage().admits(pair)
        assert not stage(visibility=[0, 1]).admits(pair)


def test_pair_without_changes_fits_every_filter_but_the_count() -> None:
    assert stage(kinds=["color"], size=[0.5, 1], visibility=[0.5, 1]).admits(example())
    assert not stage(differences=[1, 4]).admits(example())


def test_overrides_change_the_named_settings_and_no_others() -> None:
    config = load_config([], ["learner.lr=1e-6", "rollout.temperature=0.9"])
    assert stage_config(config, stage()) == config
    changes = {"group_size": 4, "temperature": 0.7, "max_completion_tokens": 64, "lr": 3e-6}
    changed = stage_config(config, stage(overrides=changes))
    assert changed.learner == config.learner.model_copy(update={"lr": 3e-6})
    assert changed.rollout == config.rollout.model_copy(
        update={"group_size": 4, "temperature": 0.7, "max_completion_tokens": 64}
    )
    assert changed.model_copy(update={"learner": config.learner, "rollout": config.rollout}) == config


def test_learning_rate_goes_in_a_straight_line_from_the_stages_start_to_its_end() -> None:
    config = load_config([], ["learner.lr=8e-6"])
    falling, rising = stage(overrides={"lr_end": 0.0}), stage(overrides={"lr": 1e-6, "lr_end": 3e-6})
    rates = [stage_config(config, falling, done).learner.lr for done in (0, 0.25, 0.75)]
    assert rates == pytest.approx([8e-6, 6e-6, 2e-6])
    assert stage_config(config, rising, 0.5).learner.lr == pytest.approx(2e-6)
    steps = Curriculum(
        [stage(steps=4), stage(name="b", steps=None, until_step=6)], [example()], seed=0, prompts_per_step=1
    )
    shares = []
    while not steps.finished:
        shares.append(steps.stage_done)
        steps.next_examples()
    assert shares == [0, 0.25, 0.5, 0.75, 0, 0.5]


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (
            {"max_completion_tokens": 65},
            ["rollout.max_completion_tokens=64"],
            r'curricula/staged.toml, stage "a", overrides.max_completion_tokens: expected at most .*\(64\).* found 65',
        ),
        (
            {"lr": 1e-5},
            ["learner.deepspeed.scheduler={type='WarmupLR'}"],
            r'stage "a", overrides.lr: learner.deepspeed names a learning rate or has a scheduler',
        ),
        (
            {"lr_end": 0},
            ["learner.deepspeed.scheduler={type='WarmupLR'}"],
            r'stage "a", overrides.lr_end: learner.deepspeed names a learning rate or has a scheduler',
        ),
    ],
)
def test_overrides_that_cannot_be_carried_out_are_refused(
    overrides: dict[str, Any], settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stage_config(load_config([], settings), stage(overrides=overrides))


def shipped() -> dict[str, tuple[Stage, ...]]:
    return {path.stem: load_stages(path) for path in sorted((ROOT / "curricula").glob("*.toml"))}


def test_shipped_curricula_have_the_stages_their_names_promise() -> None:
    single, dual, mixed = ("single", (1, 1)), ("dual", (2, 2)), ("mixed", (1, 4))
    assert {name: [(one.name, one.differences) for one in stages] for name, stages in shipped().items()} == {
        "adaptive": [single, dual, mixed],
        "any": [("any", (0, 1000))],
        "demo": [single, dual, mixed],
        "many_first": [("four", (4, 4)), ("many", (3, 4)), mixed],
        "mixed_only": [mixed],
        "single_dual": [single, dual],
        "single_only": [single],
        "staged": [single, dual, mixed],
        "tiny": [single, dual, mixed],
    }


def test_shipped_curricula_that_are_compared_have_the_same_number_of_steps() -> None:
    examples = [example(*["color"] * count) for count in (1, 2, 3, 4)]
    arms = {name: stages for name, stages in shipped().items() if name not in ("any", "demo", "tiny")}
    assert len(arms) == 6
    for stages in arms.values():
        source = Curriculum(stages, examples, seed=0, prompts_per_step=64, reward_terms=["f1"])
        assert (source.total_steps, source.is_open) == (75, False)


def test_keys_of_a_stage_file_are_those_of_the_readme() -> None:
    text = (ROOT / "curricula" / "README.md").read_text(encoding="utf-8")
    documented = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and ".toml" not in line}
    assert documented == set(Stage.model_fields)
