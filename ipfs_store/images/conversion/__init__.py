"""Images from one form into another: layers rewritten, reused where they are right already, and the documents that name them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipfs_store.images.conversion.image import ConvertedImage, ConvertOptions, LayerResult, convert_image
    from ipfs_store.images.conversion.layers import layer_converter, lazy_form

__all__ = ["ConvertOptions", "ConvertedImage", "LayerResult", "convert_image", "layer_converter", "lazy_form"]


def __getattr__(name: str) -> object:
    # Loaded when asked for: all of it takes 0.1 s, and a push of layers that are known converts nothing.
    if name not in __all__:
        raise AttributeError(name)
    home = "layers" if name in ("layer_converter", "lazy_form") else "image"
    return getattr(import_module(f"{__name__}.{home}"), name)
