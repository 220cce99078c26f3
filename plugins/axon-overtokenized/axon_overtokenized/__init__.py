"""Over-Tokenized Transformer (arXiv 2501.16975) for Axon: tables of n-grams added to the embedding of tokens."""

from axon_overtokenized.n_gram import NGramEmbedding, n_gram_ids, preceding

__all__ = ["NGramEmbedding", "n_gram_ids", "preceding"]
