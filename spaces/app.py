"""A Space on the Hub: the page, with the captioner that comes with the package."""

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.serving.page import build_page, launch_options
from fusion_captioner.serving.page_photos import PagePhotos

demo = build_page(PagePhotos(*load_captioner(DEFAULT_CHECKPOINT)))

if __name__ == "__main__":
    demo.launch(**launch_options())
