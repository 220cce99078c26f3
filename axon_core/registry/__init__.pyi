# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.registry.keys import key_of as key_of
from axon_core.registry.optional import import_optional as import_optional
from axon_core.registry.optional import new_figure as new_figure
from axon_core.registry.parts import part as part
from axon_core.registry.parts import part_config as part_config
from axon_core.registry.registry import Registry as Registry
from axon_core.registry.registry import refresh as refresh
from axon_core.registry.registry import registry_of as registry_of
from axon_core.registry.spec import Spec as Spec
from axon_core.registry.suggest import install_line as install_line
