"""Run the paper's experiments and print them.

python -m benchmarks.paper [--jobs 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.paper.tables import paper_tables


def main() -> None:
    """Print Markdown; with `--json` write the tables, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0: as many as there are cores")
    parser.add_argument("--json", type=Path, help="write the tables here, too")
    options = parser.parse_args()
    sections = paper_tables(options.jobs)
    print("\n".join(section.markdown() for section in sections))
    if options.json is not None:
        options.json.write_text(json.dumps([section.to_json() for section in sections], indent=1) + "\n")


if __name__ == "__main__":
    main()
