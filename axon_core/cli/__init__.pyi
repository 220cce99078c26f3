# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.cli.app import cli as cli
from axon_core.cli.app import main as main
from axon_core.cli.generate import generate_command as generate_command
from axon_core.cli.options import Opened as Opened
from axon_core.cli.options import device_option as device_option
from axon_core.cli.options import generation_options as generation_options
from axon_core.cli.options import inference_options as inference_options
from axon_core.cli.options import log_option as log_option
from axon_core.cli.options import quantize_option as quantize_option
from axon_core.cli.options import report_device as report_device
from axon_core.cli.options import training_device_option as training_device_option
from axon_core.cli.output import ProgressLine as ProgressLine
from axon_core.cli.output import echo as echo
from axon_core.cli.output import echo_generated as echo_generated
from axon_core.cli.output import echo_renewed as echo_renewed
from axon_core.cli.output import json_option as json_option
from axon_core.cli.output import print_json as print_json
