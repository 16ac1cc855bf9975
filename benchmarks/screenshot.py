"""A picture of the top of a page, such as the report in the README: docs/report.png.

    python -m benchmarks.screenshot --page report.html --picture docs/report.png

Needs Chromium. The picture is as high as --height, in CSS pixels.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common.base.cli import parse
from common.base.errors import ENVIRONMENT, UserError, run_script


@dataclass(frozen=True)
class Options:
    """Draw the top of report.html: python -m benchmarks.screenshot"""

    page: str = "report.html"
    picture: str = "docs/report.png"
    width: int = 1000
    height: int = 900


def main() -> None:
    options = parse(Options)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not browser:
        raise UserError("benchmarks.screenshot", "there is no Chromium", "install it", ENVIRONMENT)
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command += [
            f"--window-size={options.width},{options.height}",
            f"--screenshot={Path(options.picture).resolve()}",
        ]
        subprocess.run([*command, Path(options.page).resolve().as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    run_script(main)
