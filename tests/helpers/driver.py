"""Running a solver on recorded noise, and walking the cases of a golden file."""

from dataclasses import dataclass, field

from solvers.solver import Problem


@dataclass(frozen=True)
class Recorded(Problem):
    """A problem whose noise was drawn before: ``draws (n, B, C, H, W)`` in the order of use."""

    draws: object = None
    used: list = field(default_factory=list)

    def noise(self, like):
        self.used.append(True)
        return self.draws[len(self.used) - 1].to(like)


def drive(solver, denoiser, x, grid, y=None, draws=None, process=None):
    """The image, the states that the network saw, and the times of its calls."""
    problem = Recorded(process or denoiser.process, y, None, draws)
    run = solver.run(problem, grid, x)
    states, times = [], []
    try:
        query = next(run)
        while True:
            states.append(query.x)
            times.append(query.t)
            query = run.send(denoiser(query.x, query.t))
    except StopIteration as end:
        return end.value, states, times


def cases(arrays: dict, family: str) -> dict[str, dict]:
    """The arrays ``{family}/{case}/{name}`` of a golden file by case; there must be some."""
    found: dict[str, dict] = {}
    for key, value in arrays.items():
        if key.startswith(family + "/"):
            _, case, name = key.split("/", 2)
            found.setdefault(case, {})[name] = value
    assert found, f"the file holds no case of {family}"
    return found
