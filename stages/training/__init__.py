"""The life of a training run."""

import logging

# transformers' trainer imports it where it is installed, and it warns of a kernel that nothing here calls.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
