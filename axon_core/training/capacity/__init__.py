"""What a training needs on other machines: memory, traffic and time per rank, estimated without using them."""
