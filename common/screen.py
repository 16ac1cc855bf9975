"""What jobs say side by side: lines led by their names and, at a terminal, a live bar for each below the lines."""

import shutil
import sys
from contextlib import ExitStack

from tqdm import tqdm

BAR_WANTED = "FIVEFOLD_BAR"  # in a job's environment: we draw the bar that it prints, although it sees no terminal


class Screen:
    """Shows the output of as many jobs at a time as there are ``slots``; use it in a ``with`` statement."""

    def __init__(self, slots: int):
        self.slots, self.bars, self.held = slots, [], ExitStack()
        self.environment: dict[str, str] = {}  # what jobs must find in theirs

    def __enter__(self) -> "Screen":
        if self.slots and sys.stderr.isatty():
            places = range(self.slots)
            self.bars = [self.held.enter_context(tqdm(bar_format="{desc}", position=n, leave=False)) for n in places]
            columns = shutil.get_terminal_size().columns - 1
            self.environment = {BAR_WANTED: "1", "TQDM_NCOLS": str(columns), "TQDM_MININTERVAL": "0.5"}
        return self

    def __exit__(self, *raised: object) -> None:
        self.held.close()

    def show(self, name: str, slot: int, said: str) -> None:
        """Show what the job in a slot has printed: a line, or with a carriage return at its end a state of its bar."""
        if not said.endswith("\r"):
            self.say(f"[{name}] {said}" if self.slots > 1 else said)
        elif self.bars:
            self.bars[slot].set_description_str(said.strip())

    def say(self, line: str) -> None:
        """Print a line, with its end, above the bars."""
        if self.bars:
            tqdm.write(line, end="")
        else:
            print(line, end="", flush=True)
