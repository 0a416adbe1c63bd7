"""``python -m sb3_pg.zoo reevaluate``: retrain the best trials of a study on fresh seeds and rank them."""
