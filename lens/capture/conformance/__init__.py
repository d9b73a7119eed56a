"""The conformance suite: tiny models, what a capture backend is expected to record of them, and how it is to behave.

``run("my_backend")`` gives a report, ``cases()`` the single trials for a test framework; ``lens conform NAME`` does the
same from the command line. A trial is skipped only for a capability that the backend does not claim.
"""

from lens.capture.conformance.case import Case as Case
from lens.capture.conformance.outcomes import Outcome as Outcome
from lens.capture.conformance.outcomes import Report as Report
from lens.capture.conformance.suite import CASES as CASES
from lens.capture.conformance.suite import ConductTrial as ConductTrial
from lens.capture.conformance.suite import Trial as Trial
from lens.capture.conformance.suite import cases as cases
from lens.capture.conformance.suite import run as run
from lens.capture.conformance.suite import update as update
