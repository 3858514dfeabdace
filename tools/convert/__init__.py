"""Models for other engines."""

import os

# Before ONNX Runtime is imported, which faster-whisper imports too: it else tells its makers of each model it opens.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
