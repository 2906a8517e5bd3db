# SPDX-License-Identifier: Apache-2.0
"""Names the database's tables for queries; :mod:`snpcerts.mirror.migrations` creates them.

Times are seconds since the epoch by the database's clock. A resource's key is its path below the
key server's URL, in the spelling that :mod:`snpcerts.kds.url` writes. Chip IDs are in lower-case
hexadecimal, and TCBs are JSON objects of their components.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

METADATA: Final = MetaData()

CERTIFICATE: Final = Table(
    "certificate",
    METADATA,
    Column("resource", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # vcek, chain or crl
    Column("product", Text, nullable=False),
    Column("hwid", Text),
    Column("body", LargeBinary, nullable=False),
    Column("etag", Text, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("not_after", Double, nullable=False),
    Column("fetched_at", Double, nullable=False),
    Column("origin", Text, nullable=False),  # upstream's URL, or import
)

# The resources to fetch. A row is removed when upstream has given a final answer.
QUEUE: Final = Table(
    "queue",
    METADATA,
    Column("resource", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("product", Text, nullable=False),
    Column("hwid", Text),
    Column("paced", Boolean, nullable=False),
    Column("need", Integer, nullable=False),  # snpcerts.mirror.wanted.Need
    Column("caller", Text),  # the address of the first caller, if no host has announced the chip
    Column("wanted_at", Double, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("asked_at", Double, nullable=False),
    Column("lease_until", Double, nullable=False),  # 0: free
    Column("leased_by", Text),
    Column("attempts", Integer, nullable=False),
    Column("problem", Text),
)

# A single row: the pace at which all instances together make requests.
PACE: Final = Table(
    "pace",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("set_at", Double, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("hold_until", Double, nullable=False),
    Column("busy_until", Double, nullable=False),
    Column("busy_by", Text),
    Column("gap", Double, nullable=False),  # learnt from refusals
    Column("refused_at", Double, nullable=False),
    Column("refusals", Integer, nullable=False),  # consecutive 429s
    # Consecutive failures for which upstream named no time to wait.
    Column("failures", Integer, nullable=False),
    # A final answer sets this to 0. The first request without a final answer then sets it to 1, and
    # each row that is taken after that adds 1.
    Column("fruitless", Integer, nullable=False),
    Column("latency", Double, nullable=False),  # average seconds to an answer
    Column("problem", Text),
    Column("requests", BigInteger, nullable=False),
)

# Resources that upstream does not have, or whose answers did not verify. Remembered for minutes.
NEGATIVE: Final = Table(
    "negative",
    METADATA,
    Column("resource", Text, primary_key=True),
    Column("reason", Text, nullable=False),  # not-found or refused
    Column("problem", Text, nullable=False),
    Column("noted_at", Double, nullable=False),
    Column("until", Double, nullable=False),
)

HOST: Final = Table(
    "host",
    METADATA,
    Column("product", Text, primary_key=True),
    Column("hwid", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("first_at", Double, nullable=False),
    Column("announced_at", Double, nullable=False),
    Column("announcement", Text, nullable=False),  # JSON, as the agent sent it
    # The name, in lower case, of the only host that may announce the chip; a credential proved the
    # name. None: any host may.
    Column("bound_to", Text),
)

HOST_HISTORY: Final = Table(
    "host_history",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("product", Text, nullable=False),
    Column("hwid", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("announcement", Text, nullable=False),
)

ROLL: Final = Table(
    "roll",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("product", Text, nullable=False),
    Column("tcb", Text, nullable=False),
    Column("announced_at", Double, nullable=False),
)

ROLL_HOST: Final = Table(
    "roll_host",
    METADATA,
    Column("roll", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("hwid", Text, primary_key=True),
    Column("resource", Text, nullable=False),
    Column("stored_at", Double),
    Column("committed_at", Double),
    Column("in_step_at", Double),
)

# Running instances, which the fleet's page counts.
INSTANCE: Final = Table(
    "instance",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("seen_at", Double, nullable=False),
)
