"""`python -m app.web.vendoring [--tests]`: fetch the front-end code that the dashboard (and its tests) use."""

from __future__ import annotations

import argparse
import sys

from app.web.vendoring.files import SERVED, TESTS, VendorError, vendor


def main() -> int:
    """Fetch what is missing, say what was done."""
    parser = argparse.ArgumentParser(prog="python -m app.web.vendoring", description=__doc__)
    parser.add_argument("--tests", action="store_true", help="also what only tests use")
    folders = (SERVED, TESTS) if parser.parse_args().tests else (SERVED,)
    try:
        fetched = vendor(folders)
    except (VendorError, OSError) as error:
        sys.stderr.write(f"error: the dashboard's front-end code is not here: {error}\n")
        return 1
    sys.stdout.write("".join(f"fetched {path.name}\n" for path in fetched))
    return 0


if __name__ == "__main__":
    sys.exit(main())
