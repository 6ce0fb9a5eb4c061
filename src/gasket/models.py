"""The one import that fills the metadata: every table of Gasket, and no other."""

from gasket.backends import models as backends
from gasket.db import Base
from gasket.keys import models as keys

__all__ = ["backends", "keys", "metadata"]

metadata = Base.metadata
