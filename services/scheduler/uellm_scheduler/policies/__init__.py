"""The batching policies, one file each. `POLICIES` is the register."""

from __future__ import annotations

from ..domain.policy import Policy
from .edf import Edf
from .fifo import Fifo
from .odbs import Odbs
from .qlm_edf import QlmEdf
from .s3 import S3
from .saber import Saber
from .sjf import Sjf
from .slo_dbs import SloDbs
from .slo_odbs import SloOdbs
from .uellm import Uellm

_ALL: tuple[Policy, ...] = (Fifo(), Edf(), Sjf(), S3(), Odbs(), SloDbs(), SloOdbs(), QlmEdf(), Saber(), Uellm())
POLICIES: dict[str, Policy] = {policy.info.name: policy for policy in _ALL}
