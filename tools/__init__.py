"""What stands beside the stages: commands, each started as ``python -m tools.NAME``."""

import sys

from stages.runtime.command import leave_at_once

if sys.argv[0] == "-m":  # Python still looks for the command's module, whose imports take seconds before it calls `run`
    leave_at_once()
