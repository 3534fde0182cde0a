"""What can go wrong, as one tree of exceptions.

    SecateurError
    ├── CaptureError            the model could not be watched while it ran
    ├── ModelError              the model itself is unusable (NaN weights, not the model of the plan)
    ├── DataError               batches, labels or example inputs that do not fit
    ├── BudgetError             a budget that is malformed or cannot be met
    ├── PlanError               a plan that does not fit the network
    │   └── AttributeFollowError    an integer in the user's code that cannot follow a new size
    ├── VerificationError       a proof that failed
    ├── RecoveryError           training that cannot start, diverged, or gave back something else
    ├── ArtefactError           a saved model that is damaged, foreign or from a newer format
    ├── TargetError             a target that cannot run the model, or computes something else
    ├── JobError                a job file or command line that cannot be understood
    └── MissingExtraError       an optional dependency that is not installed

Every message says what happened, where, with which values, and what to do next.
"""


class SecateurError(Exception):
    """The root of everything Secateur raises on purpose."""


class CaptureError(SecateurError):
    """The model could not be watched while it ran."""


class ModelError(SecateurError):
    """The model itself cannot be used: not-finite weights, or not the model that was planned for."""


class DataError(SecateurError):
    """Batches, labels or example inputs that do not fit the model or the job."""


class BudgetError(SecateurError):
    """A budget that is malformed, or that no plan can meet."""


class PlanError(SecateurError):
    """A plan that does not fit the network it is applied to."""


class AttributeFollowError(PlanError):
    """An integer in the user's code that cannot follow the new size of an axis.

    Attributes:
        what: What would no longer hold, and what to do.
        where: The line of the code.
        item: The equation or question of the code that would no longer hold.
    """

    def __init__(self, what: str, where: str = "", item: object = None) -> None:
        super().__init__(f"{where}: {what}" if where else what)
        self.what, self.where, self.item = what, where, item


class VerificationError(SecateurError):
    """A proof that failed: the pruned network is not what the plan says."""


class RecoveryError(SecateurError):
    """Training that cannot start, that diverged, or that gave back something else than the model."""


class ArtefactError(SecateurError):
    """A saved model that is damaged, belongs to another model, or comes from a newer format."""


class TargetError(SecateurError):
    """A target that cannot run the model, or computes something else than PyTorch does."""


class JobError(SecateurError):
    """A job file or command line that cannot be understood."""


class MissingExtraError(SecateurError):
    """An optional dependency that is not installed; the message has the command that installs it."""
