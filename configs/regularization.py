"""Every config key of regularization once: penalties, noise, terms of the loss, augmentation,
distillation and pruning; and of learning from rewards. A part of configs/default.py.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def regularization() -> ConfigDict:
    """All of them off."""
    regularization = ConfigDict()
    # What else the loss minimises, over the parameters that are trained. 0 is off. l1 and l2 pull
    # kernels and embedding tables to zero, in nats per token: l1 * sum|w|, l2 / 2 * sum w^2; unlike
    # the optimizer's weight_decay, they pass through its moments.
    regularization.l1 = 0.0
    regularization.l2 = 0.0
    # l2_sp / 2 * sum (w - w0)^2 over all that is trained, w0 where training began.
    regularization.l2_sp = 0.0
    # Elastic weight consolidation, in a chain of tasks: ewc / 2 * sum F (w - w0)^2, F how much each
    # parameter matters to earlier tasks, by squared gradients. 1 weighs their examples like those
    # of this task (Laplace); 10 to 10,000 is usual.
    regularization.ewc = 0.0
    # Multiplies l1, l2 and l2_sp, from 1 on, by exp(penalty_adaptation * (gap -
    # regularization.target_gap)) at every evaluation; the gap is the held-out loss less that of as
    # many training rows, in nats. 1 to 10.
    regularization.penalty_adaptation = 0.0
    # The gap at which they rest. At least 0.
    regularization.target_gap = 0.0
    # Share of the trained kernels' elements that every step puts back to where training began.
    regularization.mixout = 0.0
    # Share of the rows for which a residual branch is left out, in training.
    regularization.stochastic_depth = 0.0
    # Share of the tokens whose embeddings are zero, in training.
    regularization.word_dropout = 0.0
    # R-Drop: how much two draws of dropout are to agree, in two passes. 0.5 to 5.
    regularization.rdrop = 0.0
    # SMART: how much the prediction is to stay when the token embeddings move, in three passes. 1
    # to 10.
    regularization.smart = 0.0
    # FreeLB: passes of every step, in each of which the token embeddings move up the loss. 2 to 5.
    regularization.freelb = 0
    # How far smart and freelb move the embeddings of a row's tokens: the root of the sum of squares
    # over all of them, above 0.
    regularization.adversarial_radius = 0.1
    # Mixup: a of Beta(a, a), from which the share of a second row in each row is drawn; of
    # classification and regression. 0.1 to 1; large mixes evenly.
    regularization.mixup = 0.0
    # Blocks before the mixture. None: all; what the head sees is mixed.
    regularization.mixup_layer = placeholder(int)
    # Augmentation, drawn anew at every step. Share of the tokens that are left out, or that trade
    # places within their text (classification and regression), 0 .. 1 (1 excluded).
    regularization.token_deletion = 0.0
    regularization.token_swap = 0.0
    # Share of the tokens that are read as mask tokens, in spans of three, 0 .. 1 (1 excluded).
    regularization.mask_spans = 0.0
    # Distillation: the folder of a run, or "hf:FOLDER", whose predictions are a target too; "":
    # none. It has the student's architecture, tokenizer and labels, and may be larger.
    regularization.teacher = ""
    # Share of the teacher's target in the loss, 0 .. 1; the rest is the rows' own.
    regularization.distillation = 0.0
    # Flattens the predictions of both, above 0; 2 to 4 shows more of what is unlikely.
    regularization.distillation_temperature = 2.0
    # Share of the trained kernels' elements that are 0 in the end, 0 .. 1 (1 excluded).
    regularization.sparsity = 0.0
    # Which ones: "magnitude", the smallest, or "movement", those that training takes to zero.
    regularization.pruning_criterion = "magnitude"
    # When pruning begins and when it has reached that share, as shares of the steps, 0 .. 1.
    regularization.pruning_start = 0.1
    regularization.pruning_end = 0.7
    return regularization


def policy() -> ConfigDict:
    """Learning from rewards of what the model itself writes, by policy gradient."""
    policy = ConfigDict()
    # What is rewarded: a name of lm.training.policy.REWARDS, "python_lines" (the share of lines
    # that are statements of Python) or "brevity" (of the tokens that are left unused). "": nothing;
    # the model learns from text.
    policy.reward = ""
    # Tokens at the start of each row that the model continues. 1 .. data.seq_len.
    policy.prompt_length = 32
    # Tokens of a continuation, unless END comes before. At least 1; with the prompt, at most
    # model.max_seq_len.
    policy.max_new_tokens = 64
    # Continuations of each prompt, whose mean reward is the others' baseline. At least 2; more make
    # the gradient less noisy.
    policy.num_samples = 4
    # Reward that a nat of divergence from the model that training began with costs, over a
    # continuation. 0: none; too little, and the model writes nothing but what is rewarded.
    policy.kl = 0.01
    return policy
