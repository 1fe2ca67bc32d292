"""Every config key once: its unit, its range and its consequence.

Other configs start from this one and change what they are about. A value of `None` means that the
code chooses; the comment says how. Any key is overridden on the command line by its dotted name,
such as `--config.model.d_model=256`, or `--config.epochs=None` where None is a value.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import regularization, tasks


def get_config(arg: str | None = None) -> ConfigDict:
    """The defaults: a 0.9 M-parameter byte-level decoder on the standard library's source."""
    if arg:
        raise ValueError(f"configs/default.py takes no argument, not {arg!r}")
    config = ConfigDict()

    # Start of every random choice: initial weights, order of rows, dropout. Runs with the same
    # seed see the same batches whatever the variant. 0 .. 2^31 - 1.
    config.seed = 0
    # Optimizer updates in the whole run. The learning-rate schedule is stretched over them.
    config.steps = 300
    # Passes over the training rows, from which the number of steps follows. None: as many steps as
    # `steps`.
    config.epochs = placeholder(float)
    # Rows per update, over all devices. A multiple of mesh.data * mesh.fsdp *
    # grad_accum_steps.
    config.batch_size = 16
    # Each update sums gradients over this many parts of the batch, one after the other. Divides
    # batch_size; changes memory and time, not the update (but for dropout's draws).
    config.grad_accum_steps = 1
    # The training objective. Of a decoder: "causal" (the next token) or "prefix" (the next token
    # after a prefix that is read in both directions). Of an encoder: "masked" (masked tokens,
    # BERT). Of an encoder_decoder: "span" (masked spans, T5) or "seq2seq" (a target text from a
    # source).
    config.objective = "causal"
    # Where prepared text and compiled programs are kept. Safe to delete.
    config.cache_dir = "~/.cache/softmax-laboratory"
    # Start from the parameters of this finished or unfinished run's folder, or of "hf:FOLDER", a
    # checkpoint of Hugging Face transformers (or its name on the hub, or a "hf:FILE.gguf"), which
    # also sets the keys that shape the model, the tokenizer and its vocabulary; "": from scratch.
    # A run with another config.finetuning.method than "full" saves too little to start from. A run
    # that can be resumed is resumed instead.
    config.init_from = ""

    # Special token ids around the texts of an encoder_decoder, in tasks, prompts and `generate`:
    # before and after the encoder's text, and before the decoder's, such as ((), (1,), (0,)). None:
    # END before both. A checkpoint of T5 or BART sets its own.
    config.special_tokens = placeholder(tuple)

    config.data = data = ConfigDict()
    # "stdlib" (the Python standard library's source), "files:PATTERN" (text, .gz, .bz2, .xz, .zst;
    # one file is one document), "tfds:NAME" (a TensorFlow Datasets name, such as tfds:lm1b), or
    # "synthetic:rank=R" (a language of known entropy; lm/data/synthetic.py has its other options;
    # its tokenizer is "characters", one for each of vocab_size tokens). Pairs, for seq2seq:
    # "pairs:PATTERN" (one a line, tab-separated or JSON), or "docstrings" (signatures of the
    # standard library, and what they say that they do).
    data.source = "stdlib"
    # "bytes" (256 tokens), "characters" (code points below vocab_size), "bpe", "wordpiece",
    # "unigram" (trained on the source's training split), or the path of a tokenizer.json.
    data.tokenizer = "bytes"
    # Size of a trained vocabulary, 300 .. 1,000,000. None: bytes and tokenizer.json have their own.
    data.vocab_size = placeholder(int)
    # Tokens per row, L; of pairs, on each side. Attention's work grows with its square.
    data.seq_len = 256
    # Share of documents held out for evaluation, above 0, below 1. Sources that have their own
    # held-out split keep it.
    data.validation_fraction = 0.05

    config.task = tasks.task()
    config.continual = tasks.continual()
    config.prompt = tasks.prompt()

    config.model = model = ConfigDict()
    # "decoder" (causal), "encoder" (sees both sides) or "encoder_decoder".
    model.architecture = "decoder"
    # Blocks; in an encoder_decoder, of each side. At least 1.
    model.num_layers = 4
    # D, width of the hidden states. A multiple of num_heads unless head_dim is given.
    model.d_model = 128
    # E, width of the token embeddings; unless it is D, a matrix widens its vectors. None: D.
    model.embedding_dim = placeholder(int)
    # Normalises the sum of token, position and type embeddings.
    model.embedding_norm = False
    # Factor of the token embeddings.
    model.embedding_scale = 1.0
    # Kinds of positions, such as first and second sentence, each with a learned vector. 0: none.
    model.num_token_types = 0
    # H, attention heads.
    model.num_heads = 4
    # G, heads of keys and values, shared by H/G heads each. Divides H. None: H.
    model.num_kv_heads = placeholder(int)
    # K, size of a head. Even with rotary positions. None: D / H.
    model.head_dim = placeholder(int)
    # Inner width of the feed-forward layer. None: 4 D. (Gated kinds usually take 8 D / 3.)
    model.mlp_dim = placeholder(int)
    # "relu", "gelu" (tanh form), "gelu_exact", "swiglu" or "geglu" (gated).
    model.activation = "gelu"
    # Biases in the linear layers of the blocks.
    model.bias = True
    # Biases of queries, keys and values alone. None: as bias.
    model.qkv_bias = placeholder(bool)
    # "layernorm" or "rmsnorm".
    model.norm = "layernorm"
    # "pre", "post" or "sandwich" (before and after each branch).
    model.norm_position = "pre"
    # Keeps the norms' division away from zero.
    model.norm_eps = 1e-6
    # "learned", "sinusoidal", "rotary", "alibi", "relative" (T5's learned bias of distances) or
    # "none" (a causal mask still orders tokens). Counted within each document.
    model.position_embedding = "learned"
    # Rows of learned positions, and the longest sequence that generates. At least data.seq_len.
    model.max_seq_len = 1024
    # Of rotary positions: 2 pi times it is about the longest wavelength, in positions.
    model.rope_theta = 10000.0
    # Of relative positions: buckets of distances (a multiple of 4 where both sides are seen), and
    # the distance from which on all are one bucket.
    model.relative_num_buckets = 32
    model.relative_max_distance = 128
    # Factor of the scores. None: 1 / sqrt(K).
    model.score_scale = placeholder(float)
    # Normalises queries and keys per head; bounds the scores.
    model.qk_norm = False
    # All layers have the same parameters.
    model.share_layers = False
    # A layer with activation and norm, from D to E, between the stack and the head.
    model.head_transform = False
    # A layer with tanh on the first position, for classifying rows. No objective here trains it.
    model.pooler = False
    # Rate on embeddings and residual branches, 0 .. 1 (1 excluded).
    model.dropout = 0.0
    # Standard deviation of the initial weights.
    model.init_std = 0.02
    # Divides the initial weights of layers that write to the residual stream by sqrt(2 layers).
    model.depth_scaled_init = True
    # Type of computation: "float32" or "bfloat16". Scores, norms and losses are float32 anyway.
    model.dtype = "float32"
    # Type of the parameters: "float32" or "bfloat16", half the memory, in which each update is
    # rounded at random, right on average. Gradients, the optimizer's state and the moving average
    # are float32 either way.
    model.param_dtype = "float32"
    # Recomputes each block in the backward pass: less memory, a third more arithmetic.
    model.remat = False
    # Scans over stacked layers: compile time does not grow with depth. False unrolls: faster
    # steps on a CPU. None: scans above 4 layers.
    model.scan = placeholder(bool)

    config.attention = attention = ConfigDict()
    # How heads attend: a name of lm.attention.ATTENTIONS. "scores" weighs q.k; "differential",
    # "gated", "forgetting", "exclusive", "laser" and "talking_heads" add to that; "stick_breaking",
    # "linear", "favor" and "cosformer" have weights of their own, and no use for a weighting.
    attention.mechanism = "scores"
    # Scores to weights: a name of lm.softmax.WEIGHTINGS.
    attention.weighting = "softmax"
    # Queries computed at a time. None: by size; 0: all at once; n: memory linear in length. Of
    # linear, favor and cosformer: positions in a chunk.
    attention.query_chunk_size = placeholder(int)
    # Options that become parameters, one per head, which start at the option's value: "temperature"
    # (temperature, gumbel_softmax), "cap" (softcap), "bias" (sigmoid), "alpha" (entmax,
    # asentmax; above 1, below 2). On the command line: --config.attention.learn='("alpha",)'.
    attention.learn = ()
    # One such option that moves on schedule, without gradient: its name, its first and last value,
    # and the steps between them: --config.attention.anneal='("alpha", 1.0, 1.5, 1000)'.
    attention.anneal = ()
    # Options of weightings. None: the weighting's own default. Setting one that the weighting does
    # not have is an error.
    attention.cap = placeholder(float)  # softcap: bound of the scores, above 0
    # temperature, gumbel_softmax: above 0; flatter when large
    attention.temperature = placeholder(float)
    attention.bias = placeholder(float)  # sigmoid: added to scores; None is -log(row length)
    # entmax, asentmax: above 0, 1 is softmax, 2 sparsemax; alpha_relu: above 1, at most 2; normmax:
    # above 1
    attention.alpha = placeholder(float)
    # alpha_relu: threshold; more zeros when large; None is that of a row of equal scores
    attention.tau = placeholder(float)
    attention.k = placeholder(int)  # top_k: places with weight in each row, at least 1
    attention.reference_length = placeholder(float)  # log_length: rows longer are sharper; above 1
    attention.budget = placeholder(float)  # budget: sum of a row's weights, above 0; None is 2
    attention.delta = placeholder(float)  # asentmax: scale of the scores at any length; None is 1
    attention.hard = placeholder(bool)  # gumbel_softmax: one-hot rows, gradient of the soft ones
    # Where parameters of weightings start.
    attention.sink = placeholder(float)  # sink: None is 0; far below the scores, it is the softmax
    attention.scale = placeholder(float)  # ssmax: None is 0.168
    attention.beta = placeholder(float)  # asentmax: how scores grow with the length; None is 0
    attention.gamma = placeholder(float)  # asentmax: the power of log(row length); None is 1
    # Options of mechanisms, likewise.
    attention.lambda_init = placeholder(float)  # differential: share taken off, 0 .. 1; None is 0.8
    attention.head_norm = placeholder(bool)  # differential: normalises each head; None is True
    attention.gate = placeholder(str)  # gated: "elementwise" (None) or "head", one for all of it
    attention.forget_bias = placeholder(float)  # forgetting: at the start; None is 0; 4 keeps more
    attention.random_features = placeholder(int)  # favor: more are closer to softmax; None is 128
    attention.redraw = placeholder(bool)  # favor: new features at every step; None is False
    attention.horizon = placeholder(int)  # cosformer: where weights end; None is model.max_seq_len

    # The same keys, for the encoder of an encoder_decoder and for its decoder's attention to it.
    # None: as in config.attention; but naming another mechanism or weighting leaves behind the
    # options that are set there.
    config.encoder_attention = _unset(attention)
    config.cross_attention = _unset(attention)

    config.corruption = corruption = ConfigDict()
    # Options of objectives. None: the objective's own default. Setting one that the objective does
    # not have is an error.
    # masked, span: share of the tokens that are hidden, above 0, below 1; None is 0.15
    corruption.mask_rate = placeholder(float)
    corruption.whole_word = placeholder(bool)  # masked: hides whole words; None is False
    # span: mean tokens of a span, at least 1; None is 3; bytes want 20, as they have 11 sentinels
    corruption.mean_span_length = placeholder(float)

    config.output = output = ConfigDict()
    # Hidden states to a distribution over tokens: a name of lm.output.OUTPUTS.
    output.head = "softmax"
    # The head uses the embedding table as its own. False for adaptive and hierarchical.
    output.tied = True
    # Tokens whose logits a device computes at a time, with their gradient. None: by size (the run
    # says what was chosen); 0: all at once; n: less memory when small, less overhead when large.
    output.token_chunk_size = placeholder(int)
    # Options of heads. None: the head's own default. Setting one that the head does not have is an
    # error.
    output.bias = placeholder(bool)  # heads with logits: adds a bias per token
    output.cap = placeholder(float)  # softmax: bound of the logits, above 0
    output.temperature = placeholder(float)  # softmax, gumbel: divides the logits, above 0
    # Losses of softmax, sigsoftmax, plif, gaussian; 0 is off, and none changes the likelihood.
    output.z_loss = placeholder(float)  # weight of lse^2; 1e-4 is usual
    output.label_smoothing = placeholder(float)  # share of uniform labels, 0 .. 1
    output.focal = placeholder(float)  # power of 1 - p(target); 2 is usual
    output.confidence_penalty = placeholder(float)  # weight of the entropy; 0.1 is usual
    output.class_weights = placeholder(tuple)  # a factor for each target token or class
    output.mixtures = placeholder(int)  # mixtures, mixtape (a power of two): how many
    output.residual = placeholder(bool)  # mixtures: begins as the softmax head; None is False
    output.gates = placeholder(int)  # mixtape: size of the tokens' gate vectors
    output.pieces = placeholder(int)  # plif: pieces of the function; each costs time
    output.reach = placeholder(float)  # plif: largest logit inside the pieces, in nats
    output.sigma = placeholder(float)  # gaussian: width, above 0
    output.cutoffs = placeholder(tuple)  # adaptive: ranks at which tail clusters begin
    output.divisor = placeholder(int)  # adaptive: vectors of each cluster are so much smaller
    output.classes = placeholder(int)  # class_factored: how many; None: about the root of V
    output.samples = placeholder(int)  # sampled, nce, dynamic: tokens in the sample, per step
    output.distribution = placeholder(str)  # of the sample: "log_uniform" or "unigram"
    output.every = placeholder(int)  # dynamic: every so many steps a full softmax
    output.double_every = placeholder(int)  # dynamic: steps; doubles sample and interval; 0: never
    output.alpha = placeholder(float)  # entmax: above 1, at most 2; sparser when large
    output.epsilon = placeholder(float)  # sparsemax, entmax: smooths the likelihood; None: 0.01 / V
    output.emphasis = placeholder(float)  # squared: weight of the target's error
    output.margin = placeholder(float)  # squared: the target's value

    config.finetuning = tasks.finetuning()

    config.optimizer = optimizer = ConfigDict()
    # "adamw", "sgd" (with momentum), "adafactor", "lion" or "muon" (AdamW on all but the blocks'
    # matrices).
    optimizer.name = "adamw"
    # Peak learning rate. Lion wants about a tenth of AdamW's, sgd some hundred times; muon's and
    # adafactor's updates are scaled like AdamW's.
    optimizer.learning_rate = 2e-3
    # Pulls matrices and embedding tables towards zero, per update and unit of learning rate,
    # whichever the optimizer; biases, norms and learned softmax parameters are left alone.
    optimizer.weight_decay = 0.1
    # Decay rates of the first and second moment. b1 is also the momentum of sgd and muon.
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    # Keeps AdamW's division away from zero; at least 1e-30.
    optimizer.eps = 1e-8
    # Gradients are scaled down to this global norm. 0: no clipping.
    optimizer.clip_norm = 1.0
    # Factor of the learning rate from each layer to the one below it, the embeddings lowest; above
    # 0; 1: the same rate for all. 0.65 to 0.95 when fine-tuning. Of model.share_layers, the one
    # layer learns at the rate of the first.
    optimizer.layerwise_lr_decay = 1.0
    # Decay of a moving average of the parameters, which is then what is evaluated; 0: none.
    optimizer.ema_decay = 0.0

    config.schedule = schedule = ConfigDict()
    # After the warm-up: "cosine", "linear", "rsqrt", "constant" or "warmup_stable_decay".
    schedule.name = "cosine"
    # Updates of linear rise from 0. Below steps.
    schedule.warmup_steps = 30
    # The learning rate of the last update, as a share of the peak (cosine, linear,
    # warmup_stable_decay).
    schedule.final_lr_ratio = 0.1
    # Share of the steps in the final fall of warmup_stable_decay; at most what the warm-up leaves.
    # 0: it stays at the peak.
    schedule.decay_fraction = 0.2
    # Updates after which one more block learns, from the last to the first, what follows the blocks
    # from the start and the embeddings last. 0: all from the start. Of model.share_layers, the one
    # layer learns with the first.
    schedule.unfreeze_every = 0

    config.regularization = regularization.regularization()
    config.policy = regularization.policy()

    config.mesh = mesh = ConfigDict()
    # Devices along each axis; -1 once: all that remain. The batch is split over data and fsdp;
    # parameters and optimizer state over fsdp and tensor; the positions of each row over sequence,
    # which divides data.seq_len, for rows whose activations one device cannot hold.
    mesh.data = -1
    mesh.fsdp = 1
    mesh.sequence = 1
    mesh.tensor = 1

    config.checkpoint = checkpoint = ConfigDict()
    # Steps between checkpoints. 0: only at the end and when interrupted.
    checkpoint.every = 100
    # Latest checkpoints kept.
    checkpoint.max_to_keep = 2
    # Beside these, checkpoints that are never removed: of every multiple of so many steps, which is
    # saved even between those of `every`; and of the best evaluations by the primary metric, so
    # many of them. 0: none.
    checkpoint.keep_every = 0
    checkpoint.keep_best = 0

    config.evaluation = evaluation = ConfigDict()
    # Steps between evaluations. 0: only at the end.
    evaluation.every = 100
    # Held-out rows (of a task: examples) in each evaluation, the same ones always. 0: all.
    evaluation.num_examples = 256
    # Instead, so many bytes of held-out text, which are the same for every tokenizer: whole
    # documents in a fixed random order, the last one also whole. At most those that there are; not
    # of tasks or pairs. None: num_examples rows.
    evaluation.num_bytes = placeholder(int)
    # Training ends after so many evaluations in a row without a better one, and goes back to the
    # best. 0: it goes on to the last step, whose state is the result; where regularization.sparsity
    # is set, that alone is what was to be pruned.
    evaluation.patience = 0

    config.alarm = alarm = ConfigDict()
    # Alarm at a step whose loss is so many standard deviations (by the median absolute deviation)
    # above the median of the last alarm.window losses. 6 to 10 is usual. 0: off.
    alarm.loss_spike = 0.0
    # Steps whose losses are usual, at least 4; there is no such alarm before so many are made.
    alarm.window = 128
    # Alarm at a step whose gradient, before it is clipped, has a norm above this. 0: off.
    alarm.grad_norm = 0.0
    # What follows an alarm: "warn" (a line), "skip" (the update is not made), or "rollback" (the
    # run goes back to its newest scheduled checkpoint and on with other data; also where a step is
    # not finite).
    alarm.policy = "warn"
    # How often a run goes back at most, at least 1; at the next alarm it stops.
    alarm.max_rollbacks = 3

    config.log = log = ConfigDict()
    # Steps between lines of metrics.jsonl and of the trackers.
    log.every = 10
    # What has the lines of metrics.jsonl too: "tensorboard" (events in the workdir), "wandb"
    # (Weights & Biases) or "trackio" (a local dashboard), any of them; the last two come with
    # softmax-laboratory[tracking]. (): none of them.
    log.trackers = ("tensorboard",)
    # The project of wandb and trackio that has the run.
    log.project = "softmax-laboratory"
    # The first step that JAX's profiler traces into the workdir's folder profile, for XProf. At
    # least 2: the first step compiles.
    log.profile_start = 10
    # Steps that it traces. 0: none.
    log.profile_steps = 0
    return config


def _unset(group: ConfigDict) -> ConfigDict:
    """The same keys, none of them set."""
    return ConfigDict({key: placeholder(group.get_type(key)) for key in group})
