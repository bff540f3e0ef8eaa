"""The renderer that a recipe names."""

from __future__ import annotations

from dig_rl.datagen.numpy_renderer import NumpyRenderer
from dig_rl.datagen.recipe import DataRecipe
from dig_rl.datagen.renderer import BlenderRenderer, Renderer


def open_renderer(recipe: DataRecipe, *, threads: int = 1) -> Renderer:
    """A renderer for the recipe's picture size and samples.

    Args:
        recipe: names the renderer.
        threads: CPU threads of Blender; the numpy renderer uses one.

    Raises:
        RenderError: Blender's environment is missing.
    """
    size = recipe.width, recipe.height, recipe.samples
    if recipe.renderer == "numpy":
        return NumpyRenderer(*size)
    return BlenderRenderer(*size, threads=threads, device=recipe.device)
