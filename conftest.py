"""What holds for every test: it computes on the CPU, whose figures it knows, can be interrupted, and awaits no disk."""

import os
import signal

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# A shell that starts tests in the background has them ignore Ctrl-C, and so would every program that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.fsync = lambda handle: None  # whatever happens in a test, the machine stays on; each call takes milliseconds
