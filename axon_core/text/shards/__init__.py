"""Token shards: texts larger than memory, tokenized once into files that trainings read piece by piece."""
