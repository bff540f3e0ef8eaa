"""Which pairs come next: stages as data, and the engine that draws from them.

`stages` says what a stage file may hold, `draws` how pairs are taken from a list, `engine` what happens in which order.
"""

from dig_rl.curriculum.engine import Curriculum, open_curriculum
from dig_rl.curriculum.stages import Stage, load_stages, stage_config

__all__ = ["Curriculum", "Stage", "load_stages", "open_curriculum", "stage_config"]
