"""What training minimises: each objective takes a target distribution, one-hot or soft.

With y the ground truth of a clean image x, q its target, x′ its adversarial image and S(·) the
student's softmax:

    clean    CE(q, S(x))                                                  the teacher
    at       CE(q, S(x′))                                                 Madry et al. 2018, eq. 2.1
    trades   CE(q, S(x)) + β · KL(S(x) ‖ S(x′))                           Zhang et al. 2019, eq. 5
    mart     CE(q, S(x′)) - log(1 - max_{k≠y} S_k(x′))
             + β · KL(S(x) ‖ S(x′)) · (1 - S_y(x))                        Wang et al. 2020, eq. 8

x′ maximises a loss within the ball: for `trades` the KL term; for `at` the cross entropy, either
of the ground truth y, CE(y, S(·)), or of the target itself, CE(q, S(·)); for `mart` that of the
ground truth. Where the soft label enters is our reading of LTD, not the paper's text;
docs/robustness.md has what was measured.
"""

from pipeline.objectives.clean import Clean
from pipeline.objectives.divergence import cross_entropy, kl_divergence
from pipeline.objectives.madry import Madry
from pipeline.objectives.mart import Mart
from pipeline.objectives.objective import Labels, Loss, Objective
from pipeline.objectives.trades import Trades

__all__ = [
    "Clean",
    "Labels",
    "Loss",
    "Madry",
    "Mart",
    "Objective",
    "Trades",
    "cross_entropy",
    "kl_divergence",
]
