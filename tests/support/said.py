"""What a command said, without what only a busy machine makes it say."""

import re

_PROGRESS = re.compile(
    r"^fcmae: [^:\n]+: [\d,]+ (of [\d,]+ )?\w[^\n]* in \d[^\n]*\.\n", re.MULTILINE
)


def without_progress(told: str) -> str:
    """Return what was told less the lines of progress, which short work has no time for."""
    return _PROGRESS.sub("", told)
