"""What the commands print beside their results."""

import sys


def keep_stderr_quiet(reads_data: bool) -> None:
    """No bars and notes that nobody asked for, which bury what matters; a terminal still shows bars of long work."""
    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error
    from transformers.utils.logging import disable_progress_bar

    set_verbosity_error()  # a line for each of five vain attempts to reach the Hub
    disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()
    if not reads_data:
        return
    from datasets import disable_progress_bars
    from datasets.utils.logging import CRITICAL, set_verbosity

    set_verbosity(CRITICAL)  # it logs the errors that it raises
    if not sys.stderr.isatty():
        disable_progress_bars()
