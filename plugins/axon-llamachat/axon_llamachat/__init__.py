"""LlamaChat: the server of X-Llama (Llama 2, arXiv 2307.09288) and of every other causal language model."""

from axon_llamachat.app import make_app
from axon_llamachat.limits import ServerLimits
from axon_llamachat.pages import PAGES, Page, picture
from axon_llamachat.served import ServedModel

__all__ = ["PAGES", "Page", "ServedModel", "ServerLimits", "make_app", "picture"]
