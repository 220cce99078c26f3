"""LlamaChat in the browser: conversations, completions, and how pages of gradio are mounted on the server."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)  # or it sums up all earlier events after each, with pandas
