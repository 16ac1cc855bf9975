"""What jobs say side by side: lines led by their names and, below the lines, a live bar for each, where one watches."""

import shutil

from tqdm import tqdm

from common.base.errors import LED_BY
from common.base.system import in_notebook, is_watched

BAR_WANTED = "FIVEFOLD_BAR"  # in a job's environment: we draw the bar that it prints, although it sees no terminal


class Screen:
    """Shows the output of ``slots`` jobs at a time (0: they write to the terminal themselves)."""

    def __init__(self, slots: int):
        self.slots, self.bars, self.states = slots, {}, {}  # by slot
        self.errors: dict[str, str] = {}  # by job, the line that ends it: kept until it is known who says it
        self.environment: dict[str, str] = {}  # what jobs must find in theirs
        self.one_line = in_notebook()  # where a cursor cannot go up, the bars share a line
        if slots and is_watched():
            columns = (shutil.get_terminal_size().columns - 1) // (slots if self.one_line else 1)
            self.environment = {BAR_WANTED: "1", "TQDM_NCOLS": str(columns), "TQDM_MININTERVAL": "0.5"}

    def show(self, name: str, slot: int, said: str) -> None:
        """Show what the job in a slot has printed: a line, or with a carriage return at its end a state of its bar."""
        if said.startswith(LED_BY) and name not in self.errors:
            self.errors[name] = said
        elif not said.endswith("\r"):
            self.say(f"[{name}] {said}" if self.slots > 1 else said)
        elif self.environment:
            self.states[slot] = said.strip()
            place, state = (0, "  ".join(self.states.values())) if self.one_line else (slot, said.strip())
            if place not in self.bars:
                self.bars[place] = tqdm(bar_format="{desc}", position=place, leave=False)
            self.bars[place].set_description_str(state)

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
