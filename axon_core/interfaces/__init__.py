"""The five interfaces a paper's parts implement: Attention, RotaryEmbedding, Norm, Model, Trainer."""
