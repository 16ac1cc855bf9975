"""What jobs say side by side: lines led by their names and, at a terminal, a live bar for each below the lines."""

import shutil
import sys

from tqdm import tqdm

BAR_WANTED = "FIVEFOLD_BAR"  # in a job's environment: we draw the bar that it prints, although it sees no terminal


class Screen:
    """Shows the output of ``slots`` jobs at a time (0: they write to the terminal themselves)."""

    def __init__(self, slots: int):
        self.slots, self.bars = slots, {}  # bars by slot
        self.environment: dict[str, str] = {}  # what jobs must find in theirs
        if slots and sys.stderr.isatty():
            columns = shutil.get_terminal_size().columns - 1
            self.environment = {BAR_WANTED: "1", "TQDM_NCOLS": str(columns), "TQDM_MININTERVAL": "0.5"}

    def show(self, name: str, slot: int, said: str) -> None:
        """Show what the job in a slot has printed: a line, or with a carriage return at its end a state of its bar."""
        if not said.endswith("\r"):
            self.say(f"[{name}] {said}" if self.slots > 1 else said)
        elif self.environment:
            if slot not in self.bars:
                self.bars[slot] = tqdm(bar_format="{desc}", position=slot, leave=False)
            self.bars[slot].set_description_str(said.strip())

    def say(self, line: str) -> None:
        """Print a line, with its end, above the bars."""
        if self.bars:
            tqdm.write(line, end="")
        else:
            print(line, end="", flush=True)

    def close(self) -> None:
        """Take the bars away."""
        for bar in self.bars.values():
            bar.close()
