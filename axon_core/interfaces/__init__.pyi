# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.interfaces.attention import Attention as Attention
from axon_core.interfaces.cache import Cache as Cache
from axon_core.interfaces.cache import CacheStep as CacheStep
from axon_core.interfaces.cache import LayerCache as LayerCache
from axon_core.interfaces.cache import StateSpec as StateSpec
from axon_core.interfaces.model import CausalLM as CausalLM
from axon_core.interfaces.model import Model as Model
from axon_core.interfaces.norm import Norm as Norm
from axon_core.interfaces.overlay import Overlay as Overlay
from axon_core.interfaces.rotary_embedding import Layout as Layout
from axon_core.interfaces.rotary_embedding import RotaryEmbedding as RotaryEmbedding
from axon_core.interfaces.rotary_embedding import Rotation as Rotation
from axon_core.interfaces.scope import Between as Between
from axon_core.interfaces.scope import Kernel as Kernel
from axon_core.interfaces.scope import Scope as Scope
from axon_core.interfaces.tensor_split import TensorSplit as TensorSplit
