"""What schemathesis has to be told: how a batch of lines looks, which no JSON schema says."""

from __future__ import annotations

import json

import schemathesis
from hypothesis import strategies as st

_JOBS = st.fixed_dictionaries(
    {"argv": st.just(["true"])}, optional={"name": st.just("any"), "retries": st.integers(0, 3)}
)

schemathesis.openapi.media_type(
    "application/x-ndjson",
    st.lists(_JOBS, min_size=1, max_size=5).map(
        lambda jobs: b"".join(json.dumps(job).encode() + b"\n" for job in jobs)
    ),
)
