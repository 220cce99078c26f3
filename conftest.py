"""Tests compute on the CPU, whatever the machine has: the bits and figures that they know are those of one device."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
