# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.papers.card import Card as Card
from axon_core.papers.card import Paper as Paper
from axon_core.papers.card import cards as cards
from axon_core.papers.card import find_card as find_card
from axon_core.papers.card import find_recipe as find_recipe
from axon_core.papers.claims import NotRun as NotRun
from axon_core.papers.claims import Outcome as Outcome
from axon_core.papers.claims import check_claim as check_claim
