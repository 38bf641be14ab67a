"""The captioner that comes with the package, and its name. Neither torch nor NumPy is imported here."""

from fusion_captioner import DEFAULT_CHECKPOINT

# What commands and recipes call it, which cannot know where the package is installed.
BUNDLED = "bundled"


def checkpoint_name(name: str) -> str:
    """A checkpoint's folder or Hub name as it is given; for `bundled` the folder of the captioner in the package."""
    return DEFAULT_CHECKPOINT if name == BUNDLED else name
