"""What a sweep is to try: its file, checked against params.yaml before anything starts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from stages.params import Count, Params, Section, Seed, read_yaml
from stages.params_file import ParamsFile, flatten
from stages.runtime.errors import UserError, one_line

SHIPPED = Path(__file__).parent
SECTIONS = ("whisper", "train")  # of params.yaml; other sections would make features anew, from audio a trial lacks

Value = bool | int | float | str | None
Values = dict[str, Value]  # of params.yaml, by dotted key


class Dimension(Section):
    """Values of one key: ``choices``, or all from ``low`` to ``high``, whole ones where both are whole."""

    choices: Annotated[list[Value], Field(min_length=2)] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: Annotated[int | float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def is_one_or_the_other(self) -> Self:
        if self.choices is not None:
            if {self.low, self.high, self.step} != {None} or self.log:
                raise ValueError("choices stand alone")
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError("wants choices, or low and a greater high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log wants a low above 0 and no step")
        if self.whole and isinstance(self.step, float):
            raise ValueError("step must be whole where low and high are")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def edges(self) -> list[Value]:
        """The values that have to be allowed for all to be."""
        return self.choices if self.choices is not None else [self.low, self.high]

    def holds(self, value: Value) -> bool:
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        assert self.low is not None and self.high is not None
        steps = (value - self.low) / self.step if self.step is not None else 0
        return self.low <= value <= self.high and abs(steps - round(steps)) < 1e-9


class Sampler(Section):
    """tpe: Bergstra et al. 2011, at random before ``startup_trials`` have finished."""

    kind: Literal["tpe", "random"] = "tpe"
    startup_trials: Count = 4
    seed: Seed = 1


class Pruner(Section):
    """A trial goes on while it is among the best ``keep`` of the finished ones at the same step."""

    keep: Annotated[float, Field(gt=0, lt=1)] = 0.34
    startup_trials: Count = 2
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class Plan(Section):
    """A sweep's file. start: the trials to begin with; a key that one leaves out has the current value.

    hours: of training, by all processes together, after which no trial is begun; null: no limit.
    """

    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    overrides: Values = Field(default_factory=dict)
    start: list[Literal["current"] | Values] = ["current"]  # noqa: RUF012  # pydantic copies it
    sampler: Sampler = Sampler()
    pruner: Pruner | None = Pruner()
    trials: Count
    hours: Annotated[float, Field(gt=0)] | None = None


def find_plan(name: str) -> Path:
    """A sweep's file, by its path or the name of a shipped one."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    shipped = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    if name not in shipped:
        raise UserError(f"no sweep is called {name}: give the path of a .yaml, or one of {', '.join(shipped)}")
    return SHIPPED / f"{name}.yaml"


def load_plan(path: Path, params: Path) -> Plan:
    """Read a sweep's file; raises UserError where it, or a value that it may try, is not valid for params.yaml."""
    values = read_yaml(path, YAML(typ="safe", pure=True))
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, one['loc'])) or 'the file'}: {message(one['msg'])}" for one in error.errors()]
        raise UserError("\n".join([f"{path}:", *lines])) from None
    check_keys(plan, path)
    check_values(plan, path, params)
    return plan


def message(text: str) -> str:
    return text.removeprefix("Value error, ")


def check_keys(plan: Plan, path: Path) -> None:
    """Raise UserError for a key that a trial cannot turn."""
    for key in (*plan.space, *plan.overrides):
        if key.partition(".")[0] not in SECTIONS:
            raise UserError(
                f"{path}: {key}: a sweep turns keys of {' and '.join(SECTIONS)} alone; set the others first"
            )
    if both := plan.space.keys() & plan.overrides.keys():
        raise UserError(f"{path}: {', '.join(sorted(both))}: in space or in overrides, not in both")
    for values in plan.start:
        if isinstance(values, dict) and (unknown := values.keys() - plan.space.keys()):
            raise UserError(f"{path}: start: {', '.join(sorted(unknown))}: not in space")


def check_values(plan: Plan, path: Path, params: Path) -> None:
    """Raise UserError for values that params.yaml would not take, or a start outside of the space."""
    checks: list[tuple[str, Values]] = [("overrides", {})]
    checks += [(f"space: {key}", {key: value}) for key, one in plan.space.items() for value in one.edges()]
    for place, values in checks:
        try:
            apply(params, plan.overrides | values)
        except UserError as error:
            raise UserError(f"{path}: {place}: {one_line(error)}") from None
    for values in starting_points(plan, params):
        for key, value in values.items():
            if not plan.space[key].holds(value):
                raise UserError(f"{path}: start: {key} {value} is outside of its space: widen it, or start elsewhere")


def apply(params: Path, values: Values) -> Params:
    """params.yaml with other values, which are not written; raises UserError where they are not valid."""
    file = ParamsFile(params)
    for key, value in values.items():
        file.set(key, value)
    return file.validate()


def current_values(params: Path, keys: Iterable[str]) -> Values:
    """What stands in params.yaml at some keys."""
    values = dict(flatten(apply(params, {}).model_dump(mode="json")))
    return {key: values[key] for key in keys}  # type: ignore[misc]  # leaves are values, or lists that no space holds


def starting_points(plan: Plan, params: Path) -> list[Values]:
    """The trials to begin with, each with a value for every key of the space."""
    current = current_values(params, plan.space)
    return [current | (values if isinstance(values, dict) else {}) for values in plan.start]
