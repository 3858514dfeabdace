"""The pipeline's stages, and what they share."""

import logging

# transformers imports it through peft wherever it is installed, and it warns of a kernel that nothing here calls.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
