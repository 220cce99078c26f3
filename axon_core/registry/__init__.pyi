# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.registry.environment_lock import LOCK as LOCK
from axon_core.registry.environment_lock import EnvironmentLock as EnvironmentLock
from axon_core.registry.environment_lock import installed_plugins as installed_plugins
from axon_core.registry.environment_lock import lock_environment as lock_environment
from axon_core.registry.environment_lock import named_plugins as named_plugins
from axon_core.registry.environment_lock import read_lock as read_lock
from axon_core.registry.keys import key_of as key_of
from axon_core.registry.lock_comparison import lock_differences as lock_differences
from axon_core.registry.optional import import_optional as import_optional
from axon_core.registry.optional import new_figure as new_figure
from axon_core.registry.parts import part as part
from axon_core.registry.parts import part_config as part_config
from axon_core.registry.registry import Registry as Registry
from axon_core.registry.registry import refresh as refresh
from axon_core.registry.registry import registry_of as registry_of
from axon_core.registry.spec import Spec as Spec
from axon_core.registry.suggest import install_line as install_line
