"""The audit of a model whose robustness is known: in L2, and without work done twice."""

import pytest

from ltd_pipe.evaluation.audit import AuditSettings, audit


@pytest.fixture(scope="module")
def told():
    """What the audit said was under way."""
    return []


@pytest.fixture(scope="module")
def found(images, new_model, told):
    """An audit of the linear model in L2, with three starts of PGD."""
    settings = AuditSettings(
        eps=0.16, batch_size=24, steps=20, restarts=3, square_queries=20, norm="l2"
    )
    tick = lambda *words: told.append(words)  # noqa: E731
    return audit(new_model(), images, settings, tick=tick)


def test_a_linear_model_is_not_masked_in_l2(found):
    """Every check passes, the largest ball breaks all, and the curve ends at zero."""
    assert [finding.name for finding in found.findings if not finding.passed] == []
    assert found.curve.zero_at is not None
    assert found.surface.rises == 1.0


def test_no_start_is_tried_twice(found, told):
    """Of three starts the first is the plain attack's: two are left for what stands."""
    plain = [done for name, done, _ in told if name == "PGD-20" and done]
    again = [done for name, done, _ in told if name.startswith("PGD-20 start") and done]
    assert len(plain) == 1
    assert len(again) == 2
    assert max(again) < plain[0]
