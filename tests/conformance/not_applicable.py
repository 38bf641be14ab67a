"""The common tests of transformers that do not apply to this package, each with its reason."""

import re

# (pattern of the test class, pattern of the test's name) → reason; both must match whole
NOT_APPLICABLE: dict[tuple[str, str], str] = {}


def reason(test_class: str, test: str) -> str | None:
    """Why a test does not apply; None: it does."""
    for (classes, tests), why in NOT_APPLICABLE.items():
        if re.fullmatch(classes, test_class) and re.fullmatch(tests, test):
            return why
    return None
