"""Questions to ask before a run, one word each; `tools/doctor.py WORD --help` explains its flags.

python tools/doctor.py [check]      this machine; do generator and trainer agree on a checkpoint?
python tools/doctor.py plan         does a configuration fit its devices? (needs no device)
python tools/doctor.py data FILE    how is a prompt file read, and what will the model see?
"""

from __future__ import annotations

import sys

from examinations import check, data, plan

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.distributed import launch
from compass.errors import UserError

WORDS = ("check", "plan", "data")


def main() -> None:
    """Answer what the first word asks; `check` where it is a flag, or there is none."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        word, flags = words[0], words[1:]
    else:
        word, flags = "check", words
    match word:
        case "check":
            description = f"{__doc__}\n{check.__doc__}"
            launch(lambda: check.main(parse(check.Config, flags, description=description)))
        case "plan":
            exit_on_user_error(lambda: plan.run(flags))
        case "data":
            exit_on_user_error(lambda: data.run(flags))
        case _:
            exit_on_user_error(lambda: _refuse(word))


def _refuse(word: str) -> None:
    raise UserError(f"the doctor has no {word!r}; ask one of {', '.join(WORDS)}")


if __name__ == "__main__":
    main()
