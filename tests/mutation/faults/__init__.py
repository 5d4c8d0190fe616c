"""Every mutation, by what it is in. Add one for each fault that a test should have found and did not."""

from tests.mutation.faults.bench import BENCH
from tests.mutation.faults.bpf import BPF
from tests.mutation.faults.ctl import CTL
from tests.mutation.faults.kernel import KERNEL
from tests.mutation.faults.model import MODEL
from tests.mutation.faults.oracle import ORACLE
from tests.mutation.faults.plan import PLAN
from tests.mutation.faults.planes import PLANES
from tests.mutation.faults.policy import POLICY

MUTATIONS = (*MODEL, *POLICY, *PLAN, *ORACLE, *PLANES, *BPF, *CTL, *KERNEL, *BENCH)
