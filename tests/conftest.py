"""How the tests run: hypothesis profiles, and one BLAS thread a process.

The default profile ``ci`` draws the same examples every time. Thousands of fresh ones:

    HYPOTHESIS_PROFILE=long pytest tests/gradients        or        pytest --hypothesis-profile=long ...
"""

import os

from hypothesis import settings
from threadpoolctl import threadpool_limits

settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, database=None)
settings.register_profile("long", max_examples=3000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Tests run side by side (pytest-xdist), on small arrays: threads inside BLAS would only get in the way.
threadpool_limits(1, user_api="blas")
# No kernels are chosen by measuring, unless a test does it: neither on a card nor on the stand-in for one.
os.environ.setdefault("TINYRES_KERNELS", "default")
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # for the processes that tests start
