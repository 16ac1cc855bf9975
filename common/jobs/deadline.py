"""The end of the time that --hours gives: nothing is begun that would not be over by then."""

import math
import os
import time

UNTIL = "FIVEFOLD_UNTIL"  # in a job's environment: when the time of the process that started it ends, since 1970
WHOLE = 0.9  # share of the time that counts as all of it: what needs more would never fit, whenever it began


class Deadline:
    """So many ``hours`` from now (0: no limit), or in a job those of the process that started it."""

    def __init__(self, hours: float):
        self.seconds = 3600 * hours or math.inf
        self.end = float(os.environ.get(UNTIL, time.time() + self.seconds))

    @property
    def is_set(self) -> bool:
        """Whether there is an end."""
        return not math.isinf(self.end)

    @property
    def environment(self) -> dict[str, str]:
        """What tells a job of it."""
        return {UNTIL: str(self.end)} if self.is_set else {}

    def misses(self, seconds: float) -> bool:
        """Whether something that takes so long, begun now, would end too late."""
        return time.time() + seconds > self.end

    def leaves_out(self, seconds: float, part: float) -> bool:
        """The same of something that can stop after each ``part`` of it: what could never fit is begun anyway."""
        return self.misses(part) or (seconds < WHOLE * self.seconds and self.misses(seconds))
