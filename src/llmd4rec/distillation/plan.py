"""What a run trains, in which order, and who teaches whom: a pure function of its settings.

    undistilled                    the served model without a teacher           (all there is when rounds = 0)
    teacher-1, teacher-2, ...      wider models that only teach
    llm                            the language model, reading the item embeddings of teacher-1
    round r:
        llm-round-r                the language model, taught by the other models
        distilled-round-r          the served model, taught by the ensemble
    beside-memory                  the same, with the memory's scores added to its own: what is served with the memory

A run trains these stages one after the other, or independent ones side by side, and stops before the last round where
another would not help (`runs/pipeline.py`). Two plans whose stage is equal train the same weights: that is how a run
knows what a changed setting invalidates (`runs/invalidation.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmd4rec.distillation.methods import METHODS, AnyMethod, LLMD4Rec
from llmd4rec.distillation.settings import DistillationSettings, Student
from llmd4rec.distillation.stage_ids import (
    BESIDE_MEMORY,
    DISTILLED,
    LANGUAGE_MODEL,
    MEMORY,
    SERVED,
    UNDISTILLED,
    round_id,
    teacher_id,
)
from llmd4rec.errors import RunError
from llmd4rec.features.text_settings import TextSettings
from llmd4rec.losses.loss import Softmax
from llmd4rec.losses.softmax import DistillationTerm
from llmd4rec.models.llm.settings import LLM
from llmd4rec.models.sequential import MODELS, SequentialModel
from llmd4rec.scoring.memory.settings import Memory
from llmd4rec.training.settings import Training

#: What a stage's model is for: it is served, it only teaches, or it is the language model.
Role = Literal["model", "teacher", "llm"]


@dataclass(frozen=True)
class Teaching:
    """How the teachers of a stage teach.

    Attributes:
        method: the loss.
        term: weight, temperature and sample weights of the distillation term.
        logit_adjustment: τ, or `auto` to choose it on validation.
        ensemble_weights: `validation` or `equal`, of several teachers.
        teacher_precision: of what a teacher's scores are computed from.
        student_ranks_of: the stage whose ranks stand for the student's in the sample weights; None: its current ones.
        memory: of what the memory is counted that teaches too; None: it does not.
        exclude_seen: whether items of the history have no probability, neither the student's nor the teachers'.
    """

    method: AnyMethod
    term: DistillationTerm
    logit_adjustment: Literal["auto"] | float
    ensemble_weights: Literal["validation", "equal"]
    teacher_precision: Literal["int8", "float32"]
    student_ranks_of: str | None
    memory: Memory | None = None
    exclude_seen: bool = False


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        id: its name in a run folder, in options and reports.
        role: what its model is for.
        round: of distillation; 0 for what is trained before the first one.
        network: settings of the model, with the dropout that it has in this stage.
        training: how it is trained.
        seed: the run's seed.
        seed_key: what its random numbers are derived from, beside the seed.
        selection: what its epochs are chosen by: the metric, whether seen items are
            filtered, and on how many users.
        negatives: which items are negatives, as the setting says.
        half_life_days: how much more often newer interactions are trained on, as the setting says.
        newest_days: how many of the newest days are learned last, as the setting says.
        texts: how item texts become vectors, where it reads any.
        text_llm: the language model, where that encodes the texts.
        teachers: ids of the stages whose models teach it; none: it learns from the log alone.
        teaching: how; None without teachers.
        starts_from: the stage whose weights it goes on from; None: random weights.
        item_embeddings_of: the stage whose item embeddings become the language model's inputs; None: none, or as in
            the stage that it goes on from.
        item_dim: their width; None for other models.
        rollouts_by: the stage whose model draws items behind each history; None: it learns from the log's histories.
        rollout_length: how many.
        note: what a reader of the log should know.
    """

    id: str
    role: Role
    round: int
    network: SequentialModel | LLM
    training: Training
    seed: int
    seed_key: str
    selection: tuple[Any, bool, int | None]
    negatives: Literal["auto", "known", "all"] = "auto"
    half_life_days: Literal["auto"] | float | None = "auto"
    newest_days: Literal["auto"] | float | None = "auto"
    texts: TextSettings | None = None
    text_llm: LLM | None = None
    teachers: tuple[str, ...] = ()
    teaching: Teaching | None = None
    starts_from: str | None = None
    item_embeddings_of: str | None = None
    item_dim: int | None = None
    rollouts_by: str | None = None
    rollout_length: int = 0
    note: str = ""

    @property
    def beside_memory(self) -> bool:
        """Whether its model is taught, and meant to be served, with the memory's scores added to its own."""
        return self.teaching is not None and self.teaching.term.beside_memory

    @property
    def taught_by(self) -> tuple[str, ...]:
        """Who teaches it: stages, and the memory where that does."""
        memory = self.teaching is not None and self.teaching.memory is not None
        return (*self.teachers, MEMORY) if memory else self.teachers

    @property
    def student(self) -> Student:
        """Whose training settings it has."""
        return "llm" if self.role == "llm" else "model"

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that must be done before it."""
        named = (*self.teachers, self.starts_from, self.item_embeddings_of, self.rollouts_by)
        ranks = self.teaching.student_ranks_of if self.teaching is not None else None
        return tuple(dict.fromkeys(stage for stage in (*named, ranks) if stage is not None))

    def identity(self) -> dict[str, Any]:
        """All that its weights depend on, as plain values.

        How often it is saved is none of it; nor is what training settings say of rounds, which in a round has taken the
        place of its epochs and rate, and elsewhere says nothing.
        """
        values = {name: value for name, value in vars(self).items() if name != "note"}
        training = self.training.model_dump(
            mode="json", exclude={"checkpoint_seconds", "round_epochs", "round_learning_rate"}
        )
        teaching = None
        if self.teaching is not None:
            teaching = vars(self.teaching) | {
                "method": METHODS.dump(self.teaching.method),
                "term": vars(self.teaching.term),
                "memory": None if self.teaching.memory is None else self.teaching.memory.model_dump(mode="json"),
            }
        model = self.network
        network = model.model_dump(mode="json") if isinstance(model, LLM) else MODELS.dump(model)
        return values | {
            "network": network,
            "training": training,
            "texts": None if self.texts is None else self.texts.model_dump(mode="json"),
            "text_llm": None if self.text_llm is None else self.text_llm.model_dump(mode="json"),
            "teaching": teaching,
        }


def plan(settings: DistillationSettings) -> list[Stage]:
    """The stages of a run with these settings, each behind all that it needs."""
    return _Plan(settings).stages()


def find(stages: Iterable[Stage], stage_id: str) -> Stage:
    """The stage of that id.

    Raises:
        RunError: the plan has none.
    """
    stages = list(stages)
    for stage in stages:
        if stage.id == stage_id:
            return stage
    have = ", ".join(stage.id for stage in stages)
    raise RunError(f"there is no stage {stage_id!r} in this plan", f"Choose one of: {have}, {DISTILLED}, {SERVED}.")


def network_name(stage: Stage) -> str:
    """Which model a stage trains, for a person: `SASRec 64`, or the language model's name."""
    if isinstance(stage.network, LLM):
        return stage.network.model.rsplit("/", 1)[-1]
    return f"{type(stage.network).__name__} {stage.network.dim}"


def rounds_of(stages: Iterable[Stage], student: Student) -> list[Stage]:
    """The stages in which a student is taught, in the order of rounds; not the one that is never without the memory."""
    return [stage for stage in stages if stage.round and stage.role == student and not stage.beside_memory]


def ready(stages: Sequence[Stage], done: Iterable[str]) -> list[Stage]:
    """The stages that are not done and need nothing that is not: they may run side by side."""
    finished = set(done)
    return [stage for stage in stages if stage.id not in finished and finished.issuperset(stage.needs)]


class _Plan:
    def __init__(self, settings: DistillationSettings) -> None:
        self.settings, self.distill = settings, settings.distill
        self.llm = self._llm()
        # In a round the language model is taught first, and teaches the served one as it is then.
        taught = ("llm", "model") if self.llm is not None else ("model",)
        self.students: tuple[Student, ...] = tuple(one for one in taught if one in self.distill.students)
        self.teachers = self._teachers()

    def stages(self) -> list[Stage]:
        settings = self.settings
        found = [self._first("model", UNDISTILLED, "crm-alone", settings.model)]
        for number in self.teachers:
            network = settings.teachers[number - 1].network(settings.model)
            # The names that random streams had before stages had ids: changing them would change all results.
            seed_key = "wide-alone" if number == 1 else f"wide-alone-{number}"
            found.append(self._first("teacher", teacher_id(number), seed_key, network))
        if self.llm is not None:
            found.append(self._first("llm", LANGUAGE_MODEL, "llm-alone", self.llm))
        for number in range(1, settings.rounds + 1):
            found += [self._taught(student, number) for student in self.students]
            if number == 1 and self.distill.beside_memory and settings.memory_teaches and "model" in self.students:
                found.append(self._beside_memory())
        return found

    # ---- who takes part -----------------------------------------------------------------------------------------
    def _llm(self) -> LLM | None:
        """The language model, where anybody is taught by it or teaches it."""
        settings = self.settings
        unused = self.distill.source == "self" and "llm" not in self.distill.students
        if settings.llm is None or not settings.rounds or unused:
            return None
        return settings.llm

    def _teachers(self) -> range:
        """The numbers of the teachers that anybody learns from or reads."""
        settings, source = self.settings, self.distill.source
        if not settings.rounds or not settings.teachers:
            return range(0)
        # A student learns from them but where the language model is its one partner, or where that is its own teacher.
        without = {"model": "partner", "llm": "self"}
        if any(source != without[student] for student in self.students):
            return range(1, len(settings.teachers) + 1)
        return range(1, 2) if self.llm is not None and self.llm.inject != "never" else range(0)

    def _latest(self, role: Role, number: int) -> str:
        """The stage whose model stands for that role in round `number`: the last one trained before it."""
        first = {"model": UNDISTILLED, "llm": LANGUAGE_MODEL, "teacher": teacher_id(1)}[role]
        return round_id(role, number - 1) if number > 1 and role in self.students else first

    def _sources(self, student: Student, number: int) -> tuple[str, ...]:
        """The stages that teach a student in a round."""
        # The served model is taught by the language model that this round has taught.
        model = self._latest("model", number)
        llm = () if self.llm is None else (self._latest("llm", number + 1 if student == "model" else number),)
        models = (*(teacher_id(teacher) for teacher in self.teachers), model)
        own, others = (models, llm) if student == "model" else (llm, models)
        return {"partner": others, "ensemble": (*others, *own), "self": own}[self.distill.source]

    # ---- one stage ----------------------------------------------------------------------------------------------
    def _first(self, role: Role, stage_id: str, seed_key: str, network: SequentialModel | LLM) -> Stage:
        """A stage before the rounds, without a teacher."""
        training: Training = self.settings.training.llm if role == "llm" else self.settings.training.model
        return self._stage(stage_id, role, 0, network, training, seed_key)

    def _taught(self, student: Student, number: int) -> Stage:
        """A stage of a round."""
        settings, distill = self.settings, self.distill
        # The language model is taught in the paper's way, whatever the served one is compared with.
        method = distill.method if student == "model" else LLMD4Rec()
        term = DistillationTerm(
            weight=getattr(distill.weight, student),
            temperature=getattr(distill.temperature, student),
            sample_weights=distill.sample_weights,
            scale_by_t2=distill.scale_by_t2,
        )
        network: SequentialModel | LLM = settings.model
        if student == "llm":
            assert self.llm is not None
            network = self.llm
        rates = ("dropout", "id_dropout") if student == "model" else ("dropout", "state_dropout", "branch_dropout")
        if distill.dropout is not None:
            there = [rate for rate in rates if rate in type(network).model_fields]  # a model of others may have none
            network = network.model_copy(update=dict.fromkeys(there, distill.dropout))
        more: dict[str, Any] = {}
        if method.uses_teachers(term):  # else a control: trained as often, taught by nobody
            weighted = method.weights_samples and distill.sample_weights == "rank"
            # The language model is not served: it shall say what it thinks of popular items.
            adjusts = student == "model" and method.adjusts_logits and isinstance(settings.training.model.loss, Softmax)
            at_start = weighted and distill.student_ranks == "round-start"
            more["teachers"] = self._sources(student, number)
            more["teaching"] = Teaching(
                method,
                term,
                distill.logit_adjustment if adjusts else 0.0,
                settings.ensemble.weights,
                distill.teacher_precision,
                self._latest(student, number) if at_start else None,
                settings.memory if student == "model" and settings.memory_teaches else None,
                student == "model" and distill.exclude_seen,
            )
            if distill.rollout_length:  # with nobody to teach, what is drawn would be learned as if it had happened
                more |= {"rollouts_by": self._latest("model", number), "rollout_length": distill.rollout_length}
        if student in distill.warm_start:
            more["starts_from"] = self._latest(student, number)
        training: Training = settings.training.llm if student == "llm" else settings.training.model
        seed_key = f"{'llm' if student == 'llm' else 'crm'}-round-{number}"
        return self._stage(round_id(student, number), student, number, network, training.in_round(), seed_key, **more)

    def _beside_memory(self) -> Stage:
        """The model of the first round once more, for the memory's side."""
        stage = self._taught("model", 1)
        assert stage.teaching is not None
        return replace(
            stage,
            id=BESIDE_MEMORY,
            seed_key="crm-beside-memory",
            teaching=replace(stage.teaching, term=replace(stage.teaching.term, beside_memory=True)),
            note="the memory's scores are added to its own",
        )

    def _stage(
        self,
        stage_id: str,
        role: Role,
        number: int,
        network: SequentialModel | LLM,
        training: Training,
        seed_key: str,
        **more: Any,
    ) -> Stage:
        settings = self.settings
        if role == "llm":
            assert self.llm is not None
            more["item_dim"] = settings.item_source.dim
            more |= self._injected(self.llm, number, warm="starts_from" in more)
        chosen_by = settings.evaluation
        metric = chosen_by.model_dump(mode="json", include={"selection"})["selection"]
        selection = (metric, chosen_by.filter_seen, chosen_by.validation_users)
        return Stage(
            stage_id,
            role,
            number,
            network,
            training,
            settings.seed,
            seed_key,
            selection,
            settings.training.negatives,
            settings.training.half_life_days,
            # What a language model reads are texts, and an update of one is not known; what is drawn has no time.
            None if role == "llm" or "rollouts_by" in more else settings.training.newest_days,
            settings.texts if network.reads_texts else None,
            settings.llm if network.reads_texts and settings.texts.encoder == "llm" else None,
            **more,
        )

    def _injected(self, llm: LLM, number: int, *, warm: bool) -> dict[str, str]:
        """Whose item embeddings the language model gets."""
        if llm.inject == "never":
            return {}
        role: Role = "teacher" if self.settings.teachers else "model"
        # A model that was trained anew has other axes: its embeddings would make nonsense of what goes on.
        turned = warm and number > 1 and role == "model" and "model" not in self.distill.warm_start
        renewed = llm.inject == "every-round" and number > 0 and not turned
        found = {}
        if renewed or not warm:
            found["item_embeddings_of"] = self._latest(role, number if renewed else 0)
        if turned and llm.inject == "every-round":
            found["note"] = (
                "keeps the item embeddings it reads: a model that was trained anew has other axes (see "
                "distill.warm_start)"
            )
        return found
