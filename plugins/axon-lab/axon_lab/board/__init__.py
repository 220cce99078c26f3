"""`axon board`: fixed tasks, the recipes that hold their records, and a checker that runs them again."""
