"""Heads that sample words, part them or order them, and losses for other targets, equal oracles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.output import OUTPUTS
from lm.output.adaptive import cluster_starts
from lm.output.crf import CrfHead
from lm.output.hierarchical import huffman
from lm.output.sampled import sampling_line, systematic_sample
from lm.output.sparse import jensen_shannon, smoothed_nats, sparsemax_score
from lm.output.von_mises_fisher import bessel_ratios, log_bessel, log_normaliser
from tests.output.test_output import D, N, V, head_of, inputs


def test_adaptive_equals_torch_with_the_same_weights():
    torch = pytest.importorskip("torch")
    words, features, cutoffs = 40, 8, [6, 20]
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(features, words, cutoffs, div_value=2.0)
    head = OUTPUTS["adaptive"](words, features, cutoffs=tuple(cutoffs), divisor=2)
    params = {"head_table": theirs.head.weight.detach().numpy()}
    for i, tail in enumerate(theirs.tail):
        params[f"down_{i}_kernel"] = tail[0].weight.detach().numpy()
        params[f"tail_{i}_table"] = tail[1].weight.detach().numpy()
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    hidden = np.random.default_rng(0).normal(size=(30, features)).astype(np.float32)
    targets = np.arange(30) % words
    inputs = torch.from_numpy(hidden).requires_grad_()
    found = theirs(inputs, torch.from_numpy(targets))
    found.output.sum().neg().backward()

    def total(variables, hidden):
        return head.apply(variables, hidden, jnp.asarray(targets), jnp.ones(30), method="loss_sum")

    value, (of_params, of_hidden) = jax.jit(jax.value_and_grad(total, (0, 1)))(variables, hidden)
    np.testing.assert_allclose(value, -found.output.detach().numpy().sum(), rtol=1e-5)
    np.testing.assert_allclose(of_hidden, inputs.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        of_params["params"]["tail_1_table"], theirs.tail[1][1].weight.grad.numpy(), atol=1e-5
    )
    log_probs = head.apply(variables, hidden, method="log_probs")
    np.testing.assert_allclose(log_probs, theirs.log_prob(inputs).detach().numpy(), atol=1e-5)


def test_cutoffs_must_rise_below_the_vocabulary():
    assert cluster_starts(None, 640) == (20, 160, 640)
    with pytest.raises(ValueError, match="must rise"):
        cluster_starts((20, 10), 640)


def test_a_huffman_tree_gives_frequent_words_the_shortest_paths():
    counts = np.array([100, 1, 50, 2, 25, 3], np.int64)
    tree = huffman(6, counts.tobytes())
    lengths = np.count_nonzero(tree.turns, axis=1)
    assert (np.diff(lengths[np.argsort(-counts)]) >= 0).all()
    assert np.sum(2.0**-lengths) == 1.0


def test_a_class_for_each_word_is_the_full_softmax():
    head, variables = head_of("class_factored", classes=V)
    softmax = OUTPUTS["softmax"](V, D)
    table = {"params": {"table": variables["params"]["class_table"]}}
    np.testing.assert_allclose(
        head.apply(variables, inputs()[0], method="log_probs"),
        softmax.apply(table, inputs()[0], method="log_probs"),
        atol=1e-5,
    )


def test_the_word_table_begins_alike_whatever_else_a_head_has():
    tables = [
        OUTPUTS[name](V, D).init(jax.random.key(0), *inputs(), method="loss")["params"]["table"]
        for name in ("softmax", "class_factored")
    ]
    np.testing.assert_array_equal(*tables)


@pytest.mark.parametrize("distribution", ["log_uniform", "unigram"])
def test_words_are_drawn_as_often_as_expected(distribution):
    counts = np.array([50, 3, 0, 9, 1000, 7, 20], np.int64)
    edges, log_expected = sampling_line(7, 3, distribution, counts.tobytes())
    expected, draws = np.exp(log_expected), 4000
    np.testing.assert_allclose(expected.sum(), 3.0, rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), draws)
    words = np.asarray(jax.jit(jax.vmap(lambda key: systematic_sample(key, edges, 3)))(keys))
    assert (np.diff(np.sort(words, axis=1), axis=1) > 0).all()
    frequencies = np.bincount(words.ravel(), minlength=7) / draws
    # Four standard errors of a share.
    assert (np.abs(frequencies - expected) <= 4 * np.sqrt(0.25 / draws)).all()


@pytest.mark.parametrize("name", ["sampled", "dynamic", "nce"])
def test_all_words_sampled_is_exact(name):
    head, variables = head_of(name, samples=V)
    hidden, targets = inputs()
    rngs = {"softmax": jax.random.key(0)}
    sampled = head.apply(variables, hidden, targets, method="loss", rngs=rngs)
    exact = head.apply(variables, hidden, targets, method="exact_loss")
    np.testing.assert_allclose(sampled, exact, rtol=1e-5)


def test_the_sampled_normaliser_is_right_on_average_and_the_gradient_tends_to_the_full_one():
    hidden, targets = inputs()
    keys = jax.random.split(jax.random.key(0), 3000)

    def errors(samples):
        head, variables = head_of("sampled", samples=samples)

        def loss(hidden, key):
            return head.apply(variables, hidden, targets, method="loss", rngs={"softmax": key})

        exact = head.apply(variables, hidden, targets, method="exact_loss")
        of_exact = jax.grad(lambda h: head.apply(variables, h, targets, method="exact_loss").sum())(
            hidden
        )
        draws = jax.jit(jax.vmap(loss, (None, 0)))(hidden, keys)
        mean = jax.jit(
            lambda: jax.vmap(jax.grad(lambda h, k: loss(h, k).sum()), (None, 0))(hidden, keys).mean(
                0
            )
        )()
        # loss = log(Z_sampled) - z_y, so exp(loss - exact) = Z_sampled / Z, whose mean is 1.
        ratio = np.exp(np.asarray(draws - exact, np.float64))
        error = ratio.std(0) / np.sqrt(len(keys))
        assert (np.abs(ratio.mean(0) - 1.0) <= 4 * error + 1e-5).all()
        return np.linalg.norm(mean - of_exact)

    few, many = errors(3), errors(8)
    assert many < 0.5 * few


def test_accidental_hits_are_no_rivals_of_the_target():
    head, _ = head_of("sampled", samples=2)
    loss = head.sampled_loss(
        np.array([4]), jnp.array([1.0]), np.array([4, 7]), jnp.array([[9.0, 1.0]]), jnp.zeros(V)
    )
    np.testing.assert_allclose(loss, np.log(2.0), rtol=1e-6)


def test_the_dynamic_head_is_full_on_every_kth_step_and_always_at_one():
    hidden, targets = inputs()
    weights = jnp.ones(N)

    def totals(**options):
        head, variables = head_of("dynamic", samples=2, **options)

        def total(step):
            rngs = {"softmax": jax.random.key(1)}
            arguments = (jnp.asarray(hidden), targets, weights, None, step)
            return head.apply(variables, *arguments, method="loss_sum", rngs=rngs)

        full = head.apply(variables, hidden, targets, method="exact_loss").sum()
        return np.asarray([jax.jit(total)(step) for step in range(6)]) - full

    assert (np.abs(totals(every=1)) < 1e-4).all()
    np.testing.assert_array_equal(np.abs(totals(every=3)) < 1e-4, [0, 0, 1, 0, 0, 1])
    grown = np.abs(totals(every=1, double_every=2)) < 1e-4
    np.testing.assert_array_equal(grown, [1, 1, 0, 1, 0, 0])


def test_nce_normalises_itself_on_a_toy():
    words, rng = 6, np.random.default_rng(0)
    p = rng.dirichlet(np.ones(words))
    head = OUTPUTS["nce"](words, 1, bias=True, samples=3)
    hidden, targets = np.ones((words, 1), np.float32), np.arange(words)

    def total(bias):
        params = {"table": jnp.zeros((words, 1)), "bias": bias}
        return jnp.vdot(p, head.apply({"params": params}, hidden, targets, method="loss"))

    rule = optax.adam(0.1)

    def step(carry, _):
        bias, state = carry
        updates, state = rule.update(jax.grad(total)(bias), state)
        return (bias + updates, state), None

    start = jnp.zeros(words)
    (bias, _), _ = jax.lax.scan(step, (start, rule.init(start)), None, length=600)
    np.testing.assert_allclose(jnp.exp(bias) / words, p, atol=2e-3)


def test_gumbel_samples_are_one_hot_with_the_soft_gradient_and_the_softmax_frequencies():
    head, variables = head_of("gumbel", temperature=0.7)
    hidden = np.repeat(inputs()[0][:1], 4000, axis=0)
    hard = jax.jit(lambda h: head.apply(variables, h, jax.random.key(0), method="one_hot"))(hidden)
    assert set(np.unique(hard)) == {0.0, 1.0}
    p = np.exp(head.apply(variables, hidden[:1], method="log_probs"))[0]
    assert (np.abs(hard.mean(0) - p) <= 4 * np.sqrt(p * (1 - p) / 4000) + 1e-4).all()
    direction = np.random.default_rng(2).normal(size=V)

    def along(h):
        return jnp.vdot(head.apply(variables, h, jax.random.key(0), method="one_hot")[0], direction)

    gradient = np.asarray(jax.grad(along)(hidden[:1]))
    assert np.isfinite(gradient).all()
    assert (gradient != 0).any()


@pytest.mark.parametrize(
    ("name", "theirs"), [("sparsemax", "sparsemax_loss"), ("entmax", "entmax15_loss")]
)
def test_fenchel_young_losses_equal_the_entmax_package(name, theirs):
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    head, variables = head_of(name, scale=1.0)
    hidden, targets = inputs()
    z = np.asarray(hidden @ variables["params"]["table"].T)
    logits = torch.from_numpy(z.copy()).requires_grad_()
    expected = getattr(entmax, theirs)(logits, torch.from_numpy(targets))
    expected.sum().backward()
    actual = head.apply(variables, hidden, targets, method="loss")
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-4, atol=1e-5)

    def of_logits(z):
        whole = OUTPUTS[name](V, V)
        return whole.apply({"params": {"table": jnp.eye(V)}}, z, targets, method="loss").sum()

    np.testing.assert_allclose(jax.grad(of_logits)(z), logits.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize(("name", "alpha"), [("sparsemax", 2.0), ("entmax", 1.5)])
def test_fenchel_young_losses_vanish_beyond_the_margin(name, alpha):
    head = OUTPUTS[name](vocab_size=4, d_model=4)
    margin = 1 / (alpha - 1)
    z = jnp.array(
        [[0.0, margin, 0.0, -5.0], [0.0, margin - 0.1, 0.0, -5.0], [0.0, 600.0, 0.0, 0.0]]
    )

    def loss(z):
        return head.apply({"params": {"table": jnp.eye(4)}}, z, np.ones(3, int), method="loss")

    losses = loss(z)
    assert losses[0] == 0.0 and losses[1] > 0.0 and losses[2] == 0.0
    np.testing.assert_array_equal(jax.grad(lambda z: loss(z).sum())(z)[0], 0.0)


def test_measures_for_sparse_predictions_equal_their_definitions():
    p = np.array([0.7, 0.3, 0.0, 0.0])
    for y in range(4):
        one_hot = np.eye(4)[y]
        m = (p + one_hot) / 2
        kl = [
            sum(a * np.log(a / b) for a, b in zip(q, m, strict=True) if a > 0) for q in (p, one_hot)
        ]
        np.testing.assert_allclose(jensen_shannon(jnp.asarray(p[y])), sum(kl) / 2, atol=1e-6)
        expected = p[y] + (1 - (p**2).sum()) / 2
        np.testing.assert_allclose(sparsemax_score(p[y], (p**2).sum()), expected)
        nats = -np.log((p[y] + 0.01) / 1.04)
        np.testing.assert_allclose(smoothed_nats(jnp.asarray(p[y]), 4, 0.01), nats, rtol=1e-6)


def test_one_vs_all_and_squared_losses_equal_optax():
    hidden, targets = inputs()
    one_hot = np.eye(V)[targets]
    head, variables = head_of("sigmoid")
    z = hidden @ variables["params"]["table"].T + variables["params"]["bias"]
    expected = optax.sigmoid_binary_cross_entropy(z, one_hot).sum(-1)
    actual = head.apply(variables, hidden, targets, method="loss")
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    head, variables = head_of("squared", bias=True)
    z = hidden @ variables["params"]["table"].T + variables["params"]["bias"]
    expected = optax.squared_error(z, one_hot).mean(-1)
    actual = head.apply(variables, hidden, targets, method="loss")
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("order", [0.0, 0.5, 3.0, 15.0, 127.0])
def test_bessel_functions_and_their_ratios_equal_scipy(order):
    special = pytest.importorskip("scipy.special")
    x = np.array([0.3, 2.0, 17.0, 90.0, 400.0])
    low, high = (special.ive(v, x) for v in (order, order + 1))
    known = low > 1e-290  # below that, scipy's own numbers underflow
    with jax.enable_x64(True):
        found = log_bessel(jnp.asarray(x), order)
        (ratio,) = bessel_ratios(jnp.asarray(x), order, 1)
        features = int(2 * order + 2)
        slope = jax.vmap(jax.grad(lambda x: log_normaliser(x, features)))(jnp.asarray(x))
    np.testing.assert_allclose(found[known], (np.log(low[known]) + x[known]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ratio[known], high[known] / low[known], rtol=1e-6)
    np.testing.assert_allclose(slope, -ratio, rtol=1e-9)


def test_a_chain_of_tags_equals_brute_force():
    length, tags = 4, 3
    head = CrfHead(vocab_size=tags, d_model=5)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, length, 5)).astype(np.float32)
    targets = rng.integers(0, tags, (2, length))
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), hidden, targets, method="loss"))
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    params = variables["params"]
    where = np.array([[True] * 4, [True, False, True, False]])
    losses = head.apply(variables, hidden, targets, where=jnp.asarray(where), method="loss")
    marginals = np.exp(head.apply(variables, hidden, method="log_probs"))
    best = head.apply(variables, hidden, method="best")
    transitions, count = np.asarray(params["transitions"]), tags

    def score(tags, z):
        return sum(z[i, t] for i, t in enumerate(tags)) + sum(
            transitions[a, b] for a, b in itertools.pairwise(tags)
        )

    def log_sum(length, z):
        every = itertools.product(range(count), repeat=length)
        return np.logaddexp.reduce([score(path, z) for path in every])

    for row in range(2):
        z = np.asarray(hidden[row] @ params["table"].T + params["bias"])
        kept = np.flatnonzero(where[row])

        expected = log_sum(len(kept), z[kept]) - score(targets[row][kept], z[kept])
        np.testing.assert_allclose(losses[row].sum(), expected, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(losses[row])[~where[row]], 0.0)
        paths = list(itertools.product(range(tags), repeat=length))
        p = np.exp([score(path, z) - log_sum(length, z) for path in paths])
        for place, tag in itertools.product(range(length), range(tags)):
            mass = sum(q for q, path in zip(p, paths, strict=True) if path[place] == tag)
            np.testing.assert_allclose(marginals[row, place, tag], mass, rtol=1e-4)
        assert tuple(np.asarray(best[row])) == paths[int(np.argmax(p))]
