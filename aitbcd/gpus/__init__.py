"""The GPUs of this machine, as the driver says: NVML -> ``devices.Gpu`` snapshots and faults.

gpus        what others use: look, drain, resume, listen
judge       what a GPU is good for
drains      which ones take no job, over restarts
child       the daemon's side of the probe, which is ``probe`` and ``processes``
facts       what the two say to each other
driver, arrival, advice     is there a driver, has one come, what is wrong with it
telling     calls what tells those who use a GPU past the queue
claims      which job a process is of
"""

from aitbcd.gpus.claims import Claims
from aitbcd.gpus.drains import Drains, Xid
from aitbcd.gpus.gpus import Gpus
from aitbcd.gpus.telling import Telling

__all__ = ["Claims", "Drains", "Gpus", "Telling", "Xid"]
