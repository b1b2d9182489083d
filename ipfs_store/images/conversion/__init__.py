"""Images from one form into another: layers rewritten, reused where they are right already, and the documents that name them."""

from ipfs_store.images.conversion.image import ConvertedImage, ConvertOptions, LayerResult, convert_image
from ipfs_store.images.conversion.layers import layer_converter, lazy_form

__all__ = ["ConvertOptions", "ConvertedImage", "LayerResult", "convert_image", "layer_converter", "lazy_form"]
