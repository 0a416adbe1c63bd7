"""
Evaluate the final model of a run of the zoo: deterministic actions, whole episodes, unnormalised rewards.

    python scripts/evaluate.py logs/vpg/CartPole-v1_1 --episodes 20
"""

from sb3_pg.zoo.evaluation import main

if __name__ == "__main__":
    main()
