"""Load images of many sources by one interface, as uint8 arrays in memory.

Importing this package loads neither OpenCV nor tensorflow-datasets nor scikit-image.
"""

from jaxreg.data.photos import photographs
from jaxreg.data.sources import load_images

__all__ = ["load_images", "photographs"]
