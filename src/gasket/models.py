"""The one import that fills the metadata: every table of Gasket, and no other."""

from gasket.access import models as access
from gasket.audit import models as audit
from gasket.backends import models as backends
from gasket.db import Base
from gasket.keys import models as keys
from gasket.limits import models as limits
from gasket.usage import models as usage

__all__ = ["access", "audit", "backends", "keys", "limits", "metadata", "usage"]

metadata = Base.metadata
