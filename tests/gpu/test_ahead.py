"""Running ahead: what is launched when."""

from tinyres_gpu.ahead import StepAhead


def test_a_gpu_is_kept_busy_and_its_state_is_looked_at_only_when_it_is_still():
    class Ahead(StepAhead):
        def __init__(self):
            self.log = []

        def launch(self, t):
            self.log.append(f"launch {t}")

        def result(self, t):
            self.log.append(f"result {t}")
            return float(t), t

        infer = state = load = None

    step = Ahead()
    found = list(step.outcomes(3, 8, lambda t: t == 5))
    assert found == [
        (3, 3.0, 3, False),
        (4, 4.0, 4, False),
        (5, 5.0, 5, True),
        (6, 6.0, 6, False),
        (7, 7.0, 7, True),
    ]
    assert step.log == [
        *("launch 3", "launch 4", "result 3", "launch 5", "result 4", "result 5"),
        *("launch 6", "launch 7", "result 6", "result 7"),
    ]
