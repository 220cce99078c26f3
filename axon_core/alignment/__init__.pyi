# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.alignment.logprobs import Sequences as Sequences
from axon_core.alignment.logprobs import completion_logprobs as completion_logprobs
from axon_core.alignment.logprobs import encode_completion as encode_completion
from axon_core.alignment.logprobs import token_entropies as token_entropies
from axon_core.alignment.logprobs import token_logprobs as token_logprobs
from axon_core.alignment.replies import encode_replies as encode_replies
from axon_core.alignment.responses import Response as Response
from axon_core.alignment.responses import is_finished as is_finished
from axon_core.alignment.responses import response_text as response_text
from axon_core.alignment.responses import sample_responses as sample_responses
from axon_core.alignment.rewards import Scorer as Scorer
from axon_core.alignment.rewards import score_responses as score_responses
from axon_core.alignment.roles import require_role as require_role
