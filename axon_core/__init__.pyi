# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.config import Config as Config
from axon_core.config import Spec as Spec
from axon_core.errors import AmbiguousKey as AmbiguousKey
from axon_core.errors import AxonError as AxonError
from axon_core.errors import CheckpointError as CheckpointError
from axon_core.errors import ConfigError as ConfigError
from axon_core.errors import ContextError as ContextError
from axon_core.errors import ContractError as ContractError
from axon_core.errors import DataError as DataError
from axon_core.errors import PluginLoadError as PluginLoadError
from axon_core.errors import UnknownKey as UnknownKey
from axon_core.errors import UsageError as UsageError
from axon_core.registry import ATTENTIONS as ATTENTIONS
from axon_core.registry import MODELS as MODELS
from axon_core.registry import NORMS as NORMS
from axon_core.registry import ROTARY_EMBEDDINGS as ROTARY_EMBEDDINGS
from axon_core.registry import TRAINERS as TRAINERS
from axon_core.registry import Registry as Registry
from axon_core.registry import refresh as refresh

__version__: str
