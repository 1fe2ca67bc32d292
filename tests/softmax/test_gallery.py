"""The gallery draws every weighting."""

import matplotlib.image
import numpy as np
import pytest

from lm.softmax import WEIGHTINGS, gallery


@pytest.mark.slow
def test_the_gallery_is_a_picture_of_every_weighting(tmp_path, monkeypatch):
    drawn = []
    label = gallery._label
    monkeypatch.setattr(gallery, "_label", lambda name: drawn.append(name) or label(name))
    gallery.draw(tmp_path / "gallery.png")
    assert drawn == list(WEIGHTINGS)
    assert np.ptp(matplotlib.image.imread(tmp_path / "gallery.png")) > 0.9


def test_slopes_are_those_of_the_curves():
    weights, slope = gallery._against_one_score("softmax")
    numeric = np.gradient(weights[:, 0], gallery.SWEEP)
    np.testing.assert_allclose(slope[1:-1], numeric[1:-1], atol=1e-3)
