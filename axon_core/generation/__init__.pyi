# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.generation.api import Finish as Finish
from axon_core.generation.api import Request as Request
from axon_core.generation.api import TextStream as TextStream
from axon_core.generation.api import complete as complete
from axon_core.generation.api import decode as decode
from axon_core.generation.api import decode_requests as decode_requests
from axon_core.generation.api import sample_text as sample_text
from axon_core.generation.decoder import check_prompt as check_prompt
from axon_core.generation.decoder import evaluation_mode as evaluation_mode
from axon_core.generation.published import PUBLISHED as PUBLISHED
from axon_core.generation.published import published_sampling as published_sampling
from axon_core.generation.published import published_settings as published_settings
from axon_core.generation.sampling import Sampling as Sampling
from axon_core.generation.sampling import sample_tokens as sample_tokens
