"""``python -m sb3_pg.zoo reevaluate``: the best trials of a study trained anew on fresh seeds, ranked, the winner as yml."""
