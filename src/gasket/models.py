"""The one import that fills the metadata: every table of Gasket, and no other."""

from gasket.backends import models as backends
from gasket.db import Base
from gasket.keys import models as keys
from gasket.limits import models as limits

__all__ = ["backends", "keys", "limits", "metadata"]

metadata = Base.metadata
