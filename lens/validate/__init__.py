"""Validation: proof that what was saved is right, and that nothing is missing."""

from lens.validate.check import check as check
from lens.validate.completeness import audit as audit
